"""Tiny seeded data for the fault scripts: pictures of three classes in every form, runs and caches made of
them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("alpha", "beta", "gamma")
EACH = 4  # pictures of each class
SIZE = 24
MICRO = ("backbone=micro", "device=cpu")
ZERO_SHOT = (*MICRO, "method=zero_shot", "shots=1")
AAPE = (*MICRO, "sentences=s.json", "shots=2", "train.epochs=1", "train.min_steps=12", "train.save_seconds=0")
PAIRED = (
    *MICRO,
    "method=two_tower",
    "settings.text=micro_lm",
    "train.max_steps=6",
    "train.batch_size=4",
    "train.save_seconds=0",
)
SENTENCES = {name: [f"The letter {name}.", f"A drawing of {name} in ink."] for name in CLASSES}


def picture(seed: int, number: int, mode: str = "RGB", size: int = SIZE) -> Image.Image:
    """A bright shape with noise on it, so that every picture has figures of its own."""
    rng = np.random.default_rng([seed, number])
    pixels = rng.normal(60, 25, (size, size, 3)) + rng.integers(0, 60, 3)
    left, top = rng.integers(2, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 3] += rng.integers(40, 120, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def photos(root: Path, seed: int = 1, classes: Iterable[str] = CLASSES, each: int = EACH) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            picture(seed, 100 * label + index).save(root / name / f"{index}.png")
    return root


def rows(root: str = "ph") -> list[list[str]]:
    """Path and label of every picture of `photos`."""
    return [[f"{root}/{name}/{index}.png", name] for index in range(EACH) for name in CLASSES]


def table(rows: Iterable[Iterable[str]], header: Iterable[str] = ("path", "label"), by: str = ",") -> str:
    return "".join(by.join(row) + "\n" for row in [list(header), *map(list, rows)])


def tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def samples(seed: int = 1) -> list[tuple[str, bytes]]:
    """The members of a webdataset tar of the same pictures: 000.png, 000.cls, ..."""
    found = []
    for number, (path, label) in enumerate(rows()):
        index = int(Path(path).stem)
        content = encoded(picture(seed, 100 * CLASSES.index(label) + index))
        found += [(f"{number:03d}.png", content), (f"{number:03d}.cls", label.encode())]
    return found


def write_base(here: Path) -> None:
    """Every form of the data that a mutation begins with."""
    photos(here / "ph")
    photos(here / "ph0", seed=2)
    (here / "table.csv").write_text(table(rows()))
    captions = [
        [path, "test" if i % 4 == 3 else "train", f"a drawing of {label} {i}"]
        for i, (path, label) in enumerate(rows())
    ]
    (here / "pairs.csv").write_text(table(captions, ("path", "split", "caption")))
    tar(here / "t" / "0.tar", samples())
    (here / "s.json").write_text(json.dumps(SENTENCES, indent=1))
    (here / "aliases.json").write_text(json.dumps({"alpha": "alpha"}))
    write_split(here / "own")
    write_manifest(here / "mani")
    shutil.copytree(model_folder("micro"), here / "m")


def write_split(root: Path) -> None:
    """A dataset of one's own in the field's layout, with a split file."""
    photos(root / "images")
    listed = [
        [f"{name}/{index}.png", label, name] for label, name in enumerate(CLASSES) for index in range(EACH)
    ]
    parts = {"train": listed[::2], "val": [], "test": listed[1::2]}
    (root / "split_own.json").write_text(json.dumps(parts))


def write_manifest(root: Path) -> None:
    """Whole numbers as labels, whose names stand in classes.json."""
    photos(root / "ph")
    (root / "manifest.csv").write_text(table([path, str(CLASSES.index(name))] for path, name in rows()))
    (root / "classes.json").write_text(json.dumps({"classes": list(CLASSES), "template": "a photo of a {}."}))


def model_folder(name: str) -> Path:
    import wordsight

    return Path(os.path.dirname(wordsight.__file__)) / "backbones" / name
