"""Corrections: labels that people gave to images that were sent, kept as `fit` reads them."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from wordsight.config import WordsightError
from wordsight.data.images import hash_of, read_image
from wordsight.files import csv_rows, csv_text, held, read_text, write_file

HEADER = ("path", "label", "predicted")
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
WAIT = 10.0  # seconds for another process that writes the same


class Full(WordsightError):
    """As many corrections are kept as may be."""


class Corrections:
    """A CSV of path, label and what was predicted, and the images in a folder beside it. Several processes
    may write the same ones.
    """

    def __init__(self, file: str | Path, most: int):
        """Errors: WordsightError where there can be no such file, or it is another table."""
        self.file, self.most = Path(file).expanduser().absolute(), most
        self.folder = self.file.with_name(f"{self.file.stem}-images")
        self._lock = threading.Lock()
        self._rows()
        self._make_folder()

    def keep(self, image: bytes, label: str, predicted: str, max_pixels: int) -> tuple[str, int]:
        """Keep an image with its label; of an image that has one already, the new one counts. Gives the name
        under which it is kept, which is of its content, and how many there are.

        Errors: Unreadable for what is no image, Full, WordsightError for a full disk."""
        name = f"{hash_of(image).hex()}{_suffix(image, max_pixels)}"
        path = f"{self.folder.name}/{name}"
        self._make_folder()  # somebody may have moved it
        with self._lock, alone(self.folder):
            rows = self._rows()
            if path not in rows and len(rows) >= self.most:
                raise Full(f"{len(rows)} corrections are kept, and no more may be")
            write_file(self.folder / name, image)
            rows[path] = (label, predicted)
            write_file(self.file, csv_text(HEADER, [(where, *row) for where, row in rows.items()]))
        return name, len(rows)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WordsightError(f"{self.folder} cannot be a folder: {error.strerror or error}") from error

    def _rows(self) -> dict[str, tuple[str, str]]:
        if not self.file.exists():
            return {}
        rows = csv_rows(read_text(self.file, "table of corrections"))
        if any(not {"path", "label"} <= row.keys() for row in rows):
            raise WordsightError(f"{self.file} is no table of corrections: it lacks a column path or label")
        if more := sorted({name for row in rows for name in row} - set(HEADER)):
            raise WordsightError(f"{self.file} has the column {more[0]!r}, which would be lost; give another")
        return {row["path"]: (row["label"], row.get("predicted", "")) for row in rows}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, no other process of ours writes there. Errors: WordsightError where one does for long."""
    end = time.monotonic() + WAIT
    while True:
        with held(folder) as ours:
            if ours is not False:
                yield
                return
        if time.monotonic() > end:
            raise WordsightError(f"another process writes labels into {folder}; try again")
        time.sleep(0.02)


def _suffix(image: bytes, max_pixels: int) -> str:
    """Of its file. Errors: Unreadable for what is no image."""
    read_image(image, max_pixels)
    with Image.open(io.BytesIO(image)) as opened:
        return SUFFIXES.get(opened.format or "", ".img")
