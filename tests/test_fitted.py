"""Fitted: scores of any number of images and classes in a bounded block of memory."""

from functools import partial

import pytest
import torch

from wordsight import fitted
from wordsight.fitted import Fitted
from wordsight.meter import peak_mib
from wordsight.methods import Space
from wordsight.methods.zero_shot import ZeroShot
from wordsight.metrics import best
from wordsight.runs import RunFacts
from wordsight.sentences import ClassTexts
from wordsight.settings import NoSettings


def unit_rows(count, dim, seed=0):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def zero_shot(vectors, sentences=False):
    """Over made-up vectors of names, and of one sentence each."""
    names = tuple(map(str, range(len(vectors))))
    own = tuple((f"a {name}",) for name in names) if sentences else ((),) * len(names)
    groups = vectors.split(1) if sentences else (vectors[:0],) * len(names)
    texts = ClassTexts(names, vectors, own, groups)
    facts = RunFacts(names, vectors.shape[1], 20.0, "{}")
    method = ZeroShot(names, Space(vectors.shape[1], 20.0), NoSettings())
    return Fitted(method, None, facts, {}, texts)


def test_blocks_of_images_give_what_all_at_once_would_and_none_is_larger(monkeypatch):
    one, images = zero_shot(unit_rows(12, 8), sentences=True), unit_rows(50, 8, seed=1)
    whole, closest = best(one.logits(images), temperature=2.0), one.closest(images, 2)
    monkeypatch.setattr(fitted, "SCORES_AT_ONCE", 40)
    seen = []
    logits, explain = one.method.logits, one.method.explain
    monkeypatch.setattr(one.method, "logits", lambda some: seen.append(len(some)) or logits(some))
    monkeypatch.setattr(one.method, "explain", lambda some: seen.append(len(some)) or explain(some))
    parts = one.best(images, 2.0)
    assert torch.equal(parts.predicted, whole.predicted) and torch.equal(parts.top, whole.top)
    assert torch.allclose(parts.confidence, whole.confidence)
    assert torch.allclose(parts.calibrated, whole.calibrated)
    assert [[near.sentence for near in row] for row in one.closest(images, 2)] == [
        [near.sentence for near in row] for row in closest
    ]
    assert max(seen) == 40 // 12 and sum(seen) == 100


def test_more_classes_than_a_block_are_scored_one_image_at_a_time(monkeypatch):
    monkeypatch.setattr(fitted, "SCORES_AT_ONCE", 5)
    one, images = zero_shot(unit_rows(12, 8)), unit_rows(4, 8, seed=1)
    assert torch.equal(one.best(images).predicted, (images @ unit_rows(12, 8).T).argmax(1))


@pytest.mark.slow
def test_memory_grows_neither_with_images_nor_beyond_a_block_with_classes():
    """200,000 classes: 100 images would be 80 MB of scores, 800 images 640 MB."""
    one = zero_shot(unit_rows(200_000, 16))
    device = torch.device("cpu")
    one.best(unit_rows(10, 16))
    peaks = [peak_mib(partial(one.best, unit_rows(count, 16)), device) for count in (100, 800)]
    if None in peaks:
        pytest.skip("nothing tells the peak of resident memory here")
    assert peaks[1] < peaks[0] + 40 and max(peaks) < 7 * 64  # double precision, and copies of a block
