"""Learners of token prompts equal their papers' formulas, written out plainly on a random CLIP: 77 tokens, no
cut, every class in every step.
"""

import copy
import math
import threading

import pytest
import torch
from standins import TOWER_LEARNERS, mostly_slow
from torch.nn.functional import cross_entropy, normalize, relu
from transformers import BertConfig, BertModel, CLIPModel, SiglipConfig, SiglipModel

from wordsight.backbones import load_backbone, unit
from wordsight.backbones.clip import CLIP, Parts
from wordsight.backbones.joined import Joined, TextEncoder
from wordsight.backbones.vision import Vision
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.fit import fit
from wordsight.fitted import predict_logits
from wordsight.fitting import fit_method
from wordsight.losses import pull
from wordsight.methods import FitData
from wordsight.methods import context as context_module
from wordsight.methods.prograd import project, words_before
from wordsight.runs import Run, RunFacts, build_method
from wordsight.sentences import class_texts
from wordsight.tasks import evaluate

NAMES = ("cat", "red_fish", "x", "a very long name")
LENGTH = 77


@pytest.fixture(scope="module")
def clip(tiny_clip):
    """The tiny CLIP with two layers and weights large enough that a wrong token shows."""
    torch.manual_seed(0)
    small = load_backbone(tiny_clip, device="cpu")
    config = copy.deepcopy(small.model.config)
    config.text_config.num_hidden_layers = 2
    model = CLIPModel(config)
    for parameter in model.text_model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return CLIP(
        Parts(model, small.tokenizer, small.transform),
        name="tiny",
        device=torch.device("cpu"),
        dtype="float32",
    )


@pytest.fixture(scope="module")
def images(clip):
    return unit(torch.randn(6, clip.dim, generator=torch.Generator().manual_seed(1)))


LABELS = torch.tensor([0, 1, 2, 3, 3, 0])


def made(name, backbone, **settings):
    torch.manual_seed(2)
    kind = resolve(METHODS, name, "method")
    return kind(NAMES, backbone, kind.Settings(**settings))


def words(backbone, names=NAMES, template="a photo of a {}.", sentences=None):
    return class_texts(backbone.encode_text, names, template, sentences)


# The formulas, written out


def plain_text(model, embedded, ends):
    """OpenAI CLIP's text encoder on embeddings [C, 77, W], read at `ends`: layer by layer, heads by hand."""
    tower = model.text_model
    x = embedded + tower.embeddings.position_embedding.weight[: embedded.shape[1]]
    mask = torch.full((embedded.shape[1],) * 2, -torch.inf).triu(1)
    for layer in tower.encoder.layers:
        y, attention = layer.layer_norm1(x), layer.self_attn
        q, k, v = (
            part(y).unflatten(-1, (2, -1)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        shares = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + mask).softmax(-1)
        x = x + attention.out_proj((shares @ v).transpose(1, 2).flatten(2))
        y = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(y * torch.sigmoid(1.702 * y))
    x = tower.final_layer_norm(x)[torch.arange(len(x)), ends]
    return normalize(model.text_projection(x), dim=-1)


def own_ids(clip, text):
    return clip.tokenizer(text)["input_ids"][1:-1]


def plain_prompts(clip, context, position):
    """[SOS, context and name in their order, ., EOS, padding to 77] as embeddings [C, 77, W], and where each
    ends. `context` is [C, n, W].
    """
    table = clip.model.text_model.embeddings.token_embedding.weight
    begin, end = clip.tokenizer("a")["input_ids"][0], clip.tokenizer("a")["input_ids"][-1]
    rows, ends = [], []
    for name, vectors in zip(NAMES, context):
        name, half = table[own_ids(clip, name.replace("_", " "))], len(vectors) // 2
        order = {
            "end": (vectors, name),
            "front": (name, vectors),
            "middle": (vectors[:half], name, vectors[half:]),
        }[position]
        text = torch.cat([table[[begin]], *order, table[[*own_ids(clip, "."), end]]])
        ends.append(len(text) - 1)
        rows.append(torch.cat([text, table[[0] * (LENGTH - len(text))]]))
    return torch.stack(rows), torch.tensor(ends)


def assert_same_step(method, plain_logits, images):
    """Logits and every gradient at the start equal the plain ones."""
    expected = plain_logits()
    assert torch.allclose(predict_logits(method, images), expected, atol=1e-5)
    wanted = torch.autograd.grad(cross_entropy(expected, LABELS), list(method.parameters()))
    found = torch.autograd.grad(
        sum(method.loss({"images": images, "labels": LABELS}).values()), list(method.parameters())
    )
    for one, other in zip(found, wanted):
        assert other.abs().max() > 1e-6 and torch.allclose(
            one, other, rtol=1e-4, atol=1e-5 * other.abs().max()
        )


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop_is_the_paper_s_formula(clip, images, position, per_class):
    method = made("coop", clip, ctx=5, position=position, per_class=per_class)
    method.context.data *= 20  # far from the words, so that its place matters
    method.set_classes(words(clip))

    def plain():
        context = method.context if per_class else method.context.expand(len(NAMES), -1, -1)
        return clip.logit_scale * images @ plain_text(clip.model, *plain_prompts(clip, context, position)).T

    assert method.context.shape == ((4, 5, 16) if per_class else (5, 16))
    assert_same_step(method, plain, images)


def test_cocoop_is_the_paper_s_formula(clip, images):
    method = made("cocoop", clip, init=None, ctx=3, reduction=4)
    method.set_classes(words(clip))

    def plain():
        rows = []
        for image in images:
            shift = (
                method.outer.weight @ relu(method.inner.weight @ image + method.inner.bias)
                + method.outer.bias
            )
            context = (method.context + shift).expand(len(NAMES), -1, -1)
            rows.append(
                clip.logit_scale * image @ plain_text(clip.model, *plain_prompts(clip, context, "end")).T
            )
        return torch.stack(rows)

    assert_same_step(method, plain, images)
    assert method.outer.weight.shape == (16, 12 // 4)


@pytest.mark.parametrize("name", ["coop", "kgcoop", "protext"])
@pytest.mark.parametrize("which", ["clip", "micro", "joined", "siglip"])
def test_started_at_words_it_is_zero_shot_with_them(name, which, clip, images, request):
    backbone = (
        clip
        if which == "clip"
        else load_backbone("micro", device="cpu")
        if which == "micro"
        else request.getfixturevalue(which)
    )
    pictures = unit(torch.randn(5, backbone.dim, generator=torch.Generator().manual_seed(1)))
    method, texts = made(name, backbone, init="a photo of a"), words(backbone)
    method.set_classes(texts)
    assert torch.allclose(
        predict_logits(method, pictures), backbone.logit_scale * pictures @ texts.name_vectors.T, atol=1e-4
    )
    assert torch.allclose(method.class_vectors, texts.name_vectors, atol=1e-6)
    others = words(backbone, ("dog", "cat"))
    method.set_classes(others)
    assert torch.allclose(method.class_vectors, others.name_vectors, atol=1e-6)


@pytest.fixture(scope="module")
def joined(clip):
    """A BERT that was never trained, pooled by the mean, beside eyes that are not used here."""
    torch.manual_seed(3)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(clip.tokenizer),
        max_position_embeddings=77,
    )
    text = TextEncoder(BertModel(config, add_pooling_layer=False), clip.tokenizer, "mean", 77)
    tensors = {
        "image_mean": torch.zeros(12),
        "text_mean": 0.1 * torch.randn(16),
        "text_to_shared": torch.randn(16, 12),
    }
    eyes = type("Eyes", (), {"_replace": lambda self, model: self, "model": torch.nn.Linear(1, 1)})()
    return Joined(
        eyes, text, tensors, {"logit_scale": 10.0}, name="joined", device=torch.device("cpu"), dtype="float32"
    )


@pytest.fixture(scope="module")
def siglip(clip):
    """Not causal, read at the last of a fixed number of tokens."""
    torch.manual_seed(4)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = tower | {"vocab_size": len(clip.tokenizer), "max_position_embeddings": 40, "projection_size": 16}
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4})
    )
    return CLIP(
        Parts(model, clip.tokenizer, clip.transform),
        name="siglip",
        device=torch.device("cpu"),
        dtype="float32",
    )


def test_joined_prompts_are_padded_as_its_texts_are(joined, images):
    """A tower that is not causal must not see padding: a class's vector does not depend on the names beside
    it.
    """
    method = made("coop", joined, ctx=4)
    method.context.data *= 30
    vectors = []
    for names in (NAMES, NAMES[:2]):
        method.set_classes(words(joined, names))
        vectors.append(method.class_vectors[:2])
    assert torch.allclose(*vectors, atol=1e-6)
    loss = method.loss({"images": images, "labels": LABELS})["cross_entropy"]
    assert torch.autograd.grad(loss, method.context)[0].abs().max() > 1e-6


# The splice


def test_a_tower_in_bfloat16_gives_nearly_the_same(tiny_clip):
    exact, rounded = (
        load_backbone(tiny_clip, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    vectors = []
    for backbone in (exact, rounded):
        method = made("coop", backbone, ctx=6)
        method.set_classes(words(backbone))
        vectors.append(method.class_vectors)
        assert method.prompts.ends is not None and method.class_vectors.dtype == torch.float32
    assert torch.allclose(*vectors, atol=0.03)


def test_text_is_cut_at_its_end(clip, joined):
    longest = max(len(clip.tokenizer(f"x x x x {name}.")["input_ids"]) for name in NAMES)
    for prompts in (
        context_module.Splice(clip).prompts(NAMES, 4, "end", shared=False),
        made("coop", joined, ctx=4).prompts,
    ):
        assert prompts.shape == (4, longest) and longest < LENGTH and prompts.ends is None
        assert prompts.places.tolist() == [[1, 2, 3, 4]] * 4


@pytest.mark.parametrize("room", [77, 30, 22])
def test_texts_that_begin_alike_share_rows_and_lose_nothing(clip, room):
    splice = context_module.Splice(clip)
    alone = splice.prompts(NAMES, 6, "end", shared=False)
    packed = context_module.share_beginnings(alone, room)
    assert (
        packed.shape[0] == {77: 1, 30: 2, 22: 3}[room]
        and packed.shape[1] <= room
        and packed.ends.shape == (4, 2)
    )
    context = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(4, clip.dim, generator=torch.Generator().manual_seed(1))
    steps = []
    for prompts in (alone, packed):
        vectors = splice.encode(prompts, context)
        steps.append((vectors, torch.autograd.grad((vectors * weights).sum(), context)[0]))
    for one, other in zip(*steps):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    twice = splice.encode(packed.repeat(2), context)
    assert torch.allclose(twice, steps[0][0].repeat(2, 1), atol=1e-5)
    last = packed.take(packed.shape[0] - 1, packed.shape[0])
    assert torch.allclose(splice.encode(last, context), steps[0][0][-len(last.ends) :], atol=1e-5)


def test_context_is_found_whatever_the_name_is(clip):
    names = ("x", "y", "X X", "a y x", "{} x")
    front, middle = (
        context_module.Splice(clip).prompts(names, 4, position) for position in ("front", "middle")
    )
    begins = [1 + len(own_ids(clip, name)) for name in names]
    assert front.places.tolist() == [[first + i for i in range(4)] for first in begins]
    assert middle.places.tolist() == [[1, 2, first + 2, first + 3] for first in begins]


def test_texts_in_parts_give_the_same_step(clip, images, monkeypatch):
    def step():
        method = made("coop", clip, ctx=4)
        loss = method.loss({"images": images, "labels": LABELS})["cross_entropy"]
        return loss, torch.autograd.grad(loss, method.context)[0]

    whole = step()
    monkeypatch.setattr(context_module, "TOKENS_AT_ONCE", 50)
    for one, other in zip(step(), whole):
        assert torch.allclose(one, other, atol=1e-6)
    batch = made("cocoop", clip, ctx=4)
    batch.set_classes(words(clip))
    parts = predict_logits(batch, images)
    monkeypatch.undo()
    assert torch.allclose(parts, predict_logits(batch, images), atol=1e-5)


def test_only_the_context_is_trained_and_the_tower_is_left_as_it_was(clip, images):
    before = (
        clip.encode_text(["a cat"]),
        {name: tensor.clone() for name, tensor in clip.model.state_dict().items()},
    )
    method = made("coop", clip, ctx=4)
    method.loss({"images": images, "labels": LABELS})["cross_entropy"].backward()
    assert [name for name, _ in method.named_parameters()] == ["context"] and method.weights().keys() == {
        "context"
    }
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert torch.equal(clip.encode_text(["a cat"]), before[0])
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in clip.model.state_dict().items())
    assert copy.deepcopy(method).splice is method.splice


def test_another_thread_reads_its_own_text(clip):
    splice, expected, found = context_module.Splice(clip), clip.encode_text(["a cat"]), []
    with splice._placed(torch.tensor([[1]]), torch.ones(1, 16)):
        thread = threading.Thread(target=lambda: found.append(clip.encode_text(["a cat"])))
        thread.start(), thread.join()
        assert not torch.equal(clip.encode_text(["a cat"]), expected)
    assert torch.equal(found[0], expected) and torch.equal(clip.encode_text(["a cat"]), expected)


# The single methods


def test_kgcoop_s_term_is_zero_at_the_template_and_the_paper_s_away_from_it(clip, images):
    method = made("kgcoop", clip)
    method.setup(FitData(images[:, None], LABELS, words(clip), 1))
    batch = {"images": images, "labels": LABELS}
    assert method.loss(batch)["knowledge"].abs() < 1e-5
    method.context.data.normal_()
    method.set_classes(words(clip))
    cosines = (method.class_vectors * words(clip).name_vectors).sum(1)
    assert (
        torch.allclose(method.loss(batch)["knowledge"], 8 * pull(cosines), atol=1e-5)
        and method.loss(batch)["knowledge"] > 0.01
    )


def test_prograd_steps_do_not_go_against_zero_shot(clip, images):
    method, conflicts = made("prograd", clip, ctx=6), 0
    method.setup(FitData(images[:, None], LABELS, words(clip), 1))
    for seed in range(8):
        torch.manual_seed(seed)
        method.context.data.normal_()
        batch = {"images": images, "labels": torch.randint(4, (6,))}
        cross_entropy_, knowledge = method.two_losses(batch)
        plain, general = (
            torch.autograd.grad(loss, method.context, retain_graph=True)[0]
            for loss in (cross_entropy_, knowledge)
        )
        loss = method.loss(batch)["cross_entropy"]
        step = torch.autograd.grad(loss, method.context)[0]
        assert (
            torch.allclose(loss, cross_entropy_)
            and (step * general).sum() >= -1e-6 * step.norm() * general.norm()
        )
        if (plain * general).sum() < 0:
            conflicts += 1
            assert torch.allclose(
                step, plain - (plain * general).sum() / general.square().sum() * general, atol=1e-6
            )
        else:
            assert torch.allclose(step, plain, atol=1e-6)
    assert 0 < conflicts < 8


def test_the_projection():
    gradient, general = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])
    assert project(gradient, general, 1.0).tolist() == [1.0, 0.0] and project(
        gradient, general, 0.5
    ).tolist() == [1.0, -1.0]
    assert project(gradient, -general, 1.0) is gradient and project(gradient, 0 * general, 1.0) is gradient


def test_prograd_starts_at_the_run_s_template_what_follows_the_name_first(clip, images):
    texts = class_texts(clip.encode_text, NAMES, "a photo of a {}, a type of pet.")
    method = made("prograd", clip, ctx=30)
    before = method.context.detach().clone()
    method.setup(FitData(images[:, None], LABELS, texts, 1))
    ids = own_ids(clip, "a type of pet, a photo of a")
    start = clip.model.text_model.embeddings.token_embedding.weight[ids]
    assert torch.equal(method.context[-len(ids) :], start)
    assert torch.equal(method.context[: -len(ids)], before[: -len(ids)])
    short = made("prograd", clip, ctx=3)  # the last words where there is no room for all
    short.setup(FitData(images[:, None], LABELS, texts, 1))
    assert torch.equal(short.context, start[-3:])
    assert words_before("{} texture.") == "texture" and words_before("{}") == ""


def test_prograd_s_words_stand_last(clip):
    method = made("prograd", clip, ctx=12, init="a photo of a")
    ids = own_ids(clip, "a photo of a")
    assert method.context.shape == (12, 16)
    assert torch.equal(
        method.context[-len(ids) :], clip.model.text_model.embeddings.token_embedding.weight[ids]
    )


@pytest.mark.slow
def test_protext_learns_from_sentences_alone(clip, images):
    sentences = {name: (f"a {name} it is", f"we see the {name}") for name in NAMES} | {"x": ()}
    texts, method = words(clip, sentences=sentences), made("protext", clip)
    targets, owners = method.setup(FitData(images[:, None], LABELS, texts, 1))
    assert targets.shape == (6, 1, clip.dim) and owners.tolist() == [0, 0, 1, 1, 3, 3]
    expected = (words(clip).name_vectors[owners] - targets[:, 0]).abs().mean()
    assert torch.allclose(
        method.loss({"images": targets[:, 0], "labels": owners})["mapping"], expected, atol=1e-6
    )
    fits = []
    for pictures in (images, -images):
        settings = RunSettings(data="d", method="protext", train={"epochs": 60, "lr": 0.03})
        facts = RunFacts(NAMES, clip.dim, clip.logit_scale, "")
        method = fit_method(settings, facts, FitData(pictures[:, None], LABELS, texts, 1), clip)
        fits.append(method.context)
    method.set_classes(texts)
    after = (method.class_vectors[owners] - targets[:, 0]).abs().mean()
    assert torch.equal(*fits) and after < 0.95 * expected


# Runs and mistakes


@pytest.mark.parametrize("name", mostly_slow(TOWER_LEARNERS, "coop"))
def test_a_run_keeps_the_trained_tensors_alone(name, tiny_clip, photos, tmp_path):
    train = {"epochs": 1, "min_steps": 3, "batch_size": 4}
    run = fit(
        RunSettings(
            data=str(photos),
            backbone=str(tiny_clip),
            device="cpu",
            method=name,
            shots=2,
            train=train,
            out=str(tmp_path / "run"),
        )
    )
    extra = {"inner.weight", "inner.bias", "outer.weight", "outer.bias"} if name == "cocoop" else set()
    assert run.method(load_backbone(tiny_clip, device="cpu")).weights().keys() == {"context"} | extra
    first = run.events("eval")[-1]
    assert evaluate(Run.open(run.folder))[-1]["confusion"] == first["confusion"]


def test_a_context_of_its_own_knows_only_labelled_classes(clip):
    method = made("coop", clip, per_class=True, ctx=2)
    method.set_classes(words(clip, ("x", "cat")))
    with pytest.raises(
        WordsightError, match=r"per_class=true has seen no images of dog; it scores only cat, red_fish"
    ):
        method.set_classes(words(clip, ("cat", "dog")))
    assert method.context.shape == (4, 2, 16)


def test_mistakes_end_in_sentences(clip):

    class Closed(Vision):
        name, dim, logit_scale = "image tower alone", 12, 1.0

        def __init__(self):
            """Without an encoder."""

    cases = [
        (lambda: made("coop", clip, ctx=0), r"settings\.ctx=0 must be 1 or more"),
        (
            lambda: made("coop", clip, ctx=80),
            "80 context tokens and the class name 'a very long name' are more than the text tower reads",
        ),
        (lambda: made("kgcoop", clip, init=" "), "settings.init=' ' has no tokens"),
        (lambda: made("cocoop", clip, reduction=0), r"settings\.reduction=0"),
        (
            lambda: build_method(RunSettings(data="d", method="coop"), RunFacts(NAMES, 12, 1.0, "")),
            "coop learns token prompts.*no backbone here",
        ),
        (lambda: made("kgcoop", Closed()), "'image tower alone' has none that takes"),
    ]
    for act, message in cases:
        with pytest.raises(WordsightError, match=message):
            act()


def test_a_tokenizer_without_short_words_is_refused(clip, monkeypatch):
    monkeypatch.setattr(context_module, "PLACEHOLDERS", (("cat", "dogs"), ("same", "same")))
    with pytest.raises(WordsightError, match="context cannot be placed"):
        context_module.Splice(clip).prompts(NAMES, 2, "end")
