"""Retrieve: recall@k on captions, and zero-shot accuracy on labels, of a run that learned from pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight import metrics
from wordsight.backbones import Backbone
from wordsight.backbones.prompted import Prompted
from wordsight.config import WordsightError
from wordsight.data import Dataset, Pairs, open_dataset
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import distinct_texts, open_pairs, sources_of
from wordsight.data.sources import is_captioned
from wordsight.data.splits import Which, of_other_content, select_classes
from wordsight.data.tars import is_shards
from wordsight.fitted import Fitted, open_embedder
from wordsight.runs import Run
from wordsight.tasks.calibrate import fit_temperature
from wordsight.tasks.classify import featurise, figures, tell_skipped, unseen

RANKS = (1, 5, 10)
AT_ONCE = 2**25  # similarities that are held at once: 128 MiB
WAYS = ("image_to_text", "text_to_image")

log = logging.getLogger("wordsight")


def evaluate(
    run: Run,
    *,
    data: str | None = None,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | str | None = None,
) -> list[dict[str, Any]]:
    """Figures of a run on test images, kept in metrics.jsonl: recall@k where the source has captions,
    zero-shot accuracy where it has labels.

    Without `data`, on what the run's own sources mark as test, if anything.
    """
    backbone, seen = open_embedder(run, backbone), run.seen()
    results: list[dict[str, Any]] = []
    for source in sources_of(data or run.settings.data):
        if data is None and is_shards(source):
            continue  # shards mark nothing as test
        if is_captioned(source):
            if classes:
                raise WordsightError(
                    f"classes={classes} chooses among classes, but {source!r} has captions and no classes"
                )
            pairs = test_pairs(source, data is None, seen, run)
            if len(pairs):
                results.append({"event": "retrieval", "data": source, **retrieval(backbone, pairs)})
        else:
            whole = _own_test(source) if data is None else open_dataset(source, label)
            if whole is not None:
                whole.account.tell()
                whole = unseen(whole, seen, run)
                results.append(_zero_shot(backbone, whole, source, run, classes))
    for result in results:
        run.log(result)
    if not results:
        log.info(
            "nothing in data=%s is marked as test, so nothing was measured; `wordsight eval %s data=...` "
            "measures on "
            "other images",
            run.settings.data,
            run.folder,
        )
    return results


def retrieval(backbone: Backbone, pairs: Pairs) -> dict[str, Any]:
    """Recall@1, 5 and 10 both ways (`recalls`); of a backbone whose image vectors are h(x), also of the
    vectors that h is made from, as `plain`."""
    features = image_features(backbone, pairs.pictures)
    tell_skipped(features, len(pairs))
    captions = [pairs.captions[index] for index in features.kept]
    distinct, rows = distinct_texts(captions)
    texts = text_features(backbone, distinct)
    counts = {
        "images": len(captions),
        "captions": sum(map(len, rows)),
        "distinct_captions": len(distinct),
    }
    found: dict[str, Any] = counts | recalls(features.vectors[:, 0], texts, rows)
    if isinstance(backbone, Prompted):
        plain = image_features(backbone.inner, pairs.pictures)
        found["plain"] = recalls(plain.vectors[:, 0], texts, rows)
    return {**found, "skipped": [list(pair) for pair in features.skipped]}


def recalls(
    images: Float[Tensor, "n D"], texts: Float[Tensor, "N D"], rows: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Recall@1, 5 and 10 both ways, of images and distinct captions, `rows` being each image's own.

    Image to text: all captions are candidates, and one is right when it is among the image's own. Text to
    image: every caption is a query, and any image that has this very caption is right. So captions that
    several images share are never counted as wrong."""
    having: list[list[int]] = [[] for _ in range(len(texts))]  # the images of each caption
    for image, own in enumerate(rows):
        for text in own:
            having[text].append(image)
    asked = [text for own in rows for text in own]
    return {
        "image_to_text": _recalls(images, texts, rows),
        "text_to_image": _recalls(texts[asked], images, [having[text] for text in asked]),
    }


def _recalls(
    queries: Float[Tensor, "Q D"], found: Float[Tensor, "N D"], relevant: Sequence[Sequence[int]]
) -> dict[str, float]:
    """A block of queries at a time, so that no more than AT_ONCE similarities are held."""
    totals, asked, size = dict.fromkeys(RANKS, 0.0), 0, max(1, AT_ONCE // max(1, len(found)))
    for start in range(0, len(queries), size):
        own = relevant[start : start + size]
        right = torch.zeros(len(own), len(found), dtype=torch.bool)
        for row, places in enumerate(own):
            right[row, list(places)] = True
        similarity, counted = queries[start : start + size] @ found.T, int(right.any(1).sum())
        for k in RANKS if counted else ():
            totals[k] += counted * metrics.recall_at(similarity, right, k)
        asked += counted
    return {f"recall@{k}": total / asked if asked else float("nan") for k, total in totals.items()}


def test_pairs(source: str, own: bool, seen: set[bytes], run: Run) -> Pairs:
    """The pairs of a table that are marked as test, or of other data that marks none all of them; without
    images that the run was trained on."""
    pairs = open_pairs(source, "test")
    if not own:  # of its own data the fit told what was left out
        pairs = pairs if len(pairs) else open_pairs(source)
        pairs.account.tell()
    kept = of_other_content(pairs.pictures, seen)
    left = len(pairs) - len(kept)
    if not left:
        return pairs
    message = f"left out {left:,} of {len(pairs):,} images of {source} that {run.folder} was trained on"
    if not kept and not own:
        raise WordsightError(f"{message}: nothing is left to test on; give other data=...")
    log.log(logging.INFO if kept else logging.WARNING, message + ": nothing is left to test on" * (not kept))
    pictures, captions = ([column[row] for row in kept] for column in (pairs.pictures, pairs.captions))
    return replace(pairs, pictures=pictures, captions=captions)


def _zero_shot(
    backbone: Backbone, whole: Dataset, source: str, run: Run, classes: Which | None
) -> dict[str, Any]:
    """Accuracy on labelled images by class names alone."""
    dataset = select_classes(whole, classes or "all")
    fitted = Fitted.by_names(backbone, dataset.class_names, run.settings.template)
    assert dataset.test is not None  # `unseen` gave it one
    tested = featurise(backbone, dataset.test, run.settings)
    result = {"event": "eval", "data": source, "classes": classes or "all"}
    temperature = fit_temperature(fitted, whole, run.settings, classes or "all", run.seen())
    found = fitted.best(tested.vectors, temperature.value or 1.0)
    result |= figures(found, tested.labels, dataset.class_names, temperature)
    return result | {"skipped": [list(pair) for pair in tested.features.skipped]}


def _own_test(source: str) -> Dataset | None:
    """A source that was trained on, where it marks a part as test, and its classes can be told apart by
    name.
    """
    try:
        whole = open_dataset(source)
    except WordsightError as error:
        log.info("not measured on %s: %s", source, error)
        return None
    return whole if whole.test is not None and len(whole.train) else None
