"""Cells: the runs of a suite, each fitted and tested by itself, in this process or several, after what they
share was computed once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from joblib import cpu_count

from wordsight.backbones import Backbone, load_backbone, pick_device
from wordsight.backbones.generator import Generator as Writer
from wordsight.cluster import Cluster, Needs, WorkerKilled, current
from wordsight.config import METHODS, RunSettings, WordsightError, is_vectors, resolve
from wordsight.data import Dataset, Pairs, Picture, open_dataset
from wordsight.data.features import image_features
from wordsight.data.pairs import fingerprint, open_pairs
from wordsight.data.pictures import NoneReadable
from wordsight.data.splits import prepare
from wordsight.early import is_finished
from wordsight.files import cache_folder, plain_name
from wordsight.fit import fit, sentence_source, sentences_given, template_of
from wordsight.fitted import encode_classes, facts_of, open_generator
from wordsight.fitting import carry_out
from wordsight.methods import Asking
from wordsight.runs import Run
from wordsight.sentences import OWN
from wordsight.sentences.self_written import sentences_for
from wordsight.tasks.classify import evaluate, tell_skipped, test_part
from wordsight.tasks.retrieve import WAYS, retrieval
from wordsight.workers import each

ENDED = "its process was ended from outside, perhaps for lack of memory; the same command tries again"

log = logging.getLogger("wordsight")


@dataclass(frozen=True)
class Cell:
    """One run of a suite, an ordinary run folder, and the other data it is tested on."""

    label: str
    settings: RunSettings
    targets: tuple[str, ...] = ()
    captions: bool = False  # it is measured on images with captions

    @property
    def name(self) -> str:
        settings = self.settings
        if settings.shots is None:
            return f"{plain_name(settings.data)}  {plain_name(settings.backbone)}  {self.label}"
        shots = f"{settings.shots} shot{'s' * (settings.shots != 1)}"
        return f"{plain_name(settings.data)}  {self.label}  {shots}  seed {settings.seed}"

    @property
    def asks(self) -> bool:
        """Whether it asks a generator, and needs no vectors."""
        return issubclass(resolve(METHODS, self.settings.method, "method"), Asking)

    @property
    def finished(self) -> bool:
        return is_finished(self.folder)

    @property
    def folder(self) -> str:
        return str(self.settings.out)


class Outcome(NamedTuple):
    cell: Cell
    figures: dict[str, float] = {}  # noqa: RUF012, by part, or by the other data's name
    seconds: float = 0.0
    lacks: tuple[str, ...] = ()  # what the method could not do, in sentences
    error: str = ""  # why there is no run

    def __str__(self) -> str:
        figures = "  ".join(f"{name} {value:.1f}" for name, value in self.figures.items())
        return f"{self.cell.name}  {self.error or figures}  ({self.seconds:.1f} s)"


@cache
def source(data: str, label: str | None) -> Dataset:
    """A dataset, opened once in this process, so that its images are read for their digests once."""
    return open_dataset(data, label)


def whole_of(settings: RunSettings) -> Dataset:
    """The data of a run: the test part alone, without a test part all of it, where a run draws nothing and
    learns from no label, so that no other image is read.
    """
    whole = source(settings.data, settings.label)
    if settings.shots is not None or settings.needs_labels:
        return whole
    return replace(whole, train=whole.train.take([]), val=None, test=test_part(whole))


@cache
def pairs_of(data: str) -> Pairs:
    """The captioned images that a source marks as test, or all, where it marks none."""
    marked = open_pairs(data, "test")
    return marked if len(marked) else open_pairs(data)


@lru_cache(maxsize=2)
def tower(name: str, device: str, dtype: str) -> Backbone:
    return load_backbone(name, device=device, dtype=dtype)


def tower_of(settings: RunSettings) -> Backbone:
    return tower(settings.backbone, settings.device, settings.dtype)


@lru_cache(maxsize=1)
def asked_model(name: str, device: str, dtype: str) -> Writer:
    return open_generator(name, device=device, dtype=dtype)


def model_of(cell: Cell, backbone: Backbone | None) -> Backbone | Writer:
    """What a run is fitted on: the backbone that is open already, its own, or the generator that it asks."""
    settings = cell.settings
    if not cell.asks:
        return backbone or tower_of(settings)
    named = resolve(METHODS, settings.method, "method").model_name(settings)
    return asked_model(named, settings.device, settings.dtype)


# -- features, once ------------------------------------------------------------------------------------------


def featurise_all(cells: Sequence[Cell], backbone: Backbone | None) -> None:
    """Every image and text that the cells need goes through its tower here, so that no two of them compute
    it. Errors: WordsightError where the machines of the cluster that is on do not share the cells' folders.
    """
    if cells and (cluster := current()) is not None:
        check_machines(cluster, Path(os.path.commonpath([cell.folder for cell in cells])))
    cells = [cell for cell in cells if not cell.asks]
    for (data, _, views, *_), (settings, pictures) in pictures_needed(cells).items():
        several = f", {views} views" if views > 1 else ""
        log.info("%s: features of %s images%s", plain_name(data), f"{len(pictures):,}", several)
        options = {"views": views, "flip": settings.flip, "max_pixels": settings.max_pixels}
        with contextlib.suppress(NoneReadable):  # its cells say so
            found = image_features(backbone or tower_of(settings), list(pictures.values()), **options)
            tell_skipped(found, len(pictures))
    asked = ("data", "sentences", "aliases", "template", "dtype", "method", "backbone")
    for cell in {tuple(getattr(cell.settings, name) for name in asked): cell for cell in cells}.values():
        if not cell.captions:  # which its run encodes
            texts_needed(cell, backbone or tower_of(cell.settings))


def check_machines(cluster: Cluster, folder: Path) -> None:
    cluster.check_shared(folder)
    try:
        cluster.check_shared(cache_folder())
    except WordsightError as error:
        log.warning("%s in WORDSIGHT_CACHE: until then each encodes its images anew", error)


def pictures_needed(cells: Sequence[Cell]) -> dict[tuple, tuple[RunSettings, dict[str, Picture]]]:
    """{(data, dtype, views, flip, ...): (settings of one such run, {name: picture})}. A draw that the data
    does not allow is left to its cell to say.
    """
    needed: dict[tuple, tuple[RunSettings, dict[str, Picture]]] = {}

    def add(settings: RunSettings, data: str, pictures: Sequence[Picture], views: int = 1) -> None:
        flip = settings.flip or views == 1
        key = (data, settings.dtype, views, flip, settings.label, settings.backbone)
        needed.setdefault(key, (settings, {}))[1].update({picture.name: picture for picture in pictures})

    for settings in (cell.settings for cell in cells if cell.captions):
        add(settings, settings.data, pairs_of(settings.data).pictures)
    for settings, targets in ((cell.settings, cell.targets) for cell in cells if not cell.captions):
        whole = whole_of(settings)
        with contextlib.suppress(WordsightError):
            for part in ("base", "new") if settings.classes == "base" else (settings.classes,):
                dataset = prepare(whole, settings.shots, settings.seed, part)
                if part == settings.classes:
                    add(settings, settings.data, dataset.train.pictures, settings.views)
                    if dataset.val is not None:
                        add(settings, settings.data, dataset.val.pictures)
                add(settings, settings.data, test_part(dataset).pictures)
        for target in targets:
            add(settings, target, test_part(source(target, settings.label)).pictures)
    return {key: value for key, value in needed.items() if value[1]}


def texts_needed(cell: Cell, backbone: Backbone) -> None:
    """Class names and sentences of the data of a run, and of other data's classes."""
    settings = cell.settings
    datasets = [source(data, settings.label) for data in (settings.data, *cell.targets)]
    asked = replace(settings, sentences=sentence_source(settings))
    # vectors are words already; and templates that are not there its cell misses
    if is_vectors(settings.backbone) or (asked.sentences == OWN and not datasets[0].templates):
        return
    given = sentences_given(asked, datasets[0])
    known = sentences_for(given, datasets[0].class_names, settings.aliases, backbone)
    template = template_of(settings, datasets[0])
    for dataset in datasets:
        facts = facts_of(backbone, dataset.class_names, template)
        encode_classes(backbone, facts, dataset.class_names, known)


# -- running -------------------------------------------------------------------------------------------------


def run_cell(cell: Cell, backbone: Backbone | None = None) -> Outcome:
    """Fit and evaluate, or find that it is done. What the user can mend is in the outcome."""
    began = time.monotonic()
    settings = cell.settings
    try:
        with warnings_alone():
            model = model_of(cell, backbone)
            if cell.captions and isinstance(model, Backbone):
                run, lacks = retrieved(settings, model), ()
            else:
                whole = whole_of(settings)
                run = fit(settings, backbone=model, references=False, source=whole)
                lacks = (*lacking(run, model, whole), *untested(run, cell.targets, model))
    except WordsightError as error:
        return Outcome(cell, seconds=time.monotonic() - began, error=str(error))
    return Outcome(cell, figures_of(run), time.monotonic() - began, lacks)


def figures_of(run: Run) -> dict[str, float]:
    """The first figure of each evaluation, for a line of progress."""
    own = run.settings.data
    found = {
        event["classes"] if event["data"] == own else plain_name(event["data"]): event["accuracy"]
        for event in run.events("eval")
    }
    several = run.events("multilabel")
    found |= {f"{event['classes']} mAP": event["mean_average_precision"] for event in several}
    ways = ((way, event) for event in run.events("retrieval") for way in WAYS)
    return found | {f"{way.replace('_', ' ')} @1": event[way]["recall@1"] for way, event in ways}


def retrieved(settings: RunSettings, backbone: Backbone) -> Run:
    """A run that learns nothing: a backbone as it is, measured on images with captions."""
    if not backbone.has_text:
        raise WordsightError(f"backbone {backbone.name!r} encodes no text, and captions are to be found")
    pairs = pairs_of(settings.data)
    facts = facts_of(backbone, (), settings.template, pairs=fingerprint(pairs))

    def measure(run: Run) -> None:
        run.log({"event": "retrieval", "data": settings.data, **retrieval(backbone, pairs)})

    return carry_out(str(settings.out), settings, facts, measure, account=pairs.account)


@contextlib.contextmanager
def warnings_alone() -> Iterator[None]:
    """What is left out of the data and the like was said for all runs together (`featurise_all`)."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """What many runs have to say alike is said once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in said
        said.add(record.getMessage())
        return not known

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def lacking(run: Run, backbone: Backbone | Writer, whole: Dataset) -> tuple[str, ...]:
    """Why a run on base classes has no figures of the new ones, in the method's own words."""
    if run.settings.classes != "base" or any(event["classes"] == "new" for event in run.events("eval")):
        return ()
    try:
        evaluate(run, classes="new", backbone=backbone, source=whole)
    except WordsightError as error:
        return (f"classes=new: {error}",)
    return ()


def untested(run: Run, targets: Sequence[str], backbone: Backbone | Writer) -> Iterator[str]:
    """Test a run on other data, where it was not yet; why it cannot be, in the method's own words."""
    tested = {event["data"] for event in run.events("eval")}
    for target in targets:
        try:
            if target not in tested:
                evaluate(run, data=target, backbone=backbone, source=source(target, run.settings.label))
        except WordsightError as error:
            yield f"{plain_name(target)}: {error}"


Outcomes: TypeAlias = Generator[Outcome, None, None]


def outcomes(cells: Sequence[Cell], jobs: int | None, backbone: Backbone | None) -> Outcomes:
    """Outcomes as they come: in this process where a backbone is given or one job is enough; by default in as
    many processes as there are cores, in one where each would fill the same accelerator, or on the cluster
    that is on.
    """
    here = (run_cell(cell, backbone) for cell in cells)
    if backbone is not None or not cells:
        return here
    if jobs is None:
        jobs = cpu_count() if pick_device(cells[0].settings.device).type == "cpu" else 1
    jobs = min(jobs, len(cells))
    return here if jobs <= 1 and current() is None else in_processes(cells, jobs)


def in_processes(cells: Sequence[Cell], jobs: int) -> Outcomes:
    """Outcomes as they come. When this ends early its processes are killed: each run goes on from what its
    training last saved.

    Where one of them is killed from outside, those that were at work are run again one by one, to find out
    which of them it is, and the others go on."""
    left = {cell.folder: cell for cell in cells}
    needs = Needs(gpus=int(pick_device(cells[0].settings.device).type == "cuda"))
    while left:
        try:
            with contextlib.closing(
                each(run_cell, [*left.values()], jobs=jobs, processes=True, needs=needs)
            ) as found:
                for outcome in found:
                    del left[outcome.cell.folder]
                    yield outcome
        except WorkerKilled as killed:
            known = killed.item is not None  # on a cluster, where it was tried several times
            for cell in [killed.item] if known else [*left.values()][:jobs]:
                del left[cell.folder]
                yield Outcome(cell, error=ENDED) if known else alone(cell)


def alone(cell: Cell) -> Outcome:
    """The outcome of a run that may end its process."""
    began = time.monotonic()
    try:
        return next(iter(list(each(run_cell, [cell], jobs=1, processes=True))))
    except WorkerKilled:
        return Outcome(cell, seconds=time.monotonic() - began, error=ENDED)
