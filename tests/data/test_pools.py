"""Which images without labels a run learns from, and what is said of those it does not."""

import csv
import re

import numpy as np
import pytest
from standins import COLOURS, paint

import wordsight
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.data import open_dataset
from wordsight.data.pools import unlabelled
from wordsight.fit import fit


@pytest.fixture
def pool(tmp_path):
    """Other images of the same colours, without class folders."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, colour in enumerate(list(COLOURS.values())[:3] * 6):
        paint(colour, 1000 + number).save(flat / f"{number}.png")
    return flat


def settings_for(photos, out, **own):
    return RunSettings(data=str(photos), out=str(out), shots=2, **own)


def test_a_folder_is_learned_from_and_new_images_are_predicted(photos, pool, backbone, tmp_path, said):
    run = fit(settings_for(photos, tmp_path / "a", unlabelled=str(pool)), backbone=backbone)
    assert run.facts.pool_classes == run.facts.classes and run.facts.pool
    assert {"pooled.maps", "pooled.bias"} <= run.method(backbone).weights().keys()
    again = fit(settings_for(photos, tmp_path / "a", unlabelled=str(pool)), backbone=backbone)
    assert again.facts == run.facts
    next(pool.iterdir()).unlink()
    with pytest.raises(WordsightError, match="holds another run"):
        fit(settings_for(photos, tmp_path / "a", unlabelled=str(pool)), backbone=backbone)


def test_labelled_and_tested_images_are_left_out_and_told(photos, backbone, tmp_path, said):
    whole = open_dataset(str(photos))
    labelled = whole.train.take([0, 1])
    kept = unlabelled(str(photos), whole, labelled)
    assert len(kept) == len(whole.train) - 2
    assert any("left out of 18 images: 2 labelled" in line for line in said)
    with pytest.raises(WordsightError, match="leaves no image to learn from: of 18, 18 labelled"):
        unlabelled(str(photos), whole, whole.train)


def test_parts_that_are_not_there_and_empty_folders(photos, tmp_path):
    whole = open_dataset(str(photos))
    with pytest.raises(WordsightError, match=r"unlabelled=val: .*photos has no such images"):
        unlabelled("val", whole, whole.train.take([0]))
    (tmp_path / "none").mkdir()
    with pytest.raises(WordsightError, match="holds no images"):
        unlabelled(str(tmp_path / "none"), whole, whole.train.take([0]))


def test_blank_labels_of_a_table_are_a_pool(photos, backbone, tmp_path):
    files = sorted(photos.rglob("*.png"))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, path in enumerate(files):
            rows.writerow([path, path.parent.name if number % 2 else ""])
    run = fit(settings_for(tmp_path / "t.csv", tmp_path / "a", unlabelled="unlabelled"), backbone=backbone)
    assert run.facts.pool.startswith("9 ") or "9" in run.facts.pool


def test_the_estimator_learns_from_a_matrix_or_images(backbone):
    names = [name for name in list(COLOURS)[:3] for _ in range(6)]
    images = [paint(COLOURS[name], seed) for seed, name in enumerate(names)]
    clf = wordsight.Classifier(backbone, "linear_probe")
    clf.fit(images[::6], names[::6], unlabelled=images)
    assert "pooled.maps" in clf.method_.weights() and (clf.predict(images) == np.array(names)).mean() > 0.9
    with pytest.raises(WordsightError, match="has vectors of width 3, the others of"):
        wordsight.Classifier(None, "aape").fit(np.eye(6), list("aabbcc"), unlabelled=np.ones((4, 3)))


def test_without_a_test_part_what_is_tested_is_not_learned_from(photos, backbone, tmp_path):
    """The training folder is no pool: all that was not drawn of it is tested on."""
    for name in (str(photos), "train"):
        with pytest.raises(WordsightError, match=r"leaves no image to learn from: of 18, .* tested on"):
            fit(settings_for(photos, tmp_path / "a", unlabelled=name), backbone=backbone)
    run = fit(settings_for(photos, tmp_path / "b", unlabelled="test"), backbone=backbone)
    assert run.facts.pool.startswith("12, ")


VECTORS = {
    "narrow": (np.ones((4, 5)), r"vectors of width 5 do not fit backbone .*, whose vectors have 8"),
    "bad": (np.full((4, 8), np.nan), "holds no images; left out 4 of 4 files whose vector is zero or not"),
    "none": (np.ones((0, 8)), "holds no images"),
}


@pytest.fixture
def vectors(tmp_path):
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(3), 6)
    text = rng.normal(size=(3, 8))
    images = text[labels] + 0.3 * rng.normal(size=(18, 8))
    names = {"classes": np.array(list("abc")), "text": text}
    tested = {"test": images + 0.1, "test_label": labels}
    np.savez(tmp_path / "d.npz", **names, **tested, train=images, train_label=labels)
    np.savez(tmp_path / "blank.npz", **names, **tested, unlabelled=images)
    for name, (given, _) in VECTORS.items():
        np.savez(tmp_path / f"{name}.npz", classes=names["classes"], unlabelled=given)
    return tmp_path


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_that_do_not_fit_end_in_a_sentence(vectors, name, capsys):
    pool = f"{vectors / name}.npz"
    given = [f"data={vectors / 'd.npz'}", f"unlabelled={pool}", f"out={vectors / 'out'}", "shots=2"]
    assert main(["fit", "method=zero_shot", *given]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(f"unlabelled={re.escape(pool)}: .*{VECTORS[name][1]}", said), said


def test_no_label_at_all(vectors):
    given = {"data": str(vectors / "blank.npz"), "shots": None, "unlabelled": "unlabelled"}
    run = fit(method="zero_shot", out=str(vectors / "a"), **given)
    assert run.events("eval")[0]["accuracy"] > 90
    with pytest.raises(WordsightError, match=r"words=calibrated .* labelled images, and there are none"):
        fit(method="zero_shot", words="calibrated", out=str(vectors / "b"), **given)


def test_photos_are_no_pool_for_characters(photos, tmp_path, capsys):
    given = [f"unlabelled={photos}", f"out={tmp_path / 'out'}", "data=digits", "shots=1"]
    assert main(["fit", "method=zero_shot", "backbone=micro", *given]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"unlabelled={photos}: backbone=micro knows single characters" in said, said
