"""A method of your own, outside of Wordsight: the nearest mean of labelled images, with the words beside.

    PYTHONPATH=examples wordsight fit data=photos/ method=nearest_mean:NearestMean settings.share=0.7
    PYTHONPATH=examples wordsight suite few-shot methods=aape,nearest_mean:NearestMean data=photos/

The run keeps the name, so `eval`, `predict` and `report` find it again, and so does `wordsight.load`. An
installed package may name its methods in the entry point group `wordsight.methods`, and then `method=NAME` is
enough.
"""

from dataclasses import dataclass

import torch

from wordsight.backbones import unit
from wordsight.methods import Classifier


@dataclass(frozen=True)
class NearestMeanSettings:
    share: float = 0.5  # of the labelled images in a class's vector; the rest is its name's


class NearestMean(Classifier):
    """Each class is the mean of its labelled images' vectors, mixed with its name's; a class without labelled
    images is its name alone."""

    Settings = NearestMeanSettings

    def __init__(self, class_names, space, settings):
        super().__init__(class_names, space, settings)
        self.register_buffer("means", torch.zeros(len(class_names), self.dim))  # [C, D], kept in the run

    def setup(self, data):
        """Once, with the labelled images: `data.centre` [n, D] unit vectors, `data.labels` [n]."""
        sums = torch.zeros_like(self.means).index_add_(0, data.labels, data.centre)
        self.means.copy_(unit(sums))
        return super().setup(data)

    def set_classes(self, texts):
        """Which classes are scored, by name; `rows_of` says -1 for one without labelled images."""
        rows = self.rows_of(texts)
        share = self.settings.share * (rows >= 0)[:, None]
        mixed = (1 - share) * texts.name_vectors + share * self.means[rows]
        self.register_buffer("class_vectors", unit(mixed), persistent=False)

    def logits(self, images):
        """[B, D] to [B, C]; softmax gives probabilities."""
        return self.logit_scale * images @ self.class_vectors.T
