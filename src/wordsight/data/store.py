"""Store: vectors kept between runs, each row found by the digest of what it was made from: unit vectors,
which are read into memory, or grids of vectors (grids.py), which stay on the disk until they are asked for.

A store is one folder per tower and way of computing: `<cache>/features/<key>/ROWS-ID.safetensors`. A row is
addressed by its digest, kept in the shard itself: a renamed file is found, an edited one is encoded anew, and
nothing can be stale. Each shard carries two checksums: of its digests, looked at when the store is opened,
and of all it holds, looked at when its vectors are used. What is damaged is removed and computed again."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt64
from safetensors import SafetensorError, safe_open

from wordsight.data.images import hash_of
from wordsight.files import PART, WordsightError, cache_folder, held, read_tensors, write_tensors

RECIPE = 2  # of shards; another number makes other folders, so that older ones are left alone
SHARD_ROWS = 2000  # a kill loses at most this many rows,
SHARD_BYTES = 2**26  # or, of grids, so many bytes
SHARD_SECONDS = 20.0  # or this much time
MERGE_SHARDS = 32  # so many small shards are merged into one
OLD_SECONDS = 3600.0  # after which a temporary file has no writer, where the file system has no locks
NORM_ERROR = 0.01  # by which a vector of a tower in bfloat16 may miss length one
SHARD = re.compile(r"\d{4,}-[0-9a-f]{32}\.safetensors")

Row = Float[np.ndarray, "*shape"]
Found = TypeVar("Found")

log = logging.getLogger("wordsight")
_keeping = ContextVar("keeping", default=True)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Within it, stores that are opened read what is there and write nothing: whatever strangers ask a server
    would fill the disk.
    """
    before = _keeping.set(False)
    try:
        yield
    finally:
        _keeping.reset(before)


def is_unit(rows: Float[np.ndarray, "... D"]) -> bool:
    """Whether every vector is finite and of length one; anything else is never kept."""
    squares = np.einsum("...d,...d->...", rows, rows)  # a third of the time of linalg.norm
    return bool((np.abs(squares - 1) < 2 * NORM_ERROR).all())


def is_finite(rows: Float[np.ndarray, "*shape"]) -> bool:
    return bool(np.isfinite(rows).all())


class Form(NamedTuple):
    """What the rows of a store are."""

    dtype: torch.dtype
    sound: Callable[[np.ndarray], bool]  # whether rows may be kept
    mapped: bool = False  # they stay in their files, of which the system reads what is looked at


VECTORS = Form(torch.float32, is_unit)
GRIDS = Form(torch.float16, is_finite, mapped=True)
NAMES = {torch.float32: ("float32", "F32"), torch.float16: ("float16", "F16")}  # ours, and safetensors'


class Store:
    """Rows of one shape by digest, in shards that are only ever added whole. `rows` holds what this call has
    found or added. Other processes may read and write the same folder.
    """

    def __init__(self, folder: str | Path | None, shape: tuple[int, ...], *key: object, form: Form = VECTORS):
        self.shape, self.form = shape, form
        features = Path(folder if folder is not None else cache_folder()).expanduser() / "features"
        name = ascii((*key, shape, NAMES[form.dtype][0], RECIPE))
        self.folder, self.keeps = features / hash_of(name.encode()).hex(), _keeping.get()
        try:
            if self.keeps:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        self.rows: dict[bytes, Row] = {}
        self.fresh: dict[bytes, Row] = {}  # not yet in a shard
        self.saved = time.monotonic()
        self.places: dict[bytes, Path] = {}
        self.sizes: dict[Path, int] = {}  # of every shard
        if self.keeps:
            _sweep(features)
        if self.folder.is_dir():
            self._index()

    def find(self, digests: Iterable[bytes]) -> None:
        """Bring what the shards hold of `digests` into `rows`."""
        wanted = {digest for digest in digests if digest not in self.rows}
        if not self._take(wanted):  # another process may have merged them into a new one
            self._index()
            self._take(wanted - self.rows.keys())

    @property
    def known(self) -> UInt64[np.ndarray, " n"]:
        """The first halves of all digests that it has, sorted."""
        halves = np.frombuffer(b"".join(self.places), np.uint64).reshape(-1, 2)[:, 0]
        return np.sort(halves)

    def add(self, digest: bytes, row: Row, keep: bool = True) -> None:
        """A new row, which the next flush writes; with `keep=False` only this call has it."""
        self.rows[digest] = row
        if keep and self.keeps:
            self.fresh[digest] = row

    @property
    def most(self) -> int:
        """Rows of a shard."""
        if not self.form.mapped:
            return SHARD_ROWS
        return max(1, min(SHARD_ROWS, SHARD_BYTES // (int(np.prod(self.shape)) * self.form.dtype.itemsize)))

    def flush_if_due(self) -> None:
        if len(self.fresh) >= self.most or (self.fresh and time.monotonic() - self.saved > SHARD_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Write the fresh rows as one shard, and with them those of small shards where there are many."""
        if not self.fresh:
            return
        merged = self._small()
        rows = {digest: row for path in merged for digest, row in self._read(path)} | self.fresh
        self._write(rows)
        for path in merged:
            _remove(path)
            self.sizes.pop(path, None)
        self.fresh, self.saved = {}, time.monotonic()

    def _small(self) -> list[Path]:
        """Shards to merge with the fresh rows: all small ones where there are many; of grids, which are
        large, as many as one shard holds.
        """
        small = sorted((size, path) for path, size in self.sizes.items() if size < self.most)
        if len(small) < MERGE_SHARDS:
            return []
        together = itertools.accumulate(size for size, _ in small)
        return [path for (_, path), sum_ in zip(small, together) if not self.form.mapped or sum_ <= self.most]

    def _write(self, rows: dict[bytes, Row]) -> None:
        path = self.folder / f"{len(rows):04d}-{uuid.uuid4().hex}.safetensors"
        digests = torch.from_numpy(np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16).copy())
        vectors = torch.from_numpy(np.stack(list(rows.values())))
        try:
            with held(self.folder, shared=True):  # what is written here has a writer
                write_tensors(path, {"digests": digests, "vectors": vectors}, _facts(digests.numpy()))
        except WordsightError as error:
            raise self._cannot_write(error.__cause__) from error
        self._place(path, list(rows))
        if self.form.mapped:  # memory is free for the next
            self.rows |= zip(rows, _mapped(path, self.shape, self.form.dtype))

    def _index(self) -> None:
        """Learn what shards there are, by their digests alone."""
        known = {path for path in self.folder.iterdir() if SHARD.fullmatch(path.name) and path.is_file()}
        for path in self.sizes.keys() - known:
            self._forget(path)
        for path in sorted(known - self.sizes.keys()):
            digests = _safely(path, self._digests)
            if digests is not None:
                self._place(path, digests)

    def _digests(self, path: Path) -> list[bytes]:
        with safe_open(path, framework="numpy") as file:
            digests, facts = file.get_tensor("digests"), dict(file.metadata() or {})
            if not _facts(digests).items() <= facts.items():
                raise ValueError("its digests are not what was written")
            form = file.get_slice("vectors")
            if form.get_dtype() != NAMES[self.form.dtype][1] or tuple(form.get_shape()) != (
                len(digests),
                *self.shape,
            ):
                raise ValueError(f"vectors of {form.get_dtype()} with shape {form.get_shape()}")
        return [row.tobytes() for row in digests]

    def _take(self, wanted: set[bytes]) -> bool:
        """Bring the shards that hold `wanted` into `rows`; False where one of them is no longer there."""
        shards = [self._read(path) for path in {self.places[one] for one in wanted if one in self.places}]
        for digest, row in itertools.chain(*shards):
            self.rows.setdefault(digest, row)
        return all(shards)

    def _read(self, path: Path) -> list[tuple[bytes, Row]]:
        found = _safely(path, self._checked)
        if found is None:
            self._forget(path)
        return found or []

    def _checked(self, path: Path) -> list[tuple[bytes, Row]]:
        tensors, _ = read_tensors(path, sealed=True, finite=False)  # `sound` finds those
        digests, vectors = tensors["digests"].numpy(), tensors["vectors"].numpy()
        if tensors["vectors"].dtype != self.form.dtype or vectors.shape != (len(digests), *self.shape):
            raise ValueError(f"vectors of {vectors.dtype} with shape {vectors.shape}")
        if not self.form.sound(vectors):
            raise ValueError("vectors that are not finite, or not of length one")
        if self.form.mapped:
            vectors = _mapped(path, self.shape, self.form.dtype)
        return [(digest.tobytes(), vector) for digest, vector in zip(digests, vectors)]

    def _place(self, path: Path, digests: list[bytes]) -> None:
        self.places.update(dict.fromkeys(digests, path))
        self.sizes[path] = len(digests)

    def _forget(self, path: Path) -> None:
        self.places = {digest: place for digest, place in self.places.items() if place != path}
        self.sizes.pop(path, None)

    def _cannot_write(self, error: BaseException | None) -> WordsightError:
        return WordsightError(
            f"the feature cache in {str(self.folder)!r} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}; what it held is intact. Free some space or name "
            f"another folder in WORDSIGHT_CACHE, then give the same command: it goes on from here"
        )


class Sent:
    """In place of a store, where images are encoded for another machine: the new rows, for its store."""

    def __init__(self, form: Form, known: UInt64[np.ndarray, " n"]):
        self.form, self.known = form, known  # the sorted first halves of the digests that it has
        self.rows: dict[bytes, Row] = {}  # empty: it has them
        self.large: set[bytes] = set()  # that its store does not keep

    def find(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            half = np.frombuffer(digest, np.uint64, 1)[0]
            place = np.searchsorted(self.known, half)
            if place < len(self.known) and self.known[place] == half:
                self.rows.setdefault(digest, np.empty(0))

    def add(self, digest: bytes, row: Row, keep: bool = True) -> None:
        self.rows[digest] = row
        if not keep:
            self.large.add(digest)

    def flush(self) -> None:
        """Nothing is written here."""

    flush_if_due = flush


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """The vectors of a shard, which the system reads from its file as they are looked at; no file stays
    open.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))["vectors"]["data_offsets"]
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    return content[8 + size + begin : 8 + size + end].view(dtype).view(-1, *shape).numpy()


def _facts(digests: np.ndarray) -> dict[str, str]:
    return {"digests": hash_of(np.ascontiguousarray(digests).tobytes()).hex()}


def _safely(path: Path, read: Callable[[Path], Found]) -> Found | None:
    """`read(path)`, or None where the shard is gone or damaged. A damaged one is removed, since its rows are
    computed again.
    """
    try:
        return read(path)
    except (SafetensorError, OSError, ValueError, TypeError, LookupError) as error:
        if not path.exists():  # another process has merged it away
            return None
        failed = error if isinstance(error, OSError) else error.__cause__
        if isinstance(failed, OSError):  # not ours to read, or too many open files: no damage
            log.warning(
                "left out a part of the feature cache; what it holds is computed again: %s (%s)", path, failed
            )
            return None
        log.warning(
            "removed a damaged part of the feature cache; what it held is computed again: %s (%s)",
            path,
            error,
        )
        _remove(path)
        return None


def _sweep(features: Path) -> None:
    """Remove what killed processes left half-written: temporary files in folders that nobody writes to."""
    for folder in {part.parent for part in features.glob(f"*/*{PART}")}:
        with contextlib.suppress(OSError), held(folder) as ours:
            for part in folder.glob(f"*{PART}"):
                if ours or _is_old(part):
                    _remove(part)


def _is_old(part: Path) -> bool:
    return time.time() - part.stat().st_mtime > OLD_SECONDS


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that this user may only read
        path.unlink()
