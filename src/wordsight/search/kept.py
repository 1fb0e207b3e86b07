"""Kept: the vectors of a folder's images from one search to the next, so that an image is read once.

One file a folder and backbone: `<cache>/search/<key>/index.safetensors`, with the vectors, the digest of each
content, and size and times of every file, by which a changed one is known. It carries a checksum; a damaged
one is removed and made again, from the feature cache as far as that goes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.features import PIXEL_RECIPE, TF32, image_features
from wordsight.data.images import hash_of
from wordsight.data.pictures import NoneReadable
from wordsight.data.rows import read_file, shown
from wordsight.data.sources import read_pictures
from wordsight.data.store import is_unit
from wordsight.data.walk import Walker
from wordsight.files import cache_folder, held, read_tensors, write_tensors

RECIPE = 1  # of the file; another number makes other files
FILE = "index.safetensors"
CHUNK = 10_000  # images whose vectors are made, and put into the feature cache, at a time
# A file that was written so shortly before it was looked at may have changed since without another time:
# file systems count in steps of up to two seconds.
RECENT = 2 * 10**9  # nanoseconds

Stamp: TypeAlias = tuple[int, int, int]  # bytes; when the file and when its entry last changed, in ns

log = logging.getLogger("wordsight")


class Images(NamedTuple):
    """What is searched: each content once, under all its names."""

    vectors: Float[Tensor, "N D"]
    names: list[list[str]]  # of each vector
    unreadable: list[tuple[str, str]]  # (name, reason)


@dataclass
class Known:
    """Contents with their vectors, and the files that hold them."""

    vectors: Float[Tensor, "n D"]
    row_of: dict[bytes, int]  # by digest
    files: dict[str, tuple[Stamp, bytes]] = field(default_factory=dict)  # name: stamp and digest
    looked: int = 0  # when the stamps were taken, in ns

    def unchanged(self, name: str, stamp: Stamp) -> bytes | None:
        """The digest of a file that is as it was."""
        known, digest = self.files.get(name, (None, None))
        return digest if known == stamp and max(stamp[1:]) < self.looked - RECENT else None

    def add(self, found: Iterable[tuple[bytes, Tensor]]) -> None:
        """New contents with their vectors."""
        new = {digest: vector for digest, vector in found if digest not in self.row_of}
        if new:
            self.row_of |= {digest: len(self.vectors) + place for place, digest in enumerate(new)}
            self.vectors = torch.cat([self.vectors, torch.stack(list(new.values()))])

    def only(self, digests: Iterable[bytes]) -> None:
        """Keep these contents alone, in this order."""
        wanted = list(dict.fromkeys(digests))
        if wanted != list(self.row_of):
            self.vectors = self.vectors[[self.row_of[digest] for digest in wanted]]
            self.row_of = {digest: row for row, digest in enumerate(wanted)}

    def images(self, names: Iterable[tuple[str, bytes]], unreadable: list[tuple[str, str]]) -> Images:
        of_row: list[dict[str, None]] = [{} for _ in self.row_of]
        for name, digest in names:  # a table may name one file in several rows
            of_row[self.row_of[digest]][name] = None
        return Images(self.vectors, list(map(list, of_row)), unreadable)


def folder_images(data: str | Path, backbone: Backbone, max_pixels: int | None, account: Account) -> Images:
    """The images of a folder at any depth, under paths that begin as it was typed; what is kept of it is read
    and, where files have come, gone or changed, made anew.
    """
    folder = Path(data).expanduser()
    root, looked = folder.absolute(), time.time_ns()
    place = _place(root, backbone, max_pixels)
    known = _read(place, backbone.dim) or Known(torch.empty(0, backbone.dim), {})
    stamps = _stamps(root, account)
    digests = {name: known.unchanged(name, stamp) for name, stamp in stamps.items()}
    new = [name for name, digest in digests.items() if digest is None]
    pictures = [Picture(shown(str(folder / name)), partial(read_file, str(root / name))) for name in new]
    made, unreadable = _encode(pictures, backbone, max_pixels, known)
    digests |= {new[place]: digest for place, digest in made.items()}
    files = {name: (stamps[name], digest) for name, digest in digests.items() if digest is not None}
    if not files:
        raise _nothing(str(data), account, unreadable)
    known.only(digest for _, digest in files.values())
    recent = any(max(stamp[1:]) >= known.looked - RECENT for stamp, _ in known.files.values())
    if files != known.files or recent:
        known.files, known.looked = files, looked
        _write(place, known)
    return known.images(
        ((shown(str(folder / name)), digest) for name, (_, digest) in files.items()), unreadable
    )


def source_images(data: str | Path, backbone: Backbone, max_pixels: int | None, account: Account) -> Images:
    """The images of any other source. Each is read; the feature cache spares encoding it again."""
    known = Known(torch.empty(0, backbone.dim), {})
    pictures, names, unreadable = read_pictures(str(data), account), [], []
    while chunk := list(islice(pictures, CHUNK)):
        made, failed = _encode(chunk, backbone, max_pixels, known)
        names += [(chunk[place].name, digest) for place, digest in made.items()]
        unreadable += failed
    if not names:
        raise _nothing(str(data), account, unreadable)
    return known.images(names, unreadable)


def _encode(
    pictures: Sequence[Picture], backbone: Backbone, max_pixels: int | None, known: Known
) -> tuple[dict[int, bytes], list[tuple[str, str]]]:
    """The digest of each picture that could be read, whose vector is put into `known`, and the others."""
    made: dict[int, bytes] = {}
    unreadable: list[tuple[str, str]] = []
    for start in range(0, len(pictures), CHUNK):
        chunk = pictures[start : start + CHUNK]
        try:
            found = image_features(backbone, chunk, max_pixels=max_pixels)
        except NoneReadable as error:
            unreadable += error.skipped
            continue
        own = [chunk[place].digest for place in found.kept]
        known.add(zip(own, found.vectors[:, 0]))
        made |= {start + place: digest for place, digest in zip(found.kept, own)}
        unreadable += found.skipped
    for name, reason in unreadable:
        log.warning("skipped %s: %s", name, reason)
    return made, unreadable


def _stamps(root: Path, account: Account) -> dict[str, Stamp]:
    """Each image file below a folder, by its path inside it, as bytes of names are, in the folder's order."""
    found = {}
    for path, name in Walker(root, account, read_anyway=[os.path.realpath(root)]).images(root):
        try:
            state = os.stat(path)
        except OSError as error:  # gone since
            account.leave(f"that cannot be read ({error.strerror})", name)
            continue
        account.kept += 1
        found[os.path.relpath(path, root)] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return found


def _nothing(data: str, account: Account, unreadable: list[tuple[str, str]]) -> WordsightError:
    if unreadable:
        return NoneReadable(unreadable)
    told = "".join(f"; {note}" for note in account.notes())
    return WordsightError(f"{data!r} holds no images{told}")


# -- the file --


def _place(root: Path, backbone: Backbone, max_pixels: int | None) -> Path:
    device = backbone.device.type if backbone.device.type in TF32 else ""
    key = (os.path.realpath(root), backbone.image_fingerprint, backbone.dim, PIXEL_RECIPE, device)
    name = hash_of(ascii((*key, max_pixels, RECIPE)).encode()).hex()
    return cache_folder() / "search" / name / FILE


def _write(place: Path, known: Known) -> None:
    stamps = [(*stamp, known.row_of[digest]) for stamp, digest in known.files.values()]
    names = b"\0".join(map(os.fsencode, known.files))
    tensors = {
        "vectors": known.vectors,
        "digests": _bytes(b"".join(known.row_of)).view(-1, 16),
        "names": _bytes(names),
        "files": torch.tensor(stamps, dtype=torch.int64),
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with held(place.parent) as ours:
            if ours is not False:  # else another process is writing the same
                write_tensors(place, tensors, {"looked": str(known.looked)})
    except (OSError, WordsightError) as error:
        log.warning("the index is not kept, so the next search reads all images again: %s", error)


def _read(place: Path, dim: int) -> Known | None:
    """What was kept, or None where there is nothing, or it is damaged."""
    if not place.is_file():
        return None
    try:
        tensors, facts = read_tensors(place, sealed=True)
        return _known(tensors, int(facts["looked"]), dim)
    except (WordsightError, LookupError, ValueError, TypeError) as error:
        log.warning("the kept index is damaged and is made again: %s", error)
        return None


def _known(tensors: dict[str, Tensor], looked: int, dim: int) -> Known:
    vectors = tensors["vectors"]
    if vectors.dtype != torch.float32 or vectors.shape[1:] != (dim,) or not is_unit(vectors.numpy()):
        raise ValueError(f"vectors of {vectors.dtype} with shape {tuple(vectors.shape)}")
    digests = [row.tobytes() for row in tensors["digests"].numpy()]
    names = map(os.fsdecode, tensors["names"].numpy().tobytes().split(b"\0"))
    files = {
        name: ((size, modified, changed), digests[row])
        for name, (size, modified, changed, row) in zip(names, tensors["files"].tolist(), strict=True)
    }
    row_of = {digest: row for row, digest in enumerate(digests)}
    if len(row_of) != len(vectors):
        raise ValueError(f"{len(row_of)} digests of {len(vectors)} vectors")
    return Known(vectors, row_of, files, looked)


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
