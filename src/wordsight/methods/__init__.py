"""Method: turns image features and class texts into scores. The roles that tasks and the one loop ask for."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wordsight.backbones import Backbone
from wordsight.config import TrainSettings
from wordsight.sentences import ClassTexts


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """For a method that has none."""


class Labelled(NamedTuple):
    """Image features with their labels."""

    images: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]


class Classifier(nn.Module, ABC):
    """Scores classes for image features.

    What fitting decides is in `state_dict()` (parameters and persistent buffers) and goes to the run folder;
    what `bind` derives from words is not."""

    Settings: ClassVar[type] = NoSettings
    needs_sentences: ClassVar[bool] = False  # whether sentences change what it does
    needs_labels: ClassVar[bool] = True  # False for zero-shot: no labelled image changes what it does
    needs_tower: ClassVar[bool] = (
        False  # whether it learns the tokens of a text tower, and so must be attached to one
    )
    needs_val: ClassVar[bool] = False  # whether it chooses by validation images, where the data has some
    training_only: ClassVar[
        tuple[str, ...]
    ] = ()  # prefixes of tensors that training needs and prediction does not

    def __init__(self, class_names: tuple[str, ...], dim: int, logit_scale: float, settings: Any):
        super().__init__()
        self.class_names = class_names  # the classes that have labelled images
        self.dim, self.logit_scale, self.settings = dim, logit_scale, settings

    def attach(self, backbone: Backbone | None) -> None:
        """The backbone that images and texts come from, given before `begin` and `bind` to every method; most
        see its vectors alone and ignore it.
        """

    def begin(
        self,
        images: Float[Tensor, "n D"],
        labels: Int[Tensor, " n"],
        texts: ClassTexts,
        seed: int,
        val: Labelled | None = None,
    ) -> None:
        """All of fitting that needs no gradient: closed forms, targets, calibration. `texts` are those of
        `class_names`. Called before `bind`.

        `val` are validation images, given where a method `needs_val` and the data has them. Test images are
        never seen here."""

    @abstractmethod
    def bind(self, texts: ClassTexts) -> None:
        """Choose the classes to score, by words. Classes with labelled images are known by their names; any
        others are new.
        """

    @abstractmethod
    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scores over the bound classes; softmax gives probabilities."""

    def weights(self) -> dict[str, Tensor]:
        """What a run keeps: every fitted tensor that prediction needs."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(self.training_only)
        }

    def make_room(self, found: Mapping[str, Tensor]) -> None:
        """Called before saved weights are read: a tensor whose size fitting decides takes the size of the
        saved one here, if that is possible.
        """

    def rows_of(self, texts: ClassTexts) -> Int[Tensor, " C"]:
        """Which of `class_names` each class is; -1 for a class without labelled images."""
        place = {name: row for row, name in enumerate(self.class_names)}
        return torch.tensor([place.get(name, -1) for name in texts.names])

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The unit vector in text space that sentences are compared with when an image is explained. Here:
        the image itself.
        """
        return images


class Embedder(nn.Module):
    """Gives images and texts vectors in one space. Learned from image-text pairs (tasks/retrieve.py); what
    comes out is a backbone.
    """

    Settings: ClassVar[type] = NoSettings
    needs_labels: ClassVar[bool] = False  # captions are enough


class Learner(ABC):
    """What the one loop of train.py trains."""

    training_defaults: ClassVar[TrainSettings] = TrainSettings()

    epochs_by_shots: ClassVar[
        tuple[tuple[int, int], ...]
    ] = ()  # ((1, 50), (4, 100)): up to 1 shot 50 epochs, up to 4 shots 100, above the default

    @classmethod
    def training(cls, shots: int | None) -> TrainSettings:
        """How it trains on so many labelled images a class, where nothing else is asked for."""
        fewer = [epochs for most, epochs in cls.epochs_by_shots if shots is not None and shots <= most]
        return dataclasses.replace(cls.training_defaults, epochs=fewer[0]) if fewer else cls.training_defaults

    def examples(
        self, images: Float[Tensor, "n V D"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        """What the loop draws batches of: the labelled images, unless a method learns from something else."""
        return images, labels

    def end(self) -> None:  # noqa: B027, most have nothing to do here
        """What is decided after the loop. Called before the method is bound for prediction."""

    @property
    def condition(self) -> str:
        """In words, what may have gone wrong where training gets worse, such as a learned scale; empty:
        nothing that shows.
        """
        return ""

    @property
    def at_bound(self) -> bool:
        """Whether something learned stands at its bound, so that a rising loss means that it has run away."""
        return False

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named, weighted terms for a batch {images [B, D], labels [B]}; the loop adds them up."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters, each group with `lr_scale`, its multiple of the learning rate."""
        # type: ignore[attr-defined]
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]
