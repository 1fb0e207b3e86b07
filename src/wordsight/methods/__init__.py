"""Method: turns image features and class texts into scores. The roles that tasks and the one loop ask for."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from wordsight.config import TrainSettings
from wordsight.sentences import ClassTexts


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """For a method that has none."""


class Classifier(nn.Module, ABC):
    """Scores classes for image features.

    What fitting decides is in `state_dict()` (parameters and persistent buffers) and goes to the run folder; what `bind` derives from words is not.
    """

    Settings: ClassVar[type] = NoSettings
    needs_sentences: ClassVar[bool] = False  # whether sentences change what it does
    needs_labels: ClassVar[bool] = True  # False for zero-shot: nothing is fitted
    training_only: ClassVar[tuple[str, ...]] = ()  # prefixes of tensors that training needs and prediction does not

    def __init__(self, class_names: tuple[str, ...], dim: int, logit_scale: float, settings: Any):
        super().__init__()
        self.class_names = class_names  # the classes that have labelled images
        self.dim, self.logit_scale, self.settings = dim, logit_scale, settings

    def begin(self, images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], texts: ClassTexts, seed: int) -> None:
        """All of fitting that needs no gradient: closed forms, targets, calibration. `texts` are those of `class_names`. Called before `bind`."""

    @abstractmethod
    def bind(self, texts: ClassTexts) -> None:
        """Choose the classes to score, by words. Classes with labelled images are known by their names; any others are new."""

    @abstractmethod
    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scores over the bound classes; softmax gives probabilities."""

    def weights(self) -> dict[str, Tensor]:
        """What a run keeps: every fitted tensor that prediction needs."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(self.training_only)}

    def says(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The unit vector in text space that sentences are compared with when an image is explained. Here: the image itself."""
        return images


class Learner(ABC):
    """What the one loop of train.py trains."""

    training_defaults: ClassVar[TrainSettings] = TrainSettings()

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named, weighted terms for a batch {images [B, D], labels [B]}; the loop adds them up."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters, each group with `lr_scale`, its multiple of the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]  # type: ignore[attr-defined]
