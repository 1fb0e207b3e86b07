"""TaskRes: each class's text vector, plus a learned offset."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import Backbone, unit
from wordsight.config import TrainSettings
from wordsight.methods import Classifier, Learner, Space
from wordsight.sentences import ClassTexts
from wordsight.settings import TaskResSettings


class TaskRes(Classifier, Learner):
    """Each labelled class learns an offset that is added to its text vector; the words themselves stay: w_c =
    t_c + alpha x_c, x_c = 0 at first.

    "Task Residual for Tuning Vision-Language Models", Yu et al., CVPR 2023. As in the paper, with the regular
    base (the enhanced one is a text tower tuned beforehand), and without the small weight decay of the
    authors' Adam. Differs: the rate is the best of four on validation images, the authors' first (they take
    a tenth of it on ImageNet); offsets are added to unit vectors, where the authors add them to text vectors
    as CLIP gives them, some ten times as long, so that their alpha counts for less. A class without labels
    has no offset: it is scored as zero-shot does."""

    Settings = TaskResSettings
    words: Tensor
    rows: Tensor
    training_defaults = TrainSettings(
        epochs=200,
        min_steps=0,
        batch_size=256,
        optimizer="adamw",
        lr=(2e-3, 2e-4, 2e-2, 2e-1),
        warmup_epochs=1,
    )
    epochs_by_shots = ((4, 100),)

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: TaskResSettings):
        super().__init__(class_names, space, settings)
        self.offsets = nn.Parameter(torch.zeros(len(class_names), self.dim))

    def set_classes(self, texts: ClassTexts) -> None:
        self.register_buffer("words", texts.name_vectors, persistent=False)
        self.register_buffer("rows", self.rows_of(texts), persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        offsets = F.pad(self.offsets, (0, 0, 0, 1))[self.rows]  # row -1 is zero: a class without labels
        return self.logit_scale * images @ unit(self.words + self.settings.alpha * offsets).T

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        return {"cross_entropy": F.cross_entropy(self.logits(batch["images"]), batch["labels"])}
