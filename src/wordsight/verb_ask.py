"""The verb `ask`: from the command line's options to wordsight.tasks.answer, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wordsight import hints, terminal
from wordsight.arguments import BACKBONE, CSV, DEVICE, LM, MAX_PIXELS, SEED, Verb, argument
from wordsight.config import WordsightError
from wordsight.early import check_reading
from wordsight.reader import nearest_path

EXAMPLE = "wordsight ask RUN img.jpg 'What is the man holding?'"


def ask(options: argparse.Namespace) -> dict[str, Any]:
    images, question = _parts(options.words)
    hints.check_run_or_model("ask", options.run)
    check_reading(options.max_pixels, options.csv, images)
    from wordsight.backbones.generator import Writing
    from wordsight.backbones.hub import run_folder
    from wordsight.data.questions import open_questions
    from wordsight.fitted import open_generator
    from wordsight.tasks.answer import Answers

    examples = open_questions(options.examples) if options.examples else None
    how = Writing(max_new_tokens=options.max_new_tokens)
    place = {name: getattr(options, name) for name in ("device", "backbone", "lm")}
    generator = open_generator(run_folder(options.run), **place)
    drawn = {"examples": examples, "shots": options.shots, "seed": options.seed}
    reading = {"max_pixels": options.max_pixels, "csv": options.csv}
    answers = Answers(generator, images, question, **drawn, how=how, **reading)
    entries = (one._asdict() for one in answers)
    shown = [{"question": one.text, "answer": one.usual, "image": one.picture.name} for one in answers.shown]
    return {"run": options.run, "question": answers.question, "answers": entries} | {
        "examples": shown,
        "skipped": answers.skipped,
        "account": answers.account.to_dict,
    }


def _parts(words: Sequence[str]) -> tuple[list[str], str]:
    """The images among the words, and the one question. Errors: WordsightError where either is missing."""
    # pathlib's own raises where a text is longer than a name may be
    images = [word for word in words if os.path.exists(os.path.expanduser(word))]
    rest = [word for word in words if word not in images]
    gone = [word for word in rest if hints.is_picture(word) and " " not in word]
    if gone:
        near = nearest_path(Path(gone[0]).expanduser())
        raise WordsightError(f"the image {gone[0]!r} does not exist{near}; give the path of an image")
    if not rest:
        raise WordsightError(f"the question is missing: {EXAMPLE}")
    if not images:
        raise WordsightError(f"{rest[-1]!r} is a question without an image to look at: {EXAMPLE}")
    if len(rest) > 1:
        raise WordsightError(
            f"{', '.join(map(repr, rest[:3]))} are no images, and one question is asked at a time; put it in "
            f"quotes: {EXAMPLE}"
        )
    return images, rest[0]


ASK = Verb(
    ask,
    terminal.ask,
    f"answer a question about images: {EXAMPLE}",
    [
        argument("run", metavar="RUN", help="a run of limber, or an image-text-to-text model"),
        argument(
            "words",
            nargs="+",
            metavar="IMAGE... QUESTION",
            help="images, or folders of them, and one question in quotes",
        ),
        argument("--shots", type=int, default=0, metavar="K", help="questions shown with answers (0)"),
        argument("--examples", metavar="DATA", help="of which data: a table of questions, or VQA's files"),
        SEED,
        argument(
            "--max-new-tokens", type=int, default=16, metavar="N", help="tokens of an answer (default 16)"
        ),
        CSV,
        BACKBONE,
        LM,
        DEVICE,
        MAX_PIXELS,
    ],
)
