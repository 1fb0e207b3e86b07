"""Fit pairs: from image-text pairs to a run that is a backbone (CLAMP, LiT and kin).

The same run folder as of labels, resumed by the same command. Under `accelerate launch` or `torchrun` every
process calls this and returns the run; rank 0 alone writes and evaluates."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone, load_backbone, pick_device, unit
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.batches import PairBatches
from wordsight.config import RunSettings, WordsightError
from wordsight.contrast import join_processes, rank_0_first
from wordsight.data import Pairs
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import distinct_texts, fingerprint, open_pairs
from wordsight.data.splits import digests
from wordsight.data.stream import Mixture, StreamBatches, needs_stream, open_stream
from wordsight.files import plain_name, read_tensors, write_tensors
from wordsight.fitting import carry_out
from wordsight.methods.two_tower import START, TwoTower, tower_settings
from wordsight.runs import Run, RunFacts
from wordsight.tasks import retrieve
from wordsight.tasks.classify import tell_skipped
from wordsight.tower_settings import OWN_START, TwoTowerSettings
from wordsight.train import STATE_FILE, changing, total_steps, train

TEACHER_FILE = "teacher.safetensors"  # in state/
SIZES_FILE = "sizes.json"  # in state/: what a stream knows of its shards
START_CAPTIONS = (
    4000  # that start=ridge is fitted on: a map of a few hundred by a few hundred numbers needs no more
)

log = logging.getLogger("wordsight")


@dataclass(frozen=True)
class Parts:
    """What a training of two towers is made of."""

    settings: RunSettings
    own: TwoTowerSettings
    backbone: Backbone  # whose image tower is frozen
    tower: TextTower
    teacher: Backbone | None
    pairs: Pairs | None  # None: they are read while training goes on
    rank: int
    world: int


def fit_pairs(settings: RunSettings, backbone: Backbone | None = None) -> Run:
    """Train the text tower of one run on pairs; the same settings again resume it, or give it back
    finished.
    """
    own: TwoTowerSettings = settings.settings
    rank, world = join_processes(pick_device(settings.device))
    if world > 1 and ":" in settings.device:
        raise WordsightError(
            f"device={settings.device} is the same for all of {world} processes; give "
            f"device={settings.device.split(':')[0]}, and each takes its own"
        )
    speaks = contextlib.nullcontext() if rank == 0 else _silent()
    with speaks:
        streams = _streams(settings)
        if streams:
            _opened(settings, rank, world)  # what is wrong with a source is said before a folder is made
        pairs = None if streams else training_pairs(settings)
        if own.shard and world == 1:
            log.info(
                "settings.shard=true shares nothing out in one process; start several, with accelerate "
                "launch or "
                "torchrun"
            )
        parts = _parts(settings, backbone, pairs, rank, world)
        return carry_out(
            settings.out or default_pairs_folder(settings),
            settings,
            _facts(parts),
            lambda run: _complete(run, parts),
            account=pairs.account if pairs is not None else None,
        )


def default_pairs_folder(settings: RunSettings) -> Path:
    """runs/<data>-<method>-<LM or, without one, backbone>-seed<seed>."""
    data, model = plain_name(settings.data), getattr(settings.settings, "text", settings.backbone)
    return Path("runs") / f"{data}-{settings.method}-{plain_name(model)}-seed{settings.seed}"


# -- what it is made of --


def _parts(
    settings: RunSettings, backbone: Backbone | None, pairs: Pairs | None, rank: int, world: int
) -> Parts:
    own: TwoTowerSettings = settings.settings
    load = partial(load_backbone, device=settings.device, dtype=settings.dtype)
    backbone = backbone or load(settings.backbone, text=False)
    torch.manual_seed(settings.seed)
    with named("settings.text", own.text):
        tower = _tower(settings, backbone)
    with named("settings.teacher", own.teacher):
        teacher = load(own.teacher) if own.teacher not in (None, OWN_START) else None
    if own.teacher is not None and own.tau_d is None:
        scale = teacher.logit_scale if teacher is not None else math.exp(START["contrastive"])
        own = replace(own, tau_d=scale)
    return Parts(settings, own, backbone, tower, teacher, pairs, rank, world)


def _tower(settings: RunSettings, backbone: Backbone) -> TextTower:
    own: TwoTowerSettings = settings.settings
    shape = own.shape if own.random else None
    wanted = tower_settings(own, backbone.dim)
    return TextTower.from_base(own.text, wanted, device=backbone.device, dtype=settings.dtype, random=shape)


def _facts(parts: Parts) -> RunFacts:
    backbone = parts.backbone
    known = "" if parts.pairs is None else fingerprint(parts.pairs)
    return RunFacts(
        (),
        backbone.dim,
        1.0,
        parts.settings.template,
        image_fingerprint=backbone.image_fingerprint,
        # random weights are known by their seed: their last bits differ between processors
        text_fingerprint="" if parts.own.random else parts.tower.origin,
        pairs=known,
    )


def _streams(settings: RunSettings) -> bool:
    """Whether pairs are read while training goes on, and not all at once."""
    own: TwoTowerSettings = settings.settings
    streams = own.features == "stream" or bool(own.weights) or needs_stream(settings.data)
    if streams and own.start == "ridge":
        raise WordsightError(
            "settings.start=ridge reads all captions first, which a stream does not have; leave start out, "
            "or give "
            "tables"
        )
    return streams


def _opened(settings: RunSettings, rank: int, world: int, sizes: Path | None = None) -> Mixture:
    return open_stream(
        settings.data,
        settings.settings.weights or None,
        template=settings.template,
        sentences=settings.sentences,
        aliases=settings.aliases,
        label=settings.label,
        seed=settings.seed,
        rank=rank,
        world=world,
        sizes=sizes,
    )


def pairs_of(settings: RunSettings, part: str) -> Pairs:
    """The pairs of one part of a run's data, in the words that the run is given. Errors: WordsightError."""
    words = {name: getattr(settings, name) for name in ("template", "sentences", "aliases", "label")}
    return open_pairs(settings.data, part, **words)


def training_pairs(settings: RunSettings) -> Pairs:
    """The pairs that a run learns from, with what was left out of them told. Errors: WordsightError."""
    pairs = pairs_of(settings, "train")
    pairs.account.tell()
    if len(pairs) < 2:
        raise WordsightError(
            f"data={settings.data!r} has captions of one image only; give 2 or more, to be told apart"
        )
    return pairs


# -- training --


def _complete(run: Run, parts: Parts) -> None:
    """All that a run holds, in the order in which a later part needs an earlier one."""
    own, tower, settings = parts.own, parts.tower, parts.settings
    began, resumed = time.monotonic(), (run.state / STATE_FILE).is_file()
    with contextlib.ExitStack() as leaving:
        if parts.pairs is None:
            batches = leaving.enter_context(_stream(run, parts))
            captions: list[str] = []
            # a resumed run has it in its state
            mean = batches.mean_image() if own.centre and not resumed else None
            batches.close()  # until training asks for the first batch
        else:
            with rank_0_first():  # the others find its features in the cache
                batches, captions, mean = _batches(parts, parts.pairs)
        truncated = tower.truncated_texts  # before anything is tokenised twice; a stream has not begun
        seconds = {"features": round(time.monotonic() - began, 3)}
        began = time.monotonic()
        torch.manual_seed(settings.seed)
        method = TwoTower(tower, own, mean)
        if own.start == "ridge" and not resumed:  # which has left it behind
            assert isinstance(batches, PairBatches)  # a stream was refused
            method.start_at_ridge(*_start(tower, batches, captions))
        if own.teacher == OWN_START:
            assert isinstance(batches, PairBatches)
            batches.per_image["teacher_images"] = unit(batches.images - method.image_mean.cpu())
            batches.per_caption["teacher_texts"] = _taught_at_start(run, tower, captions, resumed)
        if method.learns_head_alone:
            if isinstance(batches, StreamBatches):
                batches.per_caption["pooled"] = tower.features
            else:
                batches.per_caption["pooled"] = tower.features(captions).cpu()
        if own.shard and parts.world > 1:
            method.share_out()
        train(method, batches, settings.train, seed=settings.seed, device=parts.backbone.device, run=run)
        method.finish()
        seconds["fit"] = round(time.monotonic() - began, 3)
        if isinstance(batches, StreamBatches):
            truncated = tower.truncated_texts
            for note in batches.notes():
                log.info(note)
    if parts.rank == 0:
        facts = {"seconds": seconds, **_size(parts, batches, captions), "processes": parts.world}
        _keep(run, parts, method, batches, facts | {"truncated_captions": truncated})


def _taught_at_start(run: Run, tower: TextTower, captions: list[str], resumed: bool) -> Float[Tensor, "N D"]:
    """What the tower says of the captions before training, its own teacher: kept beside a run's state, for
    one that goes on has trained the tower."""
    file, name = run.state / TEACHER_FILE, "texts"
    if not resumed:
        write_tensors(file, {name: tower.encode(captions).cpu()})
    return read_tensors(file)[0][name]


def _size(parts: Parts, batches: StreamBatches | PairBatches, captions: list[str]) -> dict[str, int]:
    if isinstance(batches, PairBatches):
        return {"images": len(batches.images), "captions": len(captions)}
    training = parts.settings.train
    seen = total_steps(training, len(batches)) * training.batch_size  # of a stream: how often, not how many
    return {"images": seen, "captions": seen}


def _keep(
    run: Run,
    parts: Parts,
    method: TwoTower,
    batches: StreamBatches | PairBatches,
    event: dict[str, Any],
) -> None:
    """Write what was learned, and measure it."""
    if method.shared_out:  # the others have left, so a whole LM takes the trained tensors
        torch.manual_seed(parts.settings.seed)
        tensors = changing(method)
        method = TwoTower(_tower(parts.settings, parts.backbone), parts.own)
        method.load_state_dict(tensors, strict=False)
    learned = LLM(
        parts.backbone,
        method.text,
        image_mean=method.image_mean,
        logit_scale=method.logit_scale,
        name=str(run.folder),
    )
    learned.write_into(run.folder)
    run.keep_weights(learned.weights())
    run.keep_seen(_seen(parts, batches))
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    run.log({"event": "fit", **event, "parameters": trained})
    truncated = event["truncated_captions"]
    if truncated:
        log.info(
            "%d captions were longer than %d tokens with their wrapper and lost their ends",
            truncated,
            parts.tower.max_tokens,
        )
    retrieve.evaluate(run, backbone=learned)


def _seen(parts: Parts, batches: StreamBatches | PairBatches) -> set[bytes]:
    """Digests of the images that were trained on."""
    if isinstance(batches, StreamBatches):
        return batches.seen
    return seen_of(parts.pairs) if parts.pairs is not None else set()


def seen_of(pairs: Pairs) -> set[bytes]:
    """Digests of the images of pairs."""
    return {digest for digest in digests(pairs.pictures) if digest is not None}


def _stream(run: Run, parts: Parts) -> StreamBatches:
    settings, training = parts.settings, parts.settings.train
    mixture = _opened(settings, parts.rank, parts.world, run.state / SIZES_FILE)
    batches = StreamBatches(
        mixture,
        training.batch_size,
        backbone=parts.backbone,
        tokenise=parts.tower.tokenise,
        teacher=parts.teacher,
        features="store" if parts.own.features == "store" else "stream",
        views=settings.views,
        flip=settings.flip,
        max_pixels=settings.max_pixels,
        max_steps=training.max_steps,
    )
    len(batches)  # refuses what nobody knows the length of
    return batches


def _batches(parts: Parts, pairs: Pairs) -> tuple[PairBatches, list[str], Float[Tensor, " D"] | None]:
    """Image vectors, captions as tokens and the teacher's vectors of both; the distinct captions; the mean
    image vector if it is wanted."""
    settings, tower = parts.settings, parts.tower
    recipe = {"views": settings.views, "flip": settings.flip, "max_pixels": settings.max_pixels}
    features = image_features(parts.backbone, pairs.pictures, **recipe)
    tell_skipped(features, len(pairs))
    captions = [pairs.captions[index] for index in features.kept]
    distinct, rows = distinct_texts(captions)
    per_image, per_caption = {}, {}
    if parts.teacher is not None:
        kept = [pairs.pictures[index] for index in features.kept]
        per_image["teacher_images"] = image_features(parts.teacher, kept, **recipe).vectors
        per_caption["teacher_texts"] = text_features(parts.teacher, distinct)
    tokens = tower.tokenise(distinct)
    batches = PairBatches(
        features.vectors,
        rows,
        [ids[:length] for ids, length in zip(tokens.ids.cpu(), tokens.lengths.tolist())],
        settings.train.batch_size,
        settings.seed,
        per_image,
        per_caption,
        rank=parts.rank,
        world=parts.world,
    )
    return batches, distinct, features.vectors[:, 0].mean(0) if parts.own.centre else None


def _start(
    tower: TextTower, batches: PairBatches, captions: list[str]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N D"]]:
    """Pooled states of captions, and the mean vector of the images of each. Where there are many captions, a
    sample: one of every image before a second of any, so that images with one caption, a name, count in full.
    """
    stream = torch.Generator().manual_seed(batches.seed)
    listed = [(caption, image) for image, texts in enumerate(batches.captions) for caption in texts]
    rows = torch.tensor(listed)[torch.randperm(len(listed), generator=stream)]
    earlier: Counter[int] = Counter()
    turns = [earlier.update([image]) or earlier[image] for image in rows[:, 1].tolist()]
    ordered = rows[torch.tensor(turns).argsort(stable=True), 0]
    chosen = torch.tensor(list(dict.fromkeys(ordered.tolist()))[:START_CAPTIONS]).sort().values
    sums = torch.zeros(len(captions), batches.images.shape[-1])
    sums = sums.index_add(0, rows[:, 0], batches.images[rows[:, 1], 0])
    means = sums / rows[:, 0].bincount(minlength=len(captions))[:, None]
    return tower.features([captions[row] for row in chosen]), means[chosen].to(tower.device)


@contextlib.contextmanager
def named(setting: str, value: str | None) -> Iterator[None]:
    """An error about what a setting names says which setting that is."""
    try:
        yield
    except WordsightError as error:
        raise WordsightError(f"{setting}={value}: {error}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Of several processes one speaks."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
