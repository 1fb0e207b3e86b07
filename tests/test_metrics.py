"""Metrics: figures that can be counted by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from wordsight import metrics

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def test_top_k():
    found = metrics.best(LOGITS)
    assert metrics.accuracy(found, LABELS) == 50
    assert metrics.top_k(found, LABELS, 3, 2) == 75
    assert metrics.top_k(found, LABELS, 3, 3) is None  # every class is among the three: it would say nothing
    assert metrics.top_k(found, LABELS, 3) is None
    assert metrics.accuracy(metrics.best(LOGITS[:, :1]), torch.zeros(4, dtype=torch.long)) == 100


def test_parts_of_the_images_are_as_good_as_all_at_once():
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    whole, parts = metrics.best(logits), [metrics.best(some) for some in logits.split(7)]
    assert all(map(torch.equal, whole, metrics.Best.joined(parts)))
    order = torch.randperm(40)
    assert all(map(torch.equal, whole, metrics.best(logits[order]).take(order.argsort())))


def test_confusion_has_the_true_class_in_the_row():
    counts = metrics.confusion(LOGITS.argmax(1), LABELS, 3)
    assert counts.lines().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert counts.to_dict() == {"true": [0, 0, 1, 1], "predicted": [0, 2, 0, 1], "images": [1, 1, 1, 1]}
    assert counts.lines(2).tolist() == [[3, 1], [0, 0]]  # the first two classes are one group
    assert counts.guessed.tolist() == [2, 1, 1]


def test_recall_of_a_class_without_images_is_none():
    counts = metrics.confusion(LOGITS.argmax(1), torch.tensor([0, 1, 1, 1]), 3)
    assert metrics.class_recall(counts) == [100, pytest.approx(100 / 3), None]
    assert metrics.mean_class_recall(counts) == pytest.approx((100 + 100 / 3) / 2)


def test_recall_equals_scikit_learn_s():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix

    stream = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=stream), torch.randint(4, (50,), generator=stream)
    counts = metrics.confusion(logits.argmax(1), labels, 4)
    assert counts.lines().tolist() == confusion_matrix(labels, logits.argmax(1)).tolist()
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
    def error(logits, labels, **bins):
        found = metrics.best(logits)
        right = (found.predicted == torch.tensor(labels)).numpy()
        return metrics.calibration_curve(found.confidence.numpy(), right, **bins).error

    assert error(logits, [0, 1, 0, 0]) == pytest.approx(40, abs=1e-3)
    assert error(logits, [0, 1, 0, 0], bins=1) == pytest.approx(0, abs=1e-3)  # 0.75 sure, 0.75 right
    certain = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])  # confidence 1 falls into the last bin
    assert error(certain, [0, 1]) == 0 and error(certain, [1, 0]) == 100


def test_a_temperature_makes_labels_likeliest():
    """Labels drawn from softmax(z) make z / 3 too flat and 4 z too steep: 1/3 and 4 mend it."""
    scores = 2 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(scores.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    plain = metrics.temperature(scores, labels)
    assert plain == pytest.approx(1, abs=0.05)
    assert metrics.temperature(4 * scores, labels) == pytest.approx(4 * plain, rel=1e-3)
    losses = [torch.nn.functional.cross_entropy(scores / (plain * f), labels) for f in (0.97, 1, 1.03)]
    assert min(losses) == losses[1]
    found, same = metrics.best(4 * scores, temperature=4.0), metrics.best(scores)
    assert torch.allclose(found.calibrated, same.confidence, atol=1e-6)
    assert torch.equal(found.predicted, same.predicted) and not torch.allclose(
        found.confidence, same.confidence
    )


def test_there_is_no_temperature_where_no_number_is_best():
    right, labels = torch.eye(3), torch.arange(3)
    assert metrics.temperature(right, labels) is None  # the smaller the better
    assert metrics.temperature(-right, labels) is None  # the larger the better
    assert metrics.temperature(right[:0], labels[:0]) is None


def test_precision_recall_and_f1_are_scikit_learn_s():
    from sklearn.metrics import precision_recall_fscore_support

    rng = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(6, (200,), generator=rng) for _ in range(2))
    labels, predicted = labels % 5, predicted % 4  # no image of class 5; 4 and 5 are never predicted
    found = metrics.class_scores(metrics.confusion(predicted, labels, 6))
    known = precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=np.nan)
    for ours, theirs in zip(found, known):
        assert ours == pytest.approx(100 * theirs, nan_ok=True)


# -- intervals and ranks


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (1, 2), (0, 9), (700, 999), (999, 999)])
def test_the_interval_of_an_accuracy_is_wilson_s(right, images):
    from scipy.stats import binomtest

    known = binomtest(right, images).proportion_ci(method="wilson")
    assert metrics.accuracy_interval(right, images) == pytest.approx([100 * known.low, 100 * known.high])


def test_the_margin_of_a_mean_is_student_s_and_of_a_sum_welch_s():
    from scipy.stats import ttest_1samp, ttest_ind

    rng = np.random.default_rng(0)
    one, two = rng.normal(3, 1, 4), rng.normal(0, 5, 9)
    low, high = ttest_1samp(one, 0).confidence_interval()
    assert metrics.margin([one]) == pytest.approx((high - low) / 2)
    low, high = ttest_ind(one, two, equal_var=False).confidence_interval()
    assert metrics.margin([one, two]) == pytest.approx((high - low) / 2)
    assert metrics.margin([np.full(5, 0.1 + 0.2), one[:1]]) == 0 == metrics.margin([])


def test_a_difference_on_the_same_images_is_paired_and_one_image_says_nothing():
    ours, theirs = np.array([True, True, False, True] * 25), np.array([True, False, False, True] * 25)
    mean, low, high = metrics.paired_difference(ours, theirs)
    assert mean == 25 and (high - low) / 2 == pytest.approx(1.984 * 43.52 / 10, rel=1e-3)
    assert metrics.paired_difference(ours[:1], theirs[:1]) == [0, -100, 100]
    assert metrics.paired_difference(~theirs[1:2], theirs[1:2]) == [100, -100, 100]


def test_equal_figures_share_the_mean_of_their_places():
    assert metrics.ranks({"a": 3.0, "b": 5.0, "c": 3.0, "d": 1.0}) == {"a": 2.5, "b": 1.0, "c": 2.5, "d": 4.0}
    assert metrics.ranks({"a": 1.0, "b": 1.0, "c": 1.0}) == dict.fromkeys("abc", 2.0)
    assert metrics.ranks({"a": 0.1 + 0.2, "b": 0.3}) == {"a": 1.5, "b": 1.5}


def test_average_precision_is_that_of_scikit_learn():
    stream = torch.Generator().manual_seed(0)
    scores, shown = torch.randn(40, 5, generator=stream), torch.rand(40, 5, generator=stream) < 0.3
    shown[:, 4] = False
    found = metrics.average_precision(scores, shown)
    assert found[4] is None
    expected = [100 * average_precision_score(shown[:, place], scores[:, place]) for place in range(4)]
    assert found[:4] == pytest.approx(expected, abs=1e-9)
