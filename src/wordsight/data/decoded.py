"""Decoded: the images of a source one after another, for what needs pixels and keeps none of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from wordsight.data import Picture
from wordsight.data.images import Unreadable, read_image
from wordsight.data.pairs import open_pairs
from wordsight.data.sources import read_pictures

log = logging.getLogger("wordsight")


def decoded_images(path: str | Path) -> Iterator[Image.Image]:
    """The images of a folder or table; one that cannot be read is skipped and named."""
    for image, _ in _readable((picture, ()) for picture in read_pictures(path)):
        yield image


def decoded_pairs(spec: str) -> Iterator[tuple[Image.Image, tuple[str, ...]]]:
    """Images with their captions, of a source's training part; what is left out is told."""
    pairs = open_pairs(spec)
    pairs.account.tell()
    return _readable(zip(pairs.pictures, pairs.captions))


def _readable(
    pairs: Iterable[tuple[Picture, tuple[str, ...]]],
) -> Iterator[tuple[Image.Image, tuple[str, ...]]]:
    for picture, captions in pairs:
        try:
            yield read_image(picture.read()[0]), captions
        except Unreadable as error:
            log.warning("skipped %s: %s", picture.name, error)
