"""Classify: from settings to a run folder, and from a run folder to figures and predictions."""

from __future__ import annotations

import csv
import functools
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight import metrics
from wordsight.backbones import Backbone, load_backbone, pick_device
from wordsight.config import METHODS, RunSettings, TrainSettings, WordsightError, resolve, to_dict
from wordsight.data import Dataset, Split, open_dataset
from wordsight.data.features import Features, image_features, text_features
from wordsight.data.sources import same_source
from wordsight.data.splits import fingerprint, prepare, select_classes
from wordsight.files import write_file
from wordsight.methods import Classifier, Labelled, Learner
from wordsight.runs import Run, RunFacts, build_method, train_settings
from wordsight.sentences import ClassTexts, class_texts, fill, read_sentences
from wordsight.tasks.generate import SELF, keep_record, sentences_for
from wordsight.train import FeatureBatches, train

DEFAULT_SENTENCES = "clip7"  # what stands in where a method wants sentences and none were given


def fit(
    settings: RunSettings,
    *,
    backbone: Backbone | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Fit one run and evaluate it; the same settings again resume it, or give it back where it is finished.

    `say` receives sentences for the user: what was left out of the data, what stood in for missing sentences.
    """
    settings = check_settings(settings)
    whole = open_dataset(settings.data)
    for note in whole.notes:
        say(note)
    dataset = prepare(whole, settings.shots, settings.seed, settings.classes)
    if len(dataset.class_names) < 2:
        raise WordsightError(
            f"{settings.data} has one class only, {dataset.class_names[0]!r}; at least 2 are needed to "
            f"choose among"
        )
    folder = settings.out or default_folder(settings)
    settings = replace(settings, sentences=sentence_source(settings, say))
    sentences = (
        None
        if settings.sentences == SELF
        else read_sentences(settings.sentences, whole.class_names, settings.aliases)
    )
    backbone = backbone or load_backbone(settings.backbone, device=settings.device, dtype=settings.dtype)
    if sentences is None:
        sentences = sentences_for(SELF, whole.class_names, settings.aliases, backbone, progress=progress)
    facts = facts_of(backbone, dataset.class_names, template_of(settings, whole))
    if resolve(METHODS, settings.method, "method").needs_labels:
        facts = replace(facts, images=fingerprint(dataset.train))
    run = Run.start(folder, settings, facts, sentences)
    if settings.sentences == SELF:
        keep_record(backbone, whole.class_names, run.folder)
    if run.finished:
        say(f"{run.folder} is finished already; nothing to fit")
        if not run.events("eval"):  # stopped between the two
            evaluate(run, backbone=backbone, progress=progress, say=say)
        return run
    began = time.monotonic()
    features = featurise(backbone, dataset.train, settings, progress, say)
    labels = torch.from_numpy(dataset.train.labels)[features.kept]
    val = validation(backbone, dataset, settings, progress, say)
    seconds = {"features": round(time.monotonic() - began, 3)}
    began = time.monotonic()
    texts = encode_classes(backbone, facts, dataset.class_names, sentences)
    seconds["texts"] = round(time.monotonic() - began, 3)
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    method = build_method(settings, facts)
    method.attach(backbone)
    training = train_settings(settings)
    fit_method(
        method,
        features.vectors,
        labels,
        texts,
        training,
        settings.seed,
        backbone.device,
        run.state,
        run.log,
        val,
    )
    seconds["fit"] = round(time.monotonic() - began, 3)
    run.finish(method)
    trained = sum(parameter.numel() for parameter in method.parameters())
    run.log(
        {
            "event": "fit",
            "seconds": seconds,
            "images": len(labels),
            "parameters": trained,
            "skipped": [list(pair) for pair in features.skipped],
        }
    )
    evaluate(run, backbone=backbone, progress=progress, say=say)
    return run


def evaluate(
    run: Run | str | Path,
    *,
    data: str | None = None,
    classes: str | None = None,
    backbone: Backbone | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Figures of a run on its test images, kept in metrics.jsonl.

    A run fitted on all classes is tested on all. One fitted on the base half is tested on the base classes
    among themselves and on the new classes among themselves (the field's base-to-new protocol). `data` names
    another dataset, whose classes are scored by their names.

    Errors: WordsightError where the run's own data has changed since, so that images it was trained on would
    count as test images."""
    run = run if isinstance(run, Run) else Run.open(run)
    settings = run.settings
    backbone = open_backbone(run, backbone)
    device, known = backbone.device, run.sentences
    method = run.method()
    method.attach(backbone)
    data = None if data is not None and same_source(data, settings.data) else data
    whole = open_dataset(data or settings.data)
    if data is None and whole.test is None and run.facts.images:
        now = fingerprint(prepare(whole, settings.shots, settings.seed, settings.classes).train)
        if now != run.facts.images:
            raise WordsightError(
                f"{settings.data} has changed since {run.folder} was fitted: its training images were "
                f"{run.facts.images}, and the same draw now gives {now}, "
                "so test images would be among those it has seen. Fit again into another out=..., or give "
                "other data=..."
            )
    parts = [classes] if classes else ["all"] if data or settings.classes == "all" else ["base", "new"]
    results = []
    for part in parts:
        dataset = (
            prepare(whole, settings.shots, settings.seed, part)
            if data is None
            else select_classes(test_only(whole), part)
        )
        sentences = {
            name: known.get(name, ()) for name in dataset.class_names
        }  # other data may have classes that the run has no words for
        try:
            method.bind(encode_classes(backbone, run.facts, dataset.class_names, sentences))
        except WordsightError as error:
            if classes or data:
                raise
            say(f"classes={part}: {error}")
            continue
        if not len(dataset.test):
            raise WordsightError(
                f"{whole.name} has no test images for classes={part}; name other data=..., or add images "
                f"to its test part"
            )
        features = featurise(backbone, dataset.test, replace(settings, views=1), progress, say)
        labels = torch.from_numpy(dataset.test.labels)[features.kept]
        method.to(device)
        logits = predict_logits(method, features.vectors[:, 0].to(device))
        result = {
            "event": "eval",
            "data": data or settings.data,
            "classes": part,
            **figures(logits, labels, dataset.class_names),
        }
        result["skipped"] = [list(pair) for pair in features.skipped]
        run.log(result)
        write_predictions(
            run, part if data is None else "other", dataset.test, features, logits, dataset.class_names
        )
        results.append(result)
    return results


def figures(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], names: Sequence[str]) -> dict[str, Any]:
    """What an evaluation reports; percentages."""
    counts = metrics.confusion(logits, labels)
    guess = counts.sum(0).max().item() / len(labels)
    return {
        "images": len(labels),
        "accuracy": metrics.top_k(logits, labels),
        "top5": metrics.top_k(logits, labels, 5),
        "mean_class_recall": metrics.mean_class_recall(counts),
        "calibration_error": metrics.calibration_error(logits, labels),
        "chance": 100 / len(names),
        "largest_predicted_share": 100 * guess,  # a constant answer looks like a number; this shows it
        "class_recall": dict(zip(names, metrics.class_recall(counts))),
        "confusion": counts.tolist(),
    }


def fit_method(
    method: Classifier,
    images: Float[Tensor, "n V D"],
    labels: Int[Tensor, " n"],
    texts: ClassTexts,
    training: TrainSettings,
    seed: int,
    device: torch.device | str = "cpu",
    state: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda event: None,
    val: Labelled | None = None,
) -> None:
    """Fit a method to features: its closed forms, then, where it learns, the one loop. It is bound to `texts`
    afterwards.
    """
    if method.needs_labels:
        without = [
            name
            for name, count in zip(method.class_names, labels.bincount(minlength=len(method.class_names)))
            if not count
        ]
        if without:
            raise WordsightError(
                f"no training image that can be read is left of {', '.join(without[:10])}; add some, or "
                f"leave that class out"
            )
    method.begin(images[:, 0], labels, texts, seed, val)
    method.bind(texts)
    method.to(device)
    if isinstance(method, Learner):
        train(
            method,
            FeatureBatches(*method.examples(images, labels), training.batch_size, seed),
            training,
            seed=seed,
            device=device,
            state=state,
            log=log,
        )
        method.end()
        method.bind(texts)  # what is derived from words may depend on what was trained
        method.to(device)
    method.eval()


@torch.inference_mode()
def predict_logits(method: Classifier, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
    """Scores on the CPU, in float32."""
    return method.logits(images).float().cpu()


def encode_classes(
    backbone: Backbone, facts: RunFacts, names: Sequence[str], sentences: Mapping[str, Sequence[str]]
) -> ClassTexts:
    """Text vectors of classes, from the cache where they are in it."""
    return class_texts(functools.partial(text_features, backbone), names, facts.template, sentences)


def featurise(
    backbone: Backbone, split: Split, settings: RunSettings, progress: bool, say: Callable[[str], None]
) -> Features:
    features = image_features(backbone, split.pictures, views=settings.views, flip=settings.flip)
    if features.skipped:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in features.skipped[:10])
        more = f"\n  ... and {len(features.skipped) - 10} more" if len(features.skipped) > 10 else ""
        say(f"skipped {len(features.skipped)} of {len(split)} images:\n{listed}{more}")
    return features


def validation(
    backbone: Backbone, dataset: Dataset, settings: RunSettings, progress: bool, say: Callable[[str], None]
) -> Labelled | None:
    """The validation images of a method that chooses by them; None where it does not, or the data has
    none.
    """
    if (
        not resolve(METHODS, settings.method, "method").needs_val
        or dataset.val is None
        or not len(dataset.val)
    ):
        return None
    features = featurise(backbone, dataset.val, replace(settings, views=1), progress, say)
    return Labelled(features.vectors[:, 0], torch.from_numpy(dataset.val.labels)[features.kept])


def facts_of(backbone: Backbone, class_names: Sequence[str], template: str) -> RunFacts:
    prints = {side: getattr(backbone, side) for side in ("image_fingerprint", "text_fingerprint")}
    return RunFacts(tuple(class_names), backbone.dim, backbone.logit_scale, template, **prints)


def open_backbone(run: Run, backbone: Backbone | None = None) -> Backbone:
    """The backbone a run was fitted on, or the given one. Errors: WordsightError where it gives other vectors
    than it did then.
    """
    if not run.facts.image_fingerprint:
        raise WordsightError(
            f"{run.folder} was fitted on feature matrices without a backbone; `wordsight.load` in Python "
            f"predicts from such matrices"
        )
    backbone = backbone or load_backbone(
        run.settings.backbone, device=run.settings.device, dtype=run.settings.dtype
    )
    for side in ("image_fingerprint", "text_fingerprint"):
        if getattr(backbone, side) != getattr(run.facts, side):
            raise WordsightError(
                f"backbone {run.settings.backbone!r} has changed since {run.folder} was fitted ({side} "
                f"differs); its features would not fit. Fit again"
            )
    return backbone


def template_of(settings: RunSettings, dataset: Dataset) -> str:
    if settings.template != "own":
        return settings.template
    if dataset.template is None:
        raise WordsightError(
            f"template=own, but {dataset.name} names none; give template='a photo of a {{}}.' or another "
            f"with one {{}}"
        )
    return dataset.template


def sentence_source(settings: RunSettings, say: Callable[[str], None]) -> str | None:
    if settings.sentences is not None or not resolve(METHODS, settings.method, "method").needs_sentences:
        return settings.sentences
    say(
        f"no sentences= given: the template set {DEFAULT_SENTENCES!r} stands in. `wordsight sentences` has "
        f"an LLM write some"
    )
    return DEFAULT_SENTENCES


def default_folder(settings: RunSettings) -> Path:
    data = re.sub(r"[^A-Za-z0-9]+", "-", Path(settings.data).name or settings.data).strip("-")
    shots = "all" if settings.shots is None else settings.shots
    words = f"-{Path(settings.sentences).stem}" if settings.sentences else ""
    if settings.backbone != RunSettings.backbone:
        words += f"-{Path(settings.backbone).name}"
    return (
        Path("runs") / f"{data}-{settings.method}{words}-{shots}shot-{settings.classes}-seed{settings.seed}"
    )


def check_settings(settings: RunSettings) -> RunSettings:
    """Every name and setting is checked before any work is done. Returns the settings with every default
    written out, as a run keeps them.
    """
    kind = resolve(METHODS, settings.method, "method")
    method = build_method(settings, RunFacts(("a", "b"), 8, 1.0, ""))
    if settings.template != "own":
        fill(settings.template, "name")
    training = to_dict(train_settings(settings)) if issubclass(kind, Learner) else settings.train
    try:
        torch.empty(0, device=pick_device(settings.device))
    except (RuntimeError, AssertionError) as error:
        raise WordsightError(
            f"device={settings.device!r} is not there: {str(error).splitlines()[0]}; give device=cpu, cuda "
            f"or auto"
        ) from error
    if settings.shots is not None and settings.shots < 1:
        raise WordsightError(
            f"shots={settings.shots} is not possible; it is the number of labelled images per class, 1 or "
            f"more, or null for all"
        )
    if settings.classes == "new" and kind.needs_labels:
        raise WordsightError(
            "classes=new would train on the new classes; fit with classes=base, which is tested on both "
            "halves"
        )
    return replace(settings, settings=to_dict(method.settings), train=training)


def test_only(dataset: Dataset) -> Dataset:
    return dataset if dataset.test is not None else replace(dataset, test=dataset.train)


def write_predictions(
    run: Run, part: str, split: Split, features: Features, logits: Float[Tensor, "B C"], names: Sequence[str]
) -> None:
    """predictions-<part>.csv: image, label, predicted, probability."""
    chances, predicted = logits.softmax(1).max(1)
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["image", "label", "predicted", "probability"])
    for row, index in enumerate(features.kept):
        table.writerow(
            [
                split.pictures[index].name,
                names[split.labels[index]],
                names[predicted[row]],
                f"{chances[row]:.4f}",
            ]
        )
    write_file(run.folder / f"predictions-{part}.csv", out.getvalue())
