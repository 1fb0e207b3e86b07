"""CLIP-Adapter: a small network bends the image vector; the class vectors stay the words'."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import Backbone, unit
from wordsight.config import TrainSettings
from wordsight.methods import Learner, Space
from wordsight.methods.zero_shot import ZeroShot
from wordsight.settings import CLIPAdapterSettings


class CLIPAdapter(ZeroShot, Learner):
    """The image vector is mixed with what a two-layer bottleneck makes of it: f' = ratio relu(W2 relu(W1 f))
    + (1 - ratio) f, then zero-shot.

    "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", Gao et al., IJCV 2023, the image
    adapter alone, as in the authors' code. Differs from the paper: f is a unit vector here. Adam and CoOp's
    epochs by shots are a guess; the rate is the best of four on validation images, the authors' first. The
    adapter knows no classes, so it acts on new ones too."""

    Settings = CLIPAdapterSettings
    needs_labels = True
    training_defaults = TrainSettings(
        epochs=200, min_steps=0, batch_size=32, optimizer="adamw", lr=(1e-5, 1e-4, 1e-3, 1e-2)
    )
    epochs_by_shots = ((1, 50), (4, 100))

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: CLIPAdapterSettings):
        super().__init__(class_names, space, settings)
        dim, width = self.dim, max(1, self.dim // settings.reduction)
        self.adapter = nn.Sequential(
            nn.Linear(dim, width, bias=False), nn.ReLU(), nn.Linear(width, dim, bias=False), nn.ReLU()
        )

    def prompt(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(self.settings.ratio * self.adapter(images) + (1 - self.settings.ratio) * images)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return super().logits(self.prompt(images))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        return {"cross_entropy": F.cross_entropy(self.logits(batch["images"]), batch["labels"])}
