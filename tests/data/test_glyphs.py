"""Glyphs: photos under the micro CLIP are told, and what it knows is not."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from wordsight.data import Picture
from wordsight.data.glyphs import is_glyph, warn_of_photos


def pictures(images):
    return [Picture(str(index), lambda image=image: image) for index, image in enumerate(images)]


def digits(count):
    return [Image.fromarray((image * 15.9).astype(np.uint8)) for image in load_digits().images[:count]]


def noise(count):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return list(map(Image.fromarray, drawn))


def test_digits_are_glyphs_and_colours_and_dark_ink_are_not():
    assert all(is_glyph(image.convert("RGB")) for image in digits(100))
    assert not any(map(is_glyph, noise(20)))
    inverted = [Image.fromarray(255 - np.asarray(image)).convert("RGB") for image in digits(20)]
    assert not any(map(is_glyph, inverted))


def test_real_photos_are_no_glyphs(shared):
    files = sorted((shared / "data" / "caltech101" / "images").rglob("*.jpg"))[::60]
    assert len(files) > 10 and np.mean([is_glyph(Image.open(file).convert("RGB")) for file in files]) < 0.1


@pytest.mark.parametrize(
    ("backbone", "images", "warned"),
    [
        ("micro", noise(30), True),
        ("micro", digits(30), False),
        ("micro", [*digits(20), *noise(10)], False),
        ("openai/clip-vit-base-patch16", noise(3), False),
        ("micro", [], False),
        ("micro", [b"no image"], False),
    ],
)
def test_only_photos_under_micro_are_warned_of(backbone, images, warned, said):
    warn_of_photos(backbone, pictures(images))
    assert ("knows single characters" in said.text) == warned
