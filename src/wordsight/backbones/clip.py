"""CLIP: any dual encoder of transformers (CLIP, SigLIP, SigLIP 2, VisionTextDualEncoder) as a frozen
backbone. The bundled micro CLIP is one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from wordsight.backbones import (
    Backbone,
    TokenReader,
    batches,
    fingerprint,
    pick_dtype,
    several,
    tell_truncated,
    unit,
)
from wordsight.backbones.checkpoint import (
    Place,
    config_facts,
    padding_of,
    read_config,
    read_model,
    read_settings,
    read_tokenizer,
    reading,
    tokenizer_facts,
)
from wordsight.backbones.grids import grid_of, pooled
from wordsight.backbones.hub import find, first_line, save_json, save_part
from wordsight.backbones.inner_lm import MLLMS
from wordsight.backbones.pixels import FILE as PREPROCESSOR_FILE
from wordsight.backbones.pixels import Preprocess, read_preprocess
from wordsight.config import WordsightError
from wordsight.files import new_folder

MODELS = {  # model_type: the class of transformers, imported where a checkpoint is of it
    "clip": "clip.modeling_clip:CLIPModel",
    "siglip": "siglip.modeling_siglip:SiglipModel",  # SigLIP 2 of fixed resolution is of this type too
    "vision-text-dual-encoder": "vision_text_dual_encoder.modeling_vision_text_dual_encoder"
    ":VisionTextDualEncoderModel",
}
TOKENS_PER_BATCH = 8192  # padding counted: bounds the memory of a text batch whatever its length


if TYPE_CHECKING:

    class DualEncoder(PreTrainedModel):
        """What those have and transformers' class of all models does not declare."""

        get_image_features: Callable[..., Any]
        get_text_features: Callable[..., Any]
        vision_model: PreTrainedModel
        text_model: PreTrainedModel
        text_projection: nn.Linear  # of CLIP's text towers


class Parts(NamedTuple):
    """What a folder in transformers' layout holds."""

    model: DualEncoder
    tokenizer: Any
    preprocess: Preprocess


class CLIP(Backbone, TokenReader):
    """An image tower and a text tower trained together, frozen, used as transformers uses them.

    Vectors equal `get_image_features` and `get_text_features` of transformers, scaled to length one. Differs
    from transformers in one point: SigLIP 2 was trained on lower-cased text, which its Gemma tokenizer does
    not do by itself, so SigLIP towers see lower-cased text here."""

    def __init__(self, parts: Parts, *, name: str, device: torch.device, dtype: str):
        model, self.tokenizer, self.transform = parts
        self.name = name
        self.dtype = pick_dtype(dtype)
        self.device = device
        self.model = model.eval().requires_grad_(False)
        scalars = {
            key: value.clone()
            for key, value in model.named_parameters()
            if key in ("logit_scale", "logit_bias")
        }
        self.logit_scale = float(scalars["logit_scale"].exp())
        self.logit_bias = (
            float(scalars["logit_bias"]) if "logit_bias" in scalars else None
        )  # SigLIP's; a softmax does not see it
        # transformers' stub wraps `to` and loses `self`
        model.to(self.dtype)  # pyright: ignore[reportArgumentType]
        for key, value in scalars.items():  # kept in float32: bfloat16 would save exp(4.605) as 98.9
            getattr(model, key).data = value
        # transformers' stub wraps `to` and loses `self`
        model.to(device)  # pyright: ignore[reportArgumentType]
        self.dim = shared_width(model.config)

        text = model.config.text_config
        self._fixed_length = text.model_type.startswith(
            "siglip"
        )  # trained on 64 padded tokens; its vector is that of the last one
        self._lower_case = self._fixed_length and self.tokenizer.init_kwargs.get("do_lower_case", True)
        self.max_tokens = min(
            getattr(text, "max_position_embeddings", self.tokenizer.model_max_length),
            self.tokenizer.model_max_length,
        )
        if not self._fixed_length:
            self.tokenizer.padding_side = "right"

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> CLIP:
        """From a folder in transformers' layout or a hub name; the cache is asked before the network.

        Errors: WordsightError for whatever is absent or does not fit. No tensor is ever left at random, and
        nothing is unpickled."""
        pick_dtype(dtype)  # before anything is read
        parts = _read(Place(find(str(path), "backbone"), "backbone", name))
        with reading(name, "the model"):
            _check(parts, name)
        return cls(parts, name=name, device=device, dtype=dtype)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.transform(image, box)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.transform.to_dict()

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        pixels = self.transform.normalise(pixels.to(self.device), self.dtype)
        return unit(self.model.get_image_features(pixel_values=pixels).pooler_output.float())

    @torch.no_grad()
    def encode_grid(self, pixels: UInt8[Tensor, "B 3 H W"], tokens: int) -> Float[Tensor, "B G Wv"]:
        """The last states of the image tower's patches, before they are pooled and projected."""
        given = self.transform.normalise(pixels.to(self.device), self.dtype)
        states = self.model.vision_model(pixel_values=given).last_hidden_state
        patch = getattr(self.model.config.vision_config, "patch_size", None)
        return pooled(grid_of(states, self.transform.height, self.transform.width, patch, self.name), tokens)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        distinct = list(dict.fromkeys(several(texts)))
        tokens = self._tokenize(distinct)
        vectors = torch.empty(len(distinct), self.dim, device=self.device)
        lengths = [self.max_tokens if self._fixed_length else len(ids) for ids in tokens["input_ids"]]
        for rows in batches(lengths, 0, TOKENS_PER_BATCH):
            vectors[rows] = self.encode_tokens(
                self._pad({key: [values[row] for row in rows] for key, values in tokens.items()})
            )
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[[row_of[text] for text in texts]]

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        if not texts:
            return []
        texts = [text.lower() for text in texts] if self._lower_case else list(texts)
        return [len(ids) > self.max_tokens for ids in self.tokenizer(texts, verbose=False)["input_ids"]]

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tell_truncated(self.truncated(texts), self.max_tokens, self.name)
        return self._pad(self._tokenize(list(texts)))

    def encode_tokens(
        self, tokens: dict[str, Tensor], ends: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N D"]:
        if ends is None:
            return unit(self.model.get_text_features(**tokens).pooler_output.float())
        tokens = tokens | {"attention_mask": tokens["attention_mask"].to(self.dtype)}
        states = self.model.text_model(**tokens).last_hidden_state[ends[:, 0], ends[:, 1]]
        return unit(self.model.text_projection(states).float())

    @property
    def row_tokens(self) -> int:
        return (
            self.max_tokens if self.model.config.text_config.model_type in ("clip", "clip_text_model") else 0
        )

    @property
    def token_embedding(self) -> nn.Module:
        return self.model.text_model.get_input_embeddings()

    @cached_property
    def image_fingerprint(self) -> str:
        return fingerprint(
            _side(self.model, ("vision_model.", "visual_projection.")),
            config_facts(self.model.config.vision_config),
            self.transform.facts(),
            self.dtype,
        )

    @cached_property
    def text_fingerprint(self) -> str:
        reading = (tokenizer_facts(self.tokenizer), self.max_tokens, self._lower_case)
        return fingerprint(
            _side(self.model, ("text_model.", "text_projection.")),
            config_facts(self.model.config.text_config),
            reading,
            self.dtype,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, tokenizer and preprocessing in transformers' layout, under a temporary name until
        all is there.
        """
        with new_folder(folder) as temporary:
            save_part(temporary, self.model, self.tokenizer)
            save_json(temporary / PREPROCESSOR_FILE, self.transform.to_dict())

    def _tokenize(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token ids a text, unpadded; a text that is too long loses its tail but keeps its end token."""
        if not texts:
            return {"input_ids": []}
        texts = [text.lower() for text in texts] if self._lower_case else texts
        tokens = dict(self.tokenizer(texts, verbose=False))
        long = [row for row, ids in enumerate(tokens["input_ids"]) if len(ids) > self.max_tokens]
        for row in long:
            for key, ids in self.tokenizer(texts[row], truncation=True, max_length=self.max_tokens).items():
                tokens[key][row] = ids
        highest = max(max(ids, default=0) for ids in tokens["input_ids"])
        if highest >= self.model.config.text_config.vocab_size:
            size = self.model.config.text_config.vocab_size
            raise WordsightError(
                f"the tokenizer of {self.name!r} gives token {highest}, but its text tower knows only "
                f"{size}: they do not belong together"
            )
        return tokens

    def _pad(self, tokens: dict[str, list[list[int]]]) -> dict[str, Tensor]:
        """Rectangles of token ids. Padding only to the batch's longest is exact for a causal tower read at
        its end token and for one with an attention mask; SigLIP's is neither, and gets the length it was
        trained with."""
        fill = {"input_ids": padding_of(self.tokenizer), "token_type_ids": self.tokenizer.pad_token_type_id}
        width = self.max_tokens if self._fixed_length else max(len(ids) for ids in tokens["input_ids"])
        left = self.tokenizer.padding_side == "left"
        padded = {}
        for key, rows in tokens.items():
            blank = [[fill.get(key, 0)] * (width - len(row)) for row in rows]
            padded[key] = torch.tensor(
                [gap + row if left else row + gap for gap, row in zip(blank, rows)], device=self.device
            )
        return padded


def _read(place: Place) -> Parts:
    kind = read_settings(place).get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        raise WordsightError(f"{place} is of model_type {kind!r}: {_what_it_is(str(kind))}")
    config = read_config(place)
    tokenizer, preprocess = read_tokenizer(place), read_preprocess(place, kind)
    model = cast("DualEncoder", read_model(model_class(kind), place, config))
    return Parts(model, tokenizer, preprocess)


def model_class(kind: str) -> type[PreTrainedModel]:
    """The class of transformers of a model_type in `MODELS`."""
    module, _, name = MODELS[kind].partition(":")
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def _check(parts: Parts, name: str) -> None:
    """Towers, tokenizer and pixels belong together: what would otherwise crash late, or give wrong vectors in
    silence.
    """
    model, tokenizer, preprocess = parts
    vision, text = model.config.vision_config, model.config.text_config
    size, made = getattr(vision, "image_size", None), (preprocess.height, preprocess.width)
    if vision.model_type in ("clip_vision_model", "siglip_vision_model") and made != (size, size):
        raise WordsightError(
            f"{PREPROCESSOR_FILE} of {name!r} makes {made[0]}x{made[1]} pixels, but its image tower takes "
            f"{size}x{size}"
        )
    if text.model_type in ("clip", "clip_text_model"):
        ids = tokenizer("a")["input_ids"]
        # 2: transformers reads old checkpoints at their highest token
        end = max(ids) if text.eos_token_id == 2 else text.eos_token_id
        if end not in ids or ids.index(end) != len(ids) - 1:
            raise WordsightError(
                f"the tokenizer of {name!r} does not end a text with token {end}, where its text tower "
                f"reads the vector; "
                f"set eos_token_id of text_config in config.json to {tokenizer.eos_token_id}, or take the "
                f"tokenizer the tower was trained with"
            )
    _check_pooling(parts, name)


@torch.no_grad()
def _check_pooling(parts: Parts, name: str) -> None:
    """Both towers pool to one vector of finite numbers, as wide as the other's: only known by trying."""
    pixels = torch.zeros(1, 3, parts.preprocess.height, parts.preprocess.width)
    tries = (
        ("image", parts.model.get_image_features, {"pixel_values": pixels}),
        ("text", parts.model.get_text_features, parts.tokenizer("a", return_tensors="pt")),
    )
    for tower, encode, inputs in tries:
        kind = getattr(parts.model.config, "vision_config" if tower == "image" else "text_config").model_type
        try:
            vector = encode(**inputs).pooler_output
            shape = tuple(vector.shape) if bool(vector.isfinite().all()) else "numbers that are not finite"
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
            shape = first_line(error)
        if shape != (1, shared_width(parts.model.config)):
            raise WordsightError(
                f"the {tower} tower of {name!r} ({kind}) does not pool to one vector ({shape}); take "
                f"towers whose pooler_output is [B, width]"
            )


def shared_width(config: Any) -> int:
    """D: how wide both towers' vectors are."""
    return getattr(config, "projection_dim", None) or config.vision_config.hidden_size


def _what_it_is(kind: str) -> str:
    join = "`wordsight join` makes a backbone of an image encoder and a text encoder"
    choices = f"a dual encoder is needed here, one of {', '.join(MODELS)}"
    if kind == "siglip2":
        return (
            "SigLIP 2 for images of any size (NaFlex); take a checkpoint of fixed resolution, such as "
            "google/siglip2-base-patch16-224"
        )
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or kind.endswith("_vision_model"):
        return f"an image encoder alone, without a text tower; {choices}; {join}"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind.endswith("_text_model"):
        return f"a text encoder alone, without an image tower; {choices}; {join}"
    if kind in MLLMS:
        return (
            f"an image-text-to-text model, whose texts have no vectors: `wordsight caption` and `wordsight "
            f"ask` use it, and a two_tower its image tower, or its language model as settings.text; {choices}"
        )
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return (
            f"a decoder language model, without an image tower; {choices}; {join}, and an LLM can be its "
            f"text encoder"
        )
    return f"{choices}; {join}"


def _side(model: PreTrainedModel, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
