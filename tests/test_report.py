"""The report: what is averaged over what, what is bold, and a page that needs nothing beside it."""

import csv
import re
import shutil

import pytest

from wordsight.config import RunSettings, WordsightError
from wordsight.report import (
    ABSENT,
    PARTS,
    as_csv,
    as_html,
    as_latex,
    as_markdown,
    best_cells,
    cells,
    comparisons,
    latex,
    read_rows,
    report,
)
from wordsight.runs import Run, RunFacts, build_method
from wordsight.tasks.classify import fit

NAMES = ("<b>eins</b>", "zwölf & 十二", "$x_2$")


def fabricate(
    folder,
    *,
    method="aape",
    classes="all",
    seed=1,
    shots=4,
    names=NAMES,
    data="nowhere",
    accuracies=None,
    **changed,
):
    """A finished run whose figures are given: {part: accuracy}."""
    settings = RunSettings(
        data=data, backbone="tiny", method=method, classes=classes, seed=seed, shots=shots, **changed
    )
    facts = RunFacts(names, 8, 1.0, "a {}.")
    run = Run.start(folder, settings, facts, dict.fromkeys(names, ("a sentence",)))
    run.finish(build_method(settings, facts))
    run.log(
        {
            "event": "fit",
            "seconds": {"features": 1.0, "texts": 0.5, "fit": 0.5 * seed},
            "images": 12,
            "parameters": 100,
            "skipped": [],
        }
    )
    for part, accuracy in (accuracies or {}).items():
        matrix = [[3 if i == j else 1 for j in range(len(names))] for i in range(len(names))]
        figures = {
            "images": 15,
            "accuracy": accuracy,
            "chance": 33.3,
            "class_recall": dict.fromkeys(names, 60.0),
            "confusion": matrix,
        }
        run.log({"event": "eval", "data": data, "classes": part, **figures})
    return folder


@pytest.fixture
def folders(tmp_path):
    """AAPE on two seeds and on both kinds of classes, and a linear probe that knows no new classes."""
    made = []
    for seed, all_, base, new in ((1, 80.0, 90.0, 30.0), (2, 84.0, 60.0, 60.0)):
        made.append(fabricate(tmp_path / f"a{seed}", seed=seed, accuracies={"all": all_}))
        made.append(
            fabricate(tmp_path / f"b{seed}", seed=seed, classes="base", accuracies={"base": base, "new": new})
        )
        made.append(
            fabricate(tmp_path / f"p{seed}", seed=seed, method="linear_probe", accuracies={"all": 85.0})
        )
        made.append(
            fabricate(
                tmp_path / f"q{seed}",
                seed=seed,
                method="linear_probe",
                classes="base",
                accuracies={"base": 70.0},
            )
        )
    return made


def test_seeds_are_averaged_and_h_is_of_the_means(folders):
    probe, aape = read_rows(folders)
    assert (probe.method, aape.method, aape.seeds) == ("linear_probe", "aape", 2)
    assert str(aape.figures["all"]) == "82.0 ± 2.0"
    assert aape.figures["base"].mean == 75 and aape.figures["new"].mean == 45
    assert aape.figures["H"].mean == pytest.approx(
        2 * 75 * 45 / (75 + 45)
    )  # 56.25; the mean of H would be 52.5
    assert aape.figures["H"].spread == pytest.approx((60 - 45) / 2)
    assert aape.seconds == pytest.approx(0.75) and aape.parameters == 100


def test_what_a_method_cannot_do_is_a_dash(folders):
    probe = cells(read_rows(folders)[0])
    assert probe["new"] == probe["H"] == ABSENT and probe["base"] == "70.0 ± 0.0"


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


def test_a_name_makes_one_method_of_runs_whose_files_differ_by_dataset(tmp_path):
    kinds = ({"name": "words"}, {"name": "templates", "sentences": "clip7"})
    runs = [
        fabricate(
            tmp_path / f"{data}{row}",
            data=data,
            method="sentence_mean",
            accuracies={"all": 50.0},
            **{"sentences": f"x/{data}1.json"} | kind,
        )
        for data in ("A", "B")
        for row, kind in enumerate(kinds)
    ]
    rows = read_rows(runs)
    assert [row.label for row in rows] == ["templates", "words"] * 2
    (comparison,) = comparisons(rows)
    assert [(standing.label, standing.datasets) for standing in comparison.standings] == [
        ("templates", 2),
        ("words", 2),
    ]
    wide = fabricate(
        tmp_path / "w",
        data="A",
        method="sentence_mean",
        name="words",
        template="b {}.",
        sentences="x/A1.json",
        accuracies={"all": 1.0},
    )
    assert {row.label for row in read_rows([*runs[:1], wide])} == {
        "words template=a photo of a {}.",
        "words template=b {}.",
    }


def test_base_and_new_classes_are_drawn_against_each_other_where_shots_are_equal(tmp_path):
    runs = [fabricate(tmp_path / "one", classes="base", accuracies={"base": 80.0, "new": 40.0})]
    for more in ({"seed": 2}, {"method": "taskres"}):  # one point, two that are the same, two that are not
        page = as_html(read_rows(runs))
        assert "<h3>Base and new classes</h3>" in page and "against labelled images" not in page
        runs.append(
            fabricate(
                tmp_path / str(len(runs)), classes="base", accuracies={"base": 80.0, "new": 40.0}, **more
            )
        )
    fewer = fabricate(tmp_path / "fewer", classes="base", shots=1, accuracies={"base": 70.0, "new": 40.0})
    assert "<h3>Accuracy against labelled images per class</h3>" in as_html(read_rows([*runs, fewer]))


def test_only_settings_that_differ_are_named_and_they_part_the_rows(tmp_path):
    narrow = fabricate(tmp_path / "n", settings={"width": 16, "heads": 4}, accuracies={"all": 50.0})
    default = fabricate(tmp_path / "d", accuracies={"all": 60.0})
    longer = fabricate(tmp_path / "l", method="zero_shot", sentences="s.json", accuracies={"all": 60.0})
    assert {row.label for row in read_rows([narrow, default, longer])} == {
        "aape width=8",
        "aape width=16",
        "zero_shot",
    }


def test_a_method_without_labels_has_no_shots_and_one_row(tmp_path):
    made = [
        fabricate(tmp_path / f"z{shots}", method="zero_shot", shots=shots, accuracies={"all": 70.0})
        for shots in (1, 4)
    ]
    (row,) = read_rows(made)
    assert row.shots_text == ABSENT and row.seeds == 1


def test_the_last_evaluation_counts_and_other_data_has_a_row_of_its_own(tmp_path):
    run = Run.open(fabricate(tmp_path / "a", accuracies={"all": 50.0}))
    first = run.events("eval")[0]
    run.log({**first, "accuracy": 55.0})
    run.log(
        {**first, "classes": "new", "accuracy": 1.0}
    )  # of a run on all classes this is not what base-to-new means
    run.log({**first, "data": "elsewhere", "accuracy": 40.0})
    own, other = read_rows([run.folder])
    assert {part: value.mean for part, value in own.figures.items()} == {"all": 55.0}
    assert other.data == "nowhere → elsewhere" and other.figures["all"].mean == 40
    assert (
        "nowhere → elsewhere" in as_markdown([own, other])
        and as_html([own, other]).count("What is taken for what") == 1
    )


def test_the_page_is_escaped_and_self_contained(folders, tmp_path):
    written = report([*folders, folders[0]], tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "<b>eins" not in page and "&lt;b&gt;eins&lt;/b&gt;" in page and "zwölf &amp; 十二" in page
    assert (
        not re.search(r"(src|href)\s*=\s*(?!['\"]?(data:|#))", page)
        and "@import" not in page
        and "<script" not in page
    )
    assert "<svg" in page and "8 runs" in page and written["markdown"].startswith("| method")


def test_data_that_is_gone_leaves_a_line(folders, tmp_path):
    (folders[0] / "predictions-all.csv").write_text("image,label,predicted,probability\na.png,x,y,0.9\n")
    assert "Left out: " in as_html(read_rows(folders[:1]))
    assert "predictions-base.csv is not there" in as_html(read_rows(folders[3:4]))


def test_the_csv_has_every_figure(folders):
    lines = list(csv.DictReader(as_csv(read_rows(folders)).splitlines()))
    assert [line["method"] for line in lines] == ["linear_probe", "aape"]
    assert (
        float(lines[1]["H"]) == pytest.approx(56.25)
        and float(lines[1]["all_spread"]) == 2
        and lines[0]["new"] == ""
    )
    assert all(part in lines[0] for part in PARTS)


def test_many_classes_are_drawn(tmp_path):
    names = tuple(f"class {number}" for number in range(30))
    page = as_html(read_rows([fabricate(tmp_path / "many", names=names, accuracies={"all": 12.0})]))
    assert 'alt="confusion matrix" src="data:image/png;base64,' in page


def test_hard_images_are_shown_with_their_sentences(photos, backbone, tmp_path):
    run = fit(
        RunSettings(
            data=str(photos),
            backbone="colours",
            method="sentence_mean",
            shots=1,
            sentences="clip7",
            out=str(tmp_path / "run"),
        ),
        backbone=backbone,
    )
    table = run.folder / "predictions-all.csv"
    head, first, *rest = table.read_text().splitlines()
    image, label, _, probability = first.split(",")
    table.write_text("\n".join([head, f"{image},{label},wrong,{probability}", *rest]))
    page = as_html(read_rows([run.folder]), backbone)
    assert (
        "<dd>wrong " in page
        and 'src="data:image/png;base64,' in page
        and re.search(r"<li><span>\d\.\d\d</span> <b>(\w+)</b>: [^<]*\1", page)
    )


def test_what_is_no_finished_run_is_said(folders, tmp_path):
    with pytest.raises(WordsightError, match="no run folder"):
        report([tmp_path / "none"], tmp_path / "r.html")
    (folders[0] / "weights.safetensors").unlink()
    with pytest.raises(WordsightError, match="not finished"):
        report(folders, tmp_path / "r.html")
    with pytest.raises(WordsightError, match="at least one"):
        report([], tmp_path / "r.html")
    for out in (tmp_path, tmp_path / "r.csv"):
        with pytest.raises(WordsightError, match="must name the HTML file"):
            report(folders[1:2], out)


def test_a_run_without_figures_is_listed(tmp_path):
    folder = fabricate(tmp_path / "bare")
    shutil.rmtree(folder / "state", ignore_errors=True)
    (folder / "metrics.jsonl").unlink()
    rows = read_rows([folder])
    assert set(cells(rows[0]).values()) >= {ABSENT} and rows[0].figures == {} and "aape" in as_html(rows)


# -- against one another -------------------------------------------------------------------------------------


def test_methods_are_compared_pair_by_pair_with_the_reference(folders, tmp_path):
    (one,) = comparisons(read_rows(folders))
    probe, aape = one.standings
    assert one.reference == "aape" and one.parts == ["all", "H"] and not aape.differences
    assert (
        probe.differences["all"].mean == pytest.approx(3) and probe.differences["all"].pairs == 2
    )  # 85 - 80 and 85 - 84
    assert (
        probe.ranks["all"] == 1
        and aape.ranks["all"] == 2
        and "H" not in probe.differences
        and aape.means["H"] == pytest.approx(56.25)
    )
    written = report(
        folders, tmp_path / "r.html", latex_file=tmp_path / "r.tex", csv_file=tmp_path / "table.csv"
    )
    assert (
        "**Against aape** (4 shots, backbone tiny)" in written["markdown"]
        and " +3.0 |" in written["markdown"]
    )
    lines = list(csv.DictReader((tmp_path / "table-comparison.csv").read_text().splitlines()))
    assert [float(line["mean"]) for line in lines if line["method"] == "aape"] == pytest.approx(
        [82, 75, 45, 56.25]
    )
    assert (
        "Against one another" in (tmp_path / "r.html").read_text()
        and r"82.0 $\pm$ 2.0" in (tmp_path / "r.tex").read_text()
    )


def test_a_reference_is_chosen_or_refused(folders):
    (one,) = comparisons(read_rows(folders), "linear_probe")
    assert one.reference == "linear_probe" and one.standings[1].differences["all"].mean == pytest.approx(-3)
    with pytest.raises(WordsightError, match=r"'app' is not among what can be compared.*linear_probe, aape"):
        comparisons(read_rows(folders), "app")


def test_what_takes_no_labels_stands_beside_all_shots_and_seeds(tmp_path):
    made = [fabricate(tmp_path / "z", method="zero_shot", accuracies={"all": 70.0})]
    for shots in (1, 4):
        made += [
            fabricate(
                tmp_path / f"{shots}-{seed}", shots=shots, seed=seed, accuracies={"all": 70.0 + shots * seed}
            )
            for seed in (1, 2)
        ]
    first, last = comparisons(read_rows(made))
    assert (first.shots, last.shots) == (1, 4)
    assert [one.standings[0].differences["all"].mean for one in (first, last)] == pytest.approx([-1.5, -6])
    assert last.standings[0].differences["all"].pairs == 2


def test_targets_are_averaged_without_the_source(tmp_path):
    made = []
    for method, source, targets in (("aape", 90.0, (10.0, 30.0)), ("coop", 91.0, (20.0, 20.0))):
        folder = fabricate(tmp_path / method, method=method, accuracies={"all": source})
        run = Run.open(folder)
        for data, accuracy in zip(("one", "two"), targets):
            run.log({**run.events("eval")[0], "data": data, "accuracy": accuracy})
        made.append(folder)
    own, other = comparisons(read_rows(made))
    assert not own.elsewhere and other.elsewhere and "tested on other data" in other.title
    assert [standing.means["all"] for standing in other.standings] == [20, 20] and [
        s.ranks["all"] for s in other.standings
    ] == [1.5, 1.5]


def test_a_folder_stands_for_the_finished_runs_below_it(folders, tmp_path):
    (folders[0] / "weights.safetensors").unlink()
    written = report([tmp_path], tmp_path / "r.html")
    assert written["unfinished"] == [str(folders[0])] and "7 runs" in (tmp_path / "r.html").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(WordsightError, match="no run folder"):
        report([tmp_path / "empty"], tmp_path / "r.html")


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


def test_epochs_that_follow_the_shots_and_files_of_each_dataset_are_no_differences(tmp_path):
    made = [
        fabricate(tmp_path / f"c{shots}", method="coop", shots=shots, accuracies={"all": 50.0})
        for shots in (1, 16)
    ]
    made.append(
        fabricate(
            tmp_path / "own", method="coop", shots=16, seed=2, train={"epochs": 7}, accuracies={"all": 50.0}
        )
    )
    assert {row.label for row in read_rows(made)} == {"coop train.epochs=by shots", "coop train.epochs=7"}
    assert {row.label for row in read_rows(made[:2])} == {"coop"}
    words = [
        fabricate(tmp_path / name, data=f"d/{name}", sentences=f"s/{name}.json", accuracies={"all": 50.0})
        for name in ("one", "two")
    ]
    template = fabricate(tmp_path / "t", data="d/one", sentences="clip7", accuracies={"all": 50.0})
    assert {row.label for row in read_rows([*words, template]) if row.data == "d/one"} == {
        "aape sentences=s/{data}.json",
        "aape sentences=clip7",
    }
