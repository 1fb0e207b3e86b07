"""Images: decoded once, in one way, for features, streams and pages alike; known by their content."""

from __future__ import annotations

import hashlib
import io
import math
import random

import numpy as np
from PIL import Image, ImageOps

MAX_ELONGATION = 500  # beyond it, resizing the shorter side to a tower's size would take gigabytes


class Unreadable(Exception):
    """Why a picture is skipped."""


def read_image(value: bytes | np.ndarray | Image.Image) -> Image.Image:
    """The still RGB image in encoded bytes, a uint8 array or a PIL image: upright by its EXIF, the first
    frame of an animation.

    Errors: Unreadable with the reason. The size is looked at before a pixel is decoded.
    """
    try:
        image = _opened(value)
        _check_size(image.size)
        return _rgb(ImageOps.exif_transpose(image))
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image that Pillow knows") from error
    except (
        Exception
    ) as error:  # a damaged file can raise anything in a decoder, and must not end a run over many images
        raise Unreadable(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def view_box(
    size: tuple[int, int], digest: bytes, view: int, seed: int
) -> tuple[tuple[float, float, float, float], bool]:
    """Crop box and whether to mirror, for a view from 1 on: torchvision's RandomResizedCrop and a coin, from
    a stream of (digest, view, seed).
    """
    width, height = size
    stream = random.Random(f"{digest.hex()} {view} {seed}")
    box = (0.0, 0.0, float(width), float(height))
    for _ in range(10):
        area = width * height * stream.uniform(0.08, 1.0)
        ratio = math.exp(stream.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            left, top = stream.randint(0, width - w), stream.randint(0, height - h)
            box = (float(left), float(top), float(left + w), float(top + h))
            break
    else:  # torchvision's fallback: the largest centred box whose ratio is allowed
        w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
        left, top = (width - w) // 2, (height - h) // 2
        box = (float(left), float(top), float(left + w), float(top + h))
    return box, stream.random() < 0.5


def _opened(value: bytes | np.ndarray | Image.Image) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        if (
            value.dtype != np.uint8
            or value.ndim not in (2, 3)
            or (value.ndim == 3 and value.shape[2] not in (1, 3, 4))
            or not value.size
        ):
            raise Unreadable(
                f"an array of {value.dtype} with shape {value.shape}; expected uint8 [H, W], [H, W, 3] or "
                f"[H, W, 4]"
            )
        return Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    if not value:
        raise Unreadable("empty (0 bytes)")
    return Image.open(io.BytesIO(value))


def _check_size(size: tuple[int, int]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    width, height = size
    if limit and width * height > limit:
        raise Unreadable(
            f"too large: {width} x {height} pixels; at most {limit:,} are decoded "
            f"(PIL.Image.MAX_IMAGE_PIXELS)"
        )
    if max(size) > MAX_ELONGATION * min(size):
        raise Unreadable(
            f"too thin: {width} x {height} pixels; one side may be {MAX_ELONGATION} times the other"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(
        "I"
    ):  # 16 bits: convert("RGB") would clip at 255, which turns most of the image white
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # a warning otherwise
        image = image.convert("RGBA")
    return image.convert("RGB")


def hash_of(*parts: bytes) -> bytes:
    """16 bytes that know a content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def content_digest(value: bytes | np.ndarray | Image.Image) -> bytes:
    if isinstance(value, Image.Image):
        image = read_image(value)
        return hash_of(f"pil {image.size}".encode(), image.tobytes())
    if isinstance(value, np.ndarray):
        return hash_of(f"array {value.shape} {value.dtype}".encode(), np.ascontiguousarray(value).tobytes())
    return hash_of(value)
