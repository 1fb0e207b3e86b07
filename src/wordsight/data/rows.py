"""Rows: what every reader makes of its source; the few-shot way and the pairs way both begin with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.labels import Label
from wordsight.files import read_bytes

Want: TypeAlias = Literal["labels", "captions", "images"]  # what a table's rows are read for

MANIFEST = "manifest.csv"  # a table of labels in a folder, beside the images
CAPTIONS = "captions.csv"  # a table of captions
MAX_BYTES = 2**30  # of one encoded image
SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif "
    ".jp2 .j2k .j2c .jpc .jpf .jpx .tga .mpo .qoi"
)
IMAGES = frozenset(SUFFIXES.split())
NOT_READ = {
    "in HEIC or HEIF, which is not read here (convert them to JPEG)": ".heic .heif .heics .hif",
    "in a camera's raw format, which is not read here (develop them to JPEG or PNG)": (
        ".raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .x3f .3fr .iiq .erf .mrw"
    ),
    "in an image format that is not read here (convert them to PNG or JPEG)": (
        ".svg .svgz .psd .psb .xcf .ai .eps .pdf .jxl .exr .hdr .dcm .dicom .nii .ico .icns .emf .wmf .pcx"
    ),
    "that are films (take single frames)": ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .3gp",
}
OF_SUFFIX = {suffix: reason for reason, suffixes in NOT_READ.items() for suffix in suffixes.split()}
NO_SUFFIX = "without a suffix (name them .jpg, .png, ... if they are images)"
NO_IMAGE = "of no image format"


class Row(NamedTuple):
    """One image with what its source says of it."""

    picture: Picture
    label: Label | None = None  # None: the source gives it none
    captions: tuple[str, ...] = ()
    part: str = "train"  # train, val or test
    shows: tuple[bool, ...] | None = None  # whether each class, where it may have any number of them


@dataclass
class Table:
    """All rows of a source, in its order, with the names of its classes in label order."""

    rows: list[Row]
    account: Account
    names: Mapping[Label, str] = field(default_factory=dict)
    template: str | None = None
    templates: tuple[str, ...] = ()  # all that the source brings, with {} for the class

    def __post_init__(self) -> None:
        self.template = self.template or next(iter(self.templates), None)


def why_not(name: str) -> str | None:
    """Why a file of this name is no image that is read here; None where it is one."""
    stem, dot, last = name.rpartition(".")
    suffix = (dot + last).lower() if stem and "/" not in last else ""
    if suffix in IMAGES:
        return None
    return OF_SUFFIX.get(suffix, NO_IMAGE) if suffix else NO_SUFFIX


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or an editor and not to the data."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")


def shown(name: str) -> str:
    """A file name as text, whatever its bytes: those that are no UTF-8 are written out as \\xe9."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def read_file(path: str) -> bytes:
    """An image file's bytes. Errors: ValueError for a pipe or a device, or a file that is too large."""
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes; an image file may have {MAX_BYTES:,}")
    return read_bytes(path, "image")


def read_part(path: str, offset: int, size: int) -> bytes:
    """A part of a file, as a member lies in a tar. Errors: ValueError where the file has become shorter."""
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{path} is shorter than when it was opened")
    return content


def is_file(path: str) -> bool:
    """Whether a regular file is there; a pipe or a device is none, since reading it could wait for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False


def has_table(folder: Path) -> bool:
    """Whether a folder says itself, in a table, which images it holds."""
    return (folder / MANIFEST).is_file() or (folder / CAPTIONS).is_file()
