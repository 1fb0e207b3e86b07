"""Catalogue: the datasets of the field's protocol, known by the field's own folder layout and read by one
function.

A dataset is an entry of catalog.json and no code: which files its folder holds, its one template, its size,
and what its copies on the Hugging Face hub call their columns. Folder layouts, split files and label order
are CoOp's, which its descendants share."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, counted, few
from wordsight.data.labels import read_lines
from wordsight.data.rows import Row, Table, read_file, shown
from wordsight.data.walk import Walker, subfolders
from wordsight.files import read_json

CATALOG = Path(__file__).with_name("catalog.json")
PARTS = ("train", "val", "test")
# CLIP's list names two pairs of classes alike, and equal prompts cannot be told apart; these names are
# ImageNet's own
SECOND_NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}


@dataclass(frozen=True)
class Entry:
    """One dataset. Its images are listed by a split file, by text lists, or by class folders; exactly one of
    the three is set.
    """

    title: str
    template: str  # the field's one template for this dataset
    classes: int
    sizes: Mapping[str, int]  # images of each part in the field's protocol
    marks: Sequence[str]  # a folder that holds all of these is this dataset, whatever its name
    split: str | None = None  # split_zhou_*.json: {part: [[path, label, class name], ...]}
    lists: Mapping[str, str] = field(default_factory=dict)  # part -> text file of "image class name" lines
    folders: Mapping[str, str] = field(default_factory=dict)  # part -> folder of class folders
    images: str = "."  # what the paths in `split` or `lists` start from
    names: str | None = (
        None  # of `lists`: the class names in label order; of `folders`: "folder class name" lines
    )
    # class folders are called by label, 0, 1, ..., in the order of the sorted names that `names` knows them
    # by
    numbered: bool = False
    subset: bool = False  # some of the classes in `names` only
    also: Sequence[str] = ()  # further folders that must be there
    hub: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # Hugging Face name -> what the reader must know (`Hints`)
    notes: str = ""

    def expected(self) -> list[str]:
        """What must be in the dataset's folder; folders end with /."""
        files = [file for file in (self.split, self.names, *self.lists.values()) if file]
        images = [] if self.folders or self.images == "." else [self.images]
        return files + [f"{folder}/" for folder in (*images, *self.also, *self.folders.values())]


@dataclass(frozen=True)
class Hints:
    """What a Hugging Face dataset does not say of itself in the words that the reader looks for."""

    template: str | None = None
    label: str | None = None  # the label column
    named: str | None = None  # a column with the class name of each label; labels are then sorted
    names: Sequence[str] | None = None  # class names by label, in place of the dataset's own
    splits: Mapping[str, str] | None = None  # its split -> train, val or test; others are left out


@dataclass(frozen=True)
class Listing:
    """The images of a dataset: path below `root` and label, part by part, in the field's order."""

    root: Path
    names: Sequence[str]
    rows: Mapping[str, Sequence[tuple[str, int]]]
    account: Account
    template: str | None = None

    def table(self) -> Table:
        """The listing as every other source gives its rows."""
        rows = [
            Row(Picture(shown(file), partial(read_file, str(self.root / file))), label, part=part)
            for part, listed in self.rows.items()
            for file, label in listed
        ]
        return Table(rows, self.account, dict(enumerate(self.names)), self.template)


@cache
def entries() -> dict[str, Entry]:
    """The catalogue, by the folder name that the field gives a dataset."""
    return {key: Entry(**values) for key, values in json.loads(CATALOG.read_text(encoding="utf-8")).items()}


def recognise(folder: Path) -> str | None:
    """Which dataset's layout a folder has, or, called as the field calls it, is meant to have; None where it
    is the user's own.
    """
    marked = [
        key for key, entry in entries().items() if all((folder / mark).exists() for mark in entry.marks)
    ]
    if len(marked) > 1:
        titles = ", ".join(entries()[key].title for key in marked)
        raise WordsightError(
            f"{str(folder)!r} holds the files of {len(marked)} datasets ({titles}); give each a folder of "
            f"its own"
        )
    if marked:
        return marked[0]
    entry = entries().get(folder.name)
    return folder.name if entry and any((folder / name).exists() for name in entry.expected()) else None


def expected_at(folder: Path) -> str:
    """'; OxfordPets is read from ...' where the field calls a dataset like `folder`, or nothing: ready to
    stand inside a message.
    """
    entry = entries().get(folder.name)
    return (
        f"; {entry.title} is read from a folder {folder.name}/ with {', '.join(entry.expected())}"
        if entry
        else ""
    )


def hints(hub_name: str) -> Hints | None:
    """What the reader must know of a Hugging Face dataset that the catalogue names."""
    for entry in entries().values():
        for name, known in entry.hub.items():
            if name.lower() == hub_name.lower():
                return Hints(entry.template, **known)
    return None


def read(folder: Path, key: str) -> Listing:
    """The dataset in a folder of the field's layout.

    Errors: WordsightError for each file, folder, class or image that is expected and missing, with its whole
    path: with fewer images the few-shot draw would be another one, and its figures would compare with
    nobody's."""
    entry = entries()[key]
    missing = [name for name in entry.expected() if not (folder / name).exists()]
    if missing:
        raise WordsightError(
            f"{entry.title} lacks {', '.join(missing)}: expected at "
            f"{', '.join(repr(str(folder / name)) for name in missing)}; "
            f"its folder must hold {', '.join(entry.expected())} (docs/protocol.md tells where each comes "
            f"from)"
        )
    account = Account("file" if entry.folders else "row")
    if entry.folders:
        names, rows = _class_folders(folder, entry, account)
        root = folder
    else:
        names, rows = read_split(folder / entry.split) if entry.split else _lists(folder, entry)
        root = folder / entry.images
        _check_images(root, rows, entry.title, account)
    _compare(entry, names, rows, account)
    return Listing(root, names, rows, account, entry.template)


def own_split(folder: Path) -> Path | None:
    """The split file of a dataset that is not the field's but is laid out like one; None where there is
    none.
    """
    found = sorted(folder.glob("split_*.json"))
    if len(found) > 1:
        raise WordsightError(
            f"{str(folder)!r} holds {len(found)} split files ({few([path.name for path in found])}); "
            f"leave one there"
        )
    return found[0] if found else None


def read_own(folder: Path, split: Path) -> Listing:
    """A dataset of the user's own by its split file, whose paths begin at the folder itself or at one within,
    such as images/.
    """
    names, rows = read_split(split)
    first = next((file for part in PARTS for file, _ in rows[part]), None)
    if first is None:
        raise WordsightError(f"{str(split)!r} lists no image")
    roots = [root for root in (folder, *subfolders(folder)) if (root / first).is_file()]
    if not roots:
        raise WordsightError(
            f"{str(split)!r} lists {first!r}, which lies neither in {str(folder)!r} nor in a folder within"
        )
    account = Account("row")
    _check_images(roots[0], rows, split.name, account)
    return Listing(roots[0], names, rows, account)


def read_split(path: Path) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Class names in label order and (path, label) of each part, from a split_zhou_*.json. Nothing is sorted:
    its order decides the few-shot draw.
    """
    parts = read_json(path, "split file")
    if not isinstance(parts, dict):
        raise _no_split(path, f"it holds a {type(parts).__name__}")
    for part in PARTS:
        if not isinstance(parts.get(part), list):
            raise _no_split(path, f"{part!r} is {'no list' if part in parts else 'missing'}")
    if others := [
        part for part, rows in parts.items() if part not in PARTS and isinstance(rows, list) and rows
    ]:
        raise _no_split(path, f"it lists {few(map(repr, others))}, too")
    rows = {part: [_split_row(row, part, path) for row in parts[part]] for part in PARTS}
    named = Counter((label, name) for listed in rows.values() for _, label, name in listed)
    names = {label: name for label, name in named}
    if sorted(label for label, _ in named) != list(range(len(named))):
        raise WordsightError(
            f"the labels of {str(path)!r} must be 0, 1, 2, ... without gaps, each with one class name"
        )
    return [names[label] for label in sorted(names)], {
        part: [(file, label) for file, label, _ in listed] for part, listed in rows.items()
    }


def _split_row(row: Any, part: str, path: Path) -> tuple[str, int, str]:
    match row:
        case [str(file), int(label), str(name)] if not isinstance(label, bool):
            return file, label, name
    raise _no_split(path, f"{part!r} lists {row!r:.80}")


def _no_split(path: Path, why: str) -> WordsightError:
    return WordsightError(
        f"{str(path)!r} is no split file: {why}; expected train, val and test, each a list of [path, label, "
        f"class name]"
    )


def _lists(folder: Path, entry: Entry) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """FGVC Aircraft's files: a list of class names, and lists of an image's name without .jpg and its
    class.
    """
    assert entry.names is not None  # as every entry with lists has
    names = [line for _, line in read_lines(folder / entry.names)]
    place = {name: label for label, name in enumerate(names)}
    rows: dict[str, list[tuple[str, int]]] = {}
    for part, file in entry.lists.items():
        rows[part] = []
        for number, line in read_lines(folder / file):
            image, _, name = line.partition(" ")
            if name not in place:
                raise WordsightError(
                    f"line {number} of {str(folder / file)!r} names the class {name!r}, which is not in "
                    f"{str(folder / entry.names)!r}"
                )
            rows[part].append((f"{image}.jpg", place[name]))
    return names, rows


def _class_folders(
    folder: Path, entry: Entry, account: Account
) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """ImageNet and its kin: class folders, with their names in a file. The label is the place among the
    sorted folders.
    """
    assert entry.names is not None  # as every entry with class folders has
    cut = [line.partition(" ") for _, line in read_lines(folder / entry.names)]
    spoken = {key: name for key, _, name in cut}
    known = sorted(spoken)
    found = {
        part: {inside.name for inside in subfolders(folder / root)} for part, root in entry.folders.items()
    }
    if entry.subset:
        known = [key for key in known if any(key in names for names in found.values())]
    called = [str(label) for label in range(len(known))] if entry.numbered else known
    for part, names in found.items():
        _check_classes(folder / entry.folders[part], names, called, folder / entry.names)
    walker = Walker(folder, account)
    rows = {
        part: [
            (file, label)
            for label, name in enumerate(called)
            for file in _images(walker, folder / root / name)
        ]
        for part, root in entry.folders.items()
    }
    return _distinct(known, spoken), rows


def _check_classes(root: Path, found: set[str], called: Sequence[str], names: Path) -> None:
    absent, unknown = [name for name in called if name not in found], sorted(found - set(called))
    if absent or not called:
        listed = (
            f"{len(absent)} of {len(called)} class folders, {few(absent)}" if called else "its class folders"
        )
        raise WordsightError(
            f"{str(root)!r} lacks {listed}; expected one for each class of {str(names)!r}: the labels of "
            f"the others would shift"
        )
    if unknown:
        raise WordsightError(f"{str(root)!r} holds folders that {str(names)!r} does not name: {few(unknown)}")


def _distinct(known: Sequence[str], spoken: Mapping[str, str]) -> list[str]:
    """Class names in label order; of two that are alike in the whole list one takes its second name, so that
    a subset calls it as ImageNet does.
    """
    count = Counter(spoken.values())
    return [SECOND_NAMES.get(key, spoken[key]) if count[spoken[key]] > 1 else spoken[key] for key in known]


def _check_images(
    root: Path, rows: Mapping[str, Sequence[tuple[str, int]]], title: str, account: Account
) -> None:
    """Every listed image is there. Folders are listed, which is quicker than asking for each file."""
    files = [file for part in rows.values() for file, _ in part]
    there = {folder: _entries(root / folder) for folder in {os.path.dirname(file) for file in files}}
    missing = [file for file in files if os.path.basename(file) not in there[os.path.dirname(file)]]
    if missing:
        raise WordsightError(
            f"{title} lacks {len(missing):,} of {len(files):,} images: {few(missing)}; expected below "
            f"{str(root)!r}"
        )
    account.seen += len(files)
    again = [file for file, count in Counter(files).items() if count > 1]
    if again:  # the field's draw counts each, so they stay
        account.remark(f"{title} lists {counted(len(again), 'image')} more than once: {few(again)}")


def _compare(entry: Entry, names: Sequence[str], rows: Mapping[str, Sequence], account: Account) -> None:
    """A remark where the dataset is not the size that the field reports on."""
    sizes = {part: len(rows.get(part, ())) for part in PARTS if part in entry.sizes}
    if len(names) == entry.classes and sizes == entry.sizes:
        return
    here, there = (
        ", ".join(f"{count:,} {part}" for part, count in each.items()) for each in (sizes, entry.sizes)
    )
    account.remark(
        f"{entry.title} here has {len(names):,} classes and {here} images; the field's has "
        f"{entry.classes:,} and {there}: figures do not compare"
    )


def _entries(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _images(walker: Walker, folder: Path) -> list[str]:
    """The images of a class folder, sorted: the field takes the file system's order, which differs from
    machine to machine.
    """
    found = [path[len(str(walker.root)) + 1 :] for path, _ in walker.images(folder)]
    if not found:
        raise WordsightError(f"class folder {str(folder)!r} is empty; expected its images")
    return found
