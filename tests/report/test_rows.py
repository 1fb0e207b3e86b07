"""Rows and comparisons: what is averaged over what, and who is compared with whom."""

import csv
import re
import shutil

import pytest
from fabricated import both_methods, fabricate

from wordsight.config import WordsightError
from wordsight.report import ABSENT, as_markdown, cells, comparisons, read_rows, report
from wordsight.report.page import as_html
from wordsight.report.rows import short_names
from wordsight.runs import Run


@pytest.fixture
def folders(tmp_path):
    return both_methods(tmp_path)


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


def test_only_settings_that_differ_are_named_and_they_part_the_rows(tmp_path):
    narrow = fabricate(tmp_path / "n", settings={"width": 16, "heads": 4}, accuracies={"all": 50.0})
    default = fabricate(tmp_path / "d", accuracies={"all": 60.0})
    longer = fabricate(tmp_path / "l", method="zero_shot", sentences="s.json", accuracies={"all": 60.0})
    assert {row.label for row in read_rows([narrow, default, longer])} == {
        "aape width=32",
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


@pytest.mark.slow
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
        and " +3.0 [-22.4, +28.4] |" in written["markdown"]  # Student's t of two seeds
    )
    lines = list(csv.DictReader((tmp_path / "table-comparison.csv").read_text().splitlines()))
    assert [float(line["mean"]) for line in lines if line["method"] == "aape"] == pytest.approx(
        [82, 75, 45, 56.25]
    )
    (gap,) = [line for line in lines if line["difference"] and line["part"] == "all"]
    assert (gap["verdict"], gap["level"], gap["images"], gap["pairs"]) == ("open", "", "0", "2")
    words = "all: linear_probe is not shown to differ from aape. Intervals over 2 seeds alone, too few"
    for text in (written["markdown"].replace("\\", ""), (tmp_path / "r.html").read_text()):
        assert words in text
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


def test_what_takes_no_labels_stands_beside_others_on_its_own_data_alone(tmp_path):
    made = [
        fabricate(tmp_path / name, method=method, data=data, accuracies={"all": 70.0})
        for name, method, data in (("z", "zero_shot", "one"), ("a", "aape", "two"))
    ]
    assert comparisons(read_rows(made)) == []


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


def test_a_run_without_figures_is_listed(tmp_path):
    folder = fabricate(tmp_path / "bare")
    shutil.rmtree(folder / "state", ignore_errors=True)
    (folder / "metrics.jsonl").unlink()
    rows = read_rows([folder])
    assert set(cells(rows[0]).values()) >= {ABSENT} and rows[0].figures == {} and "aape" in as_html(rows)


def test_a_run_without_figures_is_no_seed_of_the_others_mean(tmp_path, said):
    folders = [fabricate(tmp_path / str(seed), seed=seed, accuracies={"all": 50.0}) for seed in (1, 2)]
    (folders[1] / "metrics.jsonl").unlink()
    (row,) = read_rows(folders)
    assert row.seeds == 1 and row.figures["all"].mean == 50
    assert f"{folders[1]} is not counted: it has no figures" in said.text


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
        and as_html([own, other]).count("Confusion matrix") == 1
    )


def test_absolute_paths_are_shown_by_the_parts_that_tell_them_apart():
    places = ("/a/one/photos", "/b/two/photos", "/c/birds", "org/name", "digits", "/c/x.csv::/d/y.csv")
    shown = ("one/photos", "two/photos", "birds", "org/name", "digits", "x.csv::y.csv")
    assert short_names(places) == dict(zip(places, shown))


def test_the_table_says_which_words_all_have_or_each_row_has(tmp_path):
    def rows(**words):
        made = [
            fabricate(tmp_path / f"{method}-{kind}", method=method, words=kind, accuracies={"all": 80.0})
            for method, kind in words.items()
        ]
        return read_rows(made)

    same = rows(aape="calibrated", taskres="calibrated", linear_probe="auto", sentence_mean="auto")
    table = as_markdown(same, comparisons(same))
    assert "has the same: words=calibrated, names and sentences mixed" in table
    assert "Otherwise: sentence_mean (sentences); linear_probe (none)." in table
    assert "words" not in table.splitlines()[0]
    other = rows(aape="calibrated", taskres="names", linear_probe="auto")
    table = as_markdown(other, comparisons(other))
    lines = [re.sub(" +", " ", line) for line in table.splitlines()]
    assert lines[0].startswith("| words | method |")
    assert any(line.startswith("| calibrated | aape |") for line in lines)
    assert any(line.startswith("| names | taskres |") for line in lines)
    assert any(line.startswith("| none | linear_probe |") for line in lines)
    assert "Not all methods that score by class vectors have the same words" in table
    assert any(line.startswith("| taskres | names | 1 |") for line in lines)  # against one another too


def test_the_rate_that_was_chosen_stands_in_the_table(tmp_path):
    folders = [
        fabricate(tmp_path / f"{seed}", method="taskres", seed=seed, accuracies={"all": 80.0})
        for seed in (1, 2)
    ]
    tried = [{"rate": 0.02, "accuracy": 90.0, "loss": 0.1}]
    for folder, rate in zip(folders, (0.02, 0.002)):
        Run.open(folder).log({"event": "rate", "rate": rate, "tried": tried})
    (row,) = read_rows(folders)
    assert row.rates == "0.002, 0.02" and "validation images chose among several" in as_markdown([row])
    unchosen = fabricate(tmp_path / "3", method="taskres", accuracies={"all": 80.0})
    Run.open(unchosen).log({"event": "rate", "rate": 0.002, "tried": []})
    assert read_rows([unchosen])[0].rates == "0.002 (first)"
    plain = read_rows([fabricate(tmp_path / "4", method="aape", accuracies={"all": 80.0})])
    assert plain[0].rates == "" and "| rate" not in as_markdown(plain)
