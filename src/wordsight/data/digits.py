"""Digits: scikit-learn's, which need no download, for first runs and tests."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.rows import Row, Table

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read() -> Table:
    """Half of each class trains and half tests (random_state 0), in scikit-learn's order. Grey levels 0..16
    become 0..255, as RGB.
    """
    rows = list(_rows())
    return Table(rows, Account("image", seen=len(rows)), dict(enumerate(NAMES)), "a photo of the digit {}.")


@cache
def _rows() -> tuple[Row, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8).repeat(3, axis=-1)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    part = dict.fromkeys(map(int, train), "train") | dict.fromkeys(map(int, test), "test")
    return tuple(
        Row(Picture(f"digits[{row}]", partial(images.__getitem__, row)), int(label), part=part[row])
        for row, label in enumerate(labels)
    )
