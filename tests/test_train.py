"""The one loop: batches by position, the protocol's schedule, and interrupted training that ends in the same
bits.
"""

import math
import os
import signal
import threading

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from wordsight import train as module
from wordsight.batches import FeatureBatches
from wordsight.config import TrainSettings, WordsightError
from wordsight.methods import Learner
from wordsight.train import STATE_FILE, learning_rate, total_steps, train

ADAM = TrainSettings(epochs=6, min_steps=0, batch_size=4, lr=0.01, save_seconds=0.0)
SGD = TrainSettings(
    epochs=6,
    min_steps=0,
    batch_size=4,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=0.01,
    warmup_epochs=1,
    save_seconds=0.0,
)


class Kept:
    """A run folder's part in training."""

    def __init__(self, state=None, events=None):
        self.state, self.events = state, [] if events is None else events

    def log(self, event):
        self.events.append(event)

    def rewind(self, step):
        self.events[:] = [event for event in self.events if event["step"] <= step]


class Small(Learner):
    """Dropout, a buffer that training moves, a frozen parameter and two learning rates: all that resuming can
    get wrong.
    """

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.norm, self.last = (
            nn.Linear(6, 8),
            nn.Dropout(0.5),
            nn.BatchNorm1d(8),
            nn.Linear(8, 3),
        )
        self.first.bias.requires_grad_(False)

    def parameter_groups(self):
        return [
            {"params": [self.first.weight, *self.norm.parameters()], "lr_scale": 1.0},
            {"params": list(self.last.parameters()), "lr_scale": 3.0},
        ]

    def loss(self, batch):
        hidden = self.norm(self.drop(self.first(batch["images"]).relu()))
        return {
            "cross_entropy": F.cross_entropy(self.last(hidden), batch["labels"]),
            "decay": 0.01 * self.last.weight.square().sum(),
        }


def batches(settings=ADAM, seed=1):
    stream = torch.Generator().manual_seed(0)
    return FeatureBatches(
        torch.randn(13, 2, 6, generator=stream), torch.arange(13) % 3, settings.batch_size, seed
    )


def small():
    torch.manual_seed(0)
    return Small()


class Interrupted:
    """The same batches, with `act` done when step `at` is asked for."""

    def __init__(self, inner, at, act):
        self.inner, self.at, self.act, self.count = inner, at, act, 0

    def __len__(self):
        return len(self.inner)

    def batch(self, epoch, index):
        if self.count == self.at:
            self.act()
        self.count += 1
        return self.inner.batch(epoch, index)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def killed():
    raise MemoryError("as good as a kill: nothing is saved on the way out")


def bits(learner):
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [ADAM, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("stop, error", [(ctrl_c, KeyboardInterrupt), (killed, MemoryError)])
@pytest.mark.parametrize("at", [1, 7])
def test_resumed_training_ends_in_the_same_bits(tmp_path, settings, stop, error, at):
    unbroken = bits(train(small(), batches(settings), settings, seed=1))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error):
        train(small(), Interrupted(batches(settings), at, stop), settings, seed=1, run=Kept(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before
    with safe_open(tmp_path / STATE_FILE, framework="pt") as file:
        assert int(file.metadata()["step"]) == at + (stop is ctrl_c)  # Ctrl-C waits for the end of its step
    torch.manual_seed(99)  # what was drawn since does not matter
    assert same(bits(train(small(), batches(settings), settings, seed=1, run=Kept(tmp_path))), unbroken)


def test_a_state_written_long_before_the_kill_serves_as_well(tmp_path):
    unbroken = bits(train(small(), batches(), ADAM, seed=1))
    with pytest.raises(KeyboardInterrupt):
        train(small(), Interrupted(batches(), 2, ctrl_c), ADAM, seed=1, run=Kept(tmp_path))
    seldom = TrainSettings(**{**vars(ADAM), "save_seconds": 1000.0})
    with pytest.raises(MemoryError):
        train(small(), Interrupted(batches(), 5, killed), seldom, seed=1, run=Kept(tmp_path))
    assert same(bits(train(small(), batches(), ADAM, seed=1, run=Kept(tmp_path))), unbroken)


def test_an_interrupt_without_a_state_folder_still_stops():
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 18"):
        train(small(), Interrupted(batches(), 2, ctrl_c), ADAM, seed=1)


def test_training_off_the_main_thread_leaves_signals_alone():
    done = []
    worker = threading.Thread(target=lambda: done.append(train(small(), batches(), ADAM, seed=1)))
    worker.start()
    worker.join()
    assert same(bits(done[0]), bits(train(small(), batches(), ADAM, seed=1)))


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(b"x" * 20)
    with pytest.raises(WordsightError, match=r"state\.safetensors cannot be read.*to begin anew"):
        train(small(), batches(), ADAM, seed=1, run=Kept(tmp_path))


def test_the_state_is_safetensors_with_nothing_to_unpickle(tmp_path):
    train(small(), batches(), ADAM, seed=1, run=Kept(tmp_path))
    with safe_open(tmp_path / STATE_FILE, framework="pt") as file:
        names = set(file.keys())
    assert {
        "model.norm.running_mean",
        "model.first.weight",
        "optimizer.0.exp_avg",
        "optimizer.0.step",
    } <= names
    assert (
        "model.first.bias" not in names
    )  # frozen: a language model's weights would be written every few seconds
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_the_schedule_is_the_protocol_s():
    epochs, lr = 50, 0.002
    settings = TrainSettings(epochs=epochs, lr=lr, warmup_epochs=1)
    assert learning_rate(settings, 0, 1, epochs) == 1e-5
    for epoch in range(1, epochs):
        assert learning_rate(settings, epoch, 1, epochs) == pytest.approx(
            lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs)), rel=1e-12
        )
    assert learning_rate(settings, 1, 1, epochs) == lr
    assert learning_rate(TrainSettings(lr=lr), 0, 1, epochs) == lr


def test_by_step_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    settings = TrainSettings(schedule="step", warmup_steps=4, lr=0.5)
    rates = [learning_rate(settings, step, 5, 20) for step in range(20)]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5] and rates[4] == 0.5
    assert rates[12] == pytest.approx(0.25) and rates[19] == pytest.approx(
        0.25 * (1 + math.cos(math.pi * 15 / 16))
    )


def test_the_loop_follows_the_schedule_and_each_group_s_scale(monkeypatch):
    seen = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *a, **k: (seen.append([g["lr"] for g in self.param_groups]), original(self, *a, **k))[1],
    )
    train(small(), batches(SGD), SGD, seed=1)
    assert len(seen) == 18
    for step, (one, three) in enumerate(seen):
        assert one == learning_rate(SGD, step, 3, 18) and three == 3 * one


def test_min_steps_adds_epochs_and_stretches_the_schedule():
    events = []
    settings = TrainSettings(epochs=1, min_steps=10, batch_size=4)
    train(small(), batches(settings), settings, seed=1, run=Kept(events=events))
    assert (events[-1]["epoch"], events[-1]["step"]) == (4, 12)  # three batches an epoch
    assert events[-1].keys() == {"event", "epoch", "step", "cross_entropy", "decay"}


def test_max_steps_ends_training_in_the_middle_of_an_epoch_and_the_schedule_runs_over_it(monkeypatch):
    events, settings = (
        [],
        TrainSettings(epochs=50, max_steps=5, batch_size=4, schedule="step", lr=0.1, log_steps=2),
    )
    train(small(), batches(settings), settings, seed=1, run=Kept(events=events))
    assert [(event["epoch"], event["step"]) for event in events] == [(1, 2), (2, 4), (2, 5)]
    assert learning_rate(settings, 4, 3, 5) == pytest.approx(0.05 * (1 + math.cos(math.pi * 4 / 5)))
    assert total_steps(settings, 3) == 5 and total_steps(TrainSettings(epochs=2, min_steps=7), 3) == 9


class Rising(Small):
    """Its loss is what `losses` say of each step; its scale is at its bound from the beginning."""

    at_bound, condition = True, "the scale is 100, of at most 100"

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def loss(self, batch):
        return {"contrastive": next(self.losses) + 0 * self.last.weight.sum()}


@pytest.mark.parametrize(
    "losses, free, says",
    [
        (
            [5, 5, 5, 5, 6, 6],
            True,
            r"the mean loss of 2 steps is 6 at step 6, and was 5 in the first 2; lower train.lr \(now "
            r"0.01, the scale is 100",
        ),
        (
            [5, 5, 1, 1, 3, 3],
            False,
            r"the mean loss of 2 steps is 3 at step 6, and was 1 in the best 2; .* give another out=.*: .* "
            r"keeps these settings",
        ),
    ],
)
def test_training_that_gets_worse_stops_with_a_sentence(tmp_path, monkeypatch, losses, free, says):
    monkeypatch.setattr(module, "WINDOW", 2)
    monkeypatch.setattr(Rising, "at_bound", not free)
    settings = TrainSettings(max_steps=8, batch_size=4, lr=0.01, save_seconds=0.0)
    with pytest.raises(WordsightError, match=says):
        train(Rising([*losses, 9, 9]), batches(settings), settings, seed=1, run=Kept(tmp_path / "state"))
    state = (tmp_path / "state" / STATE_FILE).read_bytes()
    with safe_open(tmp_path / "state" / STATE_FILE, framework="pt") as file:
        assert int(file.metadata()["step"]) == 5  # of the last save, which also knows what the losses were
    with pytest.raises(WordsightError, match=says):
        train(Rising([losses[-1]]), batches(settings), settings, seed=1, run=Kept(tmp_path / "state"))
    assert (tmp_path / "state" / STATE_FILE).read_bytes() == state


@pytest.mark.parametrize(
    "losses, bound", [([5, 5, 1, 1, 3, 3], False), ([5, 5, 1, 1, 1.1, 1.1], True), ([-2, -2, -2, -2], True)]
)
def test_a_loss_that_falls_or_stands_is_left_alone(monkeypatch, losses, bound):
    monkeypatch.setattr(module, "WINDOW", 2)
    monkeypatch.setattr(Rising, "at_bound", bound)
    settings = TrainSettings(max_steps=len(losses), batch_size=4)
    train(Rising(losses), batches(settings), settings, seed=1)


def test_a_term_that_holds_what_was_learned_may_rise(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 2)
    settings = TrainSettings(max_steps=6, batch_size=4)

    class Held(Rising):
        at_bound, pulls = False, ("pull",)

        def loss(self, batch):
            pull = next(self.losses)
            return {"contrastive": 0 * self.last.weight.sum() + 1, "pull": torch.tensor(float(pull))}

    train(Held([0, 0, 1, 1, 2, 2]), batches(settings), settings, seed=1)
    monkeypatch.setattr(Held, "pulls", ())
    with pytest.raises(WordsightError, match="training gets worse"):
        train(Held([0, 0, 1, 1, 2, 2]), batches(settings), settings, seed=1)


def test_sigterm_waits_for_the_end_of_its_step_too(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        train(
            small(),
            Interrupted(batches(), 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
            ADAM,
            seed=1,
            run=Kept(tmp_path),
        )
    assert same(
        bits(train(small(), batches(), ADAM, seed=1, run=Kept(tmp_path))),
        bits(train(small(), batches(), ADAM, seed=1)),
    )


def test_a_loss_that_is_not_finite_ends_in_a_sentence(tmp_path):
    class Bad(Small):
        def loss(self, batch):
            return {"cross_entropy": super().loss(batch)["cross_entropy"] * float("nan")}

    with pytest.raises(WordsightError, match=r"the loss is nan at step 0; lower train.lr \(now 0.01\)"):
        train(Bad(), batches(), ADAM, seed=1, run=Kept(tmp_path))
    assert not (tmp_path / STATE_FILE).exists()


def test_gradients_are_clipped_where_asked():
    settings = TrainSettings(
        epochs=1, min_steps=1, batch_size=13, optimizer="sgd", lr=1.0, momentum=0.0, clip_norm=1e-3
    )
    learner = small()
    before = bits(learner)
    after = bits(train(learner, batches(settings), settings, seed=1))
    moved = [after[name] - before[name] for name in ("first.weight", "norm.weight", "norm.bias")]
    moved += [(after[name] - before[name]) / 3 for name in ("last.weight", "last.bias")]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_frozen_parameter_stays_and_the_learner_ends_in_eval_mode():
    learner = small()
    before = learner.first.bias.clone()
    trained = train(learner, batches(), ADAM, seed=1)
    assert torch.equal(trained.first.bias, before) and not trained.training and trained is learner


def test_threads_are_given_back(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    before = torch.get_num_threads()
    train(small(), batches(), ADAM, seed=1)
    assert torch.get_num_threads() == before


# -- batches -------------------------------------------------------------------------------------------------


def numbered(count=12, views=3, size=4):
    """Each image says which it is and which view it is."""
    images = torch.stack(torch.meshgrid(torch.arange(count), torch.arange(views), indexing="ij"), -1).float()
    return FeatureBatches(images, torch.arange(count), size, seed=5)


def test_every_image_comes_once_an_epoch_in_another_order():
    source = numbered()
    epochs = [
        torch.cat([source.batch(epoch, index)["labels"] for index in range(len(source))])
        for epoch in range(3)
    ]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_is_decided_by_its_place_alone():
    source, other = numbered(), numbered()
    far = other.batch(2, 1)
    source.batch(0, 0)
    assert all(torch.equal(source.batch(2, 1)[key], far[key]) for key in far)
    changed = FeatureBatches(source.images, source.labels, 4, seed=6)
    assert not torch.equal(changed.batch(2, 1)["labels"], far["labels"])


def test_views_are_drawn_and_stay_with_their_label():
    source = numbered()
    drawn = [source.batch(epoch, index) for epoch in range(10) for index in range(3)]
    assert all(torch.equal(batch["images"][:, 0].long(), batch["labels"]) for batch in drawn)
    assert {int(view) for batch in drawn for view in batch["images"][:, 1]} == {0, 1, 2}


def test_what_is_left_over_waits_and_few_images_make_one_batch():
    assert [len(numbered(count)) for count in (3, 4, 7, 8)] == [1, 1, 1, 2]
    assert len(numbered(3).batch(0, 0)["labels"]) == 3
    seen = {int(label) for epoch in range(20) for label in numbered(7).batch(epoch, 0)["labels"]}
    assert seen == set(range(7))


def test_a_step_that_the_memory_does_not_hold_gets_a_sentence(monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 46 GiB")

    monkeypatch.setattr(Small, "loss", full)
    with pytest.raises(WordsightError, match=r"cpu has no memory left for a step of .* train.batch_size"):
        train(small(), batches(), ADAM, seed=1)
