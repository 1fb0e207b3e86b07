"""Vision: an image encoder alone, of transformers or a timm file. Joined is built on it too, and two-tower
training gives it words.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from wordsight.backbones import GIVES_TEXT, OWN_FILE, Backbone, fingerprint, pick_dtype, unit
from wordsight.backbones.checkpoint import (
    Place,
    check_finite,
    config_facts,
    head_rows,
    of_a_head,
    read_config,
    read_model,
    reading,
)
from wordsight.backbones.grids import grid_of, pooled
from wordsight.backbones.hub import (
    SAVE_AGAIN,
    find,
    first_line,
    read_facts,
    read_mapping,
    save_json,
    save_part,
    weights_in,
)
from wordsight.backbones.pixels import FILE as PREPROCESSOR_FILE
from wordsight.backbones.pixels import Preprocess, read_preprocess
from wordsight.backbones.timm_names import timm_pixels, vit_from_timm
from wordsight.config import WordsightError
from wordsight.digests import check_digests, digests
from wordsight.files import new_folder, read_tensors

FORMAT = 1
POOLINGS = ("cls", "mean", "pooler")


class ImageTower(NamedTuple):
    """An image encoder with its pixels and the part of its output that is the vector."""

    model: PreTrainedModel
    transform: Preprocess
    pooling: str

    def __call__(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        output = self._output(pixels)
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1).float()
        states = output.last_hidden_state.float()
        if states.ndim == 4:  # a convolutional encoder's map, [B, D, h, w]
            return states.mean((2, 3))
        if self.pooling == "cls":
            return states[:, 0]
        patch = getattr(self.model.config, "patch_size", None)
        patches = (
            (self.transform.height // patch) * (self.transform.width // patch)
            if isinstance(patch, int)
            else states.shape[1]
        )
        return states[:, max(0, states.shape[1] - patches) :].mean(
            1
        )  # class and register tokens stand before the patches

    def grid(self, pixels: UInt8[Tensor, "B 3 H W"], tokens: int, name: str) -> Float[Tensor, "B G Wv"]:
        """The last states of its patches, `tokens` at most."""
        states, patch = self._output(pixels).last_hidden_state, getattr(self.model.config, "patch_size", None)
        return pooled(grid_of(states, self.transform.height, self.transform.width, patch, name), tokens)

    def _output(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Any:
        weight = next(self.model.parameters())
        return self.model(pixel_values=self.transform.normalise(pixels.to(weight.device), weight.dtype))

    def width(self, name: str) -> int:
        return width_of(
            self, torch.zeros(1, 3, self.transform.height, self.transform.width, dtype=torch.uint8), name
        )


class Vision(Backbone):
    """An image encoder alone: the eyes to which training gives a text tower.

    Its vectors are the encoder's own pooled output at length one, not centred. It has no words, so it
    classifies nothing by itself."""

    logit_scale = 100.0  # CLIP's highest; nothing reads it, for there is no text to compare with
    text_fingerprint = ""

    def __init__(self, vision: ImageTower, *, name: str, device: torch.device, dtype: str = "float32"):
        self.name = name
        self.device = device
        self.dtype = pick_dtype(dtype)
        frozen = vision.model.eval().requires_grad_(False)
        # transformers' stub wraps `to` and loses `self`
        frozen = frozen.to(device, self.dtype)  # pyright: ignore[reportArgumentType]
        self.vision = vision._replace(model=frozen)
        self.dim = self.vision.width(name)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str, device: torch.device, dtype: str = "float32"
    ) -> Vision:
        """From a folder of transformers or of `save_pretrained`, a hub name, or one .safetensors file of a
        ViT with timm's names.

        Errors: WordsightError for whatever is absent or does not fit; a classification head may be left over
        where Wordsight did not write the folder."""
        number, file = pick_dtype(dtype), Path(path) / OWN_FILE
        if file.is_file():
            place = Place(file.parent, "image encoder", name)
            tower = image_tower(place, _read_pooling(file, name), whole=True, dtype=number)
        else:
            tower = image_source(str(path))[0]
        return cls(tower, name=name, device=device, dtype=dtype)

    def preprocess(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        return self.vision.transform(image, box)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.vision.transform.to_dict()

    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return unit(self.vision(pixels))

    @torch.no_grad()
    def encode_grid(self, pixels: UInt8[Tensor, "B 3 H W"], tokens: int) -> Float[Tensor, "B G Wv"]:
        return self.vision.grid(pixels, tokens, self.name)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Errors: WordsightError, always."""
        raise WordsightError(f"{self.name!r} is an image encoder alone; {GIVES_TEXT}")

    @cached_property
    def image_fingerprint(self) -> str:
        model = self.vision.model
        return fingerprint(
            model.state_dict(),
            config_facts(model.config),
            self.vision.transform.facts(),
            self.vision.pooling,
            self.dtype,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder in transformers' layout, which AutoModel reads too, under a temporary name until
        all is there.
        """
        with new_folder(folder) as temporary:
            save_part(temporary, self.vision.model)
            save_json(temporary / PREPROCESSOR_FILE, self.vision.transform.to_dict())
            facts = {"kind": "vision", "format": FORMAT, "pooling": self.vision.pooling}
            save_json(
                temporary / OWN_FILE, facts | {"files": digests(temporary, weights_in(temporary, ["."]))}
            )


def _read_pooling(file: Path, name: str) -> str:
    facts = read_facts(file, "image encoder", "vision", FORMAT, pooling=str)
    if facts["pooling"] not in POOLINGS:
        raise WordsightError(
            f"{file} has pooling={facts['pooling']!r}; the choices are {', '.join(POOLINGS)}"
        )
    check_digests(file.parent, facts.get("files"), SAVE_AGAIN)
    return facts["pooling"]


# Reading


def image_source(
    name: str, pooling: str = "auto", preprocessor: str | None = None
) -> tuple[ImageTower, Tensor | None, list[str] | None]:
    """The image encoder, its head's rows if it has one, and the head's class names if it tells them."""
    given = read_mapping(Path(preprocessor).expanduser(), "preprocessor") if preprocessor else None
    if Path(name).expanduser().is_file():
        tower, head = _from_file(Path(name).expanduser(), name, pooling, given)
        return tower, head, None
    place = Place(find(name, "image encoder"), "image encoder", name)
    tower = image_tower(place, pooling, whole=False, preprocessor=given)
    return tower, head_rows(place), _own_names(place)


def _from_file(
    file: Path, name: str, pooling: str, given: dict[str, Any] | None
) -> tuple[ImageTower, Tensor | None]:
    """A ViT with timm's names."""
    if file.suffix != ".safetensors":
        raise WordsightError(
            f"image encoder {name!r} is a file but not .safetensors; a pickle is never opened"
        )
    with reading(name, "the weights"):
        model, head = vit_from_timm(read_tensors(file, "image encoder")[0], name)
    with reading(name, "preprocessor"):
        size = model.config.image_size
        assert isinstance(size, int)  # as vit_from_timm made it
        pixels = given or timm_pixels(size)
        transform = Preprocess.from_pretrained(pixels, name=name)
    tower = ImageTower(model.eval(), transform, "cls" if pooling == "auto" else pooling)
    if tower.pooling == "pooler":
        raise WordsightError(
            f"pooling='pooler' is not possible: the ViT in {name!r} has no pooler; take cls or mean"
        )
    tower.width(name)
    return tower, head


def image_tower(
    place: Place,
    pooling: str,
    *,
    whole: bool,
    dtype: torch.dtype = torch.float32,
    preprocessor: dict[str, Any] | None = None,
) -> ImageTower:
    config = encoder_config(place, "pixel_values")
    # their heads read the class token; their pooler is often untrained
    plain_vit = pooling == "auto" and config.model_type in ("vit", "deit")
    pooler = not plain_vit and pooling in ("auto", "pooler")
    model = read_encoder(place, config, pooler=pooler, whole=whole, dtype=dtype)
    transform = read_preprocess(place, config.model_type, preprocessor)
    if pooling == "auto":
        tried = None if plain_vit else _output(ImageTower(model, transform, "pooler"), place.name)
        pooling = "cls" if tried is None or tried.get("pooler_output") is None else "pooler"
    tower = ImageTower(model, transform, pooling)
    tower.width(place.name)
    return tower


def encoder_config(place: Place, wanted: str) -> Any:
    """The encoder's config.json, if it is of the sort that takes `wanted`."""
    sort, other = ("image", "text") if wanted == "pixel_values" else ("text", "image")
    config = read_config(place)
    kind = MODEL_MAPPING.get(type(config), None)
    if getattr(config, "vision_config", None) and getattr(config, "text_config", None):
        raise WordsightError(
            f"{place.name!r} ({config.model_type}) is both an image and a text encoder; a {sort} encoder "
            f"alone is needed to join"
        )
    if getattr(kind, "main_input_name", None) != wanted:
        raise WordsightError(
            f"{place.name!r} ({config.model_type}) was given as the {sort} encoder, but is none; is it the "
            f"{other} encoder?"
        )
    return config


def read_encoder(
    place: Place, config: Any, *, pooler: bool, whole: bool, dtype: torch.dtype
) -> PreTrainedModel:
    """The encoder alone. `whole`: nothing of the checkpoint may be left over; otherwise a head may be."""
    kind = MODEL_MAPPING[type(config)]
    has_one = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    settings = {"add_pooling_layer": pooler} if has_one else {}
    spare = None if whole else of_a_head
    return read_model(kind, place, config, dtype=dtype, spare=spare, **settings)


@torch.no_grad()
def width_of(tower: Callable, sample: Any, name: str) -> int:
    """The width of a tower's vectors, found by trying on `sample`."""
    try:
        vector = tower(sample)
        check_finite({"vector": vector}, f"what encoder {name!r} makes")
        return vector.shape[1]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, WordsightError):
            raise
        raise WordsightError(
            f"encoder {name!r} ({tower.model.config.model_type}) gives no vector with "
            f"pooling={tower.pooling} ({first_line(error)})"
        ) from error


@torch.no_grad()
def _output(tower: ImageTower, name: str) -> Any:
    """What the image encoder says to black pixels: the proof that encoder and pixels fit."""
    pixels = torch.zeros(1, 3, tower.transform.height, tower.transform.width, dtype=tower.model.dtype)
    try:
        return tower.model(pixel_values=pixels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WordsightError(
            f"{PREPROCESSOR_FILE} of {name!r} makes {tuple(pixels.shape[2:])} pixels, which its image "
            f"encoder does not take ({first_line(error)})"
        ) from error


def _own_names(place: Place) -> list[str] | None:
    """The head's class names in config.json: of `tench, Tinca tinca` the first, and None where they are only
    LABEL_0, LABEL_1, ...
    """
    labels = read_mapping(place.folder / "config.json", f"{place}:").get("id2label") or {}
    with reading(place.name, "id2label of config.json"):
        names = [labels[key].split(",")[0] for key in sorted(labels, key=int)]
    return names if names and not all(re.fullmatch(r"LABEL_\d+", name) for name in names) else None
