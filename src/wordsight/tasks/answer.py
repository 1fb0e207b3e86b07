"""Answer: what a generator says to questions about images, and VQA accuracy beside what needs no image."""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from wordsight import metrics
from wordsight.backbones import Backbone
from wordsight.backbones.generator import Generator, Seen, Turn, Writing
from wordsight.captioner import seen_by
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.pictures import EachImage, Reading
from wordsight.data.questions import Question, Questions, open_questions
from wordsight.data.splits import Which, digests
from wordsight.files import csv_text, plain_name, write_file
from wordsight.fitted import open_generator
from wordsight.runs import Run
from wordsight.text_metrics import vqa_accuracy
from wordsight.workers import progress

AT_ONCE = 16  # questions in one batch
REMEMBERED = 512  # images whose reading is kept: a photo has several questions, and is shown before others
MEASURED = Writing(max_new_tokens=10)  # answers of data sets are a few words
ENDS = re.compile(r"\n|Q:")  # where an LM goes on to ask itself the next question

Look = Literal["own", "none", "other"]  # at which image: the question's, none, or that of another question

log = logging.getLogger("wordsight")


class Answered(NamedTuple):
    """A question with what was said to it."""

    question: Question
    written: str  # up to its end, as `cut` has it, and as long as it was written
    said: str  # cut to the longest reference
    accuracy: float  # of `said`, from 0 to 1


def cut(written: str, references: Sequence[str] = ()) -> str:
    """An answer in what an LM wrote on: up to the end of the line or the next "Q:", and, where there are
    references, no more words than the longest of them has (AAPE, section 5).

    The paper says "cut to the longest reference"; that it is words that are counted is a guess."""
    line = ENDS.split(written.strip(), maxsplit=1)[0].strip()
    longest = max((len(reference.split()) for reference in references), default=None)
    return " ".join(line.split()[:longest])


# -- asking --


class Asker:
    """Asks a generator questions in batches. What it made of an image is kept for a while."""

    def __init__(
        self,
        generator: Generator,
        how: Writing = MEASURED,
        at_once: int = AT_ONCE,
        remembered: int = REMEMBERED,
        max_pixels: int | None = None,
    ):
        """`at_once` questions are one batch; so many images are `remembered`."""
        self.generator, self.how, self.at_once, self.remembered = generator, how, at_once, remembered
        self.max_pixels = max_pixels
        self.reading = Reading()
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    def ask(
        self,
        asked: Sequence[Question],
        shown: Sequence[Sequence[Question]],
        looked: Sequence[Picture | None],
    ) -> list[str | None]:
        """What is written after each question, behind those of `shown` with their answers, and with a look at
        these pictures in place of the questions' own; None: without any image, the shown ones' included. An
        answer is None where an image cannot be read, which is told.
        """
        answers: list[str | None] = [None] * len(asked)
        with progress("questions", len(asked)) as advance:
            for start in range(0, len(asked), self.at_once):
                rows = range(start, min(start + self.at_once, len(asked)))
                turns = self._turns([(asked[row], shown[row], looked[row]) for row in rows])
                kept = {row: one for row, one in zip(rows, turns) if one is not None}
                prompts = [self.generator.asking(one) for one in kept.values()]
                written = self.generator.write(prompts, self.how) if prompts else []
                for row, text in zip(kept, written):
                    answers[row] = text
                advance(len(rows))
        return answers

    def _turns(
        self, batch: Sequence[tuple[Question, Sequence[Question], Picture | None]]
    ) -> list[list[Turn] | None]:
        wanted = [
            one
            for _, shown, looked in batch
            if looked is not None
            for one in (looked, *(each.picture for each in shown))
        ]
        seen, found = self._see(wanted), []
        for question, shown, looked in batch:
            blind = looked is None
            pictures = [] if looked is None else [looked, *(one.picture for one in shown)]
            if any(picture.name not in seen for picture in pictures):
                found.append(None)
                continue
            turns = [Turn(None if blind else seen[one.picture.name], one.text, one.usual) for one in shown]
            found.append([*turns, Turn(None if looked is None else seen[looked.name], question.text)])
        return found

    def _see(self, pictures: Sequence[Picture]) -> dict[str, Seen]:
        """What the generator makes of each picture that can be read, by name."""
        by_name = {picture.name: picture for picture in pictures}
        known = self._seen.keys() | {one["image"] for one in self.reading.skipped}
        new = [picture for name, picture in by_name.items() if name not in known]
        seen, reasons = seen_by(self.generator, new, self.max_pixels)
        self.reading.skip(reasons)
        self._seen |= {new[place].name: one for place, one in seen.items()}
        found = {name: self._seen[name] for name in by_name if name in self._seen}
        while len(self._seen) > self.remembered:
            self._seen.popitem(last=False)
        return found


class Said(NamedTuple):
    """An answer to a question about one image."""

    image: str
    answer: str  # up to the end of its line
    written: str  # all that the LM wrote


class Answers(EachImage[Said]):
    """The answers to one question about images, in their order (EachImage).

    `shots` training questions of `examples` stand before it, drawn by `seed`. Errors: WordsightError for no
    question, no image, or fewer examples than `shots`."""

    at_once = AT_ONCE

    def __init__(
        self,
        generator: Generator,
        images: Sequence[Any],
        question: str,
        *,
        examples: Questions | None = None,
        shots: int = 0,
        seed: int = 1,
        how: Writing | None = None,
        max_pixels: int | None = None,
        csv: str | Path | None = None,
    ):
        self.question = " ".join(question.split())
        if not self.question:
            raise WordsightError("the question is blank; give a text, as 'What is the man holding?'")
        if shots and examples is None:
            raise WordsightError(
                f"shots={shots} shows questions with answers; say of which data: examples=..."
            )
        self.shown = []
        if examples is not None:
            examples.check_shots(shots)
            self.shown = examples.shown(shots, seed, 0)
        self._asker = Asker(generator, how or Writing(), max_pixels=max_pixels)
        super().__init__(images, max_pixels=max_pixels, csv=csv, reading=self._asker.reading)

    def _of(self, batch: Sequence[Picture]) -> Iterator[Said]:
        asked = [Question(picture, self.question, (), "") for picture in batch]
        written = self._asker.ask(asked, [self.shown] * len(batch), batch)
        for picture, text in zip(batch, written):
            if text is not None:
                yield Said(picture.name, cut(text), text)

    def _header(self) -> list[str]:
        return list(Said._fields)

    def _row(self, said: Said) -> list[str]:
        return list(said)


# -- measuring --


def measure(
    asker: Asker, questions: Questions, *, shots: int = 0, seed: int = 1, look: Look = "own"
) -> list[Answered | None]:
    """The answers to the questions of the measured part. None where an image cannot be read.

    `shots` questions of the training part stand before each, drawn by `seed` (`Questions.shown`). `look`
    changes the image of what is asked: `none` leaves all images out, so the LM answers by the question alone;
    `other` is the image of another question, the next one about another image."""
    questions.check_shots(shots)
    _, asked = questions.measured()
    shown = [questions.shown(shots, seed, number) for number in range(len(asked))]
    written = asker.ask(asked, shown, _looked(asked, look))
    return [None if text is None else _answered(question, text) for question, text in zip(asked, written)]


def _looked(asked: Sequence[Question], look: Look) -> list[Picture | None]:
    if look == "none":
        return [None] * len(asked)
    if look == "own":
        return [question.picture for question in asked]
    others = list({question.picture.name: question.picture for question in asked}.values())
    place = {picture.name: row for row, picture in enumerate(others)}
    return [others[(place[question.picture.name] + 1) % len(others)] for question in asked]


def _answered(question: Question, written: str) -> Answered:
    said = cut(written, question.answers)
    return Answered(question, cut(written), said, vqa_accuracy(said, question.answers))


def constants(questions: Questions) -> dict[str, str]:
    """The commonest training answer of each kind of question: what answers without question and image."""
    by_kind = defaultdict(Counter)
    for row in questions.training:
        by_kind[row.kind].update(row.answers)
    return {kind: counts.most_common(1)[0][0] for kind, counts in by_kind.items()}


def figures(
    answers: Sequence[Answered | None],
    blind: Sequence[Answered | None] | None = None,
    constant: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """VQA accuracy in percent, of all and of each kind, beside the same LM without the images (`blind`) and
    the commonest training answer of each kind (`constant`).

    `over_blind` is [mean, low, high] of the difference, with its interval over these images. `whole` is
    the accuracy of what was written up to the end of its line, where nobody tells how long an answer is."""
    blind = blind if blind is not None else [None] * len(answers)
    pairs = [(ours, theirs) for ours, theirs in zip(answers, blind) if ours is not None]
    if not pairs:
        raise WordsightError("no question could be asked: none of its images can be read")
    kinds = list(dict.fromkeys(ours.question.kind for ours, _ in pairs))
    parts = {kind: [pair for pair in pairs if pair[0].question.kind == kind] for kind in kinds}
    known = constant or {}
    found = {kind: _figures(part, known) for kind, part in parts.items()}
    return {**_figures(pairs, known), "kinds": found if len(kinds) > 1 else {}}


def _figures(
    pairs: Sequence[tuple[Answered, Answered | None]], constant: Mapping[str, str]
) -> dict[str, Any]:
    ours = np.array([answered.accuracy for answered, _ in pairs])
    whole = [vqa_accuracy(answered.written, answered.question.answers) for answered, _ in pairs]
    result = {"questions": len(pairs), "accuracy": _percent(ours), "whole": _percent(np.array(whole))}
    asked = [answered.question for answered, _ in pairs]
    theirs = np.array([other.accuracy for _, other in pairs if other is not None])
    if len(theirs) == len(ours):
        sides = (_by_image(ours, asked), _by_image(theirs, asked))
        result |= {"blind": _percent(theirs), "over_blind": metrics.paired_difference(*sides)}
    if constant and all(question.kind in constant for question in asked):
        always = [vqa_accuracy(constant[question.kind], question.answers) for question in asked]
        result["constant"] = _percent(np.array(always))
    return result


def _by_image(values: Float[np.ndarray, " n"], asked: Sequence[Question]) -> Float[np.ndarray, " I"]:
    """What each image adds to the mean over questions: those about one image are no independent trials."""
    sums = defaultdict(float)
    for question, value in zip(asked, values):
        sums[question.picture.name] += value
    return np.array(list(sums.values())) * len(sums) / len(asked)


def _percent(values: Float[np.ndarray, " n"]) -> float:
    return 100.0 * float(values.mean())


def table(answers: Sequence[Answered | None]) -> str:
    """CSV of each question with its image, what was said and how right that is."""
    header = ["image", "question", "kind", "said", "written", "accuracy", "answers"]
    rows = [
        [
            *(one.question.picture.name, one.question.text, one.question.kind, one.said, one.written),
            *(f"{one.accuracy:g}", " | ".join(one.question.answers)),
        ]
        for one in answers
        if one is not None
    ]
    return csv_text(header, rows)


def evaluate(
    run: Run,
    *,
    data: str,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | str | None = None,
    lm: str | None = None,
    shots: int = 0,
    seed: int = 1,
    generator: Generator | None = None,
) -> list[dict[str, Any]]:
    """Figures of a run's answers to the questions of `data`, kept in metrics.jsonl, and the answers in
    answers-*.csv. Questions about images that it was fitted to are left out. `generator` is what the run
    became, where it is open already."""
    if classes or label:
        given = f"classes={classes}" if classes else f"label={label}"
        raise WordsightError(f"{given} is about classes, but data={data!r} holds questions; leave it out")
    questions = open_questions(data)
    questions.account.tell()
    questions.check_shots(shots)
    questions = _unseen(questions, run)
    generator = generator or open_generator(run.folder, backbone=backbone, lm=lm)
    event, said = measured(generator, questions, shots=shots, seed=seed)
    write_file(run.folder / answers_file(data, shots, seed), said)
    run.log(event)
    return [event]


def measured(
    generator: Generator, questions: Questions, *, shots: int = 0, seed: int = 1
) -> tuple[dict[str, Any], str]:
    """Figures of a generator's answers, as `figures` has them, and a table (CSV) of the answers."""
    asker = Asker(generator)
    answers = measure(asker, questions, shots=shots, seed=seed)
    alone = not generator.needs_image
    blind = measure(asker, questions, shots=shots, seed=seed, look="none") if alone else None
    event = {"event": "answers", "data": questions.name, "part": questions.measured()[0]}
    event |= {"shots": shots, "seed": seed} | figures(answers, blind, constants(questions))
    event["skipped"] = [[one["image"], one["reason"]] for one in asker.reading.skipped]
    return event, table(answers)


def answers_file(data: str, shots: int, seed: int) -> str:
    """The table of what was said to each question of this data."""
    return f"answers-{plain_name(data)}-{shots}shot-seed{seed}.csv"


def _unseen(questions: Questions, run: Run) -> Questions:
    """The questions without those measured on images that the run was fitted to."""
    part, asked = questions.measured()
    seen, digest_of = run.seen(), {row.picture.name: row.picture for row in asked}
    known = {name for name, digest in zip(digest_of, digests(list(digest_of.values()))) if digest in seen}
    rows = [row for row in questions.rows if row.part != part or row.picture.name not in known]
    left = len(questions.rows) - len(rows)
    if left:
        log.info(
            "left out %s of %s questions about images that %s was fitted to",
            f"{left:,}",
            f"{len(asked):,}",
            run.folder,
        )
    if left == len(asked):
        raise WordsightError(
            f"{run.folder} was fitted to all images of data={questions.name!r}; give other questions"
        )
    return replace(questions, rows=rows)
