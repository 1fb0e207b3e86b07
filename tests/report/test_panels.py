"""One run in detail: calibration, classes, confusions with images; and the datasets beside one another."""

import csv
import io
import re

import pytest
from fabricated import fabricate

from wordsight.config import RunSettings
from wordsight.files import csv_text
from wordsight.fit import fit
from wordsight.report import as_latex, as_markdown, read_rows, report
from wordsight.report.by_data import by_data
from wordsight.report.page import as_html
from wordsight.report.reading import Measured
from wordsight.runs import Run

CURVE = {"images": [0, 4, 6], "confidence": [None, 50.0, 90.0], "accuracy": [None, 25.0, 100.0]}
AFTER = {"images": [0, 10, 0], "confidence": [None, 60.0, None], "accuracy": [None, 70.0, None]}
FITTED = {
    "curve": CURVE,
    "temperature": 1.5,
    "validation": 40,
    "error_after": 10.0,
    "curve_after": AFTER,
}


def of(place, calibration=None, **more):
    event = {"calibration": calibration} if calibration else None
    return fabricate(place, accuracies={"all": 70.0}, event=event, **more)


def reliability(folder):
    return Measured(Run.open(folder)).last().reliability


# -- calibration


@pytest.mark.slow
def test_the_error_before_and_after_and_what_the_temperature_was_fitted_to(tmp_path):
    folder = of(tmp_path / "run", FITTED)
    page = as_html(read_rows([folder]))
    assert "Expected calibration error 16.0; 10.0 with the temperature 1.5, fitted to 40 validation" in page
    assert page.count('aria-label="Calibration"') == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"curve": {**CURVE, "images": [1, 2]}},
        {"curve": {**CURVE, "accuracy": [None, "x", 1.0]}},
        {"curve": 3},
        {"curve": {**CURVE, "images": [0, 0, 0]}},
    ],
)
def test_a_broken_curve_is_no_curve(tmp_path, broken):
    assert reliability(of(tmp_path / "run", FITTED | broken)) is None


@pytest.mark.slow
def test_no_temperature_says_why(tmp_path):
    told = reliability(of(tmp_path / "run", {"curve": CURVE, "temperature": None, "reason": "no <val>"})).told
    assert told.endswith("No temperature was fitted: no <val>.")
    folder = of(tmp_path / "old")
    rows = [["a", "x", "x", 0.9], ["b", "x", "y", 0.3]]
    header = ("image", "label", "predicted", "probability")
    (folder / "predictions-all.csv").write_text(csv_text(header, rows))
    page = as_html(read_rows([folder]))  # of predictions alone: gaps of 10 and 30
    assert "Expected calibration error 20.0. No temperature was fitted: this run was evaluated before" in page


@pytest.mark.slow
def test_several_rows_have_a_table_of_errors(tmp_path):
    rows = read_rows([of(tmp_path / str(seed), FITTED, seed=seed) for seed in (1, 2)])
    assert "<th" in as_html(rows) and "error after" not in as_html(rows)  # one row says it in its sentence
    rows = read_rows([of(tmp_path / "c", FITTED, method="coop"), of(tmp_path / "t", {"curve": CURVE})])
    page = as_html(rows)
    assert re.search(r'data-label="calibration error">16.0<', page) and "error after" in page


# -- classes


def test_the_worst_classes_come_first_and_all_are_folded_and_in_the_csv(tmp_path):
    names = tuple(f"c{number:02}" for number in range(30))
    pairs = [(row, row if row != 7 else 8, 2) for row in range(30)]
    matrix = dict(zip(("true", "predicted", "images"), map(list, zip(*pairs))))
    folder = fabricate(tmp_path / "run", names=names, accuracies={"all": 90.0}, event={"confusion": matrix})
    report([folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "All 30 classes, the worst first</summary>" in page and "The 12 worst of 30 by F1" in page
    assert [name for name in re.findall(r">(c\d\d)<", page) if name in ("c07", "c08")][:2] == ["c07", "c08"]
    rows = list(csv.DictReader((tmp_path / "r-classes.csv").read_text().splitlines()))
    assert len(rows) == 30 and [row["class"] for row in rows[:2]] == ["c07", "c08"]
    assert (rows[0]["recall"], rows[0]["precision"], rows[0]["f1"]) == ("0.0", "", "0.0")
    assert [float(rows[1][key]) for key in ("precision", "recall", "f1")] == pytest.approx([50, 100, 200 / 3])


def test_odd_names_of_classes_break_nothing(tmp_path):
    names = ("<script>alert(1)</script>", "", "x" * 3000, 'a,b\n"c"', "=1+1", r"\cite{x}")
    folder = fabricate(tmp_path / "run", names=names, accuracies={"all": 50.0})
    report([folder], tmp_path / "r.html", latex_file=tmp_path / "r.tex")
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r-classes.csv").read_text(), newline="")))
    assert len(rows) == 6 and {"'=1+1", "x" * 3000} <= {row["class"] for row in rows}


# -- confusions


@pytest.mark.slow
def test_confusions_have_images_that_lead_to_files(photos, backbone, tmp_path):
    settings = RunSettings(str(photos), method="zero_shot", shots=1, out=str(tmp_path / "run"))
    run = fit(settings, backbone=backbone, references=False)
    event = run.events("eval")[0] | {"confusion": {"true": [0, 1], "predicted": [1, 1], "images": [3, 5]}}
    run.log(event)
    names = list(event["class_recall"])
    rows = (run.folder / "predictions-all.csv").read_text().splitlines()[1:]
    said = [[row.split(",")[0], names[0], names[1], 0.5] for row in rows[:3]]
    (run.folder / "predictions-all.csv").write_text(
        csv_text(("image", "label", "predicted", "probability"), said)
    )
    page = as_html(read_rows([run.folder]), folder=photos.parent)
    assert f"<h4>{names[0]} → {names[1]} " in page and "3 of 3 images" in page
    thumbs = page[page.index('<div class="thumbs">') :]
    assert thumbs.count('src="data:image') >= 3 and f'href="./{photos.name}/' in thumbs


# -- datasets as columns


def test_datasets_are_columns_and_the_average_is_last(tmp_path):
    made = []
    for method, figures in (("coop", (60.0, 70.0)), ("taskres", (50.0, 90.0)), ("kgcoop", (80.0,))):
        for data, accuracy in zip(("/d/one", "/d/two"), figures):
            place = tmp_path / f"{method}{data[-3:]}"
            made.append(fabricate(place, method=method, data=data, accuracies={"all": accuracy}))
    rows = read_rows(made)
    (one,) = by_data(rows)
    assert one.table.columns == ("method", "shots", "one", "two", "average")
    assert {row[0]: row[2:] for row in one.table.rows} == {
        "coop": ("60.0", "70.0", "65.0"),
        "kgcoop": ("80.0", "–", "–"),
        "taskres": ("50.0", "90.0", "70.0"),
    }
    assert {(one.table.rows[at][0], column) for at, column in one.table.best} == {
        ("kgcoop", "one"),
        ("taskres", "two"),
        ("taskres", "average"),
    }
    assert "| average |" in as_markdown(rows).replace("  ", " ") and "All datasets" in as_html(rows)
    assert r"taskres & 4 & 50.0 & \textbf{90.0} & \textbf{70.0} \\" in as_latex(rows)
    report(made, tmp_path / "r.html")
    lines = list(csv.DictReader((tmp_path / "r-datasets.csv").read_text().splitlines()))
    assert {line["method"]: (line["one"], line["two"], line["average"]) for line in lines} == {
        "coop": ("60.0", "70.0", "65.0"),
        "kgcoop": ("80.0", "", ""),
        "taskres": ("50.0", "90.0", "70.0"),
    }


def test_the_average_h_is_of_the_averaged_base_and_new(tmp_path):
    half = [(data, {"base": base, "new": new}) for data, base, new in (("/d/a", 80, 40), ("/d/b", 40, 80))]
    made = [
        fabricate(tmp_path / data[-1], data=data, classes="base", accuracies=figures)
        for data, figures in half
    ]
    tables = {one.part: one for one in by_data(read_rows(made))}
    assert tables.keys() == {"base", "new", "H"} and tables["H"].figures[0][2] == 60.0
    assert tables["H"].figures[0][0] == pytest.approx(2 * 80 * 40 / 120)


def test_tests_on_other_data_are_averaged_without_the_source(tmp_path):
    folder = fabricate(tmp_path / "run", data="/d/src", accuracies={"all": 90.0})
    for data, accuracy in (("/d/x", 40.0), ("/d/y", 60.0)):
        Run.open(folder).log({"event": "eval", "data": data, "classes": "all", "accuracy": accuracy})
    (one,) = by_data(read_rows([folder]))
    assert one.table.columns[2:] == ("src", "x", "y", "average") and one.figures == (
        (90.0, 40.0, 60.0, 50.0),
    )
    assert "trained on src, which is not averaged" in one.title
