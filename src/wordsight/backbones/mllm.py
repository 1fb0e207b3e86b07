"""MLLM: an image-text-to-text model of transformers (LLaVA, Qwen2-VL and 2.5-VL, SmolVLM, PaliGemma, Idefics
2 and 3 and kin) as it comes: it writes about images, and its image tower is a backbone's.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText

from wordsight.backbones import GIVES_TEXT, Backbone, fingerprint, pick_dtype, unit
from wordsight.backbones.checkpoint import (
    Place,
    check_finite,
    config_facts,
    positions_of,
    read_config,
    read_model,
    reading,
)
from wordsight.backbones.generator import (
    Generator,
    Pieces,
    Prompt,
    Seen,
    Turn,
    Writing,
    messages_of,
)
from wordsight.backbones.hub import TOWER_FILES, find, first_line
from wordsight.backbones.inner_lm import MLLMS, inner_lm
from wordsight.backbones.lm import write_on
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.processors import read_processor, with_images
from wordsight.backbones.sampling import keep_ends
from wordsight.backbones.scoring import Behind, alike
from wordsight.backbones.streaming import Streamed
from wordsight.backbones.tokens import rendered
from wordsight.backbones.turns import in_turn
from wordsight.config import WordsightError
from wordsight.files import new_folder

LONG = 8  # sides of an image so far apart are tried before many images are read together
SIDE = 448  # pixels of the image tower's squares where the model takes any size (Qwen2-VL)
ASKS_CAPTION = "Describe the image in one short sentence."
ASKS_SHORT = "{} Answer with a word or two."
# what models without a chat template were trained to be asked: for a caption, and for an answer
PROMPTS = {"paligemma": ("caption en", "answer en {}")}
INSTEAD = (
    "give an image-text-to-text model such as SmolVLM, LLaVA or Qwen2-VL, or a run of limber, which gives an "
    "LM an image input"
)
NOT_READ = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")  # by a tower


class MLLM(Backbone, Generator):
    """Writes about images by its own prompts: through its chat template where it has one.

    As an image tower its vector is the mean, at length one, of what its LM reads of the image's centre
    square: the tower's states behind the layers that lead to the LM. It has no text tower; the LM inside is
    taken for one by `settings.text`."""

    logit_scale = 100.0  # CLIP's highest; nothing reads it, for there is no text to compare with
    text_fingerprint = ""
    has_text = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        *,
        folder: Path,
        name: str,
        device: torch.device,
        dtype: str = "float32",
    ):
        """`folder` is where both were read from. Errors: WordsightError where they do not fit."""
        self.name, self.device, self.dtype, self.folder = name, device, pick_dtype(dtype), folder
        frozen = model.eval().requires_grad_(False)
        # transformers' stub wraps `to` and loses `self`
        self.model = frozen.to(device, self.dtype)  # pyright: ignore[reportArgumentType]
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token = _image_token(processor, model, name)
        keep_ends(self.model, self.tokenizer)
        vision = getattr(model.config, "vision_config", None)
        size = getattr(vision, "image_size", None)
        self.side = size if isinstance(size, int) else SIDE
        self.needs_image = model.config.model_type in PROMPTS
        self.dim = self._try()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> MLLM:
        """From a folder in transformers' layout or a hub name, all of it: every tensor from the checkpoint
        and none left over, no pickle, no code beside the model.

        Errors: WordsightError for whatever is absent or does not fit, and for what reads no images."""
        place = Place(find(str(path), "image-text model"), "image-text model", name)
        config = read_config(place)
        if config.model_type not in MLLMS:
            raise WordsightError(f"{place} is a {config.model_type}, which has no image input; {INSTEAD}")
        if config.get_text_config() is config:
            raise WordsightError(f"{place} is a {config.model_type}, whose form is not read here; {INSTEAD}")
        processor = read_processor(place, config.model_type)
        model = read_model(AutoModelForImageTextToText, place, config, dtype=pick_dtype(dtype))
        model.name_or_path = str(path)
        return cls(model, processor, folder=place.folder, name=name, device=device, dtype=dtype)

    # -- writing --

    def see(self, images: Sequence[Image.Image]) -> list[Seen]:
        """The images as they are: how the model cuts one depends on the prompt around it."""
        return list(images)

    def why_not(self, image: Image.Image) -> str:
        """What its processor says of an image of an unusual shape: Qwen's takes none above 200:1."""
        if max(image.size) < LONG * min(image.size):
            return ""
        try:
            self._inputs([self.image_token], [[image]])
        except WordsightError as error:
            return str(error)
        return ""

    def captioning(self, image: Seen | None, shown: Sequence[tuple[Seen, str]] = ()) -> Prompt:
        if self.processor.chat_template:
            turns = [Turn(one, ASKS_CAPTION, caption) for one, caption in shown]
            return messages_of([*turns, Turn(image, ASKS_CAPTION)])
        own = PROMPTS.get(self.model.config.model_type, ("",))[0]
        return [*super().captioning(image, shown), own]

    def asking(self, turns: Sequence[Turn]) -> Prompt:
        """Through the chat template, the examples as what was said before; in the form that a family was
        trained on; or the paper's.
        """
        if self.processor.chat_template:
            return messages_of([turn._replace(question=ASKS_SHORT.format(turn.question)) for turn in turns])
        own = PROMPTS.get(self.model.config.model_type)
        if own is None or len(turns) > 1:
            return super().asking(turns)
        text = own[1].format(turns[0].question)
        return [text] if turns[0].image is None else [turns[0].image, text]

    # -- scoring --

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({}, self.image_fingerprint, self.scored_by.origin)

    @cached_property
    def scored_by(self) -> PrefixedLM:
        """The LM inside, on the same tensors."""
        return PrefixedLM(inner_lm(self.model, self.name), self.tokenizer)

    @torch.no_grad()
    @in_turn
    def read(self, prompts: Sequence[Prompt]) -> list[Behind]:
        rows = [self._row(prompt) for prompt in prompts]
        read = [self._inputs([text], [images]) for text, images in rows]
        found = []
        for some in alike([tuple(value.shape[1:] for value in one.values()) for one in read]):
            inputs = {key: torch.cat([read[place][key] for place in some]) for key in read[some[0]]}
            found.append(self._behind(some, inputs))
        return found

    def _behind(self, rows: list[int], inputs: dict[str, Tensor]) -> Behind:
        """What the LM holds behind a batch. At which position it goes on, it says by those that its decoder
        is given: they count otherwise than columns where images have two dimensions (Qwen2-VL).
        """
        cache, given, decoder = DynamicCache(), {}, self.model.get_decoder()
        hook = decoder.register_forward_pre_hook(lambda *call: given.update(call[2]), with_kwargs=True)
        try:
            inputs.pop("labels", None)
            found = self.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        finally:
            hook.remove()
        states, length, places = found.last_hidden_state, cache.get_seq_length(), given.get("position_ids")
        last = (
            torch.tensor(length - 1) if places is None else places.view(-1, *places.shape[-2:]).amax((0, -1))
        )
        return Behind(rows, cache, length, (last + 1).expand(len(rows)).to(self.device), states[:, -1])

    def tail(self, prompt: Prompt) -> str:
        text, images = self._row(prompt)
        ids = self._inputs([text], [images])["input_ids"][0].tolist()
        token = self.tokenizer.convert_tokens_to_ids(self.image_token)
        last = max((place for place, one in enumerate(ids) if one == token), default=-1)
        return self.tokenizer.decode(ids[last + 1 :], skip_special_tokens=True)

    # -- chatting --

    @property
    def chats(self) -> bool:
        return bool(self.processor.chat_template)

    def stream(self, prompt: Prompt, how: Writing, seed: int = 1) -> Pieces:
        row = self._row(prompt)
        work = partial(self._tokens, [row], how, [seed])
        return Streamed(work, partial(self.tokenizer.decode, skip_special_tokens=True))

    @property
    def context(self) -> int | None:
        return positions_of(self.model.config.get_text_config())

    def length(self, prompt: Prompt) -> int:
        text, images = self._row(prompt)
        return self._inputs([text], [images])["input_ids"].shape[1]

    @torch.no_grad()
    def write(self, prompts: Sequence[Prompt], how: Writing, seeds: Sequence[int] | None = None) -> list[str]:
        rows = [self._row(prompt) for prompt in prompts]
        drawn_from = list(seeds or [1] * len(rows))
        written = [""] * len(rows)
        # a batch is of texts with images, or of texts alone
        for some in alike([bool(images) for _, images in rows]):
            own = [drawn_from[place] for place in some]
            tokens = self._tokens([rows[place] for place in some], how, own)
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for place, text in zip(some, texts):
                written[place] = text
        return written

    @in_turn
    def _tokens(
        self,
        rows: Sequence[tuple[str, list[Image.Image]]],
        how: Writing,
        seeds: Sequence[int],
        **more: Any,
    ) -> Int[Tensor, "B new"]:
        """What is written after each row; `more` is of transformers' `generate`."""
        inputs = self._inputs([text for text, _ in rows], [images for _, images in rows])
        given = inputs["input_ids"].shape[1]
        self.check_length(given, how)
        inputs.pop("labels", None)
        tokens = write_on(self.model, **inputs, **how.settings(seeds), **more)
        return tokens[:, 0 if self.model.config.is_encoder_decoder else given :]

    def _row(self, prompt: Prompt) -> tuple[str, list[Image.Image]]:
        """A prompt as text with the places of images in it, and the images."""
        if not all(isinstance(part, dict) for part in prompt):
            text = "".join(part if isinstance(part, str) else self.image_token for part in prompt)
            return text, [part for part in prompt if not isinstance(part, str)]
        told = [_without_images(one) for one in prompt]
        # by the tokenizer: SmolVLM's own processor wants a part for videos
        text = rendered(self.name, self.tokenizer, told, self.processor.chat_template)
        parts = [part for one in prompt for part in one["content"]]
        return text, [part["image"] for part in parts if part["type"] == "image"]

    def _inputs(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
        begin = self.tokenizer.bos_token
        begun = bool(begin) and all(text.startswith(begin) for text in texts)  # by a chat template
        settings = {"add_special_tokens": False} if begun else {}
        try:
            return with_images(self.processor, texts, images, **settings).to(self.device, self.dtype)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            what = "these images" if any(images) else "a text without an image"
            raise WordsightError(
                f"{self.name!r} ({self.model.config.model_type}) cannot read {what}: {first_line(error)}"
            ) from error

    # -- the image tower --

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        image = image if image.mode == "RGB" else image.convert("RGB")
        if box is None:
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
        left, top, right, bottom = box
        cut = image.crop((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))
        square = cut.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        squares = [Image.fromarray(one.permute(1, 2, 0).cpu().numpy()) for one in pixels]
        read = with_images(self.processor, [self.image_token] * len(squares), [[one] for one in squares])
        given = {key: value for key, value in read.items() if key not in NOT_READ}
        moved = {key: _cast(value, self.device, self.dtype) for key, value in given.items()}
        features: Any = self.model.get_image_features  # which transformers' class of all models has not
        found = features(**moved)
        states = found if isinstance(found, Tensor) else found.pooler_output
        parts = [state.float().flatten(0, -2) for state in states]  # one, or some crops, an image
        each = len(parts) // len(squares)
        whole = [torch.cat(parts[start : start + each]) for start in range(0, len(parts), each)]
        return unit(torch.stack([one.mean(0) for one in whole]))

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Errors: WordsightError, always."""
        raise WordsightError(
            f"{self.name!r} writes texts and gives them no vectors; {GIVES_TEXT}: settings.text={self.name}"
        )

    @cached_property
    def image_fingerprint(self) -> str:
        decoder: Any = self.model.get_decoder()
        head = self.model.get_output_embeddings()
        parts = [decoder] if head is None else [decoder, head]
        inside = {id(value) for part in parts for value in part.parameters()}
        named = self.model.named_parameters()
        tower: dict[str, Tensor] = {name: value for name, value in named if id(value) not in inside}
        images = self.processor.image_processor.to_json_string()
        return fingerprint(tower, config_facts(self.model.config), images, self.side, self.dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """The files that it was read from, under a temporary name until all are there."""
        with new_folder(folder) as temporary:
            for pattern in TOWER_FILES:
                for file in self.folder.glob(pattern):
                    shutil.copyfile(file, temporary / file.name)

    def _try(self) -> int:
        """D, known by trying: a black square and a word go through, and what comes out is finite."""
        black = Image.new("RGB", (self.side, self.side))
        with reading(self.name, "what it makes of an image"):
            vector = self.encode_image(self.preprocess(black)[None])
            check_finite({"vector": vector}, f"what {self.name!r} makes of an image")
        return vector.shape[1]


def _without_images(one: dict[str, Any]) -> dict[str, Any]:
    """A message as a chat template reads it: it writes the places of images and not them."""
    kept = [{"type": "image"} if part["type"] == "image" else part for part in one["content"]]
    return one | {"content": kept}


def _cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _image_token(processor: Any, model: PreTrainedModel, name: str) -> str:
    """What stands for an image in a text. Errors: WordsightError where the model knows another."""
    token = getattr(processor, "image_token", None)
    config = model.config
    wanted = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if not isinstance(token, str) or wanted is None:
        raise WordsightError(
            f"{name!r} ({config.model_type}) has no token that stands for an image in a text, which is how "
            f"images are shown here; give a LLaVA, Qwen2-VL, SmolVLM, PaliGemma, Idefics 2 or 3, or their kin"
        )
    found = processor.tokenizer.convert_tokens_to_ids(token)
    if found != wanted:
        raise WordsightError(
            f"the tokenizer of {name!r} has {token!r} as token {found}, but its model reads images at token "
            f"{wanted}; they do not belong together"
        )
    return token
