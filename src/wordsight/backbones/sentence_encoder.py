"""sentence_encoder: a text encoder alone, such as MiniLM or mpnet: the words of methods that learn texts
beside an image tower without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from wordsight.backbones import (
    Backbone,
    fingerprint,
    kind_of,
    load_backbone,
    pick_device,
    pick_dtype,
    source_of,
)
from wordsight.backbones.checkpoint import config_facts, tokenizer_facts
from wordsight.backbones.joined import TextEncoder, encode_texts, read_text_encoder
from wordsight.config import WordsightError


class SentenceEncoder(Backbone):
    """Texts alone: unit vectors, pooled from the encoder's last states as `read_text_encoder` says."""

    logit_scale = 100.0  # CLIP's highest; nothing reads it, for there is no image to compare with
    image_fingerprint = ""

    def __init__(self, text: TextEncoder, *, name: str, device: torch.device, dtype: str = "float32"):
        self.name, self.device, self.dtype = name, device, pick_dtype(dtype)
        frozen = text.model.eval().requires_grad_(False)
        # transformers' stub wraps `to` and loses `self`
        self.text = text._replace(model=frozen.to(device))  # pyright: ignore[reportArgumentType]
        self.dim, self.max_tokens = self.text.width(name), text.max_tokens

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> SentenceEncoder:
        """From a folder of transformers or a hub name. Errors: WordsightError for whatever does not fit."""
        text = read_text_encoder(str(path), dtype=pick_dtype(dtype))
        return cls(text, name=name, device=device, dtype=dtype)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        return encode_texts(self.text, texts) if texts else torch.empty(0, self.dim, device=self.device)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [length > self.max_tokens for length in self.text.lengths(list(texts))]

    @cached_property
    def text_fingerprint(self) -> str:
        reading = (tokenizer_facts(self.text.tokenizer), self.text.pooling, self.text.max_tokens)
        return fingerprint(
            self.text.model.state_dict(), config_facts(self.text.model.config), reading, self.dtype
        )

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> NoReturn:
        raise self._alone()

    def encode_image(self, pixels: Tensor) -> NoReturn:
        raise self._alone()

    def save_pretrained(self, folder: str | Path) -> NoReturn:
        raise self._alone()

    def _alone(self) -> WordsightError:
        return WordsightError(f"{self.name!r} is a text encoder alone, and sees no image")


def load_texts(name: str, *, device: str = "auto", dtype: str = "float32") -> Backbone:
    """What encodes texts behind a name: a backbone's text tower, or a sentence encoder. Errors: as
    `load_backbone`.
    """
    kind, path = kind_of(name.removeprefix("hf:"), False)
    if kind != "vision":
        return load_backbone(name, device=device, dtype=dtype)
    found = SentenceEncoder.from_pretrained(path, name=name, device=pick_device(device), dtype=dtype)
    found.source = source_of(name)
    return found
