"""Stream: batches for two towers from sources of any size, mixed by weights, with image vectors computed
while training goes on.

Everything is decided by (seed, step): how many samples each source gives to a step, so how far each has been
read; which samples these are; which of their captions and views is drawn. So a killed run goes on with the
batches that it would have seen, and the only state is what shards.py remembers."""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.backbones.text_tower import TextBatch
from wordsight.config import WordsightError
from wordsight.data.account import Account, counted
from wordsight.data.ahead import Producer
from wordsight.data.features import text_features
from wordsight.data.pairs import Words, captioned_rows, sources_of
from wordsight.data.shards import ORDER, TAKE, Rows, Shards, Source, rng
from wordsight.data.sizes import Sizes
from wordsight.data.tars import is_shards, shards_of

BLOCK = 1024  # steps whose draws from the sources are made together
MEAN_OF = 4096  # images whose mean vector stands for all


@dataclass(frozen=True)
class Mixture:
    """Sources as one rank sees them, and which share of the samples each gives."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    seed: int
    rank: int
    world: int
    sizes: Sizes

    @property
    def account(self) -> Account:
        """What the sources held, as far as they were read."""
        whole = Account("image")
        for source in self.sources:
            whole.add(source.account)
        return whole


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
    label: str | None = None,
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
    memory, words = Sizes(sizes, rank, world), Words(template, sentences, aliases)
    sources: list[Source] = []
    for number, name in enumerate(names):
        place = {"seed": (seed, ORDER, number), "rank": rank, "world": world, "sizes": memory}
        if is_shards(name):
            shards = Shards(name, shards_of(name), words, **place)
            shards.check()
            sources.append(shards)
        else:
            account = Account("row")
            rows = captioned_rows(name, "train", words, account, label)
            sources.append(Rows(name, rows, **place, account=account))
    memory.save()
    return Mixture(tuple(sources), shares or _by_size(sources), seed, rank, world, memory)


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
    known = [total for total in totals if total is not None]
    return tuple(total / sum(known) for total in known)


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
        self.features, self.views, self.flip = features, views, flip
        self.max_steps, self.ahead = max_steps, ahead
        self.skipped: dict[str, str] = {}  # images that could not be read, and why
        self._length = self._count()
        self._blocks: tuple[int, Int[np.ndarray, " S"]] = (0, np.zeros(len(mixture.sources), np.int64))
        self._producer: Producer | None = None

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
            self._producer = Producer(self, step)
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
        said = [note for source in self.mixture.sources for note in source.account.notes()]
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
        known = [total for total in totals if total is not None]
        return max(1, sum(known) // self.batch_size) if len(known) == len(totals) else self.max_steps

    def _halt(self, timeout: float | None = None) -> None:
        if self._producer is not None:
            self._producer.stop(timeout)
            self._producer = None
            atexit.unregister(self.close)


def _text_vectors(teacher: Backbone, stored: bool, texts: Sequence[str]) -> Float[Tensor, "M D"]:
    if stored:
        return text_features(teacher, texts)
    with torch.no_grad():
        return teacher.encode_text(texts).float().cpu().clone()
