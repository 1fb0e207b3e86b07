"""Grids: what an image tower knows of each part of an image, as so many vectors as an LM is to read."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from wordsight.config import WordsightError


def grid_of(
    states: Float[Tensor, "B N Wv"] | Float[Tensor, "B Wv h w"],
    height: int,
    width: int,
    patch: object,
    name: str,
) -> Float[Tensor, "B Wv h w"]:
    """A tower's last states of height x width pixels as a grid: a convolutional tower's map as it is, else
    the states of patches, before which class and register tokens stand.

    `patch` is what its configuration calls the patch size. A tower that joins patches on its way (Swin) has
    fewer states, which are a grid where they make a square. Errors: WordsightError where there is no grid."""
    if states.ndim == 4:
        return states
    across = (height // patch, width // patch) if isinstance(patch, int) and patch > 0 else (0, 0)
    count = across[0] * across[1]
    if not 0 < count <= states.shape[1]:
        side = math.isqrt(states.shape[1])
        across, count = (side, side), side * side
        if count != states.shape[1] or count == 1 or height != width:
            raise WordsightError(
                f"the image tower of {name!r} gives {states.shape[1]} states of {height}x{width} pixels, "
                f"which are no grid of patches; give a ViT, a CLIP or a convolutional tower"
            )
    return states[:, -count:].transpose(1, 2).unflatten(2, across)


def pooled(grid: Float[Tensor, "B Wv h w"], tokens: int) -> Float[Tensor, "B G Wv"]:
    """A grid row by row, neighbours averaged until there are `tokens` at most: 14x14 becomes 7x7 for 49 and
    12x12 for 144.
    """
    height, width = grid.shape[2:]
    return adaptive_avg_pool2d(grid.float(), pooled_size(height, width, tokens)).flatten(2).transpose(1, 2)


def pooled_size(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The largest grid of `tokens` at most, with about the same sides to each other."""
    if height * width <= tokens:
        return height, width
    down = min(height, max(1, math.floor(height * math.sqrt(tokens / (height * width)) + 1e-9)))
    return down, max(1, min(width, tokens // down))
