"""Given: images that come from Python: paths, PIL images and arrays, or a ready feature matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wordsight.data import Picture
from wordsight.files import WordsightError, read_bytes


def pictures_of(images: Sequence[Any]) -> list[Picture]:
    """Paths, PIL images and arrays as pictures. Errors: WordsightError for anything else."""
    if isinstance(images, (str, Path, Image.Image)):
        raise WordsightError(f"expected a list of images, not one {type(images).__name__}; put it in a list")
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (3, 4):
        raise WordsightError(
            f"expected a list of images; an array of shape {images.shape} is one image, so put it in a list"
        )
    return [_picture(image, f"image {index}") for index, image in enumerate(images)]


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


def is_matrix(X: Any) -> bool:
    """Whether X is a feature matrix rather than a list of images."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and (
            isinstance(X[0], (list, tuple)) or (isinstance(X[0], np.ndarray) and X[0].ndim == 1)
        )
    return len(getattr(X, "shape", ())) == 2


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, "image")
    except WordsightError as error:  # belongs to this image alone
        raise OSError(str(error)) from error
