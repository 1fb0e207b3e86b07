"""Fitting: the life of a run, whatever it is fitted to; and one method on features: its closed forms, the one
loop, and the choice of its learning rate.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from wordsight.backbones import Backbone
from wordsight.batches import FeatureBatches
from wordsight.config import RunSettings, WordsightError
from wordsight.contrast import place, rank_0_first
from wordsight.data.account import Account
from wordsight.data.pictures import NoneReadable
from wordsight.early import WEIGHTS_FILE
from wordsight.files import in_use
from wordsight.fitted import predict_logits
from wordsight.meter import one_thread, torch_alone
from wordsight.methods import Classifier, FitData, Labelled, Learner
from wordsight.runs import Run, RunFacts, build_method
from wordsight.tables import method_entry
from wordsight.train import Keeper, train

# products of an image's and a class's numbers, below which thousands of small operations wait longer for a
# second thread than they last: where another job has its core, a fit of a second took half a minute
SMALL = 1e7
REFERENCES = ("zero_shot", "linear_probe")  # what a fit is compared with on the same test images

log = logging.getLogger("wordsight")


def carry_out(
    folder: str | Path,
    settings: RunSettings,
    facts: RunFacts,
    complete: Callable[[Run], None],
    *,
    sentences: Mapping[str, tuple[str, ...]] | None = None,
    account: Account | None = None,
) -> Run:
    """The run of `settings` in `folder`, begun or gone on with; a finished one is given back as it is.

    `complete` fits, keeps and measures what is missing. Last of all it is written that the run is finished,
    which it is, too, where no test image can be read: that is told.
    No other process uses the folder meanwhile; of several that train together rank 0 writes. Errors:
    WordsightError, where the folder holds another run or is in use too."""
    writes = place()[0] == 0
    folder = Path(folder).expanduser()
    told = None if account is None else account.to_dict()
    with in_use(folder) if writes else contextlib.nullcontext():
        with rank_0_first():
            run = Run.start(folder, settings, facts, sentences or {}, told)
        if run.is_done():
            return run
        if writes:
            run.rewind(math.inf)
        try:
            complete(run)
        except NoneReadable as error:
            if not (run.folder / WEIGHTS_FILE).is_file():  # of the images that it learns from
                raise
            log.warning("nothing was measured: %s", error)
        with rank_0_first():
            if writes:
                run.finish()
    return run


def fit_method(
    settings: RunSettings,
    facts: RunFacts,
    data: FitData,
    backbone: Backbone | None = None,
    run: Run | None = None,
) -> Classifier:
    """A method fitted to features: its closed forms, then, where it learns, the one loop. Its classes are
    those of `data`. With `run`, training logs there and can be resumed; a choice of the rate begins anew."""
    _check_labels(settings, facts, data)
    rates = settings.train.rates if settings.train is not None else ()
    reads_vectors = method_entry(settings.method).words != "tokens"  # and runs no text tower
    small = reads_vectors and data.centre.numel() * len(facts.classes) < SMALL
    with one_thread() if small else torch_alone():
        if len(rates) < 2:
            method = _trained(settings, facts, data, backbone, run)
        else:
            method = _of_best_rate(settings, facts, data, backbone, run)
        if data.pool is not None:
            method.eval().absorb(data)
            _choose(method, data, backbone)
    return method.eval()


def _check_labels(settings: RunSettings, facts: RunFacts, data: FitData) -> None:
    """Errors: WordsightError where a class that is to be learned has no image."""
    if not settings.needs_labels:
        return
    counts = data.labels.bincount(minlength=len(facts.classes))
    without = [name for name, count in zip(facts.classes, counts) if not count]
    if without and not len(data.labels) and settings.words == "calibrated":
        raise WordsightError(
            "words=calibrated mixes names and sentences by labelled images, and there are none; give labels, "
            "or words=names or words=sentences"
        )
    if without:
        raise WordsightError(
            f"no training image that can be read is left of {', '.join(without[:10])}; add some, or "
            f"leave that class out"
        )


def _trained(
    settings: RunSettings, facts: RunFacts, data: FitData, backbone: Backbone | None, run: Keeper | None
) -> Classifier:
    """The method before it learns from images without labels."""
    torch.manual_seed(settings.seed)
    method = build_method(settings, facts, backbone)
    if settings.train is not None and not isinstance(method, Learner):
        log.info("train.* changes nothing: %s trains nothing with these settings", settings.method)
    device = backbone.device if backbone is not None else torch.device("cpu")
    images, labels = method.begin(data)
    _choose(method, data, backbone)
    if isinstance(method, Learner) and settings.train is not None:
        batches = FeatureBatches(images, labels, settings.train.batch_size, settings.seed)
        train(method, batches, settings.train, seed=settings.seed, device=device, run=run)
        method.finish()
        _choose(method, data, backbone)  # what is derived from words may depend on what was trained
    return method.eval()


def _choose(method: Classifier, data: FitData, backbone: Backbone | None) -> None:
    """Score the classes of `data`, on the backbone's device."""
    method.choose(data.texts)
    method.to(backbone.device if backbone is not None else torch.device("cpu"))


def fit_reference(run: Run, name: str, data: FitData, backbone: Backbone) -> Classifier:
    """A method that a run is compared with: by its own words and by labelled images alone, whatever words and
    unlabelled images the run is given.
    """
    own = {"settings": {}, "train": {}, "words": "auto", "unlabelled": None, "teacher": None}
    data, facts = data._replace(images=data.images[:, :1], pool=None), replace(run.facts, pool_classes=())
    return fit_method(replace(run.settings, method=name, **own), facts, data, backbone)


# -- rates ---------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """A learning rate, and what the method trained at it does on the validation images."""

    rate: float
    accuracy: float  # in percent
    loss: float  # mean cross entropy

    @property
    def merit(self) -> tuple[float, float]:
        """Accuracy first, then the loss."""
        return self.accuracy, -self.loss


def _of_best_rate(
    settings: RunSettings, facts: RunFacts, data: FitData, backbone: Backbone | None, run: Run | None
) -> Classifier:
    """The method at the rate that does best on the validation images; at the first where there are none.

    Which it is stands in an event of the run, {"event": "rate", "rate", "tried"}. A rate at which training
    fails is left out."""
    assert settings.train is not None  # or there were no rates
    first, *_ = settings.train.rates

    def at(rate: float, run: Keeper | None) -> Classifier:
        training = replace(settings.train, lr=rate)
        return _trained(replace(settings, train=training), facts, data, backbone, run)

    if data.val is None:
        log.info("no validation images: %s is trained at its first rate, train.lr=%g", settings.method, first)
        method, chosen, tried = at(first, run), first, ()
    else:
        method, chosen, tried = best_of(settings.train.rates, at, data.val, run)
        log.info("%s: train.lr=%g is the best on validation images", settings.method, chosen)
    if run is not None:
        run.log({"event": "rate", "rate": chosen, "tried": [one._asdict() for one in tried]})
    return method


class Notes:
    """Keeps the events of a training that may not be the one that counts."""

    state = None

    def __init__(self):
        self.events: list[dict[str, Any]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def rewind(self, step: float) -> None:
        self.events.clear()


def best_of(
    rates: Sequence[float],
    at: Callable[[float, Keeper | None], Classifier],
    val: Labelled,
    run: Keeper | None = None,
) -> tuple[Classifier, float, list[Tried]]:
    """The best of the methods that `at` trains, of equal ones the earlier; its rate; and what each did.

    `run` gets the events of that training alone. Errors: WordsightError where training fails at all rates."""
    best: tuple[Classifier, Tried, Notes] | None = None
    tried: list[Tried] = []
    why = None
    for rate in rates:
        notes = Notes()
        try:
            method = at(rate, notes)
        except WordsightError as error:
            why = why or error
            log.info("train.lr=%g is left out: %s", rate, error)
            continue
        tried.append(measured(method, rate, val))
        if best is None or tried[-1].merit > best[1].merit:
            best = method, tried[-1], notes
    if best is None:
        raise why or WordsightError("train.lr names no rate")
    if run is not None:
        for event in best[2].events:
            run.log(event)
    return best[0], best[1].rate, tried


def measured(method: Classifier, rate: float, val: Labelled) -> Tried:
    """What a trained method does on validation images."""
    logits, labels = predict_logits(method, val.images.to(next(method.parameters()).device)), val.labels.cpu()
    right = (logits.argmax(1) == labels).float().mean().item()
    return Tried(rate, 100 * right, F.cross_entropy(logits, labels).item())
