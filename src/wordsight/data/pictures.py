"""Pictures: images that come from Python or by name: paths, PIL images, arrays, folders and tables, one after
another, what is said of each, and what became of it. Imports no torch."""

from __future__ import annotations

import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL import Image

from wordsight.config import is_vectors
from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.images import MAX_PIXELS, Unreadable, read_image
from wordsight.data.rows import read_file
from wordsight.data.sources import read_pictures
from wordsight.data.tables import is_table
from wordsight.data.walk import Walker
from wordsight.early import check_reading
from wordsight.files import WordsightError, csv_line, read_bytes, writing
from wordsight.workers import progress

Said = TypeVar("Said")
UNREAD = "that cannot be read"  # the reason of images that are skipped

log = logging.getLogger("wordsight")


class NoneReadable(WordsightError):
    """No picture of many could be read; `skipped` has each one's name and reason."""

    def __init__(self, skipped: list[tuple[str, str]]):
        name, reason = skipped[0]
        super().__init__(f"none of {len(skipped)} images could be read; the first: {name}: {reason}")
        self.skipped = skipped


def pictures_of(images: Iterable[Any]) -> list[Picture]:
    """Paths, PIL images and arrays as pictures. Errors: WordsightError for anything else."""
    return [_picture(image, f"image {index}") for index, image in enumerate(_listed(images))]


def _listed(images: Iterable[Any]) -> list[Any]:
    """A list of images, in whatever holds them. Errors: WordsightError for one image, or a table of several
    columns."""
    if isinstance(images, (str, Path, Image.Image)):
        raise WordsightError(f"expected a list of images, not one {type(images).__name__}; put it in a list")
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (3, 4):
        raise WordsightError(
            f"expected a list of images; an array of shape {images.shape} is one image, so put it in a list"
        )
    if is_of_texts(images):  # a table of paths, as scikit-learn's pipelines pass them on
        table = np.asarray(images)
        if table.shape[1] != 1:
            raise WordsightError(
                f"expected a list of images; this is a table of {table.shape[1]} columns: give that of paths"
            )
        images = table[:, 0].tolist()
    return list(images)


def is_of_texts(images: Any) -> bool:
    """Whether this is a table (an array or a data frame) of names and not of numbers."""
    shape, kind = getattr(images, "shape", ()), getattr(images, "dtype", None)
    if len(shape) != 2 or not all(shape):
        return False
    kind = getattr(np.asarray(images).dtype if kind is None else kind, "kind", "")
    return kind == "U" or (kind == "O" and isinstance(np.asarray(images)[0, 0], (str, Path)))


def _picture(image: Any, name: str) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, Path)):
        return Picture(str(image), partial(_read, Path(image).expanduser()))
    if isinstance(image, (Image.Image, np.ndarray)):
        return Picture(name, lambda: image)
    raise WordsightError(
        f"{name} is a {type(image).__name__}; an image is a path, a PIL image or a uint8 array [H, W, 3]"
    )


def pictures_in(images: Iterable[Any], account: Account) -> Iterator[Picture]:
    """The images that were given, those of folders and tables too, without a list of them all."""
    images = _listed(images)
    for image, picture in zip(images, pictures_of(images)):
        path = Path(image).expanduser() if isinstance(image, (str, Path)) else None
        if path is not None and path.is_dir():
            yield from _below(path, account)
        elif path is not None and (is_table(path) or is_vectors(str(path))):
            yield from read_pictures(path, account)
        else:
            account.seen, account.kept = account.seen + 1, account.kept + 1
            yield picture


class Reading:
    """What became of images that were given in any number: `account` has what folders held beside them,
    `skipped` those that could not be read, as {"image", "reason"}.
    """

    def __init__(self) -> None:
        self.account, self.skipped = Account(), list[dict[str, str]]()

    def skip(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Images that cannot be read, with why; each is told."""
        for name, reason in reasons:
            log.warning("skipped %s: %s", name, reason)
            self.skipped.append({"image": name, "reason": reason})

    def end(self, kept: int) -> None:
        """All were asked for, and so many could be read. Errors: WordsightError where that is none."""
        self.account.tell()
        if self.skipped and not kept:
            raise NoneReadable([(entry["image"], entry["reason"]) for entry in self.skipped])
        if not kept:
            raise WordsightError(
                "there is no image among what was given; give image files, or folders of them"
            )


class EachImage(ABC, Generic[Said]):
    """What is said of images, in their order and as it is asked for, so that as many as a disk holds need no
    more memory than a few hundred: iterate once.

    `skipped` has {"image", "reason"} of each image that could not be read, `account` what folders held beside
    images; both are whole at the end. `csv` is a file that gets a line an image. Iterating ends in a
    WordsightError where there is no image that can be read."""

    at_once: ClassVar[int] = 256  # images that are read together
    counted: ClassVar[str] = "images"  # by progress

    def __init__(
        self,
        images: Sequence[Any],
        *,
        max_pixels: int | None = None,
        csv: str | Path | None = None,
        reading: Reading | None = None,
    ):
        check_reading(max_pixels, csv, images)
        self._reading = reading or Reading()
        self.account, self.skipped = self._reading.account, self._reading.skipped
        self._images, self._max_pixels = images, max_pixels
        self._csv = None if csv is None else Path(csv).expanduser()

    @abstractmethod
    def _of(self, batch: Sequence[Picture]) -> Iterator[Said]:
        """What is said of those pictures of a batch that can be read; the others are skipped (`_skip`)."""

    @abstractmethod
    def _header(self) -> Sequence[str]:
        """The columns of the table."""

    @abstractmethod
    def _row(self, said: Said) -> Sequence[Any]:
        """The line of one image."""

    def _skip(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Images that cannot be read, with why; each is told."""
        self._reading.skip(reasons)

    def __iter__(self) -> Iterator[Said]:
        if self._csv is None:
            yield from self._all()
            return
        with writing(self._csv) as file:
            file.write(csv_line(self._header()))
            for said in self._all():
                file.write(csv_line(self._row(said)))
                yield said

    def _all(self) -> Iterator[Said]:
        pictures, kept = pictures_in(self._images, self.account), 0
        with progress(self.counted) as advance:
            while batch := list(itertools.islice(pictures, self.at_once)):
                missing, told = len(batch), len(self.skipped)
                for said in self._of(batch):
                    yield said
                    advance()
                    kept, missing = kept + 1, missing - 1
                advance(missing)
                if missing:
                    self.account.kept -= missing
                    self.account.leave(UNREAD, [one["image"] for one in self.skipped[told:]], missing)
        self._reading.end(kept)


def readable(
    pictures: Sequence[Picture], max_pixels: int | None = None
) -> tuple[dict[int, Image.Image], list[tuple[str, str]]]:
    """The pictures that can be read, RGB and upright, by their places, and the names of the others with why
    not.
    """
    images, reasons = {}, []
    for place, picture in enumerate(pictures):
        try:
            images[place] = read_image(picture.read()[0], max_pixels or MAX_PIXELS)
        except Unreadable as error:
            reasons.append((picture.name, str(error)))
    return images, reasons


def _below(folder: Path, account: Account) -> Iterator[Picture]:
    """The images at any depth of a folder, under paths that begin as it was typed."""
    root = folder.absolute()
    walker = Walker(root, account, read_anyway=[os.path.realpath(root)])
    for path, _ in walker.images(root):
        account.kept += 1
        yield Picture(str(folder / os.path.relpath(path, root)), partial(read_file, path))


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, "image")
    except WordsightError as error:  # belongs to this image alone
        raise OSError(str(error)) from error
