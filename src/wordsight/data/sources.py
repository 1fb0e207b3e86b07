"""Sources: where datasets come from. Each form of `spec` is read by one function here; no image is decoded
before features.py asks for it.

| spec | read as |
|---|---|
| `digits` | scikit-learn's 1,797 digits of 8 x 8, split half and half |
| a folder in the field's layout, such as oxford_pets with split_zhou_OxfordPets.json | one of the protocol's datasets (catalog.json) |
| a folder of class folders | classes by sorted folder name; `train/`, `val/` (`valid`, `validation`) and `test/` may stand above them |
| a folder with manifest.csv, a .csv, a .parquet | path (or embedded image) and label columns, found by name; a split column may be there |
| `hf:name`, `org/name`, either with `@config`; a `save_to_disk` folder | Hugging Face datasets |
| `x-{000..003}.tar`, a glob of tars, a folder of tars | webdataset: key.jpg with key.cls, key.txt or key.json |
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wordsight.config import WordsightError, nearest
from wordsight.data import Dataset, Picture, Split, catalogue
from wordsight.data.account import Account, counted, few

IMAGES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".avif",
)
PATH_COLUMNS = ("path", "image", "file", "filename", "image_path")
LABEL_COLUMNS = ("label", "class", "classname", "category")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
FORMS = (
    "a folder of class folders (photos/<class>/*.jpg), a dataset in the field's layout (docs/protocol.md), "
    "a .csv or .parquet of path and label (or caption, for a two_tower), "
    "a folder or pattern of .tar files, a Hugging Face name (org/name or hf:name), or digits"
)


@dataclass(frozen=True)
class Item:
    """One image with its label as the source writes it."""

    picture: Picture
    label: Any
    split: str = "train"


@dataclass
class Labels:
    """Label keys in their order, with the class name of each; the template and remarks that came with
    them.
    """

    names: dict[Any, str]
    template: str | None = None
    notes: list[str] = field(default_factory=list)


def open_dataset(spec: str, label: str | None = None) -> Dataset:
    """The dataset behind a path or a name; `label` names the label column of a table.

    Errors: WordsightError in words for a path that is not there, a layout or table that cannot be read, fewer
    than two classes, two classes of one name, an unknown split. What is only left out (files that are no
    images, rows whose image is missing) stands in `Dataset.notes`."""
    dataset = read_labelled(spec, label)
    _check_distinct(dataset.class_names, spec)
    return dataset


def read_labelled(spec: str, label: str | None = None) -> Dataset:
    """`open_dataset` without its demand that every class has a name of its own: captions may be equal."""
    spec = str(spec).strip()
    if spec == "digits":
        return _digits()
    if spec.startswith("hf:"):
        return _hub(spec[3:], spec)
    path = Path(spec).expanduser()
    if spec.endswith(".tar") or (".tar" in spec and set(spec) & set("*?{[")):
        return _tars({"train": _expand(str(path), spec)}, path.parent, spec)
    if path.is_dir():
        return _folder(path, spec, label)
    if path.is_file():
        return _file(path, spec, label)
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.,=+-]+)?", spec)
        and not spec.startswith(".")
        and not path.parent.exists()
    ):
        return _hub(spec, spec)
    there = (
        [other.name for other in path.parent.iterdir() if not other.name.startswith(".")]
        if path.parent.is_dir()
        else []
    )
    near = nearest(path.name, ["digits", *there])
    raise WordsightError(f"data={spec!r} does not exist{near}{catalogue.expected_at(path)}; give {FORMS}")


def _file(path: Path, spec: str, label: str | None = None) -> Dataset:
    if path.stat().st_size == 0:
        raise WordsightError(f"{spec!r} is empty (0 bytes); expected rows of path and label")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(_read_csv(path), path, spec, label)
    if suffix in (".parquet", ".pq"):
        return _table(_read_parquet(path), path, spec, label)
    if suffix in IMAGES:
        raise WordsightError(f"{spec!r} is one image; give the folder that holds the class folders")
    raise WordsightError(
        f"{spec!r} is a file of a kind that is not read here ({suffix or 'no extension'}); give {FORMS}"
    )


def _folder(path: Path, spec: str, label: str | None = None) -> Dataset:
    if (path / "manifest.csv").is_file():
        return _file(path / "manifest.csv", spec, label)
    if key := catalogue.recognise(path):
        return _field(catalogue.read(path, key), spec)
    if split := catalogue.own_split(path):
        return _field(catalogue.read_own(path, split), spec)
    if (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    ):
        return _saved(path, spec)
    parts = {
        split: sorted(str(tar) for tar in folder.glob("*.tar"))
        for split, folder in _split_folders(path).items()
    }
    tars = (
        {"train": sorted(str(tar) for tar in path.glob("*.tar"))}
        if any(path.glob("*.tar"))
        else {k: v for k, v in parts.items() if v}
    )
    return _tars(tars, path, spec) if tars else _class_folders(path, spec)


# ---- the field's datasets


def _field(listing: catalogue.Listing, spec: str) -> Dataset:
    items = [
        Item(Picture(file, partial(_read_file, str(listing.root / file))), label, part)
        for part, rows in listing.rows.items()
        for file, label in rows
    ]
    return _dataset(
        spec, items, Labels(dict(enumerate(listing.names)), listing.template, list(listing.notes))
    )


# ---- folders of class folders


def _class_folders(root: Path, spec: str) -> Dataset:
    if not any(root.iterdir()):
        raise WordsightError(
            f"folder {spec!r} is empty; expected class folders with images: {spec}/<class>/*.jpg"
        )
    splits = {split: folder for split, folder in _split_folders(root).items() if _subfolders(folder)}
    if splits:
        others = [
            folder.name
            for folder in _subfolders(root)
            if folder.name.lower() not in SPLITS and _subfolders(folder)
        ]
        if others:
            raise _unknown_splits(others, f"folder {spec!r}")
    items, ignored, imageless = [], [], []
    classes: set[str] = set()
    for split, folder in (splits or {"train": root}).items():
        ignored += [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
        for class_folder in _subfolders(folder):
            files = _files(class_folder)
            images = [file for file in files if file.suffix.lower() in IMAGES]
            ignored += [file for file in files if file.suffix.lower() not in IMAGES]
            if images:
                classes.add(class_folder.name)
            else:
                imageless.append(class_folder)
            items += [
                Item(
                    Picture(_shown(file.relative_to(root)), partial(_read_file, str(file))),
                    class_folder.name,
                    split,
                )
                for file in images
            ]
    loose = [file for file in ignored if file.suffix.lower() in IMAGES]
    if not items:
        found = (
            f"{len(loose)} images ({few(file.name for file in loose)}) but no class folders"
            if loose
            else "no images"
        )
        raise WordsightError(
            f"folder {spec!r} holds {found}; put the images of each class in a folder of its name: "
            f"{spec}/<class>/*.jpg"
        )
    labels = Labels({name: name for name in sorted(classes)})
    others = [file for file in ignored if file.suffix.lower() not in IMAGES]
    if others:
        labels.notes.append(
            f"ignored {counted(len(others), 'file')} that {'is' if len(others) == 1 else 'are'} no image: "
            f"{few(file.name for file in others)}"
        )
    if loose:
        labels.notes.append(
            f"ignored {counted(len(loose), 'image')} outside the class folders: "
            f"{few(file.name for file in loose)}"
        )
    imageless = [folder for folder in imageless if folder.name not in classes]
    if imageless:
        labels.notes.append(
            f"ignored {counted(len(imageless), 'folder')} without images: "
            f"{few(folder.name for folder in imageless)}"
        )
    return _dataset(spec, items, labels)


def _split_folders(root: Path) -> dict[str, Path]:
    return {
        SPLITS[folder.name.lower()]: folder for folder in _subfolders(root) if folder.name.lower() in SPLITS
    }


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _files(folder: Path) -> list[Path]:
    """All files below `folder` but hidden ones, sorted: few-shot draws must not depend on the file system's
    order.
    """
    return sorted(
        Path(at) / name for at, _, names in os.walk(folder) for name in names if not name.startswith(".")
    )


# ---- tables: CSV, Parquet, manifest


@dataclass
class Table:
    columns: dict[str, Sequence]  # by name as written
    class_names: dict[str, list[str]] = field(
        default_factory=dict
    )  # of columns that carry their own (Hugging Face's ClassLabel)


def _read_csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=header.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise WordsightError(f"{str(path)!r} is not readable as UTF-8 CSV: {error}") from error
    rows = [(line, row) for line, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise WordsightError(
            f"{str(path)!r} holds no rows; expected a header such as path,label and one row an image"
        )
    (_, names), body = rows[0], rows[1:]
    for line, row in body:
        if len(row) != len(names):
            raise WordsightError(
                f"line {line} of {str(path)!r} has {len(row)} cells, the header has {len(names)} "
                f"({', '.join(names)}); quote cells with commas"
            )
    return Table(
        {name.strip(): [row[column].strip() for _, row in body] for column, name in enumerate(names)}
    )


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        read = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise WordsightError(
            f"{str(path)!r} is not readable as Parquet: {str(error).splitlines()[0]}"
        ) from error
    if not read.num_rows:
        raise WordsightError(f"{str(path)!r} holds no rows")
    structs = {name for name in read.column_names if pyarrow.types.is_struct(read.schema.field(name).type)}
    columns = {
        name: read.column(name) if name in structs else read.column(name).to_pylist()
        for name in read.column_names
    }
    features = (
        json.loads((read.schema.metadata or {}).get(b"huggingface", b"{}"))
        .get("info", {})
        .get("features", {})
    )
    return Table(
        columns,
        {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and "names" in feature
        },
    )


def _table(table: Table, path: Path, spec: str, label: str | None = None) -> Dataset:
    found = {name.lower(): name for name in table.columns}
    images, keys = (
        _column(found, PATH_COLUMNS, "image path", spec),
        _column(found, LABEL_COLUMNS if label is None else (label.lower(),), "label", spec),
    )
    labels = _label_names(table, keys, found.get("classname", keys), path.parent, spec)
    splits = (
        _parts(table.columns[found["split"]], spec)
        if "split" in found
        else ["train"] * len(table.columns[keys])
    )
    pictures = [_cell_picture(table.columns[images], row, path) for row in range(len(splits))]
    items = [
        Item(picture, label, split)
        for picture, label, split in zip(pictures, map(_key, table.columns[keys]), splits)
        if picture
    ]
    missing = [str(table.columns[images][row]) for row, picture in enumerate(pictures) if picture is None]
    if len(missing) * 2 > len(pictures):
        raise WordsightError(
            f"{len(missing)} of {len(pictures)} images of {spec!r} are missing: {few(missing)}; paths are "
            f"read relative to {str(path.parent)!r}"
        )
    if missing:
        labels.notes.append(
            f"left out {counted(len(missing), 'row')} of {len(pictures)} whose image is missing: "
            f"{few(missing)}"
        )
    return _dataset(spec, items, labels)


def read_pictures(path: str | Path) -> list[Picture]:
    """The images of a folder (at any depth) or of a CSV or Parquet table with a path column; no labels are
    needed.
    """
    path = Path(path)
    if path.is_dir():
        found = [
            Picture(str(file), partial(_read_file, str(file)))
            for file in _files(path)
            if file.suffix.lower() in IMAGES
        ]
    else:
        found = [picture for picture, _, _ in _captioned(path, captions=False, notes=[])]
    if not found:
        raise WordsightError(f"{str(path)!r} holds no images")
    return found


def read_pairs(path: str | Path, notes: list[str] | None = None) -> list[tuple[Picture, list[str], str]]:
    """Images with their captions and their part (train, val or test; train where no column says), from a CSV
    or Parquet table with a path column and columns that begin with `caption`. A row without an image or a
    caption is left out; `notes` receives how many."""
    return _captioned(Path(path), captions=True, notes=[] if notes is None else notes)


def has_captions(path: str | Path) -> bool:
    """Whether a file is a table with a caption column."""
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq") or not path.is_file():
        return False
    return any(name.lower().startswith("caption") for name in _read_table(path).columns)


def _read_table(path: Path) -> Table:
    return _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)


def _captioned(path: Path, captions: bool, notes: list[str]) -> list[tuple[Picture, list[str], str]]:
    if not path.is_file():
        raise WordsightError(
            f"{str(path)!r} does not exist; expected a CSV or Parquet table with a path column"
        )
    table = _read_table(path)
    found = {name.lower(): name for name in table.columns}
    images = _column(found, PATH_COLUMNS, "image path", str(path))
    texts = [name for lower, name in found.items() if lower.startswith("caption")] if captions else []
    if captions and not texts:
        near = next((hint for name in found if (hint := nearest(name, ["caption", "captions"]))), "")
        raise WordsightError(
            f"{str(path)!r} has no caption column; its columns are {', '.join(found.values())}; expected "
            f"caption, or caption_1, caption_2, ...{near}"
        )
    count = len(table.columns[images])
    parts = _parts(table.columns[found["split"]], str(path)) if "split" in found else ["train"] * count
    rows = [
        (
            _cell_picture(table.columns[images], row, path),
            [str(table.columns[name][row] or "").strip() for name in texts],
            parts[row],
        )
        for row in range(count)
    ]
    kept = [
        (picture, [text for text in words if text], part)
        for picture, words, part in rows
        if picture is not None
    ]
    whole = [row for row in kept if row[1] or not captions]
    missing = [str(table.columns[images][row]) for row in range(count) if rows[row][0] is None]
    for left, why in (
        (missing, "whose image is missing"),
        ([picture.name for picture, texts, _ in kept if captions and not texts], "without a caption"),
    ):
        if left:
            notes.append(
                f"left out {counted(len(left), 'row')} of {len(rows)} of {str(path)!r} {why}: {few(left)}"
            )
    return whole


def _parts(column: Sequence, spec: str) -> list[str]:
    """The split column as train, val and test; all train where it is blank."""
    splits = [str(split or "").strip().lower() for split in column]
    splits = splits if any(splits) else ["train"] * len(splits)
    unknown = sorted({split for split in splits if split not in SPLITS})
    if unknown:
        raise _unknown_splits(unknown, f"column split of {spec!r}")
    return [SPLITS[split] for split in splits]


def _column(found: dict[str, str], wanted: Sequence[str], what: str, spec: str) -> str:
    for name in wanted:
        if name in found:
            return found[name]
    near = next((hint for name in found if (hint := nearest(name, wanted))), "")
    if what == "label" and any(name.startswith("caption") for name in found):
        near = "; a table of captions is for method=two_tower"
    raise WordsightError(
        f"{spec!r} has no {what} column; its columns are {', '.join(found.values())}; expected one of "
        f"{', '.join(wanted)}{near}"
    )


def _label_names(table: Table, keys: str, names: str, folder: Path, spec: str) -> Labels:
    """Class names by label: whole numbers in their order, text in the order of first appearance."""
    described = _classes_json(folder)
    column = list(map(_key, table.columns[keys]))
    blank = [row for row, key in enumerate(column, 1) if key is None or key == ""]
    if blank:
        raise WordsightError(
            f"column {keys} of {spec!r} is blank in {counted(len(blank), 'row')}: "
            f"{few(map(str, blank))}; every image needs a label"
        )
    whole = all(isinstance(key, int) for key in column)
    order = sorted(set(column)) if whole else list(dict.fromkeys(column))
    if names != keys:
        by_key: dict[Any, str] = {}
        for key, name in zip(column, table.columns[names]):
            if by_key.setdefault(key, name) != name:
                raise WordsightError(
                    f"label {key} of {spec!r} is named both {by_key[key]!r} and {name!r}; a label needs "
                    f"one name"
                )
        return Labels({key: str(by_key[key]) for key in order}, described.get("template"))
    if not whole:
        return Labels({key: str(key) for key in order}, described.get("template"))
    listed = table.class_names.get(keys) or described.get("classes")
    if listed is None:
        raise WordsightError(
            f"the labels of {spec!r} are numbers, and words are needed: add a column classname, or put "
            f"classes.json beside it"
        )
    return Labels(_numbered(order, listed, spec), described.get("template"))


def _numbered(keys: Iterable[int], listed: Sequence[str], spec: str) -> dict[int, str]:
    outside = [key for key in keys if not 0 <= key < len(listed)]
    if outside:
        raise WordsightError(
            f"{spec!r} has labels that its list of {len(listed)} class names does not reach: "
            f"{few(map(str, outside))}; labels count from 0"
        )
    return dict(enumerate(listed))


def _classes_json(folder: Path) -> dict[str, Any]:
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WordsightError(f"{str(path)!r} is not readable as JSON: {error}") from error
    described = described if isinstance(described, dict) else {"classes": described}
    if "{}" not in described.get("template", "{}"):
        raise WordsightError(
            f"template {described['template']!r} in {str(path)!r} has no {{}} for the class name"
        )
    return described


def _cell_picture(column: Sequence, row: int, path: Path) -> Picture | None:
    """A path's or an embedded image's picture; None where the file is missing."""
    if not isinstance(column, list):  # a Parquet struct of {bytes, path}, read when asked for
        return Picture(f"{path.name}[{row}]", partial(_read_struct, column, row, str(path.parent)))
    cell = column[row]
    if isinstance(cell, bytes):
        return Picture(f"{path.name}[{row}]", partial(bytes, cell))
    file = path.parent / str(cell)
    return Picture(str(cell), partial(_read_file, str(file))) if cell and file.is_file() else None


def _read_struct(column: Any, row: int, folder: str) -> bytes:
    cell = column[row].as_py() or {}
    if cell.get("bytes") is None and not cell.get("path"):
        raise ValueError("the cell holds neither bytes nor a path")
    return cell["bytes"] if cell.get("bytes") is not None else _read_file(os.path.join(folder, cell["path"]))


def _key(label: Any) -> Any:
    """A label as a dictionary key: whole numbers as int, whether the file wrote 3, "3" or 3.0."""
    if isinstance(label, (bool, type(None))):
        return None if label is None else str(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    text = str(label).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) and str(int(text)) == text else text


# ---- Hugging Face datasets


def _hub(name: str, spec: str) -> Dataset:
    import datasets
    from huggingface_hub import HfApi

    name, _, config = name.partition("@")
    try:
        if not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()).is_dir():
            HfApi().dataset_info(name, timeout=10)  # one quick question instead of half a minute of retries
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's client raises errors of six libraries
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WordsightError(
            f"{spec!r} is neither a path here nor a Hugging Face dataset that could be read: {first}. "
            f"Check the name and the network; or download it "
            f"elsewhere, keep it with `save_to_disk(folder)` or as .parquet, and give that path; or set "
            f"HF_ENDPOINT to a mirror you reach"
        ) from error
    return _from_hub(loaded, spec, catalogue.hints(name))


def _saved(path: Path, spec: str) -> Dataset:
    import datasets

    try:
        return _from_hub(datasets.load_from_disk(str(path)), spec)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise WordsightError(
            f"{spec!r} looks like a dataset kept with save_to_disk, but cannot be read: {error}"
        ) from error


def _from_hub(loaded: Any, spec: str, hints: catalogue.Hints | None = None) -> Dataset:
    import datasets

    hints = hints or catalogue.Hints()
    meaning = hints.splits or SPLITS
    parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    known = {split: part for split, part in parts.items() if split.lower() in meaning}
    if not known:
        raise _unknown_splits(list(parts), repr(spec))
    features = next(iter(known.values())).features
    image = next(
        (column for column, feature in features.items() if isinstance(feature, datasets.Image)), None
    )
    if image is None:
        raise WordsightError(f"{spec!r} has no image column; its columns are {', '.join(features)}")
    classed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = (hints.label, *LABEL_COLUMNS, "labels", "fine_label")
    label = next((column for column in usual if column in features), classed[0] if classed else None)
    if label is None:
        raise WordsightError(
            f"{spec!r} has no label column; its columns are {', '.join(features)}; expected one of "
            f"{', '.join(LABEL_COLUMNS)}"
        )
    columns = {split: list(map(_key, part[label][:])) for split, part in known.items()}
    order = [key for column in columns.values() for key in column if key is not None and key != -1]
    if hints.names:
        labels = Labels(_numbered(set(order), hints.names, spec))
    elif hints.named in features:
        named = {
            key: str(name)
            for split, part in known.items()
            for key, name in zip(columns[split], part[hints.named][:])
        }
        labels = Labels(dict(sorted(named.items())))
    elif label in classed:
        labels = Labels(dict(enumerate(features[label].names)))
    elif any(isinstance(key, int) for key in order):
        raise WordsightError(
            f"column {label} of {spec!r} holds numbers without class names, and words are needed; cast it "
            f"to ClassLabel(names=[...])"
        )
    else:
        labels = Labels({key: key for key in dict.fromkeys(order)})
    labels.template = hints.template
    others = [split for split in parts if split not in known]
    if others:
        labels.notes.append(f"left out {counted(len(others), 'split')} of another name: {few(others)}")
    items, unlabelled = [], 0
    for split, part in known.items():
        rows = part.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        for row, key in enumerate(columns[split]):
            if key is None or key == -1:
                unlabelled += 1
            else:
                items.append(
                    Item(
                        Picture(f"{split}[{row}]", partial(_read_row, rows, image, row)),
                        key,
                        meaning[split.lower()],
                    )
                )
    if unlabelled:
        labels.notes.append(f"left out {counted(unlabelled, 'image')} without a label")
    return _dataset(spec, items, labels)


def _read_row(rows: Any, column: str, row: int) -> bytes:
    cell = rows[row][column]
    return cell["bytes"] if cell["bytes"] is not None else _read_file(cell["path"])


# ---- webdataset


def _expand(pattern: str, spec: str) -> list[str]:
    """Paths behind `x-{000..003}.tar` or a glob, sorted; every named shard must be there."""
    ranged = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if ranged:
        low, high = ranged.groups()
        each = [
            pattern.replace(ranged[0], str(number).zfill(len(low)))
            for number in range(int(low), int(high) + 1)
        ]
        return [path for one in each for path in _expand(one, spec)]
    found = sorted(glob.glob(pattern)) if not os.path.exists(pattern) else [pattern]
    if not found:
        raise WordsightError(f"tar {pattern!r} of {spec!r} does not exist")
    return found


def _tars(tars: dict[str, list[str]], root: Path, spec: str) -> Dataset:
    items = [item for split, paths in tars.items() for path in paths for item in _tar_items(path, split)]
    if not items:
        raise WordsightError(
            f"the tars of {spec!r} hold no images; expected samples such as 000.jpg with 000.cls"
        )
    unlabelled = [item for item in items if item.label is None or item.label == ""]
    items = [item for item in items if not (item.label is None or item.label == "")]
    if not items:
        raise WordsightError(
            f"no image of {spec!r} has a label; expected key.cls, key.txt or key.json with a label beside "
            f"key.jpg"
        )
    keys = list(dict.fromkeys(item.label for item in items))
    listed = next(
        (path for path in (root / "classnames.txt", root.parent / "classnames.txt") if path.is_file()), None
    )
    if not any(isinstance(key, int) for key in keys):
        labels = Labels({key: key for key in keys})
    elif listed is None:
        raise WordsightError(
            f"the labels of {spec!r} are numbers, and words are needed: put classnames.txt, one name a "
            f"line, into {str(root)!r}"
        )
    elif any(isinstance(key, str) for key in keys):
        raise WordsightError(
            f"the labels of {spec!r} are partly numbers and partly text: {few(map(str, keys))}"
        )
    else:
        labels = Labels(
            _numbered(
                keys,
                [
                    line.strip()
                    for line in listed.read_text(encoding="utf-8-sig").splitlines()
                    if line.strip()
                ],
                spec,
            )
        )
    templates = root / "zeroshot_classification_templates.txt"  # CLIP_benchmark's, with {c} for the class
    if templates.is_file():
        labels.template = next(
            (
                line.strip().replace("{c}", "{}")
                for line in templates.read_text(encoding="utf-8").splitlines()
                if "{c}" in line
            ),
            None,
        )
    if unlabelled:
        labels.notes.append(
            f"left out {counted(len(unlabelled), 'image')} without a label: "
            f"{few(item.picture.name for item in unlabelled)}"
        )
    return _dataset(spec, items, labels)


def _tar_items(path: str, split: str) -> list[Item]:
    """The samples of one tar: where each image lies, and its label. Only labels are read now."""
    samples: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue
                folder, base = os.path.split(member.name)
                key, _, extension = base.partition(".")
                extension = extension.lower()
                if "." + extension in IMAGES:
                    samples[f"{folder}/{key}"]["image"] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "txt", "json"):
                    samples[f"{folder}/{key}"][extension] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        raise WordsightError(f"{path!r} is not readable as an uncompressed tar: {error}") from error
    items = []
    for sample in samples.values():
        if "image" in sample:
            name, offset, size = sample["image"]
            items.append(
                Item(
                    Picture(f"{path}/{name}", partial(_read_part, path, offset, size)),
                    _sample_label(sample, f"{path}/{name}"),
                    split,
                )
            )
    return items


def _sample_label(sample: dict[str, Any], name: str) -> Any:
    try:
        for extension in ("cls", "txt"):
            if extension in sample:
                return _key(sample[extension].decode("utf-8"))
        described = json.loads(sample.get("json", b"null"))
    except ValueError as error:
        raise WordsightError(f"the label of {name} cannot be read: {error}") from error
    if isinstance(described, dict):
        described = next((described[key] for key in (*LABEL_COLUMNS, "cls") if key in described), None)
    return _key(described)


def _read_part(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


# ---- digits


@cache
def _digits() -> Dataset:
    """Half of each class trains and half tests (random_state 0), in scikit-learn's order. Grey levels 0..16
    become 0..255, as RGB.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8).repeat(3, axis=-1)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    part = dict.fromkeys(train.tolist(), "train") | dict.fromkeys(test.tolist(), "test")
    items = [
        Item(Picture(f"digits[{row}]", partial(images.__getitem__, row)), int(label), part[row])
        for row, label in enumerate(labels)
    ]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return _dataset("digits", items, Labels(dict(enumerate(names)), "a photo of the digit {}."))


# ---- common to all


def same_source(one: str, other: str) -> bool:
    """Whether two words for data= name the same one."""
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _dataset(spec: str, items: Sequence[Item], labels: Labels) -> Dataset:
    names = list(labels.names.values())
    if len(names) < 2:
        raise WordsightError(
            f"{spec!r} has one class only ({few(names)}); at least 2 are needed to choose among"
        )
    index = {key: position for position, key in enumerate(labels.names)}
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for item in items:
        parts[item.split].append(item)
    splits = {
        part: Split(
            [item.picture for item in chosen],
            np.array([index[item.label] for item in chosen], dtype=np.int64),
        )
        for part, chosen in parts.items()
        if chosen or part == "train"
    }
    return Dataset(
        name=spec,
        class_names=tuple(names),
        template=labels.template,
        account=Account(remarks=list(labels.notes)),
        **splits,
    )


def _check_distinct(names: Sequence[str], spec: str) -> None:
    """Two labels must not share a name: their prompts would be equal, and no score could tell them apart."""
    spoken = [" ".join(name.replace("_", " ").lower().split()) for name in names]
    twice = [word for word, count in Counter(spoken).items() if count > 1]
    if twice:
        groups = [
            " and ".join(repr(name) for name, word in zip(names, spoken) if word == each) for each in twice
        ]
        raise WordsightError(
            f"{spec!r} names a class twice (case, _ and spaces aside): {few(groups, ', then ')}; merge "
            f"them, or give each a name of its own"
        )
    if "" in spoken:
        raise WordsightError(f"{spec!r} has a class without a name (label {spoken.index('')})")


def _unknown_splits(names: Sequence[str], where: str) -> WordsightError:
    near = next((hint for name in names if (hint := nearest(name, SPLITS))), "")
    return WordsightError(
        f"{where} has unknown splits: {few(map(repr, names))}{near}; the choices are train, val (valid, "
        f"validation) and test"
    )


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
