"""Pixels: how an image becomes the input of a graph, with PIL alone; exactly as the backbone makes them.

A recipe has `resize`: {"shortest_edge": n} (the shorter side, the ratio kept) or {"height", "width"}, or
nothing; `resample`: PIL's number (3: bicubic); and `crop`: {"height", "width"} of the centre, or nothing.
Mean and deviation are applied in the graph. examples/onnx_classify.py has the same without Wordsight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wordsight.files import WordsightError


def pixels_of(image: Image.Image, recipe: Mapping[str, Any]) -> UInt8[np.ndarray, "3 H W"]:
    """An RGB image as a graph's input."""
    resize, crop = recipe.get("resize") or {}, recipe.get("crop") or {}
    if "shortest_edge" in resize:
        short = min(image.size)
        size = [resize["shortest_edge"] * side // short for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling(recipe["resample"]))
    elif resize:
        image = image.resize((resize["width"], resize["height"]), Image.Resampling(recipe["resample"]))
    if crop:
        left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def recipe_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a preprocessor_config.json. Errors: WordsightError where it has steps that a recipe has no words
    for."""
    resize = dict(values.get("size") or {}) if values.get("do_resize", True) else {}
    crop = dict(values.get("crop_size") or {}) if values.get("do_center_crop") else {}
    known = [{"shortest_edge"}, {"height", "width"}, set()]
    if resize.keys() not in known or crop.keys() not in known[1:]:
        raise WordsightError(f"its pixels are made with size={resize} and crop_size={crop}")
    return {"resize": resize, "resample": int(values.get("resample", 3)), "crop": crop}
