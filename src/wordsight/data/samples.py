"""Samples: what one tar holds as webdataset has it, `key.jpg` with `key.cls`, `key.txt` or `key.json`.

The key is what stands before the last dot, so that cat_v1.4.jpg and cat_v1.4.cls are one sample. `datasets`'
and webdataset's own readers cut it at the first dot and pass over members that they do not know."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.labels import LABEL_KEYS, Label, captions_of, label_of
from wordsight.data.rows import IMAGES, Row, Want, is_hidden, why_not
from wordsight.data.trees import Kind, classes_shown
from wordsight.data.walk import HIDDEN
from wordsight.files import parse_json

FIELDS = ("cls", "txt", "json")
SEVERAL = ".npy"  # of a sample that may have any number of labels
NO_FILE = "that are links, devices or sparse files"
CUT = "cut off by the end of the tar"
AGAIN = "that are given again later in the tar"
BESIDE = "beside another image of their sample"
ALONE = "that belong to no image"
BAD_FIELD = "whose label or caption cannot be read"
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
PIECE = 2**20


@dataclass
class Content:
    """The members of one tar: where each image lies, and the bytes of each field. The rest is told."""

    account: Account
    at: str  # before each member's name in messages
    images: dict[str, tuple[int, int]] = field(default_factory=dict)  # member name -> start, size
    fields: dict[str, bytes] = field(default_factory=dict)
    several: bool = False  # labels are key.npy, any number an image
    damage: str | None = None  # why what follows could not be read

    def leave(self, reason: str, member: str) -> None:
        self.account.seen += 1
        self.account.leave(reason, f"{self.at}{member}")


def read_tar(
    file: BinaryIO,
    size: int,
    at: str,
    account: Account,
    loader: Callable[[int, int], Callable[[], bytes]],
    want: Want,
    label: str | None = None,
    part: str = "train",
    kind: Kind = "classification",
) -> tuple[list[Row], str | None]:
    """The samples of a tar in its order, and what is wrong with it, if anything: what stands before is given.

    `loader(start, size)` gives what reads an image at its place. With want="labels" a label is key.cls, a
    label in key.json, or key.txt, and several labels an image are an error, unless they are the kind of the
    data and lie in key.npy. With want="captions" key.txt is a caption, or of kind retrieval one a line, and a
    sample whose words cannot be read is told."""
    content = Content(account, at, several=kind == "multilabel" and want == "labels")
    _read_members(file, size, content)
    rows = []
    for key, image in _images_by_key(content).items():
        name = f"{at}{image}"
        words = {extension: content.fields.pop(f"{key}.{extension}", None) for extension in FIELDS}
        account.seen += 1
        try:
            found, captions = _words(words, name, want, label)
        except _Unreadable:
            account.leave(BAD_FIELD, name)
            continue
        if kind == "retrieval":
            captions = tuple(dict.fromkeys(line for text in captions for line in _lines(text)))
        vector = content.fields.pop(f"{key}{SEVERAL}", None)
        shows = classes_shown(vector, name) if vector is not None else None
        picture = Picture(name, loader(*content.images[image]))
        rows.append(Row(picture, found, captions, part, shows))
    for member in content.fields:
        content.leave(ALONE, member)
    return rows, content.damage


def read_texts(file: BinaryIO, size: int, at: str, account: Account) -> tuple[list[str], str | None]:
    """The captions of a tar, whose images need not be there, and what is wrong with it, if anything."""
    content = Content(account, at)
    _read_members(file, size, content)
    found: list[str] = []
    for key in dict.fromkeys(os.path.splitext(name)[0] for name in content.fields):
        words = {extension: content.fields.get(f"{key}.{extension}") for extension in FIELDS}
        account.seen += 1
        try:
            found += _words(words, f"{at}{key}", "captions", None)[1]
            account.kept += 1
        except _Unreadable:
            account.leave(BAD_FIELD, f"{at}{key}")
    return found, content.damage


def _read_members(file: BinaryIO, size: int, content: Content) -> None:
    start = file.read(6)
    file.seek(0)
    packed = next((name for mark, name in PACKED.items() if start.startswith(mark)), None)
    if packed is not None:
        content.damage = f"compressed ({packed}); only uncompressed tars are read, so uncompress it"
        return
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _take_member(member, tar, size, content)
            content.damage = _damage(file, tar.offset, size)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:  # of a damaged header
        known = content.images or content.fields
        what = "cut off or damaged" if known else "not readable as an uncompressed tar"
        content.damage = f"{what}: {error}"


def _take_member(member: tarfile.TarInfo, tar: tarfile.TarFile, size: int, content: Content) -> None:
    name = posixpath.normpath(member.name)
    if member.isdir():
        return
    key, suffix = os.path.splitext(name)
    extension = suffix.lower()
    if any(is_hidden(part) for part in name.split("/") if part != ".."):
        content.leave(HIDDEN, name)
    elif not member.isfile() or member.issparse():
        content.leave(NO_FILE, name)
    elif member.offset_data + member.size > size:
        content.leave(CUT, name)
    elif extension in IMAGES:
        if name in content.images:
            content.leave(AGAIN, name)
        content.images[name] = (member.offset_data, member.size)
    elif extension[1:] in FIELDS or (content.several and extension == SEVERAL):
        if key + extension in content.fields:
            content.leave(AGAIN, name)
        file = tar.extractfile(member)
        assert file is not None  # it is a regular file
        content.fields[key + extension] = file.read()
    else:
        content.leave(why_not(name) or NO_FILE, name)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _damage(file: BinaryIO, end: int, size: int) -> str | None:
    """What is wrong at the end of the last member, where a whole tar has its end mark and nothing else."""
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        return f"cut off or damaged at byte {min(end, size):,}"
    while piece := file.read(PIECE):
        if piece.strip(b"\0"):
            return (
                f"has more behind its end mark at byte {end:,}, which is not read (were tars joined by cat?)"
            )
    return None


def _images_by_key(content: Content) -> dict[str, str]:
    """Each sample's key and image. `key.seg.png` is one more image of the sample `key`, unless it has a label
    or caption of its own; a sample's first image is taken, and the others are told.
    """
    spoken = {os.path.splitext(name)[0] for name in content.fields}
    known = spoken | {os.path.splitext(name)[0] for name in content.images}
    samples: dict[str, list[str]] = defaultdict(list)
    for name in content.images:
        key = os.path.splitext(name)[0]
        whole = None if key in spoken else next((short for short in _shorter(key) if short in known), None)
        samples[whole or key].append(name)
    found = {}
    for key, names in samples.items():
        plain = [name for name in names if os.path.splitext(name)[0] == key]
        found[key] = (plain or names)[0]
        for name in names:
            if name != found[key]:
                content.leave(BESIDE, name)
    return found


def _shorter(key: str) -> list[str]:
    """What stands before each dot of a key's last part, the longest first."""
    folder, base = os.path.split(key)
    dots = [place for place, sign in enumerate(base) if sign == "." and place]
    return [os.path.join(folder, base[:place]) for place in reversed(dots)]


class _Unreadable(Exception):
    """A field is no text, or no JSON."""


def _words(
    fields: Mapping[str, bytes | None], name: str, want: Want, asked: str | None
) -> tuple[Label | None, tuple[str, ...]]:
    """A sample's label and captions. Errors: WordsightError for several labels where one is wanted."""
    try:
        texts = {
            key: None if content is None else content.decode("utf-8-sig") for key, content in fields.items()
        }
        described = None if texts["json"] is None else parse_json(texts["json"], f"{name}'s JSON")
    except ValueError as error:  # WordsightError is one too
        raise _Unreadable from error
    inside = described if isinstance(described, dict) else {}
    keys = (asked,) if asked is not None else (*LABEL_KEYS, "cls")
    label = next((inside[key] for key in keys if key in inside), None)
    if asked is None and texts["cls"] is not None:
        label = texts["cls"]
    elif asked is None and not isinstance(described, dict) and described is not None:
        label = described
    if want == "labels":
        label = texts["txt"] if label is None and asked is None else label
        return label_of(label, f"the label of {name}"), ()
    try:
        written = inside.get("caption", inside.get("captions"))
        captions = captions_of(texts["txt"], name) or captions_of(written, name)
        return None if captions or want == "images" else label_of(label, name), captions
    except WordsightError as error:
        raise _Unreadable from error
