"""Captions from images: the linear map, the frozen LM behind it, h, and the run that holds them."""

import csv

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from standins import captioned
from torch.nn import functional as F

from wordsight.backbones.prefixed import PrefixedLM
from wordsight.captioner import seen_by
from wordsight.config import RunSettings, WordsightError
from wordsight.data.pairs import open_pairs
from wordsight.fit import fit
from wordsight.fitted import open_generator
from wordsight.methods.evidence import Spectrum, ridge
from wordsight.methods.limber import RIDGE, SHRUNK, Limber
from wordsight.reader import read
from wordsight.settings import LimberSettings
from wordsight.text_metrics import cider_d, tokens

QUICK = {"epochs": 3, "min_steps": 0, "batch_size": 4, "warmup_steps": 1, "lr": 1e-2}
LITTLE = {"tokens": 3, "width": 8, "h_epochs": 3, "h_batch": 4, "max_tokens": 24}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Fifteen images with two captions each, of which five are for testing."""
    return captioned(tmp_path_factory.mktemp("captions"), ("{name} paint", "a wall in {name}"))


def settings(data, tower, lm, out, loop=None, **own):
    given = {"data": str(data), "backbone": str(tower), "method": "limber", "out": str(out), "device": "cpu"}
    return read(
        RunSettings,
        given,
        {"settings": {"text": str(lm), **LITTLE, **own}, "train": {**QUICK, **(loop or {})}},
    )


def method(lm, h="none", grid=(3, 5), dim=6):
    torch.manual_seed(0)
    return Limber(PrefixedLM.from_base(lm), LimberSettings(h=h, width=4), grid, dim, 6)


@pytest.fixture(scope="module")
def trained(table, tiny_clip, lm, tmp_path_factory):
    """A finished run whose h is trained on, for tests that only read it."""
    return fit(settings(table, tiny_clip, lm, tmp_path_factory.mktemp("trained") / "run", h="finetuned"))


def test_the_loss_is_the_plain_one_in_value_and_gradient(lm):
    """Of logits at all places by the LM's own class."""
    base = PrefixedLM.from_base(lm)
    rows, cut = base.tokenise(["a dog", "two red cats"], 20)
    assert cut == 0 and [row[-1] for row in rows] == [base.end] * 2
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    prefix = torch.randn(2, 3, base.width, requires_grad=True)
    loss = base.loss(prefix, ids, lengths)
    loss.backward()
    other = prefix.detach().clone().requires_grad_()
    given = torch.cat([other, base.embed(ids)], 1)
    logits = base.lm(inputs_embeds=given).logits[:, 2:-1]
    spoken = torch.arange(ids.shape[1]) < lengths[:, None]
    plain = F.cross_entropy(logits[spoken], ids[spoken])
    plain.backward()
    assert torch.allclose(loss, plain) and torch.allclose(prefix.grad, other.grad, atol=1e-7)
    assert all(parameter.grad is None for parameter in base.lm.parameters())


def test_in_bfloat16_the_loss_is_nearly_that_of_float32(lm):
    """With float32 kept for what is trained."""
    losses, gradients = [], []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        made = Limber(PrefixedLM.from_base(lm, dtype=dtype), LimberSettings(h="image"), (3, 5), 6)
        batch = {"images": torch.randn(2, 6), "grids": torch.randn(2, 3, 5).half()}
        batch |= {"ids": torch.randint(3, 20, (2, 4)), "lengths": torch.tensor([4, 2])}
        loss = made.loss(batch | {"text_of": torch.tensor([0, 1])})["caption"]
        loss.backward()
        losses.append(loss)
        gradients.append(made.map.weight.grad)
    assert torch.allclose(*losses, rtol=0.02) and gradients[1].dtype == torch.float32
    assert F.cosine_similarity(*(one.flatten() for one in gradients), dim=0) > 0.95


def test_a_large_vocabulary_is_read_in_parts(lm, monkeypatch):
    base = PrefixedLM.from_base(lm)
    (row,), _ = base.tokenise(["two red cats on a wall"], 40)
    prefix = torch.randn(1, 3, base.width, requires_grad=True)
    whole = base.loss(prefix, torch.tensor([row]), torch.tensor([len(row)]))
    (gradient,) = torch.autograd.grad(whole, prefix)
    monkeypatch.setattr("wordsight.backbones.prefixed.SCORES", 100)  # three places at a time
    parts = base.loss(prefix, torch.tensor([row]), torch.tensor([len(row)]))
    (in_parts,) = torch.autograd.grad(parts, prefix)
    assert torch.allclose(whole, parts) and torch.allclose(gradient, in_parts, atol=1e-7)


@pytest.mark.parametrize("h", ["none", "image", "frozen", "finetuned"])
def test_gradients_reach_what_is_trained_and_nothing_else(lm, h):
    made = method(lm, h)
    batch = {
        "images": torch.randn(2, 6),
        "grids": torch.randn(2, 3, 5).half(),
        "ids": torch.randint(3, 20, (2, 4)),
        "lengths": torch.tensor([4, 2]),
        "text_of": torch.tensor([1, 0]),
        "target": torch.randn(2, 6),
    }
    terms = made.loss(batch)
    assert set(terms) == ({"caption", "distill"} if h == "finetuned" else {"caption"})
    sum(terms.values()).backward()
    moved = {name for name, one in made.named_parameters() if one.grad is not None and one.grad.any()}
    expected = {"map.weight", "map.bias"} | ({"widen.weight", "widen.bias"} if h != "none" else set())
    if h == "finetuned":
        expected |= {f"generator.{row}.{part}" for row in (0, 2) for part in ("weight", "bias")}
    assert moved == expected
    assert not any(name.startswith("lm.") for name in made.weights())


def test_soft_tokens_begin_at_the_size_of_tokens(lm):
    made = method(lm, "image", grid=(3, 400))
    grids = 7 * torch.randn(64, 3, 400) + torch.linspace(-30, 30, 400)
    made.start_at(grids)
    prefix = made.prefix(grids.half(), F.normalize(torch.randn(64, 6), dim=1)).detach()
    assert prefix.shape == (64, 4, 16) and made.count == 4
    assert prefix[:, :3].std() == pytest.approx(made.lm.spread, rel=0.15)
    assert prefix[:, 3].std() == pytest.approx(made.lm.spread, rel=0.5)


def test_soft_tokens_begin_where_the_lm_has_the_words(lm):
    """Of images whose words are a linear function of what the tower sees, and of a part it does not see."""
    made = method(lm, "image", grid=(3, 5))
    means, images = torch.randn(400, 5), torch.randn(400, 6)
    images[:, :5] = means  # the image vector has the same to say
    words = 2 + means @ torch.randn(5, 16) + torch.randn(400, 16)
    grids = means[:, None] + torch.randn(400, 3, 5)
    made.start_at(grids)
    made.start_at_words(grids, grids.mean(1), images, words)
    tokens = made.prefix(grids, images).detach()
    for one in (tokens[:, :3], tokens[:, 3:]):
        assert torch.allclose(one.mean((0, 1)), words.mean(0), atol=0.05 * made.lm.spread)
        away = one - one.mean((0, 1))
        assert away.square().mean().sqrt() == pytest.approx(SHRUNK * made.lm.spread, rel=0.05)
        seen, said = away.mean(1).flatten(), (words - words.mean(0)).flatten()
        assert F.cosine_similarity(seen, said, dim=0) > 0.7
    given = (grids.mean(1) - made.centre) * made.scale
    solved = ridge(Spectrum.of(given), words, RIDGE).map.T
    assert torch.allclose(made.map.weight / made.map.weight.norm(), solved / solved.norm(), atol=1e-5)


def test_images_or_captions_that_are_all_alike_are_a_start_too(lm):
    made, alike = method(lm, "image"), torch.ones(4, 3, 5)
    made.start_at(alike)
    made.start_at_words(alike, alike.mean(1), torch.ones(4, 6), torch.ones(4, 16))
    assert made.prefix(alike, torch.ones(4, 6)).isfinite().all()


@pytest.mark.parametrize("start", ["random", "ridge"])
def test_a_run_starts_where_it_was_asked_to(table, tiny_clip, lm, tmp_path, start):
    """One that has hardly moved: soft tokens are near the words of their own image, or of none."""
    barely = {"epochs": 1, "lr": 1e-9, "weight_decay": 0.0}
    run = fit(settings(table, tiny_clip, lm, tmp_path / "run", barely, start=start))
    generator, pairs, words = open_generator(run.folder), open_pairs(str(table)), []
    for texts in pairs.captions:
        ids = [id for text in texts for id in generator.lm.tokenise([text], 99)[0][0]]
        words.append(generator.lm.embed(torch.tensor([ids]))[0].mean(0))
    words = torch.stack(words)
    seen, _ = seen_by(generator, pairs.pictures)
    tokens = torch.stack([seen[row] for row in range(len(words))]).mean(1)
    apart, said = tokens - tokens.mean(0), words - words.mean(0)
    own, others = (float((apart * one).sum()) for one in (said, said.roll(1, 0)))
    assert (own > 2 * abs(others)) == (start == "ridge")
    assert torch.allclose(tokens.mean(0), words.mean(0), atol=0.1 * generator.lm.spread) == (start == "ridge")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "qwen2", "granite", "cohere", "gpt2"])
def test_families_read_vectors_in_place_of_tokens(family, tmp_path):
    """Whatever an LM multiplies its token vectors or its logits with; a difference would be refused."""
    from standins import letters
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 40,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    own = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0},
        "cohere": {"logit_scale": 0.25},
        "gemma2": {"final_logit_softcapping": 0.05},
    }
    torch.manual_seed(0)
    drop = {"hidden_size", "num_hidden_layers", "num_attention_heads"} if family == "gpt2" else set()
    given = {key: value for key, value in sizes.items() if key not in drop} | own.get(family, {})
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given)).save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    base = PrefixedLM.from_base(tmp_path)
    ids = torch.tensor([[5, 9, 4, 11]])
    theirs = base.lm(input_ids=ids).logits[0].float()
    ours = base.logits(base._states(base.embed(ids))[0])
    assert torch.allclose(ours, theirs, atol=1e-5)
    written = base.write([base.embed(ids)[0]], max_new_tokens=4)
    plain = base.lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)[0, 4:].tolist()
    assert written == [plain]


def test_rows_of_unequal_prompts_are_written_as_each_by_itself(lm):
    base = PrefixedLM.from_base(lm)
    rows = [base.row([torch.randn(3, base.width), "a dog"]), base.row(["a", torch.randn(2, base.width)])]
    assert [len(row) for row in rows] == [8, 3]
    length = {"max_new_tokens": 5, "min_new_tokens": 5}
    together, alone = base.write(rows, **length), [base.write([row], **length)[0] for row in rows]
    assert together == alone


@pytest.mark.slow
def test_a_run_holds_the_map_and_knows_its_lm(trained, lm):
    tensors = load_file(trained.folder / "weights.safetensors")
    assert {"map.weight", "widen.weight", "generator.0.weight", "centre", "scale"} <= tensors.keys()
    assert not any(name.startswith("lm.") for name in tensors)
    assert trained.facts.lm == PrefixedLM.from_base(lm).origin and trained.facts.text_fingerprint
    (event,) = trained.events("fit")
    assert event["images"] == 10 and event["captions"] == 10 and "distill" in event["h"]
    assert len(trained.seen()) == 10 and trained.finished and not trained.state.exists()
    assert {"caption", "distill"} <= trained.events("train")[-1].keys()


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bits(table, tiny_clip, lm, trained, tmp_path, monkeypatch):
    import wordsight.train as loop

    wanted = settings(table, tiny_clip, lm, tmp_path / "run", {"save_seconds": 0.0}, h="finetuned")
    saved, calls = loop._save, []

    def stop(learner, *rest):
        saved(learner, *rest)
        calls.append(learner)
        if isinstance(learner, Limber) and len(calls) > 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(wanted)
    run = fit(wanted)
    ours, theirs = (load_file(one.folder / "weights.safetensors") for one in (run, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [event["step"] for event in run.events("train")] == sorted(
        {event["step"] for event in run.events("train")}
    )
    assert run.events("fit")[0]["h"] == trained.events("fit")[0]["h"]  # learned before it was stopped


def test_captions_that_are_said_twice_count_twice(tiny_clip, lm, tmp_path):
    """As pycocoevalcap has it: CIDEr-D is the mean over all captions of an image."""
    data = captioned(tmp_path, ("{name} paint", "{name} paint", "a wall in {name}"))
    run = fit(settings(data, tiny_clip, lm, tmp_path / "run"))
    pairs = open_pairs(str(data), "test")
    assert pairs.captions[0].count(pairs.captions[0][0]) == 2
    with open(next(run.folder.glob("captions-*.csv")), newline="", encoding="utf-8") as file:
        said = [tokens(row["caption"]) for row in csv.DictReader(file)]
    people = [[tokens(text) for text in texts] for texts in pairs.captions]
    assert run.events("captions")[0]["cider_d"] == pytest.approx(np.mean(cider_d(said, people)), abs=1e-9)


def test_a_run_whose_test_images_cannot_be_read_is_finished_and_told(tiny_clip, lm, tmp_path, said):
    data = captioned(tmp_path, ("{name} paint", "a wall in {name}"))
    for place in data.glob("*2.png"):
        place.write_bytes(b"no image")
    run = fit(settings(data, tiny_clip, lm, tmp_path / "run"))
    assert run.finished and run.events("captions") == []
    assert "nothing was measured: none of 5 images could be read" in said.text


def test_one_image_with_one_soft_token_is_a_sample(lm):
    made = method(lm, grid=(1, 5))
    made.start_at(torch.ones(1, 1, 5))
    assert made.prefix(torch.ones(1, 1, 5), torch.ones(1, 6)).isfinite().all()


@pytest.mark.slow
def test_h_frozen_is_what_was_trained_by_itself(table, vit, tiny_clip, lm, tmp_path):
    """By another backbone's texts, beside an image encoder that has none."""
    run = fit(settings(table, vit, lm, tmp_path / "run", h="frozen", encoder=str(tiny_clip)))
    before = load_file(run.folder / "weights.safetensors")
    again = fit(
        settings(table, vit, lm, tmp_path / "longer", {"epochs": 6}, h="frozen", encoder=str(tiny_clip))
    )
    after = load_file(again.folder / "weights.safetensors")
    assert torch.equal(before["generator.0.weight"], after["generator.0.weight"])
    assert not torch.equal(before["map.weight"], after["map.weight"])


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"h": "frozen"}, "no text tower; give settings.encoder"),
        ({"max_tokens": 95}, "reads 96; give fewer"),
        ({"tokens": 0}, "settings.tokens=0"),
        ({"h": "thawed"}, "choices are none, image"),
    ],
)
def test_what_cannot_be_is_said_before_a_folder_is_made(table, vit, lm, tmp_path, own, says):
    with pytest.raises(WordsightError, match=says):
        fit(settings(table, vit, lm, tmp_path / "run", **own))
    assert not (tmp_path / "run").exists()


def test_a_tower_without_a_grid_is_told(backbone, table, lm, tmp_path):
    with pytest.raises(WordsightError, match="no grid of patches"):
        fit(settings(table, "micro", lm, tmp_path / "run"), backbone=backbone)


@pytest.mark.slow
def test_captions_that_are_too_long_lose_their_ends_and_are_counted(table, tiny_clip, lm, tmp_path, said):
    run = fit(settings(table, tiny_clip, lm, tmp_path / "run", {"max_steps": 1}, max_tokens=10))
    assert run.events("fit")[0]["truncated_captions"] == 9  # all but "red paint"
    assert any("lost their ends" in line for line in said)
