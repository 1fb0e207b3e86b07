"""Mutated inputs in groups. Each group's module yields `Input`s; what is drawn is seeded, so that a number
names the same input on every machine.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

EVAL = ("eval", "r0", "data=ph", "--json")
Make = Callable[[Path], None]


@dataclass(frozen=True)
class Input:
    """One mutated input: what is done to a copy of the base, and the command that meets it."""

    what: str
    make: Make
    words: tuple[str, ...] = EVAL
    needs: tuple[str, ...] = ("ph", "r0")  # what is copied of the base
    plain: Make | None = None  # what the control does in place of `make`; None: nothing
    control: tuple[str, ...] | None = None  # the control's command, where it is another
    judge: str = (
        "rows"  # "rows": each image's answer; "same": the whole output; "any": any, in words or right
    )
    must: str = ""  # "words": a refusal and nothing else; "right": the control's result and nothing else
    free: tuple[str, ...] = ()  # images that may be answered otherwise: nobody can know what they were
    near: tuple[
        str, ...
    ] = ()  # images whose probability may differ a little: the same picture in other numbers
    new: int = 0  # how many images more there are to be kept or told of
    server: str = ""  # how the fake server answers


def cut(file: str, share: float) -> Make:
    return partial(_cut, file, share)


def _cut(file: str, share: float, here: Path) -> None:
    content = (here / file).read_bytes()
    (here / file).write_bytes(content[: int(len(content) * share)])


def flip(file: str, seed: int, count: int = 1, low: float = 0.0, high: float = 1.0) -> Make:
    """So many flipped bits in a part of a file."""
    return partial(_flip, file, seed, count, low, high)


def _flip(file: str, seed: int, count: int, low: float, high: float, here: Path) -> None:
    content, rng = bytearray((here / file).read_bytes()), random.Random(f"{file} {seed}")
    for _ in range(count):
        place = rng.randrange(int(len(content) * low), max(1, int(len(content) * high)))
        content[place] ^= 1 << rng.randrange(8)
    (here / file).write_bytes(content)


def put(file: str, content: bytes | str) -> Make:
    return partial(_put, file, content)


def _put(file: str, content: bytes | str, here: Path) -> None:
    remove(here / file)
    (here / file).parent.mkdir(parents=True, exist_ok=True)
    (here / file).write_bytes(content.encode() if isinstance(content, str) else content)


def odd(file: str, how: str) -> Make:
    """Something that is no file in a file's place: a folder, a FIFO, a link to itself, /dev/zero, nothing."""
    return partial(_odd, file, how)


def _odd(file: str, how: str, here: Path) -> None:
    path = here / file
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "device":
        path.symlink_to("/dev/zero")


def remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def both(*makes: Make) -> Make:
    return partial(_both, makes)


def _both(makes: tuple[Make, ...], here: Path) -> None:
    for make in makes:
        make(here)
