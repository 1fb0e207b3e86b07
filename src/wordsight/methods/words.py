"""Words: which class vectors, which centre of the images and which scale a method is given.

One layer before every method that scores by class vectors, so that methods are compared at equal words.
Shapes: n labelled images, C classes, D shared width."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.sentences import ClassTexts

IMAGES = 2_000  # more than this many labelled images cannot move three numbers
SHARES = torch.linspace(0, 1, 5)  # of the sentences in a class vector, and of the centre in an image's
RATIOS = torch.tensor([0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0])  # of the scale to the backbone's
SPREAD = 0.5  # standard deviation of the logarithm of that ratio, beforehand


class Words(nn.Module):
    """`names`: the class name's vector. `sentences`: the unit mean of the class's sentences. `calibrated`: a
    mix of the two, with images moved towards their common centre, and a scale, all three by likelihood on the
    labelled images (`calibrate`)."""

    mix: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, kind: str, dim: int, logit_scale: float):
        super().__init__()
        self.kind = kind
        if kind == "calibrated":
            self.register_buffer("mix", torch.zeros(()))  # share of the sentences
            self.register_buffer("centre", torch.zeros(dim))  # what is taken off every image
            self.register_buffer("scale", torch.tensor(float(logit_scale)))

    def fit(self, images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], texts: ClassTexts) -> None:
        """Errors: WordsightError where there is no labelled image, or a vector is not finite."""
        if self.kind == "calibrated":
            mix, centre, scale = calibrate(images, labels, texts, float(self.scale))
            self.mix.fill_(mix)
            self.centre.copy_(centre)
            self.scale.fill_(scale)

    def images(self, images: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return unit(images - self.centre) if self.kind == "calibrated" else images

    def texts(self, texts: ClassTexts) -> ClassTexts:
        if self.kind == "names":
            return texts
        means = texts.means()
        if self.kind == "sentences":
            return replace(texts, name_vectors=means)
        mix = self.mix.to(means)
        return replace(texts, name_vectors=unit((1 - mix) * texts.name_vectors + mix * means))


def calibrate(
    images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], texts: ClassTexts, logit_scale: float
) -> tuple[float, Float[Tensor, " D"], float]:
    """How much sentences weigh beside the name, how far images move to their common centre, and the scale.

    Zero-shot classification of the labelled images is scored on a grid, and what is returned is the mean over
    a posterior. Nothing is trained, so the labelled images are as good as unseen ones; but words are judged
    class by class, so a class counts as two observations however many images it has. The prior exp(-2 mix)
    leans to the name, and the scale's to the backbone's own: with few classes little moves, with many the
    likelihood decides. Ours; neither paper has it. Returns (mix, centre [D], scale).

    Errors: as `Words.fit`."""
    if not len(images):
        raise WordsightError(
            "words=calibrated is chosen by labelled images, and there are none; give words=names or "
            "words=sentences, or label some images"
        )
    if not (images.isfinite().all() and texts.name_vectors.isfinite().all()):
        raise WordsightError("image or text vectors are not finite; look at the features")
    if len(images) > IMAGES:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]
        images, labels = images[chosen], labels[chosen]
    middle = images.sum(0) / (len(images) + 10)  # ten images' worth of doubt: the mean of a few is no centre
    means, weight = texts.means(), 2 * len(texts.names)
    doubt = RATIOS.log().square() / (2 * SPREAD**2 * weight)
    fit, warmth = torch.empty(5, 5), torch.empty(5, 5)  # under the best scale, and that scale's logarithm
    for i, mix in enumerate(SHARES):
        words = unit((1 - mix) * texts.name_vectors + mix * means)
        for j, shift in enumerate(SHARES):
            cosines = unit(images - shift * middle) @ words.T
            likely = [-F.cross_entropy(ratio * logit_scale * cosines, labels) for ratio in RATIOS]
            fit[i, j], best = (torch.stack(likely).float().cpu() - doubt).max(0)
            warmth[i, j] = (RATIOS[best] * logit_scale).log()
    posterior = (weight * fit - 2 * SHARES[:, None]).flatten().softmax(0).view_as(fit)
    mix, shift = (posterior.sum(1) @ SHARES).item(), (posterior.sum(0) @ SHARES).item()
    return mix, shift * middle, (posterior * warmth).sum().exp().item()
