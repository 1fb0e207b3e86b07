"""What a run folder says is read without trust: whatever stands in it, a report comes of the rest, or a
sentence.
"""

import json
import os

import pytest
from fabricated import fabricate

from wordsight.report import read_rows, report
from wordsight.report.reading import Measured, number
from wordsight.runs import Run

GOOD = {"event": "eval", "data": "nowhere", "classes": "all", "accuracy": 70.0}
LINES = [
    "1",
    '"x"',
    "[1]",
    "null",
    "[" * 20_000,
    "9" * 6_000,
    '{"event": "eval"',
    '{"event": "eval"}',
    '{"event": "eval", "data": 5, "classes": [], "accuracy": {}}',
    '{"event": "eval", "data": "nowhere", "classes": "all", "accuracy": NaN}',
    '{"event": "eval", "data": "nowhere", "classes": "all", "accuracy": 1e999}',
    '{"event": "eval", "data": "nowhere", "classes": "all", "accuracy": true}',
    '{"event": "eval", "data": "nowhere", "classes": "all", "accuracy": -1}',
    '{"event": "fit"}',
    '{"event": "fit", "seconds": 5, "parameters": "many"}',
    '{"event": "fit", "seconds": {"fit": [1]}, "parameters": ' + "9" * 400 + "}",
    '{"event": "retrieval"}',
    '{"event": "retrieval", "data": "x", "image_to_text": [1], "text_to_image": {"recall@1": "1"}}',
]


@pytest.fixture
def folder(tmp_path):
    return fabricate(tmp_path / "run", accuracies={"all": 60.0})


def add(folder, line):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_that_is_no_event_changes_no_figure(folder, tmp_path, line):
    add(folder, line)
    (row,) = read_rows([folder])
    assert row.figures["all"].mean == 60
    report([folder], tmp_path / "r.html", latex_file=tmp_path / "r.tex")


def test_what_is_left_out_is_told(folder, said):
    add(folder, '{"event": "eval"}')
    add(folder, "[1]")
    assert len(Measured(Run.open(folder)).evaluations) == 1
    assert "1 of 2 evaluations could not be read" in said.text and "1 of 4 lines could not" in said.text
    add(folder, '{"event": "fit"}')
    assert Measured(Run.open(folder)).seconds is None and "the seconds of its fit are left out" in said.text


ODD_PARTS = [
    {"images": "many"},
    {"images": 10**400, "chance": "low", "folds": [5], "interval": [1]},
    {"class_recall": [1, 2], "confusion": {"true": [0], "predicted": [0], "images": [1]}},
    {"class_recall": {"a": 1, "b": 2}, "confusion": {"true": [0], "predicted": [0, 1], "images": [1]}},
    {"class_recall": {"a": 1, "b": 2}, "confusion": {"true": [2], "predicted": [0], "images": [1]}},
    {"class_recall": {"a": 1, "b": 2}, "confusion": {"true": [0], "predicted": [None], "images": ["x"]}},
    {"class_recall": {"a": 1, "b": 2}, "confusion": [[1, 2], [3, 4]]},
    {"class_recall": {"a": None}, "confusion": 5},
    {"references": [1]},
    {"references": {"zero_shot": 5, "linear_probe": {"accuracy": "x"}}},
    {"references": {"zero_shot": {"accuracy": 50.0, "difference": [1, 2]}}},
    {"references": {"zero_shot": {"accuracy": 50.0, "difference": "none"}}},
    {"event": "eval", "role": ["zero_shot"]},
]


@pytest.mark.parametrize("odd", ODD_PARTS, ids=range(len(ODD_PARTS)))
def test_an_odd_part_of_an_event_is_left_out_alone(folder, tmp_path, odd):
    add(folder, json.dumps(GOOD | odd))
    assert read_rows([folder])[0].figures["all"].mean == 70
    report([folder], tmp_path / "r.html")


def test_a_reference_is_no_figure_of_the_run_itself(folder):
    add(folder, json.dumps(GOOD | {"role": "zero_shot", "accuracy": 50.0}))
    (row,) = read_rows([folder])
    assert row.figures["all"].mean == 60
    assert row.runs[0].evaluations[-1].references["zero_shot"].accuracy == 50


ACCOUNTS = ["", "5", "[]", "{}", '{"seen": -1, "kept": 0}', '{"seen": "x"}', "[" * 20_000]


@pytest.mark.parametrize("text", ACCOUNTS, ids=range(len(ACCOUNTS)))
def test_an_account_that_is_none_is_left_out_and_told(folder, tmp_path, said, text):
    (folder / "account.json").write_text(text)
    report([folder], tmp_path / "r.html")
    assert "account" in said.text and "<h3>Data</h3>" not in (tmp_path / "r.html").read_text()


def test_odd_parts_of_an_account_are_left_out_alone(folder):
    odd = {"seen": 5, "kept": 3, "left_out": {"a": 5, "b": {"count": 2, "names": [1, "x"]}}, "remarks": 7}
    (folder / "account.json").write_text(json.dumps(odd))
    account = Measured(Run.open(folder)).account
    assert (account.seen, account.kept, account.left_out, account.remarks) == (5, 3, {"b": (2, ("x",))}, ())


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions-all.csv", "account.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes"])
def test_a_file_that_is_none_ends_in_no_traceback(folder, tmp_path, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)  # opening it would wait for ever
    else:
        (folder / name).write_bytes(b"\xff\xfe\x00")
    other = fabricate(tmp_path / "other", seed=2, accuracies={"all": 1.0})
    written = report([folder, other], tmp_path / "r.html")
    readable = name != "metrics.jsonl" or kind == "bytes"
    assert len(written["skipped"]) == 1 - readable
    assert f"{1 + (name != 'metrics.jsonl')} run" in (tmp_path / "r.html").read_text()


CONFIGS = ["", "5", "format: 99\n", "format: 1\n", "format: 1\nsettings: 5\nfacts: []\n", "a: !!python/x 1\n"]


@pytest.mark.parametrize("text", CONFIGS)
def test_a_run_of_another_version_or_kind_is_left_out_among_others(folder, tmp_path, said, text):
    other = fabricate(tmp_path / "other", seed=2, accuracies={"all": 1.0})
    (other / "config.yaml").write_text(text)
    written = report([folder, other], tmp_path / "r.html")
    assert [one["run"] for one in written["skipped"]] == [str(other)] and str(other) in said.text
    assert "1 run," in (tmp_path / "r.html").read_text()


def test_numbers_are_finite_and_within_bounds():
    assert number(5, 100) == 5.0 and number(10**400) is None and number(float("nan")) is None
    assert number(True) is None and number("5") is None and number(101, 100) is None
