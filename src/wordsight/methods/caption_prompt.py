"""h: the prompt embedding of an image, learned from its captions (AAPE, section 5): what stands for the
words that people would say of it.

Shapes: B images, N captions of an image, D the width of image vectors, E that of text vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wordsight import losses
from wordsight.backbones import unit
from wordsight.backbones.prompted import prompt_generator
from wordsight.methods import Learner
from wordsight.methods.aggregators import AGGREGATORS

START = math.log(1 / 0.07)  # of the contrastive loss's scale: CLIP's


class PromptSettings(Protocol):
    """What decides h, among the settings of a method that has one."""

    @property
    def width(self) -> int:
        """r, of h's inner layer."""
        ...

    @property
    def aggregator(self) -> str:
        """What condenses captions: a name of AGGREGATORS."""
        ...

    @property
    def query(self) -> str:
        """What the aggregator's slot starts as."""
        ...

    @property
    def heads(self) -> int:
        """Of the attention aggregator."""
        ...

    @property
    def distill(self) -> float:
        """Weight of the distillation loss."""
        ...


class CaptionPrompt(Learner):
    """h(x), two fully connected layers with ReLU, learned from the captions of images.

    AAPE, section 5: the distillation loss (eq. 2) to the captions as the aggregator condenses them, and
    CLIP's contrastive loss between h(x) and a caption of the image; no g. As in the paper, with its
    aggregator and reward (section 3.1). Differs from the paper: each step's caption is drawn from an
    image's, which the paper leaves open, and where text vectors have another space than images, there is
    no reward."""

    def __init__(
        self,
        dim: int,
        captions: Sequence[Float[Tensor, "_ E"]],
        settings: PromptSettings,
        start: nn.Module | None = None,
    ):
        """`captions` has the unit vectors of each image's captions. `start` is an h that is trained on in
        place of the paper's, from random weights."""
        super().__init__()
        self.settings = settings
        self.captions = nn.utils.rnn.pad_sequence(list(captions), batch_first=True)  # [n, N, E]
        self.counts = torch.tensor([len(vectors) for vectors in captions])
        width = self.captions.shape[2]
        self.generator = start if start is not None else prompt_generator(dim, settings.width, width)
        self.aggregator = AGGREGATORS[settings.aggregator](width, settings.heads)
        self.log_scale = nn.Parameter(torch.tensor(START))
        self.one_space = dim == width

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """For a batch of images and their rows (`labels`): distillation, contrastive loss, and the
        aggregator's reward.
        """
        images, rows = batch["images"], batch["labels"].cpu()
        said, target = self.generator(images), self.condense(images, rows)
        terms = {"distill": self.settings.distill * losses.embedding_distillation(said, target)}
        drawn = (torch.rand(len(rows)) * self.counts[rows]).long()
        terms["contrastive"] = losses.info_nce(
            unit(said), self.captions[rows, drawn].to(images.device), self.log_scale
        )
        if target.requires_grad and self.one_space:
            terms["reward"] = -losses.clip_reward(images, target)
        return terms

    def condense(self, images: Float[Tensor, "B D"], rows: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """The aggregated prompt p_a of each image: a unit vector made of its captions (eq. 1)."""
        captions, present = self.captions[rows], self._present(rows)
        query = images if self.settings.query == "mean+image" else None
        return self.aggregator(captions.to(images.device), present.to(images.device), query)

    def _present(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B N"]:
        return torch.arange(self.captions.shape[1]) < self.counts[rows][:, None]

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
        """p_a of every image, on the CPU: what h is distilled from where it is trained further."""
        device = self.log_scale.device
        parts = torch.arange(len(images)).split(4096)
        return torch.cat([self.condense(images[rows].to(device), rows).cpu() for rows in parts])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scale is not decayed, as in CLIP."""
        scale = [self.log_scale]
        rest = [one for one in self.parameters() if one.requires_grad and one is not self.log_scale]
        return [
            {"params": rest, "lr_scale": 1.0},
            {"params": scale, "lr_scale": 1.0, "weight_decay": 0.0},
        ]
