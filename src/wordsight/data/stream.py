"""Stream: batches for two towers from sources of any size, mixed by weights, with image vectors computed
while training goes on.

Everything is decided by (seed, step): how many samples each source gives to a step, so how far each has been
read; which samples these are; which of their captions and views is drawn. So a killed run goes on with the
batches that it would have seen, and the only state is what shards.py remembers."""

from __future__ import annotations

import atexit
import math
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.backbones.text_tower import TextBatch
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import counted
from wordsight.data.features import MAX_WORKERS, image_features, text_features
from wordsight.data.images import Unreadable, content_digest, read_image, view_box
from wordsight.data.pairs import class_captions, source_rows, sources_of
from wordsight.data.shards import Rows, Sample, Shards, Sizes, Source, is_shards, rng, shards_of

BLOCK = 1024  # steps whose draws from the sources are made together
MANY_BAD = 1000  # so many unreadable images of a source, and none that can be read, stop the run
PART = {"cpu": 32}  # images that pass through a tower together; elsewhere
PART_ELSEWHERE = 256
MEAN_OF = 4096  # images whose mean vector stands for all
GREY = Picture("a grey square", partial(np.full, (32, 32, 3), 128, np.uint8))
ORDER, TAKE, DRAW = 1, 2, 3  # keep the streams of random numbers apart

Vectors = tuple[Tensor, ...]  # one image's, under the backbone and, where there is one, the teacher


@dataclass(frozen=True)
class Mixture:
    """Sources as one rank sees them, and which share of the samples each gives."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    seed: int
    rank: int
    world: int
    sizes: Sizes
    notes: list[str]  # what was left out, in sentences for the user; grows where classes are met later


def needs_stream(spec: str) -> bool:
    """Whether any source is webdataset shards, which only a stream reads."""
    return any(map(is_shards, sources_of(spec)))


def open_stream(
    spec: str,
    weights: str | Sequence[float] | None = None,
    *,
    template: str = "a photo of a {}.",
    sentences: str | None = None,
    aliases: str | None = None,
    seed: int = 1,
    rank: int = 0,
    world: int = 1,
    sizes: Path | None = None,  # where the sizes of shards are kept, in the run's state/; None: they are not
) -> Mixture:
    """The sources of `a::b`: shards (shards.py), tables of captions, labelled data (pairs.py). The first
    shard of each is read, to see that it can be.

    Errors: WordsightError for bad weights (see `check_weights`), a source that cannot be read, has no
    caption, or has fewer shards than there are processes; where data is not what it was when `sizes` was
    written."""
    names = sources_of(spec)
    if not names:
        raise WordsightError(f"data={spec!r} names no source")
    shares = check_weights(weights, names)
    memory, notes = Sizes(sizes, rank, world), []
    words = {"template": template, "sentences": sentences, "aliases": aliases, "notes": notes}
    sources: list[Source] = []
    for number, name in enumerate(names):
        place = {"seed": (seed, ORDER, number), "rank": rank, "world": world, "sizes": memory}
        if is_shards(name):
            shards = Shards(name, shards_of(name), partial(class_captions, where=name, **words), **place)
            shards.check()
            sources.append(shards)
        else:
            sources.append(Rows(name, source_rows(name, "train", **words), **place))
    memory.save()
    return Mixture(tuple(sources), shares or _by_size(sources), seed, rank, world, memory, notes)


def check_weights(weights: str | Sequence[float] | None, sources: Sequence[str]) -> tuple[float, ...] | None:
    """The weights as numbers: `0.7,0.3` or a list, one a source, none negative, 1 together. None stays None:
    as many of each source as it has.
    """
    if weights is None:
        return None
    given = f"weights={weights}"
    try:
        each = [
            float(weight)
            for weight in (weights.split(",") if isinstance(weights, str) else np.atleast_1d(weights))
        ]
    except (TypeError, ValueError) as error:
        raise WordsightError(f"{given} are not numbers; give one a source, as in weights=0.7,0.3") from error
    if len(each) != len(sources):
        raise WordsightError(
            f"{given} are {len(each)} for {len(sources)} sources ({', '.join(sources)}); give one each"
        )
    if not all(weight >= 0 and math.isfinite(weight) for weight in each):
        raise WordsightError(f"{given} must be 0 or more each")
    if abs(sum(each) - 1) > 1e-6:
        raise WordsightError(f"{given} add up to {sum(each):.6g}; they must add up to 1")
    return tuple(each)


def _by_size(sources: Sequence[Source]) -> tuple[float, ...]:
    if len(sources) == 1:
        return (1.0,)
    totals = [source.total for source in sources]
    unknown = [source.name for source, total in zip(sources, totals) if total is None]
    if unknown:
        raise WordsightError(
            f"nobody knows how many samples {', '.join(unknown)} has; say how to mix: "
            f"settings.weights=0.7,0.3, or put sizes.json there"
        )
    return tuple(total / sum(totals) for total in totals)


class StreamBatches:
    """Batches of a mixture, as `PairBatches` gives them and by the same protocol; `batch` gives this rank's
    part of a batch, batch_size // world pairs.

    Image vectors come from the frozen tower while earlier batches train, or with features="store" from the
    feature cache. An unreadable image is replaced by a sample that comes next, which stays in its own place
    too: positions do not depend on what could be read. `close` ends the thread behind it.

    `per_caption` adds what is computed of a batch's distinct captions, as `teacher_texts` is.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch_size: int,
        *,
        backbone: Backbone,
        tokenise: Callable[[Sequence[str]], TextBatch],
        teacher: Backbone | None = None,
        per_caption: Mapping[str, Callable[[Sequence[str]], Float[Tensor, "M _"]]] | None = None,
        features: Literal["stream", "store"] = "stream",
        views: int = 1,
        flip: bool = True,
        max_steps: int | None = None,
        ahead: int = 1,  # finished batches that wait, beside the one in work
    ):
        if batch_size < mixture.world or batch_size % mixture.world:
            raise WordsightError(
                f"train.batch_size={batch_size} cannot be shared by {mixture.world} processes; give a "
                f"multiple of {mixture.world}"
            )
        self.mixture, self.batch_size, self.size = mixture, batch_size, batch_size // mixture.world
        self.backbone, self.teacher, self.tokenise = backbone, teacher, tokenise
        self.per_caption = dict(per_caption or {})
        if teacher is not None:
            self.per_caption = {
                "teacher_texts": partial(_text_vectors, teacher, features == "store"),
                **self.per_caption,
            }
        self.features, self.views, self.flip, self.max_steps, self.ahead = (
            features,
            views,
            flip,
            max_steps,
            ahead,
        )
        self.skipped: dict[str, str] = {}  # images that could not be read, and why
        self._length = self._count()
        self._blocks: tuple[int, Int[np.ndarray, " S"]] = (0, np.zeros(len(mixture.sources), np.int64))
        self._producer: _Producer | None = None

    def __len__(self) -> int:
        """Batches in an epoch, which is as many samples as all sources have together; where nobody knows, the
        whole training is one epoch.
        """
        if self._length is None:
            unknown = ", ".join(source.name for source in self.mixture.sources if source.total is None)
            raise WordsightError(
                f"nobody knows how many samples {unknown} has; say how long to train: "
                f"train.max_steps=10000, or put sizes.json there"
            )
        return self._length

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        """The batch of step epoch * len + index. In order they come from the thread that works ahead; another
        step makes it begin anew there.
        """
        step = epoch * len(self) + index if epoch else index
        if self._producer is None or self._producer.step != step:
            self._halt()
            self._producer = _Producer(self, step)
            atexit.register(self.close)  # a daemon thread inside torch would crash the end of the process
        try:
            return self._producer.take()
        except BaseException:
            self._halt(timeout=1.0)
            raise

    def close(self) -> None:
        """End the thread that works ahead, and write the sizes of the shards it has read."""
        self._halt(timeout=10.0)
        self.mixture.sizes.save()

    def __enter__(self) -> StreamBatches:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def notes(self) -> list[str]:
        """What was left out so far, in sentences for the user."""
        said = [*self.mixture.notes, *(note for source in self.mixture.sources for note in source.notes())]
        if self.skipped:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in list(self.skipped.items())[:10])
            more = f"\n  ... and {len(self.skipped) - 10} more" if len(self.skipped) > 10 else ""
            said.append(
                f"skipped {counted(len(self.skipped), 'unreadable image')}, others took their "
                f"places:\n{listed}{more}"
            )
        for source, weight in zip(self.mixture.sources, self.mixture.weights):
            if isinstance(source, Rows) and source.total < weight * self.batch_size:
                said.append(
                    f"{source.name} has {source.total} pairs and a batch takes "
                    f"{weight * self.batch_size:.0f}: its images repeat within a batch"
                )
        return said

    def mean_image(self) -> Float[Tensor, " D"]:
        """The mean of the first image vectors of this rank, thousands of them; on several ranks take rank 0's
        for all.
        """
        steps = range(max(1, math.ceil(MEAN_OF / self.size)))
        return torch.cat([self.batch(0, step)["images"] for step in steps]).mean(0)

    # Positions

    def counts(self, step: int) -> Int[np.ndarray, " S"]:
        """How many samples of each source this rank brings to a step."""
        return self._drawn(step // BLOCK)[step % BLOCK]

    def positions(self, step: int) -> Int[np.ndarray, " S"]:
        """How many samples of each source this rank has used before a step."""
        block, row = divmod(step, BLOCK)
        begun, before = self._blocks if self._blocks[0] <= block else (0, np.zeros_like(self._blocks[1]))
        for passed in range(begun, block):
            before = before + self._drawn(passed).sum(0)
        self._blocks = (block, before)
        return before + self._drawn(block)[:row].sum(0)

    def _drawn(self, block: int) -> Int[np.ndarray, "K S"]:
        shares = np.array(self.mixture.weights) / sum(self.mixture.weights)
        return rng(self.mixture.seed, TAKE, self.mixture.rank, block).multinomial(
            self.size, shares, size=BLOCK
        )

    def _count(self) -> int | None:
        totals = [source.total for source in self.mixture.sources]
        return max(1, sum(totals) // self.batch_size) if None not in totals else self.max_steps

    def _halt(self, timeout: float | None = None) -> None:
        if self._producer is not None:
            self._producer.stop(timeout)
            self._producer = None
            atexit.unregister(self.close)


class _Producer:
    """One thread that makes batches from a step on and stays `ahead` of whoever takes them."""

    def __init__(self, batches: StreamBatches, step: int):
        self.batches, self.step = batches, step
        self.made: queue.Queue = queue.Queue(batches.ahead)
        self.stopped = threading.Event()
        self.towers = [tower for tower in (batches.backbone, batches.teacher) if tower is not None]
        device = batches.backbone.device.type
        self.part = PART.get(device, PART_ELSEWHERE)
        self.decoders = max(
            1, min(torch.get_num_threads() if device == "cpu" else os.cpu_count() or 1, MAX_WORKERS)
        )
        self.thread = threading.Thread(target=self._run, name="wordsight-stream", daemon=True)
        self.thread.start()

    def take(self) -> dict[str, Tensor]:
        made = self.made.get()
        if isinstance(made, BaseException):
            raise made
        self.step += 1
        return made

    def stop(self, timeout: float | None) -> None:
        self.stopped.set()
        self.thread.join(timeout)

    def _run(self) -> None:
        step = self.step
        try:
            readers = [
                _Reader(source, int(start))
                for source, start in zip(self.batches.mixture.sources, self.batches.positions(step))
            ]
            with ThreadPoolExecutor(self.decoders) as self.pool:
                while not self.stopped.is_set():
                    self._give(self._make(step, readers))
                    step += 1
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for a batch
            self._give(error)

    def _give(self, made: dict[str, Tensor] | BaseException) -> None:
        while not self.stopped.is_set():
            try:
                return self.made.put(made, timeout=0.1)
            except queue.Full:
                continue

    def _make(self, step: int, readers: Sequence[_Reader]) -> dict[str, Tensor]:
        batches, counts = self.batches, self.batches.counts(step).tolist()
        draw = rng(batches.mixture.seed, DRAW, batches.mixture.rank, step)
        views, which = (
            draw.integers(batches.views, size=batches.size).tolist(),
            draw.random(batches.size).tolist(),
        )
        readers = [
            reader for reader, count in zip(readers, counts) for reader in [reader] * count
        ]  # of each place in the batch
        samples = [reader.take() for reader in readers]
        vectors = self._vectors([picture for picture, _ in samples], views)
        while bad := [place for place, found in enumerate(vectors) if found is None]:
            self._check_hope(readers, samples, vectors)
            for place in bad:
                samples[place] = readers[place].next_after()
            fresh = self._vectors([samples[place][0] for place in bad], [views[place] for place in bad])
            for place, found in zip(bad, fresh):
                vectors[place] = found
        texts = [captions[int(drawn * len(captions))] for (_, captions), drawn in zip(samples, which)]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = batches.tokenise(list(row_of))
        return {
            **{
                name: torch.stack(column) for name, column in zip(("images", "teacher_images"), zip(*vectors))
            },
            "ids": tokens.ids.cpu(),
            "lengths": tokens.lengths.cpu(),
            "text_of": torch.tensor([row_of[text] for text in texts]),
            **{name: compute(list(row_of)).cpu() for name, compute in batches.per_caption.items()},
        }

    def _check_hope(
        self, readers: Sequence[_Reader], samples: Sequence[Sample], vectors: Sequence[Vectors | None]
    ) -> None:
        good = {reader for reader, found in zip(readers, vectors) if found is not None}
        for reader, tried in Counter(reader for reader in readers if reader not in good).items():
            if reader.bad >= MANY_BAD:
                name = samples[readers.index(reader)][0].name
                raise WordsightError(
                    f"{counted(reader.bad, 'image')} of {reader.name!r} on end could not be read; one is "
                    f"{name}: {self.batches.skipped[name]}"
                )
            reader.bad += tried

    def _vectors(self, pictures: Sequence[Picture], views: Sequence[int]) -> list[Vectors | None]:
        """Each image's vectors under each tower, in the view drawn for it; None where it cannot be read,
        which is counted.
        """
        return (
            self._stored(pictures, views)
            if self.batches.features == "store"
            else self._encoded(pictures, views)
        )

    def _stored(self, pictures: Sequence[Picture], views: Sequence[int]) -> list[Vectors | None]:
        several, flip = self.batches.views, self.batches.flip
        found: list[list[Tensor]] = [[] for _ in pictures]
        for tower in self.towers:
            self._check_stop()
            asked = [*pictures, GREY]  # which can be read: where none can, image_features stops
            features = image_features(tower, asked, views=several, flip=flip)
            self.batches.skipped.update(features.skipped)
            for place, vectors in zip(features.kept, features.vectors):
                if place < len(pictures):
                    found[place].append(vectors[views[place]].cpu())
        return [tuple(vectors) if len(vectors) == len(self.towers) else None for vectors in found]

    def _encoded(self, pictures: Sequence[Picture], views: Sequence[int]) -> list[Vectors | None]:
        """Decoders prepare one part while the one before is in the towers."""
        starts = range(0, len(pictures), self.part)
        found, waiting = [], self._prepare(pictures, views, starts[:1])
        for start in starts:
            self._check_stop()
            following = self._prepare(pictures, views, range(start + self.part, len(pictures), self.part)[:1])
            ready = [future.result() for future in waiting]
            whole = [pixels for pixels in ready if pixels is not None]
            encoded = iter(
                zip(*(self._encode(tower, list(column)) for tower, column in zip(self.towers, zip(*whole))))
            )
            found += [None if pixels is None else next(encoded) for pixels in ready]
            waiting = following
        return found

    def _prepare(self, pictures: Sequence[Picture], views: Sequence[int], starts: range) -> list:
        chosen = [place for start in starts for place in range(start, min(start + self.part, len(pictures)))]
        return [self.pool.submit(self._pixels, pictures[place], views[place]) for place in chosen]

    def _pixels(self, picture: Picture, view: int) -> list[UInt8[Tensor, "3 H W"]] | None:
        """An image as each tower's pixels. View 0 is the centre crop; the others are those of the feature
        store, which a seed of 0 and the content draw.
        """
        try:
            value = picture.load()
            image = read_image(value)
        except Unreadable as error:
            self.batches.skipped[picture.name] = str(error)
            return None
        except (OSError, ValueError, KeyError, IndexError) as error:
            self.batches.skipped[picture.name] = f"cannot be read: {error}"
            return None
        box, mirrored = view_box(image.size, content_digest(value), view, 0) if view else (None, False)
        each = [tower.image_tower.preprocess(image, box) for tower in self.towers]
        return [pixels.flip(-1) if mirrored and self.batches.flip else pixels for pixels in each]

    @torch.no_grad()  # not inference_mode, whose tensors may take no part in a later gradient
    def _encode(self, tower: Backbone, pixels: Sequence[UInt8[Tensor, "3 H W"]]) -> Float[Tensor, "n D"]:
        return tower.image_vectors(tower.image_tower.encode_image(torch.stack(pixels)).float().cpu()).clone()

    def _check_stop(self) -> None:
        if self.stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Nobody waits for this batch any more."""


class _Reader:
    """A source read in order, which can look at what comes next without moving."""

    def __init__(self, source: Source, start: int):
        self.name, self.samples = source.name, source.samples(start)
        self.seen: deque[Sample] = deque()  # looked at, not yet taken
        self.looked = 0  # how many of them were given by `next_after` since the last `take`
        self.bad = 0  # unreadable images since `take`

    def take(self) -> Sample:
        self.looked = self.bad = 0
        return self.seen.popleft() if self.seen else next(self.samples)

    def next_after(self) -> Sample:
        if self.looked == len(self.seen):
            self.seen.append(next(self.samples))
        self.looked += 1
        return self.seen[self.looked - 1]


def _text_vectors(teacher: Backbone, stored: bool, texts: Sequence[str]) -> Float[Tensor, "M D"]:
    if stored:
        return text_features(teacher, texts)
    with torch.no_grad():
        return teacher.encode_text(texts).float().cpu().clone()
