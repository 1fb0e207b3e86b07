"""CLIP: any dual encoder of transformers (CLIP, SigLIP, SigLIP 2, VisionTextDualEncoder) as a frozen
backbone. The bundled micro CLIP is one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipModel,
    VisionTextDualEncoderModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from wordsight.backbones import Backbone, TokenReader, fingerprint, unit
from wordsight.backbones.images import FILE as PREPROCESSOR_FILE
from wordsight.backbones.images import Preprocess, read_preprocessor_config
from wordsight.config import WordsightError

MODELS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPModel,
    "siglip": SiglipModel,  # SigLIP 2's checkpoints of fixed resolution are of this type too
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKENS_PER_BATCH = 8192  # padding counted: bounds the memory of a text batch whatever its length
WAYS_ON = (
    "give a local folder in transformers' layout, the hub name of a cached or reachable model, or "
    "`backbone=micro` (bundled; for glyph-like images)"
)

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a folder in transformers' layout holds."""

    model: PreTrainedModel
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
        self.dtype = DTYPES[dtype]
        self.device = device
        self.truncated_texts = 0  # texts that were longer than `max_tokens` and lost their tail
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
        model.to(self.dtype)
        for key, value in scalars.items():  # kept in float32: bfloat16 would save exp(4.605) as 98.9
            getattr(model, key).data = value
        model.to(device)
        self.dim = getattr(model.config, "projection_dim", None) or model.config.vision_config.hidden_size

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
        if dtype not in DTYPES:
            raise WordsightError(f"dtype={dtype!r} is not a choice; the choices are {', '.join(DTYPES)}")
        parts = _read(str(path), name)
        _check(parts, name)
        return cls(parts, name=name, device=device, dtype=dtype)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.transform(image, box)

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        pixels = self.transform.normalise(pixels.to(self.device), self.dtype)
        return unit(self.model.get_image_features(pixel_values=pixels).pooler_output.float())

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        distinct = list(dict.fromkeys(texts))
        tokens = self._tokenize(distinct)
        vectors = torch.empty(len(distinct), self.dim, device=self.device)
        for rows in self._batches([len(ids) for ids in tokens["input_ids"]]):
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
            _shape(self.model.config.vision_config),
            self.transform.facts(),
            self.dtype,
        )

    @cached_property
    def text_fingerprint(self) -> str:
        reading = (_tokenizer_facts(self.tokenizer), self.max_tokens, self._lower_case)
        return fingerprint(
            _side(self.model, ("text_model.", "text_projection.")),
            _shape(self.model.config.text_config),
            reading,
            self.dtype,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, tokenizer and preprocessing in transformers' layout, under a temporary name until
        all is there.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WordsightError(
                f"{str(folder)!r} already holds something; give a folder that does not exist yet"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.saving")
        shutil.rmtree(temporary, ignore_errors=True)  # of a save that was killed
        with _quiet():
            self.model.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        (temporary / PREPROCESSOR_FILE).write_text(
            json.dumps(self.transform.to_dict(), indent=2) + "\n", encoding="utf-8"
        )
        temporary.replace(folder)

    def _tokenize(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token ids a text, unpadded; a text that is too long loses its tail but keeps its end token, and is
        counted.
        """
        if not texts:
            return {"input_ids": []}
        texts = [text.lower() for text in texts] if self._lower_case else texts
        tokens = dict(self.tokenizer(texts, verbose=False))
        long = [row for row, ids in enumerate(tokens["input_ids"]) if len(ids) > self.max_tokens]
        for row in long:
            for key, ids in self.tokenizer(texts[row], truncation=True, max_length=self.max_tokens).items():
                tokens[key][row] = ids
        if long:
            self.truncated_texts += len(long)
            log.warning(
                "%d of %d texts are longer than the %d tokens that %s reads; their ends were cut off",
                len(long),
                len(texts),
                self.max_tokens,
                self.name,
            )
        highest = max(max(ids, default=0) for ids in tokens["input_ids"])
        if highest >= self.model.config.text_config.vocab_size:
            size = self.model.config.text_config.vocab_size
            raise WordsightError(
                f"the tokenizer of {self.name!r} gives token {highest}, but its text tower knows only "
                f"{size}: they do not belong together"
            )
        return tokens

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows in batches of like length, longest first, so that the first batch needs the most memory."""
        rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        start = 0
        while start < len(rows):
            width = self.max_tokens if self._fixed_length else max(1, lengths[rows[start]])
            size = max(1, TOKENS_PER_BATCH // width)
            yield rows[start : start + size]
            start += size

    def _pad(self, tokens: dict[str, list[list[int]]]) -> dict[str, Tensor]:
        """Rectangles of token ids. Padding only to the batch's longest is exact for a causal tower read at
        its end token and for one with an attention mask; SigLIP's is neither, and gets the length it was
        trained with."""
        pad = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id or 0
        )
        fill = {"input_ids": pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        width = self.max_tokens if self._fixed_length else max(len(ids) for ids in tokens["input_ids"])
        left = self.tokenizer.padding_side == "left"
        padded = {}
        for key, rows in tokens.items():
            blank = [[fill.get(key, 0)] * (width - len(row)) for row in rows]
            padded[key] = torch.tensor(
                [gap + row if left else row + gap for gap, row in zip(blank, rows)], device=self.device
            )
        return padded


def _read(path: str, name: str) -> Parts:
    """The parts of a local folder, of the hub's cache, or of the hub."""
    if Path(path).is_dir():
        return _load(path, name, local_files_only=True)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise WordsightError(f"backbone folder {name!r} does not exist; {WAYS_ON}")
    try:
        if isinstance(try_to_load_from_cache(path, "config.json"), str):
            return _load(path, name, local_files_only=True)
    except WordsightError as error:
        if not isinstance(error.__cause__, OSError):  # an OSError: a file is not cached, so the hub is asked
            raise
    except ValueError as error:
        raise WordsightError(
            f"backbone {name!r} is neither a local folder nor a hub name ({_first_line(error)}); {WAYS_ON}"
        ) from error
    try:
        HfApi().model_info(
            path, timeout=10
        )  # one quick question instead of transformers' half minute of retries
    except Exception as error:
        raise WordsightError(
            f"backbone {name!r} is not a local folder, not complete in the hub's cache, and the hub did "
            f"not give it ({_first_line(error)}); {WAYS_ON}"
        ) from error
    return _load(path, name, local_files_only=False)


def _load(path: str, name: str, local_files_only: bool) -> Parts:
    with _quiet() if local_files_only else contextlib.nullcontext():  # a download shows its bars
        with _reading(name, "config.json"):
            if Path(path).is_dir():
                _check_folder(Path(path), name)
            kind = PreTrainedConfig.get_config_dict(path, local_files_only=local_files_only)[0].get(
                "model_type"
            )
            if kind not in MODELS:
                raise WordsightError(f"backbone {name!r} is of model_type {kind!r}: {_what_it_is(kind)}")
        with _reading(name, PREPROCESSOR_FILE):
            preprocessor = read_preprocessor_config(path, local_files_only=local_files_only)
            if preprocessor is None:
                raise OSError("there is none")
            preprocess = Preprocess.from_pretrained(preprocessor, model_type=kind, name=name)
        with _reading(name, "the tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=local_files_only, trust_remote_code=False
            )
        with _reading(name, "the weights"):
            model = _load_model(path, name, MODELS[kind], local_files_only)
    return Parts(model, tokenizer, preprocess)


@contextlib.contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except WordsightError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,
        LookupError,
        AttributeError,
        SafetensorError,
    ) as error:
        mend = "; pip install sentencepiece protobuf" if isinstance(error, ImportError) else ""
        raise WordsightError(
            f"backbone {name!r}: {what} cannot be read ({_first_line(error)}){mend}"
        ) from error


def _load_model(path: str, name: str, kind: type[PreTrainedModel], local_files_only: bool) -> PreTrainedModel:
    """The model in float32, every tensor of it from the checkpoint and none of the checkpoint's left over."""
    model, info = kind.from_pretrained(
        path,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are an error below, with their names
        local_files_only=local_files_only,
    )
    for what, key in (
        ("lacks", "missing_keys"),
        ("has too many:", "unexpected_keys"),
        ("has in another shape than config.json:", "mismatched_keys"),
    ):
        if info[key]:
            tensors = sorted(entry if isinstance(entry, str) else entry[0] for entry in info[key])
            more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
            raise WordsightError(
                f"the checkpoint of {name!r} {what} {', '.join(tensors[:3])}{more}; its config.json and "
                f"weights do not belong together"
            )
    return model


def _check_folder(folder: Path, name: str) -> None:
    """Absent files in words. transformers would make up a tokenizer of three words, or unpickle."""
    if not (folder / "config.json").is_file():
        raise WordsightError(f"backbone folder {name!r} holds no config.json of transformers; {WAYS_ON}")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in MODELS:
        return  # _load says what would do
    if not any(folder.glob("model*.safetensors")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        why = (
            f"only {pickled[0]}, a pickle, which is never opened; save it with safetensors "
            f"(model.save_pretrained)"
            if pickled
            else "no weights (model.safetensors)"
        )
        raise WordsightError(f"backbone folder {name!r} holds {why}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise WordsightError(
            f"backbone folder {name!r} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])} or the like); "
            f"copy it from where the model came from"
        )
    if read_preprocessor_config(folder) is None:
        raise WordsightError(
            f"backbone folder {name!r} holds no {PREPROCESSOR_FILE}, so how to make its pixels is unknown; "
            f"copy it from where the model came from"
        )


def _check(parts: Parts, name: str) -> None:
    """Towers, tokenizer and pixels belong together: what would otherwise crash late, or give wrong vectors in
    silence.
    """
    model, tokenizer, preprocess = parts
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise WordsightError(
            f"the tokenizer of {name!r} knows no words, only {tokenizer.all_special_tokens}: its "
            f"vocabulary file is missing"
        )
    size = getattr(model.config.vision_config, "image_size", None)
    if model.config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model") and (
        preprocess.height,
        preprocess.width,
    ) != (
        size,
        size,
    ):
        raise WordsightError(
            f"{PREPROCESSOR_FILE} of {name!r} makes {preprocess.height}x{preprocess.width} pixels, but its "
            f"image tower takes {size}x{size}"
        )
    text = model.config.text_config
    if text.model_type in ("clip", "clip_text_model"):
        ids = tokenizer("a")["input_ids"]
        end = (
            max(ids) if text.eos_token_id == 2 else text.eos_token_id
        )  # 2: transformers reads old checkpoints at their highest token
        if end not in ids or ids.index(end) != len(ids) - 1:
            raise WordsightError(
                f"the tokenizer of {name!r} does not end a text with token {end}, where its text tower "
                f"reads the vector; "
                f"set eos_token_id of text_config in config.json to {tokenizer.eos_token_id}, or take the "
                f"tokenizer the tower was trained with"
            )
    if isinstance(model, VisionTextDualEncoderModel):
        _check_pooling(parts, name)


def _check_pooling(parts: Parts, name: str) -> None:
    """Both towers of a VisionTextDualEncoder must pool to one vector; which do is only known by trying."""
    pixels = torch.zeros(1, 3, parts.preprocess.height, parts.preprocess.width)
    tries = (
        ("image", parts.model.get_image_features, {"pixel_values": pixels}),
        ("text", parts.model.get_text_features, parts.tokenizer("a", return_tensors="pt")),
    )
    for tower, encode, inputs in tries:
        kind = getattr(parts.model.config, "vision_config" if tower == "image" else "text_config").model_type
        try:
            with torch.no_grad():
                shape = tuple(encode(**inputs).pooler_output.shape)
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
            shape = _first_line(error)
        if shape != (1, parts.model.config.projection_dim):
            raise WordsightError(
                f"the {tower} tower of {name!r} ({kind}) does not pool to one vector ({shape}); take "
                f"towers whose pooler_output is [B, width]"
            )


def _what_it_is(kind: str | None) -> str:
    join = "`wordsight join` makes a backbone of an image encoder and a text encoder"
    choices = f"a dual encoder is needed here, one of {', '.join(MODELS)}"
    if kind == "siglip2":
        return (
            "SigLIP 2 for images of any size (NaFlex); take a checkpoint of fixed resolution, such as "
            "google/siglip2-base-patch16-224"
        )
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or str(kind).endswith("_vision_model"):
        return f"an image encoder alone, without a text tower; {choices}; {join}"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or str(kind).endswith("_text_model"):
        return f"a text encoder alone, without an image tower; {choices}; {join}"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return (
            f"a decoder language model, without an image tower; {choices}; {join}, and an LLM can be its "
            f"text encoder"
        )
    return f"{choices}; {join}"


def _side(model: PreTrainedModel, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}


def _shape(config: PreTrainedConfig) -> str:
    """What a tower computes besides its weights (heads, activation, epsilon), without what says who wrote the
    file.
    """
    drop = (
        "transformers_version",
        "dtype",
        "torch_dtype",
        "architectures",
        "attn_implementation",
        "id2label",
        "label2id",
    )
    return json.dumps(
        {
            key: value
            for key, value in config.to_dict().items()
            if not key.startswith("_") and key not in drop
        },
        sort_keys=True,
        default=str,
    )


def _tokenizer_facts(tokenizer: Any) -> str:
    """What decides the ids of a text, and no path of a file."""
    reading = [tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_input_names]
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        reading.append(
            {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
        )  # those two change with calls
    else:
        reading += [
            type(tokenizer).__name__,
            tokenizer.get_vocab(),
            tokenizer.init_kwargs.get("do_lower_case"),
        ]
    return json.dumps(reading, sort_keys=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and loading reports; what matters of these is an error here."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
