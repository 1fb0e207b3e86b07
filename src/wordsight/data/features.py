"""Image and text features, computed once: frozen towers give the same vector for ever, so each lies in a
cache (store.py) and is found by content.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt64
from PIL import Image
from torch import Tensor

from wordsight.backbones import Backbone, several, tell_truncated, unit
from wordsight.cluster import Cluster, Needs, current
from wordsight.config import WordsightError
from wordsight.data import Encoded, ImageValue, Picture
from wordsight.data.images import MAX_PIXELS, Unreadable, check_size, hash_of, read_image, size_of, view_box
from wordsight.data.pictures import NoneReadable
from wordsight.data.store import SHARD_ROWS, Form, Sent, Store, is_unit
from wordsight.workers import each, progress

# change them when views or pixel values change: they are part of the key
VIEW_RECIPE = "centre, then random resized crop (0.08, 1) x (3/4, 4/3), flip 1/2; 1"
PIXEL_RECIPE = "grey values of more than 8 bits by what they hold"
# where torch may round factors of float32 to the 10 bits of TF32, as it does in convolutions unasked
TF32 = ("cuda",)
MAX_WORKERS = 16
PART_CHUNKS = 16  # that a machine of a cluster is sent at once at most,
PARTS_A_SLOT = 4  # or fewer, so that all have as much to do


@dataclass(frozen=True)
class Features:
    """Unit vectors of the pictures that could be read; row i belongs to picture kept[i]. View 0 is the centre
    crop.
    """

    vectors: Float[Tensor, "n V D"]
    kept: list[int]
    skipped: list[tuple[str, str]]  # (name, reason)


def image_features(
    backbone: Backbone,
    pictures: Sequence[Picture],
    *,
    views: int = 1,
    seed: int = 0,
    flip: bool = True,
    max_pixels: int | None = None,  # of the largest image that is read; by default images.MAX_PIXELS
    folder: str | Path | None = None,
    batch_size: int | None = None,  # 32 on the CPU, where each core has its own; 128 on an accelerator
) -> Features:
    """Vectors of `pictures` under `views` views each; what the cache in `folder` holds is not computed again.

    View 0 is the centre crop; each further view is a random resized crop, mirrored half the time, decided by
    (image content, view, seed) alone. Set `flip=False` for glyphs, where a mirror changes the class. A
    picture that cannot be read is skipped with its reason. An interrupted call keeps what it finished.
    Vectors do not depend on the batch they were computed in beyond 1e-6, or what TF32 leaves of it on CUDA,
    whose vectors lie apart.

    Errors: NoneReadable when no picture can be read, WordsightError when the cache cannot be written.
    """
    if views < 1:
        raise WordsightError(
            f"views={views} is not possible; view 1 is the centre crop, more are augmented ones"
        )
    if any(isinstance(picture, Encoded) for picture in pictures):
        return _encoded(backbone, pictures, views)
    recipe = (VIEW_RECIPE, seed, flip) if views > 1 else "centre"
    tower = backbone.image_tower
    store = Store(
        folder, (views, tower.dim), "image", tower.image_fingerprint, recipe, PIXEL_RECIPE, *rounding(tower)
    )
    job = ImageJob(tower, None, pictures, views, seed, flip, max_pixels or MAX_PIXELS, batch_size, store)
    rows, kept, skipped = job.run()
    vectors = np.stack(rows) if rows else np.empty((0, views, tower.dim), np.float32)
    return Features(backbone.image_vectors(torch.from_numpy(vectors)), kept, skipped)


def _encoded(backbone: Backbone, pictures: Sequence[Picture], views: int) -> Features:
    """Vectors that came with the data."""
    if not all(isinstance(picture, Encoded) for picture in pictures):
        raise WordsightError("images and vectors stand side by side; give one or the other")
    tower = backbone.image_tower
    rows = [np.asarray(picture.load(), np.float32) for picture in pictures]
    rows = np.stack([row[None] if row.ndim == 1 else row for row in rows])
    if rows.shape[2] != tower.dim:
        raise WordsightError(
            f"vectors of width {rows.shape[2]} do not fit backbone {backbone.name!r}, whose vectors have "
            f"{tower.dim}"
        )
    if rows.shape[1] < views:
        raise WordsightError(
            f"views={views}, but the file holds {rows.shape[1]} of each image; give views={rows.shape[1]}"
        )
    vectors = unit(torch.from_numpy(rows[:, :views]))
    return Features(backbone.image_vectors(vectors), list(range(len(pictures))), [])


def text_features(
    backbone: Backbone, texts: Sequence[str], folder: str | Path | None = None
) -> Float[Tensor, "N D"]:
    """Unit vectors of `texts`, in their order, from the same kind of cache. Texts that the tower reads the
    beginning of are told each time.

    Errors: WordsightError for one text alone, and where the tower gives a text a vector that is none of
    length one."""
    digest_of = {text: hash_of(text.encode("utf-8", "surrogatepass")) for text in several(texts)}
    if not digest_of:
        return torch.empty(0, backbone.dim)
    store = Store(folder, (backbone.dim,), "text", backbone.text_fingerprint, *rounding(backbone))
    store.find(digest_of.values())
    missing = [text for text, digest in digest_of.items() if digest not in store.rows]
    for start in range(0, len(missing), SHARD_ROWS):
        part = missing[start : start + SHARD_ROWS]
        for text, row in zip(part, backbone.encode_text(part).float().cpu().numpy()):
            if not is_unit(row):
                raise WordsightError(f"backbone {backbone.name!r} {_bad_vector(row)}: {text!r}")
            store.add(digest_of[text], row)
        store.flush()
    tell_truncated(backbone.truncated(list(digest_of)), backbone.max_tokens, backbone.name)
    return torch.from_numpy(np.stack([store.rows[digest_of[text]] for text in texts]))


def rounding(tower: Backbone) -> tuple[str, ...]:
    """What of the device belongs to the key: nothing, where float32 is float32."""
    return (tower.device.type,) if tower.device.type in TF32 else ()


def _bad_vector(row: Float[np.ndarray, "*shape"]) -> str:
    form = "of another length than one" if np.isfinite(row).all() else "that is not finite"
    return f"gives a vector {form}"


def evenly(images: int, workers: int, most: int) -> int:
    """How many images a batch holds, `most` at most, so that all workers have as many batches: two workers
    share 96 images as two batches of 24 each; of 32 one would have two while the other waits.
    """
    rounds = math.ceil(images / (workers * most))
    return math.ceil(images / (workers * rounds)) if images else 1


class ImageJob:
    """Reads, decodes and encodes what the store lacks: several workers, each with a whole pipeline of its
    own. The tower makes vectors of pixels, or grids of so many `tokens`. Where an engine is on, its
    machines do the same by parts, and their rows are kept here.

    While one worker's batch is in the tower another decodes, and on the CPU each core runs its own
    single-threaded forward pass: that avoids the waiting of threads that share one operation, which costs
    more than decoding does (benchmarks/features)."""

    def __init__(
        self,
        tower: Backbone,
        tokens: int | None,
        pictures: Sequence[Picture],
        views: int,
        seed: int,
        flip: bool,
        max_pixels: int,
        batch_size: int | None,
        store: Store | Sent,
    ):
        self.tower, self.tokens, self.pictures, self.store = tower, tokens, pictures, store
        self.views, self.seed, self.flip, self.max_pixels = views, seed, flip, max_pixels
        self.digests: dict[int, bytes] = {}  # by index, of what could be loaded
        # reasons, by index where nothing could be loaded, by digest where no vector could be made
        self.unread: dict[int | bytes, str] = {}
        self.claimed: set[bytes] = set()
        self.lock = threading.Lock()  # of the store and of what is claimed
        self.device = tower.device.type
        self.batch_size = batch_size or (32 if self.device == "cpu" else 128)
        self.threads = torch.get_num_threads()
        # launchers set one thread a process: too few to feed a GPU
        decoders = self.threads if self.device == "cpu" else os.cpu_count() or 1
        self.workers = max(1, min(decoders, MAX_WORKERS, len(pictures)))
        self.chunk = evenly(len(pictures), self.workers, self.batch_size // views or 1)
        # bounds the batches on an accelerator
        self.in_tower = threading.Semaphore(self.workers if self.device == "cpu" else 2)

    def reason(self, index: int) -> str | None:
        """Why a picture has no vector."""
        return self.unread.get(self.digests.get(index, index))

    def run(self) -> tuple[list[np.ndarray], list[int], list[tuple[str, str]]]:
        """The rows of the pictures that could be read, which these are, and the others with the reason.

        Errors: NoneReadable when no picture can be read."""
        self._fill_far(far) if (far := current()) is not None else self._fill(self._chunks())
        reasons = {index: reason for index in range(len(self.pictures)) if (reason := self.reason(index))}
        skipped = [(self.pictures[index].name, reason) for index, reason in reasons.items()]
        kept = [index for index in range(len(self.pictures)) if index not in reasons]
        if self.pictures and not kept:
            raise NoneReadable(skipped)
        return [self.store.rows[self.digests[index]] for index in kept], kept, skipped

    def _chunks(self) -> list[range]:
        count = len(self.pictures)
        return [range(start, min(start + self.chunk, count)) for start in range(0, count, self.chunk)]

    def _fill(self, chunks: list[range]) -> None:
        try:
            with (
                progress("images", sum(map(len, chunks))) as advance,
                closing(each(self._work, chunks, jobs=self.workers)) as finished,
            ):
                for done in finished:
                    advance(done)
        finally:  # Ctrl-C too: the batches in the tower have ended, and every finished row is kept
            torch.set_num_threads(self.threads)  # the workers' setting would be the default of later threads
            self.store.flush()

    # -- on a cluster --

    def _fill_far(self, cluster: Cluster) -> None:
        tower, threads, gpu = self.tower, max(1, self.threads // self.workers), self.device == "cuda"
        needs = Needs(self.workers if gpu else threads, int(gpu))
        given = (
            cluster.keep(tower.image_fingerprint, tower),
            Recipe(self.tokens, self.views, self.seed, self.flip, self.max_pixels, self.batch_size),
            (self.chunk, self.workers if gpu else 1, threads),
            self.store.form,
            self.store.known,
        )
        some = self._parts(cluster.slots(needs))
        parts = each(encode_part, some, jobs=self.workers, given=given, processes=True, needs=needs)
        try:
            with progress("images", len(self.pictures)) as advance, closing(parts):
                for part in parts:
                    self._take(part)
                    advance(part.count)
        finally:
            self.store.flush()
        lost = [index for index, digest in self.digests.items() if digest not in self.store.rows]
        self._fill([range(index, index + 1) for index in lost if not self.reason(index)])

    def _parts(self, slots: int) -> Iterator[tuple[int, Sequence[Picture]]]:
        """Runs of pictures, of whole chunks, with where each begins: so small that all slots have some."""
        chunks = len(self.pictures) // self.chunk // (PARTS_A_SLOT * slots)
        size = self.chunk * max(1, min(chunks, PART_CHUNKS))
        for start in range(0, len(self.pictures), size):
            yield start, self.pictures[start : start + size]

    def _take(self, part: Part) -> None:
        """Keep what a machine found. What it could not load and this one can is no damaged image."""
        self.digests |= part.digests
        self.unread |= part.unread
        for index in (index for index in part.unread if isinstance(index, int)):
            with contextlib.suppress(Unreadable):
                self.pictures[index].read()
                raise WordsightError(
                    f"{self.pictures[index].name} is read here, but not on machine {part.host} of the "
                    f"cluster: {part.unread[index]}; data must lie under the same path on every machine"
                )
        self.store.find(part.digests.values())
        for digest, row in part.rows.items():
            if digest not in self.store.rows:
                self.store.add(digest, row, keep=digest not in part.large)
        self.store.flush_if_due()

    def _work(self, indices: range) -> int:
        torch.set_num_threads(max(1, self.threads // self.workers))
        values = self._load(self._not_stored(indices))
        with self.lock:
            self.store.find(values)
            new = [one for one in values if one not in self.store.rows and one not in self.claimed]
            self.claimed.update(new)
        pixels, large = self._decode({digest: values[digest] for digest in new})
        rows = self._encode(pixels)
        with self.lock:
            for digest, row in rows.items():
                if self.store.form.sound(row):
                    self.store.add(digest, row, keep=digest not in large)
                else:
                    self.unread[digest] = f"the image tower {_bad_vector(row)}"
            self.store.flush_if_due()
        return len(indices)

    def _not_stored(self, indices: range) -> list[int]:
        """Those of unknown content or not in the cache: the others are not read again."""
        if self.max_pixels < MAX_PIXELS:  # the cache may hold larger ones
            return list(indices)
        known = {at: one.digest for at in indices if "digest" in vars(one := self.pictures[at])}
        with self.lock:
            self.store.find(known.values())
            self.digests |= {at: digest for at, digest in known.items() if digest in self.store.rows}
        return [at for at in indices if at not in self.digests]

    def _load(self, indices: Sequence[int]) -> dict[bytes, ImageValue]:
        values: dict[bytes, ImageValue] = {}
        for index in indices:
            try:
                value, digest = self.pictures[index].read()
                if self.max_pixels < MAX_PIXELS:  # the cache may hold larger ones
                    check_size(size_of(value), self.max_pixels)
                self.digests[index] = digest
                values.setdefault(digest, value)
            except Unreadable as error:
                self.unread[index] = str(error)
        return values

    def _decode(
        self, values: dict[bytes, ImageValue]
    ) -> tuple[dict[bytes, UInt8[Tensor, "V 3 H W"]], set[bytes]]:
        """The views of each image, and which images are larger than the cache keeps: another call, with a
        lower limit, has to find them too large.
        """
        pixels, large = {}, set()
        for digest, value in values.items():
            try:
                image = read_image(value, self.max_pixels)
            except Unreadable as error:
                self.unread[digest] = str(error)
                continue
            if image.width * image.height > MAX_PIXELS:
                large.add(digest)
            pixels[digest] = self._views(image, digest)
        return pixels, large

    def _views(self, image: Image.Image, digest: bytes) -> UInt8[Tensor, "V 3 H W"]:
        views = [self.tower.preprocess(image)]
        for view in range(1, self.views):
            box, mirrored = view_box(image.size, digest, view, self.seed)
            pixels = self.tower.preprocess(image, box)
            views.append(pixels.flip(-1) if mirrored and self.flip else pixels)
        return torch.stack(views)

    def _encode(self, pixels: dict[bytes, UInt8[Tensor, "V 3 H W"]]) -> dict[bytes, np.ndarray]:
        if not pixels:
            return {}
        batch = torch.cat(list(pixels.values()))
        tower, tokens = self.tower, self.tokens
        encode = tower.encode_image if tokens is None else partial(tower.encode_grid, tokens=tokens)
        if self.device == "cuda":
            batch = batch.pin_memory()
        with self.in_tower, torch.inference_mode():
            parts = [encode(part) for part in batch.split(self.batch_size)]
            parts = [part.to(self.store.form.dtype).cpu() for part in parts]
        return dict(zip(pixels, torch.cat(parts).unflatten(0, (-1, self.views)).numpy()))


class Recipe(NamedTuple):
    """What an ImageJob makes of pictures, for another machine."""

    tokens: int | None
    views: int
    seed: int
    flip: bool
    max_pixels: int
    batch_size: int


class Part(NamedTuple):
    """What a machine of a cluster made of some pictures, each by its index among all."""

    host: str
    count: int
    digests: dict[int, bytes]
    unread: dict[int | bytes, str]
    rows: dict[bytes, np.ndarray]  # that the asking machine lacked
    large: set[bytes]  # of which its cache keeps none


def encode_part(
    part: tuple[int, Sequence[Picture]],
    tower: Backbone,
    recipe: Recipe,
    pace: tuple[int, int, int],
    form: Form,
    known: UInt64[np.ndarray, " n"],
) -> Part:
    """An ImageJob for another machine: `pace` is its chunk, workers and threads, as the asking machine would
    have them, so that its vectors come out to the bit.
    """
    (start, pictures), (tokens, views, seed, flip, max_pixels, batch_size) = part, recipe
    store = Sent(form, known)
    torch.set_num_threads(pace[2])
    job = ImageJob(tower, tokens, pictures, views, seed, flip, max_pixels, batch_size, store)
    job.chunk, job.workers, job.threads = pace[0], pace[1], pace[1] * pace[2]
    job._fill(job._chunks())
    digests = {start + index: digest for index, digest in job.digests.items()}
    unread = {start + key if isinstance(key, int) else key: why for key, why in job.unread.items()}
    rows = {digest: row for digest, row in store.rows.items() if row.size}
    return Part(socket.gethostname(), len(pictures), digests, unread, rows, store.large)
