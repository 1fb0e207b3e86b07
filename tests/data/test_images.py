"""Images become the same RGB whatever they are stored as, or are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from wordsight.data.images import MAX_PIXELS, Unreadable, content_digest, read_image, small_jpeg, view_box

# blocks of all grey values and colours
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
COLOURS.flat[:2] = 0, 255
BASE = Image.fromarray(np.kron(COLOURS, np.ones((8, 8, 1))).astype(np.uint8))
LEVELS = np.asarray(BASE.convert("L")).astype(np.float64)
LEVELS = (LEVELS - LEVELS.min()) * (255 / np.ptp(LEVELS))
SIXTEEN = np.rint(LEVELS * 257).astype(np.uint16)
GREY = Image.fromarray(np.rint(LEVELS).astype(np.uint8))


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def floats(values) -> bytes:
    return saved(Image.fromarray(np.asarray(values, np.float32)), "TIFF")


def whole(bits: int, form: str) -> bytes:
    return saved(Image.fromarray(np.rint(LEVELS * ((2**bits - 1) / 255)).astype(np.uint16)), form)


def tiff(values: np.ndarray, sample_format: int, photometric: int = 1) -> bytes:
    """A grey TIFF of any number type, which PIL reads and does not write."""
    height, width = values.shape
    raw, bits = values.tobytes(), values.dtype.itemsize * 8
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(raw)), (339, 3, sample_format)]
    entries = [struct.pack("<HHII", number, kind, 1, value) for number, kind, value in tags]
    ends = [struct.pack("<H", len(tags)), *entries, struct.pack("<I", 0)]
    return b"II" + struct.pack("<HI", 42, 8 + len(raw)) + raw + b"".join(ends)


def png(header: bytes, content: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def colours_of_16_bits(factor: int) -> bytes:
    pixels = (np.asarray(BASE).astype(np.uint16) * factor).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(struct.pack(">IIBBBBB", *BASE.size, 16, 2, 0, 0, 0), zlib.compress(rows))


def difference(value, wanted: Image.Image) -> float:
    image = read_image(value)
    assert image.mode == "RGB" and image.size == wanted.size
    return np.abs(np.asarray(image).astype(int) - np.asarray(wanted.convert("RGB")).astype(int)).mean()


GREY_KINDS = {
    "float 0..1": floats(LEVELS / 255),
    "float 0..255": floats(LEVELS),
    "float 0..65535": floats(LEVELS * 257),
    "float 0..1, sharpened": floats(LEVELS / 255 * 1.01 - 0.004),
    "black floats and one white": floats(np.where(LEVELS > 254, 1.0, LEVELS / 255)),
    **{f"{bits} bits in a PNG of 16": whole(bits, "PNG") for bits in (8, 10, 12, 14, 16)},
    **{f"{bits} bits in a TIFF of 16": whole(bits, "TIFF") for bits in (8, 10, 12, 14, 16)},
    "packed 16 bits": saved(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
    "white is zero": tiff((65535 - LEVELS * 257).astype("<u2"), 1, photometric=0),
    "signed 16 bits": tiff((LEVELS * 128.49).astype("<i2"), 2),
    "signed 32 bits": tiff((LEVELS * ((2**31 - 1) / 255)).astype("<i4"), 2),
    "unsigned 32 bits": tiff((LEVELS * 16843009).astype("<u4"), 1),
    "16 bits in a file of 32": tiff((LEVELS * 257).astype("<u4"), 1),
    "PGM of 12 bits": b"P5 %d %d 4095\n" % GREY.size + np.rint(LEVELS * 4095 / 255).astype(">u2").tobytes(),
    "JPEG 2000 of 16 bits": saved(Image.fromarray(SIXTEEN), "JPEG2000"),
    "one bit": saved(GREY.convert("1").convert("L").convert("1")),
    "grey and opacity": saved(GREY.convert("LA")),
    "animation": saved(GREY, "GIF", save_all=True, append_images=[BASE]),
    "opacity multiplied in": GREY.convert("LA").convert("La"),
}


@pytest.mark.parametrize("kind", GREY_KINDS)
def test_grey_values_are_scaled_by_what_they_hold(kind):
    wanted = GREY.convert("1") if kind == "one bit" else GREY
    assert difference(GREY_KINDS[kind], wanted) < (2.5 if "sharp" in kind else 0.6)


def srgb_to_lab() -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(BASE, srgb, lab, outputMode="LAB")


COLOUR_KINDS = {
    "colours of 16 bits": colours_of_16_bits(257),
    "TGA": saved(BASE, "TGA"),
    "packed TGA": saved(BASE, "TGA", compression="tga_rle"),
    "JPEG 2000": saved(BASE, "JPEG2000"),
    "CMYK TIFF": saved(BASE.convert("CMYK"), "TIFF"),
    "CMYK JPEG, which Adobe inverts": saved(BASE.convert("CMYK"), "JPEG", quality=100, subsampling=0),
    "Lab": saved(srgb_to_lab(), "TIFF"),
    "YCbCr": saved(BASE.convert("YCbCr"), "TIFF"),
    "HSV": BASE.convert("HSV"),
    "opacity multiplied in": BASE.convert("RGBA").convert("RGBa"),
    "animated WebP": saved(BASE, "WEBP", lossless=True, save_all=True, append_images=[GREY.convert("RGB")]),
    "animated PNG": saved(BASE, "PNG", save_all=True, append_images=[GREY.convert("RGB")]),
    "pages": saved(BASE, "TIFF", save_all=True, append_images=[GREY]),
}


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_colours(kind):
    assert difference(COLOUR_KINDS[kind], BASE) < 2


@pytest.mark.parametrize(
    "value, reason",
    [
        (floats(LEVELS / 127.5 - 1), "from -1 to 1; negative ones are no colours"),
        (tiff((LEVELS * 8 - 1024).astype("<i2"), 2), "negative"),
        (floats(np.where(LEVELS > 250, np.nan, LEVELS)), "NaN or infinite"),
        (floats(np.where(LEVELS > 250, np.inf, LEVELS)), "NaN or infinite"),
        (floats(np.where(LEVELS > 250, -np.inf, LEVELS)), "NaN or infinite"),
        (floats(LEVELS / 20), "from 0 to 12.75, which is neither 0 to 1 nor 0 to 255"),
        (floats(LEVELS * 1e10), "neither 0 to 1 nor 0 to 255"),
        (colours_of_16_bits(16), "use the lowest 12 at most"),
        (saved(BASE, "EPS"), "PostScript"),
        (b"\x01\x02 of no kind", "not an image"),
        (b"<svg></svg>", "SVG or XML"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 100, "in HEIC"),  # as a telephone's, renamed to .jpg
        (b"\0\0\0\x18ftypmp42" + b"\0" * 100, "a film"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "a page of HTML"),
        (b"", "0 bytes"),
        (np.zeros((2, 3)), "float64"),
    ],
)
def test_what_holds_no_colours_is_refused_with_a_reason(value, reason):
    with pytest.raises(Unreadable, match=reason):
        read_image(value)


def test_all_black_is_black():
    for value in (floats(LEVELS * 0), saved(Image.new("I;16", (3, 2))), np.zeros((2, 3), np.uint8)):
        assert not np.asarray(read_image(value)).any()


def test_all_kinds_of_images_become_rgb():
    grey = Image.new("L", (3, 2), 100)
    rgba = Image.new("RGBA", (3, 2), (100, 100, 100, 7))
    palette = grey.convert("P")
    cases = {
        "palette": saved(palette),
        "transparent palette": saved(palette, transparency=bytes([0, 128] * 128)),
        "alpha": saved(rgba),
        "16 bit": saved(Image.fromarray(np.full((2, 3), 100 * 256 + 9, np.uint16))),
        "webp": saved(grey.convert("RGB"), "WEBP", lossless=True),
        "grey array": np.full((2, 3), 100, np.uint8),
        "one channel": np.full((2, 3, 1), 100, np.uint8),
        "rgb array": np.full((2, 3, 3), 100, np.uint8),
        "pil": rgba,
    }
    for kind, value in cases.items():
        image = read_image(value)
        assert image.mode == "RGB" and image.size == (3, 2), kind
        assert np.abs(np.asarray(image).astype(int) - 100).max() <= 2, kind


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_images_stand_upright(form):
    options = {"lossless": True} if form == "WEBP" else {}
    turned = saved(BASE.transpose(Image.Transpose.ROTATE_90), form, exif=exif_of(6), **options)
    assert difference(turned, BASE) == 0


TEXT_WHERE_A_NUMBER_BELONGS = b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0\xff\xff\0\0\0\0\0\0"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, which `wordsight` ignores too
@pytest.mark.parametrize(
    "exif",
    [*map(exif_of, (0, 9, 255)), b"Exif\0\0nonsense", b"Exif\0\0" + TEXT_WHERE_A_NUMBER_BELONGS]
    + [exif_of(6).tobytes()[:length] for length in (8, 12, 14, 16, 20)],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_damaged_exif_does_no_harm(form, exif):
    assert difference(saved(BASE, form, exif=exif, quality=100, subsampling=0), BASE) < 2


def bomb(width: int, height: int) -> bytes:
    """A PNG header of that size, with no pixels behind it."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_huge_images_are_refused_by_their_header():
    with pytest.raises(Unreadable, match=r"20000 x 20000 pixels are more than max_pixels=200000000"):
        read_image(bomb(20_000, 20_000))
    with pytest.raises(Unreadable, match="too thin"):
        read_image(bomb(60_000, 2))
    limit = Image.MAX_IMAGE_PIXELS
    for size in ((16_320, 12_240), (12_000, 9_000)):  # phones of 200 and 108 megapixels
        assert size[0] * size[1] <= MAX_PIXELS
        with pytest.raises(Unreadable, match="cannot be decoded"):  # its size was no reason
            read_image(bomb(*size))
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Unreadable, match="max_pixels=100"):
        read_image(saved(BASE), max_pixels=100)
    assert read_image(saved(BASE), max_pixels=48 * 32).size == read_image(BASE, max_pixels=None).size


def test_content_is_known_by_what_it_is():
    assert content_digest(saved(BASE)) != content_digest(saved(BASE, "BMP"))
    assert content_digest(BASE) == content_digest(BASE.copy()) != content_digest(np.asarray(BASE))
    assert content_digest(np.zeros((2, 8), np.uint8)) != content_digest(np.zeros((4, 4), np.uint8))
    with pytest.raises(Unreadable, match="negative"):
        content_digest(Image.fromarray(np.full((2, 2), -3.0, np.float32)))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (64, 48), (500, 37)])
def test_view_boxes_lie_inside(size):
    for view in range(1, 60):
        (left, top, right, bottom), _ = view_box(size, b"digest", view, 0)
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert view_box(size, b"digest", 1, 0) == view_box(size, b"digest", 1, 0)


def test_view_boxes_have_the_stated_scale():
    boxes = [view_box((1000, 1000), bytes([number]), 1, 0) for number in range(200)]
    areas = np.array([(right - left) * (bottom - top) for (left, top, right, bottom), _ in boxes]) / 1e6
    ratios = np.array([(right - left) / (bottom - top) for (left, top, right, bottom), _ in boxes])
    assert areas.min() > 0.079 and 0.4 < areas.mean() < 0.6 and ratios.min() > 0.74 and ratios.max() < 1.35
    assert 70 < sum(mirrored for _, mirrored in boxes) < 130


def test_a_copy_for_a_page_is_small_and_tells_nothing_else():
    Image.new("RGB", (300, 100), "red").save(file := io.BytesIO(), "JPEG", comment=b"where it was taken")
    copy = Image.open(io.BytesIO(small_jpeg(read_image(file.getvalue()), 60)))
    assert (copy.format, copy.size) == ("JPEG", (60, 20)) and "comment" not in copy.info
