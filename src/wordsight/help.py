"""Help: what `list`, `show` and `--help` say. A setting's meaning stands once, as a comment at its field in
the dataclass, and is read from there. Imports no torch, unless a class is asked for that does."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from wordsight.cluster import Where
from wordsight.config import BACKBONES, METHODS, WordsightError, plugins, resolve
from wordsight.reader import nearest

DATA_FORMS = (
    ("photos/", "a folder of class folders, or of train/, val/, test/ with class folders"),
    ("table.csv, table.parquet", "columns of image path (or bytes) and label, perhaps of split"),
    (
        "captions.csv",
        "columns of image path and caption (caption_1, ...), perhaps of split: pairs, for two_tower and "
        "limber",
    ),
    (
        "dataset_coco.json, ...",
        "captions in the layouts of COCO (Karpathy's, and annotations), NoCaps and Flickr (.token, .csv)",
    ),
    ("questions.csv, a folder of VQA", "columns of path, question and answer, or VQA's files: for eval"),
    ("org/name, hf:org/name", "a Hugging Face dataset, or a folder written by save_to_disk"),
    ("shards/x-{000..003}.tar", "a webdataset of tars"),
    ("digits", "scikit-learn's 1,797 handwritten digits"),
)


@dataclass(frozen=True)
class EvaluateSettings(Where):
    """What `eval` takes beside the run."""

    data: str | None = None  # other images, in any form of `fit`'s data=; null: those the run was tested on
    classes: Literal["all", "base", "new"] | None = None  # among which classes; null: as the run was fitted
    label: str | None = None  # the column of labels, where data= is a table that has several
    backbone: str | None = None  # where the run's backbone lies now; it must be the same by content
    lm: str | None = None  # captions and answers: where the run's LM lies now
    # captions: the backbone of CLIPScore, by name; null: the run's own, where it has a text tower
    scorer: str | None = None
    # questions: how many of the training part are shown with their answers before each; null: none
    shots: int | None = None
    seed: int = 1  # what these are drawn from


@dataclass(frozen=True)
class AboutSettings:
    """Whom `sentences` asks about, and where the answers go."""

    # data whose class names are asked about, or; with --contrast, where the run's labelled images lie now
    data: str | None = None
    classes: str | None = None  # their names: a,b,c, or @FILE with one name a line
    out: str | None = None  # the JSON file of sentences; must be given
    # with --contrast: how many pairs of classes are asked about, those first that are confused most; null: 10
    pairs: int | None = None
    backbone: str | None = None  # with --contrast: where the run's backbone lies now


@dataclass(frozen=True)
class SearchSettings(Where):
    """What `search` takes beside the folder and the query."""

    # as in `fit`; or a run, whose backbone it is; auto: the data itself where it is a file of vectors, or
    # else CLIP ViT-B/16
    backbone: str = "auto"
    device: str = "auto"  # auto: CUDA where there is one; or cpu, cuda, cuda:1, mps
    dtype: Literal["float32", "bfloat16"] = "float32"  # in which the towers compute
    max_pixels: int | None = None  # the largest image that is read, in pixels; null: about 200 million

    def __post_init__(self) -> None:
        if self.max_pixels is not None and self.max_pixels < 1:
            raise WordsightError(f"max_pixels={self.max_pixels} reads no image; give 1 or more")


@dataclass(frozen=True)
class AuditSettings(Where):
    """What `audit` takes beside the run."""

    pool: str | None = None  # images without labels, a folder or table: which to label next
    out: str | None = None  # the folder of the page, audit.json and the CSV; null: RUN/audit
    next: int = 100  # how many images of the pool are proposed
    data: str | None = None  # where the run's labelled images lie now
    backbone: str | None = None  # where the run's backbone lies now
    # the folder that Label Studio serves files from; null: the lowest one that holds all images
    root: str | None = None

    def __post_init__(self) -> None:
        if self.next < 1:
            raise WordsightError(f"next={self.next} proposes no image; give 1 or more")


SETTINGS = {  # of which verb, or of what any run takes: the dataclass that holds them
    "run": "wordsight.config:RunSettings",
    "train": "wordsight.config:TrainSettings",
    "fit": "wordsight.config:RunSettings",
    "suite": "wordsight.suite_settings:SuiteSettings",
    "join": "wordsight.settings:JoinSettings",
    "sentences": "wordsight.settings:WriterSettings",
    "eval": "wordsight.help:EvaluateSettings",
    "search": "wordsight.help:SearchSettings",
    "audit": "wordsight.help:AuditSettings",
}
NOT_MEANINGS = ("noqa", "type:", "ruff:", "pyright:", "fmt:")  # comments for tools


class Setting(NamedTuple):
    """One setting as a reader needs it. `default` is None, too, where the setting must be given."""

    default: Any
    required: bool
    choices: str  # such as "all | base | new"; empty where any text may stand
    meaning: str


def described(cls: type) -> dict[str, Setting]:
    """Every setting of a dataclass, those it inherits included.

    The meaning is what the comments say that stand in the lines above the field, within it or behind it."""
    hints = typing.get_type_hints(cls)
    meanings: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):  # a field that only has another default keeps its meaning
        meanings |= {name: text for name, text in _meanings(part).items() if text}
    return {field.name: _setting(field, hints[field.name], meanings) for field in dataclasses.fields(cls)}


def _setting(field: dataclasses.Field, hint: Any, meanings: Mapping[str, str]) -> Setting:
    made = field.default_factory
    required = field.default is dataclasses.MISSING and made is dataclasses.MISSING
    default = None if required else field.default if made is dataclasses.MISSING else made()
    return Setting(default, required, _choices(hint), meanings.get(field.name, ""))


def _choices(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(filter(None, (_choices(argument) for argument in arguments)))
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return "a,b,..."
    return {bool: "true | false", int: "a whole number", float: "a number"}.get(hint, "")


def _meanings(cls: type) -> dict[str, str]:
    """{field: meaning} of the fields that stand in a class's own source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made without a file, in a notebook say
        return {}
    comments, alone = _comments(source)
    found = {}
    (made,) = ast.parse(source).body
    assert isinstance(made, ast.ClassDef)  # the source of a class
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = range(first, (node.end_lineno or first) + 1)
            found[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, and the lines on which nothing else stands."""
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    texts = {token.start[0]: token.string.lstrip("# ") for token in tokens}
    comments = {line: text for line, text in texts.items() if not text.startswith((*NOT_MEANINGS, "-"))}
    return comments, {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}


def class_at(target: str) -> Any:
    """What stands behind "module:Name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def settings_of(name: str) -> dict[str, Setting]:
    """The settings of a verb, or of what any run takes."""
    own = described(AboutSettings) if name == "sentences" else {}
    found = own | described(class_at(SETTINGS[name]))
    if "method" in found:
        found["method"] = found["method"]._replace(choices=" | ".join(METHODS))
    return found


# -- verbs ---------------------------------------------------------------------------------------------------


def listing() -> dict[str, Any]:
    """Methods, backbones and forms of data, each with a line of what it is."""
    tables = {"methods": METHODS, "backbones": BACKBONES}
    found = {title: {name: entry.summary for name, entry in table.items()} for title, table in tables.items()}
    for title, known in found.items():
        for name, entry in plugins(title.removesuffix("s")).items():
            known.setdefault(name, f"of an installed package: {entry.value}")
    return found | {"data": dict(DATA_FORMS)}


def show(name: str) -> dict[str, Any]:
    """What a method does and its settings, or those of a verb; "run" names what any run takes.

    Returns {"name", "about", "settings": {name: default}, "train", "described": {"settings.width": {...}}}.
    Errors: WordsightError for a name that has no settings.
    """
    if name in SETTINGS:
        settings = settings_of(name)
        return {"name": name, "about": None, **_defaults("settings", settings), "described": _plain(settings)}
    if name not in METHODS and (near := nearest(name, [*SETTINGS, *METHODS])):
        raise WordsightError(f"{name!r} has no settings that are known here{near}")
    return _show_method(name)


def _show_method(name: str) -> dict[str, Any]:
    kind = resolve(METHODS, name, "method")
    training = getattr(kind, "training_defaults", getattr(kind, "paper_training", None))
    own, shared = described(kind.Settings), described(type(training)) if training else {}
    shared = {key: entry._replace(default=getattr(training, key)) for key, entry in shared.items()}
    groups = _plain(own, "settings.") | _plain(shared, "train.")
    train = _defaults("train", shared) if training else {"train": None}
    return {
        "name": name,
        "about": inspect.getdoc(kind),
        **_defaults("settings", own),
        **train,
        "described": groups,
    }


def _defaults(title: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    return {title: {name: entry.default for name, entry in settings.items()}}


def _plain(settings: Mapping[str, Setting], prefix: str = "") -> dict[str, Any]:
    return {prefix + name: entry._asdict() for name, entry in settings.items()}
