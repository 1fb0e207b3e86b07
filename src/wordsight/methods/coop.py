"""CoOp: the words around the class name are learned vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from wordsight.config import TrainSettings, WordsightError
from wordsight.methods.context import PromptLearner
from wordsight.sentences import ClassTexts
from wordsight.settings import CoOpSettings


class CoOp(PromptLearner):
    """In place of "a photo of a", vectors that are trained on labelled images through the frozen text tower:
    t_c = text([v_1 ... v_n, name, .]).

    "Learning to Prompt for Vision-Language Models", Zhou et al., IJCV 2022. As in the paper: shared (unified)
    or per-class context, the name at the end, in the middle or in front, random or from words. Differs from
    the paper: images are centre crops unless `views` says otherwise."""

    Settings = CoOpSettings
    training_defaults = TrainSettings(
        epochs=200, min_steps=0, batch_size=32, optimizer="sgd", lr=2e-3, weight_decay=5e-4, warmup_epochs=1
    )
    epochs_by_shots = ((1, 50), (4, 100))

    def start(self) -> Float[Tensor, "*C n W"]:
        if not self.settings.per_class:
            return super().start()
        return torch.stack([super(CoOp, self).start() for _ in self.class_names])

    @torch.no_grad()
    def set_classes(self, texts: ClassTexts) -> None:
        if not self.settings.per_class:
            return super().set_classes(texts)
        rows, prompts = self.rows_of(texts), self.prompts_of(texts.names)
        unknown = [name for name, row in zip(texts.names, rows.tolist()) if row < 0]
        if unknown:
            raise WordsightError(
                f"coop with settings.per_class=true has seen no images of {', '.join(unknown[:10])}; it "
                f"scores only {', '.join(self.class_names[:10])}"
            )
        self.register_buffer(
            "class_vectors",
            self.splice.encode(prompts, self.context[rows.to(self.context.device)]),
            persistent=False,
        )

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        return {
            "cross_entropy": F.cross_entropy(
                self.logit_scale * batch["images"] @ self.class_weights().T, batch["labels"]
            )
        }
