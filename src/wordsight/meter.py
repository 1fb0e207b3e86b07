"""Meter: time, memory and threads of this process on the device in use, for what measures cost and what is
small."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits


class TooLong(Exception):
    """The time that `limited` gave is over."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """What torch, NumPy and SciPy do meanwhile, each operation by itself, on one core."""
    with torch_threads(1), threadpool_limits(1):  # the latter for scikit-learn, too
        yield


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_alone() -> Any:
    """NumPy and SciPy on one core: their waiting threads would keep torch's from theirs, and a fit whose
    solver is SciPy's and whose loss is torch's takes ten times as long with the threads of both."""
    return threadpool_limits(1, user_api="blas")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Errors: TooLong when the seconds are over; not outside the main thread, which alone hears the alarm."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """How far memory rises above where it stood: the device's on CUDA, on the CPU the resident memory of this
    process. None where nothing tells.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device.type != "cpu":
        work()
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # what was freed goes back, so that it is seen when it is taken again
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
    except OSError:
        work()
        return None
    work()
    return max(0.0, resident("VmHWM") - before)


def resident(field: str) -> float:
    """MiB, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The device in use: "cpu", or "cuda:1, NVIDIA A100"."""
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def clock(device: torch.device) -> float:
    """Seconds: of this process's processor time, which other processes on the machine hardly change; on an
    accelerator of the wall, once it has done what it was given.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
