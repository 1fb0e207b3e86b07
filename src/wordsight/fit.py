"""Fit: from settings to a finished run: data, features, method, run. Written once, for the command line, the
estimator, suites and cost.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from wordsight.backbones import Backbone, as_given, load_backbone, pick_device
from wordsight.backbones.generator import Generator
from wordsight.config import METHODS, RunSettings, WordsightError, default_folder, is_vectors, resolve
from wordsight.data import Dataset, Split, open_dataset
from wordsight.data.account import counted, few
from wordsight.data.features import Features, image_features
from wordsight.data.glyphs import refuse_photos, warn_of_photos
from wordsight.data.pools import unlabelled
from wordsight.data.sources import is_captioned
from wordsight.data.splits import (
    conflict_note,
    digests,
    few_shot,
    fingerprint,
    held_out,
    of_other_content,
    select_classes,
)
from wordsight.data.trees import TEMPLATES
from wordsight.doubts import FOLDS, NONE, VALIDATION
from wordsight.doubts.found import of_training, of_validation
from wordsight.fitted import Fitted, encode_classes, facts_of
from wordsight.fitting import REFERENCES, carry_out, fit_method, fit_reference
from wordsight.folds import cross_validate, left_out_chances
from wordsight.methods import FitData, Labelled, Pool
from wordsight.reader import read
from wordsight.runs import Run, build_method
from wordsight.sentences import OWN, ClassTexts, fill, read_sentences
from wordsight.sentences.self_written import SELF, keep_record, sentences_for
from wordsight.tables import method_entry
from wordsight.tasks import classify
from wordsight.teachers import teacher_scores

DEFAULT_SENTENCES = "clip7"  # what stands in where a method wants sentences and none were given

log = logging.getLogger("wordsight")


Sentences = Mapping[str, tuple[str, ...]]


class Drawn(NamedTuple):
    """The data of one run: the whole source, and the part of it that the run is fitted to and tested on."""

    whole: Dataset
    dataset: Dataset  # the drawn training images of the chosen classes, validation and test images
    everything: bool  # every labelled image is fitted to, and none is left to test on
    pool: Split | None  # images without labels, whose labels here are zeros


def fit(
    run: RunSettings | None = None,
    /,
    *,
    backbone: Backbone | Generator | str | None = None,
    references: bool = True,
    source: Dataset | None = None,
    **values: Any,
) -> Run:
    """Fit one run and evaluate it; the same settings again resume it, or give it back where it is finished.

    `wordsight.fit(data="photos/", method="aape", shots=16, settings={"prompt": True})`, or a RunSettings. A
    method of labels becomes a classifier, one of image-text pairs a backbone (`load_backbone(run.folder)`).
    `references` measures zero-shot and a linear probe beside it. `source` is what `data` names, where it is
    open already; `backbone` may be open too, and is the generator of a method that asks one. What was left
    out of the data, and what stood in for missing sentences, is logged. Errors: WordsightError; nothing
    half-done is left that the same call does not go on from."""
    if run is not None and not isinstance(run, RunSettings):
        raise WordsightError(f"fit({str(run)[:80]!r}) takes settings by name: fit(data=..., shots=16)")
    backbone = backbone if isinstance(backbone, Generator) else as_given(backbone)
    if isinstance(backbone, str):  # the setting of that name; a Backbone is one that is loaded already
        values, backbone = {**values, "backbone": backbone}, None
    given = {} if run is None else {name: getattr(run, name) for name in RunSettings.__dataclass_fields__}
    settings = run if run is not None and not values else read(RunSettings, given, values)
    pick_device(settings.device)  # one that is not here is told before any work
    kind = resolve(METHODS, settings.method, "method")
    with settings.on():
        settings = replace(settings, engine="here", address=None)  # a run folder names no cluster
        if kind.fits:  # imported late: the half of transformers that LMs need
            module, _, name = kind.fits.partition(":")
            more = {} if source is None else {"source": source}
            return getattr(importlib.import_module(module), name)(settings, backbone, **more)
        opened = backbone if isinstance(backbone, Backbone) else None
        return _fit_labelled(settings, opened, references, source)


def _fit_labelled(
    settings: RunSettings, backbone: Backbone | None, references: bool, source: Dataset | None
) -> Run:
    drawn = draw(settings, source)
    drawn.whole.account.tell()
    if drawn.whole.test is None and drawn.whole.val is not None:
        log.info(
            "%s has a val part and no test part: val chooses and calibrates, and figures are of training "
            "images that were left out; call that part test to have it tested",
            settings.data,
        )
    _check_left(settings, drawn)
    folder = settings.out or default_folder(settings)
    settings = replace(settings, sentences=sentence_source(settings))
    own = settings.sentences == SELF
    late = own or is_vectors(settings.backbone)  # words that only the backbone knows
    names = drawn.whole.class_names
    given = sentences_given(settings, drawn.whole)
    sentences = {} if late else read_sentences(given, names, settings.aliases)
    backbone = backbone or load_backbone(settings.backbone, device=settings.device, dtype=settings.dtype)
    if late:
        sentences = sentences_for(given, names, settings.aliases, backbone)
        _tell_unsaid(settings, sentences)
    facts = facts_of(
        backbone,
        drawn.dataset.class_names,
        template_of(settings, drawn.whole),
        **fingerprints(settings, drawn),
        pool_classes=names if settings.unlabelled else (),
    )
    if method_entry(settings.method).words == "tokens":
        build_method(settings, facts, backbone)  # a backbone without a tower is refused before a run begins

    def complete(run: Run) -> None:
        if own:
            keep_record(backbone, names, run.folder)
        _complete(run, drawn, backbone, sentences, references)

    return carry_out(folder, settings, facts, complete, sentences=sentences, account=drawn.whole.account)


def _complete(run: Run, drawn: Drawn, backbone: Backbone, sentences: Sentences, references: bool) -> None:
    """All that a run holds, in the order in which a later part needs an earlier one."""
    settings, dataset = run.settings, drawn.dataset
    warn_of_photos(settings.backbone, dataset.train.pictures)
    note = conflict_note(dataset.class_names, dataset.train, dataset.val)
    if note:
        log.warning(note)
    began = time.monotonic()
    features = featurise(backbone, dataset.train, settings)
    labels = torch.from_numpy(dataset.train.labels)[features.kept]
    val = validation(backbone, dataset, settings)
    seconds = {"features": round(time.monotonic() - began, 3)}
    began = time.monotonic()
    words = resolve(METHODS, settings.method, "method").needs_words
    texts = encode_classes(backbone, run.facts, dataset.class_names, sentences, words=words)
    seconds["texts"] = round(time.monotonic() - began, 3)
    if words and backbone.has_text:
        tell_alike(texts, backbone)
    began = time.monotonic()
    pool = pool_of(run, drawn, backbone, sentences)
    data = FitData(features.vectors, labels, texts, settings.seed, val, pool)
    method = fit_method(settings, run.facts, data, backbone, run)
    seconds["fit"] = round(time.monotonic() - began, 3)
    run.keep_seen(seen_images(settings, dataset))
    run.keep_weights(method.weights())
    run.log(
        {
            "event": "fit",
            "seconds": seconds,
            "images": len(labels),
            "parameters": sum(parameter.numel() for parameter in method.parameters()),
            "skipped": [list(pair) for pair in features.skipped],
        }
    )
    fitted = Fitted(method, backbone, run.facts, sentences, texts)
    doubts = of_training(data.centre, labels, len(texts.names)) if settings.needs_labels else NONE
    if drawn.everything:
        chances = cross_validate(run, data, backbone, dataset.train.take(features.kept), references)
        doubts.calibrated(chances, FOLDS).write(run.folder)
        return
    if (chances := of_validation(fitted, drawn.whole, settings)) is not None:
        doubts = doubts.calibrated(chances, VALIDATION)
    elif settings.folds:
        doubts = doubts.calibrated(left_out_chances(run, data, backbone, settings.folds), FOLDS)
    doubts.write(run.folder)
    others = reference_methods(run, data, backbone, sentences) if references else {}
    classify.evaluate(run, fitted=fitted, references=others, source=drawn.whole)


# -- data --


def _check_left(settings: RunSettings, drawn: Drawn) -> None:
    """Refuse, before anything is fitted, a test part whose images are all training images by content."""
    test, seen = classify.test_part(drawn.whole), seen_images(settings, drawn.dataset)
    if seen and len(test) and not drawn.everything and not of_other_content(test.pictures, seen):
        raise WordsightError(
            f"all {len(test):,} test images of {settings.data} are equal to training images: nothing is left "
            "to test on; give data with other test images, or fewer shots"
        )


def draw(settings: RunSettings, source: Dataset | None = None) -> Drawn:
    """The few-shot draw of a run, with its base or new half of the classes, and a test part where images are
    left.
    """
    whole = source if source is not None else open_dataset(settings.data, settings.label)
    try:
        train_part, val = few_shot(whole, settings.shots, settings.seed)
    except WordsightError:
        whole.account.tell()  # what was left out may be why
        raise
    everything = whole.test is None and len(train_part) == len(whole.train)
    test = whole.train.take([]) if everything else held_out(whole, settings.shots, settings.seed)
    dataset = select_classes(replace(whole, train=train_part, val=val, test=test), settings.classes)
    if len(dataset.class_names) < 2:
        pairs = "; its captions are for method=aape_captions, limber or two_tower"
        raise WordsightError(
            f"{settings.data} has one class only, {', '.join(map(repr, dataset.class_names))}; at least 2 "
            f"are needed to choose among{pairs * is_captioned(settings.data)}"
        )
    if settings.needs_labels and whole.test is not None and whole.test.shown is not None:
        raise WordsightError(
            f"the images of {settings.data} show several classes each, and method={settings.method} learns "
            f"from one; method=zero_shot needs no labels"
        )
    labelled = dataset.train if settings.needs_labels else dataset.train.take([])
    pool = unlabelled(settings.unlabelled, whole, labelled, test) if settings.unlabelled else None
    return Drawn(whole, dataset, everything, pool)


def fingerprints(settings: RunSettings, drawn: Drawn) -> dict[str, str]:
    """What a resumed run must find again: the labelled images it learns from, and those it is tested on."""
    return {
        "images": fingerprint(drawn.dataset.train) if settings.needs_labels else "",
        "test": fingerprint(classify.test_part(drawn.whole)),
        "pool": fingerprint(drawn.pool) if drawn.pool is not None else "",
    }


def seen_images(settings: RunSettings, dataset: Dataset) -> set[bytes]:
    """Digests of the images that were drawn to learn from, or to choose by. Of methods that need no labels
    too: all methods are tested on the same images."""
    parts = [dataset.train, dataset.val if settings.needs_val else None]
    return {
        digest
        for part in parts
        if part is not None
        for digest in digests(part.pictures)
        if digest is not None
    }


def featurise(backbone: Backbone, split: Split, settings: RunSettings, views: int | None = None) -> Features:
    """Image vectors of a part, from the cache where they are in it; what cannot be read is named."""
    features = image_features(
        backbone,
        split.pictures,
        views=views or settings.views,
        flip=settings.flip,
        max_pixels=settings.max_pixels,
    )
    classify.tell_skipped(features, len(split))
    return features


def validation(backbone: Backbone, dataset: Dataset, settings: RunSettings) -> Labelled | None:
    """The validation images of a run that chooses by them; None where it does not, or the data has none."""
    if not settings.needs_val or dataset.val is None or not len(dataset.val):
        return None
    features = featurise(backbone, dataset.val, settings, views=1)
    return Labelled(features.vectors[:, 0], torch.from_numpy(dataset.val.labels)[features.kept])


def pool_of(run: Run, drawn: Drawn, backbone: Backbone, sentences: Sentences) -> Pool | None:
    """The images without labels that a run learns from, and all classes that they may show."""
    if drawn.pool is None:
        return None
    settings, pictures = run.settings, drawn.pool.pictures
    try:
        refuse_photos(settings.backbone, pictures, drawn.dataset.train.pictures)
        features = featurise(backbone, drawn.pool, settings, views=1)
    except WordsightError as error:
        raise WordsightError(f"unlabelled={settings.unlabelled}: {error}") from error
    words = resolve(METHODS, settings.method, "method").needs_words
    texts = encode_classes(backbone, run.facts, drawn.whole.class_names, sentences, words=words)
    taught = teacher_scores(settings, drawn.whole, drawn.pool.take(features.kept))
    return Pool(features.vectors[:, 0], texts, taught)


# -- method --


def reference_methods(run: Run, data: FitData, backbone: Backbone, sentences: Sentences) -> dict[str, Fitted]:
    """The methods that a fit is compared with, fitted to the same images."""
    found = {}
    for name in REFERENCES:
        kind = resolve(METHODS, name, "method")
        can = (backbone.has_text or not kind.needs_words) and (len(data.labels) or not kind.needs_labels)
        if name != run.settings.method and can:
            method = fit_reference(run, name, data, backbone)
            found[name] = Fitted(method, backbone, run.facts, sentences, data.texts)
    return found


# -- words --


def template_of(settings: RunSettings, dataset: Dataset) -> str:
    """The template that class names are put into: none, where the backbone is a file of their vectors."""
    if is_vectors(settings.backbone):
        return "{}"
    if settings.template != "own":
        return settings.template
    if dataset.template is None:
        raise WordsightError(
            f"template=own, but {dataset.name} names none; give template='a photo of a {{}}.' or another "
            f"with one {{}}"
        )
    return dataset.template


def sentence_source(settings: RunSettings) -> str | None:
    """Where a run's sentences come from; a template set stands in where a method wants some and none are
    named.
    """
    if settings.sentences is not None or not settings.needs_sentences or is_vectors(settings.backbone):
        return settings.sentences
    log.info(
        "no sentences= given: the template set %r stands in. `wordsight sentences` has an LLM write some",
        DEFAULT_SENTENCES,
    )
    return DEFAULT_SENTENCES


def _tell_unsaid(settings: RunSettings, sentences: Sentences) -> None:
    """Of which classes a backbone that brings sentences brings none; where it brings none at all, that names
    stand in for them."""
    lacking = [repr(name) for name, own in sentences.items() if not own]
    some = 0 < len(lacking) < len(sentences)
    if lacking and settings.needs_sentences and (some or settings.words == "sentences"):
        about = f" about {few(lacking)}" * some
        log.warning("%s brings no sentences%s: class names stand in", settings.backbone, about)


def sentences_given(settings: RunSettings, dataset: Dataset) -> str | Sentences | None:
    """The same with the data's own templates filled. Errors: WordsightError where the data brings none."""
    source = settings.sentences
    if source != OWN:
        return source
    if not dataset.templates:
        raise WordsightError(
            f"sentences=own fills the data's own templates, and {dataset.name} brings none; put a "
            f"{TEMPLATES} with {{c}} for the class there, or give sentences=clip80"
        )
    return {name: tuple(fill(one, name) for one in dataset.templates) for name in dataset.class_names}


def tell_alike(texts: ClassTexts, backbone: Backbone) -> None:
    """A warning where the text tower reads the same of two classes, as of names that are no words to it, or
    whose difference is cut off."""
    pairs = texts.alike()
    if pairs:
        log.warning(
            "%s of %d classes have one text vector, and only one of each can be predicted: %s; the text "
            "tower of %s reads nothing that tells them apart",
            counted(len(pairs), "pair"),
            len(texts.names),
            few([f"{one!r} and {other!r}" for one, other in pairs], "; "),
            backbone.name,
        )
