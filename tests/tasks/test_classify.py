"""From settings to a run folder and back to figures, with a backbone that knows colours."""

import csv
import hashlib
import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from standins import CLASSIFIERS, ColourBackbone, fill_folder

from wordsight.config import METHODS, RunSettings, WordsightError, default_folder, resolve
from wordsight.fit import fit
from wordsight.runs import Run, build_method
from wordsight.tasks import classify, evaluate

QUICK = {"epochs": 2, "min_steps": 10}


def settings_for(photos, out, method="aape", **others):
    learns = hasattr(resolve(METHODS, method, "method"), "training_defaults")
    return RunSettings(
        data=str(photos), out=str(out), method=method, shots=2, **{"train": QUICK if learns else {}, **others}
    )


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_a_run_holds_all_that_is_known_of_it(photos, backbone, tmp_path, method):
    run = fit(settings_for(photos, tmp_path / "run", method), backbone=backbone)
    (event,) = run.events("eval")
    assert (
        event["images"] == 12
        and event["accuracy"] > 90
        and event["chance"] == pytest.approx(100 / 3)
        and event["top5"] is None
    )
    assert (
        set(event["class_recall"]) == {"red", "green", "blue"}
        and len(event["confusion"]) == 3
        and event["skipped"] == []
    )
    (fitted,) = run.events("fit")
    assert fitted["images"] == 6 and fitted["seconds"].keys() == {"features", "texts", "fit"}
    rows = list(csv.DictReader((run.folder / "predictions-all.csv").read_text().splitlines()))
    assert len(rows) == 12 and sum(row["label"] == row["predicted"] for row in rows) == round(
        event["accuracy"] * 0.12
    )
    assert evaluate(run.folder, backbone=backbone)[0] == {k: v for k, v in event.items() if k != "references"}


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_the_same_images_under_another_name_get_the_same_figures(photos, backbone, tmp_path, method):
    sentences = tmp_path / "s.json"
    sentences.write_text(
        json.dumps({"red": ["a green thing"], "green": ["a blue thing"], "blue": ["a red thing", "x"]})
    )
    test = fill_folder(tmp_path / "both" / "test")
    shutil.copytree(photos, tmp_path / "both" / "train")
    run = fit(
        settings_for(tmp_path / "both", tmp_path / "run", method, sentences=str(sentences)), backbone=backbone
    )
    (own,), (other,) = run.events("eval"), evaluate(run, data=str(test), backbone=backbone)
    assert own["confusion"] == other["confusion"] and own["calibration_error"] == pytest.approx(
        other["calibration_error"]
    )


def test_the_same_settings_give_the_run_back(photos, backbone, tmp_path, said):
    settings = settings_for(photos, tmp_path / "run")
    before = (fit(settings, backbone=backbone).folder / "weights.safetensors").read_bytes()
    again = fit(settings, backbone=backbone)
    assert any("finished already" in line for line in said) and len(again.events("eval")) == 1
    assert (again.folder / "weights.safetensors").read_bytes() == before
    with pytest.raises(WordsightError, match=r"holds another run: shots is 2 there and 3 here"):
        fit(replace(settings, shots=3), backbone=backbone)


@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}/../photos", "moved"])
def test_images_that_a_run_has_seen_are_no_test_images(backbone, tmp_path, said, spelled):
    """However its data is named, wherever it lies, and whatever was added since."""
    photos = fill_folder(tmp_path / "photos")
    run = fit(settings_for(photos, tmp_path / "run"), backbone=backbone)
    (own,) = run.events("eval")
    if spelled == "moved":
        spelled = str(shutil.move(photos, tmp_path / "elsewhere"))
    again = evaluate(run, data=spelled.format(photos), backbone=backbone)[0]
    assert (again["images"], again["confusion"]) == (12, own["confusion"])
    assert any("left out 6 of 18 images" in line for line in said)


def test_data_that_has_changed_is_noticed(backbone, tmp_path, said):
    photos = fill_folder(tmp_path / "photos")
    run = fit(settings_for(photos, tmp_path / "run"), backbone=backbone)
    (photos / "red" / "-1.png").write_bytes(
        (photos / "red" / "0.png").read_bytes()
    )  # sorts first: another draw
    result = evaluate(run, backbone=backbone)[0]
    seen = run.seen()
    assert result["images"] == 19 - sum(
        hashlib.blake2b(path.read_bytes(), digest_size=16).digest() in seen for path in photos.rglob("*.png")
    )
    assert any("are not those that the run was fitted beside" in line for line in said)
    with pytest.raises(
        WordsightError, match=r"holds another run: images are '6, fingerprint .* and '6, fing"
    ):
        fit(run.settings, backbone=backbone)
    assert (
        evaluate(run, data=str(fill_folder(tmp_path / "other", count=9)), backbone=backbone)[0]["images"]
        == 21
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_figures_gets_them(photos, backbone, tmp_path, monkeypatch):
    settings = settings_for(photos, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(classify, "write_predictions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(settings, backbone=backbone)
    with pytest.raises(WordsightError, match="is not finished"):
        Run.open(tmp_path / "run")
    run = fit(settings, backbone=backbone)
    assert [len(run.events(kind)) for kind in ("fit", "eval")] == [1, 1] and run.finished


@pytest.mark.slow
def test_base_and_new_are_tested_among_themselves(backbone, tmp_path, said):
    data = fill_folder(tmp_path / "four", ("red", "green", "blue", "yellow"))
    base, new = fit(settings_for(data, tmp_path / "run", classes="base"), backbone=backbone).events("eval")
    assert (base["classes"], list(base["class_recall"])) == (
        "base",
        ["blue", "green"],
    )  # the first half in label order
    assert (new["classes"], list(new["class_recall"])) == ("new", ["red", "yellow"]) and new["accuracy"] > 80
    probe = fit(
        settings_for(data, tmp_path / "probe", "linear_probe", classes="base"),
        backbone=backbone,
    )
    assert [event["classes"] for event in probe.events("eval")] == ["base"]
    assert any("has seen no images of red, yellow" in line for line in said)
    with pytest.raises(WordsightError, match="has seen no images"):
        evaluate(probe, classes="new", backbone=backbone)
    with pytest.raises(WordsightError, match="would train on the new classes"):
        fit(settings_for(data, tmp_path / "x", classes="new"), backbone=backbone)


def test_a_test_part_without_some_classes_is_said(backbone, tmp_path):
    fill_folder(tmp_path / "d" / "train", ("red", "green", "blue", "yellow"))
    fill_folder(tmp_path / "d" / "test", ("blue", "green"))
    with pytest.raises(WordsightError, match="has no test images for classes=new"):
        fit(settings_for(tmp_path / "d", tmp_path / "run", classes="base"), backbone=backbone)


def test_unreadable_images_are_counted_and_listed(backbone, tmp_path, said):
    data = fill_folder(tmp_path / "photos", count=8)
    for index in range(3):
        (data / "red" / f"{index}.png").write_bytes(b"")
    run = fit(
        settings_for(data, tmp_path / "run", "linear_probe", seed=3),
        backbone=backbone,
    )
    skipped = run.events("fit")[0]["skipped"] + run.events("eval")[0]["skipped"]
    assert sorted(skipped) == [[f"red/{index}.png", "empty (0 bytes)"] for index in range(3)]
    assert "images:\n  red/" in "".join(said)
    assert run.events("fit")[0]["images"] + run.events("eval")[0]["images"] == 24 - 3


@pytest.mark.parametrize("method", ["linear_probe", "aape"])
def test_a_class_without_a_readable_image_is_named(backbone, tmp_path, method):
    data = fill_folder(tmp_path / "photos", count=3)
    for file in (data / "red").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(WordsightError, match="no training image that can be read is left of red"):
        fit(settings_for(data, tmp_path / "run", method), backbone=backbone)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shots": 0}, "shots=0 is not possible"),
        (
            {"shots": 7},
            r"shots=7 needs 7 training images of every class; 3 of 3 classes have fewer: blue 6, green 6, "
            r"red 6",
        ),
        ({"method": "apee"}, "did you mean 'aape'"),
        ({"settings": {"widht": 3}}, r"unknown setting 'settings.widht'.*did you mean 'width'"),
        ({"settings": {"width": 0}}, "width"),
        (
            {"method": "taskres", "settings": {}, "train": {"batch_size": 0}},
            r"train\.batch_size=0 is not possible",
        ),
        ({"device": "gpu"}, "device='gpu' is not known; give auto, cpu, cuda, cuda:1 or mps"),
        ({"sentences": "clip8"}, "did you mean 'clip80'|did you mean 'clip7'"),
        ({"template": "a photo"}, "must hold it once"),
        ({"views": 0}, "views=0 is not possible"),
    ],
)
def test_what_cannot_work_is_said_before_work(photos, backbone, tmp_path, change, message):
    with pytest.raises(WordsightError, match=message):
        fit(replace(settings_for(photos, tmp_path / "run"), **change), backbone=backbone)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_changed_backbone_is_refused(photos, backbone, tmp_path):
    fit(settings_for(photos, tmp_path / "run", "zero_shot"), backbone=backbone)

    class Other(ColourBackbone):
        text_fingerprint = "other"

    with pytest.raises(
        WordsightError, match=r"is not the one that .*run was fitted on.* \(text_fingerprint differs\)"
    ):
        evaluate(tmp_path / "run", backbone=Other())


def test_a_stand_in_for_sentences_is_said(photos, backbone, tmp_path, said):
    run = fit(settings_for(photos, tmp_path / "run", "sentence_mean"), backbone=backbone)
    assert any("template set 'clip7' stands in" in line for line in said) and len(run.sentences["red"]) == 7
    said.clear()
    assert (
        fit(settings_for(photos, tmp_path / "zs", "zero_shot"), backbone=backbone).sentences["red"] == ()
        and not said
    )


def test_views_are_trained_on_and_not_tested_on(photos, backbone, tmp_path):
    first, second = (
        fit(settings_for(photos, tmp_path / str(views), "taskres", views=views), backbone=backbone)
        for views in (1, 3)
    )
    assert not torch.equal(first.method().offsets, second.method().offsets)
    assert second.events("eval")[0]["images"] == 12


def test_a_folder_is_named_after_what_decides_the_run():
    settings = RunSettings(data="my data/Photos 1.csv", method="aape", shots=None, classes="base", seed=3)
    assert str(default_folder(settings)) == "runs/Photos-1-csv-aape-allshot-base-seed3"
    asked = RunSettings(data="photos", method="likelihood", settings={"model": "a/llava"}, shots=None)
    assert str(default_folder(asked)) == "runs/photos-likelihood-llava-allshot-all-seed1"


@pytest.mark.slow
def test_what_a_fit_is_compared_with_has_its_own_words_and_no_pool(photos, backbone, tmp_path):
    """The reference zero-shot is zero-shot: no label and no unlabelled image reaches it."""
    plain = fit(settings_for(photos, tmp_path / "zs", "zero_shot"), backbone=backbone).method()
    own = settings_for(photos, tmp_path / "a", unlabelled="test", words="calibrated")
    (event,) = fit(own, backbone=backbone).events("eval")
    assert event["references"].keys() == {"zero_shot", "linear_probe"}
    made = []
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("wordsight.fitting")
        patch.setattr(module, "build_method", lambda *given: made.append(given) or build_method(*given))
        fit(replace(own, out=str(tmp_path / "b")), backbone=backbone)
    assert [(given[0].words, given[1].pool_classes != ()) for given in made] == [
        ("calibrated", True),
        ("names", False),
        ("names", False),
    ]
    assert plain.given is None and plain.pooled is None


def test_a_backbone_is_what_was_given_or_a_sentence(photos, tiny_clip, tmp_path):
    words = {"data": str(photos), "shots": 1, "method": "zero_shot", "out": str(tmp_path / "run")}
    assert fit(**words, backbone=Path(tiny_clip), references=False).settings.backbone == str(tiny_clip)
    with pytest.raises(WordsightError, match="backbone='3' is of type int"):
        fit(**words, backbone=3)
    with pytest.raises(WordsightError, match=r"fit\('photos/'\) takes settings by name"):
        fit("photos/")


def test_a_test_part_of_training_images_alone_is_refused_before_the_fit(photos, tmp_path):
    """Fitted first, it left a run that no command could finish."""
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / part)
    settings = RunSettings(
        str(tmp_path / "data"), method="linear_probe", shots=None, out=str(tmp_path / "run")
    )
    with pytest.raises(WordsightError, match=r"all 18 test images of .* are equal to training images"):
        fit(settings, backbone=ColourBackbone(), references=False)
    assert not (tmp_path / "run").exists()
    fit(replace(settings, shots=2), backbone=ColourBackbone(), references=False)


def test_that_val_is_not_tested_on_is_said(photos, backbone, tmp_path, said):
    """Folders of train/ and val/ alone: others call val what is tested on."""
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / "both" / part)
        for path in (tmp_path / "both" / part).rglob("*.png"):  # or both hold the same images
            path.write_bytes(path.read_bytes() + part.encode())
    run = fit(settings_for(tmp_path / "both", tmp_path / "run"), backbone=backbone)
    assert any("has a val part and no test part" in line for line in said)
    assert run.events("eval")[0]["images"] == 12
    (other,) = evaluate(run, data=str(tmp_path / "both" / "val"), backbone=backbone)
    assert other["images"] == 18
