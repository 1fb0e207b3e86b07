"""AAPE on captions: the closed form is the least of both losses, and a run is a backbone of h(x)."""

import json

import pytest
import torch
from standins import COLOURS, captioned, mostly_slow, paint

from wordsight import Index
from wordsight.backbones import load_backbone, unit
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import open_pairs
from wordsight.data.pictures import pictures_of
from wordsight.export import export
from wordsight.fit import fit
from wordsight.fit_pairs import training_pairs
from wordsight.fit_prompted import _encoded, _learned, _parted, _scale
from wordsight.methods.aape_captions import Captioned, Equations
from wordsight.runs import Run, RunFacts
from wordsight.tasks import evaluate
from wordsight.tasks.retrieve import recalls


def pairs_of(images=9, texts=20, dim=12, seed=0) -> Captioned:
    """Random images with two captions each; image i and i + 1 share one."""
    stream = torch.Generator().manual_seed(seed)
    vectors = [unit(torch.randn(count, dim, generator=stream)) for count in (images, texts)]
    return Captioned(*vectors, [[i, i + 1] for i in range(images)])


def targets(known: Captioned):
    means = unit(torch.stack([own.mean(0) for own in known.of_images]))
    return means - means.mean(0)


@pytest.mark.parametrize("contrast", [0.0, 0.7])
def test_the_closed_form_is_where_both_losses_are_least(contrast):
    """With fewer images than numbers and hardly a penalty every h(x_i) is free: the gradient of
    |h - p|^2 / 2 + contrast h.C'h / 2 is zero there, up to the length of all."""
    known = pairs_of()
    said, p = Equations(known).solve(1e-9, contrast)(known.images), targets(known)
    every = torch.cat(known.of_images).double()
    covariance = (every - every.mean(0)).T @ (every - every.mean(0)) / len(every)
    weighed = contrast * covariance / covariance.diagonal().mean()
    left = said.double() + said.double() @ weighed  # (I + contrast C') h, which is p but for one factor
    factor = float((left * p).sum() / p.square().sum())
    assert factor > 0 and torch.allclose(left, factor * p.double(), atol=1e-4)
    assert float(said.norm(dim=1).mean()) == pytest.approx(1, abs=1e-5)


def test_some_images_keep_their_captions_and_no_others():
    known, some = pairs_of(), pairs_of().take([7, 2])
    assert len(some.texts) == 4
    for image, chosen in zip((7, 2), range(2)):
        assert torch.equal(some.of_images[chosen], known.of_images[image])
        assert torch.equal(some.images[chosen], known.images[image])


def test_recall_counts_what_several_images_share():
    images, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]])
    found = recalls(images, texts, [[0], [0, 1], [2]])
    # both images of the shared caption are right answers to it; the first caption leads for the first image
    assert found["image_to_text"]["recall@1"] == pytest.approx(100)
    assert found["text_to_image"]["recall@1"] == pytest.approx(100 * 3 / 4)


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twenty images with two captions each, of which five are for testing."""
    texts = ("{name} paint", "a wall in {name} {index}")
    return captioned(tmp_path_factory.mktemp("pairs"), texts, count=4) / "captions.csv"


def fitted(table, backbone, out, form="tuned", **more) -> Run:
    train = {} if form == "solved" else {"train": {"max_steps": 30}}
    given = {"data": str(table), "backbone": str(backbone), "out": str(out), "device": "cpu"}
    return fit(method="aape_captions", settings={"form": form}, **{**given, **train, **more})


@pytest.mark.parametrize("form", mostly_slow(("solved", "tuned", "paper"), "tuned"))
def test_a_run_is_a_backbone_whose_images_are_h(table, tiny_clip, tmp_path, form):
    run = fitted(table, tiny_clip, tmp_path / "run", form)
    prompted, inner = load_backbone(run.folder), load_backbone(tiny_clip)
    pictures = open_pairs(str(table)).pictures
    own, plain = (image_features(one, pictures).vectors[:, 0] for one in (prompted, inner))
    assert torch.allclose(own, unit(prompted.h(plain)), atol=1e-6) and not torch.allclose(
        own, plain, atol=0.1
    )
    assert prompted.image_fingerprint != inner.image_fingerprint
    assert prompted.text_fingerprint == inner.text_fingerprint and 0 < prompted.logit_scale <= 100.01
    texts = ["red paint", "a dog"]
    assert torch.equal(text_features(prompted, texts), text_features(inner, texts))
    (event,), (learned,) = run.events("retrieval"), run.events("fit")
    assert event["images"] == 5 and set(event["plain"]) == {"image_to_text", "text_to_image"}
    assert (learned["images"], learned["captions"]) == (15, 30) and learned["form"] == form
    weights = (run.folder / "weights.safetensors").read_bytes()
    again = fitted(table, tiny_clip, tmp_path / "run", form)
    assert (again.folder / "weights.safetensors").read_bytes() == weights and len(again.events("fit")) == 1


def test_left_out_images_have_the_words_of_the_others(tiny_clip, tmp_path):
    lines = ["path,label,split"]
    for name, colour in COLOURS.items():
        for part in ("train", "val"):
            paint(colour, len(lines)).save(tmp_path / f"{name}-{part}.png")
            lines.append(f"{name}-{part}.png,{name},{part}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    texts = {name: [f"{name} paint", f"a wall in {name}"] for name in COLOURS}
    (tmp_path / "words.json").write_text(json.dumps(texts))
    own = {"sentences": str(tmp_path / "words.json"), "template": "the colour {}"}
    settings = RunSettings(str(tmp_path / "a.csv"), method="aape_captions", device="cpu", **own)
    backbone = load_backbone(tiny_clip)
    _, known = _encoded(backbone, training_pairs(settings), settings)
    fitted_to, left_out = _parted(backbone, known, settings)
    assert [len(own) for own in left_out.rows] == [len(own) for own in fitted_to.rows] == [3] * len(COLOURS)


def test_the_scale_is_that_of_an_h_which_has_not_seen_the_images_it_is_chosen_by(tmp_path):
    stream = torch.Generator().manual_seed(3)
    base, turn = torch.randn(200, 32, generator=stream), torch.randn(32, 32, generator=stream)
    noisy = [one + torch.randn(200, 32, generator=stream) for one in (base, base @ turn / 32**0.5)]
    known = Captioned(*map(unit, noisy), [[row] for row in range(200)])
    fitted_to, left_out = known.take(range(40, 200)), known.take(range(40))
    settings = RunSettings("a.csv", method="aape_captions", settings={"form": "solved"})
    run = Run(tmp_path, settings, RunFacts((), 32, 1.0, settings.template))
    learned = _learned(run, known.images[:, None], known, fitted_to, left_out)
    unseen, seen = (
        _scale(Equations(some).solve(learned.how["penalty"], learned.how["contrast"]), left_out)
        for some in (fitted_to, known)
    )
    assert learned.scale == unseen < seen


@pytest.mark.slow
def test_h_finds_more_captions_of_the_images_it_learned_from(table, tiny_clip, tmp_path):
    run, inner = fitted(table, tiny_clip, tmp_path / "run", "solved"), load_backbone(tiny_clip)
    known = _encoded(inner, open_pairs(str(table)), run.settings)[1]
    said = unit(load_backbone(run.folder).h(known.images))
    plain, ours = (recalls(images, known.texts, known.rows) for images in (known.images, said))
    assert ours["image_to_text"]["recall@1"] > plain["image_to_text"]["recall@1"] + 20
    assert ours["text_to_image"]["recall@5"] > plain["text_to_image"]["recall@5"]


def test_an_image_goes_through_the_tower_once(table, tiny_clip, tmp_path, monkeypatch):
    prompted = load_backbone(fitted(table, tiny_clip, tmp_path / "run", "solved").folder)
    monkeypatch.setattr(type(prompted.inner), "encode_image", lambda *_: pytest.fail("it is cached"))
    assert len(image_features(prompted, open_pairs(str(table)).pictures).kept) == 15


@pytest.mark.slow
def test_search_asks_by_h(table, tiny_clip, tmp_path):
    run = fitted(table, tiny_clip, tmp_path / "run", "solved")
    index = Index.open(table.parent, backbone=str(run.folder))
    query = "a wall in red 1"
    prompted = load_backbone(run.folder)
    images = image_features(
        prompted, pictures_of([table.parent / match.image for match in index.search(query)])
    )
    scores = images.vectors[:, 0] @ text_features(prompted, [query])[0]
    assert [match.score for match in index.search(query)] == pytest.approx(scores.tolist(), abs=1e-5)
    plain = Index.open(table.parent, backbone=str(tiny_clip)).search(query)
    assert [match.score for match in plain] != pytest.approx(scores.tolist(), abs=1e-3)


@pytest.mark.slow
def test_a_run_is_exported_whole_and_measured_elsewhere(table, tiny_clip, tmp_path, capsys):
    run = fitted(table, tiny_clip, tmp_path / "run", "solved")
    out = export(run.folder, tmp_path / "out")
    facts = json.loads((out / "wordsight_backbone.json").read_text())
    assert facts["inner"] is None and (out / "inner").is_dir() and str(tmp_path) not in str(facts)
    copied, prompted = load_backbone(out), load_backbone(run.folder)
    assert copied.image_fingerprint == prompted.image_fingerprint
    (event,) = evaluate(run, data=str(table))
    assert event["images"] == 5
    image = str(table.parent / "red3.png")
    assert main(["predict", str(run.folder), image, "--classes", "red,blue", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["classes"]) == 1
    assert main(["eval", str(run.folder)]) == 0 and "plain image vectors: " in capsys.readouterr().out


def test_what_cannot_be_is_said(table, tiny_clip, vit, photos, tmp_path):
    run = fitted(table, tiny_clip, tmp_path / "run", "solved")
    facts = json.loads((run.folder / "wordsight_backbone.json").read_text())
    (run.folder / "wordsight_backbone.json").write_text(json.dumps(facts | {"image": "other"}))
    with pytest.raises(WordsightError, match=r"has changed since .* was learned over it"):
        load_backbone(run.folder)
    with pytest.raises(WordsightError, match="an image encoder alone, without a text tower"):
        fitted(table, vit, tmp_path / "none")
    with pytest.raises(WordsightError, match="learns from pairs; leave it out"):
        fitted(table, tiny_clip, tmp_path / "none", unlabelled="test")
    with pytest.raises(WordsightError, match=r"settings.contrast=-1.0 is not possible"):
        fit(method="aape_captions", data=str(table), settings={"contrast": -1})
    with pytest.raises(WordsightError, match="a table of captions is for method=aape_captions"):
        fit(method="aape", data=str(table), backbone=str(tiny_clip))
    assert not (tmp_path / "none").exists()
