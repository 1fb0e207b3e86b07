"""Tip-Adapter: the labelled images themselves are the classifier's memory. Training-free, or with the
memory's keys trained (F).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wordsight.backbones import Backbone
from wordsight.config import TrainSettings
from wordsight.methods import Classifier, FitData, Labelled, Learner, Space
from wordsight.sentences import ClassTexts
from wordsight.settings import TipAdapterSettings

STEPS = (20, 200)  # of alpha and beta, on the authors' grid


class TipAdapter(Classifier):
    """Labelled images vote for their class, the more the closer they are, and the votes are added to the
    zero-shot scores; nothing is trained.

    "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", Zhang et al., ECCV 2022: scores
    = scale x W + alpha exp(-beta (1 - x F)) L, F the images' vectors and L their labels one-hot. As in the
    paper, alpha and beta are searched on validation images (the authors' grid of 20 by 200 from 0.1, here as
    wide as they have it on DTD, on all sets alike); among equal accuracies the likelihood decides. Without
    validation images they stay as set: the paper's 1 and 5.5. Differs from the paper: a key is the vector
    of the centre crop, not the mean of ten augmented views. A class without labels gets no votes: zero-shot
    scores it."""

    Settings = TipAdapterSettings
    alpha: Tensor
    beta: Tensor
    owners: Tensor
    keys: Tensor
    words: Tensor
    columns: Tensor
    needs_val = True

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: TipAdapterSettings):
        super().__init__(class_names, space, settings)
        self.register_buffer("alpha", torch.tensor(settings.alpha))
        self.register_buffer("beta", torch.tensor(settings.beta))
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))
        self.remember(torch.empty(0, self.dim))

    def remember(self, keys: Float[Tensor, "n D"]) -> None:
        self.register_buffer("keys", keys)

    def load_weights(self, found: Mapping[str, Tensor]) -> None:
        """The memory takes the size of the saved one."""
        keys, owners = found.get("keys"), found.get("owners")
        if keys is not None and keys.shape == (len(keys), self.dim):
            self.remember(torch.empty_like(keys))
        if owners is not None and owners.ndim == 1:
            self.owners = torch.empty_like(owners)
        super().load_weights(found)

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        self.remember(data.centre.clone())
        self.owners = data.labels.clone()
        self.set_classes(data.texts)
        if data.val is not None:
            self.search(data.val)
        return super().setup(data)

    def set_classes(self, texts: ClassTexts) -> None:
        place = {name: column for column, name in enumerate(texts.names)}
        columns = [
            place.get(name, len(place)) for name in self.class_names
        ]  # the last column, which is cut off, holds votes nobody asked for
        self.register_buffer("words", texts.name_vectors, persistent=False)
        self.register_buffer(
            "columns", torch.tensor(columns, device=self.owners.device)[self.owners], persistent=False
        )

    def votes(self, affinity: Float[Tensor, "B n"], beta: Tensor | float) -> Float[Tensor, "B C"]:
        weights = torch.exp(beta * (affinity - 1))
        return weights.new_zeros(len(weights), len(self.words) + 1).index_add(1, self.columns, weights)[
            :, :-1
        ]

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self.logit_scale * images @ self.words.T + self.alpha * self.votes(
            images @ self.keys.T, self.beta
        )

    def plain(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Votes as a product: a graph cannot add up columns by their numbers."""
        weights = torch.exp(self.beta * (F.linear(images, self.keys) - 1))
        owned = F.one_hot(self.columns, len(self.words) + 1)[:, :-1].to(weights)
        return self.logit_scale * F.linear(images, self.words) + self.alpha * weights @ owned

    @torch.no_grad()
    def search(self, val: Labelled) -> None:
        """alpha and beta of the best accuracy on validation images."""
        images, labels = val.images.to(self.keys), val.labels.to(self.owners)
        affinity, words = images @ self.keys.T, self.logit_scale * images @ self.words.to(images).T
        best = (-1.0, 0.0, 0.0, 0.0)
        widest = self.settings.alpha_max, self.settings.beta_max
        alphas, betas = (torch.arange(n) * (most - 0.1) / n + 0.1 for n, most in zip(STEPS, widest))
        for beta in betas.tolist():
            scores = words + alphas.to(words)[:, None, None] * self.votes(affinity, beta)  # [20, m, C]
            right = (scores.argmax(2) == labels).float().mean(1)
            likely = -F.cross_entropy(
                scores.transpose(1, 2), labels.expand(len(alphas), -1), reduction="none"
            ).mean(1)
            best = max(best, *zip(right.tolist(), likely.tolist(), alphas.tolist(), [beta] * len(alphas)))
        self.alpha.fill_(best[2])
        self.beta.fill_(best[3])


class TipAdapterF(TipAdapter, Learner):
    """Tip-Adapter whose remembered vectors are trained, starting as the images' own.

    Zhang et al. 2022. AdamW's eps of 1e-4 and the cosine by step are the authors'. Differs from the paper:
    the epoch whose keys are kept is chosen on validation images, or is the last where there are none;
    the authors' code takes the epoch that is best on the test images. alpha and beta are searched on
    validation images after training."""

    training_only = ("best_", "seen")
    best_keys: Tensor
    best_accuracy: Tensor
    seen: Tensor
    training_defaults = TrainSettings(
        epochs=20,
        min_steps=0,
        batch_size=256,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        eps=1e-4,
        schedule="step",
    )

    def remember(self, keys: Float[Tensor, "n D"]) -> None:
        self.keys = nn.Parameter(keys)

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        super().setup(data._replace(val=None))  # alpha and beta stay as set while the keys are trained
        self.val = data.val
        if data.val is not None:  # in the state of the fit, so that a resumed one ends the same
            self.register_buffer("best_keys", data.centre.clone())
            self.register_buffer("best_accuracy", torch.tensor(-1.0))
            self.register_buffer("seen", torch.tensor(0))
        return data.images, data.labels

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        if self.val is not None:
            self.seen += len(batch["images"])
            if self.seen > len(self.keys):  # an epoch has passed
                self.seen.fill_(len(batch["images"]))
                self.compare()
        return {"cross_entropy": F.cross_entropy(self.logits(batch["images"]), batch["labels"])}

    @torch.no_grad()
    def compare(self) -> None:
        """Keep the keys if none did better on the validation images."""
        assert self.val is not None  # as both callers have checked
        accuracy = (
            (self.logits(self.val.images.to(self.keys)).argmax(1) == self.val.labels.to(self.owners))
            .float()
            .mean()
        )
        if accuracy > self.best_accuracy:
            self.best_accuracy.copy_(accuracy)
            self.best_keys.copy_(self.keys)

    def finish(self) -> None:
        if self.val is not None:
            self.compare()
            self.keys.data.copy_(self.best_keys)
            self.search(self.val)
