"""Commands of `wordsight` in forked processes: torch is imported once for hundreds of them, and each may
hang, crash or be killed by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENAI_API_KEY": "sk-secret0123456789",
}
SLOW_IMPORTS = (
    "torch",
    "transformers",
    "datasets",
    "pyarrow.parquet",
    "openai",
    "sklearn.linear_model",
    "wordsight.backbones.clip",
    "wordsight.cli",
    "wordsight.data",
    "wordsight.estimator",
    "wordsight.report",
    "wordsight.suites",
    "wordsight.tasks.retrieve",
)


class Job(NamedTuple):
    """Work for a process of its own: `work()` in `folder`, whose result is one of JSON's."""

    name: Any
    folder: Path
    work: Callable[[], Any]
    limit: float = 60.0  # seconds, then it is killed
    kill_after: float | None = None  # seconds, then it is killed on purpose


class Ended(NamedTuple):
    name: Any
    result: Any  # what `work` gave; None where it did not come to its end
    how: str  # "ended", "killed", "hung" or "crashed"
    seconds: float


def prepare() -> None:
    """Import what is slow, once, in one thread: a process with threads must not fork."""
    os.environ.update(OFFLINE)
    os.environ.pop("RANK", None)
    for name in SLOW_IMPORTS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast, LlamaForCausalLM  # noqa: F401


def run_all(jobs: Iterable[Job], at_once: int) -> Iterator[Ended]:
    """Every job in a forked process, so many at once; each result as it comes."""
    waiting, running = iter(jobs), {}
    while True:
        while len(running) < at_once and (job := next(waiting, None)) is not None:
            running[_fork(job)] = (job, time.monotonic())
        if not running:
            return
        time.sleep(0.003)
        for pid, (job, began) in list(running.items()):
            seconds = time.monotonic() - began
            end = min(job.limit, job.kill_after if job.kill_after is not None else job.limit)
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and seconds < end:
                continue
            killed = not done
            _end(pid, reap=killed)
            del running[pid]
            yield _ended(job, seconds, status, killed)


def patience(seconds: float) -> float:
    """So many seconds of an idle machine, on this one as busy as it is."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run_one(job: Job) -> Ended:
    return next(run_all([job], 1))


def _ended(job: Job, seconds: float, status: int, killed: bool) -> Ended:
    file = job.folder / RESULT
    if killed and job.kill_after is not None:
        return Ended(job.name, None, "killed", seconds)
    if killed:
        return Ended(job.name, None, "hung", seconds)
    if os.WIFSIGNALED(status) or not file.is_file():
        aimed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return Ended(job.name, None, "killed" if aimed else "crashed", seconds)
    return Ended(job.name, json.loads(file.read_text()), "ended", seconds)


def _end(pid: int, reap: bool) -> None:
    """Kill what is left of a job, its own helpers included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if reap:
        os.waitpid(pid, 0)


RESULT = "result.json"  # beside the folder `here`, in which a command runs
STACKS = "stacks.txt"


def _fork(job: Job) -> int:
    (job.folder / RESULT).unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does it too: whoever comes first
            os.setpgid(pid, pid)
        return pid
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        for name in ("home", "cache", "here"):
            (job.folder / name).mkdir(exist_ok=True)
        os.environ |= {"HOME": str(job.folder / "home"), "WORDSIGHT_CACHE": str(job.folder / "cache")}
        os.chdir(job.folder / "here")
        stacks = open(job.folder / STACKS, "w")  # noqa: SIM115, where it stands when it hangs
        faulthandler.dump_traceback_later(job.limit * 0.9, file=stacks)
        result = job.work()
        (job.folder / RESULT).write_text(json.dumps(result))
        os._exit(0)
    except BaseException:
        with open(job.folder / "harness.txt", "w") as file:
            traceback.print_exc(file=file)
        os._exit(77)


def command(words: Iterable[str]) -> dict[str, Any]:
    """`wordsight words...` in this process, which must be a forked one: exit code, stdout, stderr.

    The code is "traceback" where an exception came out, as it never should."""
    from wordsight.cli import main

    folder = Path.cwd().parent
    streams = {1: folder / "out.txt", 2: folder / "err.txt"}
    for number, path in streams.items():
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", errors, write_through=True)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    began = time.monotonic()
    try:
        code: int | str = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 2
    except BaseException:
        traceback.print_exc()
        code = "traceback"
    out, err = (path.read_text("utf-8", "surrogateescape") for path in streams.values())
    if "Traceback (most recent call last)" in err:
        code = "traceback"
    return {"code": code, "out": out, "err": err, "seconds": time.monotonic() - began}
