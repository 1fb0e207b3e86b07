"""Losses: closed forms."""

import math
from inspect import unwrap

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from wordsight import losses
from wordsight.config import WordsightError


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_shape_that_is_not_the_declared_one_is_refused_wherever_a_test_runs():
    with pytest.raises(BeartypeCallHintViolation, match="target"):
        losses.embedding_distillation(torch.ones(2, 3), torch.ones(2, 4))


def test_embedding_distillation_is_the_squared_distance_and_its_target_is_constant():
    said, target = (
        rows([3.0, 4.0], [0.0, 1.0]).requires_grad_(),
        rows([0.0, 0.0], [0.0, 1.0]).requires_grad_(),
    )
    loss = losses.embedding_distillation(said, target)
    assert loss.item() == 25 / 2
    loss.backward()
    assert torch.equal(said.grad, rows([3.0, 4.0], [0.0, 0.0])) and target.grad is None
    assert losses.embedding_distillation(said, said).item() == 0


def test_clip_reward_is_a_cosine_that_is_never_negative():
    image = rows([1.0, 0.0], [1.0, 0.0])
    assert losses.clip_reward(image, rows([2.0, 0.0], [1.0, 0.0])).item() == pytest.approx(2.5)
    assert losses.clip_reward(image, rows([-1.0, 0.0], [0.0, 3.0])).item() == 0
    assert losses.clip_reward(image, rows([1.0, 1.0], [-1.0, 0.0]), scale=1.0).item() == pytest.approx(
        0.5**0.5 / 2
    )


def test_pull_is_zero_where_nothing_moved():
    assert losses.pull(rows([1.0, 1.0])).item() == 0
    assert losses.pull(rows([1.0, 0.0], [-1.0, 0.0])).item() == 1


def unit_rows(count, width=6, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def test_info_nce_of_vectors_that_say_nothing_is_twice_log_b_and_it_is_the_sum_of_both_cross_entropies():
    zero, log_scale = (
        torch.zeros(8, 4, dtype=torch.float64),
        torch.tensor(math.log(10.0), dtype=torch.float64),
    )
    assert losses.info_nce(zero, zero, log_scale).item() == pytest.approx(2 * math.log(8))
    image, text = unit_rows(5), unit_rows(5, seed=1)
    chance = (
        (10 * image @ text.T).softmax(1).diagonal().log(),
        (10 * image @ text.T).softmax(0).diagonal().log(),
    )
    assert losses.info_nce(image, text, log_scale).item() == pytest.approx(-sum(chance).mean().item())
    assert losses.info_nce(image, image, torch.tensor(9.0)).item() == pytest.approx(
        losses.info_nce(image, image, torch.tensor(math.log(100.0))).item()
    )


def test_equal_texts_need_no_care_their_loss_is_that_of_a_shared_choice():
    image, log_scale = unit_rows(5), torch.tensor(1.5, dtype=torch.float64)
    same = torch.tensor([4, 2, 4, 0, 4])
    text = unit_rows(5, seed=1)[same]
    expected, chance = 0, math.exp(1.5) * image @ text.T
    for logs in (chance.log_softmax(1), chance.log_softmax(0).T):
        expected -= sum(logs[row, same == same[row]].mean() for row in range(5)) / 5
    assert losses.info_nce(image, text, log_scale).item() == pytest.approx(expected.item())


def test_the_scale_never_passes_a_hundred_but_may_fall_from_there():
    for start, push, expected in ((6.0, 1.0, 100.0), (6.0, -1.0, 0.0), (2.0, -1.0, -math.exp(2.0))):
        log_scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        value = losses.clamped_scale(log_scale)
        (push * value).backward()
        assert value.item() == pytest.approx(
            min(100.0, math.exp(start))
        ) and log_scale.grad.item() == pytest.approx(expected)


def test_pairwise_sigmoid_asks_about_each_pair_alone():
    image, text = rows([1.0, 0.0], [0.0, 1.0]), rows([1.0, 0.0], [0.0, 1.0])
    log_scale, bias = (
        torch.tensor(math.log(2.0), dtype=torch.float64),
        torch.tensor(-1.0, dtype=torch.float64),
    )
    yes, no = math.log1p(math.exp(-(2 - 1))), math.log1p(math.exp(-1))
    assert losses.pairwise_sigmoid(image, text, log_scale, bias).item() == pytest.approx(
        (2 * yes + 2 * no) / 2
    )
    assert losses.pairwise_sigmoid(
        torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor(0.0), torch.tensor(0.0)
    ).item() == pytest.approx(3 * math.log(2))


def test_similarity_distillation_is_zero_at_the_teacher_and_the_kl_of_rows_and_of_columns():
    student, teacher = (
        (unit_rows(4, seed=1) @ unit_rows(4, seed=2).T).requires_grad_(),
        (unit_rows(4, 9, seed=3) @ unit_rows(4, 9, seed=4).T).requires_grad_(),
    )
    assert losses.similarity_distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    expected = 0
    for axis in (0, 1):
        theirs, ours = (7 * teacher).softmax(axis), (7 * student).softmax(axis)
        expected = expected + (theirs * (theirs / ours).log()).sum(axis).mean()
    loss = losses.similarity_distillation(student, teacher, tau_d=7.0)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    with pytest.raises(WordsightError, match="must see one batch"):
        unwrap(losses.similarity_distillation)(student, teacher[:3])  # without the tests' own check
