"""Labels: what a cell, a file or a JSON value says of an image, read the same way wherever it stands.

A label is a whole number, which needs a list of class names, or a text, which is one. A caption is a text;
several stand in a list."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

from wordsight.config import WordsightError
from wordsight.data.account import counted, few
from wordsight.files import nfc, read_json, read_text, visible
from wordsight.reader import nearest

Label: TypeAlias = int | str  # of an image that has one; None where it has none

# column names and JSON keys, of which the first that is there is taken
LABEL_KEYS = ("label", "class", "classname", "category", "choice")  # the last: of Label Studio
CAPTION_KEYS = ("caption", "captions")
CLASSES_JSON = "classes.json"  # beside a table of numbers: a list of names, or {"classes": [...], "template"}
CLASSNAMES = "classnames.txt"  # beside tars of numbers: one name a line
WHOLE = re.compile(r"-?(0|[1-9]\d*)")
PADDED = re.compile(r"0\d+")  # an identifier such as 007, which is no number
DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?")
ARRAY = re.compile(r"\[[-\d\s.,]+\]")  # as NumPy prints one
LONGEST_NUMBER = 19  # digits; a longer one is an identifier
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


# ---- one value


def label_of(value: Any, where: str) -> Label | None:
    """One image's label; None where there is none: blank, null, not a number.

    Errors: WordsightError for several labels, for a number with a fraction, for what is neither number nor
    text."""
    value = _text(value, where)
    if isinstance(value, (list, tuple, set, Mapping)) or (isinstance(value, str) and _is_list(value)):
        raise WordsightError(
            f"{where} holds {value!r:.80}: one label an image is read here, a whole number or a name. Give a "
            f"column or a key with one label, such as the main one"
        )
    if value is None or value != value:  # NaN alone differs from itself
        return None
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return _whole(float(value), where)
    text = nfc(str(value).strip())
    return int(text) if WHOLE.fullmatch(text) and len(text) < LONGEST_NUMBER else text or None


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """One image's captions, as often as they were said, for that is how CIDEr counts them; as `texts_of`."""
    return tuple(texts_of(value, where, "a caption"))


def texts_of(value: Any, where: str, what: str) -> list[str]:
    """The texts in a cell: one, or a list of them, written out in JSON or Python too. None for blanks.

    Errors: WordsightError where there are numbers or other things in place of texts; `what` is what a text
    is called there."""
    value = _text(value, where)
    if value is None or value != value:
        return []
    if isinstance(value, str):
        listed = _written_out(value)
        value = listed if isinstance(listed, list) and _all_texts(listed) else [value]
    if not isinstance(value, (list, tuple)) or not _all_texts(value):
        raise WordsightError(f"{where} holds {value!r:.80}; {what} is a text, or a list of texts")
    return [text.strip() for text in value if text is not None and text.strip()]


def _text(value: Any, where: str) -> Any:
    """Bytes as the text that they are; all else as it is."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WordsightError(f"{where} is no UTF-8 text: {error}") from error


def _all_texts(values: Iterable[Any]) -> bool:
    return all(text is None or isinstance(text, str) for text in values)


def _is_list(text: str) -> bool:
    return ARRAY.fullmatch(text.strip()) is not None or _written_out(text) is not None


def _written_out(text: str) -> list | dict | None:
    """The list that a text writes out, as JSON and pandas write it into CSV; None where it is only a text."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, (list, dict)) else None
    return None


def _whole(value: float, where: str) -> int:
    if not value.is_integer():
        raise WordsightError(
            f"{where} holds {value}: a label is a class, so a whole number or a name. Measurements and "
            f"ratings are not learned here; name ranges of them, such as low and high"
        )
    return int(value)


# ---- a whole source


def settle(labels: Sequence[Label | None], where: str) -> list[Label | None]:
    """The labels of one source, all of one type: numbers written as 1.0 are whole ones; among identifiers
    with leading zeros every number is a text.

    Errors: WordsightError where numbers and texts are mixed, or numbers have fractions."""
    known = {label for label in labels if label is not None}
    if any(isinstance(label, str) and PADDED.fullmatch(label) for label in known):
        return [None if label is None else str(label) for label in labels]
    numbers = {label for label in known if isinstance(label, int) or DECIMAL.fullmatch(label)}
    if not numbers:
        return list(labels)
    if numbers == known:
        return [_whole(float(label), where) if isinstance(label, str) else label for label in labels]
    raise WordsightError(
        f"the labels of {where} are partly numbers ({few(sorted(map(str, numbers)), most=3)}) and partly "
        f"text ({few(sorted(map(str, known - numbers)), most=3)}); give every class a name"
    )


def in_label_order(labels: Iterable[Label | None]) -> list[Label]:
    """Each label once: numbers in their order, texts in the order of first appearance."""
    found = list(dict.fromkeys(label for label in labels if label is not None))
    return sorted(found) if all(isinstance(label, int) for label in found) else found


def numbered(keys: Iterable[int], listed: Sequence[str], where: str) -> dict[Label, str]:
    """Class names by number. Errors: WordsightError where a number is beyond the list."""
    outside = [key for key in keys if not 0 <= key < len(listed)]
    if outside:
        raise WordsightError(
            f"{where} has labels that its list of {len(listed)} class names does not reach: "
            f"{few(map(str, outside))}; labels count from 0"
        )
    return dict(enumerate(map(nfc, listed)))


def check_distinct(names: Sequence[str], where: str, *, unnamed: bool = False) -> None:
    """Two labels must not share a name: their prompts would be equal, and no score could tell them apart.
    `unnamed`: one of them may have an empty name."""
    spoken = [" ".join(visible(nfc(name)).replace("_", " ").lower().split()) for name in names]
    twice = [word for word, count in Counter(spoken).items() if count > 1]
    if twice:
        groups = [
            " and ".join(repr(name) for name, word in zip(names, spoken) if word == each) for each in twice
        ]
        raise WordsightError(
            f"{where} names a class twice (case, _, spaces and invisible signs aside): "
            f"{few(groups, ', then ')}; merge them, or give each a name of its own"
        )
    if "" in spoken and not unnamed:
        raise WordsightError(f"{where} has a class without a name (label {spoken.index('')})")


def check_choice(names: Sequence[str]) -> None:
    """Errors: WordsightError for fewer than two classes to choose among, and as `check_distinct`. One may
    have an empty name, as CLEVR's: lists that people give are read by whoever refuses it."""
    if len(names) < 2:
        raise WordsightError(f"{list(names)} cannot be chosen among; give at least 2 class names, each once")
    check_distinct(names, "the list of classes", unnamed=True)


# ---- lists of class names beside a source


@dataclass(frozen=True)
class Described:
    """What classes.json says: class names by number, and a template."""

    classes: Sequence[str] | None = None
    template: str | None = None


def read_classes(folder: Path) -> Described:
    """classes.json of a folder; nothing where there is none.

    Errors: WordsightError where it is not JSON, or not a list of names or {"classes": [...]}."""
    path = folder / CLASSES_JSON
    return read_described(path) if path.is_file() else Described()


def read_described(path: Path) -> Described:
    """A class list in JSON, whatever it is called. Errors: as `read_classes`."""
    loaded = read_json(path, "class list")
    described = loaded if isinstance(loaded, dict) else {"classes": loaded}
    classes, template = described.get("classes"), described.get("template")
    if classes is not None and not (
        isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    ):
        raise WordsightError(f'classes in {str(path)!r} must be a list of names, as in ["cat", "dog"]')
    if template is not None and not (isinstance(template, str) and template.count("{}") == 1):
        raise WordsightError(
            f"template {template!r} in {str(path)!r} has no {{}} for the class name; expected a text with one"
        )
    return Described(classes, template)


def read_class_list(path: Path) -> list[str]:
    """The class names of a file: JSON as in classes.json, or text, one name a line.

    Errors: WordsightError where it is not there or neither, and for no name, an empty one, equal ones."""
    if path.suffix.lower() == ".json":
        names = [nfc(name.strip()) for name in read_described(path).classes or ()]
    else:
        names = [nfc(line.strip()) for line in lines_of(read_text(path, "class list").strip())]
    if not any(names):
        raise WordsightError(f"class list {str(path)!r} names no class; expected one name a line")
    if "" in names:
        place = names.index("") + 1
        raise WordsightError(f"class list {str(path)!r} has an empty name at place {place}; give it one")
    check_distinct(names, f"class list {str(path)!r}")
    return names


def class_lines(text: str) -> list[str]:
    """The names of a classnames.txt, one a line. A blank line is a name, too (CLEVR has one): without it the
    labels after it would shift. Blank lines at the end are none."""
    return [nfc(line.strip()) for line in lines_of(text.rstrip())]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1."""
    text = read_text(path, "list")
    return [(number, line.strip()) for number, line in enumerate(lines_of(text), 1) if line.strip()]


def lines_of(text: str) -> list[str]:
    """Lines as files have them. Python's `splitlines` ends one at U+2028 and others too, which stand within
    names: the labels after it would shift."""
    return re.split(r"\r\n|\n|\r", text)


# ---- parts


def part_of(name: str) -> str | None:
    """train, val or test, whatever a folder, split or cell calls it; None where it is none of them."""
    return PARTS.get(name.strip().lower())


def parts_of(column: Sequence[Any], where: str) -> list[str]:
    """A split column as train, val and test; all train where it is blank throughout."""
    given = ["" if value is None or value != value else str(value).strip() for value in column]
    if not any(given):
        return ["train"] * len(given)
    blank = given.count("")
    if blank:
        raise WordsightError(
            f"column split of {where} is blank in {counted(blank, 'row')}; give every row train, val or test"
        )
    unknown = sorted({name for name in given if part_of(name) is None})
    if unknown:
        raise unknown_parts(unknown, f"column split of {where}")
    return [part_of(name) or "" for name in given]


def unknown_parts(names: Sequence[str], where: str) -> WordsightError:
    near = next((hint for name in names if (hint := nearest(name, PARTS))), "")
    return WordsightError(
        f"{where} has unknown splits: {few(map(repr, names))}{near}; the choices are train, val (valid, "
        f"validation) and test"
    )
