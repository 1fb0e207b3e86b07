"""Folders: class folders, perhaps below train/, val/ and test/, with every file in them kept or told.

`datasets`' imagefolder reads such folders too, but passes over hidden folders, links and unknown suffixes
without a word; our promise is an account."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, counted, few
from wordsight.data.labels import Label, part_of, unknown_parts
from wordsight.data.rows import Row, Table, is_hidden, read_file, shown
from wordsight.data.walk import Walker, subfolders
from wordsight.files import nfc

NO_LABELS = ("unlabelled", "unlabeled")  # a folder of images without labels, beside the class folders
OUTSIDE = "outside the class folders"
OUTSIDE_PARTS = "outside the folders train/, val/ and test/"


def read_class_folders(root: Path, spec: str) -> Table:
    """The images of class folders at any depth: the label is the folder's name, in Unicode's composed form.

    `train/`, `val/` (`valid`, `validation`) and `test/` may stand above the class folders; one of them
    without class folders, and a folder `unlabelled/`, hold images without labels.

    Errors: WordsightError where there are no class folders, two folders mean one part, folders of domains
    stand above the class folders, or a class folder's name is no text."""
    walker = Walker(root, Account("file"))
    if not walker.entries(root):
        why = walker.account.remarks[0] if walker.account.remarks else "is empty"
        raise WordsightError(
            f"folder {spec!r} {why}; expected class folders with images: {spec}/<class>/*.jpg"
        )
    parts = _parts(root, spec)
    tops = [folder for top in parts.values() for folder in subfolders(top)]
    walker.read_anyway = [os.path.realpath(folder) for folder in tops if walker.is_unlinked(folder)]
    rows = [row for part, top in parts.items() for row in _part_rows(walker, top, part, spec)]
    if root not in parts.values():
        rows += _beside_parts(walker, set(parts.values()))
    labels = sorted({row.label for row in rows if row.label is not None}, key=str)
    if not labels:
        raise _no_classes(walker.account, rows, root, spec)
    if all(part_of(str(label)) for label in labels):
        raise WordsightError(
            f"folder {spec!r} holds images directly in {few(f'{label}/' for label in labels)}, and no class "
            f"folders; put those of each class in a folder of its name: {spec}/{labels[0]}/<class>/*.jpg"
        )
    return Table(rows, walker.account, {label: str(label) for label in labels})


def _parts(root: Path, spec: str) -> dict[str, Path]:
    """The folder of each part; {"train": root} where the class folders stand in the root."""
    inside = subfolders(root)
    named = [
        folder for folder in inside if part_of(folder.name) and Walker(folder, Account()).entries(folder)
    ]
    if not any(map(subfolders, named)):
        return {"train": root}
    parts = {part_of(folder.name) or "": folder for folder in named}
    doubled = [folder for folder in named if parts[part_of(folder.name) or ""] != folder]
    if doubled:
        other = parts[part_of(doubled[0].name) or ""]
        raise WordsightError(
            f"folder {spec!r} has both {doubled[0].name}/ and {other.name}/, which mean the same part; "
            f"keep one, or move the images of one into the other"
        )
    others = [folder for folder in inside if not part_of(folder.name) and folder.name not in NO_LABELS]
    strays = [folder for folder in others if _holds_images(folder) and subfolders(folder)]
    if strays:
        raise unknown_parts([folder.name for folder in strays], f"folder {spec!r}")
    if "train" not in parts and any(map(_holds_images, others)):
        raise WordsightError(
            f"folder {spec!r} holds class folders ({few(folder.name for folder in others)}) beside "
            f"{few(f'{folder.name}/' for folder in named)}; move them into {spec}/train/"
        )
    return parts


def _holds_images(folder: Path) -> bool:
    return next(Walker(folder, Account()).images(folder), None) is not None


def _part_rows(walker: Walker, top: Path, part: str, spec: str) -> list[Row]:
    """The images of one part: those of its class folders, and loose ones, which have no label."""
    rows: list[Row] = []
    inside: dict[str, list[str]] = {}  # class folder -> names of its images, inside it
    flat = not subfolders(top) and top != walker.root
    for path, kind in walker.entries(top):
        name = os.path.basename(path)
        is_class = os.path.isdir(path) and not is_hidden(name) and name not in NO_LABELS
        if is_class:
            label = _class_name(path, spec)
            found = list(walker.images(path))
            inside[name] = [file[len(path) + 1 :] for file, _ in found]
            rows += [_row(*image, label, part) for image in found]
            continue
        for image in walker.at(path, kind):
            if flat or name in NO_LABELS:
                rows.append(_row(*image, None, part))
            else:
                walker.account.leave(OUTSIDE, image[1])
    if not flat:
        _tell_folders(walker, top, inside, spec)
    return rows


def _beside_parts(walker: Walker, parts: set[Path]) -> list[Row]:
    """What stands beside the folders of parts: images of a folder `unlabelled/`; all else is told."""
    rows = []
    for path, kind in walker.entries(walker.root):
        if Path(path) in parts:
            continue
        for image in walker.at(path, kind):
            if os.path.basename(path) in NO_LABELS:
                rows.append(_row(*image, None, "train"))
            else:
                walker.account.leave(OUTSIDE_PARTS, image[1])
    return rows


def _row(path: str, name: str, label: Label | None, part: str) -> Row:
    return Row(Picture(name, partial(read_file, path)), label, part=part)


def _class_name(path: str, spec: str) -> str:
    name = os.path.basename(path)
    if shown(name) != name:
        raise WordsightError(
            f"class folder {shown(name)!r} of {spec!r} is not named in UTF-8, and a class name is a text; "
            f"rename it"
        )
    return nfc(name)


def _tell_folders(walker: Walker, top: Path, inside: dict[str, list[str]], spec: str) -> None:
    """Remarks on class folders that hold nothing, are named alike, or hold folders; refuses domains."""
    _check_domains({name: files for name, files in inside.items() if files}, top, walker, spec)
    account, at = walker.account, "" if top == walker.root else f" of {top.name}/"
    empty = [name for name, files in inside.items() if not files]
    if empty:
        account.remark(f"{counted(len(empty), 'folder')}{at} without images: {few(empty)}")
    forms = defaultdict(list)
    for name in inside:
        forms[nfc(name)].append(name)
    alike = [few(map(ascii, names), " and ") for names in forms.values() if len(names) > 1]
    if alike:
        account.remark(
            f"folders{at} that differ only in their Unicode form are one class: {few(alike, '; ')}"
        )
    parts = [name for name in inside if top == walker.root and part_of(name)]
    if parts and len(parts) < len(inside):
        account.remark(f"{few(f'{name}/' for name in parts)} holds no class folders and is read as a class")
    nested = [name for name, files in inside.items() if files and len(_within(files)) > 1]
    if nested:
        each = [f"{name} (with {few(sorted(_within(inside[name])), most=3)})" for name in nested]
        account.remark(f"folders within class folders{at} belong to the class: {few(each, most=3)}")


def _within(files: Sequence[str]) -> set[str]:
    """The folders that hold all of a class folder's images; none where an image lies in it directly."""
    folders = {file.split(os.sep)[0] for file in files if os.sep in file}
    return folders if all(os.sep in file for file in files) else set()


def _check_domains(inside: dict[str, list[str]], top: Path, walker: Walker, spec: str) -> None:
    """Refuse real/cat, sketch/cat and the like, and one folder that holds the class folders: which level
    names the classes is not ours to guess.
    """
    within = {name: _within(files) for name, files in inside.items()}
    if not within or not all(within.values()):
        return
    first = os.path.join(spec, walker.name(top), next(iter(within))).replace("/./", "/")
    if len(within) == 1 and len(next(iter(within.values()))) > 1:
        (name, classes), *_ = within.items()
        raise WordsightError(
            f"{spec!r} has one class only ({name}), with folders {few(sorted(classes))} within; if these are "
            f"the classes, give data={first}"
        )
    count = Counter(folder for folders in within.values() for folder in folders)
    shared = sorted(folder for folder, times in count.items() if times > 1)
    if len(shared) > 1:
        raise WordsightError(
            f"{spec!r} has folders above its class folders: {few(shared, most=3)} stand in each of "
            f"{few(within, most=3)}. For the classes of one of them give data={first}; for all of them, a "
            f"table of path and label"
        )


def _no_classes(account: Account, rows: Sequence[Row], root: Path, spec: str) -> WordsightError:
    loose = account.left_out.get(OUTSIDE)
    names = loose.names if loose else [row.picture.name for row in rows]
    count = loose.count if loose else len(rows)
    found = f"{count} images ({few(names, total=count)}) but no class folders" if count else "no images"
    tables = [
        path.name for path in sorted(root.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".parquet")
    ]
    told = "".join(f"; {note}" for note in account.notes() if not loose or OUTSIDE not in note)
    table = f", or give one of its tables: data={spec}/{tables[0]}" if tables else ""
    return WordsightError(
        f"folder {spec!r} holds {found}{told}; put the images of each class in a folder of its name: "
        f"{spec}/<class>/*.jpg{table}"
    )
