"""Dataset: images with class labels, in splits, or images with captions. The contract, and the way from a
path or a name to one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from wordsight.data.account import Account
from wordsight.data.images import Unreadable, content_digest

ImageValue: TypeAlias = bytes | np.ndarray | Image.Image


@dataclass(frozen=True)
class Picture:
    """One image that is not yet read. `load` gives encoded bytes (a file, a tar member, a parquet cell), an
    array or a PIL image.
    """

    name: str  # what a message or a table shows: the path inside the source
    load: Callable[[], ImageValue]

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that only this content has. Errors: `images.Unreadable` where it cannot be loaded."""
        return self.read()[1]

    def read(self) -> tuple[ImageValue, bytes]:
        """What `load` gives, and its digest, which is kept. Errors: `images.Unreadable` with the reason."""
        try:
            value = self.load()
        except (OSError, ValueError, LookupError) as error:
            raise Unreadable(f"cannot be read: {error}") from error
        digest = self.__dict__["digest"] = content_digest(value)
        return value, digest


class Encoded(Picture):
    """An image that is only known by its vector, which a backbone made elsewhere: `load` gives [D], or [V, D]
    where it was seen in several views. It is not of length one yet.
    """


@dataclass(frozen=True)
class Split:
    pictures: Sequence[Picture]
    labels: Int[np.ndarray, " n"]  # indices into Dataset.class_names
    # which classes each shows, where that may be any number: then `labels` say nothing
    shown: Bool[np.ndarray, "n C"] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int]) -> Split:
        rows = np.asarray(indices, dtype=np.int64)
        shown = None if self.shown is None else self.shown[rows]
        return Split([self.pictures[i] for i in indices], self.labels[rows], shown)


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
    templates: tuple[str, ...] = ()  # all of them, where it brings an ensemble, with {} for the class
    account: Account = field(default_factory=Account)  # what was seen: kept, or left out and why
    unlabelled: Sequence[Picture] = ()  # images that the source gives no label

    @property
    def notes(self) -> tuple[str, ...]:
        """What the source left out and what is remarkable, in sentences for the user."""
        return self.account.notes()


@dataclass(frozen=True)
class Pairs:
    """Images with one or more captions each: what two towers learn from."""

    name: str
    pictures: Sequence[Picture]
    captions: Sequence[tuple[str, ...]]  # of each picture
    account: Account = field(default_factory=Account)  # what was seen: kept, or left out and why

    @property
    def notes(self) -> tuple[str, ...]:
        """What the sources left out and what is remarkable, in sentences for the user."""
        return self.account.notes()

    def __len__(self) -> int:
        return len(self.pictures)


def open_dataset(spec: str, label: str | None = None) -> Dataset:
    """The dataset behind a path or a name; `wordsight.data.sources` lists the forms. `label` names the label
    column of a table. No image is read yet.
    """
    return importlib.import_module("wordsight.data.sources").open_dataset(spec, label)
