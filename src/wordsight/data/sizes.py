"""Sizes: what a stream remembers between a run and its resumption: its sources, and the images it gave."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wordsight.config import WordsightError
from wordsight.data.fetch import size_of
from wordsight.files import read_json, write_file

SAVE_SECONDS = 5.0
DIGEST_BYTES = 16


class Size(NamedTuple):
    """What a tar or a table was when it was first read."""

    samples: int
    bytes: int  # 0 where there is no file, or it lies elsewhere
    digest: str


class Sizes:
    """How many samples each tar and table held when it was first read, in a small JSON: a resumed run passes
    over whole tars, and finds out when its data has changed, which would change its batches silently. Each
    rank writes a file of its own beside the first one's.

    Sources are known by their place in data= and what they hold, so a folder may be moved or renamed."""

    def __init__(self, path: Path | None, rank: int = 0, world: int = 1):
        self.path = path if path is None or rank == 0 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.world, self.saved = world, 0.0
        self.entries: dict[str, Size] = {}
        if self.path is not None and self.path.is_file():
            before = self._read(self.path)
            if before != world:
                raise WordsightError(
                    f"this run began with {before} processes and has {world} now: its batches would be "
                    f"others; {self._anew()}"
                )

    def known(self, key: str) -> int | None:
        return self.entries[key].samples if key in self.entries else None

    def any_of(self, keys: Sequence[str]) -> bool:
        """Whether any of them is known to hold a sample."""
        return any(self.known(key) for key in keys)

    def remember(self, key: str, size: Size, name: str) -> None:
        """Keep what a source is. Errors: WordsightError where it was something else."""
        before = self.entries.setdefault(key, size)
        if before != size:
            raise self._changed(name, before)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def check_bytes(self, key: str, path: str) -> None:
        """As `remember`, of a file here that is not read again yet."""
        before = self.entries.get(key)
        if before is not None and "://" not in path and before.bytes != size_of(path):
            raise self._changed(path, before)

    def save(self) -> None:
        if self.path is not None:
            write_file(self.path, json.dumps({"world": self.world, "samples": self.entries}, indent=0))
            self.saved = time.monotonic()

    def _read(self, path: Path) -> int:
        try:
            kept = read_json(path, "state of a stream")
            self.entries = {str(key): Size(*entry) for key, entry in kept["samples"].items()}
            return int(kept["world"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WordsightError(
                f"{str(path)!r} cannot be read: {error}; delete it, and the shards are counted again"
            ) from error

    def _changed(self, name: str, before: Size) -> WordsightError:
        return WordsightError(
            f"{name!r} is not what it was when this run began ({before.samples} then): its batches would be "
            f"others; {self._anew()}"
        )

    def _anew(self) -> str:
        return (
            f"put it back, or give another out=, or delete {str(self.path.parent)!r} to train anew"
            if self.path
            else "leave data alone while it trains"
        )


class Given:
    """Digests of the images that a stream has given, one after another in a file beside the sizes, so that
    those of before a kill are known too. Each rank writes its own; together they are what a run has seen."""

    def __init__(self, sizes: Path | None, rank: int = 0):
        self.folder = None if sizes is None else sizes.parent
        self.path = None if self.folder is None else self.folder / f"given-{rank}.bin"
        self.held: set[bytes] = set()  # where there is no folder to write to

    def add(self, digests: Iterable[bytes]) -> None:
        if self.path is None:
            self.held.update(digests)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(bytes(-file.tell() % DIGEST_BYTES))  # a kill may have cut the last one off
            file.write(b"".join(digests))

    def all(self) -> set[bytes]:
        """Those of every rank."""
        files = [] if self.folder is None else sorted(self.folder.glob("given-*.bin"))
        contents = [file.read_bytes() for file in files]
        found = {
            content[start : start + DIGEST_BYTES]
            for content in contents
            for start in range(0, len(content) - DIGEST_BYTES + 1, DIGEST_BYTES)
        }
        return found | self.held
