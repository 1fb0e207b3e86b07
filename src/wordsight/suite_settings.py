"""Suite settings: the evaluations behind the field's tables as data, and what a user asks of one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wordsight.cluster import Where
from wordsight.config import AUTO, METHODS, AskedSettings, TrainSettings, WordsightError, absolute
from wordsight.data.account import few
from wordsight.data.splits import Which
from wordsight.data.zeroshot24 import entries, found_in, is_root, key_of, not_read
from wordsight.files import nfc, plain_name
from wordsight.reader import CONFIGS, build, nearest
from wordsight.tables import target_of

log = logging.getLogger("wordsight")

ZERO_SHOT = "zero_shot"
# the least that a number may be, and what would be right
NUMBERS = {
    "seeds": (0, "numbers from 0 on, such as seeds=1,2,3"),
    "shots": (1, "numbers from 1 on, such as shots=1,2,4"),
    "sizes": (1, "numbers from 1 on, such as sizes=10,100"),
    "jobs": (1, "a number from 1 on, such as jobs=2"),
}
# run settings that a suite passes on to every run
GENERAL = ("template", "views", "flip", "dtype", "label", "max_pixels", "unlabelled")
YAML = (".yaml", ".yml")
PART = re.compile(r"(\d+)/(\d+)")  # shard=3/16


Words = Literal["auto", "names", "sentences", "calibrated"]


@dataclass(frozen=True)
class Suite:
    """What is fitted on which classes with how many labels, and what it is tested on."""

    summary: str
    shots: tuple[int | None, ...] = (16,)  # None: nothing is drawn, and the test part is all that is read
    classes: Which = "all"
    targets: bool = False  # fitted on the first dataset alone, and tested on the others too
    same_names: bool = False  # whose classes must be among the first's
    measured: bool = False  # not accuracy but what it costs (cost.py); needs no data
    methods: tuple[str, ...] = ()  # where none are named; none: every classifier
    words: Words = "calibrated"  # where none are named
    keyed: bool = False  # data= may be a folder of the datasets of zeroshot24.py
    captions: bool = False  # recall on captions, and no classes


SUITES: dict[str, Suite] = {
    "few-shot": Suite("accuracy against labelled images per class", shots=(1, 2, 4, 8, 16)),
    "base-to-new": Suite(
        "fitted on the base half of the classes, tested on each half by itself", classes="base"
    ),
    "cross-dataset": Suite(
        "fitted on the first dataset, tested on the others with their own classes", targets=True
    ),
    "domain-shift": Suite(
        "the same, where the others show the first one's classes in another way",
        targets=True,
        same_names=True,
    ),
    "zeroshot-24": Suite(
        "the 24 datasets of CLAMP's tables by words alone: one template, and the data's own",
        shots=(None,),
        methods=(ZERO_SHOT, "data_templates"),
        words="auto",
        keyed=True,
    ),
    "retrieval": Suite(
        "recall at 1, 5 and 10 both ways, of images and captions",
        shots=(None,),
        methods=(ZERO_SHOT,),
        words="auto",
        captions=True,
    ),
    "cost": Suite("parameters, time, memory and FLOPs of every method, in one process", measured=True),
}


@dataclass(frozen=True)
class SuiteSettings(Where):
    """Which suite over what. What is not given here is the method's own, or its YAML's."""

    # few-shot, base-to-new, cross-dataset, domain-shift, zeroshot-24, retrieval or cost
    suite: str
    # names of methods or of shipped settings, package.module:Class, or YAML files; none: every classifier
    # (transclip only with unlabelled=), or what zeroshot-24 and retrieval compare
    methods: tuple[str, ...] = ()
    # as in `fit`, several by commas; cross-dataset and domain-shift fit on the first; zeroshot-24: a folder
    # that holds the datasets, or a pattern such as clip-benchmark/wds_{dataset_cleaned}
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)  # of which each is a run
    backbone: str = AUTO  # as in `fit`, several by commas; each is compared with the same methods
    shots: tuple[int, ...] | None = None  # in place of the suite's
    sentences: str | None = None  # for methods whose YAML names none; {data} is the dataset's folder name
    aliases: str | None = None  # the same; with {data}, a dataset without such a file needs none
    # the words that every method which scores by class vectors is given, so that all are compared at equal
    # ones; auto: each method's own; null: auto for zeroshot-24 and retrieval, else calibrated
    words: Words | None = None
    # as in `fit`, for all methods; {data} is the dataset's folder name
    unlabelled: str | None = None
    template: str | None = None  # for all methods, in place of theirs; likewise the next three
    views: int | None = None  # image views in the feature cache: the centre crop, and augmented ones
    flip: bool | None = None  # whether augmented views may be mirrored
    dtype: Literal["float32", "bfloat16"] | None = None  # in which the towers compute
    label: str | None = None  # the column of labels, where data= are tables that have several
    max_pixels: int | None = None  # the largest image that is decoded, in pixels
    device: str = "auto"  # auto: CUDA where there is one; or cpu, cuda, cuda:1, mps
    train: dict[str, Any] = field(default_factory=dict)  # for every method that trains
    out: str | None = None  # by default runs/<suite>
    jobs: int | None = None  # processes; by default one a core, on an accelerator one
    shard: str | None = None  # 3/16: the third sixteenth of the runs alone; what comes of all, without it
    sizes: tuple[int, ...] = (10, 100, 1000)  # cost: how many classes

    def __post_init__(self) -> None:
        if not all(name.strip() for name in self.data):
            raise WordsightError(f"data={','.join(self.data)!r} names nothing at one place; leave that out")
        build(TrainSettings, self.train, "train.")
        # what all runs get: as a run would say what cannot be
        passed = {name: getattr(self, name) for name in GENERAL if getattr(self, name) is not None}
        AskedSettings(data=".", **passed)
        for name in self.methods:
            if not name.endswith(YAML) and not (CONFIGS / f"{name}.yaml").is_file():
                target_of(METHODS, name, "method")

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("runs") / self.suite).expanduser()

    @property
    def backbones(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.backbone.split(","))

    @property
    def kind(self) -> Suite:
        return SUITES[self.suite]

    @property
    def part(self) -> tuple[int, int]:
        """Which part of the runs of how many. Errors: WordsightError for what is no part."""
        found = PART.fullmatch(self.shard or "1/1")
        part, parts = map(int, found.groups()) if found else (0, 0)
        if not 1 <= part <= parts:
            raise WordsightError(
                f"shard={self.shard} is no part of the runs; give shard=3/16 for the third of sixteen"
            )
        return part, parts


# -- what makes no sense is said before any work --


def suite_of(settings: SuiteSettings) -> Suite:
    """The suite named, once the settings make sense with it."""
    if settings.suite not in SUITES:
        raise WordsightError(
            f"suite {settings.suite!r} is not known{nearest(settings.suite, SUITES)}; the choices are "
            f"{', '.join(SUITES)}"
        )
    suite = SUITES[settings.suite]
    for name in NUMBERS:
        check_numbers(name, getattr(settings, name))
    if suite.targets and len(settings.data) < 2:
        raise WordsightError(f"{settings.suite} needs the dataset to fit on and those to test on: data=A,B")
    if not suite.measured and not settings.data:
        right = "the folder that holds them: data=ROOT" if suite.keyed else "one or more: data=A or data=A,B"
        raise WordsightError(f"{settings.suite} needs datasets; give {right}")
    if not suite.measured:
        check_apart("backbone", [(plain_name(name), name) for name in settings.backbones])
    elif len(settings.backbones) > 1:
        raise WordsightError(f"{settings.suite} is measured on one backbone; give one in place of several")
    settings.part  # noqa: B018, refuses what is none
    return suite


def places(settings: SuiteSettings) -> tuple[tuple[str, ...], list[str]]:
    """The datasets of a suite wherever it is called from, and the keys of those that are not there.

    Errors: WordsightError where a folder or pattern holds none of them."""
    listed: list[str] = []
    known: set[str] = set()
    roots = [root for root in settings.data if settings.kind.keyed and is_root(root)]
    for data in settings.data:
        found = found_in(data) if data in roots else {key_of(data) or "": data}
        if not found:
            raise WordsightError(
                f"data={data!r} holds none of the {len(entries())} datasets; expected folders such as "
                f"wds_vtab-cifar10/ or vtab-cifar10/, or a pattern with {{dataset_cleaned}}"
            )
        if data in roots and (others := not_read(data, found.values())):
            log.info("%s: not read, as none of the datasets is called so: %s", data, few(others))
        listed += found.values()
        known |= found.keys()
    absent = [key for key in entries() if key not in known] if roots else []
    return tuple(absolute(place) or place for place in listed), absent


def check_numbers(name: str, value: int | tuple[int, ...] | None) -> None:
    least, right = NUMBERS[name]
    values = (value,) if isinstance(value, int) else value
    if values is None:
        return
    if not values or min(values) < least:
        raise WordsightError(f"{name}={value} is not possible; give {right}")
    if len(set(values)) < len(values):
        raise WordsightError(
            f"{name}={','.join(map(str, values))} names one twice; its runs would lie in one folder"
        )


def check_apart(setting: str, named: Sequence[tuple[str, str]]) -> None:
    """Errors: WordsightError where two words give runs the same folder, on any file system."""
    folders: dict[str, str] = {}
    for folder, word in named:
        key = nfc(folder).casefold()
        if key in folders:
            raise WordsightError(
                f"{setting}={folders[key]} and {setting}={word} have the same folder name, {folder!r}, "
                f"after which runs are called; rename one, or name it once"
            )
        folders[key] = word
