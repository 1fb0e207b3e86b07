"""Suites: the evaluations behind the field's tables, as data, and one function that runs any of them over
methods, datasets and seeds.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from wordsight.backbones import Backbone, load_backbone
from wordsight.config import METHODS, RunSettings, WordsightError, load_yaml, resolve
from wordsight.data import Dataset, Picture, open_dataset
from wordsight.data.features import image_features
from wordsight.data.splits import Which, prepare
from wordsight.fit import fit, sentence_source, template_of
from wordsight.fitted import encode_classes, facts_of
from wordsight.methods import Classifier, Learner
from wordsight.reader import nearest, read
from wordsight.runs import FINISHED, Run
from wordsight.sentences.self_written import sentences_for
from wordsight.tasks import evaluate
from wordsight.tasks.classify import test_part
from wordsight.train import interrupts_held

Say = Callable[[str], None]
GENERAL = ("template", "views", "flip", "dtype")  # run settings that a suite passes on to every run
HERE = "{data}"  # in sentences= and aliases=, the dataset's folder name


@dataclass(frozen=True)
class Suite:
    """What is fitted on which classes with how many labels, and what it is tested on."""

    summary: str
    shots: tuple[int, ...] = (16,)
    classes: Which = "all"
    targets: bool = False  # fitted on the first dataset alone, and tested on the others too
    same_names: bool = False  # whose classes must be among the first's
    measured: bool = False  # not accuracy but what it costs (cost.py); needs no data


SUITES: dict[str, Suite] = {
    "few-shot": Suite("accuracy against labelled images per class", shots=(1, 2, 4, 8, 16)),
    "base-to-new": Suite(
        "fitted on the base half of the classes, tested on each half by itself", classes="base"
    ),
    "cross-dataset": Suite(
        "fitted on the first dataset, tested on the others with their own classes", targets=True
    ),
    "domain-shift": Suite(
        "the same, where the others show the first one's classes in another way",
        targets=True,
        same_names=True,
    ),
    "cost": Suite("parameters, time, memory and FLOPs of every method, in one process", measured=True),
}


@dataclass(frozen=True)
class SuiteSettings:
    """Which suite over what. What is not given here is the method's own, or its YAML's."""

    suite: str
    methods: tuple[str, ...] = ()  # names, or YAML files; none: every classifier
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    backbone: str = RunSettings.backbone
    shots: tuple[int, ...] | None = None  # in place of the suite's
    sentences: str | None = None  # for methods whose YAML names none; {data} is the dataset's folder name
    aliases: str | None = None  # the same; with {data}, a dataset without such a file needs none
    template: str | None = None
    views: int | None = None
    flip: bool | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    device: str = "auto"
    train: dict[str, Any] = field(default_factory=dict)  # for every method that trains
    out: str | None = None  # by default runs/<suite>
    jobs: int | None = None  # processes; by default one a core
    sizes: tuple[int, ...] = (10, 100, 1000)  # cost: how many classes

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("runs") / self.suite)


@dataclass(frozen=True)
class Cell:
    """One run of a suite, an ordinary run folder, and the other data it is tested on."""

    label: str
    settings: RunSettings
    targets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        settings = self.settings
        return (
            f"{folder_name(settings.data)}  {self.label}  {settings.shots} "
            f"shot{'s' * (settings.shots != 1)}  seed {settings.seed}"
        )

    @property
    def finished(self) -> bool:
        return (Path(self.settings.out) / FINISHED).is_file()


class Outcome(NamedTuple):
    cell: Cell
    figures: dict[str, float] = {}  # noqa: RUF012, by part, or by the other data's name
    seconds: float = 0.0
    lacks: tuple[str, ...] = ()  # what the method could not do, in sentences
    error: str = ""  # why there is no run
    crash: str = ""  # a traceback: a mistake of ours

    def __str__(self) -> str:
        figures = "  ".join(f"{name} {value:.1f}" for name, value in self.figures.items())
        return f"{self.cell.name}  {self.error or figures}  ({self.seconds:.1f} s)"


def run_suite(
    settings: SuiteSettings,
    *,
    backbone: Backbone | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run what is missing of a suite. The same call goes on after any interruption; a finished run is looked
    at and not repeated.

    Returns {"suite", "out", "runs", "fitted": how many were fitted now, "failed": [{"run", "says"}],
    "markdown"}; for cost what `cost.measure` returns. A run that cannot be is listed in "failed", and the
    rest goes on. `backbone` spares loading it, and keeps everything in this process. Errors: WordsightError
    for settings that cannot be, and where nothing could run; KeyboardInterrupt where it was stopped."""
    suite = suite_of(settings)
    if suite.measured:
        from wordsight import cost  # what it measures with is of no use to the workers

        entries = {
            label: read(RunSettings, {"data": "none"}, entry)
            for label, entry in method_entries(settings).items()
        }
        return cost.measure(
            entries,
            backbone or tower(settings.backbone, settings.device, settings.dtype or "float32"),
            settings.sizes,
            settings.folder,
            say,
        )
    opened = open_all(settings, suite, say)
    cells = plan(settings, suite, opened)
    todo = [cell for cell in cells if not cell.finished]
    if todo:
        featurise_all(todo, opened, backbone, progress, say)
    jobs = 1 if backbone else max(1, min(settings.jobs or len(os.sched_getaffinity(0)), len(todo)))
    done = [run_cell(cell, backbone) for cell in cells if cell.finished]
    rest = in_processes(todo, jobs) if jobs > 1 else (run_cell(cell, backbone) for cell in todo)
    try:
        with contextlib.closing(rest):
            for outcome in watched(rest, len(done), len(cells), progress):
                done.append(outcome)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped with {len(done)} of {len(cells)} runs of the suite done") from stop
    return summary(settings, cells, done, fitted=len(todo))


# -- from settings to cells ----------------------------------------------------------------------------------


def suite_of(settings: SuiteSettings) -> Suite:
    """The suite named, once the settings make sense with it."""
    if settings.suite not in SUITES:
        raise WordsightError(
            f"suite {settings.suite!r} is not known{nearest(settings.suite, SUITES)}; the choices are "
            f"{', '.join(SUITES)}"
        )
    suite = SUITES[settings.suite]
    for name in ("seeds", "shots", "jobs", "sizes"):
        values = getattr(settings, name)
        if values == () or any(
            value < (0 if name == "seeds" else 1)
            for value in ([values] if isinstance(values, int) else values or ())
        ):
            such = f"such as {name}={2 if name == 'jobs' else '1,2,3'}"
            raise WordsightError(
                f"{name}={values} is not possible; give {'a number' if name == 'jobs' else 'numbers'} from "
                f"{0 if name == 'seeds' else 1} on, {such}"
            )
        if isinstance(values, tuple) and len(set(values)) < len(values):
            raise WordsightError(
                f"{name}={','.join(map(str, values))} names one twice; its runs would lie in one folder"
            )
    needed = 0 if suite.measured else 2 if suite.targets else 1
    if len(settings.data) < needed:
        what = "the dataset to fit on and those to test on" if suite.targets else "one or more datasets"
        raise WordsightError(
            f"{settings.suite} needs {what}: data=A,B"
            if suite.targets
            else f"{settings.suite} needs {what}: data=A or data=A,B"
        )
    return suite


def open_all(settings: SuiteSettings, suite: Suite, say: Say) -> dict[str, Dataset]:
    """Every dataset, by what the user wrote. Errors: WordsightError for two of one folder name, and for other
    classes where they must be the same.
    """
    names: dict[str, str] = {}
    for data in settings.data:
        if names.setdefault(folder_name(data), data) != data or settings.data.count(data) > 1:
            raise WordsightError(
                f"data={names[folder_name(data)]} and data={data} have the same folder name, after which "
                f"runs are called; rename one"
            )
    opened = {data: open_dataset(data) for data in settings.data}
    first = next(iter(opened.values()))
    for data, dataset in opened.items():
        for note in dataset.notes:
            say(f"{data}: {note}")
        others = (
            [name for name in dataset.class_names if name not in first.class_names]
            if suite.same_names
            else []
        )
        if others:
            raise WordsightError(
                f"{settings.suite}: {len(others)} of {len(dataset.class_names)} classes of {data} are not "
                f"among those of {settings.data[0]}: "
                f"{', '.join(map(repr, others[:10]))}; cross-dataset is the suite for other classes"
            )
    return opened


def plan(settings: SuiteSettings, suite: Suite, opened: Mapping[str, Dataset]) -> list[Cell]:
    """Every run of the suite, its settings checked. A method without labels or training is there once for a
    dataset with a test part.
    """
    entries = method_entries(settings)
    numbers = settings.shots or suite.shots
    cells = []
    for data in settings.data[:1] if suite.targets else settings.data:
        for label, entry in entries.items():
            kind = resolve(METHODS, entry.get("method", RunSettings.method), "method")
            shots, seeds = numbers, settings.seeds
            if not kind.needs_labels and opened[data].test is not None:
                shots, seeds = numbers[:1], seeds if issubclass(kind, Learner) else seeds[:1]
            for number, seed in itertools.product(shots, seeds):
                try:
                    one = settings_of(settings, suite, label, entry, data, number, seed)
                except WordsightError as error:
                    raise WordsightError(f"methods={label}: {error}") from error
                cells.append(Cell(label, one, settings.data[1:] if suite.targets else ()))
    return cells


def method_entries(settings: SuiteSettings) -> dict[str, dict[str, Any]]:
    """{label: what the user gave for it}: a name, or what a YAML holds."""
    entries: dict[str, dict[str, Any]] = {}
    for word in settings.methods or classifiers():
        yaml = word.endswith((".yaml", ".yml"))
        label, entry = (Path(word).stem, load_yaml(word)) if yaml else (word, {"method": word})
        name = entry.get("method", RunSettings.method)
        if not issubclass(resolve(METHODS, name, "method"), Classifier):
            raise WordsightError(
                f"methods={word}: {name} learns from image-text pairs and becomes a backbone; a suite "
                f"compares {', '.join(classifiers())}"
            )
        if label in entries:
            raise WordsightError(
                f"methods= names {label!r} twice; runs are called after the method or the YAML file, so "
                f"rename one"
            )
        entries[label] = entry
    return entries


def classifiers() -> list[str]:
    return [name for name in METHODS if issubclass(resolve(METHODS, name, "method"), Classifier)]


def settings_of(
    settings: SuiteSettings,
    suite: Suite,
    label: str,
    entry: Mapping[str, Any],
    data: str,
    shots: int,
    seed: int,
) -> RunSettings:
    """A run's settings: the YAML's, then the suite's for all, then what the suite decides. Sentences are for
    a YAML that names none.
    """
    given = {name: value for name in GENERAL if (value := getattr(settings, name)) is not None}
    trains = issubclass(resolve(METHODS, entry.get("method", RunSettings.method), "method"), Learner)
    texts = (
        {}
        if "sentences" in entry
        else {"sentences": sentence_file(settings, data), "aliases": alias_file(settings, data)}
    )
    folder = settings.folder / folder_name(data) / f"{label}-{shots}shot-seed{seed}"
    decided = {"data": data, "backbone": settings.backbone, "device": settings.device, "seed": seed}
    decided |= {"shots": shots, "classes": suite.classes, "name": label, "out": str(folder)}
    return read(RunSettings, entry, given, {"train": settings.train} if trains else {}, texts, decided)


def sentence_file(settings: SuiteSettings, data: str) -> str | None:
    if settings.sentences is None or HERE not in settings.sentences:
        return settings.sentences
    path = settings.sentences.replace(HERE, folder_name(data))
    if not Path(path).is_file():
        raise WordsightError(
            f"sentences={settings.sentences!r} asks for {path!r}, for data={data}; it does not exist"
        )
    return path


def alias_file(settings: SuiteSettings, data: str) -> str | None:
    if settings.aliases is None or HERE not in settings.aliases:
        return settings.aliases
    path = settings.aliases.replace(HERE, folder_name(data))
    return (
        path if Path(path).is_file() else None
    )  # class names that find no sentence without it are named when the sentences are read


def folder_name(data: str) -> str:
    """What a dataset is called in paths: the last part of its path or name."""
    return re.sub(r"[^\w.-]+", "-", Path(data.removeprefix("hf:")).name or data).strip("-")


# -- features, once ------------------------------------------------------------------------------------------


@cache
def tower(name: str, device: str, dtype: str) -> Backbone:
    return load_backbone(name, device=device, dtype=dtype)


def tower_of(settings: RunSettings) -> Backbone:
    return tower(settings.backbone, settings.device, settings.dtype)


def featurise_all(
    cells: Sequence[Cell], opened: Mapping[str, Dataset], backbone: Backbone | None, progress: bool, say: Say
) -> None:
    """Every image and text that the cells need goes through its tower here, so that no two of them compute
    it.
    """
    for (data, _, views, _), (settings, pictures) in pictures_needed(cells, opened).items():
        say(
            f"{folder_name(data)}: features of {len(pictures):,} images"
            + (f", {views} views" if views > 1 else "")
        )
        found = image_features(
            backbone or tower_of(settings),
            list(pictures.values()),
            views=views,
            flip=settings.flip,
        )
        for name, reason in found.skipped[:10]:
            say(f"  skipped {name}: {reason}")
        if len(found.skipped) > 10:
            say(f"  ... and {len(found.skipped) - 10} more")
    notes: list[str] = []
    asked = {
        (
            c.settings.data,
            c.settings.sentences,
            c.settings.aliases,
            c.settings.template,
            c.settings.dtype,
            c.settings.method,
        ): c
        for c in cells
    }
    for cell in asked.values():
        texts_needed(
            cell.settings,
            [opened[data] for data in (cell.settings.data, *cell.targets)],
            backbone or tower_of(cell.settings),
            notes,
        )
    for note in dict.fromkeys(notes):
        say(note)


def pictures_needed(
    cells: Sequence[Cell], opened: Mapping[str, Dataset]
) -> dict[tuple, tuple[RunSettings, dict[str, Picture]]]:
    """{(data, dtype, views, flip): (settings of one such run, {name: picture})}. A draw that the data does
    not allow is left to its cell to say.
    """
    needed: dict[tuple, tuple[RunSettings, dict[str, Picture]]] = {}

    def add(
        settings: RunSettings, data: str, pictures: Sequence[Picture], views: int = 1, flip: bool = True
    ) -> None:
        key = (data, settings.dtype, views, flip if views > 1 else True)
        needed.setdefault(key, (settings, {}))[1].update({picture.name: picture for picture in pictures})

    for cell in cells:
        settings = cell.settings
        with contextlib.suppress(WordsightError):
            for part in ("base", "new") if settings.classes == "base" else (settings.classes,):
                dataset = prepare(opened[settings.data], settings.shots, settings.seed, part)
                if part == settings.classes:
                    add(settings, settings.data, dataset.train.pictures, settings.views, settings.flip)
                    if resolve(METHODS, settings.method, "method").needs_val and dataset.val is not None:
                        add(settings, settings.data, dataset.val.pictures)
                add(settings, settings.data, dataset.test.pictures)
        for target in cell.targets:
            add(settings, target, test_part(opened[target]).pictures)
    return {key: value for key, value in needed.items() if value[1]}


def texts_needed(
    settings: RunSettings, datasets: Sequence[Dataset], backbone: Backbone, notes: list[str]
) -> None:
    """Class names and sentences of the data of a run, and of other data's classes."""
    source = sentence_source(settings)
    known = sentences_for(source, datasets[0].class_names, settings.aliases, backbone)
    template = template_of(settings, datasets[0])
    for dataset in datasets:
        facts = facts_of(backbone, dataset.class_names, template)
        encode_classes(backbone, facts, dataset.class_names, known)


# -- running -------------------------------------------------------------------------------------------------


def run_cell(cell: Cell, backbone: Backbone | None = None) -> Outcome:
    """Fit and evaluate, or find that it is done. What the user can mend is in the outcome."""
    began = time.monotonic()
    try:
        backbone = backbone or tower_of(cell.settings)
        run = fit(cell.settings, backbone=backbone, references=False)
        tested = {event["data"] for event in run.events("eval")}
        for target in cell.targets:
            if target not in tested:
                evaluate(run, data=target, backbone=backbone)
        lacks = lacking(run, backbone)
    except WordsightError as error:
        return Outcome(cell, seconds=time.monotonic() - began, error=str(error))
    own = run.settings.data
    figures = {
        event["classes"] if event["data"] == own else folder_name(event["data"]): event["accuracy"]
        for event in run.events("eval")
    }
    return Outcome(cell, figures, time.monotonic() - began, lacks)


def lacking(run: Run, backbone: Backbone) -> tuple[str, ...]:
    """Why a run on base classes has no figures of the new ones, in the method's own words."""
    if run.settings.classes != "base" or any(event["classes"] == "new" for event in run.events("eval")):
        return ()
    try:
        evaluate(run, classes="new", backbone=backbone)
    except WordsightError as error:
        return (f"classes=new: {error}",)
    return ()


def in_processes(cells: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come. When this ends early, each worker keeps what its training has reached and
    ends.
    """
    waiting, running = list(cells)[::-1], {}
    try:
        with _terminated_as_interrupted():
            while waiting or running:
                while waiting and len(running) < jobs:
                    start_cell(waiting.pop(), running, start_worker())
                for connection in wait(list(running)):
                    process, cell = running[connection]
                    try:
                        outcome = connection.recv()
                    except (EOFError, OSError):  # what a broken pipe says depends on what was in it
                        process.join()
                        outcome = Outcome(
                            cell,
                            error=f"its process was ended from outside (exit code {process.exitcode}), "
                            f"perhaps for lack of memory",
                        )
                    del running[connection]
                    if outcome.crash:
                        raise RuntimeError(f"{cell.name} crashed:\n{outcome.crash}")
                    if waiting and process.is_alive():
                        start_cell(waiting.pop(), running, (connection, process))
                    else:
                        connection.close()  # which ends the worker
                    yield outcome
    finally:
        for process, _ in running.values():
            process.terminate()  # training ends its step and keeps it; anything else is simply left
        for process, _ in running.values():
            process.join()


def start_worker() -> tuple[Connection, Any]:
    """A process of its own, with one thread. It does not hear Ctrl-C unless it trains, from its first moment
    on: that signals wait is inherited.
    """
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # else the first start begins it, and that lets Ctrl-C through again
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    with _interrupts_waiting():
        process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return ours, process


def start_cell(cell: Cell, running: dict[Connection, Any], worker: tuple[Connection, Any]) -> None:
    connection, process = worker
    running[connection] = (process, cell)
    with contextlib.suppress(
        BrokenPipeError
    ):  # one that has just died is found when it is asked for its outcome
        connection.send(cell)


def work(connection: Connection) -> None:
    """What a worker does: a cell, its outcome, and again until the pipe is closed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            cell = connection.recv()
            try:
                outcome = run_cell(cell)
            except Exception:
                outcome = Outcome(cell, crash=traceback.format_exc())
            connection.send(outcome)


@contextlib.contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Ctrl-C waits until the end of this; a process that is started meanwhile inherits that it waits.
    Blocking it is not enough here, where another thread may hear it for this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with interrupts_held() as interrupted:
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if interrupted():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (a cluster's) ends the workers as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def watched(outcomes: Iterator[Outcome], done: int, total: int, show: bool) -> Iterator[Outcome]:
    """The outcomes, each as a line on standard error, above a bar where that is a terminal."""
    if not show:
        yield from outcomes
        return
    width = len(str(total))
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("runs", total=total, completed=done)
        for count, outcome in enumerate(outcomes, done + 1):
            console.print(f"[{count:{width}}/{total}]  {outcome}", markup=False)
            bar.advance(task)
            yield outcome


# -- the end -------------------------------------------------------------------------------------------------


def summary(
    settings: SuiteSettings, cells: Sequence[Cell], outcomes: Sequence[Outcome], fitted: int
) -> dict[str, Any]:
    """What came of a suite. Errors: WordsightError where nothing did."""
    from wordsight.report import as_markdown, comparisons, read_rows  # it draws, and no worker needs that

    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) == len(outcomes):
        raise WordsightError(
            f"none of {len(cells)} runs could be; the first, {failed[0].cell.name}: {failed[0].error}"
        )
    rows = read_rows([outcome.cell.settings.out for outcome in outcomes if not outcome.error])
    said = [
        {"run": outcome.cell.name, "says": text}
        for outcome in outcomes
        for text in ((outcome.error,) if outcome.error else outcome.lacks)
    ]
    counted = {"runs": len(cells), "fitted": fitted - sum(not outcome.cell.finished for outcome in failed)}
    return {
        "suite": settings.suite,
        "out": str(settings.folder),
        **counted,
        "failed": said,
        "markdown": as_markdown(rows, comparisons(rows)),
    }
