"""Ideas for the image-conditioned prompt h(x), each with and without it, base to new: `python
benchmarks/aape/ideas.py NAME=FILE.npz ... [out=runs/aape-ideas]`, files of study.py; `flickr=PHOTOS.npz` adds
h trained on captions of images instead of on sentences of classes.

Seeds 1, 2, 3; sets of more than 500 classes have one. At most 16 labelled images a class."""

import logging
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from study import Set, spread
from torch import Tensor, nn
from torch.nn import functional as F

import wordsight
from wordsight.methods.aape_trained import TrainedAAPE
from wordsight.methods.evidence import Spectrum, ridge
from wordsight.metrics import harmonic_mean

DROPPED = 0.5  # of the classes have no offset in a step


class Dropped(TrainedAAPE):
    """The skip form beside class offsets that random classes lack in each step, so that g must serve them."""

    def __init__(self, class_names, space, settings):
        super().__init__(class_names, space, settings)
        self.offsets = nn.Parameter(torch.zeros(len(class_names), self.dim))

    @classmethod
    def formed(cls, own):
        return cls

    @classmethod
    def training(cls, shots, own=None):
        return cls.paper_training

    def set_classes(self, texts):
        super().set_classes(texts)
        self.register_buffer("places", self.rows_of(texts), persistent=False)

    def cosines(self, images: Tensor, said: Tensor) -> Tensor:
        kept = torch.cat([self.offsets, torch.zeros_like(self.offsets[:1])])[self.places]  # -1: no offset
        if torch.is_grad_enabled():
            kept = kept * (torch.rand(len(kept), 1) >= DROPPED)
        return super().cosines(images, said) + images @ kept.T

    def logits(self, images: Tensor) -> Tensor:
        return self.logit_scale * self.cosines(images, self.generate(images))


HERE = "ideas:Dropped"
SKIP = {"form": "skip"}
ROWS: dict[str, dict] = {
    "zero-shot": {"method": "zero_shot"},
    "solved, without h": {"method": "aape"},
    "solved, h": {"method": "aape", "settings": {"prompt": True}},
    "skip, h = 0": {"method": "aape", "settings": SKIP | {"prompt": False}},
    "skip, h": {"method": "aape", "settings": SKIP},
    "skip, h, query of the image": {"method": "aape", "settings": SKIP | {"query": "mean+image"}},
    "skip and dropped offsets, h = 0": {"method": HERE, "settings": SKIP | {"prompt": False}},
    "skip and dropped offsets, h": {"method": HERE, "settings": SKIP},
    "skip and dropped offsets, h, no distillation": {"method": HERE, "settings": SKIP | {"distill": 0.0}},
}


def fitted(one: Set, row: str, seed: int, out: str) -> dict[str, float]:
    folder = Path(out, one.name, f"{''.join(c if c.isalnum() else '-' for c in row)}-seed{seed}")
    run = wordsight.fit(
        data=one.file,
        shots=one.shots[-1],
        classes="base",
        seed=seed,
        words="calibrated",
        out=str(folder),
        references=False,
        **ROWS[row],
    )
    return {e["classes"]: e["accuracy"] for e in run.events("eval")}


def heads(first: str, sets: list[Set]) -> None:
    names = [*first.split(" | "), *(one.name for one in sets)]
    print("", f"| {' | '.join(names)} |", "|---" * len(names) + "|", sep="\n")


def table(sets: list[Set], out: str) -> None:
    heads("base / new / H", sets)
    for row in ROWS:
        shown = []
        for one in sets:
            found = [fitted(one, row, seed, out) for seed in one.seeds]
            base, new = ([f[part] for f in found] for part in ("base", "new"))
            h = harmonic_mean(statistics.mean(base), statistics.mean(new))
            shown.append(f"{spread(base)} / {spread(new)} / {h:.1f}")
        print(f"| {row} | {' | '.join(shown)} |", flush=True)


def weighed_sentences(sets: list[Set]) -> None:
    """New classes: the unit mean of a class's sentences, and its sentences weighed by the image."""
    heads("sharpness", sets)
    for sharp in (0.0, 10.0, 30.0, 100.0):
        print(f"| {sharp:.0f} | {' | '.join(f'{by_sentences(s, sharp):.1f}' for s in sets)} |")


def by_sentences(one: Set, sharp: float) -> float:
    with np.load(one.file) as held:
        images, labels = (torch.tensor(held[key]).float() for key in ("test", "test_label"))
        said, of = (torch.tensor(held[key]).float() for key in ("sentence_vectors", "sentence_label"))
        first = (len(held["classes"]) + 1) // 2
    images, labels = F.normalize(images[labels >= first], dim=1), labels[labels >= first]
    scores = []
    for place in range(first, int(of.max()) + 1):
        own = F.normalize(said[of == place], dim=1)
        weights = (sharp * images @ own.T).softmax(1)
        scores.append((F.normalize(weights @ own, dim=1) * images).sum(1))
    return 100 * float((torch.stack(scores, 1).argmax(1) + first == labels).float().mean())


def from_captions(flickr: str, sets: list[Set]) -> None:
    """h as the ridge map from photos to the mean of their captions, beside the image itself: the score is
    (1 - a) x.t + a h(x).t. Retrieval on the photos' test part, and sets that it never saw."""
    with np.load(flickr) as held:
        photos = {key: F.normalize(torch.tensor(held[key]).float(), dim=-1) for key in held.files}
    means = F.normalize(photos["train_captions"].mean(1), dim=1)
    spectrum = Spectrum.of(photos["train"])
    heads("a | penalty | image to text R@1 | text to image R@1", sets)
    for penalty in (0.001, 0.01, 0.1, 1.0):
        h = ridge(spectrum, means - means.mean(0), penalty)
        for share in (0.0, 0.25, 0.5, 1.0) if penalty == 0.01 else (0.5,):
            seen = mixed(photos["test"], h, share)
            captions = photos["test_captions"]
            scores = seen @ captions.flatten(0, 1).T  # [n, 5 n]
            own = torch.arange(len(seen))
            there = 100 * float((scores.argmax(1) // captions.shape[1] == own).float().mean())
            back = 100 * float((scores.argmax(0) == own.repeat_interleave(captions.shape[1])).float().mean())
            others = [f"{zero_shot(one, h, share):.1f}" for one in sets]
            figures = [str(share), str(penalty), f"{there:.1f}", f"{back:.1f}", *others]
            print(f"| {' | '.join(figures)} |", flush=True)


def mixed(images: Tensor, h, share: float) -> Tensor:
    said = F.normalize(h(images), dim=1)
    return F.normalize((1 - share) * images + share * said, dim=1)


def zero_shot(one: Set, h, share: float) -> float:
    with np.load(one.file) as held:
        images, texts = (F.normalize(torch.tensor(held[key]).float(), dim=1) for key in ("test", "text"))
        return 100 * float(
            (mixed(images, h, share) @ texts.T).argmax(1).eq(torch.tensor(held["test_label"])).float().mean()
        )


def main(*words: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("wordsight").setLevel(logging.ERROR)
    given = dict(word.partition("=")[::2] for word in words)
    out, flickr = given.pop("out", "runs/aape-ideas"), given.pop("flickr", None)
    sets = [Set.of(name, file) for name, file in given.items()]
    said = [one for one in sets if one.sentences]
    weighed_sentences(said)
    if flickr:
        from_captions(flickr, [one for one in said if one.name != "digits"])
    table(sets, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
