"""Coverage: how often captions name the classes of a task. A model has learned little of a class that its
training captions do not name, and what it can still do there is its text tower's own knowledge.

CLAMP's concept coverage, after UniCL: a class is covered where more than 5 captions name it; the coverage is
the share of classes that are, the count the mean of how often each is named.

forms   the forms of a name in captions     matching   where they stand in many captions at once"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int
from joblib import cpu_count

from wordsight import cluster
from wordsight.cluster import Engine
from wordsight.config import WordsightError
from wordsight.coverage.forms import BETWEEN, forms_of
from wordsight.coverage.matching import check, count
from wordsight.reader import nearest, nearest_path
from wordsight.workers import each

By: TypeAlias = Literal["phrases", "chunks"]

CUT_OFF = 5  # as in the paper: more than so many captions
PIECE = {"phrases": 20_000, "chunks": 2_000}  # captions that a process counts at once
ALONE = {"phrases": 10, "chunks": 1}  # pieces for which other processes would take longer to start


def coverage(
    captions: str | Path | Sequence[str | Path],
    classes: str | Path | Sequence[str],
    *,
    by: By = "phrases",
    cut_off: int = CUT_OFF,
    jobs: int | None = None,  # processes; by default one a core
    engine: Engine = "here",  # ray: on the machines of a Ray cluster
    address: str | None = None,  # its HOST:PORT
) -> dict[str, Any]:
    """How many captions name each class, each caption once a class.

    `captions` are one or several sources of data/texts.py, read as they are counted; `classes` a file (JSON,
    or a name a line), or the names. Returns {"captions", "classes", "by", "cut_off", "count", "covered",
    "coverage", "counts": {class: captions}}. As in the paper by="chunks", noun chunks by spaCy. Differs: the
    default finds the names as phrases, which needs no model, and captions are counted, not occurrences.
    Errors: WordsightError for sources and classes that cannot be read, where nothing is said or named,
    where a package is missing, and where no cluster answers."""
    names, forms = _checked(classes, by, cut_off)
    sources = [captions] if isinstance(captions, (str, Path)) else captions
    pieces = _pieces(map(str, sources), PIECE[by])
    with cluster.engine(engine, address):
        said, counts = _counted(pieces, (by, json.dumps(forms)), len(names), ALONE[by], jobs)
    if not said:
        raise WordsightError(f"{', '.join(map(repr, map(str, sources)))} holds no captions")
    covered = int((counts > cut_off).sum())
    return {
        "captions": said,
        "classes": len(names),
        "by": by,
        "cut_off": cut_off,
        "count": float(counts.mean()),
        "covered": covered,
        "coverage": covered / len(names),
        "counts": dict(zip(names, counts.tolist())),
    }


def _checked(
    classes: str | Path | Sequence[str], by: str, cut_off: int
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names and their forms, before any caption is read."""
    from wordsight.data.labels import check_distinct, read_class_list

    if by not in PIECE:
        raise WordsightError(f"by={by!r} is no way to find names{nearest(by, PIECE)}; give phrases or chunks")
    if cut_off < 0:
        raise WordsightError(f"cut_off={cut_off} is below 0; a class is covered above so many captions")
    if isinstance(classes, (str, Path)):
        path = Path(classes).expanduser()
        if not path.exists():
            raise WordsightError(
                f"class list {str(classes)!r} does not exist{nearest_path(path)}; give a file with one name "
                f"a line, or JSON as in classes.json"
            )
        names = read_class_list(path)
    else:
        names = list(classes)
        check_distinct(names, "classes")
    if not names:
        raise WordsightError("classes names no class; give at least one")
    check(by)
    return names, forms_of(names)


def _pieces(sources: Iterable[str], size: int) -> Iterator[str]:
    """The captions of all sources, so many to a text."""
    from wordsight.data.texts import captions_in

    captions = itertools.chain.from_iterable(map(captions_in, sources))
    while some := list(itertools.islice(captions, size)):
        text = BETWEEN.join(some)
        if text.count(BETWEEN) != len(some) - 1:  # one has it inside
            text = BETWEEN.join(caption.replace(BETWEEN, " ") for caption in some)
        yield text


def _count(text: str, by: str, forms: str) -> tuple[int, Int[np.ndarray, " C"]]:
    return text.count(BETWEEN) + 1, count(by, forms, text)


def _counted(
    pieces: Iterator[str], given: tuple[str, str], classes: int, alone: int, jobs: int | None
) -> tuple[int, Int[np.ndarray, " C"]]:
    """Captions and counts of all pieces: here where there are few, else over all cores, or a cluster's."""
    jobs = jobs or cpu_count()
    first = list(itertools.islice(pieces, alone))
    rest = itertools.chain(first, pieces)
    if len(first) < alone or (jobs == 1 and cluster.current() is None):
        found = (_count(text, *given) for text in rest)
    else:
        found = each(_count, rest, jobs=jobs, given=given, processes=True, label="parts of captions")
    captions, counts = 0, np.zeros(classes, np.int64)
    for number, part in found:
        captions, counts = captions + number, counts + part
    return captions, counts
