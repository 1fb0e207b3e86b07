"""Joined: any image encoder and any text encoder made one backbone by a linear map. What fits the map is
join.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from wordsight.backbones import (
    OWN_FILE,
    Backbone,
    TokenReader,
    batches,
    fingerprint,
    pick_dtype,
    several,
    unit,
)
from wordsight.backbones.checkpoint import (
    Place,
    config_facts,
    exactly,
    read_tokenizer,
    reading,
    tokenizer_facts,
    vocabulary_size,
)
from wordsight.backbones.hub import (
    SAVE_AGAIN,
    find,
    read_facts,
    read_mapping,
    save_json,
    save_part,
    weights_in,
)
from wordsight.backbones.pixels import FILE as PREPROCESSOR_FILE
from wordsight.backbones.vision import (
    POOLINGS,
    ImageTower,
    encoder_config,
    image_tower,
    read_encoder,
    width_of,
)
from wordsight.config import WordsightError
from wordsight.digests import check_digests, digests
from wordsight.files import new_folder, write_tensors

FORMAT = 1
MAP_FILE = "map.safetensors"
MAP_NAMES = ("image_mean", "text_mean", "text_to_shared")
PARTS = (("vision", "image"), ("text", "text"))  # folders, and what encoders lie in them
TEXT_POOLINGS = ("mean", "cls", "last")
TOKENS_PER_BATCH = 8192  # padding counted: bounds the memory of a text batch whatever its length
# where the text encoder does not say: sentences about classes are shorter, and a longer cap costs only memory
MAX_TOKENS = 256


class TextEncoder(NamedTuple):
    """A text encoder with its tokenizer; its vector is pooled over the tokens and scaled to length one."""

    model: PreTrainedModel
    tokenizer: Any
    pooling: str
    max_tokens: int

    def __call__(self, texts: list[str]) -> Float[Tensor, "B W"]:
        return self.pooled(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {key: value.to(self.model.device) for key, value in tokens.items()}

    def pooled(self, tokens: dict[str, Tensor]) -> Float[Tensor, "B W"]:
        states = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"]
        if self.pooling == "cls":
            return unit(states[:, 0])
        if self.pooling == "last":
            return unit(states[torch.arange(len(states), device=mask.device), mask.sum(1) - 1])
        return unit((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def lengths(self, texts: list[str]) -> list[int]:
        ids = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        known, highest = (
            vocabulary_size(self.model),
            max((max(row, default=0) for row in ids), default=0),
        )
        if highest >= known:
            raise WordsightError(
                f"the tokenizer gives token {highest}, but the text encoder knows only {known}: they do "
                f"not belong together"
            )
        return [len(row) for row in ids]

    def width(self, name: str) -> int:
        return width_of(self, ["a"], name)


class Joined(Backbone, TokenReader):
    """Two frozen encoders that were never trained together, in one space.

    The space is the image encoder's, centred: image = unit(vision(x) - image_mean), text = unit((text(t) -
    text_mean) @ text_to_shared). Made by `join`; kept as a folder that needs nothing outside it."""

    def __init__(
        self,
        vision: ImageTower,
        text: TextEncoder,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        *,
        name: str,
        device: torch.device,
        dtype: str,
    ):
        self.name = name
        self.device = device
        self.dtype = pick_dtype(dtype)
        frozen = vision.model.eval().requires_grad_(False)
        # transformers' stub wraps `to` and loses `self`
        frozen = frozen.to(device)  # pyright: ignore[reportArgumentType]
        self.vision = vision._replace(model=frozen)
        frozen = text.model.eval().requires_grad_(False)
        # transformers' stub wraps `to` and loses `self`
        frozen = frozen.to(device)  # pyright: ignore[reportArgumentType]
        self.text = text._replace(model=frozen)
        self.tensors = {key: tensors[key].float().to(device) for key in MAP_NAMES}  # the map stays in float32
        self.facts = facts
        self.logit_scale = float(facts["logit_scale"])
        self.dim = len(self.tensors["image_mean"])

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> Joined:
        """From a folder of `join`. Errors: WordsightError for whatever is absent or does not fit; no tensor
        is random, nothing is unpickled.
        """
        number, path = pick_dtype(dtype), Path(path)
        facts = _read_facts(path / OWN_FILE)
        check_digests(path, facts.get("files"), SAVE_AGAIN)
        image, words = (Place(path / part, f"{sort} encoder", name) for part, sort in PARTS)
        vision = image_tower(image, facts["pooling"], whole=True, dtype=number)
        text = text_encoder(words, facts["text_pooling"], facts["max_tokens"], whole=True, dtype=number)
        shape = {key: torch.empty(size) for key, size in _map_sizes(vision.width(name), text.width(name))}
        if not (path / MAP_FILE).is_file():
            raise WordsightError(
                f"backbone {name!r} holds no {MAP_FILE}; it is not complete, make it again with `wordsight "
                f"join`"
            )
        tensors = exactly(path / MAP_FILE, shape, f"backbone {name!r}")
        return cls(vision, text, tensors, facts, name=name, device=device, dtype=dtype)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.vision.transform(image, box)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.vision.transform.to_dict()

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return unit(self.vision(pixels) - self.tensors["image_mean"])

    @torch.no_grad()
    def encode_grid(self, pixels: UInt8[Tensor, "B 3 H W"], tokens: int) -> Float[Tensor, "B G Wv"]:
        return self.vision.grid(pixels, tokens, self.name)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        return self._shared(encode_texts(self.text, texts))

    @property
    def max_tokens(self) -> int:
        return self.text.max_tokens

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [length > self.text.max_tokens for length in self.text.lengths(list(texts))]

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self.text.tokenize(texts)

    def encode_tokens(
        self, tokens: dict[str, Tensor], ends: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N D"]:
        return self._shared(self.text.pooled(tokens))

    @property
    def token_embedding(self) -> nn.Module:
        return self.text.model.get_input_embeddings()

    def _shared(self, vectors: Float[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        return unit((vectors - self.tensors["text_mean"]) @ self.tensors["text_to_shared"])

    @cached_property
    def image_fingerprint(self) -> str:
        tensors = self.vision.model.state_dict() | {"image_mean": self.tensors["image_mean"]}
        return fingerprint(
            tensors,
            config_facts(self.vision.model.config),
            self.vision.transform.facts(),
            self.vision.pooling,
            self.dtype,
        )

    @cached_property
    def text_fingerprint(self) -> str:
        tensors = self.text.model.state_dict() | {
            key: self.tensors[key] for key in ("text_mean", "text_to_shared")
        }
        reading = (tokenizer_facts(self.text.tokenizer), self.text.pooling, self.text.max_tokens)
        return fingerprint(tensors, config_facts(self.text.model.config), reading, self.dtype)

    @property
    def parts(self) -> dict[str, str]:
        fitted = self.facts.get("fitted") or {}
        return {f"{kind} encoder": str(fitted.get(part, "")) for part, kind in PARTS}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both encoders in transformers' layout and the map, under a temporary name until all is
        there.
        """
        with new_folder(folder) as temporary:
            save_part(temporary / "vision", self.vision.model)
            save_part(temporary / "text", self.text.model, self.text.tokenizer)
            save_json(temporary / "vision" / PREPROCESSOR_FILE, self.vision.transform.to_dict())
            write_tensors(temporary / MAP_FILE, self.tensors)
            files = digests(temporary, weights_in(temporary, [part for part, _ in PARTS]))
            save_json(temporary / OWN_FILE, self.facts | {"files": files})


def _map_sizes(width: int, text_width: int) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(MAP_NAMES, ((width,), (text_width,), (text_width, width))))


@torch.no_grad()
def encode_texts(text: TextEncoder, texts: Sequence[str]) -> Float[Tensor, "N W"]:
    """Vectors in the order of `texts`, each distinct text once, longest first."""
    distinct = list(dict.fromkeys(several(texts)))
    lengths = [min(length, text.max_tokens + 1) for length in text.lengths(distinct)]
    order, vectors = [], []
    for rows in batches(lengths, 0, TOKENS_PER_BATCH):
        vectors.append(text([distinct[row] for row in rows]))
        order += rows
    place = {distinct[row]: position for position, row in enumerate(order)}
    return torch.cat(vectors)[[place[words] for words in texts]]


def read_text_encoder(name: str, pooling: str = "auto", dtype: torch.dtype = torch.float32) -> TextEncoder:
    """The text encoder behind a folder or hub name, pooled (`auto`) and cut as sentence-transformers' files
    beside it say; where they say nothing, its vector is the mean.
    """
    place = Place(find(name, "text encoder"), "text encoder", name)
    longest = _told(place, "sentence_bert_config.json").get("max_seq_length")
    if pooling == "auto":
        told = _told(place, "1_Pooling/config.json")
        keys = (("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "last"))
        pooling = next((ours for key, ours in keys if told.get(f"pooling_mode_{key}")), "mean")
    if longest is not None and (not isinstance(longest, int) or longest < 1):
        raise WordsightError(f"{place}: sentence_bert_config.json has max_seq_length={longest!r}")
    return text_encoder(place, pooling, longest, whole=False, dtype=dtype)


def _told(place: Place, file: str) -> dict[str, Any]:
    path = place.folder / file
    return read_mapping(path, f"{place}:") if path.exists() else {}


def text_encoder(
    place: Place,
    pooling: str,
    max_tokens: int | None,
    *,
    whole: bool,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """The text encoder in a folder of transformers. `whole`: nothing of its checkpoint may be left over."""
    config = encoder_config(place, "input_ids")
    tokenizer = read_tokenizer(place)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # decoders have none; the mask hides it
    reads = [
        max_tokens or MAX_TOKENS,
        tokenizer.model_max_length,
        getattr(config, "max_position_embeddings", None) or MAX_TOKENS,
    ]
    model = read_encoder(place, config, pooler=False, whole=whole, dtype=dtype)
    found = TextEncoder(model, tokenizer, pooling, min(reads))
    with reading(place.name, "the text encoder"):
        if found.lengths(["a"])[0] > found.max_tokens:
            raise WordsightError(f"{place} reads {found.max_tokens} tokens, which hold no text")
        found.width(place.name)
    return found


def _read_facts(file: Path) -> dict[str, Any]:
    kinds = {"pooling": str, "text_pooling": str, "logit_scale": (int, float), "max_tokens": int}
    facts = read_facts(file, "joined backbone", "joined", FORMAT, **kinds)
    if facts["pooling"] not in POOLINGS or facts["text_pooling"] not in TEXT_POOLINGS:
        raise WordsightError(
            f"{file} has pooling={facts['pooling']!r}, text_pooling={facts['text_pooling']!r}; the choices "
            f"are {', '.join(POOLINGS)} and {', '.join(TEXT_POOLINGS)}"
        )
    if not 0 < facts["logit_scale"] < math.inf or facts["max_tokens"] < 1:
        raise WordsightError(
            f"{file} has logit_scale={facts['logit_scale']}, max_tokens={facts['max_tokens']}; both are "
            f"above 0"
        )
    return facts
