"""Arrays: a file of vectors that were computed elsewhere, read into its parts: image vectors with labels,
class names, and perhaps the text vectors of names and of sentences.

.npz (texts as NumPy's text arrays; nothing pickled) or .safetensors (texts as JSON lists in the metadata).
Each thing has one name here and is found under those that the field gives it: `train_features` is `train`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wordsight.backbones.array_files import KEYS, as_float32, read_npz, read_safetensors
from wordsight.config import is_vectors
from wordsight.files import WordsightError, nfc
from wordsight.reader import nearest

PARTS = ("train", "val", "test", "unlabelled")
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled", "pool"),
}
VECTORS = ("vectors", "features", "image_features", "image_vectors", "embeddings", "images", "x")
LABELS = ("label", "labels", "targets", "target", "y")
NAMES = ("path", "paths", "names", "files", "image")
NUMBERS = "fiu"  # NumPy's kinds of them
SAME = 0.99  # cosine of two vectors of one text, which may differ by rounding
LOGIT_SCALE = 100.0  # CLIP's, where a file gives none
LOG_SCALES = (3.0, 5.0)  # where a logit scale is CLIP's raw parameter, the logarithm: ln 100 is 4.6


@dataclass(frozen=True)
class Part:
    """Images of one part. A label of -1, or the empty text, is none."""

    vectors: Float[np.ndarray, "n *V D"]
    labels: Sequence[int | str] | None
    names: Sequence[str]


@dataclass(frozen=True)
class Arrays:
    """All of a file that is read here. Vectors are as they stand there, of any length."""

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    text: Float[Tensor, "C D"] | None = None  # of each class's name
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each class
    sentence_vectors: Mapping[str, Float[Tensor, "n D"]] = field(default_factory=dict)
    logit_scale: float = LOGIT_SCALE
    unread: tuple[str, ...] = ()  # keys that mean nothing here
    renamed: tuple[str, ...] = ()  # classes that have the name of one before them

    @property
    def dim(self) -> int:
        """D of all vectors."""
        return int(
            next(iter(self.parts.values())).vectors.shape[-1] if self.text is None else self.text.shape[-1]
        )


def is_arrays(path: str | Path) -> bool:
    """Whether a name is a file of vectors: every .npz, and a .safetensors that has its classes."""
    path = Path(path).expanduser()
    if not is_vectors(path.name) or not path.is_file():
        return False
    if path.suffix == ".npz":
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return not set(KEYS["classes"]).isdisjoint(map(str.lower, file.metadata() or {}))
    except (SafetensorError, OSError, ValueError):
        return False


def read_arrays(path: str | Path) -> Arrays:
    """Errors: WordsightError for a file that cannot be read or holds pickles, lacks vectors or class names,
    or whose widths, counts or labels do not fit one another."""
    path = Path(path).expanduser()
    found = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    known = {key.lower(): key for key in found}
    if len(known) < len(found):
        twice = next(key for key in found if known[key.lower()] != key)
        raise WordsightError(f"{path} holds both {twice} and {known[twice.lower()]}; rename one of them")
    used: set[str] = set()

    def take(names: Sequence[str]) -> Any:
        for name in names:
            if name in known:
                used.add(known[name])
                return found[known[name]]
        return None

    classes = take(KEYS["classes"])
    parts = _parts(path, take, known)
    names = _class_names(path, classes, parts, known)
    parts = {part: _checked(path, part, one, names) for part, one in parts.items()}
    widths = {part: one.vectors.shape[-1] for part, one in parts.items()}
    text = _class_vectors(path, take(KEYS["text"]), names, widths)
    sentences, vectors = _sentences(
        path, [take(KEYS[key]) for key in ("sentences", "sentence_label", "sentence_vectors")], names
    )
    widths |= {"text": text.shape[-1]} if text is not None else {}
    widths |= {"sentence_vectors": next(iter(vectors.values())).shape[-1]} if vectors else {}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise WordsightError(
            f"{path} holds vectors of several widths ({listed}); all must come from one backbone"
        )
    scale = _scale(path, take(KEYS["logit_scale"]))
    given = names if classes is None else {nfc(str(one).strip()) for one in np.asarray(classes).ravel()}
    renamed = tuple(name for name in names if name not in given)
    unread = tuple(sorted(set(found) - used))
    return Arrays(names, parts, text, sentences, vectors, scale, unread, renamed)


def _parts(path: Path, take: Any, known: Mapping[str, str]) -> dict[str, Part]:
    """The parts as they stand under names of their own, or as rows of one table."""
    parts = {}
    for part, aliases in PART_NAMES.items():
        vectors = take([name for alias in aliases for name in _of_part(alias, ("", *VECTORS))])
        if vectors is not None:
            labels = take([name for alias in aliases for name in _of_part(alias, LABELS)])
            names = take([name for alias in aliases for name in _of_part(alias, NAMES)])
            parts[part] = _part(path, part, vectors, labels, names)
    vectors = take(VECTORS)
    if parts and vectors is None:
        return parts
    if parts or vectors is None:
        raise WordsightError(
            f"{path} holds {_listed(known)}; image vectors stand under train, val, test and unlabelled, "
            f"or under vectors with label and part ({'both' if parts else 'neither'} here)"
        )
    whole = _part(path, "vectors", vectors, take(LABELS), take(NAMES))
    of = take(KEYS["part"])
    if of is None:
        return {"train": whole} if whole.labels is not None else {"unlabelled": whole}
    if np.shape(of) != (len(whole.vectors),):
        raise WordsightError(
            f"{path} holds {len(whole.vectors)} vectors, and parts of shape {list(np.shape(of))}; give one a "
            f"vector"
        )
    of = [str(one).strip().lower() for one in np.asarray(of).tolist()]
    meant = {alias: part for part, aliases in PART_NAMES.items() for alias in aliases}
    if wrong := sorted(set(of) - meant.keys()):
        raise WordsightError(f"{path} holds the part {wrong[0]!r}, which is none of {', '.join(meant)}")
    rows = {part: [row for row, one in enumerate(of) if meant[one] == part] for part in PARTS}
    return {part: _rows(whole, chosen) for part, chosen in rows.items() if chosen}


def _of_part(part: str, kinds: Sequence[str]) -> list[str]:
    return [
        name for kind in kinds for name in ((part,) if not kind else (f"{part}_{kind}", f"{kind}_{part}"))
    ]


def _rows(part: Part, rows: Sequence[int]) -> Part:
    labels = None if part.labels is None else [part.labels[row] for row in rows]
    return Part(part.vectors[list(rows)], labels, [part.names[row] for row in rows])


def _part(path: Path, name: str, vectors: Any, labels: Any, names: Any) -> Part:
    vectors = np.asarray(vectors)
    if vectors.ndim not in (2, 3) or vectors.dtype.kind not in NUMBERS or 0 in vectors.shape[1:]:
        raise WordsightError(
            f"{name} of {path} is {vectors.dtype} of shape {list(vectors.shape)}; image vectors are "
            "numbers of shape [images, width], or [images, views, width]"
        )
    if labels is not None and np.asarray(labels).dtype.kind not in "fiubU":
        kind = np.asarray(labels).dtype
        raise WordsightError(
            f"labels of {name} of {path} are {kind}; all are places in classes, or all names"
        )
    for what, values in (("labels", labels), ("names", names)):
        if values is not None and np.asarray(values).shape != (len(vectors),):
            raise WordsightError(
                f"{name} of {path} holds {len(vectors)} vectors, but {what} of shape "
                f"{list(np.asarray(values).shape)}"
            )
    given = [f"{name}/{row}" for row in range(len(vectors))] if names is None else [str(one) for one in names]
    return Part(vectors, None if labels is None else np.asarray(labels).tolist(), given)


def _class_names(
    path: Path, classes: Any, parts: Mapping[str, Part], known: Mapping[str, str]
) -> tuple[str, ...]:
    labels = [label for part in parts.values() for label in part.labels or ()]
    texts = all(isinstance(label, str) for label in labels)
    if classes is not None:
        if np.asarray(classes).dtype.kind not in "fiuU":
            raise WordsightError(f"classes of {path} are {np.asarray(classes).dtype}; give a list of texts")
        names = tuple(nfc(str(name).strip()) for name in np.asarray(classes).ravel().tolist())
        if texts and labels and len(set(names)) < len(names):
            raise WordsightError(
                f"classes of {path} hold a name twice, so labels that are names do not say which is meant; "
                f"give labels that are places in classes"
            )
        seen, apart = Counter[str](), []
        for name in names:  # ImageNet has two cranes and two missiles
            seen[name] += 1
            apart.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
        return tuple(apart)
    if not texts:
        raise WordsightError(
            f"{path} holds {_listed(known)}, but no class names; add classes, the list of names in the "
            f"order of the labels' numbers (or give labels that are names)"
        )
    return tuple(sorted({nfc(label.strip()) for label in map(str, labels) if label.strip()}))


def _checked(path: Path, name: str, part: Part, classes: tuple[str, ...]) -> Part:
    """Labels as places in `classes`, -1 where there is none."""
    if part.labels is None:
        if name in ("train", "val", "test"):
            raise WordsightError(
                f"{name} of {path} has no labels; name them {name}_label, or the part unlabelled"
            )
        return part
    place = {label: row for row, label in enumerate(classes)}
    labels = [nfc(label.strip()) if isinstance(label, str) else label for label in part.labels]
    for label in set(labels):
        if isinstance(label, str) and label and label not in place:
            raise WordsightError(
                f"{name} of {path} has the label {label!r}, which is none of its classes"
                f"{nearest(label, classes)}"
            )
        if not isinstance(label, str) and label not in range(-1, len(classes)):
            raise WordsightError(
                f"{name} of {path} has the label {label}, but there are {len(classes)} classes: labels "
                f"are 0 to {len(classes) - 1}, and -1 for none"
            )
    found = [place.get(label, -1) if isinstance(label, str) else int(label) for label in labels]
    return Part(part.vectors, found, part.names)


def _class_vectors(
    path: Path, text: Any, classes: tuple[str, ...], widths: Mapping[str, int]
) -> Tensor | None:
    """[C, D]; a file may hold it as [D, C], as Tip-Adapter's does."""
    if text is None:
        return None
    text = _as_numbers(path, "the class vectors", text)
    width = next(iter(widths.values()), 0)
    if text.ndim == 2 and text.shape == (width, len(classes)) and text.shape != (len(classes), width):
        text = text.T
    if text.ndim != 2 or len(text) != len(classes):
        raise WordsightError(
            f"the class vectors of {path} have shape {list(text.shape)}; one of each of the "
            f"{len(classes)} classes is needed"
        )
    return _usable(path, "the class vectors", text)


def _sentences(
    path: Path, found: Sequence[Any], classes: tuple[str, ...]
) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
    """Each class's sentences, and their vectors."""
    texts, labels, vectors = found
    if vectors is None and texts is None:
        return {}, {}
    if texts is None or vectors is None or labels is None:
        raise WordsightError(
            f"{path} holds only a part of its sentences; sentences (texts), sentence_label and "
            "sentence_vectors belong together"
        )
    vectors = _as_numbers(path, "sentence_vectors", vectors)
    if vectors.ndim != 2:
        raise WordsightError(f"sentence_vectors of {path} have shape {list(vectors.shape)}; it is [N, D]")
    part = _checked(path, "sentence_label", _part(path, "sentence_vectors", vectors, labels, texts), classes)
    of: dict[str, list[int]] = {name: [] for name in classes}
    for row, label in enumerate(part.labels or ()):
        if label != -1:
            of[classes[int(label)]].append(row)
    usable = _usable(path, "sentence_vectors", vectors)
    _check_once(path, part.names, usable)
    return (
        {name: tuple(part.names[row] for row in rows) for name, rows in of.items()},
        {name: usable[rows] for name, rows in of.items() if rows},
    )


def _check_once(path: Path, texts: Sequence[str], vectors: Float[Tensor, "N D"]) -> None:
    """Errors: WordsightError where a text has two vectors."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        before = first.setdefault(text, row)
        if before != row and torch.cosine_similarity(vectors[before], vectors[row], dim=0) < SAME:
            raise WordsightError(
                f"sentences of {path} hold {text!r} twice, in rows {before} and {row}, with different vectors"
            )


def _as_numbers(path: Path, what: str, values: Any) -> np.ndarray:
    """As `as_float32`. Errors: WordsightError for texts and the like."""
    values = np.asarray(values)
    if values.dtype.kind not in NUMBERS:
        raise WordsightError(f"{what} of {path} are {values.dtype}; vectors are numbers")
    return as_float32(values)


def _usable(path: Path, what: str, vectors: np.ndarray) -> Tensor:
    wrong = np.flatnonzero(~(np.isfinite(vectors).all(1) & vectors.any(1)))
    if len(wrong):
        raise WordsightError(
            f"{what} of {path} are not finite, or zero, in {len(wrong)} rows; the first is {wrong[0]}"
        )
    return torch.from_numpy(np.ascontiguousarray(vectors))


def _scale(path: Path, scale: Any) -> float:
    if scale is None:
        return LOGIT_SCALE
    scale = np.asarray(scale).ravel()
    if scale.dtype.kind not in NUMBERS or scale.shape != (1,) or not 0 < scale[0] <= 1e6:
        raise WordsightError(
            f"logit_scale of {path} is {scale.tolist()}; it is one number above 0 and to 1e6, CLIP's is 100"
        )
    if LOG_SCALES[0] < scale[0] < LOG_SCALES[1]:
        raise WordsightError(
            f"logit_scale of {path} is {scale[0]:.4g}, which looks like CLIP's parameter, the logarithm; "
            f"store its exponential, {np.exp(scale[0]):.4g}"
        )
    return float(scale[0])


def _listed(known: Mapping[str, str]) -> str:
    return ", ".join(known.values()) if known else "nothing"
