"""Run: a folder that can be resumed, loaded, compared and served.

config.yaml          what was asked for, and the facts that loading needs
sentences.json       the sentences that were used, so that the run depends on no other file
account.json         what the data held: what was kept, and what was left out and why
seen.npy             digests of the images that it was fitted to, which no evaluation counts
weights.safetensors  every fitted tensor that prediction needs
doubts.safetensors   what says of an image that it is unlike all, or that its class is not certain
metrics.jsonl        one event a line
predictions-*.csv    what the last evaluation said of each image
finished.json        written last: all of the above is there, and with which content
state/               what an interrupted fit goes on from; gone when it is finished

Imports no torch at the top: a report, and a check of what is there, need none."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from wordsight.config import (
    LOCATED,
    METHODS,
    AskedSettings,
    RunSettings,
    TrainSettings,
    WordsightError,
    is_whole,
    load_yaml,
    located,
    relocated,
    resolve,
)
from wordsight.digests import check_digests, digests
from wordsight.early import EVENTS, FINISHED, KEPT, SEEN, WEIGHTS_FILE, check_finished, is_finished
from wordsight.files import (
    PART,
    parse_json,
    plain_name,
    read_bytes,
    read_json,
    read_tensors,
    write_file,
    write_tensors,
)
from wordsight.reader import build, to_dict

if TYPE_CHECKING:
    from torch import Tensor

    from wordsight.backbones import Backbone
    from wordsight.methods import Classifier

log = logging.getLogger("wordsight")
NO_BACKBONE = "none"  # what config.yaml names as backbone where a run was fitted on feature matrices
FORMAT = 2  # of the folder; a loader refuses any other
STARTED = {"sentences.json", "config.yaml", "account.json"}  # what a start leaves
# what does not decide a result: where things lie, how that was written, what it runs on and is called. What
# data, backbone and sentences hold is compared by fingerprints and by content.
NOT_COMPARED = ("out", "device", "name", "data", "backbone", "sentences", "aliases")


@dataclass(frozen=True)
class RunFacts:
    """What loading needs beside the settings, and what must be found again when a fit goes on."""

    classes: tuple[str, ...]  # the classes with labelled images, in label order
    dim: int
    logit_scale: float
    template: str
    labels: tuple[Any, ...] = ()  # what predict returns, where labels were no texts
    label_type: str = ""  # numpy's name of their type
    image_fingerprint: str = ""  # of the backbone; empty without one
    text_fingerprint: str = ""
    images: str = ""  # how many labelled images were drawn, and a fingerprint of names, content and labels
    test: str = ""  # the same of the images it is tested on
    pairs: str = ""  # how many image-text pairs, and a fingerprint of them
    lm: str = ""  # a sketch of the LM that says what images show
    pool: str = ""  # the same of the images without labels that it learns from
    pool_classes: tuple[str, ...] = ()  # which these may show


class Run:
    """One run folder. `Run.start` begins or resumes one, `Run.open` reads a finished one."""

    def __init__(self, folder: Path, kept: AskedSettings, facts: RunFacts):
        self.folder, self.kept, self.facts = folder, kept, facts

    @cached_property
    def settings(self) -> RunSettings:
        """What was asked for, checked by the method, which is imported for it; `kept` is the same as
        config.yaml has it. Errors: WordsightError where it cannot be."""
        if isinstance(self.kept, RunSettings):
            return self.kept
        try:
            return RunSettings(**vars(self.kept))
        except WordsightError as error:
            raise WordsightError(f"{self.folder / 'config.yaml'}: {error}") from error

    @classmethod
    def start(
        cls,
        folder: str | Path,
        settings: RunSettings,
        facts: RunFacts,
        sentences: Mapping[str, tuple[str, ...]],
        account: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run, or go on with the same one. One that stopped before it learned anything is begun anew,
        whatever it was. Errors: WordsightError showing the difference where the folder holds another run."""
        folder = Path(folder).expanduser()
        names = {path.name for path in folder.iterdir() if path.suffix != PART} if folder.is_dir() else set()
        if names - STARTED and "config.yaml" not in names:
            raise WordsightError(
                f"{folder} is not empty and is no run folder (it has no config.yaml); give another out=..."
            )
        if names - STARTED:
            there = cls._read(folder)
            changed = _differences(there.settings, located(settings)) or _differences(there.facts, facts)
            if not changed and there.sentences != sentences:
                changed = ["the sentences differ"]
            if changed:
                raise WordsightError(
                    f"{folder} holds another run: {'; '.join(changed)}. Give another out=..., or delete "
                    f"that folder"
                )
            # where they hold what they held, places are as the command names them now
            places = {name: getattr(located(settings), name) for name in LOCATED}
            there = cls(folder, replace(there.settings, **places), facts)
            there.write_config()
            return there
        _write_json(folder / "sentences.json", sentences)
        if account is not None:
            _write_json(folder / "account.json", account)
        run = cls(folder, located(settings), facts)
        run.write_config()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A finished run. Errors: WordsightError for no run, another version's, one damaged or unfinished."""
        folder = Path(folder).expanduser()
        if not (folder / "config.yaml").is_file():
            raise WordsightError(
                f"{str(folder)!r} is no run folder: it has no config.yaml. `wordsight fit data=... "
                f"out={folder}` makes one"
            )
        run = cls._read(folder)
        check_finished(folder)
        run.check_content()
        return run

    @classmethod
    def _read(cls, folder: Path) -> Run:
        content = load_yaml(folder / "config.yaml")
        if content.get("format") != FORMAT:
            raise WordsightError(
                f"{folder} was written in run format {content.get('format')}; this version of wordsight "
                f"reads format {FORMAT}"
            )
        parts: dict[str, Any] = {name: content.get(name) for name in ("settings", "facts")}
        for name, part in parts.items():
            if not isinstance(part, dict):
                where = folder / "config.yaml"
                raise WordsightError(f"{where} is damaged: it has no {name}; restore it, or fit again")
        try:
            whole = is_whole(parts["settings"])
            kept = _resolved(folder, build(AskedSettings if whole else RunSettings, parts["settings"]))
            if isinstance(kept.train, dict):
                kept = replace(kept, train=build(TrainSettings, kept.train, "train."))
            return cls(folder, kept, build(RunFacts, parts["facts"]))
        except WordsightError as error:
            raise WordsightError(f"{folder / 'config.yaml'}: {error}") from error

    # -- what it holds --

    @property
    def finished(self) -> bool:
        return is_finished(self.folder)

    def is_done(self) -> bool:
        """Whether nothing is left to fit, which is told. Errors: WordsightError where it is not as it was."""
        if self.finished:
            self.check_content()
            log.info("%s is finished already; nothing to fit", self.folder)
        return self.finished

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def sentences(self) -> dict[str, tuple[str, ...]]:
        """The sentences of each class; a class may have none."""
        from wordsight.sentences import saved_sentences

        return saved_sentences(self.folder / "sentences.json")

    @property
    def account(self) -> dict[str, Any] | None:
        """What the data held, as `Account.to_dict` gives it; None where nothing was read."""
        path = self.folder / "account.json"
        return read_json(path, "account of the run") if path.is_file() else None

    def seen(self) -> set[bytes]:
        """Digests of the images that it was fitted to."""
        path = self.folder / SEEN
        if not path.is_file():
            return set()
        try:
            rows = np.load(io.BytesIO(read_bytes(path, "digests of the run")), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise WordsightError(f"{path} cannot be read: {error}") from error
        if rows.dtype != np.uint8 or rows.ndim != 2:
            raise WordsightError(f"{path} holds {rows.dtype} of shape {rows.shape}, and no digests")
        return {row.tobytes() for row in rows}

    def method(self, backbone: Backbone | None = None) -> Classifier:
        """The fitted method, with exactly its saved tensors and no classes yet. Errors: as `check_scores`."""
        self.check_scores()
        method = build_method(self.settings, self.facts, backbone)
        if self.settings.backbone == NO_BACKBONE:  # such methods compute in double precision
            method.double()
        path = self.folder / WEIGHTS_FILE
        try:
            method.load_weights(read_tensors(path, sealed=True)[0])
        except WordsightError as error:
            raise WordsightError(f"{path} does not fit {self.settings.method}: {error}") from error
        return method.eval()

    def check_scores(self) -> None:
        """Errors: WordsightError for a two_tower and for what writes, which score no classes of their own."""
        from wordsight.methods import Captioner, Embedder

        kind = resolve(METHODS, self.kept.method, "method")
        what = f"{self.folder} is a {self.kept.method} and"
        if issubclass(kind, Captioner):
            raise WordsightError(
                f"{what} scores no classes; it says what images show: `wordsight caption {self.folder} "
                f"image.jpg`"
            )
        if issubclass(kind, Embedder):
            raise WordsightError(
                f"{what} has no classes of its own; it is a backbone: `wordsight fit backbone={self.folder} "
                f"...`"
            )

    def extra(self, name: str) -> Tensor:
        """A tensor that was kept beside the weights."""
        tensors, _ = read_tensors(self.folder / "extra.safetensors", sealed=True)
        if name not in tensors:
            raise WordsightError(f"{self.folder / 'extra.safetensors'} has no tensor {name!r}")
        return tensors[name]

    # -- writing --

    def write_config(self) -> None:
        """Write config.yaml, unless it says the same already."""
        content = {"format": FORMAT, "settings": to_dict(self.settings), "facts": to_dict(self.facts)}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=150)
        path = self.folder / "config.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_file(path, text)

    def keep_seen(self, digests: Iterable[bytes]) -> None:
        """Remember which images it was fitted to."""
        rows = np.frombuffer(b"".join(sorted(set(digests))), np.uint8).reshape(-1, 16)
        out = io.BytesIO()
        np.save(out, rows, allow_pickle=False)
        write_file(self.folder / SEEN, out.getvalue())

    def keep_weights(self, weights: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        """Write every fitted tensor that prediction needs; `extra` ones lie in a file of their own."""
        if extra:
            write_tensors(self.folder / "extra.safetensors", extra)
        write_tensors(self.folder / WEIGHTS_FILE, weights, {"format": str(FORMAT)})

    def finish(self) -> None:
        """All is there: say so, with what each file holds. Written last."""
        shutil.rmtree(self.state, ignore_errors=True)
        for part in self.folder.glob(f"*{PART}"):  # of a write that was killed
            part.unlink(missing_ok=True)
        _write_json(self.folder / FINISHED, {"format": FORMAT, "files": self.content()})

    def content(self) -> dict[str, str]:
        """A digest of each file that loading needs."""
        return digests(self.folder, [name for name in KEPT if (self.folder / name).is_file()])

    def check_content(self) -> None:
        """Errors: WordsightError where a file is not what was written when the run was finished."""
        path = self.folder / FINISHED
        known = read_json(path, "list of a run's files")
        files = known.get("files") if isinstance(known, dict) else None
        if not isinstance(files, dict):
            raise WordsightError(f"{path} is no list of a run's files; fit again into another out=")
        check_digests(self.folder, files, "restore it, or fit again into another out")

    def log(self, event: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, below any half line that a kill has left."""
        path = self.folder / EVENTS
        text = json.dumps(event, ensure_ascii=False, allow_nan=False)
        line = text.encode(errors="backslashreplace") + b"\n"
        try:
            with open(path, "a+b") as file:
                if file.seek(0, 2):
                    file.seek(-1, 2)
                    line = line if file.read() == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            raise WordsightError(f"{path} cannot be written: {error.strerror or error}") from error

    def forget(self) -> None:
        """Drop what was measured of something else that stood there before."""
        for path in (self.folder / EVENTS, *self.folder.glob("predictions-*.csv")):
            path.unlink(missing_ok=True)

    def rewind(self, step: float) -> None:
        """Forget every event but those of training up to `step`: what comes after is done again."""
        kept = [event for event in self.events("train") if event.get("step", 0) <= step]
        if len(kept) < len(self.events()):
            lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
            write_file(self.folder / EVENTS, "".join(lines))

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events of a kind, in their order; lines that are none are passed over."""
        path = self.folder / EVENTS
        content = read_bytes(path, "the events of a run").decode(errors="replace") if path.exists() else ""
        events = [event for line in content.split("\n") if (event := _event(line))]
        return [event for event in events if kind in (None, event["event"])]


def build_method(settings: RunSettings, facts: RunFacts, backbone: Backbone | None = None) -> Classifier:
    """A fresh method of the kind, shape and settings that a run names; `backbone` where there is one."""
    from wordsight.methods import Space

    kind = resolve(METHODS, settings.method, "method").formed(settings.settings)
    space = backbone or Space(facts.dim, facts.logit_scale)
    if missing := getattr(kind, "__abstractmethods__", None):  # of a class of somebody else's
        raise WordsightError(f"method {settings.method!r} lacks {', '.join(sorted(missing))}")
    method = kind(facts.classes, space, settings.settings).give(settings.words)
    return method.give_pool(facts.pool_classes) if facts.pool_classes else method


def _resolved(folder: Path, settings: AskedSettings) -> AskedSettings:
    """Paths that a folder which needs nothing outside it gives from itself on: `./backbone`."""

    def inside(name: str | None) -> str | None:
        # of a class of somebody else's: package:Class@./backbone
        kind, at, path = (name or "").rpartition("@")
        return f"{kind}{at}{folder.absolute() / path}" if path.startswith("./") else name

    return relocated(settings, inside)


def _write_json(path: Path, content: Any) -> None:
    write_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _event(line: str) -> dict[str, Any] | None:
    """An event, or None for a line that holds none: empty, half a line, a list, an object without a name."""
    try:
        found = parse_json(line, "event") if line.strip() else None
    except WordsightError:  # half a line
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def predictions_file(part: str, data: str | None = None) -> str:
    """The table of what was said of each test image of these classes; other data is in its name."""
    return f"predictions-{part}{'' if data is None else f'-{plain_name(data)}'}.csv"


def _differences(there: Any, asked: Any) -> list[str]:
    old, new = _flat(to_dict(there)), _flat(to_dict(asked))
    return [
        f"{key} {'are' if key in ('images', 'pairs') else 'is'} {old.get(key)!r} there and "
        f"{new.get(key)!r} here"
        for key in dict.fromkeys([*new, *old])
        if key not in NOT_COMPARED and old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping within, each name by itself: `train.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        within = value if isinstance(value, Mapping) else None
        found |= {key: value} if within is None else {f"{key}.{name}": one for name, one in within.items()}
    return found
