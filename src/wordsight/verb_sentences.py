"""The verb `sentences`: from the command line's options to what writes them, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wordsight import help, hints, terminal
from wordsight.arguments import Verb, argument
from wordsight.config import WordsightError
from wordsight.names import class_list
from wordsight.reader import read
from wordsight.settings import WriterSettings


def sentences(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_words("sentences", options.words)
    words, own = options.words, help.described(help.AboutSettings)
    asked = [word for word in words if word.partition("=")[0] in own]
    about = read(help.AboutSettings, *asked)
    writer = [word for word in words if word not in asked]
    return _contrasted(options.contrast, about, writer) if options.contrast else _written(about, writer)


def _written(about: help.AboutSettings, writer: Sequence[str]) -> dict[str, Any]:
    if (about.data is None) == (about.classes is None) or about.out is None:
        raise WordsightError(
            "give data=... or classes=a,b,c or classes=@FILE, one name a line (whose names to ask about), "
            "model=..., and out=sentences.json"
        )
    if about.backbone is not None or about.pairs is not None:
        raise WordsightError("pairs= and backbone= go with --contrast RUN; leave them out, or name the run")
    settings = read(WriterSettings, *writer)
    hints.check_data(about.data)
    names = class_list(about.classes) if about.classes is not None else _class_names(about.data or "")
    from wordsight.sentences.writers import write_sentences

    found = write_sentences(names, settings, about.out)
    return {"out": about.out, "sentences": {name: len(texts) for name, texts in found.items()}}


def _class_names(data: str) -> Sequence[str]:
    from wordsight.data import open_dataset

    return open_dataset(data).class_names


def _contrasted(run: str, about: help.AboutSettings, writer: Sequence[str]) -> dict[str, Any]:
    hints.check_run("sentences", run)
    if about.classes is not None or about.out is None:
        raise WordsightError(
            "--contrast RUN asks about the classes that the run confuses; give model=... and "
            "out=sentences.json, and no classes="
        )
    from wordsight.tell_apart import PAIRS, QUESTIONS, tell_apart

    settings = read(WriterSettings, {"questions": QUESTIONS}, *writer)
    pairs = PAIRS if about.pairs is None else about.pairs
    return tell_apart(run, settings, about.out, pairs=pairs, data=about.data, backbone=about.backbone)


SENTENCES = Verb(
    sentences,
    terminal.sentences,
    "have an LLM write sentences about classes: wordsight sentences data=photos/ model=... out=s.json",
    [
        argument(
            "--contrast",
            metavar="RUN",
            help="about the classes that this run confuses, kept where they raise its accuracy on left-out "
            "labelled images",
        ),
        argument(
            "words",
            nargs="*",
            metavar="KEY=VALUE",
            help="settings, or YAML files of them; later ones win",
        ),
    ],
)
