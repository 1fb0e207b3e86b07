"""Trees: what lies beside the tars in CLIP_benchmark's layout, which `clip_benchmark_export_wds` writes.

test/0.tar, 1.tar, ..., test/nshards.txt (how many)    classnames.txt (one a line, by label)
zeroshot_classification_templates.txt ({c} for the class)    dataset_type.txt (retrieval, multilabel)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Literal, get_args

import numpy as np

from wordsight.config import WordsightError
from wordsight.data.account import Account, counted, few
from wordsight.data.catalogue import SECOND_NAMES
from wordsight.data.labels import CLASSNAMES, class_lines, lines_of
from wordsight.files import read_text

Kind = Literal["classification", "retrieval", "multilabel"]

TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
COUNT = "nshards.txt"
# CLIP's 1,000 names of ImageNet call two pairs alike; the places of those that have another name
TWINS = {744: "n04008634", 836: "n04355933"}


def tars_of(folder: Path, found: Sequence[str]) -> list[str]:
    """The tars of one part, by number where nshards.txt says how many there are.

    Errors: WordsightError where there are more or fewer, or it holds no number."""
    path = folder / COUNT
    if not path.is_file():
        return sorted(found)
    text = read_text(path, "number of shards").strip()
    if not text.isdecimal() or not int(text):
        raise WordsightError(f"{str(path)!r} holds {text!r:.40}; expected the number of tars, 1 or more")
    names = [f"{number}.tar" for number in range(min(int(text), len(found) + 1))]
    there = {Path(one).name for one in found}
    absent = next((name for name in names if name not in there), None)
    if absent or int(text) != len(found):
        told = f"{absent} is missing" if absent else f"{few(sorted(there - set(names)))} is not counted"
        raise WordsightError(
            f"{str(path)!r} says {counted(int(text), 'shard')}, but the .tar files there are {len(found)} "
            f"({told}); fetch the tree again, or mend the number"
        )
    return [str(folder / name) for name in names]


def beside(folders: Sequence[Path], name: str) -> Path | None:
    """A file of the tree, in the first of the folders that has it."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def kind_of(folders: Sequence[Path]) -> Kind:
    """What its samples are: images with one label, with several, or with captions.

    Errors: WordsightError for a kind that is not known."""
    path = beside(folders, KIND)
    said = read_text(path, "kind of the data").strip().lower() if path else "classification"
    for kind in get_args(Kind):
        if said == kind:
            return kind
    raise WordsightError(f"{str(path)!r} holds {said!r:.40}; the choices are {', '.join(get_args(Kind))}")


def templates_of(folders: Sequence[Path], account: Account) -> tuple[str, ...]:
    """The tree's templates with {} for the class, in their order; none where there is no such file. A line
    that does not hold {c} once, or holds {} of its own, is told."""
    path = beside(folders, TEMPLATES)
    lines = [line.strip() for line in lines_of(read_text(path, "template list"))] if path else []
    odd = [line for line in lines if line and not _is_template(line)]
    if odd:
        account.remark(
            f"{counted(len(odd), 'template')} of {path} without one {{c}}, or with {{}}, not used: {few(odd)}"
        )
    return tuple(line.replace("{c}", "{}") for line in lines if _is_template(line))


def _is_template(line: str) -> bool:
    return line.count("{c}") == 1 and "{}" not in line


def names_of(folders: Sequence[Path], account: Account) -> list[str] | None:
    """The class names by label, a name that is empty included; None where there is no list.

    ImageNet's second "missile" and first "sunglasses" take ImageNet's own names, as in the catalogue: equal
    prompts cannot be told apart. Differs from CLIP_benchmark, which leaves the tie to the sort."""
    path = beside(folders, CLASSNAMES)
    if path is None:
        return None
    names = class_lines(read_text(path, "class list"))
    for place, key in TWINS.items():
        if len(names) == 1000 and names.count(names[place]) == 2:
            twice = f"{path} has {names[place]!r} twice"
            account.remark(f"{twice}; class {place} is called {SECOND_NAMES[key]!r}")
            names[place] = SECOND_NAMES[key]
    return names


def classes_shown(content: bytes, where: str) -> tuple[bool, ...]:
    """Whether an image shows each class, from key.npy: a vector of 0 and 1, one place a class.

    Errors: WordsightError for any other array."""
    try:
        found = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TokenError, MemoryError) as error:  # the last by a wrong shape
        raise WordsightError(f"the labels of {where} are no NumPy array: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise WordsightError(
            f"the labels of {where} are {found.dtype} of shape {found.shape}; expected a vector of 0 and 1"
        )
    return tuple(map(bool, found.tolist()))
