"""The methods that work on vectors alone equal the closed forms of their papers."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from wordsight.backbones import unit
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.data import Split
from wordsight.fit import validation
from wordsight.fitted import predict_logits
from wordsight.fitting import best_of, fit_method
from wordsight.methods import FitData, Labelled
from wordsight.methods.linear_probe import SWEEP, UNSWEPT
from wordsight.runs import Run, RunFacts, build_method
from wordsight.sentences import ClassTexts

NAMES, DIM, SCALE = ("a", "b", "c"), 8, 30.0


def draw(count, noise, seed):
    """Images around a direction a class, and their labels."""
    middle = unit(torch.randn(3, DIM, generator=torch.Generator().manual_seed(0)))
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return Labelled(unit(middle[labels] + noise * torch.randn(count, DIM, generator=stream)), labels)


@pytest.fixture(scope="module")
def train():
    return draw(12, 0.3, 1)


@pytest.fixture(scope="module")
def test():
    return draw(30, 0.3, 2)


@pytest.fixture(scope="module")
def texts():
    vectors = unit(torch.randn(3, DIM, generator=torch.Generator().manual_seed(3)))
    return ClassTexts(NAMES, vectors, ((),) * 3, (vectors[:0],) * 3)


def made(name, **settings):
    torch.manual_seed(0)
    return build_method(
        RunSettings(data="d", method=name, settings=settings), RunFacts(NAMES, DIM, SCALE, "")
    )


def data_of(train, texts, val=None):
    return FitData(train.images[:, None], train.labels, texts, 1, val)


def begun(name, train, texts, val=None, **settings):
    method = made(name, **settings)
    method.setup(data_of(train, texts, val))
    method.set_classes(texts)
    return method


@pytest.mark.parametrize("name", ["taskres", "clap"])
def test_before_training_it_is_zero_shot(name, train, test, texts):
    expected = SCALE * test.images @ texts.name_vectors.T
    assert torch.allclose(predict_logits(begun(name, train, texts), test.images), expected, atol=1e-5)


def test_taskres_is_words_plus_a_share_of_the_offsets(train, test, texts):
    method = begun("taskres", train, texts, alpha=0.25)
    method.offsets.data.normal_()
    expected = SCALE * test.images @ normalize(texts.name_vectors + 0.25 * method.offsets, dim=-1).T
    assert torch.allclose(method.logits(test.images), expected, atol=1e-5)


def test_clip_adapter_is_a_mix_of_the_image_and_its_bottleneck(train, test, texts):
    method = begun("clip_adapter", train, texts, ratio=0.2, reduction=4)
    first, second = (method.adapter[layer].weight for layer in (0, 2))
    assert first.shape == (DIM // 4, DIM) and second.shape == (DIM, DIM // 4)
    bent = 0.2 * (test.images @ first.T).clamp_min(0).matmul(second.T).clamp_min(0) + 0.8 * test.images
    expected = SCALE * normalize(bent, dim=-1) @ texts.name_vectors.T
    assert torch.allclose(method.logits(test.images), expected, atol=1e-5)
    plain = begun("clip_adapter", train, texts, ratio=0.0)
    assert torch.allclose(plain.logits(test.images), SCALE * test.images @ texts.name_vectors.T, atol=1e-5)
    with pytest.raises(WordsightError, match=r"settings\.reduction=0"):
        made("clip_adapter", reduction=0)


def test_clap_holds_a_class_as_firmly_as_its_words_do_well(train, texts):
    method = begun("clap", train, texts, length=2.0)
    chances = (SCALE * train.images @ texts.name_vectors.T).softmax(1)
    expected = torch.stack([chances[train.labels == c, c].mean() for c in range(3)])
    assert torch.allclose(method.multipliers, expected, atol=1e-6)
    batch = {"images": train.images, "labels": train.labels}
    assert method.loss(batch)["constraint"] == 0
    method.prototypes.data += 0.5
    terms = method.loss(batch)
    assert torch.allclose(terms["constraint"], (expected * 0.25 * DIM).mean(), atol=1e-5)
    logits = SCALE * train.images @ normalize(2 * texts.name_vectors + 0.5, dim=-1).T
    assert torch.allclose(terms["cross_entropy"], cross_entropy(logits, train.labels), atol=1e-5)
    assert "constraint" not in begun("clap", train, texts, constraint="none").loss(batch)
    with pytest.raises(WordsightError, match=r"settings\.length=0"):
        made("clap", length=0)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_tip_adapter_is_the_paper_s_closed_form(name, train, test, texts):
    method = begun(name, train, texts, alpha=1.5, beta=4.0)
    memory = torch.exp(-4.0 * (1 - test.images @ train.images.T)) @ one_hot(train.labels, 3).float()
    expected = SCALE * test.images @ texts.name_vectors.T + 1.5 * memory
    assert torch.allclose(predict_logits(method, test.images), expected, atol=1e-5)
    fewer = ClassTexts(("c", "new"), texts.name_vectors[[2, 0]], ((),) * 2, (texts.name_vectors[:0],) * 2)
    method.set_classes(fewer)
    plain = SCALE * test.images @ texts.name_vectors[[2, 0]].T
    assert torch.allclose(
        predict_logits(method, test.images) - plain,
        1.5 * memory[:, [2]] * torch.tensor([1.0, 0.0]),
        atol=1e-5,
    )


@pytest.mark.slow
def test_validation_images_choose_what_the_votes_weigh(train, texts):
    val = draw(60, 0.3, 4)
    chosen, fixed = begun("tip_adapter", train, texts, val), begun("tip_adapter", train, texts)
    accuracies = [
        (predict_logits(method, val.images).argmax(1) == val.labels).float().mean()
        for method in (chosen, fixed)
    ]
    assert (
        (fixed.alpha, fixed.beta) == (1.0, 5.5)
        and (chosen.alpha, chosen.beta) != (1.0, 5.5)
        and accuracies[0] >= accuracies[1]
    )
    grid = []
    for alpha in torch.arange(20) * (13 - 0.1) / 20 + 0.1:
        for beta in torch.arange(200) * (13 - 0.1) / 200 + 0.1:
            chosen.alpha.fill_(alpha), chosen.beta.fill_(beta)
            grid.append((predict_logits(chosen, val.images).argmax(1) == val.labels).float().mean())
    assert accuracies[0] == max(grid)


def test_tip_adapter_f_keeps_the_epoch_that_is_best_on_validation(train, texts, monkeypatch):
    val = draw(30, 0.3, 5)
    kind = resolve(METHODS, "tip_adapter_f", "method")
    kept = []
    compare = kind.compare
    monkeypatch.setattr(
        kind, "compare", lambda self: (compare(self), kept.append(self.keys.detach().clone()))[0]
    )
    # a rate that spoils the keys as it goes
    settings = RunSettings(data="d", method="tip_adapter_f", train={"epochs": 7, "batch_size": 5, "lr": 0.3})
    method = fit_method(settings, RunFacts(NAMES, DIM, SCALE, ""), data_of(train, texts, val))
    assert len(kept) == 7  # once an epoch, of 2 batches
    scores = []
    for keys in kept:
        method.keys.data.copy_(keys)
        votes = method.votes(val.images @ keys.T, 5.5)
        scores.append(
            ((SCALE * val.images @ texts.name_vectors.T + votes).argmax(1) == val.labels).float().mean()
        )
    assert torch.equal(method.best_keys, kept[scores.index(max(scores))])
    assert not {"best_keys", "best_accuracy", "seen"} & method.weights().keys()


def test_an_interrupted_choice_of_the_epoch_ends_the_same(train, texts, tmp_path):
    training = {"epochs": 8, "min_steps": 0, "batch_size": 5, "lr": 0.3, "save_seconds": 0}
    settings, facts = (
        RunSettings(data="d", method="tip_adapter_f", train=training),
        RunFacts(NAMES, DIM, SCALE, ""),
    )

    class Stopping(Run):
        def log(self, event):
            super().log(event)
            if event["epoch"] == 5:
                raise KeyboardInterrupt

    def fitted(run):
        return fit_method(settings, facts, data_of(train, texts, draw(30, 0.3, 5)), run=run).weights()

    with pytest.raises(KeyboardInterrupt):
        fitted(Stopping.start(tmp_path / "run", settings, facts, {}))
    whole, resumed = fitted(None), fitted(Run.start(tmp_path / "run", settings, facts, {}))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_a_memory_of_any_size_is_loaded(name, train, test, texts, tmp_path):
    settings, facts = RunSettings(data="d", method=name), RunFacts(NAMES, DIM, SCALE, "")
    method = fit_method(settings, facts, data_of(train, texts, draw(9, 0.3, 6)))
    run = Run.start(tmp_path / "run", settings, facts, {})
    run.keep_weights(method.weights())
    run.finish()
    loaded = Run.open(run.folder).method()
    loaded.set_classes(texts)
    assert torch.equal(predict_logits(loaded, test.images), predict_logits(method, test.images))
    assert loaded.weights().keys() == {"alpha", "beta", "keys", "owners"}


def test_validation_images_reach_only_who_asks_for_them(backbone, photos):
    from wordsight.data import open_dataset

    dataset = open_dataset(str(photos))
    with_val = dataclasses.replace(dataset, val=Split(dataset.train.pictures[:4], dataset.train.labels[:4]))

    def ask(name, data):
        return validation(backbone, data, RunSettings(data="d", method=name))

    val = ask("tip_adapter", with_val)
    assert val.images.shape == (4, backbone.dim) and val.labels.tolist() == dataset.train.labels[:4].tolist()
    assert ask("aape", with_val) is None and ask("tip_adapter", dataset) is None


@pytest.mark.parametrize(
    "name, shots, epochs",
    [
        ("taskres", 1, 100),
        ("taskres", 4, 100),
        ("taskres", 16, 200),
        ("clip_adapter", 1, 50),
        ("clap", 1, 300),
    ],
)
def test_epochs_follow_the_labelled_images(name, shots, epochs):
    assert RunSettings(data="d", method=name, shots=shots).train.epochs == epochs
    assert (
        RunSettings(data="d", method=name, shots=None).train.epochs
        == resolve(METHODS, name, "method").training_defaults.epochs
    )
    assert RunSettings(data="d", method=name, shots=shots, train={"epochs": 3}).train.epochs == 3


RATES = (1e-5, 0.5, 0.02)


def fit_at(rates, train, texts, val=None, run=None):
    settings = RunSettings(data="d", method="taskres", train={"lr": rates, "epochs": 5})
    return fit_method(settings, RunFacts(NAMES, DIM, SCALE, ""), data_of(train, texts, val), run=run)


@pytest.fixture
def run(tmp_path):
    settings, facts = RunSettings(data="d", method="taskres"), RunFacts(NAMES, DIM, SCALE, "")
    return Run.start(tmp_path / "run", settings, facts, {})


def test_the_rate_is_the_best_on_validation_images_accuracy_first(train, texts, run):
    val = draw(60, 0.3, 4)
    chosen = fit_at(RATES, train, texts, val, run)
    alone = {rate: fit_at(rate, train, texts) for rate in RATES}
    logits = {rate: predict_logits(method, val.images) for rate, method in alone.items()}
    right = {rate: float((one.argmax(1) == val.labels).float().mean()) for rate, one in logits.items()}
    losses = {rate: float(cross_entropy(one, val.labels)) for rate, one in logits.items()}
    best = max(RATES, key=lambda rate: (right[rate], -losses[rate]))
    assert best != RATES[0] and len(set(right.values())) > 1
    assert torch.equal(chosen.offsets, alone[best].offsets)
    (event,) = run.events("rate")
    assert event["rate"] == best
    for tried, rate in zip(event["tried"], RATES, strict=True):
        assert tried["rate"] == rate and tried["loss"] == pytest.approx(losses[rate])
        assert tried["accuracy"] == pytest.approx(100 * right[rate])
    steps = [one["step"] for one in run.events("train")]
    assert steps and len(steps) == len(set(steps))  # of the training that counts alone


def test_without_validation_images_the_first_rate_is_taken_and_said(train, texts, run, said):
    method = fit_at(RATES, train, texts, run=run)
    assert torch.equal(method.offsets, fit_at(RATES[0], train, texts).offsets)
    assert run.events("rate") == [{"event": "rate", "rate": RATES[0], "tried": []}]
    assert "no validation images: taskres is trained at its first rate, train.lr=1e-05" in said.text


def test_a_rate_at_which_training_fails_is_left_out(train, texts):
    val, tried = draw(9, 0.3, 4), []

    def at(rate, run):
        tried.append(rate)
        if rate > 1:
            raise WordsightError(f"the loss is nan at {rate}")
        return fit_at(rate, train, texts)

    assert best_of((2.0, 1e-3), at, val)[1] == 1e-3 and tried == [2.0, 1e-3]
    with pytest.raises(WordsightError, match="nan at 2"):
        best_of((2.0, 3.0), at, val)


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (0.1, -1)])
def test_rates_that_cannot_be_are_refused(rates):
    with pytest.raises(WordsightError, match=r"train\.lr=.* is not possible"):
        RunSettings(data="d", method="taskres", train={"lr": rates})


def test_rates_ask_for_validation_images_and_pairs_have_none():
    assert RunSettings(data="d", method="taskres").needs_val
    assert not RunSettings(data="d", method="taskres", train={"lr": 0.1}).needs_val
    assert RunSettings(data="d", method="taskres", train={"lr": "0.1,1e-3"}).train.lr == (0.1, 0.001)
    with pytest.raises(WordsightError, match="learns from pairs; give one rate"):
        RunSettings(data="d", method="two_tower", train={"lr": (0.1, 0.01)})


def test_the_linear_probe_sweeps_its_penalty_on_validation_images(train, texts):
    val = draw(60, 0.3, 4)
    swept = begun("linear_probe", train, texts, val)
    right = {
        strength: (predict_logits(begun("linear_probe", train, texts, strength=strength), val.images))
        for strength in SWEEP
    }
    right = {one: float((logits.argmax(1) == val.labels).float().mean()) for one, logits in right.items()}
    mine = float((predict_logits(swept, val.images).argmax(1) == val.labels).float().mean())
    assert mine == max(right.values())
    unswept, fixed = (begun("linear_probe", train, texts, **own) for own in ({}, {"strength": UNSWEPT}))
    assert torch.equal(unswept.weight, fixed.weight)
