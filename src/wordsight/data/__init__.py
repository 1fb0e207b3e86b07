"""Dataset: images with class labels, in splits, or images with captions. The contract, and the way from a
path or a name to one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One image that is not yet read. `load` gives encoded bytes (a file, a tar member, a parquet cell), an
    array or a PIL image.
    """

    name: str  # what a message or a table shows: usually the path
    load: Callable[[], bytes | np.ndarray | Image.Image]


@dataclass(frozen=True)
class Split:
    pictures: Sequence[Picture]
    labels: Int[np.ndarray, " n"]  # indices into Dataset.class_names

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int]) -> Split:
        return Split([self.pictures[i] for i in indices], self.labels[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class Dataset:
    """Named classes with their splits. `test` is None where the source has no test part: what the few-shot
    draw leaves is tested on then.
    """

    name: str
    class_names: tuple[str, ...]  # label order is the source's own, never re-sorted
    train: Split
    val: Split | None = None
    test: Split | None = None
    template: str | None = None  # the source's own template, where it has one
    notes: tuple[
        str, ...
    ] = ()  # what the source left out, in sentences for the user: ignored files, rows whose image is missing


@dataclass(frozen=True)
class Pairs:
    """Images with one or more captions each: what two towers learn from."""

    name: str
    pictures: Sequence[Picture]
    captions: Sequence[tuple[str, ...]]  # of each picture
    notes: tuple[str, ...] = ()  # what was left out, in sentences for the user

    def __len__(self) -> int:
        return len(self.pictures)


def open_dataset(spec: str) -> Dataset:
    """The dataset behind a path or a name; `wordsight.data.sources` lists the forms. No image is read yet."""
    return importlib.import_module("wordsight.data.sources").open_dataset(spec)
