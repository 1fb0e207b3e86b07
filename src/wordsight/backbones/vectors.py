"""Vectors: the text side of a file of vectors that were computed elsewhere. It knows the class names and
sentences whose vectors it was given, and no other text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import OWN_FILE, Backbone, fingerprint, unit
from wordsight.backbones.arrays import Arrays, read_arrays
from wordsight.backbones.hub import read_facts, save_json
from wordsight.files import WordsightError, new_folder, parse_json, read_tensors, write_tensors

FORMAT = 1
FILE = "texts.safetensors"


class Vectors(Backbone):
    """What a file of vectors says about words. A class's text is its bare name: what template it stood in is
    the file's affair.

    Image vectors come with the data (data/arrays.py); there is no image tower."""

    sentences: Mapping[str, tuple[str, ...]]

    def __init__(
        self,
        known: Mapping[str, Float[Tensor, " D"]],
        sentences: Mapping[str, tuple[str, ...]],
        *,
        dim: int,
        logit_scale: float,
        name: str,
    ):
        """`known` has the unit vector of each text, `sentences` those of each class."""
        self.name, self.dim, self.logit_scale = name, dim, logit_scale
        self.device = torch.device("cpu")
        self.known, self.sentences = known, sentences

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> Vectors:
        """Of a file of vectors, or of a folder of `save_pretrained`."""
        path = Path(path).expanduser()
        if path.is_file():
            return cls.of(read_arrays(path), name)
        kinds = {"dim": int, "logit_scale": (int, float), "sentences": dict}
        facts = read_facts(path / OWN_FILE, "backbone", "vectors", FORMAT, **kinds)
        tensors, metadata = read_tensors(path / FILE, "text vectors", sealed=True)
        texts = parse_json(metadata.get("texts", "[]"), f"texts of {path / FILE}")
        if not isinstance(texts, list) or tensors["vectors"].shape != (len(texts), facts["dim"]):
            raise WordsightError(
                f"{path / FILE} does not hold a vector of width {facts['dim']} for each text"
            )
        sentences = {about: tuple(own) for about, own in facts["sentences"].items()}
        known = dict(zip(texts, tensors["vectors"]))
        return cls(known, sentences, dim=facts["dim"], logit_scale=facts["logit_scale"], name=name)

    @classmethod
    def of(cls, arrays: Arrays, name: str) -> Vectors:
        """The text side of a file that is read already."""
        known: dict[str, Tensor] = {}
        for about, rows in arrays.sentence_vectors.items():
            known |= zip(arrays.sentences[about], unit(rows.float()))
        if arrays.text is not None:
            texts = [about.replace("_", " ") for about in arrays.classes]  # as in `fill`
            known |= zip(texts, unit(arrays.text.float()))
        return cls(known, arrays.sentences, dim=arrays.dim, logit_scale=arrays.logit_scale, name=name)

    def knowing(self, other: Vectors) -> Vectors:
        """The same, which also knows the other's texts; the other's vectors stand where both know one."""
        if other.dim != self.dim:
            raise WordsightError(
                f"{other.name!r} has vectors of width {other.dim}, {self.name!r} of {self.dim}: they are of "
                f"different backbones"
            )
        known, sentences = {**self.known, **other.known}, {**self.sentences, **other.sentences}
        return Vectors(known, sentences, dim=self.dim, logit_scale=self.logit_scale, name=self.name)

    @property
    def has_text(self) -> bool:
        return bool(self.known)

    def preprocess(self, image: Any, box: Any = None) -> Tensor:
        """Errors: WordsightError, always."""
        raise WordsightError(
            f"{self.name!r} holds vectors and no image tower, so it cannot encode images; give a file of "
            f"their vectors, or as backbone=... the one that made these"
        )

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Errors: WordsightError, always."""
        return self.preprocess(None)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Errors: WordsightError for a text whose vector is not known."""
        missing = [text for text in texts if text not in self.known]
        if missing and not self.has_text:
            raise WordsightError(
                f"{self.name!r} holds no text vectors, and this needs words; add text (one vector a class "
                f"name), or give as backbone=... the one that made the image vectors. linear_probe needs none"
            )
        if missing:
            raise WordsightError(
                f"{self.name!r} holds no vector of {_some(missing)}; it knows its class names and sentences. "
                f"Add it there, or give as backbone=... the one that made the image vectors"
            )
        return torch.stack([self.known[text] for text in texts]) if texts else torch.empty(0, self.dim)

    @cached_property
    def image_fingerprint(self) -> str:
        return f"vectors of width {self.dim}"

    @cached_property
    def text_fingerprint(self) -> str:
        texts = sorted(self.known)
        return fingerprint({"vectors": self.encode_text(texts)}, "vectors", texts, self.logit_scale)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the texts and their vectors; no image is among them."""
        texts = sorted(self.known)
        facts = {"kind": "vectors", "format": FORMAT, "dim": self.dim, "logit_scale": self.logit_scale}
        with new_folder(folder) as temporary:
            write_tensors(
                temporary / FILE, {"vectors": self.encode_text(texts)}, {"texts": json.dumps(texts)}
            )
            save_json(temporary / OWN_FILE, facts | {"sentences": self.sentences})


def _some(texts: Sequence[str]) -> str:
    more = f" and of {len(texts) - 1} more" if len(texts) > 1 else ""
    return f"the text {texts[0]!r}{more}"
