"""Suites: one function that runs any evaluation suite over methods, datasets, backbones and seeds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wordsight.backbones import Backbone
from wordsight.cells import (
    Cell,
    Outcome,
    featurise_all,
    outcomes,
    pairs_of,
    run_cell,
    said_once,
    source,
    tower_of,
)
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Dataset
from wordsight.data.sources import is_captioned
from wordsight.files import plain_name, write_file
from wordsight.plan import method_entries, plan, shard_of
from wordsight.reader import read
from wordsight.suite_settings import Suite, SuiteSettings, check_apart, places, suite_of
from wordsight.workers import progress

if TYPE_CHECKING:
    from wordsight.report.rows import Row

log = logging.getLogger("wordsight")


def run_suite(settings: SuiteSettings, *, backbone: Backbone | None = None) -> dict[str, Any]:
    """Run what is missing of a suite, or of a shard of it. The same call goes on after any interruption; a
    finished run is looked at and not repeated.

    Returns {"suite", "out", "runs", "fitted": how many were fitted now, "failed": [{"run", "says"}],
    "markdown", "absent": keys of datasets that data= lacks, "files"}; for cost what `cost.measure` returns. A
    run that cannot be is listed in "failed", and the rest goes on. `backbone` spares loading it, and keeps
    everything in this process. Errors: WordsightError for settings that cannot be, and where nothing could
    run; KeyboardInterrupt where it was stopped."""
    suite = suite_of(settings)
    if suite.measured:
        return measured(settings, backbone)
    source.cache_clear()  # files may have changed since another suite in this process
    pairs_of.cache_clear()
    listed, absent = places(settings)
    settings = replace(settings, data=listed)
    done: list[Outcome] = []
    with said_once(), settings.on():
        opened, unread = open_all(settings, suite)
        settings = replace(settings, data=tuple(data for data in listed if data not in unread))
        cells = shard_of(settings, plan(settings, suite, opened))
        there, todo = [], []  # looked at once: another process may finish some meanwhile
        for cell in cells:
            (there if cell.finished else todo).append(cell)
        featurise_all(todo, backbone)
        try:
            done += [run_cell(cell, backbone) for cell in there]
            with contextlib.closing(outcomes(todo, settings.jobs, backbone)) as rest:
                watch(rest, done, len(cells))
        except KeyboardInterrupt as stop:
            said = f"stopped with {len(done)} of {len(cells)} runs of the suite done"
            raise KeyboardInterrupt(said) from stop
    failed = [{"run": plain_name(data), "says": error} for data, error in unread.items()]
    return summary(settings, cells, done, fitted=len(todo), unread=failed, absent=absent)


def watch(rest: Iterator[Outcome], done: list[Outcome], total: int) -> None:
    """Add the outcomes to `done` as they come, each with a line for the user."""
    with progress("runs", total, len(done)) as advance:
        for outcome in rest:
            done.append(outcome)
            advance()
            log.info("[%*d/%d]  %s", len(str(total)), len(done), total, outcome)


def measured(settings: SuiteSettings, backbone: Backbone | None) -> dict[str, Any]:
    """The suite `cost`."""
    from wordsight import cost  # what it measures with is of no use to the workers

    entries = {
        label: read(RunSettings, {"data": "none", "shots": cost.SHOTS}, entry)
        for label, entry in method_entries(settings).items()
    }
    dtype = settings.dtype or "float32"
    whose = RunSettings("none", backbone=settings.backbone, device=settings.device, dtype=dtype)
    backbone = backbone or tower_of(whose)
    return cost.measure(entries, backbone, settings.sizes, settings.folder)


# -- data ----------------------------------------------------------------------------------------------------


def open_all(settings: SuiteSettings, suite: Suite) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Every dataset by its name, and why others of many cannot be read. Of captions nothing is opened here.

    Errors: WordsightError for two of one folder name, for other classes where they must be the same, and
    where one of few cannot be read, or all."""
    check_apart("data", [(plain_name(data), data) for data in settings.data])
    if suite.captions:
        for data in settings.data:
            if not is_captioned(data):
                raise WordsightError(f"{settings.suite} is measured on captions, and {data!r} holds none")
            for note in pairs_of(data).account.notes():
                log.info("%s: %s", data, note)
        return {}, {}
    opened: dict[str, Dataset] = {}
    unread: dict[str, str] = {}
    for data in settings.data:
        try:
            opened[data] = source(data, settings.label)
        except WordsightError as error:
            if not suite.keyed or len(unread) + 1 == len(settings.data):
                raise
            unread[data] = str(error)
            continue
        for note in opened[data].notes:
            log.info("%s: %s", data, note)
    check_same(settings, suite, opened)
    return opened, unread


def check_same(settings: SuiteSettings, suite: Suite, opened: dict[str, Dataset]) -> None:
    """Errors: WordsightError where a dataset has classes that the first lacks, and may not."""
    first = next(iter(opened.values()))
    for data, dataset in opened.items() if suite.same_names else ():
        others = [name for name in dataset.class_names if name not in first.class_names]
        if others:
            raise WordsightError(
                f"{settings.suite}: {len(others)} of {len(dataset.class_names)} classes of {data} are not "
                f"among those of {settings.data[0]}: "
                f"{', '.join(map(repr, others[:10]))}; cross-dataset is the suite for other classes"
            )


# -- the end -------------------------------------------------------------------------------------------------


def summary(
    settings: SuiteSettings,
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome],
    *,
    fitted: int,
    unread: Sequence[dict[str, str]],
    absent: Sequence[str],
) -> dict[str, Any]:
    """What came of a suite. Errors: WordsightError where nothing did."""
    from wordsight.report import as_markdown, comparisons, read_rows  # it draws, and no worker needs that

    failed = [outcome for outcome in outcomes if outcome.error]
    if failed and len(failed) == len(outcomes):
        raise WordsightError(
            f"none of {len(cells)} runs could be; the first, {failed[0].cell.name}: {failed[0].error}"
        )
    folders = [outcome.cell.folder for outcome in outcomes if not outcome.error]
    rows = read_rows(folders) if folders else []  # of a small suite, a shard may have no run
    said = [
        {"run": outcome.cell.name, "says": text}
        for outcome in outcomes
        for text in ((outcome.error,) if outcome.error else outcome.lacks)
    ]
    return {
        "suite": settings.suite,
        "out": str(settings.folder),
        "runs": len(cells),
        "fitted": fitted - sum(not outcome.cell.finished for outcome in failed),
        "failed": [*unread, *said],
        "absent": list(absent),
        "files": clip_benchmark_files(settings, rows)
        if settings.kind.keyed or settings.kind.captions
        else [],
        "markdown": as_markdown(rows, comparisons(rows)) if rows else "",
    }


def clip_benchmark_files(settings: SuiteSettings, rows: Sequence[Row]) -> list[str]:
    """Write the figures as CLIP_benchmark does, below the suite's folder; returns the files, the CSV last. A
    shard writes no CSV, which is of all."""
    from wordsight.report import clip_benchmark

    found = clip_benchmark.results(rows)
    folder = settings.folder / "clip_benchmark"
    files = {name: clip_benchmark.as_json(one) for name, one in found.items()}
    if found and settings.shard is None:
        files["benchmark.csv"] = clip_benchmark.as_csv(list(found.values()))
    for name, content in files.items():
        write_file(folder / name, content)
    return [str(folder / name) for name in files]
