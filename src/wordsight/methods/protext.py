"""ProText: prompts learned from sentences alone. No image is needed, and what is learned moves to classes
without sentences.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from wordsight.config import TrainSettings
from wordsight.methods import FitData
from wordsight.methods.context import PromptLearner
from wordsight.settings import ProTextSettings


class ProText(PromptLearner):
    """The context learns to make "[context] name." mean what sentences about the class mean; on new classes
    it is used as it is.

    "Learning to Prompt with Text Only Supervision for Vision-Language Models", Khattak et al., AAAI 2025: the
    mean absolute difference between the prompted class vector and each of its sentences' vectors. Differs
    from the paper: the context stands at the input alone, where the paper has vectors of their own in nine
    layers. Where no class has sentences, the class name in the run's `template=` stands in."""

    Settings = ProTextSettings
    needs_sentences = True
    needs_labels = False
    training_defaults = TrainSettings(
        epochs=30,
        min_steps=0,
        batch_size=256,
        optimizer="adamw",
        lr=2.5e-3,
        weight_decay=0.1,
        warmup_epochs=5,
    )

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        """What is learned from are the sentences' vectors in place of images, and the classes they are of."""
        texts = data.texts
        groups = (
            texts.sentence_vectors
            if any(map(len, texts.sentence_vectors))
            else texts.name_vectors[:, None].unbind()
        )
        owners = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups]))
        return torch.cat(tuple(groups)).cpu()[:, None], owners

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        vectors = self.class_weights()[batch["labels"]]
        distance = F.l1_loss if self.settings.distance == "l1" else F.mse_loss
        return {"mapping": self.settings.weight * distance(vectors, batch["images"].to(vectors))}
