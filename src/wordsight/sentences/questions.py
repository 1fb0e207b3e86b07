"""Questions: what a model is asked about a class, with the article that its name takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wordsight.files import WordsightError, read_json
from wordsight.names import class_list
from wordsight.reader import nearest
from wordsight.sentences.templates import fill

QUESTIONS = Path(__file__).parent / "questions.json"
OTHER = "{other}"  # where a question about two classes has the name of the second
NOT_OF_ONE = f"is about two classes; {OTHER} is for `wordsight sentences --contrast RUN`"
NOT_OF_TWO = (
    f"must hold {OTHER} once, where the name of the class goes that {{}} is confused with; "
    f"questions=contrast is a ready set"
)


def read_questions(which: str | Sequence[str], *, two: bool = False) -> tuple[str, ...]:
    """The questions of a set in questions.json, or one's own: a list, or text as `class_list` reads it, with
    quotes around one that holds a comma. Each holds one `{}`; `a(n) {}` becomes "a" or "an" as the name
    demands. One about `two` classes holds one `{other}` beside it.
    """
    if isinstance(which, str) and ("{}" in which or which.startswith("@")):
        which = class_list(which)
    elif isinstance(which, str):
        table = read_json(QUESTIONS, "question file")
        if which not in table:
            raise WordsightError(
                f"question set {which!r} is not known{nearest(which, table)}; give your own list or one of "
                f"{', '.join(table)}"
            )
        which = table[which]
    if not which:
        raise WordsightError("the list of questions is empty; 'generic' names a ready set")
    for question in which:
        if not isinstance(question, str) or question.count("{}") != 1:
            raise WordsightError(
                f"question {question!r} must be text that holds {{}} once, where the class name goes"
            )
        if question.count(OTHER) != int(two):
            raise WordsightError(f"question {question!r} {NOT_OF_TWO if two else NOT_OF_ONE}")
    return tuple(which)


def ask_about(question: str, name: str, other: str = "") -> str:
    """The question with the class name in it: ask_about("Describe a(n) {}.", "old_owl") is "Describe an old
    owl."; `other` is the second class's, where it is about two.
    """
    question = _with_article(_with_article(question, "{}", name), OTHER, other)
    return fill(question, name).replace(OTHER, other.replace("_", " "))


def _with_article(question: str, place: str, name: str) -> str:
    small = article(name)
    return question.replace(f"a(n) {place}", f"{small} {place}").replace(
        f"A(n) {place}", f"{small.capitalize()} {place}"
    )


def article(name: str) -> str:
    """ "a" or "an" by sound: a unicycle, an hour, an F-16, a U-2, an 8-ball. A guess by rule, right for
    nearly all names.
    """
    first = re.split(r"[\s_/-]", name.strip(" _"))[0] if name.strip(" _") else ""
    letters = re.split(r"[^A-Z]", first, maxsplit=1)[0]
    spelled = (
        len(first) == 1
        or (letters and first[len(letters) :].isdigit())
        or (len(letters) > 1 and not set(letters) & set("AEIOUY"))
    )
    if 1 < len(letters) < 4 and letters[0] == "U":  # USB, UAV
        return "a"
    if spelled and first[0].isalpha():  # read letter by letter: MG, A320, F/A-18
        return "an" if first[0] in "AEFHILMNORSXaefhilmnorsx" else "a"
    if first[:1].isdigit():  # eight, eleven, eighteen and the years 11xx, 18xx
        return "an" if re.match(r"8|1[18](\d\d)?(?!\d)", first) else "a"
    word = first.lower()
    if re.match(r"hour|honest|honou?r|heir|suv$", word):
        return "an"
    if re.match(r"eu|ewe|one(?![a-z])|once|ouija|uk[aeiou]|uni(?![nm])|ur[ai]|us[aeiu]|ut[aeio]", word):
        return "a"
    return "an" if word[:1] in tuple("aeiou") else "a"
