"""What a method is given of names, sentences and images."""

import pytest
import torch
from torch.nn import functional as F

from wordsight.backbones import unit
from wordsight.config import RunSettings, WordsightError
from wordsight.methods import FitData, Space
from wordsight.methods.words import Words, calibrate
from wordsight.methods.zero_shot import ZeroShot
from wordsight.sentences import ClassTexts

DIM, SCALE, CLASSES = 12, 20.0, 15


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(names=None, sentences=None, shift=0.0):
    truth = unit(draw(CLASSES, DIM))
    labels = torch.arange(CLASSES).repeat_interleave(6)
    images = unit(
        unit(truth[labels] + 0.4 * draw(len(labels), DIM, seed=1)) + shift * unit(draw(DIM, seed=2))
    )
    names, sentences = truth if names is None else names, truth if sentences is None else sentences
    own = (("s",),) * CLASSES
    texts = ClassTexts(tuple(map(str, range(CLASSES))), names, own, tuple(sentences[:, None]))
    return FitData(images[:, None], labels, texts, 1)


def given(words, data):
    method = ZeroShot(data.texts.names, Space(DIM, SCALE), None).give(words)
    method.begin(data)
    method.choose(data.texts)
    return method


def test_names_and_sentences_are_what_they_say():
    data = problem(sentences=unit(draw(CLASSES, DIM, seed=5)))
    images = data.centre
    torch.testing.assert_close(given("names", data).score(images), SCALE * images @ data.texts.name_vectors.T)
    torch.testing.assert_close(given("sentences", data).score(images), SCALE * images @ data.texts.means().T)
    assert not given("sentences", data).weights(), "nothing is fitted"


def test_calibration_trusts_what_names_the_images_and_takes_off_what_they_share():
    truth, noise = unit(draw(CLASSES, DIM)), unit(draw(CLASSES, DIM, seed=7))
    for names, sentences, low, high in ((truth, noise, 0.0, 0.3), (noise, truth, 0.7, 1.0)):
        data = problem(names, sentences)
        mix, _, _ = calibrate(data.centre, data.labels, data.texts, SCALE)
        assert low <= mix <= high
    data = problem(shift=2.0)
    plain, calibrated = (given(words, data) for words in ("names", "calibrated"))
    right = [(one.score(data.centre).argmax(1) == data.labels).float().mean() for one in (plain, calibrated)]
    assert right[1] > right[0] + 0.1
    _, centre, _ = calibrate(data.centre, data.labels, data.texts, SCALE)
    assert F.cosine_similarity(centre, data.centre.mean(0), dim=0) > 0.99


def test_the_scale_leans_to_the_backbone_s_and_is_the_method_s():
    data = problem()
    one = data._replace(images=data.images[:2], labels=data.labels[:2])
    assert SCALE / 2 < calibrate(one.centre, one.labels, one.texts, SCALE)[2] < 2.1 * SCALE
    method = given("calibrated", data)
    assert method.logit_scale == pytest.approx(float(method.given.scale))
    other = ZeroShot(data.texts.names, Space(DIM, SCALE), None).give("calibrated")
    other.load_weights(method.weights())
    other.choose(data.texts)
    assert torch.equal(other.score(data.centre), method.score(data.centre))


def test_what_cannot_be_calibrated_is_said():
    data = problem()
    with pytest.raises(WordsightError, match="words=calibrated is chosen by labelled images, and there are"):
        Words("calibrated", DIM, SCALE).fit(data.centre[:0], data.labels[:0], data.texts)
    with pytest.raises(WordsightError, match="not finite"):
        Words("calibrated", DIM, SCALE).fit(data.centre * torch.nan, data.labels, data.texts)
    with pytest.raises(WordsightError, match="words=calibrated gives class vectors, but method=coop learns"):
        RunSettings(data="d", method="coop", words="calibrated")
    with pytest.raises(WordsightError, match="would train on the new classes"):
        RunSettings(data="d", method="zero_shot", words="calibrated", classes="new")
