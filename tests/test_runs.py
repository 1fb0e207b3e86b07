"""The run folder: the same command goes on, another one is refused with the difference, and no write leaves
half a file.
"""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.runs import FORMAT, Run, RunFacts, build_method

SETTINGS = RunSettings(data="photos", method="linear_probe", settings={"strength": 0.5})
FACTS = RunFacts(("a", "ö b"), 4, 10.0, "a {}.", labels=(3, 7), image_fingerprint="i", text_fingerprint="t")
SENTENCES = {"a": ("an a", "ä"), "ö b": ()}


def method(value=1.0):
    built = build_method(SETTINGS, FACTS)
    built.weight.fill_(value)
    return built


def finish(run, value=1.0):
    run.keep_weights(method(value).weights())
    run.finish()


@pytest.fixture
def run(tmp_path):
    return Run.start(tmp_path / "run", SETTINGS, FACTS, SENTENCES)


def test_a_finished_run_is_opened_as_it_was(run):
    run.keep_weights(method().weights(), {"more": torch.arange(3.0)})
    run.finish()
    opened = Run.open(run.folder)
    assert (opened.settings, opened.facts, opened.sentences) == (SETTINGS, FACTS, SENTENCES)
    assert torch.equal(opened.method().weight, torch.ones(2, 4)) and not opened.method().training
    assert torch.equal(opened.extra("more"), torch.arange(3.0))
    with pytest.raises(WordsightError, match="no tensor 'less'"):
        opened.extra("less")
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.yaml",
        "extra.safetensors",
        "finished.json",
        "sentences.json",
        "weights.safetensors",
    ]


def test_the_same_command_goes_on_whatever_its_relative_paths_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    settings = replace(SETTINGS, method="zero_shot", settings={}, unlabelled="more/", teacher="more")
    for _ in range(2):
        run = Run.start("run", settings, FACTS, SENTENCES)
        assert run.settings.unlabelled == str(tmp_path / "more")
        run.log({"event": "train", "step": 1})
    with pytest.raises(WordsightError, match=r"unlabelled is '.*more' there and 'val' here"):
        Run.start("run", replace(settings, unlabelled="val"), FACTS, SENTENCES)


def test_a_name_of_ours_stays_one_where_a_folder_has_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "micro", "test", "own", "dtd"):
        (tmp_path / name).mkdir()
    settings = replace(
        SETTINGS, data="digits", backbone="micro", unlabelled="test", sentences="own", teacher="micro"
    )
    kept = Run.start("run", settings, FACTS, SENTENCES).settings
    assert kept == settings
    assert Run.start("set", replace(SETTINGS, sentences="dtd"), FACTS, SENTENCES).settings.sentences == "dtd"
    assert Run.start("other", replace(SETTINGS, data="test"), FACTS, SENTENCES).settings.data == str(
        tmp_path / "test"
    )


def test_the_folder_is_readable_by_eye(run):
    content = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert content["format"] == FORMAT and content["settings"]["settings"] == {
        "strength": 0.5,
        "max_iter": 1000,
    }
    assert (
        "ö b" in (run.folder / "config.yaml").read_text()
        and "ä" in (run.folder / "sentences.json").read_text()
    )


def test_state_is_gone_once_a_run_is_finished(run):
    run.state.mkdir()
    (run.state / "state.safetensors").write_bytes(b"x")
    finish(run)
    assert not run.state.exists() and run.finished


def test_the_same_settings_go_on(run):
    elsewhere = replace(
        SETTINGS, out="other", device="cpu"
    )  # where it lies and what it runs on do not decide its result
    run.log({"event": "train", "step": 1})
    again = Run.start(run.folder, elsewhere, FACTS, SENTENCES)
    assert not again.finished and again.settings == SETTINGS


@pytest.mark.parametrize("value", ["0.5", np.float64(0.5), np.float32(0.5)])
def test_a_number_is_the_same_setting_however_it_was_written(run, value):
    run.log({"event": "train", "step": 1})
    Run.start(
        run.folder,
        replace(SETTINGS, settings={"strength": value}, shots=np.int64(16), data=Path("photos")),
        FACTS,
        SENTENCES,
    )


def test_settings_are_typed_however_they_are_made():
    settings = replace(SETTINGS, method="aape", settings={"width": "8"}, train={"lr": "1e-4"})
    assert (settings.settings.width, settings.train.lr, settings.train.epochs) == (8, 1e-4, 40)
    with pytest.raises(WordsightError, match=r"unknown setting 'settings.widht'.*did you mean 'width'"):
        replace(settings, settings={"widht": 8})
    with pytest.raises(WordsightError, match=r"train=TrainSettings\(.* but linear_probe trains nothing"):
        replace(SETTINGS, train=TrainSettings())
    with pytest.raises(WordsightError, match=r"train\.lr is set, but linear_probe trains nothing"):
        replace(SETTINGS, train={"lr": 1})


@pytest.mark.parametrize(
    "settings, facts, sentences, shown",
    [
        (replace(SETTINGS, shots=4), FACTS, SENTENCES, "shots is 16 there and 4 here"),
        (
            replace(SETTINGS, settings={"strength": 1.0}),
            FACTS,
            SENTENCES,
            "settings.strength is 0.5 there and 1.0 here",
        ),
        (
            replace(SETTINGS, seed=2, views=3),
            FACTS,
            SENTENCES,
            "seed is 1 there and 2 here; views is 1 there and 3 here",
        ),
        (SETTINGS, replace(FACTS, classes=("a", "c")), SENTENCES, "classes is"),
        (
            SETTINGS,
            replace(FACTS, image_fingerprint="j"),
            SENTENCES,
            "image_fingerprint is 'i' there and 'j' here",
        ),
        (SETTINGS, FACTS, {**SENTENCES, "ö b": ("new",)}, "the sentences differ"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_with_the_difference(run, settings, facts, sentences, shown, finished):
    finish(run) if finished else run.log({"event": "train", "step": 1})
    with pytest.raises(WordsightError) as error:
        Run.start(run.folder, settings, facts, sentences)
    assert shown in str(error.value) and "Give another out=..." in str(error.value)


def test_a_run_that_has_learned_nothing_is_begun_anew(run):
    other = Run.start(run.folder, replace(SETTINGS, shots=4), FACTS, {"a": (), "ö b": ("new",)})
    assert other.settings.shots == 4 and other.sentences["ö b"] == ("new",)
    finish(other)
    assert Run.open(run.folder).settings.shots == 4


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(WordsightError, match="is not finished; give its `wordsight fit` command again"):
        Run.open(run.folder)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(WordsightError, match=r"is no run folder: it has no config.yaml"):
            Run.open(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(WordsightError, match="is not empty and is no run folder"):
        Run.start(tmp_path / "full", SETTINGS, FACTS, SENTENCES)
    (tmp_path / "empty").mkdir()
    Run.start(tmp_path / "empty", SETTINGS, FACTS, SENTENCES)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda content: content | {"format": 99},
            "was written in run format 99; this version of wordsight reads format 2",
        ),
        (lambda content: {k: v for k, v in content.items() if k != "format"}, "run format None"),
        (
            lambda content: {k: v for k, v in content.items() if k != "facts"},
            "is damaged: it has no facts",
        ),
        (lambda content: content | {"settings": None}, "is damaged: it has no settings"),
        (
            lambda content: content | {"settings": content["settings"] | {"shot": 1}},
            "unknown setting 'shot'.*did you mean 'shots'",
        ),
        (
            lambda content: content | {"settings": content["settings"] | {"method": "linear"}},
            "method 'linear' is not known",
        ),
    ],
)
def test_a_folder_that_was_changed_is_refused(run, change, message):
    finish(run)
    path = run.folder / "config.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))
    with pytest.raises(WordsightError, match=message):
        Run.open(run.folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "sentences.json"])
def test_a_damaged_file_is_named(run, name):
    finish(run)
    (run.folder / name).write_bytes(b"\x00" * 30)
    with pytest.raises(WordsightError, match=f"{name}.* (cannot be read|is not JSON)"):
        run.method(), run.sentences


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_what_stood_there(run, monkeypatch, call):
    finish(run, 1.0)
    run.state.mkdir()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(
            WordsightError,
            match=r"weights.safetensors' cannot be written: No space left on device; what stood there before "
            r"is intact",
        ):
            finish(run, 2.0)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
    assert run.state.exists()  # the fit can still go on
    assert torch.equal(load_file(run.folder / "weights.safetensors")["weight"], torch.ones(2, 4))


def test_a_full_disk_at_the_start_leaves_no_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(WordsightError, match="No space left"):
            Run.start(tmp_path / "run", SETTINGS, FACTS, SENTENCES)
    Run.start(tmp_path / "run", SETTINGS, FACTS, SENTENCES)


def test_a_start_that_was_killed_half_way_goes_on(run):
    (run.folder / "config.yaml").unlink()  # sentences.json comes first, config.yaml makes it a run
    assert not Run.start(run.folder, SETTINGS, FACTS, SENTENCES).finished


def test_events_are_lines_and_half_a_line_is_left_out(run):
    run.log({"event": "fit", "name": "ö"})
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"event": "fit", "seconds": {"a": 1}')  # killed while writing
    run.log({"event": "fit", "name": "second"})
    run.log({"event": "eval", "accuracy": None})
    assert run.events("fit") == [{"event": "fit", "name": "ö"}, {"event": "fit", "name": "second"}]
    assert run.events("eval") == [{"event": "eval", "accuracy": None}] and run.events("none") == []
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and json.loads(lines[-1])["event"] == "eval"


@pytest.mark.parametrize("line", ["1", '"x"', "[]", "null", "{}", '{"event": 5}', "[" * 20_000, "9" * 6_000])
def test_a_line_that_holds_no_event_is_left_out(run, line):
    run.log({"event": "fit", "images": 1})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    run.log({"event": "fit", "images": 2})
    assert [event["images"] for event in run.events("fit")] == [1, 2]


def test_a_full_disk_for_events_is_said(run, monkeypatch):
    monkeypatch.setattr("builtins.open", full_disk)
    with pytest.raises(WordsightError, match=r"metrics.jsonl cannot be written: No space left"):
        run.log({"event": "fit"})


def test_training_settings_are_the_methods_with_what_the_run_changes():
    assert RunSettings(data="d", method="aape").train is None
    settings = RunSettings(data="d", method="taskres", train={"lr": "1e-5"})
    assert settings.train.lr == 1e-5
    own = replace(settings, train={}).train
    assert replace(settings.train, lr=own.lr) == own and own.rates[0] == 2e-3
    for wrong, message in (
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"batch_size": 0}, "train.batch_size=0 is not possible"),
        ({"lr": -1}, "train.lr=-1"),
    ):
        with pytest.raises(WordsightError, match=message):
            replace(settings, train=wrong)


@pytest.mark.parametrize("name", ["weights.safetensors", "sentences.json", "seen.npy"])
def test_one_flipped_bit_of_a_finished_run_is_noticed(run, name):
    run.keep_seen([bytes(16), bytes(range(16))])
    finish(run)
    content = bytearray((run.folder / name).read_bytes())
    content[-3] ^= 0x10
    (run.folder / name).write_bytes(content)
    with pytest.raises(WordsightError, match=f"{name} is damaged"):
        Run.open(run.folder)


def test_an_unfinished_run_forgets_what_is_done_again(run):
    for step in (1, 2, 3):
        run.log({"event": "train", "step": step})
    run.log({"event": "fit"})
    run.rewind(2)
    assert [event["event"] for event in run.events()] == ["train", "train"]


def test_paths_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, data="photos", backbone="org/name")
    run = Run.start("run", settings, FACTS, SENTENCES)
    assert (run.settings.data, run.settings.backbone) == (str(tmp_path / "photos"), "org/name")
    monkeypatch.chdir("/")
    finish(
        run := Run.start(tmp_path / "run", replace(settings, data=str(tmp_path / "photos")), FACTS, SENTENCES)
    )
    assert Run.open(run.folder).settings.data == str(tmp_path / "photos")
