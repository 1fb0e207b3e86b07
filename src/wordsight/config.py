"""The settings of a run, as they are asked for and as they are kept. Imports no torch."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from wordsight.cluster import Where
from wordsight.files import WordsightError, plain_name
from wordsight.reader import Settings, build, coerce, load_yaml, to_dict
from wordsight.tables import BACKBONES, METHODS, method_entry, plugins, resolve, target_of
from wordsight.train_settings import TrainSettings

__all__ = [
    "BACKBONES",
    "METHODS",
    "AskedSettings",
    "RunSettings",
    "TrainSettings",
    "WordsightError",
    "absolute",
    "default_folder",
    "is_vectors",
    "is_whole",
    "load_yaml",
    "located",
    "model_of",
    "plugins",
    "relocated",
    "resolve",
]


DEFAULT_BACKBONE = "openai/clip-vit-base-patch16"
AUTO = "auto"
VECTORS = (".npz", ".safetensors")  # suffixes of data that is vectors, and brings its own words


@dataclass(frozen=True)
class AskedSettings(Where):
    """Everything that decides a run's result, as it is asked for: every value has its annotated type, the
    method's own too where the table has their class. Errors: WordsightError for a value that cannot
    be."""

    data: str  # for a two_tower: image-caption pairs or labelled images, several joined by ::
    label: str | None = None  # the column of labels, where data= is a table that has several
    # a hub name, a folder, `micro` (for glyphs), or package.module:Class@folder; auto: the data itself
    # where it is a file of vectors, or else CLIP ViT-B/16
    backbone: str = AUTO
    method: str = "aape"  # of `wordsight list`, or package.module:Class
    shots: int | None = 16  # labelled images per class; null takes all, as a two_tower always does
    classes: Literal["all", "base", "new"] = "all"  # base: the first half of the classes, rounded up
    # a JSON file {class: [sentences]}, a template set, own (templates of the data), or self (the LM inside)
    sentences: str | None = None
    aliases: str | None = None  # a JSON file {class name: key in the sentence file}
    # one for every dataset, as AAPE's paper has it; `own` takes the dataset's own where it has one
    template: str = "a photo of a {}."
    # the class vectors that a method is given: of names, the mean of sentences, or calibrated on the labelled
    # images: a mix of both, with the images' centre and the scale; auto: the method's own
    words: Literal["auto", "names", "sentences", "calibrated"] = "auto"
    # images without labels to learn from beside the labelled ones: a source of images, or a part of the data:
    # unlabelled (blank labels), train (what was not drawn), val, or test (transductive, and marked as such)
    unlabelled: str | None = None
    # another backbone, or a file of its vectors of the same images, whose words label these softly
    teacher: str | None = None
    seed: int = 1  # draws the shots, and what training starts from and sees in which order
    # predict's error= without validation images: parts that are left out of as many further fits; 0: none
    folds: int = 0
    views: int = 1  # image views in the feature cache: the centre crop, and augmented ones after it
    flip: bool = True  # augmented views may be mirrored; false for glyphs
    max_pixels: int | None = None  # the largest image that is decoded, in pixels; null: about 200 million
    # in which the towers compute; what is trained stays in float32
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"  # auto: CUDA where there is one; or cpu, cuda, cuda:1, mps
    name: str | None = None  # what reports call it; null: the method's name
    out: str | None = None  # the run folder; null: runs/<data>-<method>-<shots>shot-<classes>-seed<seed>
    settings: Any = field(default_factory=dict)  # the method's own settings
    # TrainSettings that differ from the method's; null: it trains nothing
    train: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name in hints.keys() - {"settings", "train"}:
            object.__setattr__(self, name, coerce(getattr(self, name), hints[name], name))
        for name, least in (("shots", 1), ("views", 1), ("max_pixels", 1), ("folds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise WordsightError(f"{name}={value} is not possible; {COUNTS[name]}")
        if self.template != "own" and self.template.count("{}") != 1:
            raise WordsightError(
                f"template {self.template!r} holds {{}} {self.template.count('{}')} times; it must hold it "
                "once, as in 'a photo of a {}.'"
            )
        target_of(METHODS, self.method, "method")
        if self.method in METHODS:
            own = _typed(METHODS[self.method].Settings, self.settings, "settings.")
            object.__setattr__(self, "settings", own)
        if isinstance(self.train, Mapping):
            build(TrainSettings, self.train, "train.")

    @property
    def needs_labels(self) -> bool:
        """Whether labelled images change what is fitted."""
        return method_entry(self.method).told_labels(self.words)

    @property
    def needs_sentences(self) -> bool:
        """Whether sentences change what is fitted."""
        return method_entry(self.method).sentences or self.words in ("sentences", "calibrated")


Asked = TypeVar("Asked", bound=AskedSettings)


@dataclass(frozen=True)
class RunSettings(AskedSettings):
    """The same as config.yaml keeps it: `settings` and `train` are the method's own dataclasses with every
    default filled in.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = resolve(METHODS, self.method, "method")
        if not callable(getattr(kind, "check", None)):
            raise WordsightError(
                f"method {self.method!r} is no method: derive it from wordsight.methods.Classifier"
            )
        if self.backbone == AUTO:
            object.__setattr__(self, "backbone", self.data if is_vectors(self.data) else DEFAULT_BACKBONE)
        object.__setattr__(self, "settings", _typed(kind.Settings, self.settings, "settings."))
        object.__setattr__(self, "train", _training(kind, self))
        if self.words == "auto":
            own = getattr(kind, "own_words", None)  # an embedder has none
            object.__setattr__(self, "words", own(self.settings) if own else "names")
        kind.check(self)

    @property
    def needs_val(self) -> bool:
        """Whether validation images choose something, where the data has some."""
        several = self.train is not None and len(self.train.rates) > 1
        return several or resolve(METHODS, self.method, "method").needs_val


def is_whole(settings: Mapping[str, Any]) -> bool:
    """Whether all that RunSettings would fill in is there already, so that the method's class need not be
    asked: not of a method of somebody else's, of an older version, or by a hand."""
    method, train = settings.get("method"), settings.get("train")
    named = isinstance(method, str) and method in METHODS
    trained = isinstance(train, Mapping) and TrainSettings.__dataclass_fields__.keys() <= train.keys()
    there = RunSettings.__dataclass_fields__.keys() <= settings.keys()
    return (
        named
        and there
        and (train is None or trained)
        and AUTO not in (settings["words"], settings["backbone"])
    )


def is_vectors(name: str) -> bool:
    """Whether a name is that of a file of vectors."""
    return name.endswith(VECTORS)


COUNTS = {
    "shots": "it is the number of labelled images per class, 1 or more, or null for all",
    "views": "view 1 is the centre crop, more are augmented ones",
    "max_pixels": "it is the largest image that is decoded, in pixels",
    "folds": "it is a number of parts, 2 or more, or 0 for none",
}


def _typed(cls: type[Settings], given: Any, prefix: str) -> Settings:
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise WordsightError(f"{prefix.rstrip('.')}={given!r} is not a table of settings of {cls.__name__}")
    return build(cls, given, prefix)


def _training(kind: Any, settings: RunSettings) -> TrainSettings | None:
    """The method's training settings with what the run changes; None for a method that trains nothing."""
    given = settings.train
    if not (given is None or isinstance(given, (Mapping, TrainSettings))):
        raise WordsightError(f"train={given!r} is not a table of settings; give train.lr=... and the like")
    defaults = kind.training(settings.shots, settings.settings)
    if defaults is None and given:
        defaults = getattr(kind, "paper_training", None)  # of its forms that are trained: told in fit
        if defaults is None:
            told = f"train.{next(iter(given))} is set" if isinstance(given, Mapping) else f"train={given}"
            raise WordsightError(f"{told}, but {settings.method} trains nothing; leave it out")
    if defaults is None:
        return None
    if isinstance(given, TrainSettings):
        return given
    return build(TrainSettings, {**to_dict(defaults), **(given or {})}, "train.")


# -- places --

# settings that may name a file or folder, and those of a method's own
INNER = ("text", "teacher", "encoder", "model", "mapper")
LOCATED = ("data", "backbone", "sentences", "aliases", "unlabelled", "teacher")
MODELS = ("micro", "micro_lm")
# what a setting calls by a name of ours, though a file or folder of that name may lie here
OURS = dict.fromkeys(("backbone", *INNER), MODELS) | {
    "data": ("digits",),
    "sentences": ("own", "self", "digits"),
    "unlabelled": ("unlabelled", "train", "val", "test"),
}


def located(settings: RunSettings) -> RunSettings:
    """The same settings with paths that mean the same from every folder: absolute, `~` expanded.

    What names no file or folder here (a hub name, a URL, a template set) stays as it is.
    """
    return relocated(settings, absolute)


def relocated(settings: Asked, change: Callable[[str | None], str | None]) -> Asked:
    """The same settings with every name changed that may be a path, those of the method's own included."""

    def changed(name: str, value: str | None) -> str | None:
        a_set = name == "sentences" and os.path.isdir(value or "")  # of templates, and no file of sentences
        return value if a_set or value in OURS.get(name, ()) else change(value)

    found = {name: changed(name, getattr(settings, name)) for name in LOCATED}
    own = settings.settings
    inner = {name: changed(name, getattr(own, name)) for name in INNER if name in to_dict(own)}
    return replace(settings, **found, settings=replace(own, **inner))


def absolute(name: str | None) -> str | None:
    """An absolute path for a name that is a path here; several joined by :: one by one."""
    if name is None:
        return None
    if "::" in name:
        return "::".join(filter(None, (absolute(one.strip()) for one in name.split("::"))))
    path = Path(name).expanduser()
    pattern = set(name) & set("*?[{") and "://" not in name  # of tars
    return str(Path.cwd() / path) if pattern or os.path.exists(path) else name


def model_of(settings: AskedSettings) -> str:
    """What sees the images: the run's backbone, or the model that it asks in its place (likelihood)."""
    return getattr(settings.settings, "model", None) or settings.backbone


def default_folder(settings: RunSettings) -> Path:
    """runs/<data>-<method>-...: after what was asked for, however the data's path was typed."""
    data = plain_name(settings.data)
    shots = "all" if settings.shots is None else settings.shots
    words = f"-{Path(settings.sentences).stem}" if settings.sentences else ""
    model = model_of(settings)
    if model not in (DEFAULT_BACKBONE, settings.data):
        words += f"-{plain_name(model)}"
    method = plain_name(settings.method.replace(":", "-"))
    return Path("runs") / f"{data}-{method}{words}-{shots}shot-{settings.classes}-seed{settings.seed}"
