"""Writers: the same table as Markdown, CSV and LaTeX, whatever its names hold."""

import csv

import pytest
from fabricated import both_methods, fabricate

from wordsight.report import as_csv, as_latex, as_markdown, best_cells, comparisons, read_rows
from wordsight.report.page import as_html
from wordsight.report.rows import FIGURES
from wordsight.report.tables import Table
from wordsight.report.writers import csv_table, latex, latex_table, markdown_table


@pytest.fixture
def folders(tmp_path):
    return both_methods(tmp_path)


@pytest.mark.slow
def test_the_best_of_equal_shots_is_bold(folders, tmp_path):
    other = fabricate(tmp_path / "other", shots=16, accuracies={"all": 99.0})
    rows = read_rows([*folders, other])
    assert best_cells(rows) == {
        (0, "all"),
        (1, "base"),
    }  # alone in new, in H and at 16 shots, nothing is best
    assert (
        "**85.0 ± 0.0**" in as_markdown(rows)
        and "**75.0 ± 15.0**" in as_markdown(rows)
        and "**99.0**" not in as_markdown(rows)
    )
    assert "<b>85.0 ± 0.0</b>" in as_html(rows)


def test_the_csv_has_every_figure(folders):
    lines = list(csv.DictReader(as_csv(read_rows(folders)).splitlines()))
    assert [line["method"] for line in lines] == ["linear_probe", "aape"]
    assert (
        float(lines[1]["H"]) == pytest.approx(56.25)
        and float(lines[1]["all_spread"]) == 2
        and lines[0]["new"] == ""
    )
    assert all(part in lines[0] for part in FIGURES)


@pytest.mark.slow
def test_published_figures_stand_beside_the_same_data_and_are_never_best(tmp_path):
    accuracies = {"base": 60.0, "new": 50.0}
    made = [
        fabricate(
            tmp_path / "c",
            method="coop",
            classes="base",
            shots=16,
            data="data/caltech-101",
            accuracies=accuracies,
        ),
        fabricate(
            tmp_path / "d",
            classes="base",
            shots=16,
            data="data/caltech-101",
            accuracies={"base": 50.0, "new": 50.0},
        ),
        fabricate(
            tmp_path / "e", method="coop", classes="base", shots=16, data="data/dtd10", accuracies=accuracies
        ),
        fabricate(
            tmp_path / "f",
            method="coop",
            classes="base",
            shots=4,
            data="data/caltech101",
            accuracies=accuracies,
        ),
    ]
    rows = read_rows(made)
    assert [(row.method, row.data, row.shots) for row in rows if row.published] == [
        ("coop", "data/caltech-101", 16)
    ]
    text = as_markdown(rows)
    assert (
        "98.0 / 89.8 / 93.7" in text
        and "KgCoOp READMEs" in text
        and "not to be compared" in text
        and "**98.0" not in text
    )
    assert (
        "KgCoOp READMEs" in as_html(rows)
        and "98.0 / 89.8 / 93.7" in as_html(rows)
        and "98.00 / 89.81" in as_csv(rows)
    )


def test_latex_is_escaped_and_its_rows_have_equal_columns(folders):
    rows = read_rows(folders)
    text = as_latex(rows, comparisons(rows))
    assert (
        r"linear\_probe" in text
        and r"\textbf{85.0 $\pm$ 0.0}" in text
        and text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    )
    assert (
        latex(r"a_b & 5% {x} \y ~^")
        == r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}"
    )
    for table in text.split(r"\toprule")[1:]:
        lines = [line for line in table.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert len({line.count("&") for line in lines}) == 1 and len(lines) == 3


ODD = "=a|b\n\x1b[31m*c*\\ [d](e) & 50% \udce9"


@pytest.fixture
def odd():
    return Table.of([{"method": ODD, "all": "1.0"}, {"method": "[x]", "all": "2.0"}])


def test_a_name_breaks_no_line_of_markdown_and_moves_no_cursor(odd):
    lines = markdown_table(odd).splitlines()
    assert len(lines) == 4 and all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert r"=a\|b \\x1b\[31m\*c\*\\ \[d\](e) & 50% \\udce9" in lines[2]


def test_a_name_breaks_no_row_of_latex(odd):
    text = latex_table(odd, ODD)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and all(row.count("&") - row.count(r"\&") == 1 for row in rows)
    assert rows[2].startswith("{}[x]") and r"50\%" in text and "\x1b" not in text


def test_a_name_is_no_formula_in_a_spreadsheet(odd):
    (first, _) = csv.DictReader(csv_table(odd).splitlines(keepends=True))
    assert first["method"].startswith("'=a|b") and "\x1b" not in first["method"] and first["all"] == "1.0"
