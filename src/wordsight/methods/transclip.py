"""TransCLIP: all images of a pool are classified together, from words alone.

Shapes: N images of the pool, C classes, D shared width, B images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.methods import Classifier, FitData
from wordsight.sentences import ClassTexts

ROUNDS, INNER = 10, 5  # of all parts, and of the assignments alone
NEIGHBOURS = 3
CONFIDENT = 8  # images of a class that its mean starts from
HEAT = 50.0  # by which densities are divided
AT_ONCE = 2048  # images that are compared with the pool together


class TransCLIP(Classifier):
    """Assignments z of the pool's images: a Gaussian for each class with one diagonal covariance for all, a
    pull to the assignments of near images, and one to zero-shot's probabilities; z in parallel, means and
    covariance in closed form.

    "Boosting Vision-Language Models with Transduction", Zanella, Gerin, Ben Ayed, NeurIPS 2024 (arXiv
    2406.01837). As in the authors' code without shots: z ~ y exp((-|x - mu|^2_sigma / 2 + 50/6 (W'z + Wz)) /
    50), W the similarities to the 3 nearest images. An image of the pool gets its z. Differs from the paper:
    a new image, which the paper does not have, is scored by the same formula with its own neighbours in the
    pool. Labels are not used; images are scored only among the classes that it was fitted with."""

    needs_labels = False
    needs_pool = True
    pool: Tensor
    assigned: Tensor
    means: Tensor
    variance: Tensor
    rows: Tensor

    def __init__(self, class_names: tuple[str, ...], space: Any, settings: Any):
        super().__init__(class_names, space, settings)
        self.names = tuple(class_names)
        self.register_buffer("pool", torch.empty(0, self.dim))
        self.register_buffer("assigned", torch.empty(0, 0))
        self.register_buffer("means", torch.empty(0, self.dim))
        self.register_buffer("variance", torch.ones(self.dim))
        self.register_buffer("words", torch.empty(0, self.dim))

    def give_pool(self, names: Sequence[str]) -> Self:
        self.names = tuple(names)
        return self

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        if data.pool is None:
            raise WordsightError(
                "transclip classifies images without labels, and was given none; name some: "
                "unlabelled=FOLDER, or unlabelled=test"
            )
        images, words = data.pool.images, data.pool.texts.name_vectors
        if len(images) <= max(CONFIDENT, NEIGHBOURS):
            raise WordsightError(
                f"transclip starts from {CONFIDENT} images of each class; unlabelled= has only {len(images)}"
            )
        zero_shot = (self.logit_scale * images @ words.T).softmax(1)
        z, means = zero_shot.clone(), _confident(images, zero_shot)
        variance = torch.full_like(images[0], 1 / self.dim)
        near, weights = _nearest(images)
        for turn in range(ROUNDS + 1):
            density = _density(images, means, variance)
            for _ in range(INNER):
                pull = (weights[:, :, None] * z[near]).sum(1)
                back = torch.zeros_like(z).index_add_(
                    0, near.flatten(), (weights[:, :, None] * z[:, None]).flatten(0, 1)
                )
                logits = (density + HEAT / (2 * NEIGHBOURS) * (pull + back)) / HEAT
                z = (zero_shot.clamp_min(1e-30).log() + logits).softmax(1)
            if turn < ROUNDS:
                means = unit(z.T @ images)
                weight = z.sum(0)
                spread = images.square().T @ z.sum(1) - 2 * ((z @ means) * images).sum(0)
                variance = ((spread + weight @ means.square()) / z.sum()).clamp_min(1e-12)
        self.pool, self.assigned, self.means = images.clone(), z, means
        self.variance, self.words = variance, words.clone()
        return super().setup(data)

    def load_weights(self, found: Any) -> None:
        """The pool takes the size of the saved one."""
        for name in ("pool", "assigned", "means", "words"):
            if name in found:
                setattr(self, name, torch.empty_like(found[name]))
        super().load_weights(found)

    def set_classes(self, texts: ClassTexts) -> None:
        place = {name: row for row, name in enumerate(self.names)}
        unknown = [name for name in texts.names if name not in place]
        if unknown:
            raise WordsightError(
                f"transclip has not classified the pool by {', '.join(unknown[:10])}; it scores only "
                f"{', '.join(list(place)[:10])}"
            )
        self.register_buffer("rows", torch.tensor([place[name] for name in texts.names]), persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return torch.cat([self._scores(some) for some in images.split(AT_ONCE)])[
            :, self.rows.to(images.device)
        ]

    def plain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self._scores(images)[:, self.rows.to(images.device)]

    def _scores(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        sims, near = (images @ self.pool.T).topk(NEIGHBOURS + 1, 1)
        assigned = self.assigned.clamp_min(1e-30)
        fresh = (self.logit_scale * images @ self.words.T).log_softmax(1)
        pull = (sims[:, :NEIGHBOURS, None] * assigned[near[:, :NEIGHBOURS]]).sum(1)
        density = _density(images, self.means, self.variance)
        fresh = fresh + (density + HEAT / NEIGHBOURS * pull) / HEAT
        return torch.where(sims[:, :1] > 1 - 1e-6, assigned[near[:, 0]].log(), fresh)


def _confident(images: Float[Tensor, "N D"], chances: Float[Tensor, "N C"]) -> Float[Tensor, "C D"]:
    """Each class's most likely images, weighed by how likely they are."""
    weights, rows = chances.topk(CONFIDENT, 0)
    return unit((weights[:, :, None] * images[rows]).sum(0))


def _nearest(images: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    found = [(some @ images.T).topk(NEIGHBOURS + 1, 1) for some in images.split(AT_ONCE)]
    return torch.cat([one.indices for one in found])[:, 1:], torch.cat([one.values for one in found])[:, 1:]


def _density(
    images: Float[Tensor, "B D"], means: Float[Tensor, "C D"], variance: Float[Tensor, " D"]
) -> Float[Tensor, "B C"]:
    """-|x - mu|^2 / 2 in units of the variance."""
    scaled = means / variance
    squares = images.square() @ (1 / variance)
    return images @ scaled.T - (squares[:, None] + (scaled * means).sum(1)) / 2
