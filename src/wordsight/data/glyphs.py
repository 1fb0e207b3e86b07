"""Glyphs: whether images are what the bundled micro CLIP knows, single characters drawn bright on black."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image

from wordsight.data import Picture
from wordsight.data.images import Unreadable, read_image
from wordsight.files import WordsightError

SAMPLE = 24  # images that are looked at, evenly over all
SIDE = 32  # pixels of their enlarged or reduced copies, as the micro CLIP sees them
GREY = 0.05  # mean distance of the strongest from the weakest colour, at most; of photos it is 0.1 and more
DARK = 0.15  # the border's median brightness, at most; on scikit-learn's digits it is 0, of photos about 0.45

log = logging.getLogger("wordsight")


def is_glyph(image: Image.Image) -> bool:
    """Whether an RGB image is nearly grey, with a border that is nearly black."""
    pixels = np.asarray(image.resize((SIDE, SIDE)), np.float32) / 255
    light = pixels.mean(2)
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    spread = (pixels.max(2) - pixels.min(2)).mean()
    return bool(spread <= GREY and np.median(border) <= DARK)


def are_photos(backbone: str, pictures: Sequence[Picture]) -> tuple[int, int] | None:
    """Where `backbone` is the micro CLIP and most of a sample of these images are nothing that it knows: how
    many, and of how many. None: all is well."""
    if backbone != "micro":
        return None
    looked = []
    for place in np.linspace(0, len(pictures) - 1, min(SAMPLE, len(pictures)), dtype=int):
        with contextlib.suppress(Unreadable, OSError, ValueError):
            looked.append(is_glyph(read_image(pictures[place].load())))
    return (len(looked) - sum(looked), len(looked)) if sum(looked) < len(looked) / 2 else None


def warn_of_photos(backbone: str, pictures: Sequence[Picture]) -> None:
    """Say so where `backbone` is the micro CLIP and most of these images are nothing that it knows."""
    found = are_photos(backbone, pictures)
    if found is not None:
        log.warning(
            "backbone=micro knows single characters, bright on black, and nothing else; %d of %d images that "
            "were looked at are none, so its figures say little about them. backbone=openai/"
            "clip-vit-base-patch16 (the default) knows photos",
            *found,
        )


def refuse_photos(backbone: str, pool: Sequence[Picture], labelled: Sequence[Picture]) -> None:
    """Errors: WordsightError where the labelled images are characters that the micro CLIP knows and those of
    a pool are not."""
    found = are_photos(backbone, pool)
    if found is not None and are_photos(backbone, labelled) is None:
        raise WordsightError(
            f"backbone={backbone} knows single characters, bright on black, and {found[0]} of {found[1]} "
            f"images that were looked at are none; give a pool of the same kind as the labelled images"
        )
