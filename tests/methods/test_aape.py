"""AAPE's algebra equals its plain form, and each setting does what the paper or its docstring says."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.methods import FitData, Space, aape
from wordsight.methods.aape import AAPE, AAPESettings, calibrate
from wordsight.methods.aggregators import AttentionAggregator, MeanAggregator, MLPAggregator, mean_of
from wordsight.sentences import ClassTexts

DIM, SCALE = 12, 20.0
NAMES = tuple("abcde")


def draw(*shape, seed=0, dtype=torch.float32):
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def texts_of(names=NAMES, counts=(3, 0, 1, 2, 4), dtype=torch.float32):
    vectors = tuple(draw(count, DIM, seed=10 + row, dtype=dtype) for row, count in enumerate(counts))
    return ClassTexts(
        tuple(names),
        draw(len(names), DIM, seed=5, dtype=dtype),
        tuple(("s",) * count for count in counts),
        vectors,
    )


def make(texts=None, known=NAMES[:3], shake=True, begin=True, **settings):
    """An AAPE bound to five classes of which three have labels; `shake` moves every parameter away from its
    start.
    """
    torch.manual_seed(0)
    texts = texts or texts_of()
    method = AAPE(tuple(known), Space(DIM, SCALE), AAPESettings(**{"calibrate": False, **settings}))
    if begin:
        counts = [texts.names.index(name) for name in known]
        own = ClassTexts(
            tuple(known),
            texts.name_vectors[counts],
            *(tuple(part[i] for i in counts) for part in (texts.sentences, texts.sentence_vectors)),
        )
        method.setup(FitData(draw(9, DIM)[:, None], torch.arange(9) % len(known), own, 3))
    if shake:
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    method.set_classes(texts)
    return method


# -- the fast form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"class_residual": False}, {"form": "as_in_paper"}, {"new_strength": 1.0}, {"pull": 0.5}],
    ids=str,
)
def test_cosines_equal_the_plain_form(settings):
    method = make(texts_of(dtype=torch.float64), begin=False, **settings).double()
    images = method.centred(draw(7, DIM, seed=2, dtype=torch.float64))
    if settings.get("form") != "as_in_paper" and "new_strength" not in settings:
        assert method.strength.unique().numel() == 2
    plain = method.class_weights(images)
    cosines, kept = method.cosines(images, method.generate(images))
    torch.testing.assert_close(
        cosines, F.cosine_similarity(images[:, None], plain, dim=-1), atol=1e-12, rtol=0
    )
    if settings.get("pull"):
        torch.testing.assert_close(
            kept, F.cosine_similarity(method.words[None], plain, dim=-1), atol=1e-12, rtol=0
        )


def test_the_fast_form_has_the_plain_form_s_gradients():
    method, images = (
        make(texts_of(dtype=torch.float64), begin=False, pull=1.0).double(),
        draw(7, DIM, dtype=torch.float64),
    )
    fast, kept = method.cosines(images, method.generate(images))
    plain = method.class_weights(images)
    pairs = (
        fast + kept,
        F.cosine_similarity(images[:, None], plain, dim=-1)
        + F.cosine_similarity(method.words[None], plain, dim=-1),
    )
    weights = torch.randn(fast.shape, dtype=torch.float64)
    first, second = (
        torch.autograd.grad((value * weights).sum(), list(method.parameters())) for value in pairs
    )
    for one, other in zip(first, second):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_blocks_change_nothing_and_the_large_tensor_is_never_built(monkeypatch):
    method, images = make(), draw(23, DIM)
    with torch.inference_mode():
        whole = method.logits(images)
        monkeypatch.setattr(aape, "PAIRS_IN_CACHE", 20)
        monkeypatch.setattr(AAPE, "class_weights", lambda *_: pytest.fail("built the B x C x D tensor"))
        torch.testing.assert_close(method.logits(images), whole, atol=1e-5, rtol=0)
        method.loss({"images": images, "labels": torch.arange(23) % 3})


def test_no_tensor_of_a_block_is_as_large_as_images_by_classes_by_width():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), others=None):
            nonlocal largest
            result = function(*arguments, **(others or {}))
            largest = max(
                [
                    largest,
                    *(
                        part.numel()
                        for part in (result if isinstance(result, (tuple, list)) else [result])
                        if isinstance(part, torch.Tensor)
                    ),
                ]
            )
            return result

    method, images = make(width=4), draw(50, DIM)
    with torch.inference_mode(), Watch():
        method.logits(images)
    assert 50 * len(NAMES) * 4 <= largest < 50 * len(NAMES) * DIM


# -- the forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_residual", [True, False])
def test_the_residual_form_starts_at_zero_shot(class_residual):
    texts, images = texts_of(), draw(7, DIM)
    method = make(texts, shake=False, class_residual=class_residual)
    words = unit(0.5 * texts.name_vectors + 0.5 * texts.means())
    torch.testing.assert_close(method.words, words, atol=0, rtol=0)
    torch.testing.assert_close(method.logits(images), SCALE * images @ words.T, atol=2e-5, rtol=0)


def test_h_only_scores_by_what_the_generator_says():
    texts, images = texts_of(), draw(7, DIM)
    method = make(texts, form="h_only")
    expected = SCALE * F.cosine_similarity(
        method.generator(images)[:, None], texts.name_vectors[None], dim=-1
    )
    torch.testing.assert_close(method.logits(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(method.prompt(images), unit(method.generator(images)))
    assert not any(name.startswith(("from_", "project")) for name in method.weights())


def test_the_papers_form_has_no_residual_machinery():
    texts = texts_of()
    method = make(texts, form="as_in_paper", calibrate=True, new_strength=0.0, pull=1.0)
    assert method.class_residual is None
    assert (method.mix.item(), method.scale.item(), method.centre.abs().sum().item()) == (0, SCALE, 0)
    assert torch.equal(method.strength, torch.ones(5)) and torch.equal(method.start(), torch.zeros(5, DIM))
    torch.testing.assert_close(method.words, texts.name_vectors)  # the paper's w_c is the class name's vector
    images = draw(7, DIM)
    joined = torch.cat(
        [texts.name_vectors.expand(7, -1, -1), method.generator(images)[:, None].expand(-1, 5, -1)], -1
    )
    inner = torch.cat([method.from_class.weight, method.from_prompt.weight], 1)
    written_out = (
        F.relu(joined @ inner.T + method.from_class.bias) @ method.project.weight.T + method.project.bias
    )  # g([w ; h(x)])
    torch.testing.assert_close(method.class_weights(images), written_out, atol=1e-5, rtol=0)
    assert method.loss({"images": images, "labels": torch.arange(7) % 3}).keys() == {
        "cross_entropy",
        "distill",
        "reward",
    }


def test_new_classes_get_a_part_of_what_was_learned():
    method = make(new_strength=0.3)
    assert torch.equal(method.strength, torch.tensor([1, 1, 1, 0.3, 0.3]))
    assert torch.equal(method.start()[3:], method.words[3:]) and not torch.equal(
        method.start()[:3], method.words[:3]
    )
    still = make(new_strength=0.0)
    images = draw(7, DIM)
    torch.testing.assert_close(
        still.logits(images)[:, 3:], SCALE * images @ unit(still.words[3:]).T, atol=2e-5, rtol=0
    )


def test_offsets_follow_names_and_not_places():
    method, texts = make(), texts_of()
    order = [4, 2, 0, 3, 1]
    before = method.start()
    method.set_classes(
        ClassTexts(
            *(
                tuple(part[i] for i in order) if isinstance(part, tuple) else part[order]
                for part in vars(texts).values()
            )
        )
    )
    torch.testing.assert_close(method.start(), before[order])


# -- aggregators ---------------------------------------------------------------------------------------------


def shaken(kind, heads=4):
    torch.manual_seed(1)
    aggregator = kind(DIM, heads).double()
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return aggregator


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("kind", [AttentionAggregator, MLPAggregator, MeanAggregator])
def test_aggregators_ignore_order_and_padding(kind, with_images):
    aggregator, sentences = shaken(kind), draw(3, 5, DIM, dtype=torch.float64)
    images = draw(3, DIM, seed=4, dtype=torch.float64) if with_images else None
    present = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    prompts = aggregator(sentences, present, images)
    torch.testing.assert_close(prompts.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(aggregator(sentences.flip(1), present.flip(1), images), prompts)
    alone = aggregator(sentences[1:2, :2], present[1:2, :2], images[1:2] if with_images else None)
    torch.testing.assert_close(prompts[1:2], alone)
    torch.testing.assert_close(
        aggregator(sentences + 9 * ~present[..., None] * (kind is AttentionAggregator), present, images),
        prompts,
    )


def test_attention_starts_at_the_mean():
    sentences, present = draw(3, 5, DIM), torch.ones(3, 5, dtype=torch.bool)
    mean = unit(sentences.sum(1))
    torch.testing.assert_close(AttentionAggregator(DIM, 4)(sentences, present, None), mean)
    images = draw(3, DIM, seed=4)
    torch.testing.assert_close(AttentionAggregator(DIM, 4)(sentences, present, images), unit(mean + images))


def test_attention_equals_torch_s_with_full_keys_and_values():
    own, sentences = shaken(AttentionAggregator, heads=3), draw(4, 5, DIM, dtype=torch.float64)
    present = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    plain = nn.MultiheadAttention(DIM, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        plain.in_proj_bias.copy_(torch.cat([own.query.bias, torch.zeros(2 * DIM, dtype=torch.float64)]))
        plain.out_proj.load_state_dict(own.output.state_dict())
        slot = mean_of(sentences, present)
        seen = own.norm(torch.cat([slot[:, None], sentences], 1))
        absent = ~F.pad(present, (1, 0), value=True)
        prompt = slot + plain(seen[:, :1], seen, seen, key_padding_mask=absent, need_weights=False)[0][:, 0]
        expected = unit(prompt + own.feed_forward(own.norm_after(prompt)))
        torch.testing.assert_close(own(sentences, present, None), expected, atol=1e-12, rtol=0)


def test_heads_that_do_not_divide_the_width_become_ones_that_do():
    assert AttentionAggregator(DIM, 8).heads == 4 and AttentionAggregator(7, 4).heads == 1


def test_the_query_decides_whether_prompts_differ_between_images():
    images, labels = draw(6, DIM, seed=8), torch.tensor([0, 0, 0, 1, 1, 2])
    shared, own = (make(query=query).condense(images, labels) for query in ("mean", "mean+image"))
    assert (
        torch.equal(shared[0], shared[1])
        and torch.equal(shared[3], shared[4])
        and not torch.allclose(shared[0], shared[3])
    )
    assert not torch.allclose(own[0], own[1], atol=1e-3)


def test_random_keeps_one_sentence_a_class():
    method, texts = make(aggregator="random"), texts_of()
    assert method.sentences.shape == (3, 1, DIM)
    for row, name, vectors in zip(method.sentences[:, 0], texts.name_vectors, texts.sentence_vectors):
        assert any(torch.equal(row, vector) for vector in (vectors if len(vectors) else name[None]))


@pytest.mark.parametrize("aggregator", ["attention", "mlp", "mean", "random"])
def test_what_only_training_needs_is_not_saved(aggregator):
    method = make(aggregator=aggregator)
    assert method.weights().keys() == make(begin=False).weights().keys()
    terms = method.loss({"images": draw(6, DIM), "labels": torch.arange(6) % 3})
    assert ("reward" in terms) == (
        aggregator in ("attention", "mlp")
    )  # the others have nothing that a reward could move


def test_distillation_moves_the_generator_and_not_the_aggregator():
    method = make()
    method.loss({"images": draw(6, DIM), "labels": torch.arange(6) % 3})["distill"].backward()
    assert method.generator[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.aggregator.parameters())


# -- calibration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", ["sentences", "names"])
def test_calibration_trusts_what_names_the_images(right):
    truth, noise = draw(40, 32, seed=1), draw(40, 32, seed=2)
    labels = torch.arange(400) % 40
    images = unit(truth[labels] + torch.randn(400, 32, generator=torch.Generator().manual_seed(3)) / 5)
    names, sentences = (noise, truth) if right == "sentences" else (truth, noise)
    mix, centre, scale = calibrate(
        images,
        labels,
        ClassTexts(tuple(map(str, range(40))), names, (("s",),) * 40, tuple(sentences[:, None])),
    )
    assert mix > 0.9 if right == "sentences" else mix < 0.1
    assert centre.isfinite().all() and 3 <= scale <= 151


def test_calibration_without_evidence_leaves_a_part_to_each():
    mix, centre, scale = calibrate(draw(1, DIM), torch.tensor([0]), texts_of(NAMES[:2], (0, 0)))
    assert 0.1 < mix < 0.7 and 3 <= scale <= 151
    assert centre.norm() < 0.1  # one image is no centre


def test_calibration_says_that_features_are_not_finite():
    with pytest.raises(WordsightError, match="not finite"):
        calibrate(torch.full((4, DIM), torch.nan), torch.arange(4) % 2, texts_of(NAMES[:2], (1, 1)))


def test_settings_that_cannot_work_are_refused_in_words():
    for settings in ({"width": 0}, {"heads": 0}):
        with pytest.raises(WordsightError, match=next(iter(settings))):
            AAPE(NAMES, DIM, SCALE, dataclasses.replace(AAPESettings(), **settings))
