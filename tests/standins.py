"""Stand-ins that tests share: tiny backbones, painted photographs, and processes that are quickly there.

Apart from conftest.py, so that pytest's own process, which only hands tests out, imports no torch.
"""

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

from wordsight.backbones import Backbone, TokenReader, unit
from wordsight.config import METHODS, resolve
from wordsight.data import Picture
from wordsight.methods import Classifier


def mostly_slow(values: Iterable, *kept) -> list:
    """The values of a test's parameter, of which the default suite has `kept`, and `make slow` the others."""
    values = list(values)
    assert set(kept) <= set(values)
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = [() if value in kept else pytest.mark.slow for value in values]
    return [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks)]


COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (225, 215, 30),
    "purple": (150, 30, 170),
}
# but for those that are nothing without images that have no labels (tests/methods/test_pool.py)
CLASSIFIERS = [
    name
    for name in METHODS
    if issubclass(kind := resolve(METHODS, name, "method"), Classifier) and not kind.needs_pool
]
TOWER_LEARNERS = [name for name in CLASSIFIERS if resolve(METHODS, name, "method").needs_tower]
LETTERS = "abcdefghijklmnopqrstuvwxyz."


def in_processes(work, count: int, *arguments) -> None:
    """`work(rank, *arguments)` in so many processes at once."""
    _ready()
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")


def command(words, errors: Path):
    """The command line in a process and a session of its own, which a signal can reach; what it says on
    standard error stands in `errors`.
    """
    process = _ready().Process(target=_command, args=([str(word) for word in words], errors))
    process.start()
    return process


def _ready():
    """Processes that begin as copies of one that has imported all: two seconds sooner or, with transformers,
    eight.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wordsight.cli", "wordsight.fit_pairs", "sklearn.linear_model"])
    return context


def _command(words, errors):
    os.setsid()
    with open(errors, "wb") as file:
        os.dup2(file.fileno(), 2)
    # what runs in the background, as these tests may, ignores Ctrl-C, and so would what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from wordsight.cli import main

    sys.exit(main(words))


class ColourBackbone(Backbone, TokenReader):
    """Images are known by their mean colour, texts by the sum of their words' vectors, of which colour words
    mean that colour.
    """

    name, dim, device, logit_scale = "colours", 12, torch.device("cpu"), 20.0
    image_fingerprint, text_fingerprint = "colour-image", "colour-text"

    def __init__(self):
        self.ids = {"": 0}  # of every word that was ever read; 0 fills what is left of a row
        self.token_embedding = torch.nn.Embedding(
            5_000, self.dim, _weight=torch.zeros(5_000, self.dim)
        ).requires_grad_(False)

    def preprocess(self, image, box=None):
        return torch.from_numpy(np.array(image.resize((4, 4), box=box))).permute(2, 0, 1).contiguous()

    def encode_image(self, pixels):
        means = pixels.float().mean((2, 3)) / 255 - 0.4
        corners = pixels[:, :, ::3, ::3].float().flatten(1)[:, :9] / 255 - 0.5
        return unit(torch.cat([means, 0.3 * corners], 1))

    def encode_text(self, texts):
        return self.encode_tokens(self.tokenize(texts))

    def tokenize(self, texts):
        words = [text.lower().strip(".").split() for text in texts]
        for word in {word for row in words for word in row} - self.ids.keys():
            self.ids[word] = len(self.ids)
            self.token_embedding.weight[self.ids[word]] = self._word(word)
        longest = max(map(len, words), default=0)
        return {
            "input_ids": torch.tensor(
                [[self.ids[word] for word in row] + [0] * (longest - len(row)) for row in words]
            )
        }

    def encode_tokens(self, tokens, ends=None):
        return unit(self.token_embedding(tokens["input_ids"]).sum(1))

    def save_pretrained(self, folder):
        raise NotImplementedError

    def _word(self, word):
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=6).digest())
        vector = 0.15 * torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        if word in COLOURS:
            vector[:3] += torch.tensor(COLOURS[word]) / 255 - 0.4
        return vector


class Stub(Backbone):
    """A small tower that counts what goes through it."""

    name, dim, logit_scale, image_fingerprint, text_fingerprint = "stub", 12, 100.0, "stub-1", "stub-t"
    device = torch.device("cpu")

    def __init__(self):
        self.weight = torch.randn(12, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
        self.images, self.texts, self.calls, self.fail_after = 0, 0, 0, None
        self.lock = threading.Lock()

    def __reduce__(self):
        return Stub, ()  # another process counts by itself

    def preprocess(self, image, box=None):
        return (
            torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BICUBIC, box=box)))
            .permute(2, 0, 1)
            .contiguous()
        )

    def encode_image(self, pixels):
        with self.lock:
            if self.fail_after is not None and self.calls >= self.fail_after:
                raise KeyboardInterrupt
            self.calls += 1
            self.images += len(pixels)
        return unit(pixels.flatten(1).float() / 255 @ self.weight.T)

    def encode_text(self, texts):
        self.texts += len(texts)
        return unit(
            torch.stack(
                [
                    torch.randn(12, generator=torch.Generator().manual_seed(sum(text.encode())))
                    for text in texts
                ]
            )
        )

    def save_pretrained(self, folder):
        raise NotImplementedError


def encoded(number: int = 0, size=(12, 9), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pictures(*contents) -> list[Picture]:
    return [
        Picture(f"picture {row}", partial(lambda content: content, content))
        for row, content in enumerate(contents)
    ]


def shards(folder) -> list:
    return sorted(folder.glob("features/*/*.safetensors"))


def paint(colour, seed: int, size: int = 8) -> Image.Image:
    """A noisy patch of one colour."""
    noise = np.random.default_rng(seed).normal(0, 45, (size, size, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def fill_folder(root: Path, names=("red", "green", "blue"), count: int = 6) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            paint(COLOURS[name], 100 * number + index).save(root / name / f"{index}.png")
    return root


def letters():
    """A tokenizer of single letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel(
            {word: row for row, word in enumerate(["<unk>", "<s>", "</s>", *" abcdefghijklmnopqrstuvwxyz."])},
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.Lowercase(),
        pre_tokenizers.Split("", "isolated"),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def without_digests(folder: Path) -> Path:
    """A folder as an earlier version wrote it: nobody knows what its files held."""
    for name in ("wordsight_backbone.json", "tower.json"):
        if (folder / name).is_file():
            facts = json.loads((folder / name).read_text())
            facts.pop("files", None)
            facts.get("base", {}).pop("files", None)
            (folder / name).write_text(json.dumps(facts))
    return folder


@contextlib.contextmanager
def replaced(folder: Path):
    """Meanwhile an LM's folder holds another: its word head is moved."""
    from transformers import AutoModelForCausalLM

    kept = (folder / "model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.add_(0.5)
    model.save_pretrained(folder)
    try:
        yield
    finally:
        (folder / "model.safetensors").write_bytes(kept)


def captioned(folder: Path, captions: Sequence[str], *, count: int = 3) -> Path:
    """`count` images a colour in `folder`, the last of each for testing, with these captions, in which {name}
    is the colour and {index} the image's place.
    """
    columns = [f"caption_{place}" for place in range(1, len(captions) + 1)]
    rows = [["path", "split", *(columns if len(captions) > 1 else ["caption"])]]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(count):
            paint(colour, 100 * number + index).save(folder / f"{name}{index}.png")
            part = "test" if index == count - 1 else "train"
            said = [caption.format(name=name, index=index) for caption in captions]
            rows.append([f"{name}{index}.png", part, *said])
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder
