"""Columns: named columns of any table as rows of images with labels or captions."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, few
from wordsight.data.labels import (
    CLASSES_JSON,
    LABEL_KEYS,
    Described,
    Label,
    captions_of,
    in_label_order,
    label_of,
    numbered,
    parts_of,
    read_classes,
    settle,
)
from wordsight.data.rows import Row, Table, Want
from wordsight.files import nfc
from wordsight.reader import nearest

CAPTION = "caption"
ONE_OF = r"s?([ _-]?\d+|[_-][a-z]{2})?(?<![_-]id)"  # behind the name of a column, where there are several
REPEATED = "that repeat an earlier row"
NO_CAPTION = "without a caption"


@dataclass(frozen=True)
class Columns:
    """Named columns of equal length, each read when it is asked for."""

    where: str  # for messages
    count: int
    readers: Mapping[str, Callable[[], Sequence[Any]]]  # by name as written
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of columns that carry their own
    structs: Mapping[str, Any] = field(default_factory=dict)  # Parquet's {bytes, path}, not yet read
    folder: Path | None = None  # what paths in cells begin at, and where classes.json may lie
    label_keys: Sequence[str] = LABEL_KEYS  # what a label column may be called, best first
    spoken: str = "classname"  # a column with the class name of each label
    in_order: bool = False  # whether labels that are texts are sorted, and not in order of appearance
    template: str | None = None
    part_of_row: Sequence[str] | None = None  # where the source itself says so, and no column

    def cells(self, name: str) -> Sequence[Any]:
        """A column's values as Python has them."""
        return self.readers[name]()

    def find(self, wanted: Sequence[str]) -> str | None:
        """The first of these columns that is there, in any case of letters.

        Errors: WordsightError where two columns have that name."""
        for want in wanted:
            found = [name for name in self.readers if name.strip().lower() == nfc(want).strip().lower()]
            if len(found) > 1:
                raise WordsightError(
                    f"{self.where} has {len(found)} columns called {want} ({few(map(repr, found))}); rename "
                    f"all but one"
                )
            if found:
                return found[0]
        return None

    def need(self, wanted: Sequence[str], what: str) -> str:
        """As `find`. Errors: WordsightError where there is none, with the columns that are there."""
        found = self.find(wanted)
        if found is not None:
            return found
        near = next((hint for name in self.readers if (hint := nearest(name.lower(), wanted))), "")
        if what == "label" and self.caption_columns():
            near = "; a table of captions is for method=aape_captions, limber or two_tower"
        raise WordsightError(
            f"{self.where} has no {what} column; its columns are {', '.join(self.readers)}; expected one of "
            f"{', '.join(wanted)}{near}"
        )

    def asked(self, name: str) -> str:
        """The column of this name. Errors: WordsightError where there is none, with the nearest."""
        found = self.find([name])
        if found is None:
            raise WordsightError(
                f"{self.where} has no column {name!r}{nearest(name, self.readers)}; its columns are "
                f"{', '.join(self.readers)}"
            )
        return found

    def parts(self) -> Sequence[str]:
        """train, val or test of each row; all train where nothing says."""
        split = self.find(["split"])
        if self.part_of_row is not None:
            return self.part_of_row
        return parts_of(self.cells(split), self.where) if split else ["train"] * self.count

    def caption_columns(self) -> list[str]:
        """caption, captions, caption_1 and on, caption_en: not caption_id or caption_url, which hold none."""
        return self.named(CAPTION)

    def named(self, stem: str) -> list[str]:
        """The columns of this name, of its plural, and of it with a number or a language behind it."""
        return [name for name in self.readers if re.fullmatch(stem + ONE_OF, name.strip().lower())]


def numbered_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of its last line. Errors: csv.Error where a quote that opens is
    never closed: what is behind it would be one cell."""
    kept: list[str] = []  # the lines of the row that is read

    def passing() -> Iterator[str]:
        for line in lines:
            kept.append(line)
            yield line

    rows = csv.reader(passing(), delimiter=delimiter)
    for row in rows:
        if len(kept) > 1 or not kept[-1].endswith(("\n", "\r")):  # the last, if it is cut off
            _check_closed(kept, rows.line_num, delimiter)
        kept.clear()
        yield rows.line_num, row


def _check_closed(lines: Sequence[str], last: int, delimiter: str) -> None:
    try:
        for _ in csv.reader(lines, delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            first = last - len(lines) + 1
            raise csv.Error(f"the quote that opens in line {first} is never closed") from error


def table_of(
    columns: Columns,
    pictures: Sequence[Picture | None],
    account: Account,
    want: Want,
    label: str | None = None,
) -> Table:
    """Rows of columns whose images are known; None among them is an image that was left out already.

    `want` says what is needed: captions, where labels do too, labels, or images alone. `label` names the
    label column."""
    parts = columns.parts()
    if want == "images":
        return Table([Row(picture, part=part) for picture, part in zip(pictures, parts) if picture], account)
    captions = columns.caption_columns() if want == "captions" and label is None else []
    if want == "captions" and label is None and not captions and columns.find(columns.label_keys) is None:
        columns.need([CAPTION, "captions", f"{CAPTION}_1"], CAPTION)
    if captions:
        return Table(_captioned(columns, captions, pictures, parts, account), account)
    return _labelled(columns, pictures, parts, account, label)


def _captioned(
    columns: Columns,
    names: Sequence[str],
    pictures: Sequence[Picture | None],
    parts: Sequence[str],
    account: Account,
) -> list[Row]:
    """One row an image: captions of one image may stand in several columns, in a list, or in several rows. A
    row that says again what was said of its image is a repetition.
    """
    found: dict[tuple[str, str], tuple[Picture, list[str]]] = {}
    for row, texts in enumerate(zip(*(columns.cells(name) for name in names))):
        picture = pictures[row]
        if picture is None:
            continue
        place = f"row {row + 1} of {columns.where}, caption,"
        words = [text for cell in texts for text in captions_of(cell, place)]
        again = (picture.name, parts[row]) in found
        _, before = found.setdefault((picture.name, parts[row]), (picture, []))
        if again and not (words and before):
            account.leave(NO_CAPTION, picture.name)
        elif again and set(words) <= set(before):
            account.leave(REPEATED, picture.name)
            words = []
        elif again:
            account.kept += 1  # more captions of an image that is counted already
        before += words
    return [Row(picture, None, tuple(words), part) for (_, part), (picture, words) in found.items()]


def _labelled(
    columns: Columns,
    pictures: Sequence[Picture | None],
    parts: Sequence[str],
    account: Account,
    asked: str | None,
) -> Table:
    column = columns.need(columns.label_keys, "label") if asked is None else columns.asked(asked)
    where = f"column {column} of {columns.where}"
    labels = settle([label_of(value, where) for value in columns.cells(column)], columns.where)
    if column in columns.class_names:
        labels = [None if label == -1 else label for label in labels]  # as the hub marks a hidden label
    usual = column == columns.find(columns.label_keys)
    described = read_classes(columns.folder) if usual and columns.folder else Described()
    names = _class_names(columns, column, labels, described if usual else None)
    rows = [
        Row(picture, label, part=part) for picture, label, part in zip(pictures, labels, parts) if picture
    ]
    return Table(_once(rows, account, columns.where), account, names, described.template or columns.template)


def _once(rows: Sequence[Row], account: Account, where: str) -> list[Row]:
    """Each image once in a part. Errors: WordsightError where one is given two labels."""
    first: dict[tuple[str, str], Row] = {}
    labels: dict[str, Label] = {}
    for row in rows:
        name, label = row.picture.name, row.label
        if label is not None and labels.setdefault(name, label) != label:
            raise WordsightError(
                f"{where} gives {name!r} two labels, {labels[name]!r} and {label!r}; one label an image is "
                f"read here"
            )
        before = first.setdefault((name, row.part), row)
        if before is row:
            continue
        if before.label is None:
            first[name, row.part] = row
        account.leave(REPEATED, name)
    return list(first.values())


def _class_names(
    columns: Columns, column: str, labels: Sequence[Label | None], described: Described | None
) -> dict[Label, str]:
    """Class names by label: from a column of names, from a list, or the labels themselves where they are
    texts. `described` is None where classes.json is of another column.
    """
    order = in_label_order(labels)
    if columns.in_order and any(isinstance(label, str) for label in order):
        order = sorted(order, key=str)
    spoken = columns.find([columns.spoken])
    if described is not None and spoken is not None and spoken != column:
        return _spoken(columns, spoken, labels, order)
    if not order:
        return {}
    numbers = [label for label in order if isinstance(label, int)]
    if len(numbers) < len(order):
        return {label: str(label) for label in order}
    listed = columns.class_names.get(column) or (described.classes if described else None)
    if listed is None:
        raise WordsightError(
            f"the labels of {columns.where} are numbers, and words are needed: add a column "
            f"{columns.spoken}, put {CLASSES_JSON} beside a table, or cast the column to "
            f"ClassLabel(names=[...])"
        )
    return numbered(numbers, listed, columns.where)


def _spoken(
    columns: Columns, spoken: str, labels: Sequence[Label | None], order: Sequence[Label]
) -> dict[Label, str]:
    """Class names from a column of their own. Errors: WordsightError where a label has two."""
    names: dict[Label, str] = {}
    for label, value in zip(labels, columns.cells(spoken)):
        name = nfc("" if value is None else str(value).strip())
        if label is not None and names.setdefault(label, name) != name:
            raise WordsightError(
                f"label {label} of {columns.where} is named both {names[label]!r} and {name!r}; a label "
                f"needs one name"
            )
    return {label: names[label] for label in order}
