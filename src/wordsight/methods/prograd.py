"""ProGrad: CoOp that takes no step against what zero-shot knows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from wordsight.config import TrainSettings
from wordsight.methods import FitData
from wordsight.methods.context import STD, PromptLearner
from wordsight.settings import ProGradSettings


class ProGrad(PromptLearner):
    """CoOp whose gradient loses what would move predictions away from zero-shot's: where the two gradients
    disagree, it is projected.

    "Prompt-aligned Gradient for Prompt Tuning", Zhu et al., ICCV 2023: with g the gradient of the cross
    entropy and k that of KL(zero-shot || prompted), the step is g where g . k >= 0, and g - strength (g . k)
    / |k|^2 k where not. As in the paper; zero-shot is the run's `template=`, at whose words the context
    starts, as the authors' does at the dataset's (`template=own`)."""

    Settings = ProGradSettings
    training_defaults = TrainSettings(
        epochs=100, min_steps=0, batch_size=32, optimizer="sgd", lr=2e-3, weight_decay=5e-4, warmup_epochs=1
    )

    def start(self) -> Float[Tensor, "n W"]:
        words = super().start()  # as many random ones as `ctx` where no words are given
        return torch.cat([STD * torch.randn(max(0, self.settings.ctx - len(words)), words.shape[1]), words])

    @torch.no_grad()
    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        self.template = data.texts.name_vectors
        words = self.splice.words(words_before(data.texts.template))[-self.settings.ctx :]
        if self.settings.init is None and len(words):
            self.context[-len(words) :] = words.to(self.context)
        return super().setup(data)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The cross entropy, whose gradient is the projected one: the loop need not know of two."""
        cross_entropy, knowledge = self.two_losses(batch)
        general = torch.autograd.grad(knowledge, self.context, retain_graph=True)[0]
        step = project(torch.autograd.grad(cross_entropy, self.context)[0], general, self.settings.strength)
        return {
            "cross_entropy": cross_entropy.detach() + ((self.context - self.context.detach()) * step).sum()
        }

    def two_losses(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross entropy with the labels, and KL from zero-shot's predictions."""
        images, vectors, heat = batch["images"], self.class_weights(), self.settings.temperature
        logits, known = (
            self.logit_scale * images @ weights.T for weights in (vectors, self.template.to(vectors))
        )
        kl = F.kl_div(
            (logits / heat).log_softmax(1),
            (known / heat).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        return F.cross_entropy(logits, batch["labels"]), kl * heat**2


def words_before(template: str) -> str:
    """A template's words as they stand before a name, what follows it first: `a type of pet, a`."""
    before, _, after = template.partition("{}")
    return ", ".join(filter(None, (part.strip(" ,.") for part in (after, before))))


def project(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """`gradient` without the part that goes against `general`, where it does."""
    against, length = (gradient * general).sum(), general.square().sum()
    if against >= 0 or length == 0:
        return gradient
    return gradient - strength * against / length * general
