"""Rules of the field's protocol that no single module holds. docs/protocol.md names the test of every
rule.
"""

import pytest
import torch
from torch import nn

from wordsight.batches import FeatureBatches
from wordsight.config import TrainSettings
from wordsight.methods import Learner
from wordsight.metrics import harmonic_mean
from wordsight.train import learning_rate, train

# zero-shot CLIP ViT-B/16, base and new, ImageNet to UCF101 (protocol 3.2)
BASE = (72.43, 96.84, 91.17, 63.37, 72.08, 90.10, 27.19, 69.36, 53.24, 56.48, 70.53)
NEW = (68.14, 94.00, 97.26, 74.89, 77.80, 91.22, 36.29, 75.35, 59.90, 64.05, 77.50)


def test_h_over_datasets_is_that_of_the_means():
    base, new = sum(BASE) / 11, sum(NEW) / 11
    assert (round(base, 2), round(new, 2), round(harmonic_mean(base, new), 2)) == (
        69.34,
        74.22,
        71.70,
    )  # as the field prints it
    assert round(sum(map(harmonic_mean, BASE, NEW)) / 11, 2) == 71.59  # the mean of H, which it is not


class Worse(Learner):
    """Its loss rises with every step: the first step would be chosen, were any."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def loss(self, batch):
        value = self.weight - 2 * self.weight.detach()  # minus the weight, with the gradient of plus
        self.seen.append(value.item())
        return {"rising": value}


def test_the_last_step_is_the_model():
    settings = TrainSettings(
        epochs=6, min_steps=0, batch_size=4, optimizer="sgd", lr=0.002, momentum=0.0, warmup_epochs=1
    )
    batches = FeatureBatches(torch.zeros(8, 1, 3), torch.zeros(8, dtype=torch.long), settings.batch_size, 1)
    learner = train(Worse(), batches, settings, seed=1)
    total = settings.epochs * len(batches)
    assert learner.seen == sorted(set(learner.seen)) and len(learner.seen) == total == 12
    assert learner.weight.item() == pytest.approx(
        -sum(learning_rate(settings, step, len(batches), total) for step in range(total)), rel=1e-5
    )
