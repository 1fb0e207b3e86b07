"""Vectors of four domains: `python benchmarks/pool/domains.py JOINED ../shared/data VECTORS OUT`.

VECTORS holds the files of benchmarks/aape/vectors.py. OUT gets one of the same name for each set of photos,
in which every image of the training and test part stands in one domain, by turns within its class: the photo
as it is, in grey, with inverted colours, and as a drawing (dark edges on white). Words are the photos'."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from wordsight.backbones import Backbone, load_backbone
from wordsight.data import Picture, Split, open_dataset
from wordsight.data.features import image_features
from wordsight.data.images import read_image

SETS = ("caltech101", "dtd10", "cifar10")
DOMAINS = {
    "photo": lambda image: image,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "inverted": ImageOps.invert,
    "drawing": lambda image: ImageOps.invert(
        ImageOps.autocontrast(ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES))
    ).convert("RGB"),
}


def encoded(backbone: Backbone, part: str, split: Split) -> dict[str, np.ndarray]:
    """Image vectors, labels and domains of a part."""
    turns: Counter[int] = Counter()
    pictures, domains = [], []
    for picture, label in zip(split.pictures, split.labels):
        domain = list(DOMAINS)[turns[label] % len(DOMAINS)]
        turns[label] += 1
        pictures.append(Picture(f"{domain}/{picture.name}", partial(seen, picture, domain)))
        domains.append(domain)
    vectors = image_features(backbone, pictures).vectors[:, 0].numpy()
    return {part: vectors, f"{part}_label": split.labels, f"{part}_domain": np.array(domains)}


def seen(picture: Picture, domain: str) -> Image.Image:
    return DOMAINS[domain](read_image(picture.read()[0]))


def main(joined: str, data: str, vectors: str, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(joined)
    for name in SETS:
        dataset, held = open_dataset(f"{data}/{name}"), dict(np.load(f"{vectors}/{name}.npz"))
        for part in ("train", "test"):
            held |= encoded(backbone, part, getattr(dataset, part))
        np.savez(f"{out}/{name}.npz", **held)


if __name__ == "__main__":
    main(*sys.argv[1:])
