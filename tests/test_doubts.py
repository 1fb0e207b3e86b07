"""What a run is not sure of: sets of classes that hold the right one as often as they promise, and images
unlike all training images."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from standins import COLOURS, paint

import wordsight
from wordsight.backbones import unit
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.doubts import FILE, FOLDS, VALIDATION, Doubts, conformal, unlike
from wordsight.prediction import predict

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """train, val and test of eight images of each colour, none twice."""
    root = tmp_path_factory.mktemp("data")
    for place, part in enumerate(("train", "val", "test")):
        for row, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for index in range(8):
                image = paint(COLOURS[name], 1000 * place + 100 * row + index)
                image.save(root / part / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run(parts, tiny_clip, tmp_path_factory):
    words = {"data": str(parts), "backbone": str(tiny_clip), "method": "aape", "device": "cpu"}
    out = str(tmp_path_factory.mktemp("runs") / "run")
    return wordsight.fit(**words, shots=4, references=False, out=out).folder


@pytest.fixture
def images(parts):
    return sorted(map(str, (parts / "test").rglob("*.png")))


def test_a_further_image_is_covered_exactly_as_often_as_promised():
    """Of m + 1 images each is once the new one: the right class is in its set in ceil((m + 1)(1 - e)) cases
    of m + 1, whatever the probabilities are."""
    chances = np.sort(np.random.default_rng(0).random(20))
    for error in (0.05, 0.1, 0.23, 0.5, 0.9):
        inside = [
            conformal.among(chances[[[row]]], conformal.lowest(np.delete(chances, row), error)).item()
            for row in range(20)
        ]
        assert sum(inside) == math.ceil(20 * (1 - error) - 1e-9)


def test_too_few_images_for_an_error_rate_are_told_with_one_that_they_hold_for():
    chances = np.sort(np.random.default_rng(0).random(19))
    assert conformal.lowest(chances, 0.05) == chances[0]
    with pytest.raises(WordsightError, match=r"error=0.01 needs 99 images or more, and the run has 19.*0.05"):
        conformal.lowest(chances, 0.01)
    with pytest.raises(WordsightError, match=r"needs 20 images or more, and the run has 19.*0.05"):
        conformal.lowest(chances, 0.049)
    for wrong in (0, 1, -0.1, math.nan):
        with pytest.raises(WordsightError, match="is no error rate"):
            conformal.lowest(chances, wrong)


def test_a_training_image_counts_as_far_as_a_new_one_lies():
    """Of k normal vectors a new one lies (k + 1) / k variances from the mean in the square, and one left out
    of it k / (k - 1)."""
    images = np.random.default_rng(0).normal(size=(5, 3))
    labels = np.zeros(5, dtype=np.int64)
    means = unlike.class_means(images, labels, 1)
    without = [((images[row] - np.delete(images, row, 0).mean(0)) ** 2).sum() for row in range(5)]
    expected = np.sort(without) * (6 / 5) / (5 / 4)
    assert unlike.left_out(images, labels, means) == pytest.approx(expected, rel=1e-5)
    assert unlike.far(expected) == expected[-1]
    many = np.arange(1.0, 1000.0)
    assert unlike.far(many) == 990.0
    one = unlike.left_out(np.eye(2), np.arange(2), np.eye(2, dtype=np.float32))
    assert one.tolist() == [2.0, 2.0], "a class of one image says nothing of itself"


def test_a_run_keeps_what_its_validation_images_and_its_training_images_say(run, parts):
    doubts, clf = Doubts.read(run), wordsight.load(run)
    val = sorted(map(str, (parts / "val").rglob("*.png")))
    chances = dict(zip(val, clf.predict_proba(val)))
    place = {name: row for row, name in enumerate(clf.classes_)}
    of_right = {round(float(row[place[path.split("/")[-2]]]), 6) for path, row in chances.items()}
    assert doubts.by == VALIDATION and len(doubts.chances) == 12, "of the draw: four a class"
    assert {round(float(one), 6) for one in doubts.chances} <= of_right
    assert doubts.means.shape == (3, 12) and len(doubts.distances) == 12


@pytest.mark.slow
def test_predict_gives_sets_and_says_what_is_unlike(run, images, tmp_path, capsys, parts):
    answers = predict(run, images, error=0.2)
    for answer in answers:
        inside = [name for name, p in zip(answers.class_names, answer.probabilities) if p >= answers.lowest]
        assert set(answer.among) == set(inside) and answer.unsure == (len(inside) != 1)
        assert answer.among[:1] == tuple(name for name, _ in answers.best(answer) if inside)
        entry = answers.entry(answer)
        assert entry["set"] == list(answer.among) and entry["unlike"] is answer.unlike
    table = tmp_path / "out.csv"
    words = [str(run), *images, "--error", "0.2"]
    assert main(["predict", *words, "--csv", str(table)]) == 0
    shown = capsys.readouterr().out.splitlines()
    with open(table, newline="") as lines:
        rows = list(csv.DictReader(lines))
    answers = list(predict(run, images, error=0.2))
    for row, answer, line in zip(rows, answers, shown):
        assert row["set"] == ",".join(answer.among) and row["unsure"] == "unsure" * answer.unsure
        assert row["unlike"] == "unlike" * answer.unlike
        assert ("unsure (" in line) == answer.unsure and ("unlike all" in line) == answer.unlike
    assert main(["predict", *words, "--json"]) == 0
    assert [one["set"] for one in json.loads(capsys.readouterr().out)["predictions"]] == [
        list(answer.among) for answer in answers
    ]


@pytest.mark.slow
def test_what_cannot_be_promised_is_refused_in_words(run, images, photos, tiny_clip, tmp_path, capsys):
    def said(*words):
        assert main(["predict", str(run), images[0], *words]) == 2
        return capsys.readouterr().err

    assert "error=0.01 needs 99 validation images or more, and the run has 12" in said("--error", "0.01")
    assert "give one of them" in said("--error", "0.2", "--unsure", "0.5")
    assert "leave --classes and --add out" in said("--error", "0.2", "--add", "yellow")
    (entry,) = [one.unlike for one in predict(run, images[:1], classes=list(NAMES[::-1]))]
    assert entry is not None, "the same classes in another order"
    words = {
        "data": str(photos),
        "backbone": str(tiny_clip),
        "shots": 2,
        "device": "cpu",
        "references": False,
    }
    bare = wordsight.fit(**words, method="zero_shot", out=str(tmp_path / "bare")).folder
    assert not (bare / FILE).exists(), "it learned from no image, and there are none for validation"
    assert next(iter(predict(bare, images[:1]))).unlike is None
    with pytest.raises(WordsightError, match=r"folds=5, .*val/ folder"):
        predict(bare, images[:1], error=0.2)
    folded = wordsight.fit(**words, method="linear_probe", folds=5, out=str(tmp_path / "folded")).folder
    doubts = Doubts.read(folded)
    assert doubts.by == FOLDS and len(doubts.chances) == 6
    with pytest.raises(WordsightError, match="folds=1"):
        wordsight.fit(**words, method="linear_probe", folds=1, out=str(tmp_path / "one"))
    with pytest.raises(WordsightError, match="folds=-1"):
        wordsight.fit(**words, folds=-1)


@pytest.mark.slow
def test_what_is_kept_travels_and_is_known_when_it_is_damaged(run, images, tmp_path):
    out = wordsight.export(run, tmp_path / "out")
    theirs, ours = predict(out, images, error=0.2), predict(run, images, error=0.2)
    assert [answer.among for answer in theirs] == [answer.among for answer in ours]
    copy = shutil.copytree(run, tmp_path / "copy")
    content = bytearray((copy / FILE).read_bytes())
    content[-1] ^= 1
    (copy / FILE).write_bytes(content)
    with pytest.raises(WordsightError, match=f"{FILE} is damaged"):
        predict(copy, images)


def test_the_estimator_calibrates_on_images_that_it_is_given(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    labels = np.repeat(["a", "b", "c", "d"], 30)
    draw = lambda: np.repeat(centres, 30, 0) + 0.6 * rng.normal(size=(120, 16))  # noqa: E731
    clf = wordsight.Classifier(backbone=None, method="linear_probe").fit(draw(), labels)
    with pytest.raises(WordsightError, match="error= needs images"):
        clf.predict_set(draw())
    with pytest.raises(WordsightError, match="label 'e' is none of the 4 classes"):
        clf.calibrate(draw()[:1], ["e"])
    clf.calibrate(draw(), labels)
    new = draw()
    sets = clf.predict_set(new, error=0.2)
    inside = np.mean([label in one for label, one in zip(labels, sets)])
    assert abs(inside - 0.8) < 0.1
    assert [one[0] for one in sets if one] == [label for label, one in zip(clf.predict(new), sets) if one]
    assert clf.unlike(new).mean() < 0.1 and clf.unlike(rng.normal(size=(50, 16)) - 5).mean() > 0.9
    again = wordsight.load(clf.save(tmp_path / "run"))
    assert again.predict_set(new, error=0.2) == sets and (again.unlike(new) == clf.unlike(new)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caltech101", "dtd", "oxford_flowers"])
def test_coverage_and_strangers_on_real_vectors(shared, name, tmp_path):
    """Real CLIP vectors: over random calibration images, coverage is within a point of what was asked
    for; and photos of another set are told from a set's own."""
    folder = shared / "data" / "clip_b32_features"
    words = {"data": str(folder / f"{name}.npz"), "method": "linear_probe", "shots": 16, "references": False}
    fitted = wordsight.load(wordsight.fit(**words, out=str(tmp_path / "run")).folder)
    with np.load(folder / f"{name}.npz") as file:
        images, labels = file["test"].astype(np.float32), file["test_label"]
    with np.load(folder / ("dtd.npz" if name != "dtd" else "caltech101.npz")) as file:
        others = file["test"].astype(np.float32)
    chances = fitted.predict_proba(images)
    right, rng = chances[np.arange(len(labels)), labels], np.random.default_rng(0)
    for error in (0.05, 0.1, 0.2):
        covered = []
        for _ in range(300):
            order = rng.permutation(len(labels))
            lowest = conformal.lowest(np.sort(right[order[:300]]), error)
            covered.append((right[order[300:]] >= lowest).mean())
        assert np.mean(covered) == pytest.approx(1 - error, abs=0.01)

    far = [
        unlike.distances(unit(torch.from_numpy(rows)).numpy(), fitted.doubts_.means)
        for rows in (images, others)
    ]
    assert roc_auc_score(np.repeat([0, 1], [len(images), len(others)]), np.concatenate(far)) > 0.9
    assert fitted.unlike(images).mean() < 0.05 < 0.4 < fitted.unlike(others).mean()
