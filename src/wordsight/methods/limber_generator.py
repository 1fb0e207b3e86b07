"""The generator that a run of limber becomes: soft tokens of images among texts, and a frozen LM that
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.backbones.generator import Generator, Prompt, Seen, Writing
from wordsight.backbones.sampling import drawn
from wordsight.config import WordsightError
from wordsight.methods.limber import Limber

AT_ONCE = 64  # images that pass through the image tower together


class LimberGenerator(Generator):
    """Seen images are their soft tokens, [P, W] each; a prompt is the LM's begin token, and then its
    parts.
    """

    def __init__(self, backbone: Backbone, method: Limber, *, name: str):
        self.backbone, self.method, self.name = backbone, method.eval(), name
        self.device = method.lm.device

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

    @torch.no_grad()
    def write(self, prompts: Sequence[Prompt], how: Writing, seeds: Sequence[int] | None = None) -> list[str]:
        lm = self.method.lm
        rows = [lm.row(prompt) for prompt in prompts]
        longest = max(map(len, rows)) + how.max_new_tokens
        if lm.context is not None and longest > lm.context:
            raise WordsightError(
                f"a prompt of {longest - how.max_new_tokens} tokens, images included, and "
                f"{how.max_new_tokens} new ones do not fit into the {lm.context} positions of "
                f"{lm.lm.config.model_type}; show fewer examples, or ask for fewer tokens"
            )
        settings: dict[str, Any] = {"max_new_tokens": how.max_new_tokens, "num_beams": how.beams}
        settings |= drawn(how.temperature, seeds or [1] * len(rows), how.top_p)
        return [lm.text_of(tokens) for tokens in lm.write(rows, **settings)]
