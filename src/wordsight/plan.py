"""Plan: from what is asked of a suite to its runs, each with settings of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wordsight.cells import Cell
from wordsight.config import (
    AUTO,
    DEFAULT_BACKBONE,
    METHODS,
    RunSettings,
    WordsightError,
    is_vectors,
    resolve,
)
from wordsight.data import Dataset
from wordsight.files import plain_name
from wordsight.methods import Asking, Classifier
from wordsight.reader import CONFIGS, build, read, read_yaml
from wordsight.suite_settings import GENERAL, YAML, ZERO_SHOT, Suite, SuiteSettings, check_apart
from wordsight.tables import MethodEntry, method_entry

HERE = "{data}"  # in sentences= and aliases=, the dataset's folder name


class Combination(NamedTuple):
    """One run of a suite: what it is of."""

    data: str
    backbone: str
    label: str
    entry: Mapping[str, Any]
    shots: int | None
    seed: int


def plan(settings: SuiteSettings, suite: Suite, opened: Mapping[str, Dataset]) -> list[Cell]:
    """Every run of the suite, its settings checked."""
    entries = beside_zero_shot(settings, method_entries(settings))
    targets = settings.data[1:] if suite.targets else ()
    cells = []
    fitted = settings.data[:1] if suite.targets else settings.data
    for backbone, data, (label, entry) in itertools.product(settings.backbones, fitted, entries.items()):
        try:
            for shots, seed in drawn(settings, suite, entry, opened.get(data)):
                asked = Combination(data, named(backbone, data), label, entry, shots, seed)
                cells.append(Cell(label, settings_of(settings, suite, asked), targets, suite.captions))
        except WordsightError as error:
            raise WordsightError(f"methods={label}: {error}") from error
    return cells


def shard_of(settings: SuiteSettings, cells: Sequence[Cell]) -> Sequence[Cell]:
    """This process's part of the runs: neighbours, which mostly share their data. The parts of all processes
    are disjoint, and together they are all.
    """
    part, parts = settings.part
    return cells[len(cells) * (part - 1) // parts : len(cells) * part // parts]


def named(backbone: str, data: str) -> str:
    """A backbone as a run names it (RunSettings.backbone)."""
    return backbone if backbone != AUTO else data if is_vectors(data) else DEFAULT_BACKBONE


def drawn(
    settings: SuiteSettings, suite: Suite, entry: Mapping[str, Any], dataset: Dataset | None
) -> Iterator[tuple[int | None, int]]:
    """The shots and seeds of a method. One without labels or training is there once for a dataset with a test
    part.
    """
    needs = _known(entry).told_labels(words_of(settings, entry))
    numbers, seeds = settings.shots or suite.shots, settings.seeds
    if needs and None in numbers:
        raise WordsightError(f"it learns from labels, and {settings.suite} draws none; give shots=16, say")
    if not needs and (None in numbers or dataset is None or dataset.test is not None):
        numbers, seeds = numbers[:1], seeds if trains(entry) else seeds[:1]
    yield from itertools.product(numbers, seeds)


def method_entries(settings: SuiteSettings) -> dict[str, dict[str, Any]]:
    """{label: what the user gave for it}: a name, or what a YAML holds."""
    words = (
        settings.methods
        or settings.kind.methods
        or [
            name
            for name in classifiers()
            if settings.unlabelled or not method_of({"method": name}).needs_pool
        ]
    )
    labels = [Path(word).stem if word.endswith(YAML) else word for word in words]
    shipped = {path.stem for path in CONFIGS.glob("*.yaml")} - METHODS.keys()
    check_apart("methods", [(run_name(label), word) for label, word in zip(labels, words)])
    entries = {}
    for label, word in zip(labels, words):
        is_yaml = word.endswith(YAML) or word in shipped
        entries[label] = read_yaml(word) if is_yaml else {"method": word}
        if not issubclass(method_of(entries[label]), (Classifier, Asking)):
            name = entries[label].get("method", RunSettings.method)
            raise WordsightError(
                f"methods={word}: {name} learns from image-text pairs and becomes a backbone; a suite "
                f"compares {', '.join(classifiers())}"
            )
    return entries


def method_of(entry: Mapping[str, Any]) -> Any:
    return resolve(METHODS, entry.get("method", RunSettings.method), "method")


def _known(entry: Mapping[str, Any]) -> MethodEntry:
    """What the table of methods says of it."""
    return method_entry(entry.get("method", RunSettings.method))


def words_of(settings: SuiteSettings, entry: Mapping[str, Any]) -> str:
    """The words that a method of the suite is given: its own where its YAML says so, or where it learns the
    tokens of its class texts, uses none, or is nothing but its words.
    """
    kind = method_of(entry)
    given = (settings.words or settings.kind.words) if _known(entry).shares_words else "auto"
    given = entry.get("words", given)
    own = build(kind.Settings, entry.get("settings") or {}, "settings.")
    return kind.own_words(own) if given == "auto" else given


def beside_zero_shot(
    settings: SuiteSettings, entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The same with zero-shot at every kind of words that a method is given, where it was not named."""
    vectors = [entry for entry in entries.values() if _known(entry).shares_words]
    kinds = dict.fromkeys(words_of(settings, entry) for entry in vectors)
    there = {words_of(settings, entry) for entry in vectors if entry.get("method") == ZERO_SHOT}
    added = {}
    for kind in (kind for kind in kinds if kind not in there):
        taken = {*entries, *added}
        label = ZERO_SHOT if ZERO_SHOT not in taken else f"{ZERO_SHOT}-{kind}"
        added |= {label: {"method": ZERO_SHOT, "words": kind}} if label not in taken else {}
    return {**entries, **added}


def trains(entry: Mapping[str, Any]) -> bool:
    """Whether what a user gave for a method is trained."""
    kind = method_of(entry)
    return kind.training(None, build(kind.Settings, entry.get("settings") or {}, "settings.")) is not None


def classifiers() -> list[str]:
    return [name for name in METHODS if issubclass(resolve(METHODS, name, "method"), Classifier)]


def run_name(label: str) -> str:
    """A method's label as a part of a folder's name."""
    return plain_name(label.replace(":", "-").replace("/", "-"))


def settings_of(settings: SuiteSettings, suite: Suite, asked: Combination) -> RunSettings:
    """A run's settings: the YAML's, then the suite's for all, then what the suite decides. Sentences are for
    a YAML that names none.
    """
    data, entry = asked.data, asked.entry
    given = {name: value for name in GENERAL if (value := getattr(settings, name)) is not None}
    trained = {"train": settings.train} if trains(entry) else {}
    texts = {"sentences": sentence_file(settings, data), "aliases": alias_file(settings, data)}
    given["words"] = words_of(settings, entry)
    if issubclass(method_of(entry), Asking):  # by class names alone
        texts, _ = {}, given.pop("unlabelled", None)
    elif settings.unlabelled is not None:
        given["unlabelled"] = settings.unlabelled.replace(HERE, own_name(data))
    decided = {"data": data, "backbone": asked.backbone, "device": settings.device, "seed": asked.seed}
    decided |= {"shots": asked.shots, "classes": suite.classes, "name": asked.label}
    decided |= {"out": str(folder_of(settings, suite, asked))}
    return read(RunSettings, entry, given, trained, {} if "sentences" in entry else texts, decided)


def folder_of(settings: SuiteSettings, suite: Suite, asked: Combination) -> Path:
    """Where a run lies; below its backbone's name where a suite is to compare backbones, or several are
    given.
    """
    shots = "" if asked.shots is None else f"-{asked.shots}shot"
    apart = len(settings.backbones) > 1 or suite.keyed or suite.captions
    own = plain_name(asked.backbone) if apart else ""
    name = f"{run_name(asked.label)}{shots}-seed{asked.seed}"
    return settings.folder / own / plain_name(asked.data) / name


def own_name(data: str) -> str:
    """The name of a dataset's folder, or the last part of its name, as it is written."""
    return Path(data).resolve().name if os.path.exists(data) else Path(data.removeprefix("hf:")).name


def sentence_file(settings: SuiteSettings, data: str) -> str | None:
    if settings.sentences is None or HERE not in settings.sentences:
        return settings.sentences
    path = settings.sentences.replace(HERE, own_name(data))
    if not Path(path).is_file():
        raise WordsightError(
            f"sentences={settings.sentences!r} asks for {path!r}, for data={data}; it does not exist"
        )
    return path


def alias_file(settings: SuiteSettings, data: str) -> str | None:
    """Class names that find no sentence without such a file are named when the sentences are read."""
    if settings.aliases is None or HERE not in settings.aliases:
        return settings.aliases
    path = settings.aliases.replace(HERE, own_name(data))
    return path if Path(path).is_file() else None
