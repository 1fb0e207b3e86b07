"""Forms: captions and class names in one plain form, and the forms that a name has in captions: as it is
written, one of them and several. inflect makes plurals; simplemma's dictionary knows what is a plural (news
is none)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from wordsight.config import WordsightError
from wordsight.extras import needed
from wordsight.files import nfc

BETWEEN = "\0"  # stands between the captions of a joined text
MARK = "|"  # in place of punctuation, which no phrase reaches across
APOSTROPHES = re.compile(r"'s\b|'")
PUNCTUATION = re.compile(rf"[^\w {BETWEEN}]+")
BLANKS = ("\n", "\r", "\t", "\u00a0", "-", "_")  # that join words as a space does
LONG = 3  # words of a name whose plural may be in front, as in heads of cabbage


def plain(text: str) -> str:
    """A text, or several joined by BETWEEN, as words with one space around each: in lower case, without 's,
    with MARK for punctuation.
    """
    text = APOSTROPHES.sub("", nfc(text).lower().replace("’", "'"))
    for blank in BLANKS:
        text = text.replace(blank, " ")
    text = PUNCTUATION.sub(f" {MARK} ", text)
    text = f" {text.replace(BETWEEN, f' {BETWEEN} ')} "
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def forms_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Every form of every name, plain, with the numbers of the classes that it names: "glasses" may be of
    glass and of glasses.

    Errors: WordsightError for a name without a letter or digit, and where a package is missing."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        words = plain(name).strip(f" {MARK}")
        if not words:
            raise WordsightError(f"class {name!r} has no letter or digit that a caption could name it by")
        for form in _forms(words):
            found.setdefault(f" {form} ", []).append(number)
    return found


def _forms(words: str) -> list[str]:
    """A name as it is, its singular, and the plurals of that: inflect's usual ones and the classical."""
    *before, last = words.split(" ")
    one = _singular(last)
    ones = [" ".join([*before, form]) for form in dict.fromkeys((last, one))]
    many = [" ".join([*before, form]) for form in _plurals(one)]
    if len(before) + 1 >= LONG and MARK not in words:
        many += _plurals(ones[-1])
    return list(dict.fromkeys((*ones, *many)))


@cache
def _singular(word: str) -> str:
    """One of what a word means several of, or the word."""
    lemma, one = _lemma(word), _engines()[0].singular_noun(word) if word.isalpha() else False
    return one if one and lemma != word and word in _plurals(one) else word


@cache
def _plurals(words: str) -> tuple[str, ...]:
    """None of what is no word: numbers, punctuation, other alphabets."""
    if not (words.isascii() and words.replace(" ", "").isalpha()):
        return ()
    found = dict.fromkeys(engine.plural_noun(words).lower() for engine in _engines())
    return tuple(many for many in found if many != f"{words}s" or not _is_own_word(many.split()[-1]))


def _is_own_word(word: str) -> bool:
    """Whether a word that ends like a plural is none: news is not several of new."""
    from simplemma import is_known

    return is_known(word, lang="en") and _lemma(word) == word


def _lemma(word: str) -> str:
    from simplemma import lemmatize

    return lemmatize(word, lang="en").lower()


@cache
def _engines() -> tuple[Any, Any]:
    with needed("coverage", "coverage"):
        import inflect
        import simplemma  # noqa: F401  `_lemma` needs it
    usual, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return usual, classical
