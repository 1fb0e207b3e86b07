"""The feature cache: an image goes through the tower once, cached equals fresh, and nothing in it can be
stale.
"""

import errno
import io
import os
import struct
import threading
import time
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import wordsight.data.features as features
from wordsight.backbones import Backbone, unit
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import image_features, text_features
from wordsight.data.images import content_digest, read_image, view_box
from wordsight.files import cache_folder


class Stub(Backbone):
    """A small tower that counts what goes through it."""

    name, dim, logit_scale, image_fingerprint, text_fingerprint = "stub", 12, 100.0, "stub-1", "stub-t"
    device = torch.device("cpu")

    def __init__(self):
        self.weight = torch.randn(12, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
        self.images, self.texts, self.calls, self.fail_after = 0, 0, 0, None
        self.lock = threading.Lock()

    def preprocess(self, image, box=None):
        return (
            torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BICUBIC, box=box)))
            .permute(2, 0, 1)
            .contiguous()
        )

    def encode_image(self, pixels):
        with self.lock:
            if self.fail_after is not None and self.calls >= self.fail_after:
                raise KeyboardInterrupt
            self.calls += 1
            self.images += len(pixels)
        return unit(pixels.flatten(1).float() / 255 @ self.weight.T)

    def encode_text(self, texts):
        self.texts += len(texts)
        return unit(
            torch.stack(
                [
                    torch.randn(12, generator=torch.Generator().manual_seed(sum(text.encode())))
                    for text in texts
                ]
            )
        )

    def save_pretrained(self, folder):
        raise NotImplementedError


def encoded(number: int = 0, size=(12, 9), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pictures(*contents) -> list[Picture]:
    return [
        Picture(f"picture {row}", partial(lambda content: content, content))
        for row, content in enumerate(contents)
    ]


def shards(folder) -> list:
    return sorted(folder.glob("features/*/*.safetensors"))


def test_cached_equals_fresh_in_any_batch(tmp_path):
    chosen = pictures(*map(encoded, range(40)))
    stub = Stub()
    first = image_features(stub, chosen, folder=tmp_path, batch_size=16)
    again = image_features(stub, chosen[::-1], folder=tmp_path)
    alone = image_features(Stub(), chosen, folder=tmp_path / "other", batch_size=1)
    assert stub.images == 40 and first.vectors.shape == (40, 1, 12) and first.vectors.dtype == torch.float32
    assert first.kept == list(range(40)) and first.skipped == []
    assert torch.equal(again.vectors, first.vectors.flip(0))
    torch.testing.assert_close(alone.vectors, first.vectors, atol=1e-6, rtol=0)
    direct = stub.encode_image(
        torch.stack([stub.preprocess(read_image(picture.load())) for picture in chosen])
    )
    torch.testing.assert_close(first.vectors[:, 0], direct, atol=1e-6, rtol=0)


def test_threads_setting_is_restored(tmp_path):
    before = torch.get_num_threads()
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    assert torch.get_num_threads() == before


def test_views(tmp_path):
    chosen = pictures(*map(encoded, range(6)))
    stub = Stub()
    three = image_features(stub, chosen, views=3, folder=tmp_path, batch_size=4).vectors
    assert three.shape == (6, 3, 12) and stub.images == 18
    assert (
        torch.equal(image_features(stub, chosen, views=3, folder=tmp_path).vectors, three)
        and stub.images == 18
    )
    torch.testing.assert_close(
        three[:, :1], image_features(stub, chosen, folder=tmp_path).vectors, atol=1e-6, rtol=0
    )
    assert (three[:, 1] - three[:, 2]).abs().max() > 1e-3
    other = tmp_path / "other"
    torch.testing.assert_close(
        image_features(Stub(), chosen[3:], views=3, folder=other).vectors, three[3:], atol=1e-6, rtol=0
    )
    assert not torch.equal(image_features(stub, chosen, views=3, seed=1, folder=tmp_path).vectors, three)
    straight = image_features(stub, chosen, views=3, flip=False, folder=tmp_path).vectors
    same = (straight - three).abs().amax(-1) < 1e-6
    mirrored = [
        [False] + [view_box((12, 9), content_digest(one.load()), view, 0)[1] for view in (1, 2)]
        for one in chosen
    ]
    assert torch.equal(same, ~torch.tensor(mirrored)) and same[:, 1:].any() and not same.all()
    with pytest.raises(WordsightError, match="views=0"):
        image_features(stub, chosen, views=0, folder=tmp_path)


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


def test_equal_images_are_encoded_once(tmp_path):
    stub = Stub()
    found = image_features(
        stub, pictures(encoded(1), encoded(2), encoded(1), *[encoded(1)] * 20), folder=tmp_path, batch_size=4
    )
    assert stub.images == 2 and len(found.vectors) == 23 and torch.equal(found.vectors[0], found.vectors[2])


def test_renamed_is_found_and_edited_is_encoded_anew(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(1))
    stub, cache = Stub(), tmp_path / "cache"
    before = image_features(stub, [Picture("a", file.read_bytes)], folder=cache).vectors
    moved = file.rename(tmp_path / "b.png")
    assert (
        torch.equal(image_features(stub, [Picture("b", moved.read_bytes)], folder=cache).vectors, before)
        and stub.images == 1
    )
    stamp = moved.stat()
    moved.write_bytes(encoded(2))
    os.utime(moved, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = image_features(stub, [Picture("b", moved.read_bytes)], folder=cache).vectors
    assert stub.images == 2 and not torch.allclose(before, after)


def test_another_tower_has_another_folder(tmp_path):
    stub = Stub()
    image_features(stub, pictures(encoded()), folder=tmp_path)
    stub.image_fingerprint = "stub-2"
    image_features(stub, pictures(encoded()), folder=tmp_path)
    assert stub.images == 2 and len(list((tmp_path / "features").iterdir())) == 2


def test_an_interrupted_call_goes_on_where_it_was(tmp_path):
    chosen = pictures(*map(encoded, range(64)))
    stub = Stub()
    stub.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        image_features(stub, chosen, folder=tmp_path, batch_size=4)
    assert stub.images == 20 and not list(tmp_path.rglob("*.part"))
    stub.fail_after = None
    resumed = image_features(stub, chosen, folder=tmp_path, batch_size=4)
    assert stub.images == 64
    torch.testing.assert_close(
        resumed.vectors, image_features(Stub(), chosen, folder=tmp_path / "other").vectors, atol=1e-6, rtol=0
    )


def test_shards_are_written_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD_ROWS", 8)
    image_features(Stub(), pictures(*map(encoded, range(30))), folder=tmp_path, batch_size=4)
    assert len(shards(tmp_path)) >= 3
    stub = Stub()
    image_features(stub, pictures(*map(encoded, range(30))), folder=tmp_path)
    assert stub.images == 0


def test_small_shards_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "MERGE_SHARDS", 4)
    stub = Stub()
    for number in range(11):
        image_features(stub, pictures(encoded(number)), folder=tmp_path)
    assert len(shards(tmp_path)) <= 5
    image_features(stub, pictures(*map(encoded, range(11))), folder=tmp_path)
    assert stub.images == 11


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-40], lambda content: b"", lambda content: b"\xff" * 200]
)
def test_a_damaged_shard_is_removed_and_computed_again(tmp_path, caplog, damage):
    stub, chosen = Stub(), pictures(encoded(1), encoded(2))
    before = image_features(stub, chosen, folder=tmp_path).vectors
    (shard,) = shards(tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    assert torch.equal(image_features(stub, chosen, folder=tmp_path).vectors, before)
    assert stub.images == 4 and not shard.exists() and len(shards(tmp_path)) == 1
    assert "damaged" in caplog.text and str(shard) in caplog.text


def test_a_full_disk_is_told_and_harms_nothing(tmp_path, monkeypatch):
    stub = Stub()
    image_features(stub, pictures(encoded(1)), folder=tmp_path)
    held = shards(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WordsightError, match="No space left on device; what it held is intact"):
            image_features(stub, pictures(encoded(1), encoded(2)), folder=tmp_path)
    assert shards(tmp_path) == held and not list(tmp_path.rglob("*.part"))
    assert len(image_features(stub, pictures(encoded(1), encoded(2)), folder=tmp_path).vectors) == 2


def test_a_cache_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WordsightError, match="WORDSIGHT_CACHE"):
        image_features(Stub(), pictures(encoded()), folder=tmp_path / "file")


def test_what_a_killed_process_left_is_swept(tmp_path):
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    old, new = shards(tmp_path)[0].with_name("old.part"), shards(tmp_path)[0].with_name("new.part")
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    image_features(Stub(), pictures(encoded()), folder=tmp_path)
    assert not old.exists() and new.exists()


def test_unreadable_pictures_are_listed(tmp_path):
    def missing():
        raise FileNotFoundError("no such file")

    whole = encoded(3, (200, 200), "JPEG")
    bad = [
        b"",
        b"plain text",
        whole[: len(whole) // 2],
        encoded(4)[:60],
        np.zeros((3, 3)),
        np.zeros((0, 4), np.uint8),
    ]
    chosen = [
        *pictures(encoded(1), *bad),
        Picture("gone", missing),
        Picture("last", partial(encoded, 2)),
        Picture("copy", lambda: b"plain text"),
    ]
    stub = Stub()
    found = image_features(stub, chosen, folder=tmp_path, batch_size=3)
    assert found.kept == [0, 8] and stub.images == 2 and len(found.vectors) == 2
    reasons = dict(found.skipped)
    assert list(reasons) == [f"picture {row}" for row in range(1, 7)] + ["gone", "copy"]
    assert (
        "0 bytes" in reasons["picture 1"]
        and "not an image" in reasons["picture 2"] == reasons["copy"]
        and "truncated" in reasons["picture 3"]
    )
    assert "float64" in reasons["picture 5"] and "no such file" in reasons["gone"]
    with pytest.raises(
        WordsightError, match=r"none of 2 images could be read; the first: picture 0: empty \(0 bytes\)"
    ):
        image_features(Stub(), pictures(b"", b"x"), folder=tmp_path)


def test_no_pictures_at_all(tmp_path):
    assert image_features(Stub(), [], folder=tmp_path).vectors.shape == (0, 1, 12)
    assert text_features(Stub(), [], folder=tmp_path).shape == (0, 12)


def bomb(width: int, height: int) -> bytes:
    """A PNG header of that size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 99)
        + b"IDAT"
    )


@pytest.mark.parametrize(
    "size, word", [((20000, 20000), "too large"), ((10000, 9500), "too large"), ((60000, 2), "too thin")]
)
def test_huge_images_are_refused_by_their_header(tmp_path, size, word):
    found = image_features(Stub(), pictures(bomb(*size), encoded()), folder=tmp_path)
    assert found.kept == [1] and word in found.skipped[0][1]


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_all_kinds_of_images_become_rgb():
    grey = Image.new("L", (3, 2), 100)
    rgba = Image.new("RGBA", (3, 2), (100, 100, 100, 7))
    deep = Image.fromarray(np.full((2, 3), 100 * 256 + 9, np.uint16))
    palette = grey.convert("P")
    cases = {
        "grey": saved(grey),
        "palette": saved(palette),
        "transparent palette": saved(palette, transparency=bytes([0, 128] * 128)),
        "alpha": saved(rgba),
        "16 bit": saved(deep),
        "16 bit tiff": saved(deep, "TIFF"),
        "cmyk": saved(Image.new("RGB", (3, 2), (100, 100, 100)).convert("CMYK"), "JPEG", quality=100),
        "gif": saved(grey, "GIF", save_all=True, append_images=[Image.new("L", (3, 2), 7)]),
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
    assert read_image(saved(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_images_stand_upright():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = read_image(saved(image, exif=exif))
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 255, 255)


def test_arrays_and_pil_images_are_addressed_by_content(tmp_path):
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    stub = Stub()
    image_features(
        stub, pictures(array, array.copy(), array.reshape(2, 8, 3), Image.fromarray(array)), folder=tmp_path
    )
    assert stub.images == 3
    image_features(stub, pictures(Image.fromarray(array).copy(), array[::1]), folder=tmp_path)
    assert stub.images == 3


def test_texts(tmp_path):
    stub = Stub()
    first = text_features(stub, ["a", "b", "a", ""], folder=tmp_path)
    assert stub.texts == 3 and torch.equal(first[0], first[2])
    again = text_features(stub, ["", "ant", "a"], folder=tmp_path)
    assert stub.texts == 4 and torch.equal(again[0], first[3]) and torch.equal(again[2], first[0])
    image_features(stub, pictures(encoded()), folder=tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "mine"))
    image_features(Stub(), pictures(encoded()))
    assert len(shards(tmp_path / "mine")) == 1
    monkeypatch.delenv("WORDSIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "wordsight"
