"""Sources: where datasets come from. Each form of `spec` is one table of rows, made by the one reader of that
form; no image is decoded before features.py asks for it.

| spec | read by |
|---|---|
| `digits` | digits.py |
| a .npz or .safetensors of vectors | arrays.py |
| a folder in the field's layout (catalog.json), or with one split_*.json | catalogue.py |
| a folder of class folders; `train/`, `val/` and `test/` may stand above them | folders.py |
| a .csv, .tsv or .parquet; a folder with manifest.csv or captions.csv | tables.py |
| captions in COCO's, NoCaps' or Flickr's layout: a .json, a .token, ... | caption_lists.py |
| `hf:name`, `org/name`, either with `@config`; a `save_to_disk` folder | hub.py |
| `x-{000..003}.tar`, a glob of tars, a folder of tars | tars.py |

docs/data.md says how each is read, and what is told of what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np

from wordsight.config import WordsightError, is_vectors
from wordsight.data import Dataset, Picture, Split, arrays, caption_lists, catalogue, digits, hub, walk
from wordsight.data.account import UNLABELLED, Account, counted, few
from wordsight.data.folders import read_class_folders
from wordsight.data.labels import Label, check_distinct
from wordsight.data.rows import CAPTIONS, MANIFEST, Row, Table, Want, why_not
from wordsight.data.tables import has_captions, is_table, read_table
from wordsight.data.tars import is_shards, read_tars, shards_of, tars_in
from wordsight.data.trees import templates_of
from wordsight.early import HUB_NAME
from wordsight.files import moves
from wordsight.reader import nearest_path

FORMS = (
    "a folder of class folders (photos/<class>/*.jpg), a dataset in the field's layout (docs/protocol.md), "
    "a .csv or .parquet of path and label (or caption, for a two_tower or limber), "
    "a .npz or .safetensors of vectors, a folder or pattern of .tar files, a Hugging Face name (org/name or "
    "hf:name), or digits"
)


def open_dataset(spec: str, label: str | None = None) -> Dataset:
    """The dataset behind a path or a name; `label` names the label column of a table, or the key in a tar's
    JSON.

    Errors: WordsightError in words for a path that is not there, a layout or table that cannot be read, fewer
    than two classes, two classes of one name, several labels an image, an unknown split. What is only left
    out (files that are no images, rows whose image is missing) is in `Dataset.account`; images without a
    label are in `Dataset.unlabelled`."""
    spec = str(spec).strip()
    table = read(spec, "labels", label)
    check_distinct(list(table.names.values()), repr(spec), unnamed=True)
    return _dataset(spec, table)


def read(spec: str, want: Want, label: str | None = None) -> Table:
    """All rows of one source. Where `want` is captions, one that has only labels gives these."""
    path = _place(spec)
    if spec == "digits":
        _check_no_column(spec, label, "has none")
        return digits.read()
    if spec.startswith("hf:"):
        return hub.read_hub(spec[3:], spec, want, label)
    if want != "images" and path.is_dir() and not is_shards(spec):
        return _folder(path, spec, want, label)
    if is_shards(spec):
        return _tars(path, spec, want, label)
    if want == "captions" and caption_lists.is_caption_list(path):
        return caption_lists.read(path, spec)
    if is_table(path):
        return read_table(path, spec, want, label)
    if path.is_file() and is_vectors(spec):
        _check_no_column(spec, label, "is a file of vectors, whose labels have names of their own")
        return arrays.read(path)
    if path.exists():
        raise _not_read(path, spec)
    check_there(spec)
    return hub.read_hub(spec, spec, want, label)


def check_there(spec: str) -> None:
    """Errors: WordsightError for what is neither here nor a name that the hub may have."""
    path = _place(spec)
    named = re.fullmatch(HUB_NAME + r"(@[\w.,=+-]+)?", spec)
    known = spec == "digits" or spec.startswith("hf:") or is_shards(spec)
    if known or path.exists() or (named and not path.parent.exists()):
        return
    near = nearest_path(path, "digits")
    raise WordsightError(f"data={spec!r} does not exist{near}{catalogue.expected_at(path)}; give {FORMS}")


def read_pictures(spec: str | Path, account: Account | None = None) -> Iterator[Picture]:
    """The images of a folder (at any depth) or of a table with a path column, one after another; no labels
    are needed.

    Errors: WordsightError where there is none, after the last."""
    account, path = account or Account(), _place(str(spec))
    if path.is_dir():
        yield from walk.read_pictures(path, account)
    else:
        table = read(str(spec), "images")
        account.add(table.account)
        account.kept += len(table.rows)
        yield from (row.picture for row in table.rows)
    if not account.kept:
        told = "".join(f"; {note}" for note in account.notes())
        raise WordsightError(f"{str(spec)!r} holds no images{told}")


def is_captioned(spec: str) -> bool:
    """Whether a source has captions, and not labels alone."""
    path = _place(spec)
    if caption_lists.is_caption_list(path):
        return True
    if is_table(path):
        return has_captions(path)
    if path.is_dir() and not is_shards(spec) and not hub.is_saved(path):
        return (path / CAPTIONS).is_file()
    return spec != "digits" and any(row.captions for row in read(spec, "captions").rows)


def _place(spec: str) -> Path:
    """The path that a source may be. Errors: WordsightError for no name at all, which as a path would be the
    folder that one happens to stand in."""
    if not spec.strip():
        raise WordsightError(f"data={spec!r} names nothing (a variable that is not set?); give {FORMS}")
    return Path(spec).expanduser().absolute()


# ---- which reader


def _check_no_column(spec: str, label: str | None, what: str) -> None:
    """Refuse a column of labels where none is read, so that other labels are not taken for it."""
    if label is not None:
        raise WordsightError(
            f"label={label!r} names a column of a table, but {spec!r} {what}; leave it out, or give the table"
        )


def _folder(path: Path, spec: str, want: Want, label: str | None) -> Table:
    if want == "captions" and (path / CAPTIONS).is_file():
        return read_table(path / CAPTIONS, spec, want, label)
    if (path / MANIFEST).is_file():
        return read_table(path / MANIFEST, spec, want, label)
    if hub.is_saved(path):
        return hub.read_saved(path, spec, want, label)
    _check_no_column(spec, label, "is a folder without one")
    if key := catalogue.recognise(path):
        return catalogue.read(path, key).table()
    if split := catalogue.own_split(path):
        return catalogue.read_own(path, split).table()
    table = read_class_folders(path, spec)
    return replace(table, templates=templates_of((path,), table.account))


def _tars(path: Path, spec: str, want: Want, label: str | None) -> Table:
    if "://" in spec:
        raise WordsightError(
            f"data={spec!r}: shards behind a URL are streamed by method=two_tower alone; download them for "
            f"few shots"
        )
    table = read_tars(tars_in(path) if path.is_dir() else {"train": shards_of(spec)}, spec, want, label)
    if path.is_dir():
        _tell_beside_tars(path, spec, table.account)
    return table


def _tell_beside_tars(path: Path, spec: str, account: Account) -> None:
    """Refuse tars beside folders of images: either could be meant, and the other would be lost."""
    beside = [name for _, name in walk.Walker(path, Account()).images(path)]
    folders = sorted({name.split("/")[0] for name in beside if "/" in name})
    if folders:
        raise WordsightError(
            f"{spec!r} holds both .tar files and folders of images ({few(folders)}); give the tars as "
            f"data='{spec}/*.tar', or move them elsewhere"
        )
    if beside:
        account.remark(f"{counted(len(beside), 'image')} beside the tars of {spec} not read: {few(beside)}")


def _not_read(path: Path, spec: str) -> WordsightError:
    if not path.is_file():
        return WordsightError(f"{spec!r} is a pipe, a socket or a device; give {FORMS}")
    if path.stat().st_size == 0:
        return WordsightError(f"{spec!r} is empty (0 bytes); expected rows of path and label")
    if why_not(path.name) is None:
        return WordsightError(f"{spec!r} is one image; give the folder that holds the class folders")
    return WordsightError(
        f"{spec!r} is a file of a kind that is not read here ({path.suffix or 'no extension'}); give {FORMS}"
    )


# ---- from rows to a dataset


def _dataset(spec: str, table: Table) -> Dataset:
    names = list(table.names.values())
    has = [row.label is not None or row.shows is not None for row in table.rows]
    labelled = list(compress(table.rows, has))
    unlabelled = [row.picture for row, known in zip(table.rows, has) if not known]
    account = table.account
    account.kept += len(labelled)
    for picture in unlabelled:
        account.leave(UNLABELLED, picture.name)
    account.check()
    told = "".join(f"; {note}" for note in account.notes())
    if not labelled:
        raise WordsightError(
            f"no image of {spec!r} has a label{told}; a label is the name of a folder, the column label of a "
            f"table, key.cls, .txt or .json beside key.jpg in a tar, or train_label in a file of vectors"
        )
    if len(names) < 2:
        raise WordsightError(
            f"{spec!r} has one class only ({few(names)}); at least 2 are needed to choose among{told}"
        )
    if any(row.shows is not None for row in labelled):
        parts = _several(labelled, len(names), spec)
    else:
        parts = _single(labelled, table.names)
        _tell_absent(parts, names, account)
    _tell_odd(names, account)
    return Dataset(
        name=spec,
        class_names=tuple(names),
        template=table.template,
        templates=table.templates,
        account=account,
        unlabelled=unlabelled,
        **parts,
    )


def _single(labelled: Sequence[Row], names: Iterable[Label]) -> dict[str, Split]:
    index = {key: place for place, key in enumerate(names)}
    parts = {}
    for part in ("train", "val", "test"):
        chosen = [row for row in labelled if row.part == part]
        labels = np.array([index[row.label] for row in chosen if row.label is not None], dtype=np.int64)
        if chosen or part == "train":
            parts[part] = Split([row.picture for row in chosen], labels)
    return parts


def _several(labelled: Sequence[Row], classes: int, spec: str) -> dict[str, Split]:
    """Images that show any number of classes are tested on, and never fitted to, for a method learns one
    class an image: those of the test part, or all where none is of it. Errors: WordsightError where labels
    have other places than there are names."""
    labelled = [row for row in labelled if row.part == "test"] or labelled
    shown = np.zeros((len(labelled), classes), np.bool_)
    for row, place in zip(labelled, shown):
        if row.shows is not None and len(row.shows) != classes:
            raise WordsightError(
                f"the labels of {row.picture.name} of {spec!r} have {len(row.shows)} places, but there are "
                f"{classes} class names"
            )
        place[:] = row.shows or False
    none = np.zeros(0, np.int64)
    pictures = [row.picture for row in labelled]
    return {"train": Split([], none), "test": Split(pictures, np.zeros(len(pictures), np.int64), shown)}


def _tell_odd(names: Sequence[str], account: Account) -> None:
    """A remark on names that are perhaps several labels, or hold what no name holds."""
    if "" in names:
        account.remark(f"class {names.index('')} has an empty name: it is known by its template alone")
    joined = [name for name in names if re.search(r"\S *[|;] *\S", name)]
    if joined:
        account.remark(
            f"{counted(len(joined), 'class name')} with | or ; in it, which is read as one label and not as "
            f"several: {few(joined)}"
        )
    steered = [name for name in names if any(moves(sign) for sign in name)]
    if steered:
        account.remark(
            f"{counted(len(steered), 'class name')} with control characters: {few(map(repr, steered))}"
        )


def _tell_absent(parts: dict[str, Split], names: Sequence[str], account: Account) -> None:
    """A remark on classes that the training or the test part lacks, where there is such a part."""
    for part in ("train", "test"):
        if part in parts and len(parts[part]):
            found = set(parts[part].labels.tolist())
            absent = [name for label, name in enumerate(names) if label not in found]
            if absent:
                account.remark(f"{len(absent)} of {len(names)} classes have no {part} image: {few(absent)}")
