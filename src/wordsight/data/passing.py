"""Passing: vectors of images that are seen once, as a server sees them: nothing is read from the feature
cache or kept in it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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


class Cores:
    """An image tower on the CPU, of whose images each core takes a share by itself: no thread waits for
    another within an operation, which takes longer than the operation where a core has other work, too.
    """

    def __init__(self, backbone: Backbone):
        self.backbone, self.count = backbone, torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "core", _alone, (threading.Barrier(self.count),))
        list(self._pool.map(abs, range(self.count)))
        torch.set_num_threads(self.count)  # of threads to come, whose number the cores' own would be else

    def vectors(self, pixels: Sequence[UInt8[Tensor, "3 H W"]]) -> Float[Tensor, "n D"]:
        """As `vectors_of`."""
        if self.backbone.device.type != "cpu":
            return vectors_of(self.backbone, pixels)
        share = -(-len(pixels) // self.count)
        parts = [pixels[start : start + share] for start in range(0, len(pixels), share)]
        return torch.cat(list(self._pool.map(partial(vectors_of, self.backbone), parts)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _alone(begun: threading.Barrier) -> None:
    """A thread that computes by itself. It begins together with the others, so that all of them have."""
    torch.set_num_threads(1)
    begun.wait()
