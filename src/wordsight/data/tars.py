"""Tars: which files a pattern, a folder or a URL stands for, and the rows of local ones."""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from wordsight.config import WordsightError
from wordsight.data.account import Account
from wordsight.data.labels import CLASSNAMES, Label, in_label_order, numbered, part_of, settle
from wordsight.data.rows import Row, Table, Want, has_table, is_file, read_part
from wordsight.data.samples import read_tar
from wordsight.data.trees import Kind, kind_of, names_of, tars_of, templates_of

MOST_SHARDS = 1_000_000


# ---- which tars


def is_shards(source: str) -> bool:
    """Whether a source is tars: one, a pattern of them, a URL, a folder that holds some."""
    path = Path(source).expanduser()
    return (
        "://" in source
        or source.startswith("pipe:")
        or bool(re.search(r"\.(tar|tar\.\w+|tgz)$", source))
        or bool(path.is_dir() and not has_table(path) and tars_in(path))
    )


def shards_of(source: str) -> list[str]:
    """Every tar behind `x-{000..003}.tar`, `x-{a,b}.tar`, a glob, a folder or a URL, in order. Errors:
    WordsightError where there is none.
    """
    if source.startswith("pipe:"):
        raise WordsightError(
            f"data={source!r}: commands are not run for data; give http(s)://, s3:// or a local path"
        )
    local = str(Path(source).expanduser()) if "://" not in source else source
    if os.path.isdir(local):
        return tars_in(Path(local)).get("train", [])
    each = [local] if os.path.isfile(local) else list(dict.fromkeys(_braces(local)))
    for path in each:
        if not (urllib.parse.urlsplit(path).path if "://" in path else path).endswith(".tar"):
            raise WordsightError(
                f"data={source!r}: {path!r} is no .tar; only uncompressed tars are read as shards, and "
                f"tables only from a local path"
            )
        if "://" in path and set("*[") & set(path):
            raise WordsightError(
                f"data={source!r}: * is looked up only in local folders; name remote shards as in "
                f"x-{{000..099}}.tar"
            )
    if "://" in local:
        return each
    found = [path for one in each for path in _found(one, source)]
    return list(dict.fromkeys(found))


def tars_in(folder: Path) -> dict[str, list[str]]:
    """The tars of each part in a folder: its own are train, else those of its train/, val/ and test/."""
    own = _tars(folder)
    if own:
        return {"train": own}
    found: dict[str, list[str]] = {}
    for inside in sorted(folder.iterdir()):
        part = part_of(inside.name)
        tars = _tars(inside) if part and inside.is_dir() else []
        if part and tars and part in found:
            raise WordsightError(f"{str(folder)!r} has two folders of tars that both mean {part}; keep one")
        if part and tars:
            found[part] = tars
    return found


def _tars(folder: Path) -> list[str]:
    return tars_of(folder, [str(path) for path in folder.glob("*.tar") if is_file(str(path))])


def _found(path: str, source: str) -> list[str]:
    found = [path] if is_file(path) else sorted(filter(is_file, glob.glob(path)))
    if not found:
        raise WordsightError(f"tar {path!r} of data={source!r} does not exist")
    return found


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    low, high, listed = found.groups()
    if listed is None and not 0 <= int(high) - int(low) < MOST_SHARDS:
        raise WordsightError(f"{found[0]} in {pattern!r} names no tars, or more than {MOST_SHARDS:,}")
    each = (
        listed.split(",")
        if listed is not None
        else [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    )
    return [path for one in each for path in _braces(pattern[: found.start()] + one + pattern[found.end() :])]


def inner_names(paths: Sequence[str]) -> list[str]:
    """Each tar's name inside the folder that holds them all; "" for one alone. Member names follow it."""
    if len(paths) == 1:
        return [""]
    plain = [_without_query(path) if "://" in path else os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in plain])
    return [os.path.relpath(path, root) + "/" for path in plain]


def _without_query(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"/{parts.netloc}{parts.path}"


# ---- tars here, for few shots


def read_tars(parts: Mapping[str, Sequence[str]], spec: str, want: Want, label: str | None = None) -> Table:
    """The samples of local tars, part by part. A damaged one gives what stands before the damage, and is
    told.

    Errors: WordsightError where a file is no tar at all, nothing has a label, or labels are numbers and there
    is no classnames.txt beside the tars or in the folder above."""
    account = Account("member")
    paths = [path for each in parts.values() for path in each]
    folder = Path(paths[0]).parent
    places = (folder, folder.parent)
    kind = kind_of(places)
    if kind == "retrieval" and want == "labels":
        raise WordsightError(
            f"{spec!r} holds images with captions and no classes (its dataset_type.txt says retrieval): "
            f"`wordsight suite retrieval data={spec}` measures on it"
        )
    names = dict(zip(paths, inner_names(paths)))
    rows = []
    for part, each in parts.items():
        for path in each:
            found, damage = _read_local(path, names[path], account, want, label, part, kind)
            if damage is not None and not found and not account.seen:
                raise WordsightError(f"{path!r} is {damage}")
            if damage is not None:
                account.remark(f"{path} could not be read whole; what could be read is used: {damage}")
            rows += found
    if not rows:
        raise WordsightError(
            f"the tars of {spec!r} hold no images; expected samples such as 000.jpg with 000.cls"
            + "".join(f"; {note}" for note in account.notes())
        )
    labels = settle([row.label for row in rows], repr(spec))
    rows = [row._replace(label=label) for row, label in zip(rows, labels)]
    shown = list(range(max(len(row.shows or ()) for row in rows)))
    named = _class_names(shown or labels, places, spec, account)
    return Table(rows, account, named, templates=templates_of(places, account))


def _read_local(
    path: str, name: str, account: Account, want: Want, label: str | None, part: str, kind: Kind
) -> tuple[list[Row], str | None]:
    loader = partial(_part_loader, path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return read_tar(file, size, name, account, loader, want, label, part, kind)
    except OSError as error:
        return [], f"not readable: {error.strerror or error}"


def _part_loader(path: str, start: int, size: int) -> Callable[[], bytes]:
    return partial(read_part, path, start, size)


def _class_names(
    labels: Sequence[Label | None], places: Sequence[Path], spec: str, account: Account
) -> dict[Label, str]:
    order = in_label_order(labels)
    numbers = [label for label in order if isinstance(label, int)]
    if not numbers:
        return {label: str(label) for label in order}
    listed = names_of(places, account)
    if listed is None:
        raise WordsightError(
            f"the labels of {spec!r} are numbers, and words are needed: put {CLASSNAMES}, one name a "
            f"line, into {str(places[0])!r}"
        )
    return numbered(numbers, listed, repr(spec))
