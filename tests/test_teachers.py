"""Another backbone's words as labels of a pool."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from standins import COLOURS, ColourBackbone, paint

import wordsight.teachers
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.data import open_dataset
from wordsight.data.pools import unlabelled
from wordsight.estimator import Classifier, load
from wordsight.fit import fit
from wordsight.methods.pool import PoolLayer
from wordsight.teachers import teacher_scores

NAMES = np.array(list("abc"))


@pytest.fixture
def files(tmp_path):
    """A student whose words are wrong, and a teacher of other width whose words are right."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(3), 12)
    places, wide = 3 * np.eye(3, 8), 5 * np.eye(3, 5)
    part = {kind: places[labels] + 0.3 * rng.normal(size=(36, 8)) for kind in ("train", "test")}
    held = {"classes": NAMES, "train_label": labels, "test_label": labels, **part}
    np.savez(tmp_path / "student.npz", logit_scale=10.0, text=np.roll(places, 1, 0) + places, **held)
    paths = np.array([f"{row}.png" for row in range(36)])
    np.savez(
        tmp_path / "named.npz",
        logit_scale=10.0,
        text=np.roll(places, 1, 0) + places,
        train_path=paths,
        **held,
    )
    teacher = wide[labels] + 0.3 * rng.normal(size=(36, 5))
    held = {"classes": NAMES, "text": wide}
    np.savez(tmp_path / "teacher.npz", train=teacher, train_label=labels, **held)
    np.savez(tmp_path / "reversed.npz", unlabelled=teacher[::-1], unlabelled_path=paths[::-1], **held)
    np.savez(tmp_path / "short.npz", unlabelled=teacher[:30], **held)
    np.savez(tmp_path / "other.npz", unlabelled=teacher, classes=np.array(list("xyz")), text=wide)
    np.savez(tmp_path / "wordless.npz", unlabelled=teacher, classes=NAMES)
    return tmp_path


def accuracy(files, student, **own):
    given = {"data": str(files / f"{student}.npz"), "method": "zero_shot", "unlabelled": "train", "shots": 2}
    number = len(list(files.glob("run*")))
    run = fit(references=False, out=str(files / f"run{number}"), **given, **own)
    return run.events("eval")[0]["accuracy"]


def test_a_file_of_another_backbone_teaches_by_rows_or_by_names(files):
    assert accuracy(files, "student") < 80
    assert accuracy(files, "student", teacher=str(files / "teacher.npz")) > 95
    assert accuracy(files, "named", teacher=str(files / "reversed.npz")) > 95, "matched by name"


WRONG = {
    "short": "its part unlabelled has 30 rows, but unlabelled=train 36 images; give one row an image",
    "other": "'a'",
    "wordless": "",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_teacher_that_does_not_fit_ends_in_a_sentence(files, name, capsys):
    teacher = files / f"{name}.npz"
    given = [f"data={files / 'student.npz'}", "unlabelled=train", f"teacher={teacher}", "shots=2"]
    assert main(["fit", "method=zero_shot", f"out={files / 'out'}", *given]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(f"teacher={re.escape(str(teacher))}: .*{WRONG[name]}", said), said


def test_a_teacher_needs_a_pool_of_its_own():
    with pytest.raises(WordsightError, match="labels images without labels, and there are none"):
        RunSettings(data="photos", teacher="large")
    with pytest.raises(WordsightError, match="which transclip classifies itself; leave it out"):
        RunSettings(data="photos", teacher="large", method="transclip", unlabelled="test")
    with pytest.raises(WordsightError, match=r"its own teacher is settings\.teacher"):
        RunSettings(data="photos", teacher="large", method="two_tower")


def test_a_teacher_sees_the_pool_of_a_folder(photos, tmp_path, monkeypatch):
    chosen = ["blue", "green", "red"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, name in enumerate(chosen * 6):
        paint(COLOURS[name], 1000 + number).save(flat / f"{number:02}.png")
    monkeypatch.setattr(wordsight.teachers, "load_backbone", lambda name, **own: ColourBackbone())
    settings = RunSettings(data=str(photos), unlabelled=str(flat), teacher="large", shots=2)
    whole = open_dataset(str(photos))
    pool = unlabelled(str(flat), whole, whole.train)
    scores = teacher_scores(settings, whole, pool)
    named = [whole.class_names[row] for row in scores.argmax(1)]
    assert named == [chosen[int(picture.name.split(".")[0]) % 3] for picture in pool.pictures]
    assert teacher_scores(replace(settings, teacher=None), whole, pool) is None


def test_vectors_cannot_be_seen_by_a_teacher_that_is_no_file(files, monkeypatch):
    monkeypatch.setattr(wordsight.teachers, "load_backbone", lambda name, **own: ColourBackbone())
    with pytest.raises(
        WordsightError, match="teacher=large: the pool is of vectors, which no other backbone"
    ):
        accuracy(files, "student", teacher="large")


def estimated(files, **own):
    """A zero-shot classifier on the student's vectors, its accuracy on the test part, and itself."""
    held = np.load(files / "student.npz")
    kept = [0, 1, 12, 13, 24, 25]
    clf = Classifier(str(files / "student.npz"), "zero_shot", class_names=list(NAMES))
    clf.fit(held["train"][kept], np.repeat(NAMES, 2), unlabelled=held["train"], **own)
    return clf.score(held["test"], np.repeat(NAMES, 12)), clf


def test_the_estimator_takes_a_teacher_in_the_settings_own_sense(files, tmp_path):
    assert estimated(files)[0] < 0.8
    score, clf = estimated(files, teacher=str(files / "teacher.npz"))
    assert 100 * score == accuracy(files, "student", teacher=str(files / "teacher.npz")) > 95
    again = load(clf.save(tmp_path / "kept"))
    held = np.load(files / "student.npz")["test"]
    np.testing.assert_array_equal(again.predict_proba(held), clf.predict_proba(held))
    assert again.settings_.teacher == str(files / "teacher.npz") and again.settings_.unlabelled == "python"


def test_the_estimators_teacher_sees_images_that_can_be_read(tmp_path, monkeypatch):
    chosen = ["blue", "green", "red"] * 4
    pool = [paint(COLOURS[name], 2000 + number) for number, name in enumerate(chosen)]
    images, labels = [paint(COLOURS[name], 7) for name in chosen[:3]], chosen[:3]
    (tmp_path / "torn.png").write_bytes(b"no image")
    given, found = [pool[0], str(tmp_path / "torn.png"), *pool[1:]], []
    monkeypatch.setattr(PoolLayer, "fit", lambda self, *own: found.append(own))
    Classifier(ColourBackbone(), "zero_shot").fit(images, labels, unlabelled=given, teacher=ColourBackbone())
    ((seen, scores, _, _, taught),) = found
    assert [chosen[:3][row] for row in taught.argmax(1)] == chosen and len(seen) == len(pool)
    torch.testing.assert_close(taught, scores)  # by the same words and the same template


def test_a_teacher_of_an_estimator_that_does_not_fit_ends_in_a_sentence(files):
    with pytest.raises(WordsightError, match=r"its part unlabelled has 30 rows, but unlabelled=.* 36 images"):
        estimated(files, teacher=str(files / "short.npz"))
    with pytest.raises(WordsightError, match="the pool is of vectors, which no other backbone can see"):
        estimated(files, teacher=ColourBackbone())
    clf, rows = Classifier(None, "zero_shot"), np.eye(3, 8)
    with pytest.raises(WordsightError, match="labels images without labels, and there are none"):
        clf.fit(rows, NAMES, teacher=str(files / "teacher.npz"))
    with pytest.raises(WordsightError, match="which transclip classifies itself"):
        Classifier(None, "transclip").fit(rows, NAMES, unlabelled=rows, teacher=str(files / "teacher.npz"))
