"""Losses: closed forms."""

import pytest
import torch

from wordsight import losses


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_embedding_distillation_is_the_squared_distance_and_its_target_is_constant():
    said, target = rows([3.0, 4.0], [0.0, 1.0]).requires_grad_(), rows([0.0, 0.0], [0.0, 1.0]).requires_grad_()
    loss = losses.embedding_distillation(said, target)
    assert loss.item() == 25 / 2
    loss.backward()
    assert torch.equal(said.grad, rows([3.0, 4.0], [0.0, 0.0])) and target.grad is None
    assert losses.embedding_distillation(said, said).item() == 0


def test_clip_reward_is_a_cosine_that_is_never_negative():
    image = rows([1.0, 0.0], [1.0, 0.0])
    assert losses.clip_reward(image, rows([2.0, 0.0], [1.0, 0.0])).item() == pytest.approx(2.5)
    assert losses.clip_reward(image, rows([-1.0, 0.0], [0.0, 3.0])).item() == 0
    assert losses.clip_reward(image, rows([1.0, 1.0], [-1.0, 0.0]), scale=1.0).item() == pytest.approx(0.5**0.5 / 2)


def test_pull_is_zero_where_nothing_moved():
    assert losses.pull(rows([1.0, 1.0])).item() == 0
    assert losses.pull(rows([1.0, 0.0], [-1.0, 0.0])).item() == 1
