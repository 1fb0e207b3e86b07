"""The generator that a run of limber becomes: soft tokens of images among texts, and a frozen LM that
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from wordsight.backbones import Backbone, fingerprint
from wordsight.backbones.generator import Seen
from wordsight.backbones.lm_generator import LMGenerator
from wordsight.methods.limber import Limber

AT_ONCE = 64  # images that pass through the image tower together


class LimberGenerator(LMGenerator):
    """Seen images are their soft tokens, [P, W] each; all else is the LM's."""

    sees = True

    def __init__(self, backbone: Backbone, method: Limber, *, name: str):
        super().__init__(method.lm, name=name)
        self.backbone, self.method = backbone, method.eval()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.method.weights(), self.lm.origin, self.backbone.image_fingerprint)

    @torch.no_grad()
    def see(self, images: Sequence[Image.Image]) -> list[Seen]:
        seen: list[Seen] = []
        for start in range(0, len(images), AT_ONCE):
            pixels = [self.backbone.preprocess(image) for image in images[start : start + AT_ONCE]]
            grids = self.backbone.image_tower.encode_grid(torch.stack(pixels), self.method.settings.tokens)
            seen += self.of_features(grids, self.backbone.encode_image(torch.stack(pixels)))
        return seen

    @torch.no_grad()
    def of_features(self, grids: Float[Tensor, "B G Wv"], vectors: Float[Tensor, "B D"]) -> list[Seen]:
        """What `see` gives, of grids and vectors that were made before. In float16, as a cache has
        grids: what it was trained on.
        """
        return list(self.method.prefix(grids.half().to(self.device), vectors.to(self.device)))
