"""Images: decoded once, in one way, for features, streams and pages alike; known by their content."""

from __future__ import annotations

import hashlib
import io
import math
import random
import re
import threading
import warnings

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

MAX_PIXELS = 200_000_000  # phones make 200 megapixels; as RGB they take 600 MB
MAX_ELONGATION = 500  # beyond it, resizing the shorter side to a tower's size would take gigabytes
LARGE = 50_000_000  # pixels; so large images are decoded one at a time, for they fill the memory
QUALITY = 85  # of JPEG copies that pages show
DEPTHS = range(8, 33, 2)  # bits of a grey value: cameras and scanners make 8, 10, 12, 14 or 16
NEAR_ONE = 2.0  # floats below it are meant to end at 1: sharpening and resizing overshoot
NEITHER = 16.0  # floats that end between NEAR_ONE and this are neither meant to end at 1 nor at 255
UNDERSHOOT = 0.01  # of the range may lie below zero, where resizing undershot
BITS_TAG, PHOTOMETRIC, SAMPLE_FORMAT, ORIENTATION = 258, 262, 339, 0x0112  # TIFF and EXIF tags
UPRIGHT = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

NO_IMAGES = (  # first bytes of files that are named like images and are none, and what they are
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "in HEIC or HEIF, which is not read here (convert it to JPEG)"),
    (rb".{4}ftyp(?!avi)", "a film (take single frames)"),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS and not the image itself (`git lfs pull` fetches it)",
    ),
    (rb"\s*<(!doctype )?html", "a page of HTML, as a download that failed leaves it"),
    (rb"%PDF", "a PDF (convert its pages to PNG or JPEG)"),
    (rb"\s*<(\?xml|svg)", "SVG or XML (convert it to PNG or JPEG)"),
    (rb"\x1f\x8b|PK\x03\x04", "packed (unpack it)"),
)

# PIL warns of damaged EXIF and the like; what keeps an image from being read is an error here
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_opening = threading.Lock()  # while it is held PIL's own size limit, one for the whole process, is lifted
_large = threading.Lock()


class Unreadable(Exception):
    """Why a picture is skipped."""


# -- decoding --


def read_image(value: bytes | np.ndarray | Image.Image, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """The still RGB image in encoded bytes, a uint8 array or a PIL image: upright by its EXIF, the first
    frame of an animation, the first page of several, without its transparency.

    Grey values of more than 8 bits are scaled by what they hold (`grey_range`). Errors: Unreadable with the
    reason. The size is looked at before a pixel is decoded; `max_pixels=None` takes any.
    """
    try:
        image = _opened(value)
        check_size(image.size, max_pixels)
        if image.width * image.height <= LARGE:
            return _decoded(image)
        with _large:
            return _decoded(image)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:  # of a frame within a file
        raise Unreadable(f"too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise _no_image(value) from error
    except Exception as error:  # a damaged file can raise anything in a decoder, and must not end a run
        raise Unreadable(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def size_of(value: bytes | np.ndarray | Image.Image) -> tuple[int, int]:
    """Width and height, by the header alone. Errors: as `read_image`."""
    try:
        return _opened(value).size
    except Unreadable:
        raise
    except Exception as error:
        raise _no_image(value) from error


def _no_image(value: bytes | np.ndarray | Image.Image) -> Unreadable:
    """Why bytes are no image, by how they begin."""
    head = value[:64] if isinstance(value, bytes) else b""
    kinds = (what for begins, what in NO_IMAGES if re.match(begins, head, re.IGNORECASE | re.DOTALL))
    return Unreadable(next(kinds, "not an image, or of a kind that Pillow does not read"))


def check_size(size: tuple[int, int], max_pixels: int | None = MAX_PIXELS) -> None:
    """Errors: Unreadable for an image with more pixels, or so thin that resizing it fills the memory."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise Unreadable(
            f"too large: {width} x {height} pixels are more than max_pixels={max_pixels}; a larger "
            f"max_pixels= reads it"
        )
    if max(size) > MAX_ELONGATION * min(size):
        raise Unreadable(
            f"too thin: {width} x {height} pixels; one side may be {MAX_ELONGATION} times the other"
        )


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
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(value))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.format == "EPS":  # PIL would hand it to Ghostscript, which runs it
        raise Unreadable("a PostScript file, which is a program; give it as PNG or JPEG")
    return image


def _decoded(image: Image.Image) -> Image.Image:
    layout = str([tile[3] for tile in getattr(image, "tile", ())])  # gone once it is loaded
    image.load()
    turn = _turn(image)
    rgb = _rgb(image)
    if ";16" in layout and image.mode not in ("F", "I") and not image.mode.startswith("I;"):
        _check_high_bytes(rgb)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes it stand upright; None where it does."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF beside pixels that are whole
        return None


# -- pixel values --


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "LAB":  # which PIL's `convert` does not know
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # as it is not done in place
        return converted
    if image.mode in ("La", "RGBa"):  # colours that were multiplied by their opacity
        image = image.convert(image.mode.upper())
    if image.mode == "P" and "transparency" in image.info:  # a warning otherwise
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_values(image: Image.Image) -> Shaped[np.ndarray, "H W"]:
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, BITS_TAG) == 32 and _tag(image, SAMPLE_FORMAT) in (None, 1):
        return values.view(np.uint32)  # PIL has no mode for these and gives the larger half as negative
    return values


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF's tag; None for any other file."""
    value = getattr(image, "tag_v2", {}).get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None


def _eight_bits(image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    values, bits = _grey_values(image), _tag(image, BITS_TAG)
    signed = _tag(image, SAMPLE_FORMAT) == 2
    top = grey_range(values, 2.0 ** (bits - 1) - 1 if signed and bits is not None else math.inf)
    scaled = np.rint(values.astype(np.float32).clip(0, top) * np.float32(255 / top)).astype(np.uint8)
    # PIL turns those round whose white is 0 where they have 8 bits, and only there
    return 255 - scaled if _tag(image, PHOTOMETRIC) == 0 else scaled


def grey_range(values: Shaped[np.ndarray, "H W"], most: float = math.inf) -> float:
    """The value that stands for white: 1 for floats up to 1, else the largest number of 8, 10, 12, 14, 16
    ... bits, of the fewest that hold all; `most` is what the file's numbers could hold.

    So 12 bits in a 16-bit file are no black image, and an image whose lightest value is a quarter of white or
    less is lightened. Errors: Unreadable for what has no such range."""
    least, largest = float(values.min()), float(values.max())
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise Unreadable("holds pixels that are no numbers (NaN or infinite)")
    fractions = np.issubdtype(values.dtype, np.floating) and largest < NEAR_ONE
    fewest = next((2.0**bits - 1 for bits in DEPTHS if largest < 2.0**bits), 0.0)
    top = 1.0 if fractions else min(fewest, most)
    held = f"holds pixels from {least:g} to {largest:g}"
    if least < -UNDERSHOOT * top:
        raise Unreadable(f"{held}; negative ones are no colours. Scale it to 8 bits")
    between = np.issubdtype(values.dtype, np.floating) and NEAR_ONE <= largest < NEITHER
    if between or not top:
        raise Unreadable(f"{held}, which is neither 0 to 1 nor 0 to 255. Scale it to 8 bits")
    return top


def _check_high_bytes(rgb: Image.Image) -> None:
    """PIL reads the high bytes alone of colours of 16 bits: of 12 bits it leaves an image that is nearly
    black.
    """
    if np.asarray(rgb).max() < 16:
        raise Unreadable("its colours of 16 bits use the lowest 12 at most. Scale it to 8 bits")


# -- showing --


def small_jpeg(image: Image.Image, side: int) -> bytes:
    """A JPEG copy of an RGB image for a page, no side longer than `side`, without comments and the like. The
    image itself is made as small, for a large one fills the memory."""
    image.thumbnail((side, side))
    image.info = {}
    image.save(out := io.BytesIO(), "JPEG", quality=QUALITY)
    return out.getvalue()


# -- content --


def hash_of(*parts: bytes) -> bytes:
    """16 bytes that know a content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def content_digest(value: bytes | np.ndarray | Image.Image) -> bytes:
    """16 bytes that only this content has: of the encoded bytes, or of the pixels. Errors: Unreadable for a
    PIL image that cannot be decoded.
    """
    if isinstance(value, Image.Image):
        image = read_image(value, max_pixels=None)  # whoever opened it was asked for its size
        return hash_of(f"pil {image.size}".encode(), image.tobytes())
    if isinstance(value, np.ndarray):
        return hash_of(f"array {value.shape} {value.dtype}".encode(), np.ascontiguousarray(value).tobytes())
    return hash_of(value)


# -- views --


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
