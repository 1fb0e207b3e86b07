"""Fit captions: from image-text pairs to a run that says in words what images show (LiMBeR, with AAPE's h).

The same run folder as of labels, resumed by the same command. h learns first, from vectors alone, then
the map from grids that lie on the disk; neither the image tower nor the LM is trained."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.sentence_encoder import load_texts
from wordsight.batches import FeatureBatches, PairBatches
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.contrast import place
from wordsight.data import Pairs
from wordsight.data.features import Features, image_features, text_features
from wordsight.data.grids import Grids, grid_features
from wordsight.data.pairs import distinct_texts, fingerprint
from wordsight.files import write_file
from wordsight.fit_pairs import default_pairs_folder, named, seen_of, training_pairs
from wordsight.fitting import carry_out
from wordsight.methods.caption_prompt import CaptionPrompt
from wordsight.methods.limber import Limber
from wordsight.methods.limber_generator import LimberGenerator
from wordsight.runs import Run, RunFacts
from wordsight.settings import LimberSettings
from wordsight.tasks import caption
from wordsight.tasks.classify import tell_skipped
from wordsight.train import STATE_FILE, train

SAMPLE = 256  # images whose grids say how large each channel is
STARTED = 4000  # images that start=ridge is solved on
H_STATE = "h"  # in state/: the training of h

log = logging.getLogger("wordsight")


@dataclass(frozen=True)
class Parts:
    """What a training of captions is made of."""

    settings: RunSettings
    own: LimberSettings
    backbone: Backbone  # whose image tower is frozen
    lm: PrefixedLM
    texts: Backbone | None  # whose text vectors h learns
    pairs: Pairs


@dataclass(frozen=True)
class Encoded:
    """What the image tower made of the images that can be read, and their captions."""

    features: Features
    grids: Grids
    captions: list[tuple[str, ...]]


class Quiet:
    """Where the training of h keeps its state and its last event: beside the state of the captions, whose
    events alone are logged.
    """

    def __init__(self, state: Path):
        self.state: Path | None = state
        self.file = state / "last.json"

    @property
    def last(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def log(self, event: dict[str, Any]) -> None:
        write_file(self.file, json.dumps(event))

    def rewind(self, step: float) -> None:
        pass


def fit_captions(
    settings: RunSettings, backbone: Backbone | None = None, lm: PrefixedLM | None = None
) -> Run:
    """Train the map of one run on pairs; the same settings again resume it, or give it back finished. `lm` is
    what settings.text names, where it is open already.
    """
    if place()[1] > 1:
        raise WordsightError(
            f"method={settings.method} is trained in one process; start it without accelerate launch or "
            f"torchrun"
        )
    pairs = training_pairs(settings)
    parts = _parts(settings, backbone, lm, pairs)
    folder = settings.out or default_pairs_folder(settings)
    return carry_out(
        folder, settings, _facts(parts), lambda run: _complete(run, parts), account=pairs.account
    )


def _parts(settings: RunSettings, backbone: Backbone | None, lm: PrefixedLM | None, pairs: Pairs) -> Parts:
    own: LimberSettings = settings.settings
    where = {"device": settings.device, "dtype": settings.dtype}
    backbone = backbone or load_backbone(settings.backbone, **where, text=False)
    texts = _texts(own, backbone, where)
    with named("settings.text", own.text):
        lm = lm or PrefixedLM.from_base(own.text, device=backbone.device, dtype=settings.dtype)
    parts = Parts(settings, own, backbone, lm, texts, pairs)
    _check_room(lm, own)
    return parts


def _texts(own: LimberSettings, backbone: Backbone, where: dict[str, str]) -> Backbone | None:
    """Whose text vectors h learns. Errors: WordsightError where nobody encodes texts."""
    if not own.learns_h:
        return None
    if own.encoder is not None:
        with named("settings.encoder", own.encoder):
            return load_texts(own.encoder, **where)
    if not backbone.text_fingerprint or not backbone.has_text:
        raise WordsightError(
            f"settings.h={own.h} learns from text vectors, but {backbone.name!r} has no text tower; give "
            f"settings.encoder=..., a backbone with one or a sentence encoder, or settings.h=none"
        )
    return backbone


def _check_room(lm: PrefixedLM, own: LimberSettings) -> None:
    """Errors: WordsightError where soft tokens and a caption are longer than the LM reads."""
    wanted = len(lm.begin) + own.tokens + (own.h != "none") + own.max_tokens
    if lm.context is not None and wanted > lm.context:
        raise WordsightError(
            f"settings.tokens={own.tokens} and settings.max_tokens={own.max_tokens} make {wanted} tokens, "
            f"but {lm.lm.config.model_type} reads {lm.context}; give fewer"
        )


def _facts(parts: Parts) -> RunFacts:
    backbone, texts = parts.backbone, parts.texts
    return RunFacts(
        (),
        backbone.dim,
        backbone.logit_scale,
        parts.settings.template,
        image_fingerprint=backbone.image_fingerprint,
        text_fingerprint=texts.text_fingerprint if texts is not None else "",
        pairs=fingerprint(parts.pairs),
        lm=parts.lm.origin,
    )


def _complete(run: Run, parts: Parts) -> None:
    """All that a run holds, in the order in which a later part needs an earlier one."""
    settings, began = parts.settings, time.monotonic()
    seen = _seen(parts)
    seconds = {"features": round(time.monotonic() - began, 3)}
    began = time.monotonic()
    prompt, learned = _prompt(run, parts, seen)
    seconds["h"] = round(time.monotonic() - began, 3)
    began = time.monotonic()
    batches, cut = _batches(parts, seen, prompt)
    torch.manual_seed(settings.seed)
    method = _method(parts, seen, prompt, batches, resumed=(run.state / STATE_FILE).is_file())
    train(method, batches, settings.train, seed=settings.seed, device=parts.backbone.device, run=run)
    seconds["fit"] = round(time.monotonic() - began, 3)
    if cut:
        log.info("%d captions were longer than %d tokens and lost their ends", cut, parts.own.max_tokens)
    run.keep_weights(method.weights())
    run.keep_seen(seen_of(parts.pairs))
    run.log(
        {
            "event": "fit",
            "seconds": seconds,
            "images": len(seen.captions),
            "captions": len(batches.tokens),
            "truncated_captions": cut,
            "parameters": sum(one.numel() for one in method.parameters() if one.requires_grad),
            "h": learned,
        }
    )
    generator = LimberGenerator(parts.backbone, method, name=str(run.folder))
    caption.evaluate(run, generator=generator)


def _seen(parts: Parts) -> Encoded:
    """Grids and vectors of the images, of those that give both."""
    settings, pictures = parts.settings, parts.pairs.pictures
    recipe = {"views": settings.views, "flip": settings.flip, "max_pixels": settings.max_pixels}
    grids = grid_features(parts.backbone, pictures, parts.own.tokens, **recipe)
    features = image_features(parts.backbone, pictures, **recipe)
    both = sorted(set(grids.kept) & set(features.kept))
    rows = {index: row for row, index in enumerate(features.kept)}
    kept = torch.tensor([rows[index] for index in both])
    features = Features(features.vectors[kept], both, grids.skipped)
    rows = {index: row for row, index in enumerate(grids.kept)}
    tell_skipped(features, len(pictures))
    return Encoded(
        features, grids.take([rows[index] for index in both]), [parts.pairs.captions[index] for index in both]
    )


def _prompt(run: Run, parts: Parts, seen: Encoded) -> tuple[CaptionPrompt | None, dict[str, Any]]:
    """h, trained by itself where there is one, and the losses of its last step."""
    own, settings = parts.own, parts.settings
    if parts.texts is None:
        return None, {}
    flat = [text for texts in seen.captions for text in texts]
    vectors = text_features(parts.texts, flat).split([len(texts) for texts in seen.captions])
    torch.manual_seed(settings.seed)
    prompt = CaptionPrompt(seen.features.vectors.shape[2], vectors, own)
    batches = FeatureBatches(
        seen.features.vectors, torch.arange(len(seen.captions)), own.h_batch, settings.seed
    )
    schedule = TrainSettings(
        epochs=own.h_epochs, min_steps=0, batch_size=own.h_batch, lr=own.h_lr, schedule="step"
    )
    keeper = Quiet(run.state / H_STATE)
    train(prompt, batches, schedule, seed=settings.seed, device=parts.backbone.device, run=keeper)
    return prompt, {name: value for name, value in keeper.last.items() if name != "event"}


def _method(
    parts: Parts, seen: Encoded, prompt: CaptionPrompt | None, batches: PairBatches, *, resumed: bool
) -> Limber:
    """The method before the captions are learned, with h as it was trained. One that is `resumed` has left
    its start behind.
    """
    text_dim = prompt.captions.shape[2] if prompt is not None else 0
    method = Limber(parts.lm, parts.own, seen.grids.shape, seen.features.vectors.shape[2], text_dim)
    if prompt is not None and method.generator is not None:
        method.generator.load_state_dict(prompt.generator.state_dict())
    stream = torch.Generator().manual_seed(parts.settings.seed)
    rows = torch.randperm(len(seen.grids), generator=stream)[:SAMPLE].sort().values
    sample = seen.grids.centre(rows.tolist()).to(parts.backbone.device)
    method.start_at(sample)
    if parts.own.start == "ridge" and not resumed:
        rows = torch.randperm(len(seen.grids), generator=stream)[:STARTED].sort().values
        means = torch.cat([seen.grids.centre(some.tolist()).float().mean(1) for some in rows.split(SAMPLE)])
        images = seen.features.vectors[rows, 0]
        words = _words(parts.lm, batches, rows.tolist())
        method.start_at_words(sample, means.to(sample.device), images.to(sample.device), words)
    return method


@torch.no_grad()
def _words(lm: PrefixedLM, batches: PairBatches, rows: Sequence[int]) -> Float[Tensor, "n W"]:
    """The mean of the LM's own vectors of these images' captions, their end tokens among them. float32, on
    the CPU.
    """
    found = []
    for row in rows:
        tokens = [*chain.from_iterable(batches.tokens[caption] for caption in batches.captions[row])]
        found.append(lm.embed(torch.tensor([tokens], device=lm.device))[0].float().mean(0).cpu())
    return torch.stack(found)


def _batches(parts: Parts, seen: Encoded, prompt: CaptionPrompt | None) -> tuple[PairBatches, int]:
    """Vectors, grids and captions as tokens, with h's targets where it is trained on; how many captions
    are too long.
    """
    settings, features = parts.settings, seen.features
    distinct, rows = distinct_texts(seen.captions)
    tokens, cut = parts.lm.tokenise(distinct, parts.own.max_tokens)
    per_image: dict[str, Tensor | Grids] = {"grids": seen.grids}
    if prompt is not None and parts.own.h == "finetuned":
        targets = prompt.targets(features.vectors[:, 0])
        per_image["target"] = targets[:, None].expand(-1, features.vectors.shape[1], -1)
    batches = PairBatches(features.vectors, rows, tokens, settings.train.batch_size, settings.seed, per_image)
    return batches, cut
