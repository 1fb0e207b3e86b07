"""Two runs image by image: counted, tested, shown, and told where they share nothing."""

import csv
import json
import re

import numpy as np
import pytest
from fabricated import fabricate

from wordsight.files import csv_text
from wordsight.metrics import paired_difference
from wordsight.report import report
from wordsight.report.reading import Measured
from wordsight.report.rows import make_rows, open_runs
from wordsight.report.two_runs import two_runs
from wordsight.runs import Run

HEADER = ("image", "label", "predicted", "probability")
NAMES = ("cat", "dog")


def folder_of(place, said, *, data="nowhere", file="predictions-all.csv", **changed):
    """A finished run that said {image: (label, predicted, probability)}."""
    right = sum(label == predicted for label, predicted, _ in said.values())
    accuracy = 100 * right / len(said)
    folder = fabricate(place, names=NAMES, data=data, accuracies={"all": accuracy}, **changed)
    (folder / file).write_text(csv_text(HEADER, [[image, *rest] for image, rest in said.items()]))
    return folder


FIRST = {
    "a": ("cat", "cat", 0.9),
    "b": ("cat", "dog", 0.8),
    "c": ("dog", "dog", 0.7),
    "d": ("dog", "cat", 0.6),
}
SECOND = {
    "d": ("dog", "cat", 0.9),
    "c": ("dog", "cat", 0.9),
    "b": ("cat", "dog", 0.8),
    "a": ("cat", "cat", 1),
}


@pytest.fixture
def pair(tmp_path):
    return folder_of(tmp_path / "a", FIRST, method="coop"), folder_of(
        tmp_path / "b", SECOND, method="taskres"
    )


def test_images_are_counted_by_who_is_right_and_the_difference_is_paired(pair, tmp_path):
    written = report(pair, tmp_path / "r.html")
    assert written["image_by_image"]["A"] == "coop" and written["image_by_image"]["B"] == "taskres"
    (one,) = written["image_by_image"]["parts"]
    assert (one["both_right"], one["only_A_right"], one["only_B_right"], one["both_wrong"]) == (1, 1, 0, 2)
    known = paired_difference(np.array([1.0, 0, 1, 0]), np.array([1.0, 0, 0, 0]))
    assert [one["difference"], one["low"], one["high"]] == known and one["verdict"] == "open"
    assert "A is not shown to differ from B" in written["markdown"]
    rows = list(csv.DictReader((tmp_path / "r-images.csv").read_text().splitlines()))
    assert {row["image"]: row["kind"] for row in rows} == {
        "a": "both right",
        "b": "both wrong",
        "c": "only A right",
        "d": "both wrong",
    }
    assert (rows[2]["predicted_A"], rows[2]["predicted_B"], rows[2]["probability_B"]) == ("dog", "cat", "0.9")


@pytest.mark.slow
def test_the_page_shows_each_kind_with_what_both_said(pair, tmp_path):
    report(pair, tmp_path / "r.html", latex_file=tmp_path / "r.tex")
    page = (tmp_path / "r.html").read_text()
    titles = re.findall(r"<h4>(.*?) <span", page)
    assert titles[-2:] == ["Only A right", "Both wrong"] and "Only B right" not in titles
    wrong = page[page.index("Both wrong <span") :]
    assert re.findall(r"<dd>(\w+)", wrong)[:3] == ["dog", "cat", "cat"]  # d, of which 0.9 was the surest
    assert (
        "The images themselves are not shown" in page and "only A right" in (tmp_path / "r.tex").read_text()
    )


def test_other_than_two_runs_are_not_compared_so(pair, tmp_path):
    third = folder_of(tmp_path / "c", FIRST, method="kgcoop")
    for runs in ([*pair, third], pair[:1]):
        assert "image_by_image" not in report(runs, tmp_path / "r.html")
    assert "Image by image" not in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_runs_of_different_data_share_nothing_and_it_is_said(pair, tmp_path):
    other = folder_of(tmp_path / "other", SECOND, data="elsewhere")
    written = report([pair[0], other], tmp_path / "r.html")
    assert written["image_by_image"]["parts"] == [] and "no test image of which both" in written["markdown"]
    assert "no test image of which both" in (tmp_path / "r.html").read_text()
    assert not (tmp_path / "r-images.csv").exists()


def test_moved_data_is_the_same_by_its_content(pair, tmp_path):
    """The second run's data lies elsewhere now; what it was tested on has the same fingerprint."""
    for place, folder in (("here", pair[0]), ("there", pair[1])):
        path = folder / "config.yaml"
        text = path.read_text().replace("test: ''", "test: 4, fingerprint ab")
        text = text.replace("images: ''", "images: 8, fingerprint cd")
        path.write_text(text.replace("data: nowhere", f"data: /{place}"))
        events = folder / "metrics.jsonl"
        events.write_text(events.read_text().replace("nowhere", f"/{place}"))
    runs, _ = open_runs(pair)
    found = two_runs(runs)
    assert [len(one.answers) for one in found.parts] == [4]
    assert {one.settings.data for one in runs} == {row.data for row in make_rows(runs)} == {"/here"}


def test_equal_test_images_do_not_make_other_training_images_the_same_data(pair):
    """A table whose training labels were mended is another."""
    for place, folder in (("here", pair[0]), ("there", pair[1])):
        path = folder / "config.yaml"
        text = path.read_text().replace("test: ''", "test: 4, fingerprint ab")
        text = text.replace("images: ''", f"images: 8, fingerprint {place}")
        path.write_text(text.replace("data: nowhere", f"data: /{place}"))
    runs, _ = open_runs(pair)
    assert [one.settings.data for one in runs] == ["/here", "/there"]
    assert [len(one.answers) for one in two_runs(runs).parts] == [4], "image by image they can be compared"


def test_what_is_labelled_otherwise_is_left_out_and_equal_names_are_two_images(tmp_path):
    rows = [["a", "cat", "cat", 0.9], ["a", "cat", "dog", 0.8], ["b", "dog", "dog", 0.7]]
    first = folder_of(tmp_path / "a", FIRST, seed=1)
    second = folder_of(tmp_path / "b", FIRST, seed=2)
    (first / "predictions-all.csv").write_text(csv_text(HEADER, rows))
    rows[2][1] = "cat"
    (second / "predictions-all.csv").write_text(csv_text(HEADER, rows))
    found = two_runs([Measured(Run.open(folder)) for folder in (first, second)])
    (one,) = found.parts
    assert len(one.answers) == 2 and one.left_out == 1 and found.labels == ("aape seed=1", "aape seed=2")
    assert any("1 images are left out" in sentence for sentence in found.words)


def test_what_one_was_tested_on_elsewhere_is_met_with_the_other_s_own(tmp_path):
    first = folder_of(tmp_path / "a", FIRST, data="/x/one")
    event = {"event": "eval", "data": "/x/two", "classes": "all", "accuracy": 50.0}
    with open(first / "metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    rows = [[image, *rest] for image, rest in FIRST.items()]
    (first / "predictions-all-two.csv").write_text(csv_text(HEADER, rows))
    second = folder_of(tmp_path / "b", SECOND, data="/x/two")
    found = two_runs([Measured(Run.open(folder)) for folder in (first, second)])
    assert [(one.data, len(one.answers)) for one in found.parts] == [("/x/two", 4)]
