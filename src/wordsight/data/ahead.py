"""Ahead: the thread that makes a stream's batches while earlier ones train."""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import counted
from wordsight.data.features import MAX_WORKERS, image_features
from wordsight.data.images import Unreadable, read_image, view_box
from wordsight.data.shards import DRAW, Sample, Source, rng

if TYPE_CHECKING:
    from wordsight.data.stream import StreamBatches

MANY_BAD = 1000  # so many unreadable images of a source, and none that can be read, stop the run
PART = {"cpu": 32}  # images that pass through a tower together; elsewhere
PART_ELSEWHERE = 256
GREY = Picture("a grey square", partial(np.full, (32, 32, 3), 128, np.uint8))

Vectors = tuple[Tensor, ...]  # one image's, under the backbone and, where there is one, the teacher


class Producer:
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
        views = draw.integers(batches.views, size=batches.size).tolist()
        which = draw.random(batches.size).tolist()
        # the reader of each place in the batch
        readers = [reader for reader, count in zip(readers, counts) for _ in range(count)]
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
            value, digest = picture.read()
            image = read_image(value)
        except Unreadable as error:
            self.batches.skipped[picture.name] = str(error)
            return None
        box, mirrored = view_box(image.size, digest, view, 0) if view else (None, False)
        each = [tower.image_tower.preprocess(image, box) for tower in self.towers]
        return [pixels.flip(-1) if mirrored and self.batches.flip else pixels for pixels in each]

    @torch.no_grad()  # not inference_mode, whose tensors may take no part in a later gradient
    def _encode(self, tower: Backbone, pixels: Sequence[UInt8[Tensor, "3 H W"]]) -> Float[Tensor, "n D"]:
        states = tower.image_tower.encode_image(torch.stack(list(pixels)))
        return tower.image_vectors(states.float().cpu()).clone()

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
