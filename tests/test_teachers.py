"""Another backbone's words as labels of a pool."""

import re
from dataclasses import replace

import numpy as np
import pytest
from standins import COLOURS, ColourBackbone, paint

import wordsight.teachers
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.data import open_dataset
from wordsight.data.pools import unlabelled
from wordsight.fit import fit
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
