"""Image bytes: cut, flipped, of other depths, with headers that lie, under wrong names."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tiny import encoded, picture

from inputs import Input, both, cut, flip, odd, put

FORMS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}
NAME = "ph/alpha/1.png"
ROW = "alpha/1"
ONE = picture(1, 1)
GREY = picture(1, 1, "L", 64)


def as_form(suffix: str, here: Path, image: Image.Image = ONE, **options) -> None:
    (here / NAME).unlink()
    (here / NAME).with_suffix("." + suffix).write_bytes(encoded(image, FORMS.get(suffix, suffix), **options))


def written(suffix: str, content: bytes):
    """The picture under another suffix, with these bytes."""
    return both(odd(NAME, "nothing"), put(f"ph/alpha/1.{suffix}", content))


def inputs() -> Iterator[Input]:
    yield from broken()
    yield from depths()
    yield from headers()
    yield from others()


def broken() -> Iterator[Input]:
    for suffix in FORMS:
        file, plain = f"ph/alpha/1.{suffix}", partial(as_form, suffix)
        for share in (0.02, 0.3, 0.6, 0.9, 0.99):
            yield Input(f"{suffix} cut at {share}", both(plain, cut(file, share)), plain=plain, near=(ROW,))
        for seed in range(4):
            change = flip(file, seed, 1 + seed)
            yield Input(
                f"{suffix} with {1 + seed} bits flipped", both(plain, change), plain=plain, free=(ROW,)
            )
    for seed in range(6):
        change = flip(NAME, seed, 1, 0, 0.1)
        yield Input("png, a bit of its head flipped", change, free=(ROW,))


def grey(here: Path) -> None:
    as_form("png", here, GREY)


def depths() -> Iterator[Input]:
    """The same grey picture in other numbers: scaled by what they hold, or left out with a reason."""
    values = np.asarray(GREY)
    as_16, as_32 = values.astype(np.uint16) * 257, values.astype(np.int32)
    share = values.astype(np.float32) / 255
    holes = share.copy()
    holes[3, 3] = np.nan
    endless = share.copy()
    endless[5, 5] = np.inf
    kinds = {
        "16-bit grey png": ("png", as_16),
        "16-bit grey tif": ("tif", as_16),
        "16-bit tif of 12-bit numbers": ("tif", (values.astype(np.uint16) * 16)),
        "32-bit whole numbers up to 255, tif": ("tif", as_32),
        "32-bit whole numbers up to 65535, tif": ("tif", as_32 * 257),
        "32-bit whole numbers up to 2^31, tif": ("tif", as_32 * (2**31 // 256)),
        "floats 0 to 1, tif": ("tif", share),
        "floats 0 to 255, tif": ("tif", share * 255),
        "floats with a NaN, tif": ("tif", holes),
        "floats with an infinity, tif": ("tif", endless),
        "negative floats, tif": ("tif", share - 2),
        "floats that are all one number, tif": ("tif", share * 0 + 0.5),
    }
    for what, (suffix, numbers) in kinds.items():
        loose = any(word in what for word in ("negative", "all one", "NaN", "infinity", "12-bit"))
        change = partial(as_form, suffix, image=Image.fromarray(numbers))
        yield Input(what, change, plain=grey, free=(ROW,) * loose, near=(ROW,))
    for mode in ("L", "RGB", "RGBA", "P", "CMYK", "YCbCr", "1", "LA", "I", "F"):
        suffix = "png" if mode in ("L", "RGB", "RGBA", "P", "1", "LA") else "tif"
        free = (ROW,) * (mode in ("1", "P", "CMYK"))
        change = partial(as_form, suffix, image=GREY.convert("RGB").convert(mode))
        yield Input(f"mode {mode} as {suffix}", change, plain=grey, near=(ROW,), free=free)
    yield Input("16-bit colour png", put(NAME, png(64, 64, 16, 2, as_16.repeat(3))), plain=grey, near=(ROW,))
    yield Input(
        "png, palette with transparency",
        partial(as_form, "png", image=GREY.convert("P"), transparency=0),
        plain=grey,
        free=(ROW,),
    )


def png(width: int, height: int, depth: int, colour: int, numbers=None, crc: int | None = None) -> bytes:
    """A PNG by hand, whose head may lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body) if crc is None or kind != b"IHDR" else crc
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    content = b"\0" * 100
    if numbers is not None:
        lines = np.asarray(numbers).astype(">u2").reshape(height, -1)
        content = b"".join(b"\0" + line.tobytes() for line in lines)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def headers() -> Iterator[Input]:
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (0, 5), (20_000, 20_000), (30, 40)):
        yield Input(f"png that says {width} x {height}", put(NAME, png(width, height, 8, 2)), free=(ROW,))
    yield Input("png with a wrong check of its head", put(NAME, png(24, 24, 8, 2, crc=1)), free=(ROW,))
    yield Input("png of depth 3", put(NAME, png(24, 24, 3, 2)), free=(ROW,))
    bmp, gif, tif = (bytearray(encoded(ONE, form)) for form in ("BMP", "GIF", "TIFF"))
    for width in (2**31 - 1, -24, 0, 50_000):
        bmp[18:22] = struct.pack("<i", width)
        yield Input(f"bmp {width} wide", written("bmp", bytes(bmp)), free=(ROW,))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield Input("gif of 65535 x 65535", written("gif", bytes(gif)), free=(ROW,))
    place = tif.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in tif else 10
    tif[place + 8 : place + 12] = b"\xff\xff\xff\x7f"
    yield Input("tif whose width is wrong", written("tif", bytes(tif)), free=(ROW,))
    jpg = bytearray(encoded(ONE, "JPEG"))
    start = jpg.index(b"\xff\xc0")
    jpg[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    yield Input("jpg of 65535 x 65535", written("jpg", bytes(jpg)), free=(ROW,))


def others() -> Iterator[Input]:
    whole, photo = encoded(ONE), encoded(ONE, "JPEG", quality=95)
    for what, content in {
        "no bytes": b"",
        "one byte": b"\x89",
        "only a png's signature": whole[:8],
        "zeros": bytes(2000),
        "a web page": b"<!doctype html><title>404</title>",
        "a video's head": b"\0\0\0\x20ftypisom" + bytes(500),
        "gzip of a png": gzip.compress(whole, mtime=0),
        "a pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch pwned\x85R.",
        "an svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "a Postscript file": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\nshowpage\n",
        "a PDF's head": b"%PDF-1.4\n1 0 obj\n",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }.items():
        yield Input(f"{what} named .png", put(NAME, content))
    for suffix in ("PNG", "jpg", "gif", "tiff", "Png"):
        yield Input(f"a png named .{suffix}", written(suffix, whole), must="right")
    yield Input("a jpg named .png", put(NAME, photo), near=(ROW,))
    for suffix in ("txt", "png.bak", "heic", "dng", "png~", "jp2", "tga", "ico", "", "psd", "jxl", "svg"):
        form = {"jp2": "JPEG2000", "tga": "TGA", "ico": "ICO"}.get(suffix)
        content = (
            encoded(ONE, form) if form else b"\0\0\0\x18ftypheic" + bytes(99) if suffix == "heic" else whole
        )
        yield Input(f"a file named .{suffix}", written(suffix, content), near=(ROW,))
    yield Input("a png with junk after it", put(NAME, whole + b"junk" * 99), must="right")
    yield Input("two pngs in one file", put(NAME, whole + whole), must="right")
    frames = [picture(1, n) for n in (1, 2, 3)]
    for suffix in ("gif", "tif", "webp", "png"):
        form = FORMS[suffix]
        several = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        yield Input(f"{suffix} of several frames", written(suffix, several), free=(ROW,))
    yield Input(
        "jpg with a broken Exif part",
        written("jpg", encoded(ONE, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff")),
        free=(ROW,),
    )
    yield Input(
        "png with a broken colour profile", put(NAME, encoded(ONE, icc_profile=b"junk" * 9)), must="right"
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    yield Input("jpg that is to be turned", written("jpg", encoded(ONE, "JPEG", exif=turned)), free=(ROW,))
    bomb = io.BytesIO(encoded(ONE))
    text = zlib.compress(bytes(200_000_000), 9)
    body = b"Comment\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    yield Input(
        "png with a text of 200 MB packed small",
        put(NAME, bomb.getvalue()[:33] + chunk + bomb.getvalue()[33:]),
        near=(ROW,),
    )
    for how in ("folder", "fifo", "loop", "device", "nothing"):
        told = {"new": -1} if how in ("nothing", "folder") else {}
        yield Input(f"a {how} in the picture's place", odd(NAME, how), **told)
