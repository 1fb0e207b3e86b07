"""Pools: the images without labels that a run may learn from."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np

from wordsight.data import Dataset, Picture, Split
from wordsight.data.sources import read_pictures
from wordsight.data.splits import digests
from wordsight.files import WordsightError

PARTS = ("unlabelled", "train", "val", "test")  # of the data itself

log = logging.getLogger("wordsight")


def candidates(name: str, whole: Dataset, tested: Split | None = None) -> list[Picture]:
    """All images of a source, or of a part of the data.

    Errors: WordsightError for a part that the data has not."""
    if name == "test" and tested is not None:
        return list(tested.pictures)
    if name not in PARTS:
        try:
            return list(read_pictures(name))
        except WordsightError as error:
            raise WordsightError(f"unlabelled={name}: {error}") from error
    part = whole.unlabelled if name == "unlabelled" else getattr(whole, name)
    given = list(part.pictures if isinstance(part, Split) else part or ())
    if not given:
        raise WordsightError(
            f"unlabelled={name}: {whole.name} has no such images; name a folder of images, or one of "
            f"{', '.join(PARTS)}"
        )
    return given


def unlabelled(name: str, whole: Dataset, labelled: Split, tested: Split | None = None) -> Split:
    """The images of a source, or of a part of the data, without those of equal content to `labelled` ones
    and, unless `name` is test, to those that are `tested` on: the data's test part, if none are given. Each
    once.

    Errors: WordsightError for a part that the data has not, and where none is left.
    """
    given = candidates(name, whole, tested)
    left = {digest: "labelled" for digest in digests(labelled.pictures) if digest is not None}
    tested = tested if tested is not None else whole.test
    if name != "test" and tested is not None:
        left |= {digest: "tested on" for digest in digests(tested.pictures) if digest is not None}
    kept: list[Picture] = []
    seen: set[bytes | None] = set()
    out: Counter[str] = Counter()
    for picture, digest in zip(given, digests(given)):
        if digest in left:
            out[left[digest]] += 1
        elif digest is not None and digest in seen:
            out["there twice"] += 1
        else:
            kept.append(picture)
            seen |= {digest} - {None}
    told = ", ".join(f"{count:,} {why}" for why, count in out.items())
    if not kept:
        raise WordsightError(
            f"unlabelled={name} leaves no image to learn from: of {len(given):,}, {told or 'none'}; name "
            f"other images than those with labels"
        )
    if told:
        log.info("unlabelled=%s: left out of %s images: %s", name, f"{len(given):,}", told)
    if name == "test":
        log.info(
            "unlabelled=test: transductive, its figures are not those of a method that sees no test image"
        )
    return Split(kept, np.zeros(len(kept), np.int64))
