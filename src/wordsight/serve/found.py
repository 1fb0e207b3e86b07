"""Found: a folder of images that can be searched, and small copies of those that were found."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data.images import Unreadable, hash_of, read_image, small_jpeg
from wordsight.files import read_bytes
from wordsight.search import Index, closest

SIZES = range(16, 1025)  # of their longer side, in pixels
REMEMBERED = 256  # copies that are kept in memory


class Found:
    """An index whose images are known by an id, which tells nothing of where they lie."""

    def __init__(self, data: str, backbone: Backbone, max_pixels: int):
        self.index = Index.open(data, backbone, max_pixels=max_pixels)
        self.max_pixels = max_pixels
        self.root = Path(data).expanduser()
        names = [first for first, *_ in self.index.names]
        self.ids = [hash_of(name.encode("utf-8", "surrogatepass")).hex() for name in names]
        self.paths = dict(zip(self.ids, names))
        self._made = lru_cache(REMEMBERED)(self._make)

    def __len__(self) -> int:
        return len(self.ids)

    def closest(self, vector: np.ndarray, k: int) -> list[dict[str, Any]]:
        """The `k` images closest to a unit vector [D]."""
        scores, rows = closest(torch.from_numpy(vector)[None], self.index.vectors, k)
        return [self._entry(row, score) for row, score in zip(rows[0].tolist(), scores[0].tolist())]

    def _entry(self, row: int, score: float) -> dict[str, Any]:
        first, *copies = (self._shown(name) for name in self.index.names[row])
        url = f"/v1/images/{self.ids[row]}"
        return {"image": first, "score": round(score, 4), "copies": copies, "url": url}

    def _shown(self, name: str) -> str:
        """A name inside the folder that is searched."""
        path = Path(name).expanduser()
        inside = path.is_relative_to(self.root)
        return str(path.relative_to(self.root)) if inside else path.name

    def copy(self, one: str, size: int) -> bytes:
        """A JPEG of an image, its longer side `size` pixels at most. Errors: KeyError for an unknown id,
        Unreadable where it has gone.
        """
        return self._made(self.paths[one], size)

    def _make(self, path: str, size: int) -> bytes:
        try:
            image = read_image(read_bytes(Path(path).expanduser(), "image"), self.max_pixels)
        except WordsightError as error:
            raise Unreadable("the image is no longer there") from error
        return small_jpeg(image, size)
