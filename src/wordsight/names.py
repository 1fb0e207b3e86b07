"""Class names as people type them: in a list, in a file, with commas inside, in whatever Unicode form."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wordsight.files import WordsightError, nfc, read_text


def class_list(words: str | Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Class names as people type them: `zebra,horse`, several such words, or a file, one name a line:
    `@names`, or the path of one that has a suffix, as `names.txt`.

    A name that holds a comma stands in quotes as in CSV, `"salt, pepper",sugar`; in a file it needs none,
    quotes around a whole line are read so too, and one of the `known` names needs none anywhere. Errors:
    WordsightError where no name is given, where a quote is not closed, and as `read_text`."""
    own = {_spaced(name): name for name in known}
    names: list[str] = []
    for word in [words] if isinstance(words, str) else words:
        file = _list_file(word)
        for line in (read_text(file, "list of classes") if file else word).splitlines():
            whole = file and not re.fullmatch(r'\s*".*"\s*', line)
            names += [line] if whole else _joined(_csv_row(line), own)
    if not (found := [nfc(name.strip()) for name in names if name.strip()]):
        raise WordsightError(f"{words!r} names no class; give names as a,b,c, or @FILE with one name a line")
    return [own.get(_spaced(name), name) for name in found]


def _list_file(word: str) -> Path | None:
    path = Path(word.removeprefix("@")).expanduser()
    return path if word.startswith("@") or (path.suffix and path.is_file()) else None


def _joined(cells: list[str], own: Mapping[str, str]) -> list[str]:
    """The cells of a line, of which those that make a known name together are one: the most that do."""
    most = max((name.count(",") + 1 for name in own), default=1)
    names, place = [], 0
    while place < len(cells):
        known = (
            (count, own[name])
            for count in range(min(most, len(cells) - place), 1, -1)
            if (name := _spaced(",".join(cells[place : place + count]))) in own
        )
        count, name = next(known, (1, cells[place]))
        names.append(name)
        place += count
    return names


def _spaced(name: str) -> str:
    """A name in the form in which lists are compared: blanks around its commas do not count."""
    return re.sub(r"\s*,\s*", ", ", nfc(name.strip()))


def _csv_row(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True, skipinitialspace=True), [])
    except csv.Error as error:
        raise WordsightError(
            f"{line!r} is no list of names: {error}; quotes stand around a whole name, as in "
            '"salt, pepper",sugar'
        ) from error
