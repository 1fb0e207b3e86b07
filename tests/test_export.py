"""Export: one folder that answers as the run did when all that it was made from is gone, and that says
nothing of the machine.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from standins import COLOURS, fill_folder, mostly_slow, paint

import wordsight
from wordsight import model_card
from wordsight.backbones import load_backbone
from wordsight.backbones.join import join
from wordsight.backbones.verify import verify
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.export import export, public
from wordsight.runs import Run
from wordsight.settings import JoinSettings

KINDS = mostly_slow(("clip", "joined", "llm", "two_tower"), "clip")
SMALL = {"wrapper": "a {}.", "prompts": 2, "rank": 2, "heads": 2, "max_tokens": 40}


@pytest.fixture(autouse=True, scope="module")
def fresh_cache(tmp_path_factory):
    """Bits are compared here, and other tests may have kept the same words' vectors from other batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORDSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(photos, tiny_clip, vit, lm, tmp_path_factory):
    """A run of a kind whose data, models and words lie in one folder, which can be deleted."""
    known = {}

    def run(kind):
        if kind in known:
            return known[kind]
        root = tmp_path_factory.mktemp("machine") / "somebody"
        fill_folder(root / "photos")
        for name, model in {"clip": tiny_clip, "vit": vit, "lm": lm}.items():
            shutil.copytree(model, root / name)
        (root / "clip" / "LICENSE").write_text("Do as you like.")
        (root / "lm" / "README.md").write_text("---\nlicense: llama3\n---\nAn LM.")
        (root / "words.json").write_text(
            json.dumps({name: [f"much {name}"] for name in ("red", "green", "blue")})
        )
        words = {"data": str(root / "photos"), "device": "cpu", "references": False}
        backbone = root / "clip"
        if kind == "joined":
            pairs = [(paint(colour, row), [name]) for row, (name, colour) in enumerate(COLOURS.items())]
            out = str(root / "joined")
            join(JoinSettings(str(root / "vit"), str(root / "lm"), out, captions="given"), None, pairs)
            backbone = out
        if kind in ("llm", "two_tower"):
            loop = {"epochs": 1, "min_steps": 0, "batch_size": 6}
            own = {"text": str(root / "lm"), "teacher": str(root / "clip"), **SMALL}
            tower = wordsight.fit(
                **words,
                method="two_tower",
                backbone=str(root / "clip"),
                settings=own,
                train=loop,
                template="{}",
                out=str(root / "tower"),
            )
            if kind == "two_tower":
                return known.setdefault(kind, (root, tower.folder))
            backbone = tower.folder
        fitted = wordsight.fit(
            **words,
            backbone=str(backbone),
            shots=2,
            method="tip_adapter",
            sentences=str(root / "words.json"),
            out=str(root / "run"),
        )
        return known.setdefault(kind, (root, fitted.folder))

    return run


def answers(run, images, classes):
    found = wordsight.predict(run, images, classes=classes)
    return np.array([answer.probabilities for answer in found])


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_run_did_where_nothing_else_is_left(kind, made, tmp_path, monkeypatch):
    root, run = made(kind)
    images = [str(tmp_path / f"{name}.png") for name in COLOURS]
    for name, colour in COLOURS.items():
        paint(colour, 7).save(tmp_path / f"{name}.png")
    classes = ["blue", "red", "purple"] if kind == "two_tower" else None
    before, events = answers(run, images, classes), Run.open(run).events("eval")
    out = export(run, tmp_path / "out")
    root.rename(root.with_name("gone"))
    try:
        moved = shutil.move(out, tmp_path / "elsewhere")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "no-cache"))
        assert np.array_equal(answers("elsewhere", images, classes), before)
        texts = {path: path.read_bytes() for path in Path(moved).rglob("*") if path.is_file()}
        for secret in (str(root), str(root.parent), "somebody", str(Path.home())):
            assert not [path for path, content in texts.items() if secret.encode() in content]
        assert Run.open(moved).settings.data == "photos" and not list(Path(moved).rglob("*.part"))
        assert [one["accuracy"] for one in Run.open(moved).events("eval")] == [
            one["accuracy"] for one in events
        ]
        again = export(moved, tmp_path / "again")
        assert np.array_equal(answers(again, images, classes), before)
        if kind == "two_tower":
            assert all(check.passed for check in verify(load_backbone(moved).text).values())
    finally:
        root.with_name("gone").rename(root)


@pytest.mark.slow
def test_the_card_has_figures_classes_and_licences(made, tmp_path):
    out = export(made("clip")[1], tmp_path / "colours")
    card = (out / "README.md").read_text()
    assert "# colours\n" in card and "3 classes: blue, green, red\n" in card
    (accuracy,) = [one["accuracy"] for one in Run.open(out).events("eval")]
    assert f"| photos | all | 12 | accuracy | {accuracy:.1f} |" in card
    assert "| backbone | clip | `licences/backbone/LICENSE` |" in card
    assert (out / "licences" / "backbone" / "LICENSE").read_text() == "Do as you like."
    tower = (export(made("two_tower")[1], tmp_path / "tower") / "README.md").read_text()
    assert "| language model | lm | llama3 |" in tower and "`licences/image-tower/LICENSE`" in tower
    assert (
        "not stated beside the weights"
        in (export(made("joined")[1], tmp_path / "j") / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_name_of_a_backbone_is_refused_where_the_run_is_one_itself(made, tmp_path):
    _, run = made("two_tower")
    for act in (
        lambda: wordsight.predict(run, ["a.png"], classes="a,b", backbone="elsewhere"),
        lambda: wordsight.load(run, class_names=["a", "b"], backbone="elsewhere"),
        lambda: wordsight.evaluate(run, data="digits", backbone="elsewhere"),
        lambda: export(run, tmp_path / "out", backbone="elsewhere"),
    ):
        with pytest.raises(WordsightError, match=r"is itself a backbone.* backbone='elsewhere' is for"):
            act()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_card_of_many_classes_does_not_list_them_all(made, tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "LISTED", 2)
    card = (export(made("clip")[1], tmp_path / "out", name="hf:me/x") / "README.md").read_text()
    assert "3 classes: blue, green and 1 more\n" in card and 'wordsight.load("hf:me/x")' in card


@pytest.mark.slow
def test_images_that_were_trained_on_are_still_left_out_of_a_test(made, tmp_path, said):
    root, run = made("clip")
    out = export(run, tmp_path / "out")
    (event,) = wordsight.evaluate(out, data=str(root / "photos"))
    assert event["images"] == 12 and any("6 of 18" in line for line in said)


@pytest.mark.parametrize("name", ["o/clip", "hub/org/name", "https://host/x.tar", "digits", "photos"])
def test_names_that_are_no_path_stay(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public(name) == name


def test_of_a_path_the_last_part_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert public("a/b") == public("./a/b/") == public("~/x/b") == public(str(tmp_path / "a" / "b")) == "b"
    assert public(f"digits::{tmp_path}/t.csv") == "digits::t.csv"
    assert public(f"my.models:Eyes@{tmp_path}/eyes") == "my.models:Eyes@eyes"


@pytest.mark.slow
def test_what_does_not_come_back_the_same_is_not_exported(made, tmp_path, monkeypatch):
    from wordsight.backbones.clip import CLIP

    def forgetful(self, folder):
        shutil.copytree(other, folder)

    other = made("clip")[0].parent / "other"
    shutil.copytree(made("clip")[0] / "clip", other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    monkeypatch.setattr(CLIP, "save_pretrained", forgetful)
    with pytest.raises(WordsightError, match="does not give the same vectors once it is saved"):
        export(made("clip")[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_verb(made, tmp_path, capsys):
    _, run = made("clip")
    assert main(["export", str(run), str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(tmp_path / "out") and told["bytes"] > 1000
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "already" in capsys.readouterr().err
    (run / "finished.json").rename(run / "kept.json")
    assert main(["export", str(run), str(tmp_path / "other")]) == 2
    (run / "kept.json").rename(run / "finished.json")
    assert "is not finished" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_run_on_feature_matrices_is_exported_without_a_backbone(tmp_path):
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(12, 5)), ["a", "b"] * 6
    fitted = wordsight.Classifier(None, "linear_probe").fit(X, y)
    out = export(fitted.save(tmp_path / "run"), tmp_path / "out")
    assert np.array_equal(wordsight.load(out).predict_proba(X), fitted.predict_proba(X))
    assert not (out / "backbone").exists()
