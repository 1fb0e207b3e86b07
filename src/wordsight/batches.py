"""Batches: training data by position, so that a resumed run needs no data state.

Cached image features, with labels or with captions. What is read while training goes on is data/stream.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.config import WordsightError
from wordsight.data.grids import Grids


class Batches(Protocol):
    """The same (epoch, index) always gives the same batch."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]: ...


class FeatureBatches:
    """Labelled features in a new order each epoch; one of the V views of an image is drawn each time. For one
    process.
    """

    def __init__(
        self, images: Float[Tensor, "n V D"], labels: Int[Tensor, " n"] | None, batch_size: int, seed: int
    ):
        self.images, self.labels, self.seed = images, labels, seed
        self.size = min(batch_size, len(images))
        self.drawn: tuple[int, Tensor, Tensor, torch.Generator] | None = None

    def __len__(self) -> int:
        return len(self.images) // self.size  # what is left over comes in another epoch's order (drop_last)

    def draw(self, epoch: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The order of images in an epoch, and the view of each."""
        if self.drawn is None or self.drawn[0] != epoch:
            stream = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            count, views = self.images.shape[:2]
            order = torch.randperm(count, generator=stream)
            self.drawn = (epoch, order, torch.randint(views, (count,), generator=stream), stream)
            self.begin_epoch(stream)
        return self.drawn[1], self.drawn[2]

    def begin_epoch(self, stream: torch.Generator) -> None:
        """What else is drawn for an epoch."""

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        order, views = self.draw(epoch)
        chosen = slice(index * self.size, (index + 1) * self.size)
        rows = order[chosen]
        assert self.labels is not None  # pairs have none, and a batch() of their own
        return {"images": self.images[rows, views[chosen]], "labels": self.labels[rows]}


class PairBatches(FeatureBatches):
    """Features with texts as token ids; one of each image's captions is drawn each time.

    Within a batch each distinct caption stands once (`ids` [M, T], `lengths` [M]); `text_of` [B] says
    which one is an image's. What `per_image` and `per_caption` hold (a teacher's vectors, grids) is cut
    to the batch's images and captions. With several processes each gets its `rank`'s part: one below the
    other, the parts are the batch of one process."""

    def __init__(
        self,
        images: Float[Tensor, "n V D"],
        captions: Sequence[Sequence[int]],  # of each image, as rows of `tokens`
        tokens: Sequence[Sequence[int] | Int[Tensor, " _"]],
        batch_size: int,
        seed: int,
        per_image: Mapping[str, Tensor | Grids] | None = None,  # [n, V, ...], in memory or on the disk
        per_caption: Mapping[str, Float[Tensor, "N _"]] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        super().__init__(images, None, batch_size, seed)
        self.captions, self.tokens = captions, tokens
        if self.size % world:
            least = self.size // world * world
            raise WordsightError(
                f"a batch of {self.size} pairs cannot be shared out evenly among {world} processes; "
                + (f"give train.batch_size={least}" if least else f"start {self.size} at most")
            )
        self.part = slice(rank * self.size // world, (rank + 1) * self.size // world)
        self.per_image, self.per_caption = dict(per_image or {}), dict(per_caption or {})

    def begin_epoch(self, stream: torch.Generator) -> None:
        """One caption an image."""
        drawn = torch.rand(len(self.images), generator=stream).tolist()
        self.chosen = torch.tensor([own[int(part * len(own))] for own, part in zip(self.captions, drawn)])

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        order, view = self.draw(epoch)
        chosen = slice(index * self.size + self.part.start, index * self.size + self.part.stop)
        rows, views = order[chosen], view[chosen]
        captions, text_of = self.chosen[rows].unique(return_inverse=True)
        tokens = [torch.as_tensor(self.tokens[caption]) for caption in captions.tolist()]
        return {
            "images": self.images[rows, views],
            # what is padding is known from `lengths`
            "ids": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            "lengths": torch.tensor(list(map(len, tokens))),
            "text_of": text_of,
            **{name: tensor[rows, views] for name, tensor in self.per_image.items()},
            **{name: tensor[captions] for name, tensor in self.per_caption.items()},
        }
