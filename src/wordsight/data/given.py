"""Given: images and labels that come from Python: paths, PIL images, arrays, feature matrices, label
lists.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wordsight.backbones import Backbone, unit
from wordsight.config import is_vectors
from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.features import Features, NoneReadable, image_features
from wordsight.data.images import MAX_PIXELS, Unreadable, read_image
from wordsight.data.rows import read_file
from wordsight.data.sources import read_pictures
from wordsight.data.tables import is_table
from wordsight.data.walk import Walker
from wordsight.files import WordsightError, read_bytes

log = logging.getLogger("wordsight")


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


def features_of(X: Any, backbone: Backbone | None, *, views: int = 1, flip: bool = True) -> Features:
    """Unit vectors of a list of images, or of a feature matrix of the backbone's width; of any width without
    a backbone. Errors: WordsightError for another width."""
    if backbone is not None and not is_matrix(X):
        return image_features(backbone, pictures_of(X), views=views, flip=flip)
    matrix = torch.from_numpy(np.array(X))
    if backbone is not None and matrix.shape[1] != backbone.dim:
        raise WordsightError(
            f"a feature matrix of width {matrix.shape[1]} does not fit backbone {backbone.name!r}, whose "
            f"vectors have {backbone.dim}"
        )
    return Features(unit(matrix)[:, None], list(range(len(matrix))), [])


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, "image")
    except WordsightError as error:  # belongs to this image alone
        raise OSError(str(error)) from error


def encoded_labels(y: Any, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes in sorted order, and which of them each label is. Errors: WordsightError for labels that
    are not one of a kind for each image."""
    # a second or two to import, which predicting need not wait for
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d

    y = column_or_1d(y, warn=True)
    if images != len(y):
        raise WordsightError(f"{images} images and {len(y)} labels; each image needs one label")
    kinds = {type(label).__name__ for label in y.tolist()} if y.dtype == object else set()
    if kinds & {"NoneType", "list", "tuple", "dict", "set"}:
        raise WordsightError(f"labels are of type {', '.join(sorted(kinds))}; each image needs one label")
    if len(kinds) > 1:
        raise WordsightError(
            f"labels are of several types ({', '.join(sorted(kinds))}); give all as text, or all as numbers"
        )
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise WordsightError(
            f"all labels are of one class, {str(classes[0])!r}; at least 2 classes are needed to choose among"
        )
    return classes, labels


def known_labels(y: Sequence[Any], classes: np.ndarray) -> np.ndarray:
    """Which of `classes` each label is. Errors: WordsightError for one that is none of them."""
    place = {label: row for row, label in enumerate(classes.tolist())}
    labels = np.asarray(y).tolist()
    others = [label for label in labels if label not in place]
    if others:
        raise WordsightError(f"label {others[0]!r} is none of the {len(place)} classes that it was fitted to")
    return np.array([place[label] for label in labels], dtype=np.int64)


def names_in(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Errors: WordsightError for a text where a list is wanted, or a name that is no text."""
    if isinstance(names, str):
        raise WordsightError(f"{what}={names!r} is one text; give a list of class names")
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise WordsightError(f"{what} holds {wrong[0]!r}, a {type(wrong[0]).__name__}; class names are texts")
    return tuple(map(str, names))  # of NumPy's own texts too


def pictures_in(images: Sequence[Any], account: Account) -> Iterator[Picture]:
    """The images that were given, those of folders and tables too, without a list of them all."""
    for image, picture in zip(images, pictures_of(images)):
        path = Path(image).expanduser() if isinstance(image, (str, Path)) else None
        if path is not None and path.is_dir():
            yield from _below(path, account)
        elif path is not None and (is_table(path) or is_vectors(str(path))):
            yield from read_pictures(path, account)
        else:
            account.seen, account.kept = account.seen + 1, account.kept + 1
            yield picture


class Reading:
    """What became of images that were given in any number: `account` has what folders held beside them,
    `skipped` those that could not be read, as {"image", "reason"}.
    """

    def __init__(self) -> None:
        self.account, self.skipped = Account(), list[dict[str, str]]()

    def skip(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Images that cannot be read, with why; each is told."""
        for name, reason in reasons:
            log.warning("skipped %s: %s", name, reason)
            self.skipped.append({"image": name, "reason": reason})

    def end(self, kept: int) -> None:
        """All were asked for, and so many could be read. Errors: WordsightError where that is none."""
        self.account.tell()
        if self.skipped and not kept:
            raise NoneReadable([(entry["image"], entry["reason"]) for entry in self.skipped])
        if not kept:
            raise WordsightError(
                "there is no image among what was given; give image files, or folders of them"
            )


def readable(
    pictures: Sequence[Picture], max_pixels: int | None = None
) -> tuple[dict[int, Image.Image], list[tuple[str, str]]]:
    """The pictures that can be read, RGB and upright, by their places, and the names of the others with why
    not.
    """
    images, reasons = {}, []
    for place, picture in enumerate(pictures):
        try:
            images[place] = read_image(picture.read()[0], max_pixels or MAX_PIXELS)
        except Unreadable as error:
            reasons.append((picture.name, str(error)))
    return images, reasons


def _below(folder: Path, account: Account) -> Iterator[Picture]:
    """The images at any depth of a folder, under paths that begin as it was typed."""
    root = folder.absolute()
    walker = Walker(root, account, read_anyway=[os.path.realpath(root)])
    for path, _ in walker.images(root):
        account.kept += 1
        yield Picture(str(folder / os.path.relpath(path, root)), partial(read_file, path))
