"""AAPE's solved form: its maps are those of solving again, what does not help is not used, and what a class
without labels gets is its words and its prompt.
"""

import pytest
import torch
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import RunSettings, WordsightError
from wordsight.methods import FitData, Learner, Space
from wordsight.methods.aape import SHARE, SolvedAAPE
from wordsight.methods.evidence import Scored, Spectrum, logistic, ridge, weigh
from wordsight.runs import RunFacts, build_method
from wordsight.sentences import ClassTexts
from wordsight.settings import AAPESettings

DIM, SCALE = 12, 20.0


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def texts_of(names, sentences=None):
    count = len(names)
    own = names if sentences is None else sentences
    return ClassTexts(tuple(map(str, range(count))), names, (("s",),) * count, tuple(own[:, None]))


def problem(classes=10, shots=5, noise=0.5, words=None, sentences=None, seed=0):
    """Classes around directions; `words` are what their names say, the truth if nothing else is given."""
    truth = unit(draw(classes, DIM, seed=seed))
    labels = torch.arange(classes).repeat_interleave(shots)
    images = unit(truth[labels] + noise * draw(len(labels), DIM, seed=seed + 1))
    test = torch.arange(classes).repeat_interleave(30)
    tested = unit(truth[test] + noise * draw(len(test), DIM, seed=seed + 2)), test
    texts = texts_of(truth if words is None else words, sentences)
    return FitData(images[:, None], labels, texts, 1), tested


def fitted(data, **settings):
    method = SolvedAAPE(data.texts.names, Space(DIM, SCALE), AAPESettings(**settings))
    method.setup(data)
    method.set_classes(data.texts)
    return method


def accuracy(method, tested):
    return (method.logits(tested[0]).argmax(1) == tested[1]).float().mean().item()


def subset(texts, rows):
    names, vectors, sentences, of_sentences = list(vars(texts).values())[:4]
    names, sentences, of_sentences = (
        tuple(part[i] for i in rows) for part in (names, sentences, of_sentences)
    )
    return ClassTexts(names, vectors[rows], sentences, of_sentences)


# -- evidence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 30])
def test_a_ridge_map_is_the_one_written_out(count):
    X, T = draw(count, DIM, dtype=torch.float64), draw(count, 3, seed=1, dtype=torch.float64)
    spectrum = Spectrum.of(X)
    A = torch.cat([X, torch.ones(count, 1, dtype=X.dtype)], 1)  # an intercept, which is not punished
    size = 0.3 * spectrum.values.square().sum() / min(X.shape)
    punish = torch.diag(torch.tensor([*[float(size)] * DIM, 0.0], dtype=X.dtype))
    expected = A @ torch.linalg.solve(A.T @ A + punish, A.T @ T)
    torch.testing.assert_close(ridge(spectrum, T, 0.3)(X), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("count", [8, 40])
def test_the_logistic_map_is_where_its_loss_has_no_slope(count):
    X, labels = draw(count, DIM, dtype=torch.float64), torch.arange(count) % 4
    prior = 2 * draw(count, 4, seed=1, dtype=torch.float64)
    strong, solved = logistic(Spectrum.of(X), labels, prior, [5.0, 0.5])
    assert strong.map.norm() < solved.map.norm()
    size = (X - X.mean(0)).square().sum(1).mean().sqrt()
    Z = (X - X.mean(0)) / size
    V = (solved.map * size).requires_grad_()
    loss = F.cross_entropy(prior + Z @ V, labels, reduction="sum") + 0.25 * V.square().sum()
    (slope,) = torch.autograd.grad(loss, V)
    assert slope.abs().max() < 1e-3 < V.abs().max()
    torch.testing.assert_close(solved(X), Z @ V.detach(), atol=1e-9, rtol=0)
    [still] = logistic(Spectrum.of(X), labels, 60 * F.one_hot(labels, 4).double(), [0.5])
    assert still.map.abs().max() < 1e-6, "what the prior explains moves nothing"


def test_images_that_are_all_the_same_move_nothing():
    same = torch.ones(4, DIM)
    [solved] = logistic(Spectrum.of(same), torch.arange(4) % 2, torch.zeros(4, 2), [0.1])
    assert solved.map.abs().max() == 0


def test_weights_maximise_the_likelihood_and_never_turn_a_part_round():
    labels = torch.arange(60) % 4
    right = F.one_hot(labels, 4).float() + 0.8 * draw(60, 4)
    parts = torch.stack([right, -right, draw(60, 4, seed=3)])
    weights, fit = weigh([Scored(parts, labels)], [1.0, 0.0, 0.0], 60)
    assert weights[0] > 0.5 and weights[1] == 0

    def likelihood(a):
        return -F.cross_entropy(torch.einsum("j,jnc->nc", torch.tensor(a), parts), labels).item()

    for moved in (0.8, 1.2):
        assert likelihood(weights) > likelihood([moved * weights[0], *weights[1:]])
    assert fit <= likelihood(weights)
    timid, _ = weigh([Scored(parts, labels)], [1.0, 0.0, 0.0], 1e-6)
    assert timid == pytest.approx([1.0, 0.0, 0.0], abs=1e-3)  # no evidence, no move


# -- the method ----------------------------------------------------------------------------------------------


def test_the_form_names_the_class_and_only_the_trained_ones_learn():
    facts = RunFacts(("a", "b"), DIM, SCALE, "{}", "", "")
    for form, learns in (("solved", False), ("literal", True), ("skip", True), ("h_only", True)):
        settings = RunSettings(data="d", method="aape", settings={"form": form})
        method = build_method(settings, facts)
        assert isinstance(method, Learner) == learns == (settings.train is not None)
        assert settings.words == ("names" if learns else "calibrated")


def test_a_class_is_one_vector_and_one_number_and_equals_its_parts():
    data, tested = problem(noise=0.8, words=unit(draw(12, DIM, seed=9)), classes=12)
    method, images = fitted(data, prompt=True), tested[0]
    scale, warmth = method.labelled
    offsets = images @ method.offset_map + method.offset_bias
    expected = scale * images @ data.texts.name_vectors.T + warmth * offsets
    torch.testing.assert_close(method.logits(images), expected, atol=1e-4, rtol=1e-4)
    others = texts_of(unit(draw(5, DIM, seed=11)), unit(draw(5, DIM, seed=12)))
    others = ClassTexts(tuple("vwxyz"), *list(vars(others).values())[1:])
    method.set_classes(others)
    said = images @ method.prompt_map + method.prompt_bias - method.middle
    scale, weight = method.unlabelled
    expected = scale * images @ others.name_vectors.T + weight * said @ (others.means() - method.middle).T
    torch.testing.assert_close(method.logits(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1, 8])
def test_with_perfect_words_and_few_images_it_stays_near_them(shots):
    lost = []
    for seed in range(0, 40, 10):
        data, tested = problem(shots=shots, noise=0.35, seed=seed)
        zero_shot = (tested[0] @ data.texts.name_vectors.T).argmax(1).eq(tested[1]).float().mean().item()
        lost.append(zero_shot - accuracy(fitted(data), tested))
    assert sum(lost) / len(lost) < 0.025


def test_with_words_that_know_nothing_it_learns_from_the_images():
    data, tested = problem(shots=16, noise=0.2, words=unit(draw(10, DIM, seed=9)))
    without = fitted(data, offsets=False)
    assert accuracy(fitted(data), tested) > 0.9 > accuracy(without, tested) + 0.5
    torch.testing.assert_close(without.logits(tested[0]), SCALE * tested[0] @ data.texts.name_vectors.T)


def test_one_image_a_class_takes_what_is_expected():
    one = fitted(problem(shots=1)[0])
    assert one.labelled.tolist() == pytest.approx([SHARE * SCALE, 1.0])
    blind = fitted(problem(shots=1, words=unit(draw(10, DIM, seed=9)))[0])
    assert 0.1 * one.labelled[0] <= blind.labelled[0] < one.labelled[0], "words that name few count less"
    many = fitted(problem(shots=16, noise=0.2, words=unit(draw(10, DIM, seed=9)))[0])
    assert many.labelled[0] / many.labelled[1] < one.labelled[0], "words that know nothing count less"


@pytest.mark.slow
def test_the_prompt_carries_over_to_classes_without_labels():
    """Where words lie in a turned space, h learns the turn from some classes, and others gain by it."""
    turn = torch.linalg.qr(draw(DIM, DIM, seed=4))[0]
    truth = unit(draw(40, DIM))
    words = unit(truth @ (turn + torch.eye(DIM)))
    labels = torch.arange(20).repeat_interleave(6)
    images = unit(truth[labels] + 0.15 * draw(len(labels), DIM, seed=1))
    whole = texts_of(words)
    data = FitData(images[:, None], labels, subset(whole, range(20)), 1)
    test = torch.arange(20).repeat_interleave(30)
    tested = unit(truth[20 + test] + 0.15 * draw(len(test), DIM, seed=2)), test
    with_prompt, without = fitted(data, prompt=True), fitted(data)
    for method in (with_prompt, without):
        method.set_classes(subset(whole, range(20, 40)))
    assert accuracy(with_prompt, tested) > accuracy(without, tested) + 0.1
    explained = with_prompt.prompt(tested[0]) @ words[20:].T
    assert (explained.argmax(1) == test).float().mean() > accuracy(without, tested)


def test_labelled_classes_and_others_compete_on_equal_terms():
    truth = unit(draw(24, DIM))
    labels = torch.arange(12).repeat_interleave(8)
    images = unit(truth[labels] + 0.5 * draw(len(labels), DIM, seed=1))
    whole = texts_of(truth)
    method = fitted(FitData(images[:, None], labels, subset(whole, range(12)), 1))
    method.set_classes(whole)
    test = torch.arange(24).repeat_interleave(40)
    tested = unit(truth[test] + 0.5 * draw(len(test), DIM, seed=2))
    right = method.logits(tested).argmax(1) == test
    plain = (tested @ truth.T).argmax(1) == test
    assert right[test >= 12].float().mean() > plain[test >= 12].float().mean() - 0.06
    assert right[test < 12].float().mean() >= plain[test < 12].float().mean() - 0.02


def test_two_classes_are_enough():
    data, tested = problem(classes=2, shots=3)
    assert accuracy(fitted(data), tested) > 0.8


def test_features_that_are_not_finite_are_refused():
    data, _ = problem()
    with pytest.raises(WordsightError, match="not finite"):
        fitted(data._replace(images=torch.full_like(data.images, torch.nan)))
