"""Worker: one thread that passes what is asked of a model through it, together where it comes within a few
milliseconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from wordsight.data.store import nothing_kept

# results in the items' order; one that is an exception is raised to whoever asked for it
Work: TypeAlias = Callable[[list[Any]], Sequence[Any]]

log = logging.getLogger("wordsight")


class Busy(Exception):
    """More waits already than may wait."""


class Job(NamedTuple):
    """One thing to do."""

    work: Work
    item: Any
    future: Future


class Worker:
    """Does jobs in the order of coming. Those that wait when one begins, or come within `wait` seconds, are
    done together, up to `most`; of these, jobs of the same work are one call. What was cancelled meanwhile is
    left out.

    Only this thread touches the model, and what it does leaves nothing in the feature cache."""

    def __init__(
        self,
        name: str,
        *,
        wait: float,
        most: int,
        room: int,
        told: Callable[[int], None] = lambda size: None,
    ):
        self.wait, self.most, self.room, self._told = wait, most, room, told
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that are not begun."""
        return len(self._jobs)

    def do(self, work: Work, items: Sequence[Any]) -> list[Future]:
        """The results to come. Errors: Busy where not all of them may wait."""
        jobs = [Job(work, item, Future()) for item in items]
        with self._change:
            if len(self._jobs) + len(jobs) > self.room:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
            if self._closed or len(self._jobs) + len(jobs) > self.room:
                raise Busy
            self._jobs.extend(jobs)
            self._change.notify()
        return [job.future for job in jobs]

    def close(self) -> None:
        """End once all that waits is done."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        with nothing_kept():
            while batch := self._batch():
                wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
                for work in dict.fromkeys(job.work for job in wanted):
                    self._do(work, [job for job in wanted if job.work == work])

    def _batch(self) -> list[Job]:
        """What is done together; nothing at the end."""
        with self._change:
            self._change.wait_for(lambda: self._jobs or self._closed)
            end = time.monotonic() + self.wait
            while 0 < len(self._jobs) < self.most and not self._closed:
                if not self._change.wait(max(0.0, end - time.monotonic())):
                    break
            return [self._jobs.popleft() for _ in range(min(self.most, len(self._jobs)))]

    def _do(self, work: Work, jobs: list[Job]) -> None:
        self._told(len(jobs))
        try:
            results = list(work([job.item for job in jobs]))
            assert len(results) == len(jobs), f"{work} gave {len(results)} results of {len(jobs)} items"
        except BaseException as error:
            results = [error] * len(jobs)
        for job, result in zip(jobs, results):
            with suppress(Exception):  # whoever asked may have gone
                if isinstance(result, BaseException):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)
