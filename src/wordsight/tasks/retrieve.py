"""Retrieve: from image-text pairs to a run that is a backbone, and from a run to recall@k and zero-shot
accuracy.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight import metrics
from wordsight.backbones import Backbone, load_backbone, pick_device
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.config import RunSettings, WordsightError, build, to_dict
from wordsight.data import Dataset, Pairs, open_dataset
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import open_pairs, sources_of
from wordsight.data.sources import caption_table, same_source
from wordsight.data.splits import select_classes
from wordsight.data.stream import Mixture, StreamBatches, needs_stream, open_stream
from wordsight.data.tars import is_shards
from wordsight.methods import NoSettings
from wordsight.methods.two_tower import TwoTower, TwoTowerSettings, tower_settings
from wordsight.methods.zero_shot import ZeroShot
from wordsight.runs import Run, RunFacts, train_settings
from wordsight.sentences import fill
from wordsight.tasks.classify import encode_classes, featurise, figures, predict_logits, test_only
from wordsight.train import (
    STATE_FILE,
    PairBatches,
    changing,
    join_processes,
    rank_0_first,
    total_steps,
    train,
)

RANKS = (1, 5, 10)
SIZES_FILE = "sizes.json"  # in state/: what a stream knows of its shards
# that start=ridge is fitted on, at most: a map of a few hundred by a few hundred numbers needs no more
START_CAPTIONS = 4000


def fit(
    settings: RunSettings,
    *,
    backbone: Backbone | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Train the text tower of one run on pairs; the same settings again resume it, or give it back where it
    is finished.

    The run folder is a backbone: `load_backbone(run.folder)`, `backbone=runs/...`. `say` receives sentences
    for the user. Under `accelerate launch` or `torchrun` every process calls this and returns the run; rank 0
    alone speaks, writes and evaluates."""
    settings = check_settings(settings)
    rank, world = join_processes(pick_device(settings.device))
    if rank > 0:
        say, progress = lambda line: None, False
    own = build(TwoTowerSettings, settings.settings, "settings.")
    words = {"template": settings.template, "sentences": settings.sentences, "aliases": settings.aliases}
    streams = _streams(own, settings.data)
    opened = partial(
        open_stream, settings.data, own.weights or None, **words, seed=settings.seed, rank=rank, world=world
    )
    if streams:
        opened()  # what is wrong with a source is said before a folder is made
    pairs = None if streams else _pairs(settings.data, words, say)
    if own.shard and world == 1:
        say(
            "settings.shard=true shares nothing out in one process; start several, with accelerate launch "
            "or torchrun"
        )
    backbone = backbone or load_backbone(
        settings.backbone, device=settings.device, dtype=settings.dtype, text=False
    )
    torch.manual_seed(settings.seed)
    shape = own.shape if own.random else None
    built = partial(
        TextTower.from_base,
        own.text,
        tower_settings(own, backbone.dim),
        device=backbone.device,
        dtype=settings.dtype,
        random=shape,
    )
    with _named("settings.text", own.text):
        tower = built()
    with _named("settings.teacher", own.teacher):
        teacher = (
            load_backbone(own.teacher, device=settings.device, dtype=settings.dtype)
            if own.teacher is not None
            else None
        )
    known = {
        "image_fingerprint": backbone.image_fingerprint,
        "text_fingerprint": tower.origin,
        "pairs": _known(pairs) if pairs else "",
    }
    with rank_0_first():
        run = Run.start(
            settings.out or default_folder(settings),
            settings,
            RunFacts((), backbone.dim, 1.0, settings.template, **known),
            {},
        )
    if run.finished:
        say(f"{run.folder} is finished already; nothing to fit")
        return run
    began, resumed = time.monotonic(), (run.state / STATE_FILE).is_file()
    if teacher is not None and own.tau_d is None:
        own = replace(own, tau_d=teacher.logit_scale)
    with contextlib.ExitStack() as leaving:
        if streams:
            batches = leaving.enter_context(
                _stream(opened(sizes=run.state / SIZES_FILE), backbone, teacher, tower, own, settings)
            )
            captions, mean = (
                None,
                batches.mean_image() if own.centre and not resumed else None,
            )  # a resumed run has it in its state
            batches.close()  # until training asks for the first batch
        else:
            with rank_0_first():  # the others find its features in the cache
                batches, captions, mean = _batches(
                    pairs, backbone, teacher, tower, own, settings, (rank, world), progress, say
                )
        truncated = tower.truncated_texts  # before anything is tokenised twice; a stream has not begun
        seconds = {"features": round(time.monotonic() - began, 3)}
        began = time.monotonic()
        torch.manual_seed(settings.seed)
        method = TwoTower(tower, own, mean)
        if own.start == "ridge" and not resumed:  # a resumed run has left the start behind
            method.start_at_ridge(*_start(tower, batches, captions))
        if method.learns_head_alone:
            batches.per_caption["pooled"] = tower.features if streams else tower.features(captions).cpu()
        training = train_settings(settings)
        place = {"seed": settings.seed, "device": backbone.device, "state": run.state}
        if own.shard and world > 1:
            method.share_out()
        train(method, batches, training, **place, log=run.log)
        method.end()
        seconds["fit"] = round(time.monotonic() - began, 3)
        if streams:
            truncated = tower.truncated_texts
            for note in batches.notes():
                say(note)
    with rank_0_first():
        if rank == 0:
            seen = (
                total_steps(training, len(batches)) * training.batch_size
            )  # of a stream: how often, not how many
            size = (
                {"images": seen, "captions": seen}
                if streams
                else {"images": len(batches.images), "captions": len(captions)}
            )
            if method.shared_out:  # the others have left, so a whole LM takes the trained tensors
                torch.manual_seed(settings.seed)
                method, tensors = TwoTower(built(), own), changing(method)
                method.load_state_dict(tensors, strict=False)
            learned = _finish(
                run,
                method,
                backbone,
                {"seconds": seconds, **size, "processes": world, "truncated_captions": truncated},
            )
            if truncated:
                say(
                    f"{truncated} captions were longer than {tower.max_tokens} tokens with their wrapper "
                    f"and lost their ends"
                )
            evaluate(run, backbone=learned, progress=progress, say=say)
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
    """Figures of a run on test images, kept in metrics.jsonl: recall@k where the source has captions,
    zero-shot accuracy where it has labels.

    Without `data`, on what the run's own sources mark as test, if anything.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    settings = run.settings
    backbone = backbone or load_backbone(run.folder, device=settings.device, dtype=settings.dtype)
    results = []
    seen = sources_of(settings.data)
    for source in sources_of(data or settings.data):
        if data is None and is_shards(source):
            continue  # shards mark nothing as test
        if caption_table(source) is not None:
            if classes:
                raise WordsightError(
                    f"classes={classes} chooses among classes, but {source!r} has captions and no classes"
                )
            pairs = open_pairs(source, "test")
            if not len(pairs) and data is not None:
                pairs = open_pairs(source)  # no part is marked: all of it
                if any(same_source(source, one) for one in seen):
                    say(
                        f"{source} marks nothing as test: these figures are of the very pairs that "
                        f"{run.folder} was trained on"
                    )
            if len(pairs):
                results.append({"event": "retrieval", "data": source, **retrieval(backbone, pairs, progress)})
        else:
            results += zero_shot(backbone, source, settings, classes, progress, say, own=data is None)
    for result in results:
        run.log(result)
    if not results:
        say(
            f"nothing in data={settings.data} is marked as test, so nothing was measured; `wordsight eval "
            f"{run.folder} data=...` measures on other images"
        )
    return results


def retrieval(backbone: Backbone, pairs: Pairs, progress: bool = False) -> dict[str, Any]:
    """Recall@1, 5 and 10 both ways.

    Image to text: the candidates are the distinct captions, and one is right when it is among the image's
    own. Text to image: every caption is a query, and any image that has this very caption is right. So
    captions that several images share are never counted as wrong."""
    features = image_features(backbone, pairs.pictures)
    captions = [pairs.captions[index] for index in features.kept]
    distinct = list(dict.fromkeys(text for texts in captions for text in texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    relevant = torch.zeros(len(captions), len(distinct), dtype=torch.bool)
    for image, texts in enumerate(captions):
        relevant[image, [row_of[text] for text in texts]] = True
    similarity = features.vectors[:, 0] @ text_features(backbone, distinct).T
    asked = torch.tensor([row_of[text] for texts in captions for text in texts])
    return {
        "images": len(captions),
        "captions": len(asked),
        "distinct_captions": len(distinct),
        "image_to_text": {f"recall@{k}": metrics.recall_at(similarity, relevant, k) for k in RANKS},
        "text_to_image": {
            f"recall@{k}": metrics.recall_at(similarity.T[asked], relevant.T[asked], k) for k in RANKS
        },
        "skipped": [list(pair) for pair in features.skipped],
    }


def zero_shot(
    backbone: Backbone,
    source: str,
    settings: RunSettings,
    classes: str | None,
    progress: bool,
    say: Callable[[str], None],
    own: bool = False,
) -> list[dict[str, Any]]:
    """Accuracy on labelled images by class names alone. `own`: the source was trained on, so only what it
    marks as test counts.
    """
    whole = open_dataset(source) if not own else _own_test(source, say)
    if whole is None:
        return []
    dataset = select_classes(test_only(whole), classes or "all")
    method = ZeroShot(dataset.class_names, backbone.dim, backbone.logit_scale, NoSettings())
    facts = RunFacts(dataset.class_names, backbone.dim, backbone.logit_scale, settings.template)
    method.bind(
        encode_classes(backbone, facts, dataset.class_names, {name: () for name in dataset.class_names})
    )
    features = featurise(backbone, dataset.test, replace(settings, views=1), progress, say)
    labels = torch.from_numpy(dataset.test.labels)[features.kept]
    logits = predict_logits(method.to(backbone.device), features.vectors[:, 0].to(backbone.device))
    result = {
        "event": "eval",
        "data": source,
        "classes": classes or "all",
        **figures(logits, labels, dataset.class_names),
    }
    return [result | {"skipped": [list(pair) for pair in features.skipped]}]


def check_settings(settings: RunSettings) -> RunSettings:
    """Every setting is checked before any work is done. Returns the settings with every default written out,
    as a run keeps them.
    """
    own = build(TwoTowerSettings, settings.settings, "settings.")
    fill(settings.template, "name")
    if own.chunk is not None and own.chunk < 1:
        raise WordsightError(
            f"settings.chunk={own.chunk} is not possible; it is how many texts pass through the LM "
            f"together, 1 or more, or null"
        )
    if own.tau_d is not None and own.tau_d <= 0:
        raise WordsightError(
            f"settings.tau_d={own.tau_d} is not possible; it multiplies similarities before their softmax, "
            f"more than 0"
        )
    if own.shape and not own.random:
        raise WordsightError(
            "settings.shape changes the LM's shape, which its weights would no longer fit; give it with "
            "settings.random=true"
        )
    if own.prompt_only_lora and (own.checkpointing or own.compile):
        raise WordsightError(
            "settings.prompt_only_lora runs texts without gradient and caches them, which checkpointing "
            "and compile do not go with; set them false"
        )
    if own.shard and (own.train in ("all", "head") or own.compile):
        why = {
            "all": "settings.train=all leaves none",
            "head": "with settings.train=head the LM does not run while it trains",
        }
        raise WordsightError(
            f"settings.shard shares out frozen weights; "
            f"{why.get(own.train, 'settings.compile is untested with it')}; set it false"
        )
    if _streams(own, settings.data) and own.start == "ridge":
        raise WordsightError(
            "settings.start=ridge reads all captions first, which a stream does not have; leave start out, "
            "or give tables"
        )
    if settings.classes != "all":
        raise WordsightError(
            f"classes={settings.classes} chooses labelled classes, but method={settings.method} learns "
            f"from pairs; leave it out"
        )
    pick_device(settings.device)
    return replace(settings, settings=to_dict(own), train=to_dict(train_settings(settings)))


def default_folder(settings: RunSettings) -> Path:
    text = build(TwoTowerSettings, settings.settings, "settings.").text
    data, lm = (
        re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name or name).strip("-") for name in (settings.data, text)
    )
    return Path("runs") / f"{data}-{settings.method}-{lm}-seed{settings.seed}"


# Inside


def _streams(own: TwoTowerSettings, data: str) -> bool:
    """Whether pairs are read while training goes on, and not all at once."""
    return own.features == "stream" or bool(own.weights) or needs_stream(data)


def _pairs(data: str, words: dict[str, Any], say: Callable[[str], None]) -> Pairs:
    pairs = open_pairs(data, **words)
    for note in pairs.notes:
        say(note)
    if len(pairs) < 2:
        raise WordsightError(
            f"data={data!r} has one image-text pair only; at least 2 are needed, to tell them apart"
        )
    return pairs


def _stream(
    mixture: Mixture,
    backbone: Backbone,
    teacher: Backbone | None,
    tower: TextTower,
    own: TwoTowerSettings,
    settings: RunSettings,
) -> StreamBatches:
    training = train_settings(settings)
    batches = StreamBatches(
        mixture,
        training.batch_size,
        backbone=backbone,
        tokenise=tower.tokenise,
        teacher=teacher,
        features="store" if own.features == "store" else "stream",
        views=settings.views,
        flip=settings.flip,
        max_steps=training.max_steps,
    )
    len(batches)  # refuses what nobody knows the length of
    return batches


def _known(pairs: Pairs) -> str:
    """What a resumed run must find again: in another order, too, its batches would be others."""
    digest = hashlib.blake2b(digest_size=8)
    for picture, captions in zip(pairs.pictures, pairs.captions):
        digest.update(repr((picture.name, tuple(captions))).encode())
    return (
        f"{len(pairs)} images with {sum(map(len, pairs.captions))} captions, fingerprint {digest.hexdigest()}"
    )


def _finish(run: Run, method: TwoTower, backbone: Backbone, event: dict[str, Any]) -> LLM:
    """Write what was learned. Gives the backbone that it is."""
    learned = LLM(
        backbone,
        method.text,
        image_mean=method.image_mean,
        logit_scale=method.logit_scale,
        name=str(run.folder),
    )
    learned.write_into(run.folder)
    run.finish(learned)
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    run.log({"event": "fit", **event, "parameters": trained})
    return learned


def _batches(
    pairs: Pairs,
    backbone: Backbone,
    teacher: Backbone | None,
    tower: TextTower,
    own: TwoTowerSettings,
    settings: RunSettings,
    place: tuple[int, int],
    progress: bool,
    say: Callable[[str], None],
) -> tuple[PairBatches, list[str], Float[Tensor, " D"] | None]:
    """Image vectors, captions as tokens and the teacher's vectors of both; the distinct captions; the mean
    image vector if it is wanted.
    """
    features = featurise(backbone, pairs, settings, progress, say)
    captions = [pairs.captions[index] for index in features.kept]
    distinct = list(dict.fromkeys(text for texts in captions for text in texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    per_image, per_caption = {}, {}
    if teacher is not None:
        taught = image_features(
            teacher,
            [pairs.pictures[i] for i in features.kept],
            views=settings.views,
            flip=settings.flip,
        )
        per_image["teacher_images"], per_caption["teacher_texts"] = (
            taught.vectors,
            text_features(teacher, distinct),
        )
    tokens = tower.tokenise(distinct)
    batches = PairBatches(
        features.vectors,
        [[row_of[text] for text in texts] for texts in captions],
        [ids[:length] for ids, length in zip(tokens.ids.cpu(), tokens.lengths.tolist())],
        train_settings(settings).batch_size,
        settings.seed,
        per_image,
        per_caption,
        rank=place[0],
        world=place[1],
    )
    return batches, distinct, features.vectors[:, 0].mean(0) if own.centre else None


def _start(
    tower: TextTower, batches: PairBatches, captions: list[str]
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N D"]]:
    """Pooled states of captions, a sample where there are many, and the mean vector of the images of each."""
    chosen = (
        torch.randperm(len(captions), generator=torch.Generator().manual_seed(batches.seed))[:START_CAPTIONS]
        .sort()
        .values
    )
    rows = torch.tensor(
        [(caption, image) for image, texts in enumerate(batches.captions) for caption in texts]
    )
    sums = torch.zeros(len(captions), batches.images.shape[-1]).index_add(
        0, rows[:, 0], batches.images[rows[:, 1], 0]
    )
    means = sums / rows[:, 0].bincount(minlength=len(captions))[:, None]
    return tower.features([captions[row] for row in chosen]), means[chosen].to(tower.device)


@contextlib.contextmanager
def _named(setting: str, value: str | None) -> Iterator[None]:
    """An error about what a setting names says which setting that is."""
    try:
        yield
    except WordsightError as error:
        raise WordsightError(f"{setting}={value}: {error}") from error


def _own_test(source: str, say: Callable[[str], None]) -> Dataset | None:
    """A source that was trained on, where it marks a part as test, and its classes can be told apart by
    name.
    """
    try:
        whole = open_dataset(source)
    except WordsightError as error:
        say(f"not measured on {source}: {error}")
        return None
    return whole if whole.test is not None and len(whole.train) else None
