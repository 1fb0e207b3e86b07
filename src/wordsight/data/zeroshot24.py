"""The 24 datasets of CLAMP's tables (arXiv 2312.01629), by CLIP_benchmark's keys: where each lies, and what
is printed of it.

The table is zeroshot24.json: images and classes of the test part, DataComp's main metric, published top-1.
It is for orientation: other towers. LLaVA-1.5 and MiniGPT-4 have the same figures for CIFAR-100 and Flowers
in the paper, which is likely a slip."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from wordsight.early import HUB_NAME
from wordsight.files import read_json

TABLE = Path(__file__).with_suffix(".json")
CLEANED = ("{dataset_cleaned}", "{dataset}")  # in data=, the key; CLIP_benchmark's two placeholders
OWN = ("test", "train", "classnames.txt")  # in a folder that is one dataset
FORMS = ("", ".csv", ".tsv", ".parquet", ".npz")  # of a dataset in a root: a folder, a table, vectors


@dataclass(frozen=True)
class Entry:
    """One dataset."""

    title: str  # as a column is called
    images: int  # of the test part
    classes: int
    metric: Literal["acc1", "mean_per_class_recall"]  # which DataComp reports
    published: Mapping[str, float]  # top-1 in percent by row
    also: tuple[str, ...] = ()  # other keys under which the same test part is spread


@cache
def table() -> dict[str, Any]:
    return read_json(TABLE, "table of datasets")


@cache
def entries() -> dict[str, Entry]:
    """By key, in the order of CLAMP's tables."""
    return {
        key: Entry(**values | {"also": tuple(values.get("also", ()))})
        for key, values in table()["datasets"].items()
    }


def cleaned(key: str) -> str:
    """A key as it stands in the name of a folder."""
    return key.replace("/", "-")


def names_of(key: str) -> list[str]:
    """What the folder of a dataset may be called: CLIP_benchmark's, DataComp's, and the key itself."""
    short = [cleaned(one) for one in (key, *entries()[key].also)]
    return [name for one in short for name in (f"wds_{one}", f"wds_{one}_test", one)] + [key]


def key_of(data: str) -> str | None:
    """The key of a dataset, from its path or its name on the hub; None for any other."""
    path = Path(data.removeprefix("hf:"))
    bare = path.with_suffix("") if path.suffix in FORMS else path
    ends = (bare.name.lower(), "/".join(bare.parts[-2:]).lower())
    return next((key for key in entries() if set(ends) & set(names_of(key))), None)


def is_root(data: str) -> bool:
    """Whether it stands for many of the datasets: a pattern of names, or a folder that is no dataset."""
    path = Path(data).expanduser()
    own = any((path / name).exists() for name in OWN)
    return any(one in data for one in CLEANED) or (path.is_dir() and key_of(data) is None and not own)


def found_in(root: str) -> dict[str, str]:
    """{key: data=} of the datasets that a root holds: a folder with one folder or table each, or a pattern
    such as clip-benchmark/wds_{dataset_cleaned}, which is a name on the hub where no such path is here."""
    places = {key: _place(root, key) for key in entries()}
    return {key: place for key, place in places.items() if place is not None}


def not_read(root: str, used: Iterable[str]) -> list[str]:
    """The folders of a root that are none of the datasets by their names."""
    folder = Path(root).expanduser()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one.name for one in inside if one.is_dir() and one.name[0] != "." and str(one) not in {*used}]


def _place(root: str, key: str) -> str | None:
    if any(one in root for one in CLEANED):
        path = root.replace(CLEANED[0], cleaned(key)).replace(CLEANED[1], key)
        on_hub = re.fullmatch(f"(hf:)?{HUB_NAME}", path) and not Path(path).parent.exists()
        return path if on_hub or Path(path).expanduser().exists() else None
    paths = [Path(root).expanduser() / (f"{name}{form}") for name in names_of(key) for form in FORMS]
    return next((str(path) for path in paths if path.exists()), None)
