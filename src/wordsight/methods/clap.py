"""CLAP: a linear probe that starts at the class names and is held near them, each class as firmly as its
words deserve.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import Backbone, unit
from wordsight.config import TrainSettings
from wordsight.methods import Classifier, FitData, Learner, Space
from wordsight.sentences import ClassTexts
from wordsight.settings import CLAPSettings


class CLAP(Classifier, Learner):
    """Class prototypes start at the text vectors t_c and learn from labels; a penalty keeps those near their
    words whose words already do well.

    "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", Silva-Rodriguez et al., CVPR
    2024: cross entropy of the scaled cosines + mean_c lambda_c |w_c - t_c|^2, lambda_c the mean zero-shot
    probability of the right class on c's labelled images, fixed from the start. The mean over classes is the
    authors' code's. Differs from the paper: the rate is the best of four on validation images, and the
    authors' first where there are none; they use none. It
    starts from text vectors before they are scaled to length one, which a backbone does not give; here they
    start with `length`, about that of CLIP's (a guess). A class without labels keeps its words."""

    Settings = CLAPSettings
    pulls = ("constraint",)
    words: Tensor
    rows: Tensor
    training_defaults = TrainSettings(
        epochs=300,
        min_steps=0,
        batch_size=256,
        optimizer="sgd",
        lr=(0.1, 0.01, 1.0, 10.0),
        weight_decay=5e-4,
        warmup_epochs=1,
    )

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: CLAPSettings):
        super().__init__(class_names, space, settings)
        self.prototypes = nn.Parameter(torch.zeros(len(class_names), self.dim))

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        images, labels = data.centre, data.labels
        words = data.texts.name_vectors.to(images)
        right = (self.logit_scale * images @ words.T).softmax(1).gather(1, labels[:, None])[:, 0]
        counts = labels.bincount(minlength=len(words))
        self.multipliers = right.new_zeros(len(words)).index_add_(0, labels, right) / counts
        self.anchors = self.settings.length * words
        self.prototypes.data.copy_(self.anchors)
        return super().setup(data)

    def set_classes(self, texts: ClassTexts) -> None:
        self.register_buffer("words", texts.name_vectors, persistent=False)
        self.register_buffer("rows", self.rows_of(texts), persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        weights = torch.where((self.rows < 0)[:, None], self.words, self.prototypes[self.rows])
        return self.logit_scale * images @ unit(weights).T

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        terms = {"cross_entropy": F.cross_entropy(self.logits(batch["images"]), batch["labels"])}
        if self.settings.constraint == "adaptive":
            away = (self.prototypes - self.anchors.to(self.prototypes)).square().sum(1)
            terms["constraint"] = (self.multipliers.to(away) * away).mean()
        return terms
