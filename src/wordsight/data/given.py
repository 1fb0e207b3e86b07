"""Given: features and labels that come from Python: lists of images, feature matrices, label lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from wordsight.backbones import Backbone, unit
from wordsight.backbones.array_files import as_float32
from wordsight.data.features import Features, image_features
from wordsight.data.labels import check_distinct
from wordsight.data.pictures import is_of_texts, pictures_of
from wordsight.files import WordsightError, visible
from wordsight.tables import method_entry


def is_matrix(X: Any) -> bool:
    """Whether X is a feature matrix rather than a list of images."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and (
            isinstance(X[0], (list, tuple)) or (isinstance(X[0], np.ndarray) and X[0].ndim == 1)
        )
    return len(getattr(X, "shape", ())) == 2 and not is_of_texts(X)


def features_of(X: Any, backbone: Backbone | None, *, views: int = 1, flip: bool = True) -> Features:
    """Unit vectors of a list of images, or of a feature matrix of the backbone's width; of any width without
    a backbone. Errors: WordsightError for another width."""
    if backbone is not None and not is_matrix(X):
        return image_features(backbone, pictures_of(X), views=views, flip=flip)
    matrix = np.array(X)
    matrix = torch.from_numpy(as_float32(matrix) if matrix.dtype == np.float32 else matrix)
    if backbone is not None and matrix.shape[1] != backbone.dim:
        raise WordsightError(
            f"a feature matrix of width {matrix.shape[1]} does not fit backbone {backbone.name!r}, whose "
            f"vectors have {backbone.dim}"
        )
    return Features(unit(matrix)[:, None], list(range(len(matrix))), [])


def encoded_labels(y: Any, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes in sorted order, and which of them each label is. Errors: WordsightError for labels that
    are not one of a kind for each image."""
    # a second or two to import, which predicting need not wait for
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d

    if not images:
        raise WordsightError("there are no images to fit to; give some, with a label each")
    y = column_or_1d(_one_each(y), warn=True)
    if images != len(y):
        raise WordsightError(f"{images} images and {len(y)} labels; each image needs one label")
    kinds = {type(label).__name__ for label in y.tolist()} if y.dtype == object else set()
    if kinds & {"list", "tuple", "dict", "set"}:
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


def _one_each(y: Any) -> Any:
    """The labels, of which a list is not made text by some of them, as numpy would do: nan beside "cat" is
    no text. Errors: WordsightError where some are missing (None, NaN or blank)."""
    import pandas as pd

    y = list(y) if isinstance(y, (Iterator, tuple)) else y
    if isinstance(y, list) and not all(isinstance(label, str) for label in y):
        try:
            listed = np.asarray(y)
        except ValueError:  # of several lengths
            listed = np.array("")
        if listed.dtype.kind in "US":
            listed = np.empty(len(y), dtype=object)
            listed[:] = y
        y = listed
    labels = np.asarray(y, dtype=object)
    if labels.ndim != 1:  # told by who asks
        return y
    blank = np.array([str(label).strip() == "" for label in labels], dtype=bool)
    lacking = np.flatnonzero(pd.isna(labels) | blank)
    if len(lacking):
        raise WordsightError(
            f"{len(lacking)} of {len(labels)} labels are missing, the first at place {lacking[0]}; fit on "
            "the images that have one, and give the others as unlabelled="
        )
    return y


def known_labels(y: Any, classes: np.ndarray, images: int) -> np.ndarray:
    """Which of `classes` each label is. Errors: WordsightError for one that is none of them, is missing, or
    where each image has not one."""
    place = {label: row for row, label in enumerate(classes.tolist())}
    labels = np.asarray(_one_each(y)).tolist()
    if images != len(labels):
        raise WordsightError(f"{images} images and {len(labels)} labels; each image needs one label")
    others = [label for label in labels if label not in place]
    if others:
        raise WordsightError(f"label {others[0]!r} is none of the {len(place)} classes that it was fitted to")
    return np.array([place[label] for label in labels], dtype=np.int64)


def check_spoken(names: Sequence[str], method: str) -> None:
    """Errors: WordsightError where a method that reads words could not tell two classes apart by them."""
    if method_entry(method).words != "none":
        check_distinct(names, "the list of classes")


def names_in(names: Iterable[str], what: str) -> tuple[str, ...]:
    """Errors: WordsightError for a text where a list is wanted, or a name that is no text."""
    if isinstance(names, str):
        raise WordsightError(f"{what}={names!r} is one text; give a list of class names")
    names = list(names)  # a generator is read once
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise WordsightError(f"{what} holds {wrong[0]!r}, a {type(wrong[0]).__name__}; class names are texts")
    if blank := [place for place, name in enumerate(names, 1) if not visible(str(name)).strip()]:
        raise WordsightError(f"{what} has an empty name at place {blank[0]}; give it one")
    return tuple(map(str, names))  # of NumPy's own texts too
