"""Pool: a layer over any classifier that learns from images without labels, and predicts others afterwards.

Shapes: N images of the pool, n labelled ones, C classes, D shared width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import WordsightError

ROUNDS = 12
AT_ONCE = 8192  # images of the pool that are assigned together
# measured on training and validation images of five sets, and the same for all (benchmarks/pool)
SHRINK = 10.0  # images' worth of doubt that a class's mean differs from the pool's
SPHERE = 0.7  # share of the covariance that is the same in all directions
FIT_SHARE = 0.35  # of the images' densities beside the classifier's scores, where the pool is assigned
SHARE = 0.22  # the same where new images are scored
ENOUGH = 8.0  # labelled images of every class, by which that share is halved
FEW = 10.0  # images a class, on the mean, at which the pool counts half
TAUGHT_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0)  # among which a teacher decides
LEAST = 1e-6  # variance, where all images are the same or there is one
SHARPNESS = (0.25, 0.5, 1.0)  # of the scores that are compared with a teacher's
EVEN = 3.0  # of the pool's size: images' worth of doubt that classes are not equally frequent


class Gaussians(NamedTuple):
    """Log-densities of classes against that of the pool's mean: images @ maps + bias."""

    maps: Float[Tensor, "D C"]
    bias: Float[Tensor, " C"]

    @property
    def strength(self) -> Float[Tensor, " C"]:
        """What an image of each class is expected to score for it: half its squared distance from the
        pool's mean."""
        return -self.bias


class PoolLayer(nn.Module):
    """Classes are Gaussians of one covariance over image vectors, fitted to the pool by EM whose assignments
    follow the classifier's scores; a new image's score is the classifier's plus SHARE of its log-density,
    which is linear in the image. Labelled images are assigned to their classes.

    Ours. Kin: TransCLIP (arXiv 2406.01837), which has one diagonal covariance and pulls neighbours together;
    here means are shrunk, so that a class of few images is left to the words, and so are all classes where
    the pool has few images a class; class frequencies are learned and not carried to prediction; a class of
    which the pool shows little is credited what images of a usual class score for theirs, or else its images
    went to the classes that the pool shows; and no image of the pool is kept. Time and memory grow as
    N C + N D: no N x N matrix."""

    centre: Tensor
    maps: Tensor
    bias: Tensor
    counts: Tensor  # labelled images of each class

    def __init__(self, names: Sequence[str], dim: int):
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("maps", torch.zeros(dim, len(self.names)))
        self.register_buffer("bias", torch.zeros(len(self.names)))
        self.register_buffer("counts", torch.zeros(len(self.names)))
        self.rows: Tensor | None = None

    def fit(
        self,
        images: Float[Tensor, "N D"],
        scores: Float[Tensor, "N C"],
        labelled: Float[Tensor, "n D"],
        labels: Int[Tensor, " n"],
        taught: Float[Tensor, "N C"] | None = None,
    ) -> None:
        """`scores` are the classifier's over `names`, `taught` a teacher's, which then lead the assignments
        and decide the share. Errors: WordsightError for vectors that are not finite."""
        if not (images.isfinite().all() and scores.isfinite().all()):
            raise WordsightError("unlabelled: image vectors or scores are not finite; look at the features")
        fixed = F.one_hot(labels, len(self.names)).to(images)
        if taught is None:
            weight = 1 / (1 + (FEW * len(self.names) / (len(images) + len(labelled))) ** 3)
            self.counts.copy_(fixed.sum(0))
        else:
            weight = taught_share(images, scores, labelled, fixed, taught) / SHARE
        centre, found = learned(images, scores if taught is None else taught, labelled, fixed)
        self.centre.copy_(centre)
        self.maps.copy_(weight * found.maps)
        self.bias.copy_(weight * found.bias)

    def choose(self, names: Sequence[str]) -> None:
        """Which of its classes are scored; where one is unknown to it, the classifier alone decides."""
        place = {name: row for row, name in enumerate(self.names)}
        known = [place[name] for name in names if name in place]
        self.rows = torch.tensor(known) if len(known) == len(names) else None

    def add(self, scores: Float[Tensor, "B C"], images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """The classifier's scores with what the pool says."""
        if self.rows is None:
            return scores
        rows = self.rows.to(self.bias.device)
        centred = unit(images - self.centre)
        share = SHARE / (1 + float(self.counts[rows].min()) / ENOUGH)
        return scores + share * torch.addmm(self.bias[rows], centred, self.maps[:, rows])


def learned(
    images: Float[Tensor, "N D"],
    scores: Float[Tensor, "N C"],
    labelled: Float[Tensor, "n D"],
    fixed: Float[Tensor, "n C"],
) -> tuple[Float[Tensor, " D"], Gaussians]:
    """The pool's mean, and densities of unit(image - mean), with the credit of classes it hardly shows."""
    centre = images.mean(0)
    X, own = unit(images - centre), unit(labelled - centre)
    middle = (X.sum(0) + own.sum(0)) / (len(X) + len(own))
    found, weight = expectation(X - middle, scores, own - middle, fixed)
    usual = (weight * found.strength).sum() / weight.sum()
    credit = SHRINK / (weight + SHRINK) * usual
    return centre, Gaussians(found.maps, found.bias + credit - middle @ found.maps)


def taught_share(
    images: Float[Tensor, "N D"],
    scores: Float[Tensor, "N C"],
    labelled: Float[Tensor, "n D"],
    fixed: Float[Tensor, "n C"],
    taught: Float[Tensor, "N C"],
) -> float:
    """The share by which densities learned from one half of the pool bring the classifier's scores of the
    other half nearest to the teacher's: least cross-entropy to its probabilities, at the best of a few
    temperatures, for how sure the sum is says nothing of which class it names."""
    if len(images) < 2:
        return 0.0
    density = torch.zeros_like(scores)
    half = torch.arange(len(images), device=images.device) % 2
    for rows, others in ((half == 0, half == 1), (half == 1, half == 0)):
        centre, found = learned(images[others], taught[others], labelled, fixed)
        density[rows] = torch.addmm(found.bias, unit(images[rows] - centre), found.maps)
    target = taught.softmax(1)
    losses = {
        share: min(float(F.cross_entropy(times * (scores + share * density), target)) for times in SHARPNESS)
        for share in TAUGHT_SHARES
    }
    return min(losses, key=lambda share: losses[share])


def expectation(
    X: Float[Tensor, "N D"],
    scores: Float[Tensor, "N C"],
    own: Float[Tensor, "n D"],
    fixed: Float[Tensor, "n C"],
) -> tuple[Gaussians, Float[Tensor, " C"]]:
    """EM over centred images: the classes, and how many images each has. `own` images belong to `fixed`."""
    count, classes = len(X) + len(own), scores.shape[1]
    total = X.T @ X + own.T @ own
    found = Gaussians(X.new_zeros(X.shape[1], classes), X.new_zeros(classes))
    weight, frequency = X.new_zeros(classes), X.new_zeros(classes)
    for _ in range(ROUNDS):
        weight, sums = fixed.sum(0), fixed.T @ own
        for some, given in zip(X.split(AT_ONCE), scores.split(AT_ONCE)):
            density = torch.addmm(found.bias, some, found.maps)
            chances = (given + FIT_SHARE * density + frequency).softmax(1)
            weight = weight + chances.sum(0)
            sums = sums.addmm(chances.T, some)
        found = maximisation(total, sums, weight, count)
        frequency = ((weight + EVEN * count / classes) / (count * (1 + EVEN))).log()
    return found, weight


def maximisation(
    total: Float[Tensor, "D D"], sums: Float[Tensor, "C D"], weight: Float[Tensor, " C"], count: int
) -> Gaussians:
    """Shrunk means and a covariance that is partly the same in all directions."""
    means = sums / (weight + SHRINK)[:, None]
    covariance = (total - (means * weight[:, None]).T @ means) / count
    covariance = (covariance + covariance.T) / 2
    same = covariance.diagonal().mean().clamp_min(LEAST) * torch.eye(len(covariance)).to(covariance)
    maps = torch.linalg.solve((1 - SPHERE) * covariance + SPHERE * same, means.T)
    return Gaussians(maps, -(means * maps.T).sum(1) / 2)
