"""Covered: accuracy of covered and uncovered classes, counted by hand; and reports of many classes."""

import json

import pytest
from fabricated import fabricate

from wordsight import WordsightError
from wordsight.cli import main
from wordsight.report import report

NAMES = ("sea_lion", "cat", "dog", "okapi")
# rows of the confusion matrix: 10 images a class, of which 9, 8, 2 and 1 are right
RIGHT = {
    "true": [0, 0, 1, 1, 2, 2, 3, 3],
    "predicted": [0, 1, 1, 2, 2, 3, 3, 0],
    "images": [9, 1, 8, 2, 2, 8, 1, 9],
}
EVEN = {"true": [0, 1, 2, 3], "predicted": [0, 1, 2, 0], "images": [10] * 4}
COUNTS = {"Sea lion": 900, "cat": 80, "dog": 5}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps({"counts": COUNTS, "cut_off": 5}))
    return path


def run(folder, matrix, **given):
    return fabricate(folder, names=NAMES, accuracies={"all": 50.0}, event={"confusion": matrix}, **given)


def test_accuracy_by_covered_and_uncovered_classes(tmp_path, file):
    runs = [run(tmp_path / "aape", RIGHT), run(tmp_path / "zs", EVEN, method="zero_shot")]
    written = report(runs, tmp_path / "r.html", coverage_file=file)["markdown"]
    _, table = written.split("**Covered and uncovered classes**")
    line = next(line for line in table.splitlines() if "| aape" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # okapi is in no caption list; recall falls with the count, and zero-shot has all of the three right
    assert cells[-6:] == ["2", "85.0", "1", "20.0", "+1.00", "+1.00"]
    assert "more than 5 captions" in table and "okapi" not in table
    assert "<h2>Covered and uncovered classes" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("text", ["[]", "{}", '{"counts": {"a": "x"}, "cut_off": 5}', '{"counts": {"a": 1}}'])
def test_what_is_no_coverage_is_refused(tmp_path, text, capsys):
    (tmp_path / "c.json").write_text(text)
    folder = run(tmp_path / "run", RIGHT)
    assert main(["report", str(folder), "--coverage", str(tmp_path / "c.json")]) == 2
    assert "has no counts and cut_off" in capsys.readouterr().err


def test_coverage_of_other_classes_is_refused(tmp_path, file):
    folder = fabricate(tmp_path / "run", accuracies={"all": 50.0})
    with pytest.raises(WordsightError, match="none of the classes"):
        report([folder], tmp_path / "r.html", coverage_file=file)


@pytest.mark.slow
def test_thousands_of_classes_are_reported_from_the_pairs_that_occur(tmp_path):
    names, classes = tuple(f"class {number}" for number in range(2000)), list(range(2000))
    pairs = {"true": classes, "predicted": [*classes[1:], 0], "images": [5] * 2000}
    event = {"confusion": pairs, "images": 10_000}
    folder = fabricate(tmp_path / "many", names=names, accuracies={"all": 0.0}, event=event)
    report([folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "confusion matrix of 2000 classes" in page and len(page) < 2_000_000
    assert (folder / "metrics.jsonl").stat().st_size < 300_000


def test_the_page_does_not_replace_the_counts(tmp_path):
    folder = fabricate(tmp_path / "run", accuracies={"all": 80.0})
    counts = tmp_path / "cov.json"
    counts.write_text('{"cut_off": 5, "counts": {"cat": 3}}')
    with pytest.raises(WordsightError, match="is read here, and would be replaced"):
        report([folder], counts, coverage_file=counts)
    assert counts.read_text().startswith("{")
