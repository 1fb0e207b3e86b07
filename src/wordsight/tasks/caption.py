"""Caption: what a run says of test images, against what people said (CIDEr-D, BLEU-4) and against the images
(CLIPScore); and what needs no run: the caption of the nearest training photo, and one caption for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.generator import Generator, Writing
from wordsight.captioner import Captions
from wordsight.config import WordsightError
from wordsight.data import Pairs, Picture
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import sources_of
from wordsight.data.sources import is_captioned
from wordsight.data.splits import Which
from wordsight.early import captions_file
from wordsight.files import csv_text, write_file
from wordsight.fitted import open_generator
from wordsight.runs import Run
from wordsight.tasks.retrieve import test_pairs
from wordsight.text_metrics import CLIP_PREFIX, bleu, cider_d, clip_score, ref_clip_score, tokens

TRIED, TRIED_ON = 200, 250  # captions that may stand for all images, and training images that choose one
AT_ONCE = 4096  # images whose nearest training image is looked for together

Captioned: TypeAlias = tuple[str, ...]  # the captions of an image

log = logging.getLogger("wordsight")


def evaluate(
    run: Run,
    *,
    data: str | None = None,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | str | None = None,
    lm: str | None = None,
    scorer: Backbone | str | None = None,
    generator: Generator | None = None,
    batch: int | None = None,
) -> list[dict[str, Any]]:
    """Figures of a run's captions of test images, kept in metrics.jsonl, and the captions in captions-*.csv.

    Without `data`, of what the run's own sources mark as test. `scorer` is the backbone of CLIPScore: by
    default the run's own, where it has a text tower. `generator` is what the run became, where it is open
    already."""
    if classes or label:
        given = f"classes={classes}" if classes else f"label={label}"
        raise WordsightError(f"{given} is about classes, but {run.folder} writes captions; leave it out")
    generator = generator or open_generator(run.folder, backbone=backbone, lm=lm)
    scorer = _scorer(run, generator, scorer)
    results, seen = [], run.seen()
    for source in sources_of(data or run.settings.data):
        if not is_captioned(source):
            log.info("not measured on %s: it has no captions", source)
            continue
        pairs = test_pairs(source, data is None, seen, run)
        if not len(pairs):
            log.info("%s marks no image as test, so nothing was measured on it", source)
            continue
        result, table = measured(generator, pairs, scorer, batch=batch)
        write_file(run.folder / captions_file(source), table)
        results.append({"event": "captions", "data": source, **result})
        run.log(results[-1])
    return results


def measured(
    generator: Generator,
    pairs: Pairs,
    scorer: Backbone | None = None,
    *,
    how: Writing | None = None,
    batch: int | None = None,
) -> tuple[dict[str, Any], str]:
    """Figures of a generator's captions of these images, and a table (CSV) of the captions themselves."""
    captions = Captions(generator, pairs.pictures, how, batch=batch)
    said = {one.picture.name: one.text for one in captions}
    kept = [row for row, picture in enumerate(pairs.pictures) if picture.name in said]
    pictures = [pairs.pictures[row] for row in kept]
    texts, references = [said[one.name] for one in pictures], [pairs.captions[row] for row in kept]
    result, columns = figures(texts, references, pictures, scorer)
    rows = [
        [picture.name, text, *(f"{column[row]:.4f}" for column in columns.values())]
        for row, (picture, text) in enumerate(zip(pictures, texts))
    ]
    result["skipped"] = [[one["image"], one["reason"]] for one in captions.skipped]
    return result, csv_text(["image", "caption", *columns], rows)


def figures(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    pictures: Sequence[Picture] = (),
    scorer: Backbone | None = None,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """CIDEr-D (0 to 10) and BLEU-4 (0 to 1) of captions against those of people, and with a `scorer`
    CLIPScore and RefCLIPScore (0 to 2.5 and to 1.4) against the pictures; means, and by image.
    """
    cut = [tokens(text) for text in captions]
    people = [[tokens(text) for text in texts] for texts in references]
    columns = {"cider_d": cider_d(cut, people)}
    if scorer is not None:
        columns |= _clip_scores(scorer, captions, references, pictures)
    means = {name: sum(values) / len(values) for name, values in columns.items()}
    result = {"images": len(captions), "distinct": len(set(captions)), **means}
    result |= {"bleu_4": bleu(cut, people)[-1], "tokens": sum(map(len, cut)) / len(cut)}
    return result | ({"scorer": scorer.name} if scorer is not None else {}), columns


def _clip_scores(
    scorer: Backbone,
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    pictures: Sequence[Picture],
) -> dict[str, list[float]]:
    images = image_features(scorer, pictures)
    if len(images.kept) < len(pictures):
        raise WordsightError(f"{scorer.name} cannot read an image that has a caption: {images.skipped[0]}")
    said = text_features(scorer, [CLIP_PREFIX + text for text in captions])
    flat = [CLIP_PREFIX + text for texts in references for text in texts]
    people = text_features(scorer, flat).split([len(texts) for texts in references])
    vectors = images.vectors[:, 0]
    return {
        "clip_score": clip_score(vectors, said).tolist(),
        "ref_clip_score": ref_clip_score(vectors, said, people).tolist(),
    }


def _scorer(run: Run, generator: Generator, given: Backbone | str | None) -> Backbone | None:
    """The backbone of CLIPScore; None where there is none with a text tower, which is told."""
    if isinstance(given, str):
        return load_backbone(given, device=str(generator.device))
    own = given or getattr(generator, "backbone", None)
    if own is None or not own.has_text or not own.text_fingerprint:
        log.info("no CLIPScore: the run's backbone has no text tower; give scorer=..., a backbone with one")
        return None
    return own


# -- what needs no run --


def nearest_captions(
    train: Pairs, train_images: Float[Tensor, "n D"], images: Float[Tensor, "m D"]
) -> list[str]:
    """For each image the caption of its nearest training image: of its several the one most like the others,
    by CIDEr-D.
    """
    chosen = typical_captions(train.captions)
    found: list[str] = []
    for some in images.split(AT_ONCE):
        found += [chosen[row] for row in (some @ train_images.T).argmax(1).tolist()]
    return found


def typical_captions(captions: Sequence[Captioned]) -> list[str]:
    """Of each image's captions the one that is most like its others: the highest CIDEr-D, the first of
    equals.
    """
    cut = [[tokens(text) for text in texts] for texts in captions]
    most = max(map(len, cut))
    best: list[tuple[float, int]] = [(-1.0, 0)] * len(cut)
    for place in range(most):
        rows = [row for row, texts in enumerate(cut) if place < len(texts) and len(texts) > 1]
        others = [[text for other, text in enumerate(cut[row]) if other != place] for row in rows]
        scores = cider_d([cut[row][place] for row in rows], others) if rows else []
        for row, score in zip(rows, scores):
            best[row] = max(best[row], (score, -place))
    return [texts[-place] for texts, (_, place) in zip(captions, best)]


def constant_caption(captions: Sequence[Captioned], seed: int = 1) -> str:
    """One caption for all images: of some training captions the one with the highest mean CIDEr-D on some
    training images.
    """
    stream = torch.Generator().manual_seed(seed)
    shuffled = [captions[row] for row in torch.randperm(len(captions), generator=stream).tolist()]
    people = [[tokens(text) for text in texts] for texts in shuffled[:TRIED_ON]]
    tried = typical_captions(shuffled[-TRIED:])
    scores = [sum(cider_d([tokens(text)] * len(people), people)) for text in tried]
    return tried[scores.index(max(scores))]
