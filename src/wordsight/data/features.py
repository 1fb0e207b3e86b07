"""Image and text features, computed once: frozen towers give the same vector for ever, so each lies in a
cache and is found by content.

A store is one folder per tower, view recipe and dtype: `<cache>/features/<key>/NNNN-<uuid>.safetensors`. A
row is addressed by the digest of the image's bytes, kept in the shard itself: a renamed file is found, an
edited one is encoded anew, and nothing can be stale."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.images import Unreadable, content_digest, hash_of, read_image, view_box
from wordsight.files import cache_folder, write_file
from wordsight.workers import progress

# change it when views change: it is part of the key
VIEW_RECIPE = "centre, then random resized crop (0.08, 1) x (3/4, 4/3), flip 1/2; 1"
SHARD_ROWS = 2000  # a kill loses at most this many images,
SHARD_SECONDS = 20.0  # or this much time
MERGE_SHARDS = 32  # so many small shards are merged into one
MAX_WORKERS = 16

log = logging.getLogger("wordsight")


@dataclass(frozen=True)
class Features:
    """Unit vectors of the pictures that could be read; row i belongs to picture kept[i]. View 0 is the centre
    crop.
    """

    vectors: Float[Tensor, "n V D"]
    kept: list[int]
    skipped: list[tuple[str, str]]  # (name, reason)


class NoneReadable(WordsightError):
    """No picture of many could be read; `skipped` has each one's name and reason."""

    def __init__(self, skipped: list[tuple[str, str]]):
        name, reason = skipped[0]
        super().__init__(f"none of {len(skipped)} images could be read; the first: {name}: {reason}")
        self.skipped = skipped


def image_features(
    backbone: Backbone,
    pictures: Sequence[Picture],
    *,
    views: int = 1,
    seed: int = 0,
    flip: bool = True,
    folder: str | Path | None = None,
    batch_size: int | None = None,  # 32 on the CPU, where each core has its own; 128 on an accelerator
) -> Features:
    """Vectors of `pictures` under `views` views each; what the cache in `folder` holds is not computed again.

    View 0 is the centre crop; each further view is a random resized crop, mirrored half the time, decided by
    (image content, view, seed) alone. Set `flip=False` for glyphs, where a mirror changes the class. A
    picture that cannot be read is skipped with its reason. An interrupted call keeps what it finished.
    Vectors do not depend on the batch they were computed in beyond 1e-6.

    Errors: NoneReadable when no picture can be read, WordsightError when the cache cannot be written.
    """
    if views < 1:
        raise WordsightError(
            f"views={views} is not possible; view 1 is the centre crop, more are augmented ones"
        )
    recipe = (VIEW_RECIPE, seed, flip) if views > 1 else "centre"
    eyes = backbone.image_tower
    store = _Store(folder, "image", eyes.image_fingerprint, views, recipe)
    job = _ImageJob(eyes, pictures, views, seed, flip, batch_size, store)
    job.run()
    kept = [index for index, digest in enumerate(job.digests) if digest in store.rows]
    skipped = [
        (picture.name, job.reason(index))
        for index, picture in enumerate(pictures)
        if job.digests[index] not in store.rows
    ]
    if pictures and not kept:
        raise NoneReadable(skipped)
    vectors = (
        np.stack([store.rows[job.digests[index]] for index in kept])
        if kept
        else np.empty((0, views, backbone.dim), np.float32)
    )
    return Features(backbone.image_vectors(torch.from_numpy(vectors)), kept, skipped)


def text_features(
    backbone: Backbone, texts: Sequence[str], folder: str | Path | None = None
) -> Float[Tensor, "N D"]:
    """Unit vectors of `texts`, in their order, from the same kind of cache."""
    store = _Store(folder, "text", backbone.text_fingerprint)
    digests = [hash_of(text.encode("utf-8", "surrogatepass")) for text in texts]
    store.find(set(digests))
    missing = list({digest: text for digest, text in zip(digests, texts) if digest not in store.rows}.items())
    for start in range(0, len(missing), SHARD_ROWS):
        part = missing[start : start + SHARD_ROWS]
        vectors = backbone.encode_text([text for _, text in part]).float().cpu().numpy()
        for (digest, _), vector in zip(part, vectors):
            store.add(digest, vector)
        store.flush()
    if not digests:
        return torch.empty(0, backbone.dim)
    return torch.from_numpy(np.stack([store.rows[digest] for digest in digests]))


class _ImageJob:
    """Reads, decodes and encodes what the store lacks: several workers, each with a whole pipeline of its
    own.

    While one worker's batch is in the tower another decodes, and on the CPU each core runs its own
    single-threaded forward pass: that avoids the waiting of threads that share one operation, which costs
    more than decoding does (benchmarks/features)."""

    def __init__(
        self,
        backbone: Backbone,
        pictures: Sequence[Picture],
        views: int,
        seed: int,
        flip: bool,
        batch_size: int | None,
        store: _Store,
    ):
        self.backbone, self.pictures, self.store = backbone, pictures, store
        self.views, self.seed, self.flip = views, seed, flip
        self.digests: list[bytes | None] = [None] * len(pictures)
        self.unread: dict[
            int | bytes, str
        ] = {}  # reasons, by index where nothing could be loaded, by digest where it could not be decoded
        self.claimed: set[bytes] = set()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.device = backbone.device.type
        self.batch_size = batch_size or (32 if self.device == "cpu" else 128)
        self.threads = torch.get_num_threads()
        decoders = (
            self.threads if self.device == "cpu" else os.cpu_count() or 1
        )  # launchers set one thread a process: too few to feed a GPU
        self.workers = max(1, min(decoders, MAX_WORKERS, len(pictures)))
        self.chunk = max(1, min(self.batch_size // views or 1, math.ceil(len(pictures) / self.workers)))
        self.in_tower = threading.Semaphore(
            self.workers if self.device == "cpu" else 2
        )  # bounds the batches on an accelerator
        self.results: queue.Queue = queue.Queue()

    def reason(self, index: int) -> str:
        return self.unread.get(index) or self.unread[self.digests[index]]

    def run(self) -> None:
        starts = iter(range(0, len(self.pictures), self.chunk))
        workers = [
            threading.Thread(target=self._work, args=(starts,), daemon=True)
            for _ in range(self.workers if self.pictures else 0)
        ]
        try:
            for worker in workers:
                worker.start()
            with progress("images", len(self.pictures)) as advance:
                for count in self._collect(len(workers)):
                    advance(count)
        finally:  # Ctrl-C too: let the batches in the tower end, keep every finished row
            self.stop.set()
            for worker in workers:
                worker.join()
            torch.set_num_threads(self.threads)  # the workers' setting would be the default of later threads
            self._keep_finished()
            self.store.flush()

    def _collect(self, running: int) -> Iterator[int]:
        while running:
            done = self.results.get()
            if done is None:
                running -= 1
            elif isinstance(done, BaseException):
                raise done
            else:
                count, rows = done
                for digest, row in rows:
                    self.store.add(digest, row)
                self.store.flush_if_due()
                yield count

    def _keep_finished(self) -> None:
        while not self.results.empty():
            done = self.results.get()
            if isinstance(done, tuple):
                for digest, row in done[1]:
                    self.store.add(digest, row)

    def _work(self, starts: Iterator[int]) -> None:
        torch.set_num_threads(max(1, self.threads // self.workers))
        try:
            while not self.stop.is_set():
                with self.lock:
                    start = next(starts, None)
                if start is None:
                    break
                indices = range(start, min(start + self.chunk, len(self.pictures)))
                self.results.put((len(indices), self._encode(indices)))
            self.results.put(None)
        except BaseException as error:
            self.results.put(error)

    def _encode(self, indices: range) -> list[tuple[bytes, np.ndarray]]:
        loaded = {}
        for index in indices:
            try:
                value = self.pictures[index].load()
                self.digests[index] = digest = content_digest(value)
                loaded.setdefault(digest, value)
            except Unreadable as error:
                self.unread[index] = str(error)
            except (OSError, ValueError, KeyError, IndexError) as error:
                self.unread[index] = f"cannot be read: {error}"
        with self.lock:
            self.store.find(set(loaded))
            new = [
                digest for digest in loaded if digest not in self.store.rows and digest not in self.claimed
            ]
            self.claimed.update(new)
        pixels = {}
        for digest in new:
            try:
                pixels[digest] = self._views(read_image(loaded[digest]), digest)
            except Unreadable as error:
                self.unread[digest] = str(error)
        if not pixels:
            return []
        batch = torch.cat(list(pixels.values()))
        if self.device == "cuda":
            batch = batch.pin_memory()
        with self.in_tower, torch.inference_mode():
            vectors = torch.cat(
                [self.backbone.encode_image(part).float().cpu() for part in batch.split(self.batch_size)]
            )
        return list(zip(pixels, vectors.unflatten(0, (-1, self.views)).numpy()))

    def _views(self, image: Image.Image, digest: bytes) -> UInt8[Tensor, "V 3 H W"]:
        views = [self.backbone.preprocess(image)]
        for view in range(1, self.views):
            box, mirrored = view_box(image.size, digest, view, self.seed)
            pixels = self.backbone.preprocess(image, box)
            views.append(pixels.flip(-1) if mirrored and self.flip else pixels)
        return torch.stack(views)


class _Store:
    """Rows by digest, in shards that are only ever added whole. `rows` holds what this call has found or
    added.
    """

    def __init__(self, folder: str | Path | None, *key: object):
        name = hash_of(repr((*key, "float32")).encode()).hex()
        self.folder = Path(folder if folder is not None else cache_folder()).expanduser() / "features" / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        self.rows: dict[bytes, np.ndarray] = {}
        self.fresh: dict[bytes, np.ndarray] = {}
        self.saved = time.monotonic()
        self.places: dict[bytes, Path] = {}
        self.small: list[Path] = []
        self._index()

    def find(self, digests: set[bytes]) -> None:
        """Bring the rows that the shards hold for `digests` into `rows`."""
        for path in {
            self.places[digest] for digest in digests if digest in self.places and digest not in self.rows
        }:
            shard = _read_shard(path)
            if shard is None:
                self._forget(path)
                continue
            for digest, vector in zip(*shard):
                self.rows.setdefault(digest, vector)

    def add(self, digest: bytes, vector: np.ndarray) -> None:
        self.rows[digest] = self.fresh[digest] = vector

    def flush_if_due(self) -> None:
        if len(self.fresh) >= SHARD_ROWS or (self.fresh and time.monotonic() - self.saved > SHARD_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Write the fresh rows as one shard: a temporary name in the same folder, then a rename."""
        if not self.fresh:
            return
        merged = self.small if len(self.small) >= MERGE_SHARDS else []
        rows = {
            digest: row for path in merged for digest, row in zip(*(_read_shard(path) or ([], [])))
        } | self.fresh
        path = self.folder / f"{len(rows):04d}-{uuid.uuid4().hex}.safetensors"
        digests = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16).copy()
        shard = save(
            {"digests": torch.from_numpy(digests), "vectors": torch.from_numpy(np.stack(list(rows.values())))}
        )
        try:
            write_file(path, shard)
        except WordsightError as error:
            raise self._cannot_write(error.__cause__) from error
        self.places = self.places | dict.fromkeys(rows, path)
        for old in merged:
            _remove(old)
        self.small = [other for other in self.small if other not in merged] + [path] * (
            len(rows) < SHARD_ROWS
        )
        self.fresh, self.saved = {}, time.monotonic()

    def _index(self) -> None:
        for part in self.folder.glob("*.part"):  # what a killed process left
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > 3600:
                    part.unlink()
        for path in sorted(self.folder.glob("*.safetensors")):
            digests = _read_shard(path, vectors=False)
            if digests is not None:
                self.places.update(dict.fromkeys(digests[0], path))
                if len(digests[0]) < SHARD_ROWS:
                    self.small.append(path)

    def _forget(self, path: Path) -> None:
        self.places = {digest: place for digest, place in self.places.items() if place != path}
        self.small = [small for small in self.small if small != path]

    def _cannot_write(self, error: OSError) -> WordsightError:
        return WordsightError(
            f"the feature cache in {str(self.folder)!r} cannot be written: {error.strerror or error}; what "
            f"it held is intact. "
            "Free some space or name another folder in WORDSIGHT_CACHE, then give the same command: it "
            "goes on from here"
        )


def _read_shard(path: Path, vectors: bool = True) -> tuple[list[bytes], np.ndarray] | None:
    """Digests and vectors of a shard; None where it is gone or unreadable. A damaged file is removed, since
    its rows are computed again.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            digests = file.get_tensor("digests")
            rows = file.get_tensor("vectors") if vectors else np.empty(len(digests))
        if digests.shape != (len(rows), 16):
            raise ValueError(f"digests of shape {digests.shape} for {len(rows)} rows")
        return [row.tobytes() for row in digests], rows
    except FileNotFoundError:  # another process has merged it away: its rows are computed again
        return None
    except OSError as error:  # not ours to read, or too many open files: no damage
        log.warning(
            "left out a part of the feature cache, its images are encoded again: %s (%s)", path, error
        )
        return None
    except (SafetensorError, ValueError) as error:
        log.warning(
            "removed a damaged part of the feature cache, its images are encoded again: %s (%s)", path, error
        )
        _remove(path)
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that this user may only read
        path.unlink()
