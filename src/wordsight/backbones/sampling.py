"""sampling: how tokens are chosen, a seed a row, in terms of transformers' `generate`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.config import WordsightError


def drawn(temperature: float, seeds: Sequence[int], top_p: float = 1.0) -> dict[str, Any]:
    """The settings of transformers' `generate` for one seed a row; at temperature 0 the likeliest token
    always follows. Below `top_p` = 1 the likeliest tokens that have so much probability together are drawn
    among.
    """
    from transformers.generation.logits_process import (  # a second, which servers' answers do not need
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    if not 0 <= temperature < math.inf or min(seeds) < 0:
        raise WordsightError(
            f"temperature={temperature} with seed={min(seeds)} is not possible; both are 0 or more"
        )
    if not temperature:
        return {"do_sample": False}
    steps: list[Any] = [Draws(temperature, seeds)]
    if top_p < 1:
        steps = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p), Draws(1.0, seeds)]
    return {"do_sample": False, "logits_processor": LogitsProcessorList(steps)}


def keep_ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those that the model's folder names. `generate` keeps
    them alone: what the folder says of sampling and penalties is not asked for here.
    """
    from transformers.generation.configuration_utils import GenerationConfig

    from wordsight.backbones.checkpoint import padding_of

    named = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])} - {None}
    kept = sorted(ends)
    model.generation_config = GenerationConfig(eos_token_id=kept, pad_token_id=padding_of(tokenizer))
    return kept


@contextlib.contextmanager
def ends_alone(model: Any, tokenizer: Any) -> Iterator[None]:
    """`keep_ends` for a moment, of a model that is to be saved as it came."""
    before = model.generation_config
    keep_ends(model, tokenizer)
    try:
        yield
    finally:
        model.generation_config = before


class Draws:
    """Each row draws its tokens from a seed of its own, so that what is written does not depend on which
    other rows run beside it.

    The largest of logits / temperature + Gumbel noise is a draw from their softmax: greedy generation over
    such scores samples."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature, self.generators = (
            temperature,
            [torch.Generator().manual_seed(seed) for seed in seeds],
        )

    def __call__(
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B vocabulary"]
    ) -> Float[Tensor, "B vocabulary"]:
        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() / self.temperature - noise.log().to(scores.device)
