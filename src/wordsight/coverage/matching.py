"""Matching: in how many captions of a text each class is named. Runs in worker processes, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from wordsight.config import WordsightError
from wordsight.coverage.forms import BETWEEN, plain
from wordsight.extras import missing

MODEL = "en_core_web_sm"  # the paper's
SMALL = frozenset(
    ("DET", "NUM", "PRON", "PUNCT", "PART")
)  # words before a chunk's name that are no part of it


class Named(NamedTuple):
    """Which form was met in which caption of a text, each as often as it was."""

    captions: Int[np.ndarray, " n"]
    forms: Int[np.ndarray, " n"]


def count(by: str, named: str, text: str) -> Int[np.ndarray, " C"]:
    """Captions of a text, joined by BETWEEN, that name each class; `named` is what `forms_of` gives, in
    JSON.
    """
    forms, classes = _forms(named)
    ways: Mapping[str, Callable[[str, str], Named]] = {"phrases": _phrases, "chunks": _chunks}
    return _classes_named(ways[by](named, text), forms, classes)


def check(by: str) -> None:
    """Errors: WordsightError where a package or a model is missing."""
    if by == "chunks":
        _parser()
    else:
        _automaton_class()


def _classes_named(named: Named, forms: Mapping[str, list[int]], classes: int) -> Int[np.ndarray, " C"]:
    """Each class once a caption, whichever of its forms is there, and however often."""
    from scipy.sparse import csr_array

    owners = [(form, number) for form, numbers in enumerate(forms.values()) for number in numbers]
    rows, columns = np.array(owners).T
    of_form = csr_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(forms), classes))
    shape = (int(named.captions.max(initial=-1)) + 1, len(forms))
    met = csr_array((np.ones(len(named.forms), bool), (named.captions, named.forms)), shape=shape)
    both: Any = met @ of_form
    return np.bincount(both.indices, minlength=classes)


@cache
def _forms(named: str) -> tuple[dict[str, list[int]], int]:
    forms: dict[str, list[int]] = json.loads(named)
    return forms, 1 + max(number for numbers in forms.values() for number in numbers)


# -- phrases --


def _phrases(named: str, text: str) -> Named:
    """Every form, wherever it stands between two words: "dog" in "hot dog" too. One pass over the text, by
    Aho and Corasick's automaton (1975).
    """
    words = plain(text)
    met = np.array(list(_automaton(named).iter(words)), dtype=np.int64).reshape(-1, 2)
    return Named(np.searchsorted(_ends(words), met[:, 0]), met[:, 1])


def _ends(words: str) -> Int[np.ndarray, " n"]:
    """Where each caption ends."""
    letters: Any = np.frombuffer(words.encode("utf-32-le", "surrogatepass"), "<u4")
    return np.flatnonzero(letters == ord(BETWEEN))


@cache
def _automaton(named: str) -> Any:
    found = _automaton_class()()
    for number, form in enumerate(_forms(named)[0]):
        found.add_word(form, number)
    found.make_automaton()
    return found


def _automaton_class() -> Any:
    try:
        import ahocorasick
    except ModuleNotFoundError as error:
        raise WordsightError(missing("coverage", "coverage", "pyahocorasick")) from error
    return ahocorasick.Automaton


# -- noun chunks --


def _chunks(named: str, text: str) -> Named:
    """Noun chunks that are a form, articles, numbers and pronouns before it aside. As in the paper, which
    does not say how a chunk and a name are compared: "big dog" is no "dog" here.
    """
    known = {form: number for number, form in enumerate(_forms(named)[0])}
    met = [
        (place, known[form])
        for place, doc in enumerate(_parser().pipe(text.split(BETWEEN)))
        for form in _chunk_forms(doc)
        if form in known
    ]
    captions, forms = np.array(met, dtype=np.int64).reshape(-1, 2).T
    return Named(captions, forms)


def _chunk_forms(doc: Any) -> Iterator[str]:
    for chunk in doc.noun_chunks:
        start = next((word.i for word in chunk if word.pos_ not in SMALL), chunk.end)
        yield plain(doc[start : chunk.end].text)


@cache
def _parser() -> Any:
    try:
        import spacy

        return spacy.load(MODEL, exclude=["ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise WordsightError(
            f"noun chunks need spaCy with its model {MODEL}, which is not installed: pip install "
            f"'wordsight[chunks]' and python -m spacy download {MODEL}; by=phrases needs no model"
        ) from error
