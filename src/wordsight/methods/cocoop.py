"""CoCoOp: CoOp whose context every image bends."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import Backbone
from wordsight.config import TrainSettings, WordsightError
from wordsight.methods import Space
from wordsight.methods.context import TOKENS_AT_ONCE, PromptLearner
from wordsight.sentences import ClassTexts
from wordsight.settings import CoCoOpSettings


class CoCoOp(PromptLearner):
    """A small network turns the image into one vector that is added to every context vector, so each image
    has class texts of its own.

    "Conditional Prompt Learning for Vision-Language Models", Zhou et al., CVPR 2022: v_m(x) = v_m + h(x), h =
    linear, relu, linear. As in the paper, which trains on one image at a time. Every image passes all classes
    through the text tower, in prediction too: that is the method's price."""

    Settings = CoCoOpSettings
    training_defaults = TrainSettings(
        epochs=10, min_steps=0, batch_size=1, optimizer="sgd", lr=2e-3, weight_decay=5e-4, warmup_epochs=1
    )

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: CoCoOpSettings):
        super().__init__(class_names, space, settings)
        self.inner = nn.Linear(self.dim, max(1, self.dim // settings.reduction))
        self.outer = nn.Linear(self.inner.out_features, self.context.shape[1])

    def set_classes(self, texts: ClassTexts) -> None:
        self.bound, self.classes = (
            self.prompts_of(texts.names),
            len(texts.names),
        )  # nothing can be encoded before there is an image

    def contexts(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B n W"]:
        return self.context + self.outer(F.relu(self.inner(images)))[:, None]

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        rows, length = self.bound.shape
        size = max(1, TOKENS_AT_ONCE // (rows * length))  # images that pass through the tower together
        scores = [images.new_empty(0, self.classes)]
        for some in images.split(size) if len(images) else ():
            contexts = self.contexts(some).repeat_interleave(rows, 0)
            vectors = self.splice.encode(self.bound.repeat(len(some)), contexts).unflatten(
                0, (len(some), self.classes)
            )
            scores.append(self.logit_scale * (vectors @ some[:, :, None].to(vectors))[..., 0])
        return torch.cat(scores)

    def plain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        raise WordsightError(
            "method=cocoop passes every class through the text tower for each image, so no graph of the "
            "image tower alone can hold it; coop, kgcoop or aape have one"
        )

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        return {"cross_entropy": F.cross_entropy(self.logits(batch["images"]), batch["labels"])}
