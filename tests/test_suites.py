"""Suites: which runs they are made of, that they go on where they stopped, and one sentence for every
mistake.
"""

import csv
import dataclasses
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from standins import CLASSIFIERS, command, fill_folder

from wordsight import cells, suites
from wordsight.cells import Outcome
from wordsight.cli import main
from wordsight.cluster import WorkerKilled
from wordsight.config import RunSettings, WordsightError
from wordsight.data import open_dataset
from wordsight.files import plain_name
from wordsight.plan import classifiers, method_entries, plan
from wordsight.reader import read
from wordsight.runs import FINISHED, Run
from wordsight.suite_settings import SUITES, Suite, SuiteSettings
from wordsight.suites import run_suite

FOUR = ("red", "green", "blue", "yellow")
QUICK = {"epochs": 1, "min_steps": 2}


@pytest.fixture(autouse=True)
def opened_anew():
    cells.source.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two datasets of four colours, one with a test part, and one of other classes."""
    root = tmp_path_factory.mktemp("suites")
    fill_folder(root / "one", FOUR)
    for part in ("train", "test"):
        fill_folder(root / "two" / part, FOUR)
    fill_folder(root / "other", ("purple", "red"))
    return root


def settings_for(root, tmp_path, suite="base-to-new", names=("one",), **changes):
    given = {
        "methods": ("zero_shot", "linear_probe", "aape"),
        "seeds": (1, 2),
        "backbone": "colours",
        "shots": (2,),
        "train": QUICK,
    }
    paths = tuple(str(root / name) for name in names)
    return SuiteSettings(
        **{"suite": suite, "data": paths, "out": str(tmp_path / "out"), "device": "cpu"} | given | changes
    )


def cells_of(settings):
    return plan(settings, SUITES[settings.suite], {data: open_dataset(data) for data in settings.data})


# -- what a suite is made of ---------------------------------------------------------------------------------


def test_the_table_is_the_protocol():
    assert list(SUITES) == [
        "few-shot",
        "base-to-new",
        "cross-dataset",
        "domain-shift",
        "zeroshot-24",
        "retrieval",
        "cost",
    ]
    assert SUITES["few-shot"].shots == (1, 2, 4, 8, 16) and SUITES["few-shot"].classes == "all"
    assert SUITES["base-to-new"] == Suite(SUITES["base-to-new"].summary, shots=(16,), classes="base")
    assert (
        SUITES["cross-dataset"].targets
        and not SUITES["cross-dataset"].same_names
        and SUITES["domain-shift"].same_names
    )
    assert SUITES["zeroshot-24"].shots == (None,) and SUITES["retrieval"].captions
    assert SUITES["cross-dataset"].shots == SUITES["domain-shift"].shots == (16,) and SUITES["cost"].measured
    with pytest.raises(dataclasses.FrozenInstanceError):
        SUITES["cost"].measured = False


def test_cells_are_methods_by_data_by_shots_by_seeds(data, tmp_path):
    cells = cells_of(
        settings_for(
            data,
            tmp_path,
            "few-shot",
            ("one", "two"),
            shots=(1, 2),
            words="auto",
            methods=("taskres", "zero_shot", "protext"),
        )
    )
    counted = {(plain_name(c.settings.data), c.label): 0 for c in cells}
    for cell in cells:
        counted[plain_name(cell.settings.data), cell.label] += 1
    assert counted["one", "taskres"] == counted["two", "taskres"] == 4
    assert counted["one", "zero_shot"] == 4, "without a test part the draw decides the test images"
    assert counted["two", "zero_shot"] == 1 and counted["two", "protext"] == 2, (
        "what draws nothing is there once, what trains once a seed"
    )
    assert len({cell.settings.out for cell in cells}) == len(cells)
    taskres = next(cell for cell in cells if cell.label == "taskres")
    assert (taskres.settings.classes, taskres.settings.backbone, taskres.settings.train.epochs) == (
        "all",
        "colours",
        1,
    )
    assert Path(taskres.settings.out) == tmp_path / "out" / "one" / "taskres-1shot-seed1"


def test_targets_belong_to_the_first_dataset(data, tmp_path):
    cells = cells_of(
        settings_for(data, tmp_path, "cross-dataset", ("one", "two", "other"), methods=("aape",))
    )
    assert [cell.label for cell in cells] == ["aape"] * 2 + ["zero_shot"] * 2 and all(
        cell.settings.data == str(data / "one") and len(cell.targets) == 2 for cell in cells
    )


@pytest.mark.parametrize(
    "methods, words, expected",
    [
        (("taskres", "zero_shot"), "calibrated", {"taskres": "calibrated", "zero_shot": "calibrated"}),
        (("taskres",), "sentences", {"taskres": "sentences", "zero_shot": "sentences"}),
        (
            ("aape", "taskres", "sentence_mean"),
            "auto",
            {
                "aape": "calibrated",
                "taskres": "names",
                "sentence_mean": "sentences",
                "zero_shot": "calibrated",
                "zero_shot-names": "names",
            },
        ),
        (
            ("linear_probe", "sentence_mean"),
            "calibrated",
            {"linear_probe": "names", "sentence_mean": "sentences"},
        ),
    ],
)
def test_zero_shot_at_the_same_words_is_a_row(methods, words, expected, data, tmp_path):
    settings = settings_for(data, tmp_path, methods=methods, words=words, seeds=(1,), sentences="clip7")
    assert {cell.label: cell.settings.words for cell in cells_of(settings)} == expected


def test_a_shipped_setting_is_a_method_by_its_name(data, tmp_path):
    settings = settings_for(data, tmp_path, methods=("zs_lp", "clap"), seeds=(1,))
    zs_lp, clap, _ = cells_of(settings)
    assert (zs_lp.label, zs_lp.settings.method, zs_lp.settings.settings.constraint) == (
        "zs_lp",
        "clap",
        "none",
    )
    assert clap.settings.settings.constraint == "adaptive"


def test_a_yaml_is_a_method_whose_sentences_stay_its_own(data, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "method: sentence_mean\nsentences: clip7\nshots: 3\nclasses: all\nseed: 9\ntemplate: b {}."
    )
    settings = settings_for(
        data,
        tmp_path,
        methods=(str(tmp_path / "mine.yaml"), "sentence_mean"),
        sentences="digits",
        aliases="a.json",
        seeds=(1,),
    )
    mine, plain = cells_of(settings)
    assert (mine.settings.name, plain.settings.name) == ("mine", "sentence_mean")
    assert (mine.label, mine.settings.sentences, mine.settings.aliases, mine.settings.template) == (
        "mine",
        "clip7",
        None,
        "b {}.",
    )
    assert (mine.settings.shots, mine.settings.classes, mine.settings.seed) == (2, "base", 1)
    assert (plain.settings.sentences, plain.settings.aliases, plain.settings.template) == (
        "digits",
        "a.json",
        RunSettings.template,
    )
    one, _ = cells_of(dataclasses.replace(settings, template="c {}.", views=2))
    assert (one.settings.template, one.settings.views) == ("c {}.", 2)


def test_a_pattern_names_a_file_of_each_dataset(data, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({name: [f"a {name} thing"] for name in FOUR}))
    pattern = str(tmp_path / "{data}.json")
    cell, _ = cells_of(
        settings_for(
            data,
            tmp_path,
            methods=("aape",),
            seeds=(1,),
            sentences=pattern,
            aliases=str(tmp_path / "{data}.aliases"),
        )
    )
    assert cell.settings.sentences == str(tmp_path / "one.json") and cell.settings.aliases is None
    with pytest.raises(WordsightError, match=r"asks for '.*two\.json', for data=.*two; it does not exist"):
        cells_of(settings_for(data, tmp_path, names=("one", "two"), sentences=pattern))


def test_without_methods_it_is_every_classifier():
    assert (
        set(classifiers()) - set(CLASSIFIERS) == {"transclip"}
        and list(method_entries(SuiteSettings("cost"))) == CLASSIFIERS
    )
    assert read(SuiteSettings, "suite=cost", "methods=aape,coop", "seeds=1,2").methods == ("aape", "coop")


def test_a_dataset_is_called_after_its_folder_wherever_the_path_ends(tmp_path, monkeypatch):
    (tmp_path / "sets" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sets")
    same = ("../sets", ".", "sub/..", str(tmp_path / "sets"), f"{tmp_path}/sets/", "../sets/sub/../")
    assert {plain_name(name) for name in same} == {"sets"}
    odd = {"hf:org/name@x": "name-x", "/": "data", "gone/..": "data", "x\x1b[2Jy": "x-2Jy"}
    odd |= {"no\udcffname": "no-name", "x-{000..003}.tar": "x-000-003-tar", "e\u0301": "\u00e9"}
    odd |= {"हिन्दी": "हिन्दी", "a b": "a-b", "..": plain_name(str(tmp_path))}
    assert {name: plain_name(name) for name in odd} == odd
    assert len(plain_name("long" * 100)) == 60


# -- running -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_cannot_be_is_listed_and_the_rest_goes_on(data, backbone, tmp_path):
    settings = settings_for(data, tmp_path, shots=(2, 9))
    result = run_suite(settings, backbone=backbone)
    said = {failed["says"] for failed in result["failed"]}
    assert (result["runs"], result["fitted"]) == (12, 6) and len(result["failed"]) == 8
    assert any("linear_probe has seen no images of red, yellow" in text for text in said)
    assert any("shots=9 needs 9 training images of every class" in text for text in said)
    assert "| linear_probe" in result["markdown"] and "**Against aape**" in result["markdown"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    lines = {path: path.read_bytes() for path in (tmp_path / "out").rglob("metrics.jsonl")}
    again = run_suite(settings, backbone=backbone)
    assert again["fitted"] == 0 and again["markdown"] == result["markdown"] and len(again["failed"]) == 8
    assert before == {path: path.stat().st_mtime_ns for path in before} and lines == {
        path: path.read_bytes() for path in lines
    }


def test_only_what_is_missing_is_run(data, backbone, tmp_path, monkeypatch):
    settings = settings_for(data, tmp_path, methods=("aape",), seeds=(1,))
    run_suite(settings, backbone=backbone)
    assert (
        run_suite(
            dataclasses.replace(settings, seeds=(1, 2), methods=("aape", "taskres")), backbone=backbone
        )["fitted"]
        == 4
    )
    (tmp_path / "out" / "one" / "aape-2shot-seed2" / FINISHED).unlink()
    asked = []
    monkeypatch.setattr(
        suites, "featurise_all", lambda cells, *_: asked.extend(cell.settings.seed for cell in cells)
    )
    assert run_suite(dataclasses.replace(settings, seeds=(1, 2)), backbone=backbone)[
        "fitted"
    ] == 1 and asked == [2]


def test_other_settings_do_not_pass_for_a_finished_run(data, backbone, tmp_path):
    settings = settings_for(data, tmp_path, methods=("taskres", "zero_shot"), seeds=(1,))
    run_suite(settings, backbone=backbone)
    result = run_suite(dataclasses.replace(settings, train={"epochs": 3}), backbone=backbone)
    assert len(result["failed"]) == 1 and "holds another run" in result["failed"][0]["says"]


@pytest.mark.slow
def test_no_image_and_no_text_is_left_for_the_cells(data, backbone, tmp_path, monkeypatch):
    settings = settings_for(
        data,
        tmp_path,
        "cross-dataset",
        ("one", "two", "other"),
        methods=("aape", "tip_adapter"),
        sentences="clip7",
        views=2,
    )
    cells = cells_of(settings)
    suites.featurise_all(cells, backbone)

    def refuse(*_):
        raise AssertionError("a tower was asked")

    monkeypatch.setattr(backbone, "encode_image", refuse)
    monkeypatch.setattr(backbone, "encode_text", refuse)
    assert [outcome.error for outcome in map(lambda cell: suites.run_cell(cell, backbone), cells)] == [""] * 6


@pytest.mark.slow
def test_other_data_is_tested_once(data, backbone, tmp_path):
    settings = settings_for(
        data, tmp_path, "cross-dataset", ("one", "two"), methods=("aape", "zero_shot"), seeds=(1,)
    )
    result = run_suite(settings, backbone=backbone)
    assert "one → " in result["markdown"] and "tested on other data" in result["markdown"]
    run = Run.open(tmp_path / "out" / "one" / "aape-2shot-seed1")
    assert len(run.events("eval")) == 2
    run_suite(dataclasses.replace(settings, data=(*settings.data, str(data / "other"))), backbone=backbone)
    assert [Path(event["data"]).name for event in run.events("eval")] == ["one", "two", "other"]


def test_what_cannot_score_other_classes_keeps_its_figure_on_the_source(data, backbone, tmp_path):
    settings = settings_for(
        data, tmp_path, "cross-dataset", ("one", "other"), methods=("linear_probe",), seeds=(1,)
    )
    result = run_suite(settings, backbone=backbone)
    (said,) = result["failed"]
    assert said["says"].startswith("other: linear_probe has seen no images of purple")
    assert result["fitted"] == 1 and "| linear_probe |" in result["markdown"]


def test_where_nothing_can_run_it_is_an_error(data, backbone, tmp_path):
    with pytest.raises(
        WordsightError,
        match=r"none of 4 runs could be; the first, one  aape  9 shots  seed 1: .*needs 9 training images",
    ):
        run_suite(settings_for(data, tmp_path, methods=("aape",), shots=(9,)), backbone=backbone)


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"suite": "base-to-knew"}, r"suite 'base-to-knew' is not known \(did you mean 'base-to-new'\?\)"),
        ({"methods": ("aap",)}, r"method 'aap' is not known \(did you mean 'aape'"),
        ({"methods": ("two_tower",)}, "two_tower learns from image-text pairs"),
        ({"methods": ("aape", "aape")}, "methods=aape and methods=aape have the same folder name, 'aape'"),
        ({"methods": ("none.yaml",)}, "'none.yaml' does not exist"),
        ({"data": ()}, "base-to-new needs datasets; give one or more: data=A"),
        ({"data": ("nowhere",)}, "data='nowhere' does not exist"),
        ({"seeds": ()}, r"seeds=\(\) is not possible"),
        ({"jobs": 0}, "jobs=0 is not possible; give a number from 1 on, such as jobs=2"),
        ({"seeds": (1, 2, 1)}, "seeds=1,2,1 names one twice"),
        ({"shots": (0,)}, r"shots=\(0,\) is not possible"),
        (
            {"methods": ("taskres",), "train": {"epoch": 1}},
            "unknown setting 'train.epoch' .did you mean 'epochs'",
        ),
        ({"template": "no place"}, "template 'no place' holds"),
    ],
)
def test_mistakes_are_said_before_any_work(changes, said, data, tmp_path):
    with pytest.raises(WordsightError, match=said):
        run_suite(settings_for(data, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_datasets_must_differ_in_name_and_agree_in_classes(data, tmp_path):
    fill_folder(tmp_path / "one", FOUR)
    with pytest.raises(WordsightError, match="have the same folder name"):
        run_suite(settings_for(data, tmp_path, data=(str(data / "one"), str(tmp_path / "one"))))
    with pytest.raises(
        WordsightError, match=r"1 of 2 classes of .*other are not among those of .*one: 'purple'"
    ):
        run_suite(settings_for(data, tmp_path, "domain-shift", ("one", "other")))
    with pytest.raises(
        WordsightError, match="cross-dataset needs the dataset to fit on and those to test on: data=A,B"
    ):
        run_suite(settings_for(data, tmp_path, "cross-dataset"))


# -- the command line, in processes of its own ---------------------------------------------------------------


def words_for(data, tiny_clip, out, *more):
    given = (
        f"data={data / 'one'}",
        f"backbone={tiny_clip}",
        "device=cpu",
        "seeds=1,2",
        "shots=2",
        f"out={out}",
        "train.min_steps=2",
    )
    return ["suite", "base-to-new", *given, *more]


@pytest.mark.slow
def test_the_command_line_says_what_was_done_and_what_could_not_be(data, tiny_clip, tmp_path, capsys):
    words = words_for(data, tiny_clip, tmp_path / "a", "methods=zero_shot,linear_probe", "jobs=1")
    assert main(words) == 0
    shown = capsys.readouterr()
    assert (
        "4 of 4 runs fitted now" in shown.out
        and "not possible, 2 times: classes=new: linear_probe has seen" in shown.out
    )
    assert "one  zero_shot  2 shots  seed 2  base " in shown.err and "features of 24 images" in shown.err
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["runs"], result["fitted"]) == (4, 0) and len(result["failed"]) == 2
    files = (
        "--out",
        str(tmp_path / "r.html"),
        "--csv",
        str(tmp_path / "t.csv"),
        "--latex",
        str(tmp_path / "t.tex"),
    )
    assert main(["report", str(tmp_path / "a"), *files, "--reference", "linear_probe"]) == 0
    assert (
        "**Against linear_probe**" in capsys.readouterr().out
        and r"Against linear\_probe" in (tmp_path / "t.tex").read_text()
    )
    assert len(list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))) == 2
    assert (
        main(["suite", "base-to-knew", "data=x"]) == 2
        and main(["suite", "few-shot", "data=digits", "seeds=one"]) == 2
    )
    assert "seeds='one' is not a whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_the_same_command_ends_in_the_same_bits(
    data, tiny_clip, tmp_path, capsys
):
    slow = ("methods=taskres", "train.epochs=1", "train.min_steps=800", "train.save_seconds=0.02")
    words = words_for(data, tiny_clip, tmp_path / "out", *slow)
    process = command([*words, "jobs=2"], tmp_path / "errors")
    try:
        limit = time.monotonic() + 120
        while (
            not list((tmp_path / "out").rglob("state.safetensors"))
            and process.is_alive()
            and time.monotonic() < limit
        ):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all at once
        process.join(120)
    finally:
        process.kill()
    err = (tmp_path / "errors").read_text()
    assert process.exitcode == 130 and "Traceback" not in err, err
    assert re.search(
        r"stopped with [0-3] of 4 runs of the suite done; the same command goes on from here", err
    ), err
    assert list((tmp_path / "out").rglob("state.safetensors"))
    for side in ("out", "unbroken"):
        for cell in cells_of(
            read(SuiteSettings, {"suite": "base-to-new"}, *words[2:], f"out={tmp_path / side}")
        ):
            suites.run_cell(cell)
    for seed in (1, 2):
        resumed, unbroken = (
            (tmp_path / side / "one" / f"taskres-2shot-seed{seed}" / "weights.safetensors").read_bytes()
            for side in ("out", "unbroken")
        )
        assert resumed == unbroken


@pytest.mark.parametrize(
    ("device", "jobs", "processes"), [("cpu", None, 2), ("cuda", None, 1), ("cuda", 2, 2)]
)
def test_one_process_at_a_time_fills_a_card(data, tmp_path, monkeypatch, device, jobs, processes):
    planned = cells_of(settings_for(data, tmp_path, methods=("zero_shot", "aape"), seeds=(1,)))
    monkeypatch.setattr(cells, "cpu_count", lambda: 2)
    monkeypatch.setattr(cells, "pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(cells, "in_processes", lambda cells, jobs: iter([jobs]))
    monkeypatch.setattr(cells, "run_cell", lambda cell, backbone: 1)
    assert next(iter(cells.outcomes(planned, jobs, None))) == processes


def test_a_worker_that_is_killed_costs_its_run_alone(data, tmp_path, monkeypatch):
    names = ("zero_shot", "aape", "coop", "taskres", "protext")
    planned = cells_of(settings_for(data, tmp_path, methods=names, seeds=(1,)))
    begun: list[list[str]] = []

    def each(work, items, *, jobs, processes, needs=None):
        assert processes
        begun.append([cell.label for cell in items])
        for place, cell in enumerate(items):
            if any(one.label == "coop" for one in items[place : place + jobs]):  # at work with this one
                raise WorkerKilled
            yield Outcome(cell)

    monkeypatch.setattr(cells, "each", each)
    outcomes = {outcome.cell.label: outcome.error for outcome in cells.in_processes(planned, 2)}
    assert begun == [[*names], ["aape"], ["coop"], ["taskres", "protext"]]
    assert [name for name, error in outcomes.items() if error] == ["coop"] and len(outcomes) == 5
    assert "ended from outside, perhaps for lack of memory" in outcomes["coop"]


def test_a_method_from_outside_and_a_yaml_that_inherits(data, backbone, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_methods.py").write_text(
        'from wordsight.methods.zero_shot import ZeroShot\n\nclass Mine(ZeroShot):\n    """Mine."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "base.yaml").write_text("method: own_methods:Mine\ntemplate: a {}.\n")
    (tmp_path / "child.yaml").write_text("inherits: base.yaml\nviews: 2\n")
    methods = ("own_methods:Mine", str(tmp_path / "child.yaml"))
    settings = settings_for(data, tmp_path, methods=methods, seeds=(1,))
    one, two, zero_shot = cells_of(settings)
    assert (one.label, two.label, zero_shot.label) == ("own_methods:Mine", "child", "zero_shot")
    assert Path(one.folder).name == "own_methods-Mine-2shot-seed1" and two.settings.template == "a {}."
    result = run_suite(settings, backbone=backbone)
    assert (result["fitted"], result["failed"]) == (3, []) and "own_methods:Mine" in result["markdown"]


@pytest.mark.parametrize("path", ["one/red/..", "one/.", "one/", "./one", "../{root}/one"])
def test_no_spelling_of_a_path_leads_outside_out(data, backbone, tmp_path, monkeypatch, path):
    monkeypatch.chdir(data)
    path = path.format(root=data.name)
    settings = settings_for(data, tmp_path, methods=("zero_shot",), seeds=(1,), data=(path,))
    assert run_suite(settings, backbone=backbone)["fitted"] == 1
    folders = [file.parent.relative_to(tmp_path) for file in tmp_path.rglob("config.yaml")]
    assert folders == [Path("out/one/zero_shot-2shot-seed1")] and not list(data.rglob("config.yaml"))


def test_one_dataset_under_two_spellings_is_refused(data, tmp_path):
    fill_folder(tmp_path / "ONE", FOUR)
    for other in (f"{data / 'one'}/", str(data / "two" / ".." / "one"), str(tmp_path / "ONE")):
        with pytest.raises(WordsightError, match="have the same folder name"):
            run_suite(settings_for(data, tmp_path, data=(str(data / "one"), other)))
