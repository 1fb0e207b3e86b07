"""Aggregators: how AAPE condenses the sentences of a class into one prompt embedding (section 3.1, eq. 1).

Each takes sentences [G, N, D] with a mask [G, N], and images [G, D] or None, and gives unit prompts [G, D];
in training alone."""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import unit


def mean_of(sentences: Float[Tensor, "G N D"], present: Bool[Tensor, "G N"]) -> Float[Tensor, "G D"]:
    return unit((sentences * present[..., None]).sum(1))


def slot_of(
    sentences: Float[Tensor, "G N D"], present: Bool[Tensor, "G N"], images: Float[Tensor, "G D"] | None
) -> Float[Tensor, "G D"]:
    """The mean, or mean + image."""
    mean = mean_of(sentences, present)
    return mean if images is None else unit(mean + images)


class MeanAggregator(nn.Module):
    """The unit mean; after `setup` has kept one sentence a class, also the random sentence of the paper's
    ablation.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()

    def forward(
        self,
        sentences: Float[Tensor, "G N D"],
        present: Bool[Tensor, "G N"],
        images: Float[Tensor, "G D"] | None,
    ) -> Float[Tensor, "G D"]:
        return slot_of(sentences, present, images)


class MLPAggregator(nn.Module):
    """alpha f(mean) + (1 - alpha) mean, f a two-layer bottleneck, alpha learned (the paper's ablation)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(dim, max(1, dim // 4)), nn.ReLU(), nn.Linear(max(1, dim // 4), dim))
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(
        self,
        sentences: Float[Tensor, "G N D"],
        present: Bool[Tensor, "G N"],
        images: Float[Tensor, "G D"] | None,
    ) -> Float[Tensor, "G D"]:
        slot = slot_of(sentences, present, images)
        return unit(self.alpha * self.f(slot) + (1 - self.alpha) * slot)


class AttentionAggregator(nn.Module):
    """One attention layer over [slot ; sentences], of which only the slot's output is kept (eq. 1). The slot
    starts as the mean, or mean + image.

    As in the paper, with pre-normalisation and zero last layers, so that training starts at the mean itself
    (the paper leaves both open). One query needs no key and value vectors: its products with the key matrix
    are taken first, so a sentence costs H x D and not D x D."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            heads = math.gcd(dim, heads)
        self.heads = heads
        self.norm, self.norm_after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        for last in (self.output, cast(nn.Linear, self.feed_forward[-1])):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        sentences: Float[Tensor, "G N D"],
        present: Bool[Tensor, "G N"],
        images: Float[Tensor, "G D"] | None,
    ) -> Float[Tensor, "G D"]:
        slot = slot_of(sentences, present, images)
        seen = self.norm(torch.cat([slot[:, None], sentences], 1))  # [G, 1 + N, D]
        width = slot.shape[-1] // self.heads
        query = self.query(seen[:, 0]).unflatten(-1, (self.heads, width))
        query = torch.einsum("ghk,hkd->ghd", query, self.key.weight.unflatten(0, (self.heads, width)))
        scores = torch.einsum("ghd,gnd->ghn", query, seen) / math.sqrt(width)
        shares = scores.masked_fill(~F.pad(present, (1, 0), value=True)[:, None], -torch.inf).softmax(-1)
        gathered = torch.einsum("ghn,gnd->ghd", shares, seen)
        attended = torch.einsum(
            "ghd,hkd->ghk", gathered, self.value.weight.unflatten(0, (self.heads, width))
        ).flatten(1)
        prompt = slot + self.output(attended)
        return unit(prompt + self.feed_forward(self.norm_after(prompt)))


AGGREGATORS = {
    "attention": AttentionAggregator,
    "mlp": MLPAggregator,
    "mean": MeanAggregator,
    "random": MeanAggregator,
}
