"""Tables: a CSV, TSV or Parquet file, or a Hugging Face dataset once loaded, as columns, and columns as rows.

CSV is read by Python's own reader and Parquet by pyarrow. `datasets`' builders would guess types, so that a
label 007 becomes 7 and a class NA a blank, and would copy embedded images into a cache."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import unquote

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, few
from wordsight.data.columns import Columns, numbered_rows, table_of
from wordsight.data.labels import LABEL_KEYS
from wordsight.data.rows import OF_SUFFIX, Table, Want, is_file, read_file, shown
from wordsight.extras import needed
from wordsight.files import as_it_was, nfc, parse_json, read_bytes

if TYPE_CHECKING:
    import pyarrow.parquet

PATH_COLUMNS = ("path", "image", "file", "filename", "image_path")
PARQUET = (".parquet", ".pq")
TABLES = (".csv", ".tsv", *PARQUET)
MISSING = "whose image is missing"
NO_TEXT = {  # how files begin that are named like a CSV and are none
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "packed with gzip; unpack it",
    b"PK\3\4": "a spreadsheet or an archive; save it as CSV in UTF-8",
    b"PAR1": "in Parquet; name it .parquet",
}
SERVED = "/data/local-files/?d="  # where Label Studio has local files; behind it a path below its own root


# ---- files


def read_columns(path: Path) -> Columns:
    """The columns of a CSV, TSV or Parquet file. Errors: WordsightError where it cannot be read as one."""
    if is_file(str(path)) and not path.stat().st_size:
        raise WordsightError(f"{str(path)!r} is empty (0 bytes); expected rows of path and label")
    return _read_parquet(path) if path.suffix.lower() in PARQUET else _read_csv(path)


def is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and is_file(str(path))


def has_captions(path: Path) -> bool:
    """Whether a file is a table with a caption column."""
    return is_table(path) and bool(read_columns(path).caption_columns())


def _read_csv(path: Path) -> Columns:
    text = _decoded(path)
    delimiter = delimiter_of(path.suffix, text.split("\n", 1)[0])
    try:
        lines = numbered_rows(io.StringIO(text, newline=""), delimiter)
        rows = [(number, row) for number, row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise WordsightError(f"{str(path)!r} is not readable as CSV: {error}") from error
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
    readers = [partial(_csv_cells, body, place) for place in range(len(names))]
    return Columns(repr(str(path)), len(body), _named(names, readers, path), folder=path.parent)


def delimiter_of(suffix: str, header: str) -> str:
    """What stands between the cells of a file with this suffix and first line."""
    return "\t" if suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def _csv_cells(body: Sequence[tuple[int, Sequence[str]]], place: int) -> list[str]:
    return [as_it_was(row[place].strip()) for _, row in body]


def _named(names: Sequence[str], readers: Sequence[Any], path: Path) -> dict[str, Any]:
    """Readers by column name. Errors: WordsightError where two columns have one, since either is meant."""
    names = [nfc(name.strip()) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise WordsightError(f"{str(path)!r} has columns of one name: {few(twice)}; rename all but one")
    return dict(zip(names, readers))


def _decoded(path: Path) -> str:
    content = read_bytes(path, "table")
    for begins, what in NO_TEXT.items():
        if content.startswith(begins):
            raise WordsightError(f"table {str(path)!r} is {what}")
    if b"\0" in content[:100]:
        raise WordsightError(f"table {str(path)!r} is in UTF-16, or no text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WordsightError(
            f"table {str(path)!r} is not readable as UTF-8 at byte {error.start}; it may be in Latin-1 "
            f"(Windows-1252): save it as UTF-8"
        ) from error


@contextmanager
def open_parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """An open Parquet file, which is to be read with use_threads=False: a thread of pyarrow's that still
    holds the file when Python ends makes the process abort, its work done. Checksums of pages are compared
    where a file has them. Errors: WordsightError where it cannot be read, inside the block as well."""
    with needed("datasets", "Parquet"):
        import pyarrow
        import pyarrow.parquet

    try:
        with open(path, "rb") as file:  # pyarrow opens no name that is not UTF-8
            yield pyarrow.parquet.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
    except WordsightError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WordsightError(f"{str(path)!r} is not readable as Parquet: {first}") from error


def _read_parquet(path: Path) -> Columns:
    if not is_file(str(path)):
        raise WordsightError(f"{str(path)!r} is no regular file")
    with open_parquet(path) as file:
        read = file.read(use_threads=False)  # read_table takes columns from folder names
    import pyarrow

    if not read.num_rows:
        raise WordsightError(f"{str(path)!r} holds no rows")
    readers = [
        partial(_arrow_cells, read.column(place), f"column {name} of {str(path)!r}")
        for place, name in enumerate(read.column_names)
    ]
    names = _class_labels(read.schema.metadata or {}, path)
    return Columns(
        repr(str(path)),
        read.num_rows,
        _named(read.column_names, readers, path),
        class_names=names,
        structs={
            field.name: read.column(field.name)
            for field in read.schema
            if pyarrow.types.is_struct(field.type)
        },
        folder=path.parent,
        label_keys=(*LABEL_KEYS, *names),
    )


def _arrow_cells(column: Any, where: str) -> list[Any]:
    import pyarrow

    try:
        return column.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise WordsightError(f"{where} cannot be read: {error}") from error


def _class_labels(metadata: Mapping[bytes, bytes], path: Path) -> dict[str, list[str]]:
    """Class names by column, as `datasets` writes them into a Parquet file."""
    text = metadata.get(b"huggingface", b"{}").decode("utf-8", "replace")
    found = parse_json(text, f"the metadata of {str(path)!r}")
    for key in ("info", "features"):
        found = found.get(key, {}) if isinstance(found, dict) else {}
    described = found if isinstance(found, dict) else {}
    names = {column: kind.get("names") for column, kind in described.items() if isinstance(kind, dict)}
    return {column: listed for column, listed in names.items() if _are_names(listed)}


def _are_names(listed: Any) -> TypeGuard[list[str]]:
    return isinstance(listed, list) and bool(listed) and all(isinstance(name, str) for name in listed)


def read_table(path: Path, spec: str, want: Want, label: str | None = None) -> Table:
    """The rows of a table file: its image column, and its labels or its captions, whichever is wanted and
    there. A row without an image is told.

    Errors: WordsightError where columns are missing or doubled, a cell holds several labels or no text, and
    where more than half of the images are missing."""
    columns = read_columns(path)
    account = Account("row", seen=columns.count)
    return table_of(columns, cell_pictures(columns, account, spec), account, want, label)


# ---- image cells


def cell_pictures(columns: Columns, account: Account, spec: str) -> list[Picture | None]:
    """The image of each row: a path beside the table, or embedded bytes. None where there is none, which is
    told.
    """
    name, folder = columns.need(PATH_COLUMNS, "image path"), str(columns.folder)
    if name in columns.structs:
        pictures = _struct_pictures(columns.structs[name], folder, account)
    else:
        cells = enumerate(columns.cells(name), 1)
        pictures = [_picture(cell, row, folder, columns.where, account) for row, cell in cells]
    missing = account.left_out.get(MISSING)
    if missing is not None and missing.count * 2 > columns.count:
        raise WordsightError(
            f"{missing.count} of {columns.count} images of {spec!r} are missing: "
            f"{few(missing.names, total=missing.count)}; paths are read relative to {folder!r}"
        )
    return pictures


def _picture(cell: Any, row: int, folder: str, where: str, account: Account) -> Picture | None:
    if isinstance(cell, bytes):
        return Picture(f"row {row}", partial(bytes, cell))
    if cell is not None and not isinstance(cell, str):
        raise WordsightError(
            f"the image column of {where} holds {cell!r:.60}; expected a path, or an image's bytes"
        )
    form = _as_found(cell or "", folder)
    reason = MISSING if form is None else OF_SUFFIX.get(os.path.splitext(form)[1].lower())
    if form is None or reason is not None:
        account.leave(reason or MISSING, cell or f"row {row}")
        return None
    return Picture(_inside(form, folder), partial(read_file, _beside(folder, form)))


def _as_found(cell: str, folder: str) -> str | None:
    """The path in a cell as it leads to a file: as written, with Windows' separators turned, or in another
    Unicode form; None where none does.
    """
    if cell.startswith(SERVED):
        cell = unquote(cell.removeprefix(SERVED))
    forward = cell.replace("\\", "/")
    forms = (cell, forward, *(unicodedata.normalize(form, forward) for form in ("NFC", "NFD")))
    return next((form for form in forms if form.strip() and is_file(_beside(folder, form))), None)


def _beside(folder: str, path: str) -> str:
    return os.path.join(folder, os.path.expanduser(path))


def _inside(path: str, folder: str) -> str:
    """A path as a name inside the table's folder; one that leads out of it stays as it is written."""
    return shown(os.path.normpath(path.removeprefix(folder + os.sep)))


def _struct_pictures(cells: Any, folder: str, account: Account) -> list[Picture | None]:
    pictures: list[Picture | None] = []
    for row, there in enumerate(cells.is_valid().to_pylist()):
        load = partial(_read_struct, cells, row, folder)
        pictures.append(Picture(f"row {row + 1}", load) if there else None)
        if not there:
            account.leave(MISSING, f"row {row + 1}")
    return pictures


def _read_struct(cells: Any, row: int, folder: str) -> bytes:
    cell = cells[row].as_py() or {}
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if not cell.get("path"):
        raise ValueError("the cell holds neither bytes nor a path")
    return read_file(_beside(folder, cell["path"]))
