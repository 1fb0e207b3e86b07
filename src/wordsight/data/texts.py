"""Texts: captions by themselves, one after another, from sources of any size; no image is looked for.

| source | its captions |
|---|---|
| .parquet, .pq, .csv, .tsv (also .csv.gz, .tsv.gz) | its columns caption, captions, caption_1, caption_en |
| captions in COCO's, NoCaps' or Flickr's layout | caption_lists.py |
| tars, a pattern or a folder of them | key.txt, or `caption` in key.json |
| a folder | its captions.csv, or else all of its Parquet files |
| any other file, perhaps packed (.gz) | text, one caption a line |
| `hf:name`, a `save_to_disk` folder | the same columns of all its splits |

Tables and texts are read as they are needed, a tar at a time."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from wordsight.config import WordsightError
from wordsight.data import caption_lists, hub
from wordsight.data.account import Account
from wordsight.data.columns import CAPTION, Columns, numbered_rows
from wordsight.data.fetch import Gone, fetch
from wordsight.data.labels import captions_of
from wordsight.data.rows import CAPTIONS, is_file, why_not
from wordsight.data.samples import read_texts
from wordsight.data.tables import PARQUET, delimiter_of, open_parquet
from wordsight.data.tars import inner_names, is_shards, shards_of, tars_in
from wordsight.reader import nearest_path

ROWS = 10_000  # of a Parquet file at once
PACKED = ".gz"
JSON = (".json", ".jsonl", ".ndjson")
LISTED = ("[", "{")  # begins a text that may write out a list


def captions_in(source: str) -> Iterator[str]:
    """The captions of a source in its order, blank ones aside.

    Errors: WordsightError where it is not there or cannot be read, at the row, line or byte."""
    path = Path(source).expanduser()
    if path.is_dir() and hub.is_saved(path):
        return _in_dataset(hub.opened_saved(path, source), source)
    if source.startswith("hf:"):
        opened = hub.opened_hub(source.removeprefix("hf:"), source)
        return _in_tars(str(opened)) if isinstance(opened, Path) else _in_dataset(opened, source)
    if path.is_dir() and (path / CAPTIONS).is_file():
        return _in_file(path / CAPTIONS)
    if is_shards(source):
        return _in_tars(source)
    if path.is_dir():
        return (text for file in _tables_in(path) for text in _in_file(file))
    if not is_file(str(path)):
        raise WordsightError(
            f"captions {source!r} do not exist{nearest_path(path)}; give a table with a caption "
            f"column, a text of one caption a line (perhaps .gz), or tars"
        )
    return _in_file(path)


def _tables_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PARQUET)
    if not found:
        raise WordsightError(
            f"the folder {str(folder)!r} holds no captions: expected {CAPTIONS}, Parquet files or tars; "
            f"texts are given one by one"
        )
    return found


def _in_file(path: Path) -> Iterator[str]:
    name = path.name.lower()
    suffix = Path(name.removesuffix(PACKED)).suffix
    if suffix in PARQUET:
        return _in_parquet(path)
    if not name.endswith(PACKED) and (suffix == ".json" or caption_lists.is_caption_list(path)):
        return (text for one in caption_lists.listed(path) for text in one.captions)
    if suffix in JSON:
        raise WordsightError(
            f"{str(path)!r} is packed JSON, or JSON in lines, which is not read here; give a .json, a table "
            f"with a caption column, or a text of one caption a line"
        )
    if why_not(name) is None:
        raise WordsightError(f"{str(path)!r} is an image; expected captions")
    return _read(path, _rows if suffix in (".csv", ".tsv") else _lines)


# -- texts and CSV --


def _read(path: Path, parts: Any) -> Iterator[str]:
    """What `parts(file, path)` makes of a text file. Errors: WordsightError where it is none."""
    try:
        with _opened(path) as file:
            yield from parts(file, path)
    except UnicodeDecodeError as error:
        raise WordsightError(
            f"captions {str(path)!r} are not readable as UTF-8 text: {error.reason}; save them as UTF-8"
        ) from error
    except csv.Error as error:
        raise WordsightError(f"{str(path)!r} is not readable as CSV: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise WordsightError(f"captions {str(path)!r} cannot be read: {error}") from error


def _opened(path: Path) -> TextIO:
    how: dict[str, Any] = {"encoding": "utf-8-sig", "newline": ""}
    if path.suffix.lower() == PACKED:
        return cast(TextIO, gzip.open(path, "rt", **how))
    return open(path, **how)


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise WordsightError(f"captions {str(path)!r} are no text: line {number} has a zero byte")
        if text := line.strip():
            yield text


def _rows(file: TextIO, path: Path) -> Iterator[str]:
    header = file.readline()
    between = delimiter_of(Path(path.name.lower().removesuffix(PACKED)).suffix, header)
    names = [name.strip() for name in next(csv.reader([header], delimiter=between), [])]
    places = [names.index(name) for name in _caption_names(names, path)]
    for number, row in numbered_rows(file, between):
        if len(row) != len(names) and any(cell.strip() for cell in row):
            raise WordsightError(
                f"line {number + 1} of {str(path)!r} has {len(row)} cells, the header has "
                f"{len(names)}; quote cells with commas"
            )
        for place in places if row else ():
            yield from _texts(row[place], path)


def _caption_names(names: Sequence[str], path: Path | str) -> list[str]:
    """The caption columns among all. Errors: WordsightError where there is none."""
    columns = Columns(repr(str(path)), 0, dict.fromkeys(names, list))
    return columns.caption_columns() or [columns.need([CAPTION, "captions", f"{CAPTION}_1"], CAPTION)]


def _texts(cell: Any, path: Path | str) -> Sequence[str]:
    """The captions in a cell; the common one quickly."""
    if type(cell) is str and not (text := cell.strip()).startswith(LISTED):
        return (text,) if text else ()
    return captions_of(cell, f"a caption of {str(path)!r}")


# -- Parquet and tars --


def _in_parquet(path: Path) -> Iterator[str]:
    with open_parquet(path) as table:
        names = _caption_names(table.schema_arrow.names, path)
        for batch in table.iter_batches(ROWS, columns=names, use_threads=False):
            for column in batch.columns:
                for cell in column.to_pylist():
                    yield from _texts(cell, path)


def _in_dataset(opened: Any, source: str) -> Iterator[str]:
    for part in opened.values() if isinstance(opened, Mapping) else [opened]:
        names = _caption_names(part.column_names, source)
        for batch in part.select_columns(names).iter(ROWS):
            for name in names:
                for cell in batch[name]:
                    yield from _texts(cell, source)


def _in_tars(source: str) -> Iterator[str]:
    folder, account = Path(source).expanduser(), Account("sample")
    parts = tars_in(folder).values() if folder.is_dir() else [shards_of(source)]
    paths = [path for tars in parts for path in tars]
    for path, name in zip(paths, inner_names(paths)):
        texts, damage = _in_tar(path, name, account)
        if damage is not None:
            account.remark(f"{path} could not be read whole; what could be read is used: {damage}")
        yield from texts
    account.tell()


def _in_tar(path: str, name: str, account: Account) -> tuple[list[str], str | None]:
    try:
        if "://" in path:
            content = fetch(path)
            return read_texts(io.BytesIO(content), len(content), name, account)
        with open(path, "rb") as file:
            return read_texts(file, os.fstat(file.fileno()).st_size, name, account)
    except (Gone, OSError) as error:
        return [], f"not readable: {error}"
