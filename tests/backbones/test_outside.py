"""A backbone of somebody else: a class by its module and name, with or without an argument, held to the
contract.
"""

import sys

import pytest

from wordsight import tables
from wordsight.backbones import load_backbone
from wordsight.files import WordsightError

SOURCE = """
import torch
from wordsight.backbones import Backbone

class Plain(Backbone):
    dim, logit_scale = 4, 10.0
    image_fingerprint, text_fingerprint = "i", "t"

    @classmethod
    def from_pretrained(cls, path, *, name, device, dtype="float32"):
        made = cls()
        made.name, made.device, made.path = name, device, path
        return made

    def preprocess(self, image, box=None):
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    def encode_image(self, pixels):
        return torch.eye(4)[:1].expand(len(pixels), 4)

    def encode_text(self, texts):
        return torch.eye(4)[:1].expand(len(texts), 4)

    def save_pretrained(self, folder):
        raise NotImplementedError

class Half(Backbone):
    from_pretrained = Plain.from_pretrained

    def encode_text(self, texts):
        return []

class Other:
    from_pretrained = encode_image = encode_text = preprocess = save_pretrained = print

class Nameless(Plain):
    image_fingerprint = None

class Failing(Plain):
    @classmethod
    def from_pretrained(cls, path, **more):
        return {}["weights"]
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "outside_backbones.py").write_text(SOURCE)
    (tmp_path / "outside_broken.py").write_text("import a_library_that_is_not_here")
    monkeypatch.syspath_prepend(tmp_path)
    yield "outside_backbones"
    for name in ("outside_backbones", "outside_broken"):
        sys.modules.pop(name, None)


def test_a_class_by_its_module_and_name(theirs):
    found = load_backbone(f"{theirs}:Plain", device="cpu")
    assert found.name == found.source == found.path == f"{theirs}:Plain"
    assert found.truncated(["a"]) == [False] and found.encode_text(["a", "b"]).shape == (2, 4)


def test_what_stands_behind_the_at_sign_is_its_argument(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    found = load_backbone(f"{theirs}:Plain@weights", device="cpu")
    assert found.path == "weights" and found.source == f"{theirs}:Plain@{tmp_path / 'weights'}"
    again = load_backbone(found.source, device="cpu")
    assert again.path == str(tmp_path / "weights") and again.source == found.source


def test_an_installed_package_names_its_own(theirs, monkeypatch):
    entry = tables.importlib.metadata.EntryPoint("plain", f"{theirs}:Plain", "wordsight.backbones")
    monkeypatch.setattr(tables.importlib.metadata, "entry_points", lambda group: [entry])
    assert load_backbone("plain@big", device="cpu").path == "big"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("outside_backbones:Half", "lacks encode_image, preprocess, save_pretrained"),
        ("outside_backbones:Other", "is no subclass of it"),
        ("outside_backbones:torch", "contract"),
        ("outside_backbones:Nameless", "has no image_fingerprint"),
        ("outside_backbones:Failing", "cannot be loaded .*KeyError: 'weights'"),
        ("outside_backbones:Gone", "has no attribute 'Gone'"),
        ("outside_broken:Plain", "No module named 'a_library_that_is_not_here'"),
        ("outside_nowhere:Plain", "No module named 'outside_nowhere'"),
    ],
)
def test_what_does_not_keep_the_contract(theirs, name, says):
    with pytest.raises(WordsightError, match=says) as caught:
        load_backbone(name, device="cpu")
    assert name in str(caught.value)
