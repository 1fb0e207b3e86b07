"""Splits: the few-shot draw and the base/new halves of the classes, exactly as CoOp and its descendants take
them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from wordsight.config import WordsightError
from wordsight.data import Dataset, Encoded, Picture, Split
from wordsight.data.account import counted, few
from wordsight.data.images import Unreadable
from wordsight.files import nfc
from wordsight.reader import nearest
from wordsight.workers import each, progress

READERS = 8  # threads that read images for their digests: they wait for the disk, or hash without the GIL
CHUNK = 64  # images that one of them reads in turn
Which = Literal["all", "base", "new"]


def prepare(dataset: Dataset, shots: int | None = None, seed: int = 1, classes: Which = "all") -> Dataset:
    """The dataset one run sees: `shots` training images a class, then the base or new half of the classes,
    with a test part in any case.

    The draw is over all classes and the filter comes after it, as in the field's code: the base and the new
    run of one seed are halves of one draw."""
    train, val = few_shot(dataset, shots, seed)
    return select_classes(
        replace(dataset, train=train, val=val, test=held_out(dataset, shots, seed)), classes
    )


def few_shot(dataset: Dataset, shots: int | None, seed: int) -> tuple[Split, Split]:
    """`shots` training images a class and, after them from the same random stream, min(shots, 4) validation
    images a class.

    Dassl's `generate_fewshot_dataset` as CoOp calls it: classes in order of first appearance, `random.sample`
    of each. The indices equal the field's for the same seed and the same order of images. A validation class
    with fewer images gives all it has; without a validation part the second split is empty. `shots=None`
    takes everything.

    Errors: WordsightError when a class has fewer training images than `shots`; it says which.
    """
    val = dataset.val if dataset.val is not None else dataset.train.take([])
    if shots is None:
        return dataset.train, val
    stream = random.Random(seed)
    train_drawn = _draw_train(dataset, shots, stream)
    return dataset.train.take(train_drawn), val.take(_draw(val.labels, min(shots, 4), stream))


def held_out(dataset: Dataset, shots: int | None, seed: int) -> Split:
    """The test part: the source's own, or, where it has none, the training images that `few_shot` with these
    arguments does not draw.
    """
    if dataset.test is not None:
        return dataset.test
    if shots is None:
        raise WordsightError(
            f"{dataset.name} has no test part and shots=null trains on every image; give shots=..., or a "
            f"test/ folder or split"
        )
    drawn = set(_draw_train(dataset, shots, random.Random(seed)))
    rest = [index for index in range(len(dataset.train)) if index not in drawn]
    if not rest:
        raise WordsightError(
            f"{dataset.name} has no test part and shots={shots} draws every image; give a smaller shots=, "
            f"or a test/ folder or split"
        )
    return dataset.train.take(rest)


def base_new(n_classes: int) -> tuple[range, range]:
    """Indices of the base classes, the first ceil(n/2) in label order, and of the new ones, the rest."""
    middle = (n_classes + 1) // 2
    return range(middle), range(middle, n_classes)


def select_classes(dataset: Dataset, which: Which) -> Dataset:
    """The base or the new half of the classes, in every part, relabelled from 0. Prediction is then among
    these classes alone.
    """
    chosen = chosen_classes(len(dataset.class_names), which)
    if which == "all":
        return dataset
    if dataset.test is not None and dataset.test.shown is not None:
        raise WordsightError(
            f"classes={which} parts images by their class, but those of {dataset.name} show several; leave "
            f"it out"
        )
    if len(chosen) < 2:
        raise WordsightError(
            f"classes={which} of {dataset.name} leaves {len(chosen)} of {len(dataset.class_names)} "
            f"classes; at least 2 are needed to choose among"
        )
    names = tuple(dataset.class_names[label] for label in chosen)
    parts = {
        part: keep_classes(split, chosen)
        for part in ("train", "val", "test")
        if (split := getattr(dataset, part)) is not None
    }
    return replace(dataset, class_names=names, **parts)


def chosen_classes(n_classes: int, which: Which) -> range:
    """The label indices that `all`, `base` or `new` stands for."""
    base, new = base_new(n_classes)
    halves = {"all": range(n_classes), "base": base, "new": new}
    if not isinstance(which, str) or which not in halves:
        raise WordsightError(
            f"classes={which!r} is not a choice{nearest(str(which), halves)}; the choices are "
            f"{', '.join(halves)}"
        )
    return halves[which]


def keep_classes(split: Split, classes: Sequence[int]) -> Split:
    """The images of these classes, in their order, labelled by position in `classes`."""
    position = {label: index for index, label in enumerate(classes)}
    kept = split.take([index for index, label in enumerate(split.labels.tolist()) if label in position])
    return Split(kept.pictures, np.array([position[label] for label in kept.labels.tolist()], dtype=np.int64))


def fingerprint(split: Split) -> str:
    """How many images, and a hash of each one's name inside the source, content and label, in order.

    It is the same wherever the source lies and however its path was typed; other pixels under the same name,
    another label, or another order, which would change the draw, give another one. Reads every image once:
    digests are kept in the pictures."""
    whole = hashlib.blake2b(digest_size=8)
    several = [] if split.shown is None else (np.flatnonzero(row).tolist() for row in split.shown)
    labels = split.labels.tolist() if split.shown is None else several
    for picture, label, digest in zip(split.pictures, labels, digests(split.pictures)):
        content = "unreadable" if digest is None else digest.hex()
        whole.update(f"{nfc(picture.name)}\0{content}\0{label}\n".encode(errors="surrogatepass"))
    return f"{len(split)}, fingerprint {whole.hexdigest()}"


def digests(pictures: Sequence[Picture]) -> list[bytes | None]:
    """The content digest of each image, read by several threads; None where it cannot be loaded."""
    # a vector is in memory already, and hashed sooner than a thread takes it
    missing = [one for one in pictures if "digest" not in vars(one) and not isinstance(one, Encoded)]
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    failed: set[int] = set()
    if len(chunks) > 1:
        with progress("images", len(missing)) as advance:
            for chunk, found in each(_read, chunks, jobs=READERS):
                failed |= {id(picture) for picture, digest in zip(chunk, found) if digest is None}
                advance(len(chunk))
    return [None if id(picture) in failed else _digest(picture) for picture in pictures]


def of_other_content(pictures: Sequence[Picture], known: Container[bytes | None]) -> list[int]:
    """The places of the images whose content is not among these digests."""
    return [place for place, digest in enumerate(digests(pictures)) if digest not in known]


def _read(pictures: Sequence[Picture]) -> tuple[Sequence[Picture], list[bytes | None]]:
    return pictures, list(map(_digest, pictures))  # each picture keeps its own


def conflicts(*splits: Split | None) -> list[list[tuple[str, int]]]:
    """Images of equal content under different labels: each group's (name, label), in order."""
    groups: dict[bytes, list[tuple[str, int]]] = {}
    for split in splits:
        if split is None:
            continue
        for picture, label, digest in zip(split.pictures, split.labels.tolist(), digests(split.pictures)):
            if digest is not None:
                groups.setdefault(digest, []).append((picture.name, label))
    return [group for group in groups.values() if len({label for _, label in group}) > 1]


def conflict_note(class_names: Sequence[str], *splits: Split | None) -> str | None:
    """A sentence on images of equal content under different labels; None where there is none. Reads every
    image whose digest is not known yet.
    """
    found = conflicts(*splits)
    if not found:
        return None
    shown = [", ".join(f"{name} ({class_names[label]})" for name, label in group[:3]) for group in found]
    return (
        f"{counted(len(found), 'image')} with equal bytes under different labels; one must be wrong: "
        f"{few(shown, '; ')}"
    )


def _digest(picture: Picture) -> bytes | None:
    try:
        return picture.digest
    except Unreadable:
        return None


def _draw_train(dataset: Dataset, shots: int, stream: random.Random) -> list[int]:
    if shots < 1:
        raise WordsightError(
            f"shots={shots} draws nothing; give a whole number from 1, or null for every image"
        )
    if not len(dataset.train):
        raise WordsightError(
            f"{dataset.name} has test images only; test a run on it with `wordsight eval RUN "
            f"data={dataset.name}`, or give shots=null to a method "
            "that needs no labels"
        )
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.class_names))
    short = np.flatnonzero(counts < shots).tolist()
    if short:
        listed = ", ".join(f"{dataset.class_names[label]} {counts[label]}" for label in short[:10])
        more = f", ... and {len(short) - 10} more" if len(short) > 10 else ""
        right = (
            f"give shots={counts.min()} or fewer, shots=null for every image, or add images"
            if counts.min()
            else "add images to them or take these classes out"
        )
        raise WordsightError(
            f"shots={shots} needs {shots} training images of every class; {len(short)} of {len(counts)} "
            f"classes have fewer: {listed}{more}; {right}"
        )
    return _draw(dataset.train.labels, shots, stream)


def _draw(labels: np.ndarray, shots: int, stream: random.Random) -> list[int]:
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        by_label.setdefault(label, []).append(index)
    return [
        index
        for items in by_label.values()
        for index in (stream.sample(items, shots) if len(items) >= shots else items)
    ]
