"""KgCoOp: CoOp that stays near the words it started from."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from wordsight import losses
from wordsight.config import TrainSettings
from wordsight.methods import FitData
from wordsight.methods.context import PromptLearner
from wordsight.settings import KgCoOpSettings


class KgCoOp(PromptLearner):
    """CoOp with a pull: learned class vectors must stay close to those of the hand-written template, so that
    new classes are not forgotten.

    "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", Yao et al., CVPR 2023: cross
    entropy + weight * mean_c (1 - cos(t_c, template's t_c)). As in the authors' code; the paper squares the
    distance of the unit vectors, which is twice this. The template is the run's `template=`. Differs: the
    rate is the best of three on validation images, the authors' first."""

    Settings = KgCoOpSettings
    pulls = ("knowledge",)
    training_defaults = TrainSettings(
        epochs=100,
        min_steps=0,
        batch_size=128,
        optimizer="sgd",
        lr=(2e-3, 2e-2, 2e-1),
        weight_decay=5e-4,
        warmup_epochs=1,
    )

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        self.template = data.texts.name_vectors
        return super().setup(data)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        vectors = self.class_weights()
        kept = (vectors * self.template.to(vectors)).sum(1)
        return {
            "cross_entropy": F.cross_entropy(self.logit_scale * batch["images"] @ vectors.T, batch["labels"]),
            "knowledge": self.settings.weight * losses.pull(kept),
        }
