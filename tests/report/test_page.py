"""The page: one file that needs nothing beside it, legible on a phone, with images that lead to files."""

import json
import re
from urllib.parse import unquote

import pytest
from fabricated import both_methods, fabricate

from wordsight.config import RunSettings, WordsightError
from wordsight.files import csv_text
from wordsight.fit import fit
from wordsight.report import as_markdown, read_rows, report
from wordsight.report.page import as_html
from wordsight.runs import Run


@pytest.fixture
def folders(tmp_path):
    return both_methods(tmp_path)


@pytest.mark.slow
def test_base_and_new_classes_are_drawn_against_each_other_where_shots_are_equal(tmp_path):
    half = {"classes": "base", "accuracies": {"base": 80.0, "new": 40.0}}
    runs = [fabricate(tmp_path / "one", **half)]
    assert "<svg" not in as_html(read_rows(runs))  # one point is no plot
    for more in ({"method": "coop"}, {"method": "taskres", "seed": 2}):
        runs.append(fabricate(tmp_path / str(len(runs)), **half, **more))
        page = as_html(read_rows(runs))
        assert "<h3>Base and new classes</h3>" in page and "against labelled images" not in page
    fewer = fabricate(tmp_path / "fewer", shots=1, **half)
    assert "<h3>Accuracy against labelled images per class</h3>" in as_html(read_rows([*runs, fewer]))


def test_the_page_is_escaped_and_self_contained(folders, tmp_path):
    written = report([*folders, folders[0]], tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "<b>eins" not in page and "&lt;b&gt;eins&lt;/b&gt;" in page and "zwölf &amp; 十二" in page
    assert not re.search(r"(src|href)\s*=\s*(?!['\"]?(data:|#))", page)
    assert "@import" not in page and "<script" not in page
    assert "<svg" in page and "8 runs" in page and written["markdown"].startswith("| method")


@pytest.mark.slow
def test_every_table_scrolls_in_its_own_box_and_wide_ones_become_blocks_on_a_phone(folders):
    page = as_html(read_rows(folders))
    assert page.count("<table") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table', page)) > 1
    assert 'class="figures reflow"' in page and 'data-label="parameters"' in page


def test_many_classes_are_drawn(tmp_path):
    names = tuple(f"class {number}" for number in range(30))
    page = as_html(read_rows([fabricate(tmp_path / "many", names=names, accuracies={"all": 12.0})]))
    assert re.search(r'aria-label="confusion matrix of 30 classes"><svg ', page)


# -- confident errors


@pytest.fixture
def run(photos, backbone, tmp_path):
    settings = {"method": "sentence_mean", "shots": 1, "sentences": "clip7"}
    given = RunSettings(str(photos), backbone="colours", **settings, out=str(tmp_path / "run"))
    return fit(given, backbone=backbone)


def say(run, *rows, header=("image", "label", "predicted", "probability", "sentence", "cosine")):
    (run.folder / "predictions-all.csv").write_text(csv_text(header, rows))


def image_of(run):
    return (run.folder / "predictions-all.csv").read_text().splitlines()[1].split(",")[0]


@pytest.mark.slow
def test_confident_errors_have_picture_file_and_sentence(run, photos):
    image = image_of(run)
    gone = ["gone.png", "red", "blue", "0.8", "", ""]
    say(run, [image, "red", "<i>", "0.9", "a red square.", "0.25"], gone)
    page = as_html(read_rows([run.folder]))
    assert "<dd>&lt;i&gt; <span" in page and f'alt="{image}" title="{image}" src="data:' in page
    assert (
        '<p class="sentence"><span>0.25</span> a red square.</p>' in page and page.count("not readable") == 1
    )
    (link,) = set(re.findall(r'<p class="file"><a href="([^"]*)"', page))
    assert link.startswith("file:///") and unquote(link).endswith(image)
    beside = as_html(read_rows([run.folder]), folder=photos.parent)
    assert re.findall(r'href="\./([^"]*)"', beside)[0].startswith(photos.name)


@pytest.mark.slow
def test_an_older_folder_has_no_sentences(run):
    say(run, [image_of(run), "red", "blue", "0.9"], header=("image", "label", "predicted", "probability"))
    page = as_html(read_rows([run.folder]))
    assert "<dd>blue" in page and "The sentence is" not in page and '<p class="sentence">' not in page


def test_the_surest_come_first(run):
    image = image_of(run)
    chances = {"a": "0.5", "b": "0.9", "c": "nan"}
    rows = [[image, "red", name, chance, "", ""] for name, chance in chances.items()]
    say(run, *rows, [image, "red", "red", "1.0", "", ""])
    assert re.findall(r"<dd>(\w+) <span", as_html(read_rows([run.folder]))) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label,predicted,probability\na.png,x,y,0.9\n", "are no longer in"),
        (b"image,label\na.png,x\n", "has no column &#39;predicted&#39;"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (b"", "no image is wrong"),
        (b"image,label,predicted,probability\n" + b"x" * 200_000, "cannot be read as CSV"),
    ],
)
def test_predictions_that_cannot_be_shown_leave_a_sentence(run, content, message):
    (run.folder / "predictions-all.csv").write_bytes(content)
    assert message in as_html(read_rows([run.folder]))


def test_predictions_that_are_not_there_leave_a_sentence(folders):
    assert "predictions-base.csv is not there" in as_html(read_rows(folders[3:4]))


# -- what stands beside the figures


def test_references_and_the_account_are_shown(tmp_path):
    beside = {
        "zero_shot": {"accuracy": 70.0, "difference": [5.0, 1.5, 8.0]},
        "linear_probe": {"accuracy": 71.0},
    }
    event = {"references": beside, "folds": 5}
    folder = fabricate(tmp_path / "run", accuracies={"all": 75.0}, event=event)
    account = {"seen": 12, "kept": 9, "left_out": {"are <hidden>": {"count": 3, "names": ["a\x1b", "b"]}}}
    (folder / "account.json").write_text(json.dumps(account))
    page = as_html(read_rows([folder]))
    assert "of one seed over these test images alone" in as_markdown(read_rows([folder]))
    assert "+5.0 [+1.5, +8.0] higher" in page and ">71.0<" in page and "cross-validation of 5 folds" in page
    assert "12 seen, 9 kept, 3 left out" in page and "3 are &lt;hidden&gt;" in page and "a\\x1b, b" in page


def test_differences_of_several_seeds_are_over_images_and_seeds(tmp_path):
    made = []
    for seed, gap in ((1, 4.0), (2, 6.0)):
        beside = {"zero_shot": {"accuracy": 70.0, "difference": [gap, 1.0, 9.0]}}
        event = {"references": beside}
        made.append(fabricate(tmp_path / str(seed), seed=seed, accuracies={"all": 75.0}, event=event))
    assert "+5.0 [-8.3, +18.3] open" in as_html(read_rows(made))  # 12.7 of two seeds, 4 of the images


# -- folders that are no finished run


def stop(folder):
    """As an unfinished run."""
    (folder / "finished.json").unlink()


@pytest.mark.slow
def test_what_is_no_finished_run_is_left_out_and_told(folders, tmp_path, said):
    stop(folders[0])
    written = report([*folders, tmp_path / "none"], tmp_path / "r.html")
    assert [one["run"] for one in written["skipped"]] == [str(folders[0]), str(tmp_path / "none")]
    assert "7 runs" in (tmp_path / "r.html").read_text() and "is not finished" in said.text
    with pytest.raises(WordsightError, match="no run folder"):
        report([tmp_path / "none"], tmp_path / "r.html")
    with pytest.raises(WordsightError, match="at least one"):
        report([], tmp_path / "r.html")


@pytest.mark.slow
def test_a_folder_stands_for_the_finished_runs_below_it(folders, tmp_path):
    stop(folders[0])
    written = report([tmp_path], tmp_path / "r.html")
    assert [one["run"] for one in written["left_out"]] == [str(folders[0])] and not written["skipped"]
    assert "7 runs" in (tmp_path / "r.html").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(WordsightError, match="no run folder"):
        report([tmp_path / "empty"], tmp_path / "r.html")


def test_files_of_a_report_are_different_files(folders, tmp_path):
    for out in (tmp_path, tmp_path / "r.csv", ".", ""):
        with pytest.raises(WordsightError, match="must name the HTML file"):
            report(folders[1:2], out)
    with pytest.raises(WordsightError, match="must be different files"):
        report(folders[1:2], tmp_path / "r.html", latex_file=tmp_path / "r.html")


def test_a_method_from_outside_stands_at_the_end(folders):
    rows = read_rows(folders)
    assert rows[0].place < (type(rows[0]))(**{**vars(rows[0]), "method": "own:Method"}).place
    assert isinstance(rows[0].runs[0].run, Run)
