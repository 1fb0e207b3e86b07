"""Tell apart: what tells the classes apart that a run confuses, said by an LLM and kept where it helps.

`wordsight sentences --contrast RUN`. Everything is judged on labelled images that the method was fitted
without; images that a run is tested on are never looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wordsight.backbones import Backbone
from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data.features import text_features
from wordsight.files import nfc, write_file
from wordsight.runs import Run
from wordsight.sentences.local import writer_of
from wordsight.sentences.questions import ask_about, read_questions
from wordsight.sentences.records import load_record
from wordsight.sentences.self_written import SELF
from wordsight.sentences.writers import header_of, write_answers
from wordsight.settings import WriterSettings
from wordsight.tell_apart.case import Candidate, Case, Parts, open_case
from wordsight.tell_apart.choosing import Gain, Kept, Pair, chosen, confused, gain

if TYPE_CHECKING:
    from wordsight.backbones.text_tower import TextTower

PAIRS = 10  # of classes that are asked about
QUESTIONS = "contrast"  # the set of questions about two classes
WRITTEN = "-written"  # ends the name of the file that holds all that was answered


def tell_apart(
    run: str | Path,
    settings: WriterSettings,
    out: str | Path,
    *,
    pairs: int = PAIRS,
    data: str | None = None,
    backbone: str | Backbone | None = None,
) -> dict[str, Any]:
    """Write a file of sentences for `fit`: the run's own, and what an LLM says of the `pairs` of classes that
    it confuses most often, as far as that raises its accuracy.

    `settings.model` is any writer of `write_sentences`, or `self`: the LM inside the run's backbone. All that
    it answers stands in OUT-written.json, and no question is asked twice. A sentence is kept where the method
    finds the labels of left-out images likelier with it, and classifies no fewer of them rightly. What that
    is worth is measured by choosing without a fold of the images, fitting with what was chosen and
    classifying that fold, so that no image helps to choose the sentences that it is counted for.

    `data` and `backbone` name the run's where they have moved. Returns what was found, in plain values.
    Errors: WordsightError where the run has no labelled images, confuses nothing or reads no sentences; and
    as `write_sentences`."""
    questions, out = read_questions(settings.questions, two=True), Path(out).expanduser()
    if pairs < 1:
        raise WordsightError(f"pairs={pairs} asks about no classes; give 1 or more")
    case = open_case(Run.open(run_folder(run)), data, backbone)
    settings, tower = _writer(settings, case.backbone)
    parts = case.left_out()
    _demand_reading(case, parts)
    asked = _demanded(case, parts)[:pairs]
    header = header_of(settings, questions) | {"pairs": [[pair.first, pair.second] for pair in asked]}
    origin = {**header, "run": str(run)}
    load_record(out, origin)  # before anything is asked: refuses to write over what others wrote
    written = out.with_name(f"{out.stem}{WRITTEN}{out.suffix}")
    candidates = _candidates(case, _questions(asked, questions), header, settings, written, tower)
    worth, kept = gain(case, candidates, pairs), chosen(case, parts, candidates)
    _write(out, origin, case.run.sentences, kept, worth)
    return {
        "run": str(run),
        "out": str(out),
        "written": str(written),
        **_told(asked, candidates, kept, worth),
    }


def _writer(settings: WriterSettings, backbone: Backbone) -> tuple[WriterSettings, TextTower | None]:
    """Who writes; with `model=self` the LM inside the backbone."""
    if settings.model != SELF:
        return settings, None
    tower = writer_of(backbone)
    return replace(settings, model=tower.plain.name_or_path or backbone.name, local=True), tower


def _demand_reading(case: Case, parts: Parts) -> None:
    """Errors: WordsightError where the method's scores are the same without any sentence."""
    (method, held), *_ = parts
    texts, settings = case.data.texts, case.run.settings
    none = tuple(rows[:0] for rows in texts.sentence_vectors)
    silent = replace(texts, sentences=((),) * len(texts.names), sentence_vectors=none)
    if torch.equal(*(case.scores(method, held.images, words) for words in (texts, silent))):
        raise WordsightError(
            f"{case.run.folder} reads no sentences when it predicts (method={settings.method}, "
            f"words={settings.words}); fit with words=sentences or words=calibrated, as aape does by default"
        )


def _demanded(case: Case, parts: Parts) -> list[Pair]:
    found = confused(case, parts)
    if not found:
        count = sum(len(held.labels) for _, held in parts)
        raise WordsightError(
            f"{case.run.folder} confuses no classes: it classifies all of {count} left-out labelled images "
            f"rightly, and there is nothing to tell apart"
        )
    return found


# -- what an LLM says of them --------------------------------------------------------------------------------


def _questions(pairs: Sequence[Pair], questions: Sequence[str]) -> dict[str, dict[str, str]]:
    """{class: {question: the class that it is told from}}, about either class of each pair."""
    found: dict[str, dict[str, str]] = {}
    for first, second, _ in pairs:
        for name, other in ((first, second), (second, first)):
            found.setdefault(name, {}).update(
                (ask_about(question, name, other), other) for question in questions
            )
    return found


def _candidates(
    case: Case,
    asked: Mapping[str, Mapping[str, str]],
    header: Mapping[str, Any],
    settings: WriterSettings,
    path: Path,
    tower: TextTower | None,
) -> list[Candidate]:
    """What the LLM answers, each text about a class once, and none that the run has already."""
    write_answers({nfc(name): list(own) for name, own in asked.items()}, header, settings, path, tower=tower)
    answers, texts = load_record(path, header)["sentences"], case.data.texts
    known = dict(zip(texts.names, map(set, texts.sentences)))
    found: list[tuple[str, str, str, int, str]] = []
    for name, others in asked.items():
        for entry in answers[nfc(name)]:
            text = entry["text"].strip()
            if entry["question"] in others and text not in known[name]:
                known[name].add(text)
                found.append((name, others[entry["question"]], entry["question"], entry["seed"], text))
    vectors = text_features(case.backbone, [text for *_, text in found])
    return [Candidate(*about, vector) for about, vector in zip(found, vectors)]


# -- what is written and told --------------------------------------------------------------------------------


def _write(
    path: Path,
    origin: Mapping[str, Any],
    own: Mapping[str, Sequence[str]],
    kept: Sequence[Kept],
    worth: Gain,
) -> None:
    """The run's sentences and those that were kept, each of these with its question and seed."""
    entries: dict[str, list[dict[str, Any]]]
    entries = {nfc(name): [{"text": text} for text in texts] for name, texts in own.items()}
    for (name, other, question, seed, text, _), points in kept:
        about = {"question": question, "seed": seed, "text": text, "against": other}
        entries[nfc(name)].append({**about, "points": round(points, 4)})
    content = {**origin, "gain": worth.difference, "empty": {}, "sentences": entries}
    write_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _told(
    pairs: Sequence[Pair], candidates: Sequence[Candidate], kept: Sequence[Kept], worth: Gain
) -> dict[str, Any]:
    return {
        "pairs": [{"classes": [pair.first, pair.second], "images": pair.images} for pair in pairs],
        "asked": len(candidates),
        "kept": [
            {"class": one.name, "against": one.other, "sentence": one.text, "points": points}
            for one, points in kept
        ],
        "images": len(worth.before),
        "accuracy": {name: 100 * float(rows.mean()) for name, rows in worth._asdict().items()},
        "gain": worth.difference,
    }
