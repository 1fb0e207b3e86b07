"""Metrics: figures that can be counted by hand."""

import numpy as np
import pytest
import torch

from wordsight import metrics

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_top_k():
    assert metrics.top_k(LOGITS, LABELS) == 50
    assert metrics.top_k(LOGITS, LABELS, 2) == 75
    assert metrics.top_k(LOGITS, LABELS, 3) is None  # every class is among the three: it would say nothing
    assert metrics.top_k(LOGITS, LABELS, 5) is None
    assert metrics.top_k(LOGITS[:, :1], torch.zeros(4, dtype=torch.long)) == 100


def test_confusion_has_the_true_class_in_the_row():
    counts = metrics.confusion(LOGITS, LABELS)
    assert counts.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_recall_of_a_class_without_images_is_none():
    counts = metrics.confusion(LOGITS, torch.tensor([0, 1, 1, 1]))
    assert metrics.class_recall(counts) == [100, pytest.approx(100 / 3), None]
    assert metrics.mean_class_recall(counts) == pytest.approx((100 + 100 / 3) / 2)


def test_recall_equals_scikit_learn_s():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix

    stream = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=stream), torch.randint(4, (50,), generator=stream)
    counts = metrics.confusion(logits, labels)
    assert counts.tolist() == confusion_matrix(labels, logits.argmax(1)).tolist()
    assert metrics.mean_class_recall(counts) == pytest.approx(
        100 * balanced_accuracy_score(labels, logits.argmax(1))
    )


def test_harmonic_mean():
    assert (
        round(metrics.harmonic_mean(69.34, 74.22), 2) == 71.70
    )  # zero-shot CLIP over eleven datasets, as CoCoOp prints it
    assert metrics.harmonic_mean(50, 50) == 50
    assert metrics.harmonic_mean(0, 0) == 0 == metrics.harmonic_mean(80, 0)


def test_calibration_error_by_hand():
    def sure(confidence):
        return torch.tensor([confidence, 1 - confidence]).log()

    logits = torch.stack([sure(0.9), sure(0.9), sure(0.6), sure(0.6)])
    # bin of 0.9: accuracy 1/2, gap 0.4; bin of 0.6: accuracy 1, gap 0.4
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0, 0])) == pytest.approx(40, abs=1e-3)
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0, 0]), bins=1) == pytest.approx(
        0, abs=1e-3
    )  # 0.75 sure, 0.75 right
    certain = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])  # confidence 1 falls into the last bin
    assert metrics.calibration_error(certain, torch.tensor([0, 1])) == 0
    assert metrics.calibration_error(certain, torch.tensor([1, 0])) == 100


# -- intervals and ranks


def test_the_interval_of_a_mean_holds_it_and_shrinks_with_the_root_of_the_count():
    right = np.tile([100.0, 100.0, 0.0, 100.0], 25)
    low, high = metrics.interval(right)
    error = right.std() / len(right) ** 0.5
    assert (75 - low, high - 75) == (pytest.approx(1.96 * error, rel=0.1),) * 2
    assert metrics.interval(right) == (low, high)
    assert metrics.interval(np.full(5, 2.0)) == (2, 2)


def test_large_sets_of_images_are_drawn_in_pieces_of_memory(monkeypatch):
    right = np.tile([100.0, 0.0], 20)
    whole = metrics.interval(right)
    monkeypatch.setattr(metrics, "AT_ONCE", 100)
    assert metrics.interval(right) == pytest.approx(whole, abs=2)


def test_equal_figures_share_the_mean_of_their_places():
    assert metrics.ranks({"a": 3.0, "b": 5.0, "c": 3.0, "d": 1.0}) == {"a": 2.5, "b": 1.0, "c": 2.5, "d": 4.0}
    assert metrics.ranks({"a": 1.0, "b": 1.0, "c": 1.0}) == dict.fromkeys("abc", 2.0)
    assert metrics.ranks({"a": 0.1 + 0.2, "b": 0.3}) == {"a": 1.5, "b": 1.5}
