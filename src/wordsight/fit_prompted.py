"""Fit prompted: from image-text pairs to a run that is a backbone whose image vectors are AAPE's h(x).

The same run folder as of labels, resumed by the same command. Everything is learned from vectors that are
cached: neither tower is trained."""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wordsight import losses
from wordsight.backbones import Backbone, load_backbone, unit
from wordsight.backbones.prompted import Prompted
from wordsight.batches import FeatureBatches
from wordsight.config import RunSettings, WordsightError
from wordsight.contrast import place
from wordsight.data import Pairs
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import distinct_texts, fingerprint
from wordsight.fit_pairs import default_pairs_folder, pairs_of, seen_of, training_pairs
from wordsight.fitting import carry_out
from wordsight.methods.aape_captions import CONTRASTS, PENALTIES, Captioned, Equations
from wordsight.methods.caption_prompt import CaptionPrompt
from wordsight.methods.evidence import Affine
from wordsight.runs import Run, RunFacts
from wordsight.settings import CaptionSettings
from wordsight.tasks import retrieve
from wordsight.tasks.classify import tell_skipped
from wordsight.train import train

FOLDS = 5  # one of so many parts of the images is left out to choose by, where none are marked as validation
SCALES = tuple(5.0 * 1.25**step for step in range(14))  # of cosines, among which left-out images choose

log = logging.getLogger("wordsight")


class Learned(NamedTuple):
    """h, the width of its inner layer (0: linear), the scale of cosines, and how it was found."""

    h: nn.Module
    width: int
    scale: float
    how: dict[str, Any]


def fit_prompted(settings: RunSettings, backbone: Backbone | None = None) -> Run:
    """Learn h of one run from pairs; the same settings again resume it, or give it back finished."""
    if place()[1] > 1:
        raise WordsightError(
            f"method={settings.method} is fitted in one process; start it without accelerate launch or "
            f"torchrun"
        )
    pairs = training_pairs(settings)
    backbone = backbone or load_backbone(settings.backbone, device=settings.device, dtype=settings.dtype)
    return carry_out(
        settings.out or default_pairs_folder(settings),
        settings,
        _facts(settings, backbone, pairs),
        lambda run: _complete(run, backbone, pairs),
        account=pairs.account,
    )


def _facts(settings: RunSettings, backbone: Backbone, pairs: Pairs) -> RunFacts:
    prints = {side: getattr(backbone, side) for side in ("image_fingerprint", "text_fingerprint")}
    scale = backbone.logit_scale
    return RunFacts((), backbone.dim, scale, settings.template, **prints, pairs=fingerprint(pairs))


def _complete(run: Run, backbone: Backbone, pairs: Pairs) -> None:
    """All that a run holds, in the order in which a later part needs an earlier one."""
    began = time.monotonic()
    views, known = _encoded(backbone, pairs, run.settings)
    fitted_to, left_out = _parted(backbone, known, run.settings)
    seconds = {"features": round(time.monotonic() - began, 3)}
    began = time.monotonic()
    learned = _learned(run, views, known, fitted_to, left_out)
    seconds["fit"] = round(time.monotonic() - began, 3)
    prompted = Prompted(
        backbone, learned.h, width=learned.width, logit_scale=learned.scale, name=str(run.folder)
    )
    prompted.write_into(run.folder)
    run.keep_weights(prompted.weights())
    run.keep_seen(seen_of(pairs))
    counts = {"images": len(known.rows), "captions": sum(map(len, known.rows))}
    parameters = sum(tensor.numel() for tensor in learned.h.state_dict().values())
    run.log({"event": "fit", "seconds": seconds, **counts, "parameters": parameters, **learned.how})
    retrieve.evaluate(run, backbone=prompted)


# -- what it learns from -------------------------------------------------------------------------------------


def _encoded(
    backbone: Backbone, pairs: Pairs, settings: RunSettings
) -> tuple[Float[Tensor, "n V D"], Captioned]:
    """All views of the images that can be read; the centre crops with their captions."""
    recipe = {"views": settings.views, "flip": settings.flip, "max_pixels": settings.max_pixels}
    features = image_features(backbone, pairs.pictures, **recipe)
    tell_skipped(features, len(pairs))
    distinct, rows = distinct_texts([pairs.captions[index] for index in features.kept])
    return features.vectors, Captioned(features.vectors[:, 0], text_features(backbone, distinct), rows)


def _parted(backbone: Backbone, known: Captioned, settings: RunSettings) -> tuple[Captioned, Captioned]:
    """The images that h is solved for while its strengths are chosen, and those that they are chosen by: the
    data's validation images or, where it marks none, one of FOLDS parts."""
    pairs = pairs_of(settings, "val")
    if len(pairs) > 1:
        return known, _encoded(backbone, pairs, replace(settings, views=1))[1]
    order = random.Random(settings.seed).sample(range(len(known.rows)), len(known.rows))
    count = max(1, len(order) // FOLDS)
    return known.take(sorted(order[count:])), known.take(sorted(order[:count]))


# -- how it learns -------------------------------------------------------------------------------------------


def _learned(
    run: Run, views: Float[Tensor, "n V D"], known: Captioned, fitted_to: Captioned, left_out: Captioned
) -> Learned:
    own: CaptionSettings = run.settings.settings
    dim = known.images.shape[1]
    if own.form == "paper":
        torch.manual_seed(run.settings.seed)
        learner = CaptionPrompt(dim, known.of_images, own)
        return _trained(run, views, learner, own.width, {"form": own.form})
    equations = Equations(fitted_to)
    (penalty, contrast), tried = _strengths(equations, left_out, own.contrast)
    solved = Equations(known).solve(penalty, contrast)
    h = nn.Linear(dim, dim)
    h.load_state_dict({"weight": solved.map.T, "bias": solved.bias})
    how = {"form": own.form, "penalty": penalty, "contrast": contrast, "tried": tried}
    scale = _scale(equations.solve(penalty, contrast), left_out)  # of an h that has not seen these
    if own.form == "solved":
        return Learned(h, 0, scale, how)
    torch.manual_seed(run.settings.seed)
    learner = CaptionPrompt(dim, known.of_images, replace(own, aggregator="mean", distill=0.0), start=h)
    learner.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
    return _trained(run, views, learner, 0, how)


def _trained(
    run: Run, views: Float[Tensor, "n V D"], learner: CaptionPrompt, width: int, how: dict[str, Any]
) -> Learned:
    settings = run.settings
    assert settings.train is not None  # of these forms
    batches = FeatureBatches(views, torch.arange(len(views)), settings.train.batch_size, settings.seed)
    device = "cpu" if settings.device == "auto" else settings.device  # h is small, and soon learned there
    train(learner, batches, settings.train, seed=settings.seed, device=device, run=run)
    scale = float(losses.clamped_scale(learner.log_scale.detach()))
    return Learned(learner.generator.cpu(), width, scale, how)


def _strengths(
    equations: Equations, left_out: Captioned, contrast: float | None
) -> tuple[tuple[float, float], list[dict[str, float]]]:
    """The penalty and the contrast under which left-out images and their captions find one another best: by
    the mean of recall@1, 5 and 10 both ways; and what each pair does."""
    tried, contrasts = [], CONTRASTS if contrast is None else (contrast,)
    for penalty, contrast in itertools.product(PENALTIES, contrasts):
        h = equations.solve(penalty, contrast)
        figures = retrieve.recalls(unit(h(left_out.images)), left_out.texts, left_out.rows)
        mean = sum(sum(figures[way].values()) for way in retrieve.WAYS) / (2 * len(retrieve.RANKS))
        tried.append({"penalty": penalty, "contrast": contrast, "recall": mean})
    best = max(tried, key=lambda one: one["recall"])
    return (best["penalty"], best["contrast"]), tried


@torch.no_grad()
def _scale(h: Affine, left_out: Captioned) -> float:
    """The scale of cosines under which left-out images and the first of their captions are likeliest."""
    images, texts = unit(h(left_out.images)), left_out.texts[[own[0] for own in left_out.rows]]
    found = {scale: float(losses.info_nce(images, texts, torch.tensor(math.log(scale)))) for scale in SCALES}
    return min(found, key=lambda scale: found[scale])
