"""Images without labels: what the layer and TransCLIP learn from them."""

import pytest
import torch

from wordsight.backbones import unit
from wordsight.config import WordsightError
from wordsight.methods import FitData, Pool, Space
from wordsight.methods import pool as module
from wordsight.methods.pool import PoolLayer
from wordsight.methods.transclip import TransCLIP
from wordsight.methods.zero_shot import ZeroShot
from wordsight.sentences import ClassTexts

DIM, SCALE, CLASSES = 16, 20.0, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(each=40, wrong=0.45, noise=0.15):
    """Classes around directions, and words that lie beside them."""
    truth = unit(draw(CLASSES, DIM))
    words = unit(truth + wrong * draw(CLASSES, DIM, seed=3))
    labels = torch.arange(CLASSES).repeat_interleave(each)
    pool = unit(truth[labels] + noise * draw(len(labels), DIM, seed=1))
    tested = unit(truth[labels] + noise * draw(len(labels), DIM, seed=2))
    none = ((),) * CLASSES
    texts = ClassTexts(tuple("abcdef"), words, none, (words[:0],) * CLASSES)
    return texts, pool, tested, labels


def fitted(texts, pool, images=None, labels=None, words="names"):
    images = draw(0, DIM) if images is None else images
    labels = torch.zeros(0, dtype=torch.long) if labels is None else labels
    method = ZeroShot(texts.names, Space(DIM, SCALE), None).give(words).give_pool(texts.names)
    data = FitData(images[:, None], labels, texts, 1, pool=Pool(pool, texts))
    method.begin(data)
    method.absorb(data)
    method.choose(texts)
    return method


def right(scores, labels):
    return (scores.argmax(1) == labels).float().mean().item()


def test_new_images_are_named_better_than_by_words_alone_and_without_the_pool():
    texts, pool, tested, labels = problem(wrong=0.7)
    method = fitted(texts, pool)
    plain = right(SCALE * tested @ texts.name_vectors.T, labels)
    assert right(method.score(tested), labels) > plain + 0.02
    assert sum(tensor.numel() for tensor in method.weights().values()) < pool.numel(), "the pool is not kept"
    other = ZeroShot(texts.names, Space(DIM, SCALE), None).give_pool(texts.names)
    other.load_weights(method.weights())
    other.choose(texts)
    assert torch.equal(other.score(tested), method.score(tested))


def test_it_is_linear_in_the_centred_image_and_absent_for_classes_it_does_not_know():
    texts, pool, tested, _ = problem()
    method = fitted(texts, pool)
    layer = method.pooled
    centred = unit(tested - layer.centre)
    expected = SCALE * tested @ texts.name_vectors.T + module.SHARE * (centred @ layer.maps + layer.bias)
    torch.testing.assert_close(method.score(tested), expected, atol=1e-4, rtol=1e-4)
    names = ("a", "new")
    method.choose(ClassTexts(names, texts.name_vectors[[0, 1]], ((),) * 2, (texts.name_vectors[:0],) * 2))
    torch.testing.assert_close(method.score(tested), SCALE * tested @ texts.name_vectors[[0, 1]].T)


def test_classes_that_the_pool_does_not_show_are_credited_for_their_images(monkeypatch):
    texts, pool, tested, labels = problem(wrong=0.5)
    absent = labels >= CLASSES // 2
    plain = SCALE * tested[absent] @ texts.name_vectors.T
    credited = fitted(texts, pool[~absent]).score(tested[absent])
    assert right(credited, labels[absent]) >= right(plain, labels[absent])
    monkeypatch.setattr(module.Gaussians, "strength", property(lambda found: torch.zeros(CLASSES)))
    without = fitted(texts, pool[~absent]).score(tested[absent])
    loss = torch.nn.functional.cross_entropy
    assert loss(credited, labels[absent]) < loss(without, labels[absent])


def test_few_images_leave_the_words_and_blocks_change_nothing(monkeypatch):
    texts, pool, tested, labels = problem()
    few = fitted(texts, pool[::40])
    plain = SCALE * tested @ texts.name_vectors.T
    assert right(few.score(tested), labels) > right(plain, labels) - 0.01
    assert (few.score(tested) - plain).abs().max() < 0.01, "one image a class says next to nothing"
    whole = fitted(texts, pool).score(tested)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    torch.testing.assert_close(fitted(texts, pool).score(tested), whole, atol=1e-3, rtol=1e-3)


def test_labelled_images_belong_to_their_classes_and_weaken_what_the_pool_says():
    texts, pool, tested, labels = problem(wrong=1.2)
    chosen = torch.arange(CLASSES).repeat_interleave(2) * 40 + torch.tensor([0, 1] * CLASSES)
    given = tested[chosen], labels[chosen]
    without, zero_shot = fitted(texts, pool), fitted(texts, pool, *given)
    assert torch.equal(without.score(tested), zero_shot.score(tested)), "zero-shot is told no label"
    calibrated = fitted(texts, pool, *given, words="calibrated")
    assert right(calibrated.score(tested), labels) > right(without.score(tested), labels)
    assert calibrated.pooled.counts.tolist() == [2.0] * CLASSES


def test_transclip_is_the_algorithm_written_out():
    """The published updates on dense matrices, for images of the pool."""
    texts, images, _, _ = problem(each=10)
    method = TransCLIP(texts.names, Space(DIM, SCALE), None)
    method.begin(
        FitData(images[:0, None], torch.zeros(0, dtype=torch.long), texts, 1, pool=Pool(images, texts))
    )
    method.choose(texts)
    count = len(images)
    y = (SCALE * images @ texts.name_vectors.T).softmax(1)
    W = torch.zeros(count, count)
    for row in range(count):
        similar = images[row] @ images.T
        for other in similar.argsort(descending=True)[1:4]:
            W[row, other] = similar[other]
    mu = torch.zeros(CLASSES, DIM)
    for c in range(CLASSES):
        for row in y[:, c].argsort(descending=True)[:8]:
            mu[c] += y[row, c] * images[row] / 8
    mu, sigma, z = unit(mu), torch.full((DIM,), 1 / DIM), y.clone()
    for turn in range(11):
        density = -0.5 * ((images[:, None] - mu[None]).square() / sigma).sum(2)
        for _ in range(5):
            z = y * ((density + 50 / 6 * (W.T @ z + W @ z)) / 50).exp()
            z = z / z.sum(1, keepdim=True)
        if turn < 10:
            mu = unit(z.T @ images)
            sigma = torch.einsum("nc,ncd->d", z, (images[:, None] - mu[None]).square()) / z.sum()
    torch.testing.assert_close(method.score(images).softmax(1), z, atol=1e-4, rtol=1e-3)


def test_transclip_scores_new_images_and_says_what_it_cannot():
    texts, pool, tested, labels = problem()
    none = torch.zeros(0, dtype=torch.long)
    method = TransCLIP(texts.names, Space(DIM, SCALE), None)
    with pytest.raises(WordsightError, match="classifies images without labels, and was given none"):
        method.begin(FitData(pool[:0, None], none, texts, 1))
    with pytest.raises(WordsightError, match="starts from 8 images of each class; unlabelled= has only 8"):
        method.begin(FitData(pool[:0, None], none, texts, 1, pool=Pool(pool[:8], texts)))
    method.begin(FitData(pool[:0, None], none, texts, 1, pool=Pool(pool, texts)))
    method.choose(texts)
    assert right(method.score(tested), labels) > right(SCALE * tested @ texts.name_vectors.T, labels)
    with pytest.raises(WordsightError, match="has not classified the pool by zebra"):
        method.choose(ClassTexts(("a", "zebra"), texts.name_vectors[:2], ((),) * 2, (pool[:0],) * 2))


def test_vectors_that_are_not_finite_are_refused():
    layer = PoolLayer(tuple("abcdef"), DIM)
    bad = torch.full((3, DIM), torch.nan)
    with pytest.raises(WordsightError, match="unlabelled: image vectors or scores are not finite"):
        layer.fit(bad, torch.zeros(3, 6), bad[:0], torch.zeros(0, dtype=torch.long))


def test_a_teacher_leads_the_assignments_and_decides_the_share():
    texts, pool, tested, labels = problem(wrong=1.2)
    method = fitted(texts, pool)
    scores = SCALE * pool @ texts.name_vectors.T
    taught = 10.0 * torch.nn.functional.one_hot(labels, CLASSES)
    layer, none = PoolLayer(texts.names, DIM), torch.zeros(0, dtype=torch.long)
    layer.choose(texts.names)
    layer.fit(pool, scores, pool[:0], none, taught)
    plain = SCALE * tested @ texts.name_vectors.T
    assert right(layer.add(plain, tested), labels) > max(0.9, right(method.score(tested), labels) + 0.1)
    of_words = PoolLayer(texts.names, DIM)
    of_words.choose(texts.names)
    of_words.fit(pool[:1], scores[:1], pool[:0], none, taught[:1])
    assert torch.equal(of_words.add(plain, tested), plain), "one image cannot be compared with another"
