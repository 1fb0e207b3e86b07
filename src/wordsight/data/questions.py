"""Questions: images with a question each and the answers of people, from a table or in VQA's layout
(vqa.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from wordsight.config import WordsightError
from wordsight.data import Picture, vqa
from wordsight.data.account import Account
from wordsight.data.columns import Columns
from wordsight.data.labels import texts_of
from wordsight.data.tables import cell_pictures, is_table, read_columns
from wordsight.text_metrics import ENOUGH, plain_answer

QUESTION, ANSWER = "question", "answer"
KINDS = ("kind", "answer_type", "question_type")  # columns, of which the first that is there is taken
BETWEEN = "|"  # stands between several answers in one cell
NO_QUESTION, NO_ANSWER = "without a question", "without an answer"
YES_NO = ("yes", "no")
FORMS = (
    "a table of path, question and answer (answers joined by |, answer_1, ...), or a folder or file in VQA's "
    "layout (..._questions.json, ..._annotations.json)"
)


class Question(NamedTuple):
    """A question about an image, with what people answered: ten of them in VQA, or one who stands for all."""

    picture: Picture
    text: str
    answers: tuple[str, ...]
    kind: str
    part: str = "train"  # train, val or test

    @property
    def usual(self) -> str:
        """The commonest answer, the first of several as common."""
        return Counter(self.answers).most_common(1)[0][0]


@dataclass(frozen=True)
class Questions:
    """All questions of a source that have an image and an answer, in its order."""

    name: str
    rows: Sequence[Question]
    account: Account = field(default_factory=Account)  # what was seen: kept, or left out and why

    def of(self, part: str) -> list[Question]:
        return [row for row in self.rows if row.part == part]

    def measured(self) -> tuple[str, list[Question]]:
        """The part that is measured on, and its questions: test, or val where the test part's answers are not
        public (VQA), or all where nothing is marked.
        """
        part = next((part for part in ("test", "val", "train") if self.of(part)), "train")
        return part, self.of(part)

    @cached_property
    def training(self) -> list[Question]:
        """What may be shown with its answer: the training part, where another is measured on."""
        return self.of("train") if self.measured()[0] != "train" else []

    def check_shots(self, count: int) -> None:
        """Errors: WordsightError where `count` questions cannot be shown, each about another image."""
        if count < 0:
            raise WordsightError(f"shots={count} is not possible; give 0 or more")
        images = len({row.picture.name for row in self.training})
        if images < count:
            raise WordsightError(
                f"shots={count} shows questions about {count} training images, and {self.name!r} has "
                f"{images} marked as train beside those it is measured on; give fewer, or shots=0"
            )

    def shown(self, count: int, seed: int, number: int) -> list[Question]:
        """`count` training questions to show with their answers before question `number`: drawn by `seed` for
        each by itself, about different images. Fewer are the first of more. Call `check_shots` before.
        """
        drawn, chosen = random.Random(f"{seed} {number}"), {}
        while len(chosen) < count:
            row = drawn.choice(self.training)
            chosen.setdefault(row.picture.name, row)
        return list(chosen.values())


def open_questions(spec: str) -> Questions:
    """The questions of a table or of VQA's layout.

    Errors: WordsightError where it is neither, columns or keys are missing, a question has two or three
    answers, which VQA's accuracy cannot count, or no question is left; and as the readers."""
    spec = str(spec).strip()
    path = Path(spec).expanduser().absolute()
    if is_table(path):
        found = _of_table(read_columns(path), spec)
    elif vqa.is_vqa(path):
        found = _of_vqa(path, spec)
    else:
        raise WordsightError(
            f"data={spec!r} holds no questions{'' if path.exists() else ': it does not exist'}; give {FORMS}"
        )
    found.account.check()
    if not found.rows:
        told = "".join(f"; {note}" for note in found.account.notes())
        raise WordsightError(f"data={spec!r} holds no question with an image and an answer{told}")
    return found


def is_questions(spec: str) -> bool:
    """Whether a source has questions."""
    path = Path(spec).expanduser().absolute()
    if is_table(path):
        return read_columns(path).find([QUESTION]) is not None
    return vqa.is_vqa(path)


# -- one reader a form --


def _of_table(columns: Columns, spec: str) -> Questions:
    account = Account(QUESTION, seen=columns.count)
    texts = columns.cells(columns.need([QUESTION], QUESTION))
    names = columns.named(ANSWER)
    if not names:
        columns.need([ANSWER, "answers", f"{ANSWER}_1"], ANSWER)
    kind = columns.find(KINDS)
    kinds = columns.cells(kind) if kind else [""] * columns.count
    cells = zip(*(columns.cells(name) for name in names))
    pictures = cell_pictures(columns, account, spec)
    rows = zip(pictures, texts, cells, kinds, columns.parts())
    kept = [
        _question(picture, text, _answers(given, f"row {row} of {columns.where}"), kind, part, account)
        for row, (picture, text, given, kind, part) in enumerate(rows, 1)
        if picture is not None
    ]
    return Questions(spec, [row for row in kept if row], account)


def _of_vqa(path: Path, spec: str) -> Questions:
    account = Account(QUESTION)
    kept = [
        _question(one.picture, one.text, one.answers, one.kind, one.part, account)
        for one in vqa.read(path, account)
    ]
    return Questions(spec, [row for row in kept if row], account)


def _question(
    picture: Picture, text: str | None, answers: Sequence[str], kind: str, part: str, account: Account
) -> Question | None:
    """One question, counted as kept; None where something of it is blank, which is told.

    Errors: WordsightError for two or three answers, which are no vote."""
    words = " ".join(str(text or "").split())
    if not words or not answers:
        account.leave(NO_ANSWER if words else NO_QUESTION, words or picture.name)
        return None
    if 1 < len(answers) <= ENOUGH:
        raise WordsightError(
            f"{words!r} about {picture.name} has {len(answers)} answers; give one, or {ENOUGH + 1} or more: "
            f"VQA's accuracy counts how many of ten people gave an answer"
        )
    account.kept += 1
    return Question(picture, words, tuple(answers), str(kind or "").strip() or kind_of(answers), part)


def kind_of(answers: Sequence[str]) -> str:
    """yes/no, number or other, as VQA sorts questions, by the commonest answer."""
    answer = plain_answer(Counter(answers).most_common(1)[0][0])
    return "yes/no" if answer in YES_NO else "number" if answer.isdigit() else "other"


def _answers(cells: Sequence[object], where: str) -> list[str]:
    """The answers in one row's cells."""
    texts = [text for cell in cells for text in texts_of(cell, f"{where}, answer,", "an answer")]
    return [part.strip() for text in texts for part in text.split(BETWEEN) if part.strip()]
