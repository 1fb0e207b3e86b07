"""The files of vectors that the study reads: `python benchmarks/aape/vectors.py JOINED ../shared/data OUT`.

JOINED is the folder that benchmarks/joined/build.py writes. OUT gets caltech101, dtd10 and cifar10 through it
with CuPL's sentences, and digits through the bundled micro CLIP with its own; the name vectors are of `a
photo of a {}.`. flickr8k holds photos through the joined backbone and their five captions each (ideas.py)."""

import csv
import sys
from pathlib import Path

import numpy as np

from wordsight.backbones import Backbone, load_backbone
from wordsight.data import Picture, Split, open_dataset
from wordsight.data.features import image_features, text_features
from wordsight.sentences import fill, read_sentences

ALIASES = str(Path(__file__).parents[1] / "aliases" / "caltech101.json")
CUPL = {"caltech101": ("cal", ALIASES), "dtd10": ("texture", None), "cifar10": ("cifar10", None)}


def main(joined: str, data: str, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(joined)
    for name, (prompts, aliases) in CUPL.items():
        file = f"{data}/sentences/cupl/full_prompts/{prompts}_prompts_full.json"
        write(f"{out}/{name}.npz", backbone, f"{data}/{name}", file, aliases)
    write(f"{out}/digits.npz", load_backbone("micro"), "digits", "digits", None)
    np.savez(f"{out}/flickr8k.npz", **captioned(backbone, Path(data, "flickr8k")))


def write(path: str, backbone: Backbone, data: str, sentences: str, aliases: str | None) -> None:
    dataset = open_dataset(data)
    names = list(dataset.class_names)
    found = read_sentences(sentences, dataset.class_names, aliases)
    rows = [(place, text) for place, name in enumerate(names) for text in found[name]]
    held = {
        "classes": np.array(names),
        "logit_scale": backbone.logit_scale,
        "text": text_features(backbone, [fill("a photo of a {}.", name) for name in names]).numpy(),
        "sentences": np.array([text for _, text in rows]),
        "sentence_label": np.array([place for place, _ in rows]),
        "sentence_vectors": text_features(backbone, [text for _, text in rows]).numpy(),
    }
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    for part, split in parts.items():
        held |= encoded(backbone, part, split)
    np.savez(path, **held)


def captioned(backbone: Backbone, folder: Path) -> dict[str, np.ndarray]:
    """Photos [n, D] and their captions [n, 5, D], of each part."""
    with open(folder / "captions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    held = {}
    for part in ("train", "test"):
        own = [row for row in rows if row["split"] == part]
        pictures = [Picture(row["path"], (folder / row["path"]).read_bytes) for row in own]
        held[part] = image_features(backbone, pictures).vectors[:, 0].numpy()
        texts = [row[f"caption_{i}"] for row in own for i in range(1, 6)]
        held[f"{part}_captions"] = text_features(backbone, texts).numpy().reshape(len(own), 5, -1)
    return held


def encoded(backbone: Backbone, part: str, split: Split | None) -> dict[str, np.ndarray]:
    """Image vectors of a part and their labels; nothing where it has no images."""
    if split is None or not len(split):
        return {}
    features = image_features(backbone, split.pictures)
    return {part: features.vectors[:, 0].numpy(), f"{part}_label": split.labels[features.kept]}


if __name__ == "__main__":
    main(*sys.argv[1:])
