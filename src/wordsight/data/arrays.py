"""Arrays: a file of image vectors as a source. Each row is an image that needs no reading and no tower."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wordsight.data import Encoded
from wordsight.data.account import Account, few
from wordsight.data.rows import Row, Table

if TYPE_CHECKING:
    from wordsight.backbones.arrays import Part

NOT_USABLE = "whose vector is zero or not finite"


def read(path: Path) -> Table:
    """All rows of a file of vectors."""
    from wordsight.backbones.arrays import read_arrays  # with torch, which other forms of data need not

    arrays = read_arrays(path)
    account, rows = Account("vector"), []
    for name, part in arrays.parts.items():
        rows += _rows(name, part, account)
    if arrays.renamed:
        account.remark(f"classes of equal names in {path.name}, called {few(arrays.renamed)} here")
    if arrays.unread:
        account.remark(f"not read of {path.name}: {few(arrays.unread)}")
    return Table(rows, account, dict(enumerate(arrays.classes)), "{}")


def pictures_of_part(part: Part) -> list[Encoded]:
    """All rows as images, whatever they hold."""
    from wordsight.backbones.array_files import as_float32

    vectors = as_float32(np.asarray(part.vectors))
    return [Encoded(name, partial(vectors.__getitem__, row)) for row, name in enumerate(part.names)]


def _rows(name: str, part: Part, account: Account) -> list[Row]:
    from wordsight.backbones.array_files import as_float32

    vectors = as_float32(np.asarray(part.vectors))
    flat = vectors if vectors.ndim == 3 else vectors[:, None]  # [n, views, D]
    finite, known = np.all(np.isfinite(flat), axis=(1, 2)), np.all(np.any(flat, axis=2), axis=1)
    usable = np.logical_and(finite, known).tolist()
    rows = []
    for row, (image, good) in enumerate(zip(part.names, usable)):
        account.seen += 1
        label = -1 if part.labels is None else part.labels[row]
        if not good:
            account.leave(NOT_USABLE, image)
            continue
        picture = Encoded(image, partial(vectors.__getitem__, row))
        rows.append(
            Row(picture, None if label == -1 else label, part="train" if name == "unlabelled" else name)
        )
    return rows
