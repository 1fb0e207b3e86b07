"""Where a backbone runs: a device that is not here is refused in words, what was made on one is read on the
CPU, and of several cards the one that the main thread chose is used by every thread. Cards are faked; what
needs real ones is in tests/test_gpu.py.
"""

import threading

import pytest
import torch
from PIL import Image
from standins import pictures
from torch.overrides import TorchFunctionMode

from wordsight import fit_pairs, train
from wordsight.backbones import device_or_cpu, load_backbone, pick_device
from wordsight.backbones.text_tower import TextTower
from wordsight.config import RunSettings
from wordsight.data.features import image_features
from wordsight.files import WordsightError
from wordsight.methods.two_tower import TwoTower, tower_settings
from wordsight.tower_settings import TwoTowerSettings


@pytest.fixture
def two_cards(monkeypatch):
    """The main thread has chosen the second of two cards; other threads still have the first."""

    def current():
        return int(threading.current_thread() is threading.main_thread())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", current)


def test_auto_is_what_there_is():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "hpu", "mps:7"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(WordsightError, match=f"device='{device}' is not on this machine; give auto"):
        pick_device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 3.5])
def test_what_is_no_device(device):
    with pytest.raises(WordsightError, match=r"is not known; give auto, cpu, cuda|is not on this machine"):
        pick_device(device)


def test_asking_for_it_outright_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(WordsightError, match="not on this machine"):
        load_backbone("micro", device="cuda:99")


def test_what_is_no_device_is_told_of_a_run_s_own_too():
    with pytest.raises(WordsightError, match="device='warp9' is not known"):
        device_or_cpu("warp9")


def test_what_was_made_on_another_device_is_read_on_the_cpu_and_told(said):
    assert [device_or_cpu(device) for device in ("auto", "cpu", "cuda:99")] == ["auto", "cpu", "cpu"]
    assert said == ["device=cuda:99 is not on this machine; the CPU stands in for it"]


def test_a_device_is_known_by_its_index(two_cards):
    names = ("auto", "cuda", "cuda:0", torch.device("cuda"), "cpu")
    assert [str(pick_device(name)) for name in names] == ["cuda:1", "cuda:1", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(WordsightError, match="device='cuda:2' is not on this machine"):
        pick_device("cuda:2")


def test_pixels_go_to_the_main_thread_s_card_in_every_thread(two_cards, tiny_clip, tmp_path, monkeypatch):
    backbone, seen, real = load_backbone(tiny_clip, device="cpu"), [], torch.Tensor.to
    backbone.device = pick_device("cuda")  # its weights stay on the CPU, and so do pixels that go there

    def to(self, *where, **named):
        if where and isinstance(where[0], torch.device) and where[0].type == "cuda":
            seen.append((threading.current_thread(), str(where[0])))
            return self
        return real(self, *where, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    images = (Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in range(8))
    found = image_features(backbone, pictures(*images), folder=tmp_path, batch_size=2)
    assert len(found.vectors) == 8 and {place for _, place in seen} == {"cuda:1"}
    assert threading.main_thread() not in {thread for thread, _ in seen}


def test_one_card_is_not_given_to_several_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(fit_pairs, "join_processes", lambda device: (1, 2))
    settings = RunSettings(data=str(tmp_path), method="two_tower", device="cpu:0")
    with pytest.raises(
        WordsightError, match="device=cpu:0 is the same for all of 2 processes; give device=cpu,"
    ):
        fit_pairs.fit_pairs(settings)


def test_the_generator_of_the_device_in_use_is_seeded(monkeypatch):
    cards = [torch.Generator().manual_seed(0) for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "default_generators", cards)
    with torch.random.fork_rng():
        train._seed(7, torch.device("cuda:1"))
        assert torch.initial_seed() == 7
    assert [generator.initial_seed() for generator in cards] == [0, 7]


@pytest.mark.gpu
def test_on_a_card_dropout_depends_on_the_seed_alone(card):
    cards = [torch.device(card, index) for index in range(torch.cuda.device_count())]
    for device in cards:  # the last of several is not the current one
        drawn = []
        torch.zeros(1, device=device)  # as a learner is there before its loop seeds anything
        for _ in range(2):
            train._seed(7, device)
            drawn.append(torch.rand(5, device=device))
        assert torch.equal(*drawn)


class NoFloat64(TorchFunctionMode):
    """Some tensors, and what is made of them, lie on a device without float64, as Apple's, until they go to
    the CPU.
    """

    def __init__(self, tensors):
        self.there = {id(tensor): tensor for tensor in tensors}
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            return made.clone()
        if isinstance(made, torch.Tensor) and any(id(one) in self.there for one in args):
            if made.dtype == torch.float64:
                raise TypeError("there is no float64 on this device")
            self.there[id(made)] = made
        return made


@pytest.mark.parametrize("depth", [1, 2])
def test_a_ridge_start_asks_for_no_float64_of_the_device(lm, depth):
    given = TwoTowerSettings(text=str(lm), wrapper="plain", prompts=2, heads=2, depth=depth)
    method = TwoTower(TextTower.from_base(lm, tower_settings(given, 12)), given)
    states, images, before = torch.randn(5, 16), torch.randn(5, 12), method.text.head[-1].weight.clone()
    with NoFloat64([states, images, *method.parameters(), *method.buffers()]):
        method.start_at_ridge(states, images)
        with pytest.raises(TypeError, match="no float64"):
            states.double()
    assert not torch.equal(method.text.head[-1].weight, before)
