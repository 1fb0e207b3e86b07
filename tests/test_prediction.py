"""Prediction: from a run and many images to answers, one after another, and to a table that is whole or not
there.
"""

import csv
import json
import os
import shutil

import pytest
from standins import COLOURS, paint

import wordsight
from wordsight import prediction
from wordsight.cli import main
from wordsight.config import WordsightError


@pytest.fixture(scope="module")
def run(photos, tiny_clip, tmp_path_factory):
    """A zero-shot run: it needs no training, and knows red, green and blue."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    words = {"data": str(photos), "backbone": str(tiny_clip), "method": "zero_shot", "shots": 2}
    return wordsight.fit(**words, device="cpu", out=str(folder), references=False).folder


@pytest.fixture
def images(tmp_path):
    """Seven images, of which one is damaged."""
    for index in range(6):
        paint(COLOURS["red"], index).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return sorted(map(str, tmp_path.glob("*.png")))


@pytest.fixture
def answered(capsys):
    """Run predict: exit code, the JSON or text of stdout, stderr."""

    def call(*words):
        capsys.readouterr()
        code = main(["predict", *map(str, words)])
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if "--json" in words else shown.out, shown.err

    return call


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


@pytest.mark.slow
def test_batches_give_what_one_gives_and_are_made_as_they_are_asked_for(run, images, monkeypatch):
    whole = list(prediction.predict(run, images))
    sizes = []
    real = prediction.image_features
    monkeypatch.setattr("wordsight.answers.Predictions.at_once", 2)
    monkeypatch.setattr(
        prediction,
        "image_features",
        lambda tower, batch, **more: (sizes.append(len(batch)), real(tower, batch, **more))[1],
    )
    answers = prediction.predict(run, images)
    first = next(iter(answers))
    assert sizes == [2], "no batch is made before it is asked for"
    assert first.image == images[0]
    parts = list(prediction.predict(run, images))
    assert [answer.image for answer in parts] == [answer.image for answer in whole] == images[:6]
    for part, answer in zip(parts, whole):
        assert part.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
        assert answer.probabilities.sum() == pytest.approx(1)


@pytest.mark.slow
def test_a_whole_batch_that_cannot_be_read_does_not_end_the_rest(run, images, monkeypatch):
    monkeypatch.setattr("wordsight.answers.Predictions.at_once", 1)
    answers = prediction.predict(run, [images[-1], *images])
    assert [answer.image for answer in answers] == images[:6]
    assert [entry["image"] for entry in answers.skipped] == [images[-1]] * 2
    with pytest.raises(WordsightError, match="none of 2 images could be read"):
        list(prediction.predict(run, [images[-1], "nowhere.png"]))


def test_a_table_of_all_probabilities(run, images, tmp_path, answered):
    file = tmp_path / "out" / "answers.csv"
    code, out, err = answered(run, *images, "--csv", file, "--json")
    header, *rows = rows_of(file)
    assert header == ["image", "blue", "green", "red", "predicted"]
    assert [row[0] for row in rows] == images[:6] == [entry["image"] for entry in out["predictions"]]
    for row, entry in zip(rows, out["predictions"]):
        chances = dict(zip(header[1:4], map(float, row[1:4])))
        best = max(chances, key=chances.get)
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert row[4] == best == entry["classes"][0]["class"]
        # to four digits; the table has more, and rounding twice may go another way
        assert entry["classes"][0]["probability"] == pytest.approx(chances[best], abs=6e-5)
    assert code == 2 and [entry["image"] for entry in out["skipped"]] == [images[-1]]
    assert f"skipped {images[-1]}: " in err and "1 of what was given could not be done" in err
    assert not list(file.parent.glob("*.part"))


@pytest.mark.slow
def test_a_table_that_is_stopped_leaves_what_stood_there(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("wordsight.answers.Predictions.at_once", 2)
    file = tmp_path / "answers.csv"
    file.write_text("before")
    answers = iter(prediction.predict(run, images, csv=file))
    next(answers)
    assert list(tmp_path.glob("answers.csv.*.part")) and file.read_text() == "before"
    answers.close()  # as Ctrl-C would
    assert not list(tmp_path.glob("*.part")) and file.read_text() == "before"
    list(prediction.predict(run, images, csv=file))
    assert len(rows_of(file)) == 7
    with pytest.raises(WordsightError, match="none of 1 images"):
        list(prediction.predict(run, images[-1:], csv=tmp_path / "none.csv"))
    assert not list(tmp_path.glob("none*")), "a table without answers is not written"
    with pytest.raises(WordsightError, match="cannot be written"):
        list(prediction.predict(run, images, csv=file / "below.csv"))


def test_names_of_files_and_classes_are_no_formulas_and_may_be_any_bytes(
    run, tmp_path, answered, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    odd = [os.fsdecode(b"a\xe9.png"), "=cmd().png", "-1.png", "@x,y.png", "two\nlines.png", "\x1b[31m.png"]
    for index, name in enumerate(odd):
        paint(COLOURS["red"], index).save(name)
    code, out, _ = answered(
        run, *odd, "--csv", "o.csv", "--json", "--classes", '=1+1,"salt, pepper",predicted'
    )
    told = ["./-1.png" if name == "-1.png" else name for name in odd]
    assert code == 0 and [entry["image"] for entry in out["predictions"]] == told
    header, *rows = rows_of("o.csv")
    assert header == ["image", "'=1+1", "salt, pepper", "predicted", "predicted_"]
    names = ["a\\udce9.png", "'=cmd().png", "./-1.png", "'@x,y.png", "two\nlines.png", "\x1b[31m.png"]
    assert [row[0] for row in rows] == names
    code, out, _ = answered(run, *odd)
    assert code == 0 and "\x1b" not in out and "\\x1b[31m.png  " in out and "a\\udce9.png  " in out


def test_classes_replace_and_add_adds(run, images, answered, tmp_path):
    def classes(*words):
        code, out, err = answered(run, images[0], "--top", 9, "--json", *words)
        assert code == 0, err
        return sorted(entry["class"] for entry in out["predictions"][0]["classes"])

    (tmp_path / "names.txt").write_text("violet\nsalt, pepper\n")
    assert classes() == ["blue", "green", "red"]
    assert classes("--classes", "red,violet") == ["red", "violet"]
    assert classes("--classes", "red", "--classes", "violet") == ["red", "violet"]
    assert classes("--classes", f"@{tmp_path}/names.txt") == ["salt, pepper", "violet"]
    assert classes("--classes", tmp_path / "names.txt") == ["salt, pepper", "violet"]
    assert classes("--add", "airport") == ["airport", "blue", "green", "red"]
    assert classes("--add", "airport", "--add", '"a, b",red') == ["a, b", "airport", "blue", "green", "red"]
    assert classes("--classes", "red,violet", "--add", "airport") == ["airport", "red", "violet"]


@pytest.mark.slow
def test_a_class_of_the_run_with_a_comma_needs_no_quotes(photos, tiny_clip, tmp_path, answered):
    shutil.copytree(photos / "red", tmp_path / "photos" / "salt, pepper")
    shutil.copytree(photos / "blue", tmp_path / "photos" / "sugar")
    words = [f"data={tmp_path}/photos", f"backbone={tiny_clip}", "method=zero_shot", "shots=1", "device=cpu"]
    assert main(["fit", *words, f"out={tmp_path}/run"]) == 0
    for typed in ("salt, pepper,sugar", '"salt, pepper",sugar', "sugar,salt,pepper"):
        code, out, _ = answered(
            tmp_path / "run", photos / "red" / "0.png", "--top", 5, "--json", "--classes", typed
        )
        found = sorted(entry["class"] for entry in out["predictions"][0]["classes"])
        assert code == 0 and found == ["salt, pepper", "sugar"]


def test_what_is_below_the_threshold_is_marked(run, images, tmp_path, answered):
    chances = [answer.probabilities.max() for answer in prediction.predict(run, images[:6])]
    middle = sorted(chances)[3]
    file = tmp_path / "o.csv"
    code, out, _ = answered(run, *images[:6], "--unsure", middle, "--csv", file, "--json")
    marked = [entry["unsure"] for entry in out["predictions"]]
    assert code == 0 and marked == [bool(chance < middle) for chance in chances] and sum(marked) == 3
    header, *rows = rows_of(file)
    assert header[-1] == "unsure" and [row[-1] == "unsure" for row in rows] == marked
    code, out, _ = answered(run, *images[:6], "--unsure", middle)
    assert [line.endswith("  unsure") for line in out.splitlines()] == marked
    code, out, err = answered(run, images[0], "--unsure", 50)
    assert code == 2 and "unsure=50.0 is no probability" in err


def test_from_python_images_may_be_pixels(run, images):
    answers = prediction.predict(run, [paint(COLOURS["red"], 1), images[1]], explain=2, unsure=1)
    first, second = answers
    assert first.probabilities == pytest.approx(second.probabilities) and first.unsure
    assert answers.best(first, 2)[0][1] >= answers.best(first, 2)[1][1]
    assert len(first.sentences) == 2 and answers.entry(first)["sentences"][0]["class"] in answers.class_names
    (one,) = prediction.predict(run, images[0])
    assert one.image == images[0]


@pytest.mark.slow
def test_a_folder_stands_for_its_images_at_any_depth(run, photos, tmp_path, answered, monkeypatch):
    shutil.copytree(photos, tmp_path / "new" / "deep")
    (tmp_path / "new" / "notes.txt").write_text("x")
    (tmp_path / "new" / ".hidden").mkdir()
    paint(COLOURS["red"], 1).save(tmp_path / "new" / ".hidden" / "0.png")
    (tmp_path / "new" / "loop").symlink_to(tmp_path / "new")
    paint(COLOURS["red"], 1).save(tmp_path / "new" / os.fsdecode(b"\xe9.png"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = answered(run, "new/", "--json", "--csv", "o.csv")
    found = [entry["image"] for entry in out["predictions"]]
    assert code == 0 and len(found) == 19 and all(os.path.exists(name) for name in found)
    assert "new/deep/blue/0.png" in found and found == sorted(found) and len(rows_of("o.csv")) == 20
    account = out["account"]
    told = sum(entry["count"] for entry in account["left_out"].values())
    assert account["kept"] == 19 and account["seen"] == 19 + told and told == 3
    assert "notes.txt" in err and ".hidden" in err and "loop" in err
    code, out, _ = answered(run, "new/deep/red", "new/deep/blue/0.png", "--json")
    assert code == 0 and len(out["predictions"]) == 7
    code, out, err = answered(run, "new/deep/red", "empty", "--json")
    assert code == 0 and len(out["predictions"]) == 6
    code, out, err = answered(run, "empty")
    assert code == 2 and "there is no image among what was given" in err and not out
    (tmp_path / "table.csv").write_text("path,note\nnew/deep/red/0.png,x\nnew/deep/red/1.png,y\n")
    code, out, err = answered(run, "table.csv", "--json")
    assert code == 0 and len(out["predictions"]) == 2
