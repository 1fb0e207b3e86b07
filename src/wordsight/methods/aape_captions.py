"""AAPE on captions: h(x), what people would say of an image, learned from images and their captions, as the
query of retrieval.

"Aggregate-and-Adapt Natural Language Prompts for Downstream Generalization of CLIP", Huang et al., NeurIPS
2024 (arXiv 2410.23698), section 5. Shapes: n images, N captions, D shared width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import unit
from wordsight.config import RunSettings, TrainSettings, WordsightError
from wordsight.methods import Embedder
from wordsight.methods.evidence import Affine, Spectrum, ridge
from wordsight.settings import CaptionSettings

ROWS = 2**16  # captions that are in float64 at once

PENALTIES = (0.03, 0.1, 0.3, 1.0)  # of the ridge map, in units of the mean squared singular value
CONTRASTS = (0.0, 0.3, 1.0, 3.0, 10.0)  # the contrastive loss beside the distillation loss


class AAPECaptions(Embedder):
    """Images are known by h(x), the vector of what their captions say; texts by the text tower, as before.

    AAPE, section 5: h is learned from images and their captions with the distillation loss (eq. 2) to the
    captions' aggregate and with CLIP's contrastive loss. Differs from the paper: by default h is linear and
    begins where both losses are solved (`solve`), from where the contrastive loss alone is trained; `paper`
    is the paper's form."""

    Settings: ClassVar[type] = CaptionSettings
    fits: ClassVar[str] = "wordsight.fit_prompted:fit_prompted"
    tuning: ClassVar[TrainSettings] = TrainSettings(epochs=20, batch_size=512, lr=1e-3, schedule="step")
    paper_training: ClassVar[TrainSettings] = TrainSettings(
        epochs=40, batch_size=256, lr=1e-3, schedule="step"
    )

    @classmethod
    def training(cls, shots: int | None, own: Any = None) -> TrainSettings | None:
        form = "tuned" if own is None else own.form
        return {"solved": None, "tuned": cls.tuning, "paper": cls.paper_training}[form]

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        super().check(settings)
        if settings.unlabelled is not None:
            raise WordsightError(
                f"unlabelled={settings.unlabelled} is for classes, but method=aape_captions learns from "
                f"pairs; leave it out"
            )


@dataclass(frozen=True)
class Captioned:
    """Images, distinct captions, and which of them each image has."""

    images: Float[Tensor, "n D"]
    texts: Float[Tensor, "N D"]
    rows: Sequence[Sequence[int]]

    @property
    def of_images(self) -> list[Float[Tensor, "_ D"]]:
        """The vectors of each image's captions."""
        return [self.texts[list(own)] for own in self.rows]

    def take(self, chosen: Sequence[int]) -> Captioned:
        """Some of the images, with their captions and no others."""
        used = sorted({row for image in chosen for row in self.rows[image]})
        place = {row: new for new, row in enumerate(used)}
        rows = [[place[row] for row in self.rows[image]] for image in chosen]
        return Captioned(self.images[list(chosen)], self.texts[used], rows)


class Equations:
    """What decides the linear h that makes both losses least, the contrastive one to second order; taken
    apart once, so that every penalty and contrast is cheap.

    Distillation: |h - p|^2, p the mean of an image's captions. Contrast: against captions t of mean m and
    covariance C, log mean exp(h.t) is h.m + h.C h / 2 to second order, so that the loss is that less h.p. The
    sum is least at h = (I + contrast C')^-1 (p - m), up to length, with C' of mean eigenvalue 1: where
    captions differ anyway, h says less, and what seldom varies counts more. p is found by a ridge map.
    Ours."""

    def __init__(self, known: Captioned):
        self.images, self.spectrum = known.images, Spectrum.of(known.images)
        means = unit(torch.stack([own.mean(0) for own in known.of_images]))
        self.targets = means - means.mean(0)
        covariance = _covariance(known)
        self.covariance = covariance / covariance.diagonal().mean().clamp_min(1e-12)

    def solve(self, penalty: float, contrast: float) -> Affine:
        h = ridge(self.spectrum, self.targets, penalty)
        inverse = torch.linalg.inv(torch.eye(len(self.covariance)).double() + contrast * self.covariance)
        turned = Affine(h.map @ inverse.to(h.map), h.bias @ inverse.to(h.bias))
        length = turned(self.images).norm(dim=1).mean().clamp_min(1e-12)
        return Affine(turned.map / length, turned.bias / length)


def _covariance(known: Captioned) -> Float[Tensor, "D D"]:
    """Of all images' captions, in float64, some at a time: there may be hundreds of thousands."""
    said = torch.tensor([row for own in known.rows for row in own])
    often = torch.bincount(said, minlength=len(known.texts)).double()
    mean = sum(w @ some.double() for some, w in zip(known.texts.split(ROWS), often.split(ROWS))) / often.sum()
    total = torch.zeros(len(mean), len(mean)).double()
    for some, weights in zip(known.texts.split(ROWS), often.split(ROWS)):
        off = some.double() - mean
        total += (off * weights[:, None]).T @ off
    return total / often.sum()
