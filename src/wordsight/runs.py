"""Run: a folder that can be resumed, loaded, compared and served.

config.yaml          what was asked for, and the facts that loading needs
sentences.json       the sentences that were used, so that the run depends on no other file
weights.safetensors  every fitted tensor that prediction needs; written last
metrics.jsonl        one event a line
predictions-*.csv    what the last evaluation said of each image
state/               what an interrupted fit goes on from; gone when it is finished
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wordsight.config import (
    METHODS,
    RunSettings,
    TrainSettings,
    WordsightError,
    build,
    load_yaml,
    resolve,
    to_dict,
)
from wordsight.files import parse_json, read_bytes, write_file
from wordsight.methods import Classifier, Embedder, Learner
from wordsight.sentences import saved_sentences

FORMAT = 1  # of the folder; a loader refuses any other
STARTED = {"sentences.json", "config.yaml"}  # what a start that was killed may leave, finished or as .part
NOT_COMPARED = (
    "out",
    "device",
    "label",
)  # where a run lies, what it runs on and what it is called do not decide its result


@dataclass(frozen=True)
class RunFacts:
    """What loading needs beside the settings."""

    classes: tuple[str, ...]  # the classes with labelled images, in label order
    dim: int
    logit_scale: float
    template: str
    labels: tuple[int, ...] = ()  # what predict returns, where labels were whole numbers
    image_fingerprint: str = ""  # of the backbone; empty without one
    text_fingerprint: str = ""
    # how many labelled images were drawn, and a fingerprint of their names; empty where no label decides
    # anything
    images: str = ""
    # how many image-text pairs, and a fingerprint of their names and captions; empty where it learns from
    # something else
    pairs: str = ""


class Fitted(Protocol):
    """A method, or the backbone that a two_tower became."""

    def weights(self) -> dict[str, Tensor]:
        """Every fitted tensor that prediction needs."""


class Run:
    """One run folder. `Run.start` begins or resumes one, `Run.open` reads a finished one."""

    def __init__(self, folder: Path, settings: RunSettings, facts: RunFacts):
        self.folder, self.settings, self.facts = folder, settings, facts

    @classmethod
    def start(
        cls, folder: str | Path, settings: RunSettings, facts: RunFacts, sentences: dict[str, tuple[str, ...]]
    ) -> Run:
        """Begin a run, or go on with the same one. Errors: WordsightError showing the difference where the
        folder holds another run.
        """
        folder, settings = Path(folder), plain(settings)
        if (folder / "config.yaml").exists():
            there = cls._read(folder)
            changed = _differences(*_filled(there.settings, settings)) or _differences(there.facts, facts)
            if not changed and saved_sentences(folder / "sentences.json") != sentences:
                changed = ["the sentences differ"]
            if changed:
                raise WordsightError(
                    f"{folder} holds another run: {'; '.join(changed)}. Give another out=..., or delete "
                    f"that folder"
                )
            return there
        if folder.is_dir() and {path.name.removesuffix(".part") for path in folder.iterdir()} - STARTED:
            raise WordsightError(
                f"{folder} is not empty and is no run folder (it has no config.yaml); give another out=..."
            )
        write_file(folder / "sentences.json", json.dumps(sentences, ensure_ascii=False, indent=1))
        content = {
            "format": FORMAT,
            "settings": to_dict(settings),
            "facts": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in to_dict(facts).items()
            },
        }
        write_file(
            folder / "config.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150)
        )
        return cls(folder, settings, facts)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A finished run. Errors: WordsightError for no run, another version's run, or an unfinished one."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file():
            raise WordsightError(
                f"{str(folder)!r} is no run folder: it has no config.yaml. `wordsight fit data=... "
                f"out={folder}` makes one"
            )
        run = cls._read(folder)
        if not run.finished:
            raise WordsightError(
                f"the run in {str(folder)!r} is not finished; give its `wordsight fit` command again, it "
                f"goes on from where it stopped"
            )
        return run

    @classmethod
    def _read(cls, folder: Path) -> Run:
        content = load_yaml(folder / "config.yaml")
        if content.get("format") != FORMAT:
            raise WordsightError(
                f"{folder} was written in run format {content.get('format')}; this version of wordsight "
                f"reads format {FORMAT}"
            )
        try:
            return cls(
                folder, plain(build(RunSettings, content["settings"])), build(RunFacts, content["facts"])
            )
        except (KeyError, TypeError) as error:
            raise WordsightError(f"{folder / 'config.yaml'} is not complete: {error}") from error

    @property
    def finished(self) -> bool:
        return (self.folder / "weights.safetensors").is_file()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def sentences(self) -> dict[str, tuple[str, ...]]:
        return saved_sentences(self.folder / "sentences.json")

    def finish(self, method: Fitted, extra: dict[str, Tensor] | None = None) -> None:
        """Write the weights; `extra` tensors lie in a file of their own."""
        if extra:
            write_file(
                self.folder / "extra.safetensors",
                save({name: tensor.contiguous() for name, tensor in extra.items()}),
            )
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.weights().items()}
        write_file(self.folder / "weights.safetensors", save(tensors, metadata={"format": str(FORMAT)}))
        shutil.rmtree(self.state, ignore_errors=True)

    def method(self) -> Classifier:
        """The fitted method, with exactly the tensors it has saved; not yet bound to classes. Errors:
        WordsightError for a two_tower: it is a backbone.
        """
        if issubclass(resolve(METHODS, self.settings.method, "method"), Embedder):
            raise WordsightError(
                f"{self.folder} is a two_tower and has no classes of its own; it is a backbone: `wordsight "
                f"fit backbone={self.folder} ...`"
            )
        method = build_method(self.settings, self.facts)
        found = read_tensors(self.folder / "weights.safetensors")
        method.make_room(found)
        expected = method.weights()
        if expected.keys() != found.keys():
            missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
            raise WordsightError(
                f"{self.folder / 'weights.safetensors'} does not fit {self.settings.method}: missing "
                f"{missing}, not known {extra}"
            )
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape:
                raise WordsightError(
                    f"{self.folder / 'weights.safetensors'}: {name} has shape {tuple(tensor.shape)}, not "
                    f"{tuple(expected[name].shape)}"
                )
        method.load_state_dict(found)
        return method.eval()

    def extra(self, name: str) -> Tensor:
        tensors = read_tensors(self.folder / "extra.safetensors")
        if name not in tensors:
            raise WordsightError(f"{self.folder / 'extra.safetensors'} has no tensor {name!r}")
        return tensors[name]

    def log(self, event: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, below any half line that a kill has left."""
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            with open(self.folder / "metrics.jsonl", "a+b") as file:
                if file.seek(0, 2):
                    file.seek(-1, 2)
                    line = line if file.read() == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            raise WordsightError(
                f"{self.folder / 'metrics.jsonl'} cannot be written: {error.strerror or error}"
            ) from error

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events of one kind, or of all, in order. A line that holds no event is not among them: half a
        line that a kill has left, or what another program wrote.

        Errors: WordsightError where the file cannot be read."""
        path = self.folder / "metrics.jsonl"
        content = read_bytes(path, "the events of a run").decode(errors="replace") if path.exists() else ""
        found = [event for line in content.split("\n") if (event := _event(line))]
        return [event for event in found if kind in (None, event["event"])]


def build_method(settings: RunSettings, facts: RunFacts) -> Classifier:
    """A fresh method of the kind, shape and settings that a run names."""
    kind = resolve(METHODS, settings.method, "method")
    return kind(
        facts.classes, facts.dim, facts.logit_scale, build(kind.Settings, settings.settings, "settings.")
    )


def train_settings(settings: RunSettings) -> TrainSettings:
    """The method's own training settings, with what the run changes."""
    kind = resolve(METHODS, settings.method, "method")
    defaults = kind.training(settings.shots) if issubclass(kind, Learner) else TrainSettings()
    training = build(TrainSettings, {**asdict(defaults), **settings.train}, "train.")
    least = dict.fromkeys(
        ("epochs", "min_steps", "lr", "weight_decay", "momentum", "warmup_epochs", "warmup_lr"), 0
    )
    for name, value in (least | {"batch_size": 1, "max_steps": 1, "log_steps": 1}).items():
        if getattr(training, name) is not None and getattr(training, name) < value:
            raise WordsightError(
                f"train.{name}={getattr(training, name)} is not possible; it is {value} or more"
            )
    return training


def plain(settings: RunSettings) -> RunSettings:
    """The same settings with every value of its annotated type, so that `8`, `"8"` and numpy's 8 are one
    setting and YAML can hold it.
    """
    kind = resolve(METHODS, settings.method, "method")
    parts = {"settings": (kind.Settings, "settings."), "train": (TrainSettings, "train.")}
    typed = {name: build(cls, {**getattr(settings, name)}, prefix) for name, (cls, prefix) in parts.items()}
    given = {name: {key: getattr(typed[name], key) for key in getattr(settings, name)} for name in parts}
    return build(RunSettings, {**to_dict(settings), **given})


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WordsightError(f"{path} cannot be read: {error}") from error


def _event(line: str) -> dict[str, Any] | None:
    """An event, or None for a line that holds none: empty, half a line, a list, an object without a name."""
    try:
        event = parse_json(line, "an event")
    except WordsightError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _filled(*settings: RunSettings) -> list[RunSettings]:
    """The same settings, each saying what any of them says: a setting that is younger than the folder has its
    default there.
    """
    parts = {
        "settings": lambda one: build(resolve(METHODS, one.method, "method").Settings, one.settings),
        "train": train_settings,
    }
    for name, read in parts.items():
        keys = list(dict.fromkeys(key for one in settings for key in getattr(one, name)))
        known = [set(to_dict(read(one))) for one in settings]
        settings = [
            replace(one, **{name: {key: getattr(read(one), key) for key in keys if key in has}})
            for one, has in zip(settings, known)
        ]
    return list(settings)


def _differences(there: Any, asked: Any) -> list[str]:
    old, new = _flat(to_dict(there)), _flat(to_dict(asked))
    unknown = {
        name for name in ("images", "pairs") if old.get(name) == ""
    }  # of a folder that is older than this fact
    return [
        f"{key} {'are' if key in ('images', 'pairs') else 'is'} {old.get(key)!r} there and "
        f"{new.get(key)!r} here"
        for key in dict.fromkeys([*new, *old])
        if key not in NOT_COMPARED and key not in unknown and old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping within, each name by itself: `train.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            {f"{key}.{name}": one for name, one in value.items()}
            if isinstance(value, Mapping)
            else {key: value}
        )
    return found
