"""Workers: one pool for whatever is done many times, in threads, in processes or on a cluster (cluster.py),
and one way to show how far it is.

The pool is joblib's. What it lacks is added here: ending early keeps no thread at work and leaves no process
behind, and what a process logs is logged by the process that asked. Imports no torch at the top."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, TypeVar, cast

from wordsight.cluster import AGAIN, ONE_CPU, Needs, WorkerKilled, current

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[..., None]  # advance(count=1): so many more are done

BAR_SECONDS = 2.0  # what is done sooner needs no bar
LINE_SECONDS = 60.0  # between two lines where standard error is no terminal
RECENT_SECONDS = 30.0  # of which the speed is taken,
RECENT_STEPS = 8  # or of so many steps where they take longer
GRAIN_SECONDS = 0.05  # steps nearer to one another are kept as one

log = logging.getLogger("wordsight")
_shown = threading.Lock()  # held by the one progress that is shown


# -- the pool --


def each(
    work: Callable[..., Result],
    items: Iterable[Item],
    *,
    jobs: int,
    given: Sequence[Any] = (),
    processes: bool = False,
    needs: Needs = ONE_CPU,
    label: str = "",
    total: int | None = None,
    ending: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """`work(item, *given)` of every item, `jobs` at a time, as the results come: in threads, or in processes
    of one thread each. With a `label`, progress is shown.

    Where an engine is on (`cluster.engine`), its machines are the processes, as many as have room for
    what one `needs`; `given` is sent to each machine once.

    When the caller stops early, or Ctrl-C does, threads end the item they are at and processes are killed;
    `each` returns when none is left. Before it waits for threads, `ending` is called, which may hurry them. A
    process's log records are handled here, with its result. Errors: what `work` raises; WorkerKilled where a
    process was ended from outside; KeyboardInterrupt for Ctrl-C, and with processes for SIGTERM too."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    begun = progress(label, total) if label else contextlib.nullcontext(_nothing)
    far = current() if processes else None
    if far is not None:
        pool = _on_cluster(far.each(partial(_in_cluster, work), items, given, needs))
    else:
        here = partial(_with, work, tuple(given)) if given else work
        pool = _in_processes(here, items, jobs) if processes else _in_threads(here, items, jobs, ending)
    with begun as advance, contextlib.closing(pool) as results:
        for result in results:
            advance()
            yield result


def _with(work: Callable[..., Result], given: tuple[Any, ...], item: Any) -> Result:
    return work(item, *given)


def _in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    ending: Callable[[], None] | None,
) -> Generator[Result, None, None]:
    turns = _Turns()
    try:
        yield from _parallel(partial(turns.take, work), items, jobs, "threading")
    finally:
        if ending is not None:
            ending()
        turns.end()


_one_pool = threading.Lock()  # joblib has one for the whole process, and the first to end would end another's


class _Turns:
    """The calls that run now. joblib does not wait for its threads, and one that is still inside torch when
    Python ends crashes it.
    """

    def __init__(self):
        self.ended, self.running, self.changed = False, 0, threading.Condition()

    def take(self, work: Callable[[Item], Result], item: Item) -> Result | None:
        with self.changed:
            if self.ended:
                return None
            self.running += 1
        try:
            return work(item)
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def end(self) -> None:
        """No further call begins; returns once none runs."""
        with self.changed:
            self.ended = True
            self.changed.wait_for(lambda: self.running == 0)


def _in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[Result, None, None]:
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # joblib starts a process anew whose memory has grown, which is nothing that the user could mend
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    call = partial(_in_worker, work)
    with _one_pool, _terminated_as_interrupted():
        try:
            yield from _told(_parallel(call, items, jobs, "loky"))
        except TerminatedWorkerError as error:
            raise WorkerKilled(f"a worker process was ended from outside, {AGAIN}") from error
        finally:
            # joblib's default "auto" is all that its stub knows of
            executor = get_reusable_executor(reuse=True)  # pyright: ignore[reportArgumentType]
            executor.shutdown(wait=True, kill_workers=True)


def _on_cluster(results: Generator[Any, None, None]) -> Generator[Any, None, None]:
    with _terminated_as_interrupted(), contextlib.closing(results):
        yield from _told(results)


def _told(results: Iterable[tuple[Result, list[logging.LogRecord]]]) -> Iterator[Result]:
    """The results, and what was logged beside them is logged here."""
    for result, records in results:
        for record in records:
            logging.getLogger(record.name).handle(record)
        yield result


def _parallel(call: Callable[[Item], Any], items: Iterable[Item], jobs: int, backend: str) -> Iterator[Any]:
    from joblib import Parallel, delayed, parallel_config

    size: dict[str, Any] = {"n_jobs": jobs, "pre_dispatch": "2*n_jobs"}
    if backend == "loky":  # with one job joblib would take no process; `pre_dispatch` are in work at once
        size = {"n_jobs": max(2, jobs), "pre_dispatch": jobs}
    options = _worker_options() if backend == "loky" else {}
    # Any, since joblib's stub takes text alone where its documentation says numbers too
    hand_over: dict[str, Any] = {
        "batch_size": 1,
        "return_as": "generator_unordered",
        "max_nbytes": None,
    }
    with parallel_config(backend, **options):
        parallel: Any = Parallel(**size, **hand_over)
    parallel._warn_exit_early = _nothing  # that results are lost, from a thread of its own
    with _interrupts_waiting() if backend == "loky" else contextlib.nullcontext():
        # a generator, as return_as asks
        results = cast(Generator[Any, None, None], parallel(delayed(call)(item) for item in items))
    try:
        for result in results:  # noqa: UP028, `yield from` would close it before its warning is silenced
            yield result
    finally:
        with warnings.catch_warnings():  # joblib warns where another thread ends it than began it
            warnings.simplefilter("ignore")
            results.close()


def _worker_options() -> dict[str, Any]:
    begin = {"initializer": _begin_worker, "initargs": (os.getpid(), log.getEffectiveLevel())}
    return begin | {"inner_max_num_threads": 1}


# -- inside a worker process --


class _Kept(logging.Handler):
    """Log records in a list, with their texts made, so that they can go to another process."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)


_kept = _Kept()


def _in_worker(work: Callable[..., Result], item: Any, *given: Any) -> tuple[Result, list[logging.LogRecord]]:
    _kept.records = []
    return work(item, *given), _kept.records


def _in_cluster(
    work: Callable[..., Result], item: Any, *given: Any
) -> tuple[Result, list[logging.LogRecord]]:
    if log.handlers != [_kept]:
        _keep_records()
    return _in_worker(work, item, *given)


def _keep_records() -> None:
    log.handlers, log.propagate = [_kept], False
    _shown.acquire()  # the process that asked shows how far all are


def _begin_worker(parent: int, level: int) -> None:
    _keep_records()
    log.setLevel(level)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has died, which nobody else would tell it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# -- signals --


@contextlib.contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Ctrl-C waits until the end of this; a process that is started meanwhile inherits that, and never hears
    it. It would print a traceback; its parent, which does hear it, ends it.
    """
    resource_tracker.ensure_running()  # else the first start begins it, and that lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (a cluster's) is as Ctrl-C, so that it leaves no process behind."""
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


# -- how far it is --


@contextlib.contextmanager
def progress(label: str, total: int | None = None, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Show how many of `total` are done: gives `advance(count=1)`. `done` are done already and say nothing of
    the speed.

    On a terminal a bar after two seconds, elsewhere a line a minute through log.info; nothing where the
    "wordsight" logger does not show INFO. Of several at once the outermost is shown."""
    if not (shown and log.isEnabledFor(logging.INFO) and _shown.acquire(blocking=False)):
        yield _nothing
        return
    try:
        meter = Meter(total, done)
        with _bar(label, meter) if sys.stderr.isatty() else _lines(label, meter) as advance:
            yield advance
    finally:
        _shown.release()


def _nothing(count: int = 1) -> None:
    """Nobody is shown anything."""


class Meter:
    """How many are done and how long the rest takes, by the speed of the last half minute: what was quick at
    the beginning (read from a cache, say) promises nothing.
    """

    def __init__(self, total: int | None, done: int = 0):
        self.total, self.done = total, done
        self.steps: deque[tuple[float, int]] = deque([(time.monotonic(), done)])  # (when, how many were done)

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if len(self.steps) > 1 and now - self.steps[-2][0] < GRAIN_SECONDS:  # quick ones are one step
            self.steps.pop()
        self.steps.append((now, self.done))
        while len(self.steps) > RECENT_STEPS and self.steps[1][0] < self.steps[-1][0] - RECENT_SECONDS:
            self.steps.popleft()

    def seconds_left(self) -> float | None:
        """None where nobody can know: nothing is done yet, or nobody knows how many there are."""
        began, before = self.steps[0]
        if self.total is None or self.done == before:
            return None
        return max(0, self.total - self.done) * (time.monotonic() - began) / (self.done - before)

    def __str__(self) -> str:
        return f"{self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")

    def left(self) -> str:
        """'about 4 minutes left', or nothing."""
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
            if seconds >= 1.5 * size:
                return f"about {round(seconds / size)} {unit}s left"
        return "about a minute left" if seconds >= 45 else "less than a minute left"


@contextlib.contextmanager
def _lines(label: str, meter: Meter) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(count: int = 1) -> None:
        nonlocal last
        meter.advance(count)
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            log.info(", ".join(filter(None, (f"{label} {meter}", meter.left()))))

    yield advance


@contextlib.contextmanager
def _bar(label: str, meter: Meter) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("  ".join(filter(None, (str(meter), meter.left()))))

    bar = Progress(
        TextColumn(label, markup=False), BarColumn(), Words(), console=Console(stderr=True), transient=True
    )
    task, began = bar.add_task(label, total=meter.total, completed=meter.done), time.monotonic()

    def advance(count: int = 1) -> None:
        meter.advance(count)
        if not bar.live.is_started and time.monotonic() - began > BAR_SECONDS:
            bar.start()
        bar.update(task, completed=meter.done)

    try:
        yield advance
    finally:
        bar.stop()
