"""Passing: vectors of images that are seen once, as a server sees them: nothing is read from the feature
cache or kept in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.data import ImageValue
from wordsight.data.images import MAX_PIXELS, read_image


def pixels_of(backbone: Backbone, value: ImageValue, max_pixels: int | None = None) -> UInt8[Tensor, "3 H W"]:
    """An image as the tower reads it: view 0 of `image_features`. Errors: `images.Unreadable`."""
    return backbone.image_tower.preprocess(read_image(value, max_pixels or MAX_PIXELS))


@torch.inference_mode()
def vectors_of(backbone: Backbone, pixels: Sequence[UInt8[Tensor, "3 H W"]]) -> Float[Tensor, "n D"]:
    """Unit vectors on the CPU, of all in one batch: those of `image_features`, within 1e-6."""
    vectors = backbone.image_tower.encode_image(torch.stack(list(pixels))).float().cpu()
    return backbone.image_vectors(vectors)
