"""Classify: accuracy and what belongs to it, of a fitted method on labelled test images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wordsight import metrics
from wordsight.backbones import Backbone, as_given
from wordsight.backbones.generator import Generator
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Dataset, Split, open_dataset
from wordsight.data.features import Features, image_features
from wordsight.data.images import hash_of
from wordsight.data.pictures import NoneReadable
from wordsight.data.splits import Which, fingerprint, of_other_content, select_classes
from wordsight.files import csv_text, write_file
from wordsight.fitted import Closest, Fitted, is_asking
from wordsight.metrics import Best, best
from wordsight.runs import Run, predictions_file
from wordsight.sentences import OWN
from wordsight.sentences.templates import TEMPLATE_SETS
from wordsight.tasks.calibrate import UNFITTED, Temperature, calibration, fit_temperature

if TYPE_CHECKING:
    from wordsight.asked import Asked

log = logging.getLogger("wordsight")


class Tested(NamedTuple):
    """Test images as a method sees them."""

    vectors: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]
    features: Features
    split: Split


class Judged(NamedTuple):
    """What a method says of test images."""

    tested: Tested
    figures: dict[str, Any]
    best: Best | None = None  # None where an image shows several classes
    reasons: Sequence[Sequence[Closest]] | None = None  # a sentence to each image, where there are some


def evaluate(
    run: Run,
    *,
    data: str | None = None,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | Generator | str | None = None,
    references: Mapping[str, Fitted] | None = None,
    fitted: Fitted | Asked | None = None,
    source: Dataset | None = None,
) -> list[dict[str, Any]]:
    """Figures of a run on its test images, kept in metrics.jsonl.

    A run fitted on all classes is tested on all. One fitted on the base half is tested on the base classes
    among themselves and on the new classes among themselves (the field's base-to-new protocol). `data` names
    other data, whose classes are scored by their names. Images that the run was fitted to are left out,
    whatever way they are named. `source` is the data, where it is open already. `references` are other
    methods that are measured on the same images, for a paired comparison."""
    settings = run.settings
    fitted = fitted or opened(run, backbone)
    if data is not None:
        fitted = fitted.knowing(data)
    whole = source if source is not None else open_dataset(data or settings.data, label or settings.label)
    if source is None:
        whole.account.tell()
    same = same_images(whole, run)
    own = data is None or same
    if not same and own:
        log.info(
            "%s: the test images are not those that the run was fitted beside; what it was fitted to is "
            "still "
            "left out",
            settings.data,
        )
    drawn = data is None and whole.test is None  # what the draw left is the test: nothing to tell
    whole = unseen(whole, run.seen(), run, told=not drawn)
    halves = not classes and settings.classes != "all" and own
    parts: list[Which] = ["base", "new"] if halves else [classes or "all"]
    # of new classes no label may be used: they have the temperature of the base classes
    which = settings.classes if own else classes or "all"
    temperature = UNFITTED
    if isinstance(fitted, Fitted):
        temperature = fit_temperature(fitted, whole, settings, which, None if own else run.seen())
    results = []
    for part in parts:
        dataset = select_classes(whole, part)
        try:
            chosen = fitted.with_classes(dataset.class_names)
        except WordsightError as error:
            if not halves:
                raise
            log.info("classes=%s: %s", part, error)
            continue
        assert dataset.test is not None  # `unseen` gave it one
        if not len(dataset.test):
            raise WordsightError(
                f"{whole.name} has no test images for classes={part}; name other data=..., or add images "
                f"to its "
                "test part"
            )
        result = {"event": "eval", "data": settings.data if own else data, "classes": part}
        result |= hashes(dataset.class_names, templates_of(chosen, whole, settings))
        judged = judge(chosen, dataset.test, settings, temperature)
        result |= judged.figures | {"skipped": [list(pair) for pair in judged.tested.features.skipped]}
        if judged.best is not None:
            result |= compared(judged.best, references or {}, dataset.class_names, judged.tested)
            file = predictions_file(part, None if own else data)
            write_predictions(run, file, judged.tested, judged.best, dataset.class_names, judged.reasons)
        run.log(result)
        results.append(result)
    return results


def opened(run: Run, backbone: Backbone | Generator | str | None) -> Fitted | Asked:
    """What a run classifies by."""
    if not is_asking(run):
        return Fitted.open(run, as_given(backbone))
    from wordsight.asked import Asked  # with the half of transformers that LMs need

    return Asked.open(run, backbone)


def judge(chosen: Fitted | Asked, split: Split, settings: RunSettings, temperature: Temperature) -> Judged:
    """What a method says of a test part. Images that cannot be read are named."""
    if not isinstance(chosen, Fitted):
        return _answers(chosen, split)
    assert chosen.backbone is not None  # or other classes would have been refused
    tested = featurise(chosen.backbone, split, settings)
    if split.shown is not None:
        return _several(chosen.logits(tested.vectors), tested, chosen.texts.names)
    found = chosen.best(tested.vectors, temperature.value or 1.0)
    # templates say of each class what they say of the others
    explained = any(chosen.texts.sentences) and settings.sentences != OWN
    reasons = chosen.closest(tested.vectors) if explained else None
    return Judged(tested, figures(found, tested.labels, chosen.texts.names, temperature), found, reasons)


def _several(logits: Float[Tensor, "n C"], tested: Tested, names: Sequence[str]) -> Judged:
    assert tested.split.shown is not None  # that is what several classes are known by
    shown = torch.from_numpy(tested.split.shown)[tested.features.kept]
    return Judged(tested, figures_of_several(logits, shown, names))


def _answers(asked: Asked, split: Split) -> Judged:
    kept, scores, skipped = asked.ask(split.pictures)
    if not kept:
        raise NoneReadable(skipped)
    features = Features(torch.empty(len(kept), 1, 0), kept, skipped)
    tell_skipped(features, len(split))
    tested = Tested(features.vectors[:, 0], torch.from_numpy(split.labels)[kept], features, split)
    if split.shown is not None:
        return _several(scores.values, tested, asked.names)
    found = best(scores.values)
    how = {"answers": asked.settings.settings.by}
    return Judged(
        tested,
        figures(found, tested.labels, asked.names) | how | scores.outside(),
        found,
        asked.reasons(scores),
    )


def same_images(whole: Dataset, run: Run) -> bool:
    """Whether this is the data a run was fitted on, by what it holds."""
    if run.facts.test:
        return fingerprint(test_part(whole)) == run.facts.test
    return False


def test_part(whole: Dataset) -> Split:
    """What a source is tested on: its test part, or, where it has none, all its labelled images."""
    return whole.test if whole.test is not None else whole.train


def unseen(whole: Dataset, seen: set[bytes], run: Run, told: bool = True) -> Dataset:
    """The data with its test part, without images of equal content to those that a run was fitted to."""
    test = test_part(whole)
    kept = of_other_content(test.pictures, seen) if seen else None
    if kept is None or len(kept) == len(test):
        return replace(whole, test=test)
    left = len(test) - len(kept)
    message = f"left out {left:,} of {len(test):,} images of {whole.name} that {run.folder} was fitted to"
    if not kept:
        raise WordsightError(f"{message}: nothing is left to test on; give other data=...")
    if told:
        log.info(message)
    return replace(whole, test=test.take(kept))


def featurise(backbone: Backbone, split: Split, settings: RunSettings) -> Tested:
    """Test images through the image tower: centre crops alone."""
    features = image_features(backbone, split.pictures, max_pixels=settings.max_pixels)
    tell_skipped(features, len(split))
    return Tested(features.vectors[:, 0], torch.from_numpy(split.labels)[features.kept], features, split)


def tell_skipped(features: Features, asked: int) -> None:
    """Name the images that could not be read."""
    if features.skipped:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in features.skipped[:10])
        more = f"\n  ... and {len(features.skipped) - 10} more" if len(features.skipped) > 10 else ""
        log.info("skipped %d of %d images:\n%s%s", len(features.skipped), asked, listed, more)


def figures(
    found: Best,
    labels: Int[Tensor, " B"],
    names: Sequence[str],
    temperature: Temperature = UNFITTED,
) -> dict[str, Any]:
    """What an evaluation reports; percentages. `interval` is Wilson's, of the accuracy, over images."""
    right = (found.predicted == labels).numpy()
    counts = metrics.confusion(found.predicted, labels, len(names))
    guess = int(counts.guessed.max()) / len(labels)
    return {
        "images": len(labels),
        "accuracy": metrics.accuracy(found, labels),
        "interval": metrics.accuracy_interval(int(right.sum()), len(labels)),
        "top5": metrics.top_k(found, labels, len(names)),
        "mean_class_recall": metrics.mean_class_recall(counts),
        "calibration_error": metrics.calibration_curve(found.confidence.numpy(), right).error,
        "calibration": calibration(found, labels, temperature),
        "chance": 100 / len(names),
        "largest_predicted_share": 100 * guess,  # a constant answer looks like a number; this shows it
        "class_recall": dict(zip(names, metrics.class_recall(counts))),
        "confusion": counts.to_dict(),
    }


def figures_of_several(
    logits: Float[Tensor, "B C"], shown: Bool[Tensor, "B C"], names: Sequence[str]
) -> dict[str, Any]:
    """What an evaluation reports of images that show any number of classes; percentages. `chance` is the mean
    average precision of scores that say nothing: the mean share of images that show a class."""
    precision = metrics.average_precision(logits, shown)
    known = [one for one in precision if one is not None]
    if not known:
        raise WordsightError("no test image shows any class, so nothing can be measured")
    return {
        "event": "multilabel",
        "images": len(logits),
        "mean_average_precision": sum(known) / len(known),
        "chance": 100 * float(shown.double().mean(0)[shown.any(0)].mean()),
        "average_precision": dict(zip(names, precision)),
    }


def templates_of(chosen: Fitted | Asked, whole: Dataset, settings: RunSettings) -> Sequence[str]:
    """What class names are put into, or the sentences about the classes."""
    if not isinstance(chosen, Fitted):
        return (settings.settings.answer,)
    if not settings.needs_sentences:
        return (chosen.texts.template,)
    named = whole.templates if settings.sentences == OWN else TEMPLATE_SETS.get(settings.sentences or "")
    return named or [text for own in chosen.texts.sentences for text in own]


def hashes(names: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
    """By which two evaluations are seen to be of the same class names and the same templates (or sentences),
    and how many templates there are for each class."""
    return {
        "class_names_hash": hash_of("\n".join(names).encode()).hex()[:16],
        "templates_hash": hash_of("\n".join(templates).encode()).hex()[:16],
        "templates": len(templates),
    }


def compared(
    ours: Best, references: Mapping[str, Fitted], names: Sequence[str], tested: Tested
) -> dict[str, Any]:
    """{"references": {name: accuracy on the same images, and ours minus it with its paired interval}}."""
    found = {}
    right = (ours.predicted == tested.labels).numpy()
    for name, other in references.items():
        try:
            theirs = other.with_classes(names).best(tested.vectors)
        except WordsightError:  # it cannot score classes that it has seen no images of
            continue
        hit = (theirs.predicted == tested.labels).numpy()
        found[name] = {
            "accuracy": 100 * float(np.mean(hit)),
            "difference": metrics.paired_difference(right, hit),
        }
    return {"references": found} if found else {}


def write_predictions(
    run: Run,
    file: str,
    tested: Tested,
    found: Best,
    names: Sequence[str],
    reasons: Sequence[Sequence[Closest]] | None,
) -> None:
    """A table of image, label, predicted, probability; the closest sentence where there are some."""
    chances, predicted = found.confidence.tolist(), found.predicted.tolist()
    split = tested.split
    rows = []
    for row, index in enumerate(tested.features.kept):
        cells = [split.pictures[index].name, names[split.labels[index]], names[predicted[row]]]
        why = [reasons[row][0].sentence, f"{reasons[row][0].cosine:.4f}"] if reasons else []
        rows.append([*cells, f"{chances[row]:.4f}", *why])
    header = ["image", "label", "predicted", "probability", *(["sentence", "cosine"] if reasons else [])]
    write_file(run.folder / file, csv_text(header, rows))
