"""Tables of names, the settings of a run, and the strict reader of both. Imports no torch: `wordsight list`
needs only this file.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wordsight.files import WordsightError, load_yaml


class Entry(NamedTuple):
    target: str  # "module:Class", imported only when it is used
    summary: str  # one line for `wordsight list`


METHODS: dict[str, Entry] = {
    "zero_shot": Entry(
        "wordsight.methods.zero_shot:ZeroShot", "cosine between the image and the class name in one template"
    ),
    "sentence_mean": Entry(
        "wordsight.methods.zero_shot:SentenceMean", "cosine to the mean of each class's sentences (CuPL)"
    ),
    "linear_probe": Entry(
        "wordsight.methods.linear_probe:LinearProbe",
        "logistic regression on image features; knows only labelled classes",
    ),
    "clap": Entry(
        "wordsight.methods.clap:CLAP",
        "linear probe that starts at the words and is held near them (CLAP; ZS-LP)",
    ),
    "tip_adapter": Entry(
        "wordsight.methods.tip_adapter:TipAdapter",
        "labelled images vote beside the words; nothing is trained (Tip-Adapter)",
    ),
    "tip_adapter_f": Entry(
        "wordsight.methods.tip_adapter:TipAdapterF", "the same with trained keys (Tip-Adapter-F)"
    ),
    "clip_adapter": Entry(
        "wordsight.methods.clip_adapter:CLIPAdapter", "a small network bends the image vector (CLIP-Adapter)"
    ),
    "taskres": Entry(
        "wordsight.methods.taskres:TaskRes", "a learned offset on each class's text vector (TaskRes)"
    ),
    "coop": Entry(
        "wordsight.methods.coop:CoOp", "learned vectors in place of the words around the class name (CoOp)"
    ),
    "cocoop": Entry("wordsight.methods.cocoop:CoCoOp", "the same, bent by every image (CoCoOp); slow"),
    "kgcoop": Entry(
        "wordsight.methods.kgcoop:KgCoOp", "CoOp, pulled towards the hand-written template (KgCoOp)"
    ),
    "prograd": Entry("wordsight.methods.prograd:ProGrad", "CoOp without steps against zero-shot (ProGrad)"),
    "protext": Entry(
        "wordsight.methods.protext:ProText", "context learned from sentences alone, no images (ProText)"
    ),
    "aape": Entry(
        "wordsight.methods.aape:AAPE", "sentences condensed into one prompt embedding per image (AAPE)"
    ),
    "two_tower": Entry(
        "wordsight.methods.two_tower:TwoTower",
        "a language model becomes the text tower of a frozen image tower, from pairs (CLAMP, LiT)",
    ),
}
BACKBONES: dict[str, Entry] = {
    "clip": Entry(
        "wordsight.backbones.clip:CLIP",
        "a CLIP or SigLIP checkpoint of transformers, hub name or local folder; `micro` is bundled",
    ),
    "joined": Entry(
        "wordsight.backbones.joined:Joined", "any vision encoder and any text encoder, joined by a ridge map"
    ),
    "vision": Entry(
        "wordsight.backbones.vision:Vision",
        "an image encoder alone (DINOv2, a ViT), the eyes of a text tower that is still to be trained",
    ),
    "llm": Entry(
        "wordsight.backbones.llm:LLM",
        "a language model as the text tower of a frozen image tower (CLAMP): a run of two_tower, or its "
        "folder",
    ),
}


def resolve(table: Mapping[str, Entry], name: str, what: str) -> type:
    """The class that stands behind `name` in a table."""
    if name not in table:
        raise WordsightError(
            f"{what} {name!r} is not known{nearest(name, table)}; the choices are {', '.join(table)}"
        )
    module, _, attribute = table[name].target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(word: str, choices: Iterable[str]) -> str:
    """' (did you mean ...?)' or nothing: ready to stand inside a message."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), folded, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(folded[word]) for word in close)}?)" if close else ""


@dataclass(frozen=True)
class TrainSettings:
    """How the one loop of train.py trains. A method's YAML in configs/ sets what its paper says."""

    epochs: int = 40
    min_steps: int = 100  # epochs are added until there are as many steps: a few images make short epochs
    max_steps: int | None = (
        # exactly so many steps, whatever `epochs` and `min_steps` say; needed where nobody knows how long the
        # data is
        None
    )
    batch_size: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9  # SGD only
    schedule: Literal["epoch", "step"] = (
        "epoch"  # whether the cosine falls once an epoch (CoOp) or at every step
    )
    warmup_epochs: int = 0  # schedule=epoch: epochs at `warmup_lr` before the cosine begins
    warmup_lr: float = 1e-5
    warmup_steps: int = 0  # schedule=step: steps that rise in a line from zero to `lr`
    clip_norm: float | None = None
    log_steps: int | None = None  # how often the losses are logged; null: at the ends of about twenty epochs
    save_seconds: float = 10.0  # how often state/ is written, so that a killed run resumes


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's result. Saved as config.yaml in the run folder."""

    data: str  # for a two_tower: image-caption pairs or labelled images, several joined by ::
    backbone: str = "openai/clip-vit-base-patch16"
    method: str = "aape"
    shots: int | None = 16  # labelled images per class; null takes all, as a two_tower always does
    classes: Literal["all", "base", "new"] = "all"  # base: the first half of the classes, rounded up
    sentences: str | None = (
        # a JSON file {class: [sentences]}, the name of a template set, or self: the backbone's own LM writes
        # them
        None
    )
    aliases: str | None = None  # a JSON file {class name: key in the sentence file}
    # one for every dataset, as AAPE's paper has it; `own` takes the dataset's own where it has one
    template: str = "a photo of a {}."
    seed: int = 1
    views: int = 1  # image views in the feature cache: the centre crop, and augmented ones after it
    flip: bool = True  # augmented views may be mirrored; false for glyphs
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    name: str | None = None  # what reports call it; null: the method's name
    out: str | None = None  # the run folder; by default runs/<data>-<method>-<shots>shot-<classes>-seed<seed>
    settings: dict[str, Any] = field(default_factory=dict)  # the method's own settings
    train: dict[str, Any] = field(default_factory=dict)  # TrainSettings that differ from the method's


def read(cls: type, *sources: str | Path | Mapping[str, Any]):
    """Build the settings dataclass `cls` from YAML files, `key=value` words and mappings, later ones winning.

    A dotted key reaches into a mapping (`settings.width=16`). An unknown key fails with the nearest known
    name."""
    merged: dict[str, Any] = {}
    for source in sources:
        values = _as_mapping(source)
        if not isinstance(source, Mapping) and "=" not in str(source):
            _check_keys(cls, values, f"{source}: ")
        _merge(merged, values)
    return build(cls, merged)


def build(cls: type, values: Mapping[str, Any], prefix: str = ""):
    """`cls(**values)` with every key known and every value of the annotated type, or a sentence."""
    hints = typing.get_type_hints(cls)
    _check_keys(cls, values, prefix=prefix)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        raise WordsightError(
            f"setting {prefix + missing[0]!r} is missing; give it as {prefix + missing[0]}=..."
        )
    return cls(**{key: coerce(value, hints[key], prefix + key) for key, value in values.items()})


def _check_keys(cls: type, values: Mapping[str, Any], where: str = "", prefix: str = "") -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for key in map(str, values):  # YAML reads `3:` and `on:` as a number and a truth value
        if key not in known:
            near = nearest(key, known) or "; known: " + ", ".join(prefix + name for name in known)
            raise WordsightError(f"{where}unknown setting {prefix + key!r}{near}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type. Text is read as YAML 1.2 would read it: `1e-4` is a number, `yes` is
    text.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and (
            value is None or (isinstance(value, str) and value.lower() in ("null", "none"))
        ):
            return None
        for argument in arguments:
            if argument is not type(None):
                try:
                    return coerce(value, argument, where)
                except WordsightError as error:
                    last = error
        raise last
    if origin is Literal:
        if value in arguments:
            return value
        raise WordsightError(
            f"{where}={value!r} is not a choice{nearest(str(value), map(str, arguments))}; the choices are "
            f"{', '.join(map(str, arguments))}"
        )
    if origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, (list, tuple)):
            return tuple(coerce(item, arguments[0], where) for item in items)
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif hint in (int, float):
        if not isinstance(value, bool):
            try:
                number = hint(value)
                if number == float(value):
                    return number
            except (TypeError, ValueError, OverflowError):
                pass
    elif (
        hint is str and isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
    ):  # YAML reads a bare `yes` as true
        return str(value)
    raise WordsightError(f"{where}={value!r} is not {_spoken(hint)}")


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, ready for YAML."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


def _as_mapping(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    word = str(source)
    key, equals, value = word.partition("=")
    if not equals:
        if word.endswith((".yaml", ".yml")):
            return load_yaml(word)
        raise WordsightError(f"{word!r} is neither key=value nor a YAML file")
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _spoken(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "of the right kind: " + str(hint).replace("typing.", ""))
