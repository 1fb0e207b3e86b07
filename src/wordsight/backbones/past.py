"""past: what an LM read last, as keys and values, so that what begins alike does not pass through it again.

A conversation grows at its end: of each turn only what is new is read. Shapes: Q and R
vectors, W the LM's width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.readonly import LAYERS

MOVING = {"dynamic", "longrope"}  # positions that are turned otherwise once a text is long


class Past:
    """Writes on from rows one after another, each the LM's alone; not for adapters. What a row has in common
    with the one before, vector by vector from the first, is not read again.

    It is what was read that is compared, not what it came from: however a chat template or a tokenizer
    writes a reply the second time, what follows is that of the whole row, but for rounding. Layers with a
    sliding window keep all their places too, so that any end can be cut off: of Gemma 3 270M a place takes
    36 kB in float32.
    """

    def __init__(self, lm: PrefixedLM):
        self.lm = lm
        self._kept: tuple[Tensor, DynamicCache] | None = None  # vectors [Q, W] that it read

    def write(self, row: Float[Tensor, "Q W"], **settings: Any) -> list[list[int]]:
        """As `PrefixedLM.write` of this row alone, greedy or drawn; not for beams."""
        cache = self._of_beginning(row)
        (tokens,) = self.lm.write([row], past_key_values=cache, **settings)
        written = self.lm.embed(torch.tensor([tokens], device=row.device, dtype=torch.long))[0]
        self._kept = torch.cat([row, written])[: cache.get_seq_length()], cache  # the last token was not read
        return [tokens]

    def _of_beginning(self, row: Float[Tensor, "Q W"]) -> DynamicCache:
        """The cache cut to what `row` begins with, which leaves at least one vector to read. It is taken out,
        for whatever happens now it holds something else.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return DynamicCache()
        read, cache = kept
        alike = _alike(read, row[:-1])
        if not alike:
            return DynamicCache()
        cache.crop(alike - len(read))
        return cache


def has_past(lm: PrefixedLM) -> bool:
    """Whether all layers of an LM look back by keys and values, in places that stay as they were read."""
    config = lm.lm.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    takes = "past_key_values" in inspect.signature(type(lm.lm).forward).parameters
    return takes and layers <= set(LAYERS) and not _turns(getattr(config, "rope_parameters", None)) & MOVING


def _turns(rope: Mapping[str, Any] | None) -> set[str]:
    """The ways in which positions turn, of all kinds of layers."""
    rope = rope or {}
    inner = [value for value in rope.values() if isinstance(value, Mapping)]
    return {part.get("rope_type", "default") for part in (rope, *inner)}


def _alike(one: Float[Tensor, "Q W"], other: Float[Tensor, "R W"]) -> int:
    """With how many of the same vectors both begin."""
    most = min(len(one), len(other))
    differ = (one[:most] != other[:most]).any(1).nonzero()
    return int(differ[0]) if len(differ) else most
