"""Copies: `python benchmarks/audit/copies.py BACKBONE DATA SET...`, DATA the folder of the sets.

Of each set so many images are drawn, every fifth of which gets a copy: resized to half to one and a half,
re-encoded at JPEG quality 30 or 50, cropped to 75 to 95 % of each side, mirrored, or mirrored and cropped.
How many copies `find_copies` finds, and how many pairs that are no planted copy, which are written as a
contact sheet, to be looked at."""

import csv
import io
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps

from wordsight.audit.copies import find_copies
from wordsight.backbones import load_backbone
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.images import read_image

IMAGES, COPIES = 600, 120


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def resized(image, rng):
    share = rng.choice([0.5, 0.6, 0.75, 1.5])
    size = max(8, int(image.width * share)), max(8, int(image.height * share))
    return jpeg(image.resize(size, Image.Resampling.BICUBIC), rng.choice([50, 70, 85]))


def cropped(image, rng):
    width, height = (int(side * rng.uniform(0.75, 0.95)) for side in image.size)
    left, top = (
        rng.randint(0, image.width - width),
        rng.randint(0, image.height - height),
    )
    return jpeg(image.crop((left, top, left + width, top + height)), 85)


KINDS = {
    "resized": resized,
    "re-encoded": lambda image, rng: jpeg(image, rng.choice([30, 50])),
    "cropped": cropped,
    "mirrored": lambda image, rng: jpeg(ImageOps.mirror(image), 80),
    "mirrored, cropped": lambda image, rng: cropped(ImageOps.mirror(image), rng),
}


def files_of(folder: Path) -> list[Path]:
    table = next(path for name in ("manifest.csv", "captions.csv") if (path := folder / name).is_file())
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    return [folder / row["path"] for row in random.Random(0).sample(rows, min(IMAGES, len(rows)))]


def main(backbone: str, data: str, *sets: str) -> None:
    torch.set_num_threads(1)
    tower = load_backbone(backbone)
    for name in sets:
        files, rng = files_of(Path(data) / name), random.Random(1)
        pictures = [Picture(str(file), file.read_bytes) for file in files]
        planted = {}
        for at, file in enumerate(files[:COPIES]):
            kind = list(KINDS)[at % len(KINDS)]
            content = KINDS[kind](read_image(file.read_bytes()), rng)
            planted[len(pictures)] = at, kind
            pictures.append(Picture(f"{file} {kind}", partial(bytes, content)))
        vectors = image_features(tower, pictures).vectors[:, 0]
        begun = time.monotonic()
        found = find_copies(pictures, vectors)
        seconds = time.monotonic() - begun
        pairs = {(one.first, one.second) for one in found}
        right = [kind for copy, (at, kind) in planted.items() if (at, copy) in pairs]
        shares = ", ".join(f"{kind} {right.count(kind)}/{COPIES // len(KINDS)}" for kind in KINDS)
        origin = {copy: at for copy, (at, _) in planted.items()}
        others = {
            tuple(sorted((origin.get(one, one), origin.get(two, two))))
            for one, two in pairs
            if origin.get(one, one) != origin.get(two, two)
        }
        print(
            f"{name}: {shares}; {len(others)} other pairs of {len(files)} images; {seconds:.0f} s",
            flush=True,
        )
        sheet(sorted(others)[:24], files, f"{name}.png")


def sheet(pairs, files, out: str) -> None:
    """Pairs side by side, four to a row."""
    if not pairs:
        return
    page = Image.new("RGB", (4 * 210, 105 * ((len(pairs) + 3) // 4)), "white")
    for at, pair in enumerate(pairs):
        for side, row in enumerate(pair):
            image = read_image(files[row].read_bytes())
            image.thumbnail((100, 100))
            page.paste(image, (210 * (at % 4) + 100 * side, 105 * (at // 4)))
    page.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
