"""Preprocess: an image as the pixels its tower was trained on, exactly as transformers' own processor makes
them with PIL (no torchvision).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage] - its own table
    get_image_processor_class_from_name,
)

from wordsight.backbones.checkpoint import Place, reading
from wordsight.backbones.hub import PIXEL_FILES, read_mapping
from wordsight.config import WordsightError

FILE = "preprocessor_config.json"
LARGEST = 8192  # pixels a side: a damaged file that asks for more would fill the memory


class Preprocess:
    """Resize and crop with transformers' PIL processor; rescaling and normalising wait for the device
    (`normalise`).

    The pixels stay uint8 until then: four times less to move and to cache, and equal to transformers' float
    pixels to the last bits."""

    def __init__(self, processor: Any):
        self.processor = processor
        rescale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        # (x / rescale - mean) / std with x in 0..255, as one subtraction and one division
        self.mean: Float[Tensor, "3 1 1"] = _per_channel(mean) * rescale
        self.std: Float[Tensor, "3 1 1"] = _per_channel(std) * rescale
        self.height, self.width = self._probe()

    @classmethod
    def from_pretrained(
        cls, config: Mapping[str, Any], *, model_type: str | None = None, name: str = ""
    ) -> Preprocess:
        """From the contents of a preprocessor_config.json. `model_type` (config.json's) decides where an old
        file names no processor; `name` is what the user wrote, for messages."""
        values = dict(config.get("image_processor", config))  # processor_config.json nests it
        kind, found = pil_class(values, model_type, name)
        values.pop("feature_extractor_type", None)
        try:
            _check_sizes(values, found)
            return cls(found(**values))
        except WordsightError as error:
            raise WordsightError(f"image processor {kind!r} of {name or 'this model'!r}: {error}") from None

    def __call__(
        self, image: Image.Image, box: tuple[float, float, float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        """The tower's pixels. `box` (left, top, right, bottom in pixels of `image`) is resized to the tower's
        size instead, nothing cropped.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        if box is not None:
            resized = _cut(image, box).resize((self.width, self.height), resample=self.processor.resample)
            return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
        return self._pixels(image)

    def normalise(
        self, pixels: UInt8[Tensor, "*B 3 H W"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*B 3 H W"]:
        """Pixels as the tower takes them, on the device they are on. Computed in float32, then cast."""
        return ((pixels.float() - self.mean.to(pixels.device)) / self.std.to(pixels.device)).to(dtype)

    def facts(self) -> str:
        """All that decides the pixels, for a fingerprint."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a preprocessor_config.json that `from_pretrained` reads back. Keys that no
        processor reads are dropped.
        """
        plain = json.loads(self.processor.to_json_string())
        return {
            key: value
            for key, value in plain.items()
            if key == "image_processor_type" or hasattr(type(self.processor), key)
        }

    def _pixels(self, image: Image.Image) -> Tensor:
        """UInt8 [3, H, W] of every processor that `_probe` let pass."""
        return self.processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")[
            "pixel_values"
        ][0]

    def _probe(self) -> tuple[int, int]:
        """The tower's size, and proof that the processor only resizes, crops, rescales and normalises: some
        cut patches or keep the aspect.
        """
        shapes = set()
        for width, height in ((37, 50), (50, 37)):
            image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
            pixels = self._pixels(image)
            shapes.add(tuple(pixels.shape))
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(shapes) > 1:
                raise WordsightError(
                    "it does not make pixels of one fixed size (NaFlex, tiles or kept aspect ratios), "
                    "which a frozen tower's cache needs"
                )
            theirs, ours = (
                self.processor(image, return_tensors="pt")["pixel_values"][0],
                self.normalise(pixels),
            )
            spread = float(ours.max() - ours.min())
            if not bool(ours.isfinite().all()) or not 0.01 < spread < 1e4 or float(self.std.min()) <= 0:
                raise WordsightError(
                    "its mean, deviation or rescaling makes pixels that no tower was fed with"
                )
            if not torch.allclose(ours, theirs.float(), atol=1e-5, rtol=1e-5):
                raise WordsightError(
                    "it does more than resize, crop, rescale and normalise, which is all that Wordsight "
                    "does after caching pixels"
                )
        return pixels.shape[1], pixels.shape[2]


def _cut(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The whole pixels that `box` touches. Cut before resizing, as torchvision does: resize(box=...) would
    let in neighbours from outside.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise WordsightError(
            f"box={tuple(box)} is not inside the image of {image.width}x{image.height} pixels; expected "
            f"(left, top, right, bottom)"
        )
    return image.crop((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))


def _check_sizes(values: Mapping[str, Any], processor: type) -> None:
    if not values.get("size") and getattr(processor, "size", None):
        raise WordsightError("it says no size, and transformers' default would stand in silently")
    for key in ("size", "crop_size"):
        sides = values.get(key)
        for side in sides.values() if isinstance(sides, Mapping) else [sides]:
            if isinstance(side, (int, float)) and not 0 < side <= LARGEST:
                raise WordsightError(f"{key}={sides!r} is no size of pixels; expected 1 to {LARGEST}")


def pil_class(values: Mapping[str, Any], model_type: str | None, name: str) -> tuple[str, Any]:
    """The image processor that a preprocessor_config.json names, by its name without what says in what it is
    written, and its class in PIL. `model_type` (config.json's) decides where an old file names none.

    Errors: WordsightError where it has no form in PIL."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    if kind is None and model_type in IMAGE_PROCESSOR_MAPPING_NAMES:
        names = IMAGE_PROCESSOR_MAPPING_NAMES[model_type]
        kind = names.get("pil") or names.get("torchvision")
    if kind is None:
        raise WordsightError(
            f"the preprocessing of {name or 'this model'!r} names no image_processor_type in {FILE}; "
            f"add one, such as CLIPImageProcessor"
        )
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    found = get_image_processor_class_from_name(kind + "Pil")
    if found is None or getattr(found, "is_dummy", False):
        raise WordsightError(
            f"image processor {kind!r} of {name or 'this model'!r} has no PIL form in transformers, so "
            f"its pixels cannot be made exactly; "
            f"take a model with the image processor of CLIP, SigLIP, ViT, BiT (DINOv2) or ConvNeXt"
        )
    return kind, found


def read_preprocess(
    place: Place, model_type: str | None, given: Mapping[str, Any] | None = None
) -> Preprocess:
    """The pixels of the tower in a folder; `given` are the contents of a preprocessor_config.json to use
    instead of the folder's own. Errors: WordsightError where there is none, or none that can be exact."""
    values = given or settings_of(place)
    with reading(place.name, FILE):
        return Preprocess.from_pretrained(values, model_type=model_type, name=place.name)


def settings_of(place: Place) -> dict[str, Any]:
    """The image part of processor_config.json or of preprocessor_config.json, the first winning as in
    transformers.
    """
    for name in PIXEL_FILES:
        if (place.folder / name).exists():
            found = read_mapping(place.folder / name, f"{place}:")
            if name == FILE or "image_processor" in found:
                return found.get("image_processor", found)
    raise WordsightError(
        f"{place}: its folder holds no {FILE}, so how to make its pixels is unknown; copy it from where the "
        f"model came from, or give preprocessor=FILE where two encoders are joined"
    )


def _per_channel(value: float | Sequence[float]) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(value, dtype=torch.float32).expand(3).reshape(3, 1, 1)
