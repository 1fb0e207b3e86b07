"""The paper's headline at our scale: one LM and one frozen image tower, as a multimodal LLM that is asked
for likelihoods (a run of limber) and as CLAMP (a run of two_tower), zero-shot on the same images.

python benchmarks/zeroshot/headline.py --limber RUN --backbone CLAMP=RUN joined=FOLDER \
    --data caltech101=FOLDER:5 dtd10=FOLDER cifar10=FOLDER:50 --out runs/headline

The first so many test images of a class are taken, in the order of the data. Scores are kept in --out, some
images at a time: the same command goes on where it stopped. Nothing is chosen on test images."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wordsight import metrics
from wordsight.backbones import load_backbone
from wordsight.backbones.generator import Generator
from wordsight.backbones.scoring import Scorer, Tree
from wordsight.captioner import seen_by
from wordsight.data import Dataset, Split, open_dataset
from wordsight.data.features import image_features
from wordsight.fitted import Fitted, open_generator
from wordsight.methods.likelihood import answer_tokens
from wordsight.sentences import fill

PART = 16  # images whose scores are kept together
PAPER = "A photo of {}"
WAYS = {  # how scores of tokens become a class, by one pass over the images
    "likelihood, mean (eq. 11)": ("mean", False, 0.0),
    "likelihood, sum": ("sum", False, 0.0),
    "likelihood, sum with its end": ("sum", True, 0.0),
    "likelihood, mean, half the prior taken away": ("mean", False, 0.5),
    "likelihood, mean, the prior taken away": ("mean", False, 1.0),
    "likelihood, sum, half the prior taken away": ("sum", False, 0.5),
    "likelihood, sum, the prior taken away": ("sum", False, 1.0),
    "constrained generation": ("constrained", True, 0.0),
}


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    sets = {name: some_of(open_dataset(place), count) for name, place, count in map(_set, options.data)}
    rows: list[dict[str, Any]] = []
    for name, place in (one.partition("=")[::2] for one in options.backbone):
        rows += [_by_vectors(name, place, sets, options.template)]
        _write(options.out, rows)
    for place in options.limber:
        rows += _by_likelihood(place, sets, options)
        _write(options.out, rows)
    _draw(options.out / "headline.png", rows)
    print((options.out / "table.md").read_text())


def _draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Mean accuracy of each, and chance."""
    from matplotlib import pyplot

    means = [np.mean([one["accuracy"] for one in row["sets"].values()]) for row in rows]
    chance = np.mean([one["chance"] for one in rows[0]["sets"].values()])
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(rows) + 1.2), layout="constrained")
    asked = [row["name"].startswith(("likelihood", "constrained")) for row in rows]
    bars = axes.barh(range(len(rows)), means, color=["#b0b8c4" if one else "#2f6fab" for one in asked])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.axvline(float(chance), color="black", linestyle=":", label="chance")
    axes.invert_yaxis()
    axes.set_xlabel(f"zero-shot accuracy in percent, mean of {len(rows[0]['sets'])} sets")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def some_of(dataset: Dataset, count: int | None) -> tuple[tuple[str, ...], Split]:
    """The class names, and the first so many test images of each class."""
    test = dataset.test if dataset.test is not None else dataset.train
    taken: dict[int, int] = {}
    rows = []
    for row, label in enumerate(test.labels.tolist()):
        taken[label] = taken.get(label, 0) + 1
        if count is None or taken[label] <= count:
            rows.append(row)
    return dataset.class_names, test.take(rows)


def _by_vectors(name: str, place: str, sets: dict, template: str) -> dict[str, Any]:
    backbone = load_backbone(place, device="auto")
    row: dict[str, Any] = {"name": name, "sets": {}}
    for data, (names, split) in sets.items():
        began = time.monotonic()
        fitted = Fitted.by_names(backbone, names, template)
        features = image_features(backbone, split.pictures)
        found = fitted.best(features.vectors[:, 0])
        row["sets"][data] = _figures(found, split, features.kept, len(names), time.monotonic() - began)
    return row


def _by_likelihood(place: str, sets: dict, options: argparse.Namespace) -> list[dict[str, Any]]:
    generator = open_generator(place, dtype=options.dtype)
    scorer = Scorer(generator.scored_by)
    rows = [{"name": f"{way}, {options.answer!r}", "sets": {}} for way in WAYS]
    for data, (names, split) in sets.items():
        found = _scores(generator, scorer, data, names, split, options)
        for row, (kind, end, prior) in zip(rows, WAYS.values()):
            scores = _combined(found, kind, end, prior)
            best = metrics.best(torch.from_numpy(scores).float())
            row["sets"][data] = _figures(best, split, found["kept"], len(names), found["seconds"])
    return rows


def _combined(found: dict[str, Any], kind: str, end: bool, prior: float) -> np.ndarray:
    if kind == "constrained":
        return found["constrained"]
    lengths = found["lengths"] + end if kind == "mean" else np.ones_like(found["lengths"])
    which = "ended" if end else "summed"
    return (found[which] - prior * found[f"blind_{which}"]) / lengths


@torch.no_grad()
def _scores(
    generator: Generator,
    scorer: Scorer,
    data: str,
    names: Sequence[str],
    split: Split,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What the LM says of each class's answer, per image: with and without its end, and constrained."""
    lm = generator.scored_by
    seen, _ = seen_by(generator, split.pictures)
    kept, prompts = list(seen), [generator.captioning(one) for one in seen.values()]
    texts = [fill(options.answer, name) for name in names]
    tokens = answer_tokens(lm.tokenizer, generator.tail(prompts[0]), texts)
    tree = Tree.of([[*row, lm.end] for row in tokens])
    key = hashlib.blake2b(repr((generator.fingerprint, options.answer, names)).encode(), digest_size=6)
    folder = options.out / f"{data}-{key.hexdigest()}"
    folder.mkdir(exist_ok=True)
    for start in range(0, len(prompts), PART):
        path = folder / f"{start:06d}.npz"
        if path.exists():
            continue
        began = time.monotonic()
        found = {name: [] for name in ("summed", "ended", "constrained")}
        for behind in generator.read(prompts[start : start + PART]):
            nodes = scorer.nodes(behind, tree)
            for name, values in _of_nodes(nodes, tree).items():
                found[name].append(values)
        arrays = {name: np.concatenate(values) for name, values in found.items()}
        np.savez(path, **arrays, seconds=time.monotonic() - began)
    parts = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    (behind,) = generator.read([generator.captioning(None)])
    blind = _of_nodes(scorer.nodes(behind, tree), tree)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in blind}
    whole |= {f"blind_{name}": values for name, values in blind.items()}
    return whole | {
        "kept": kept,
        "lengths": np.array([len(row) for row in tokens]),
        "seconds": float(sum(part["seconds"] for part in parts)),
    }


def _of_nodes(nodes: torch.Tensor, tree: Tree) -> dict[str, np.ndarray]:
    """{form: [B, C]}; prompts of one length, so in their order."""
    whole, end = tree.summed(nodes), nodes[:, list(tree.ends)]
    constrained = tree.summed(tree.among_siblings(nodes))
    found = {"summed": whole - end, "ended": whole, "constrained": constrained}
    return {name: values.cpu().numpy() for name, values in found.items()}


def _figures(
    found: metrics.Best, split: Split, kept: Sequence[int], classes: int, seconds: float
) -> dict[str, Any]:
    labels = torch.from_numpy(split.labels)[list(kept)]
    share = 100 * float(np.bincount(found.predicted.numpy(), minlength=classes).max()) / len(labels)
    return {
        "images": len(labels),
        "accuracy": metrics.accuracy(found, labels),
        "largest_share": share,
        "chance": 100 / classes,
        "seconds_per_1000": 1000 * seconds / len(labels),
    }


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    (out / "results.json").write_text(json.dumps(rows, indent=1))
    sets = list(rows[0]["sets"])
    lines = [
        "| | " + " | ".join(sets) + " | mean | most frequent answer | s per 1,000 images |",
        "|---|" + "---|" * (len(sets) + 3),
    ]
    for row in rows:
        figures = [row["sets"][name] for name in sets]
        accuracy = [one["accuracy"] for one in figures]
        share, seconds = (
            np.mean([one[key] for one in figures]) for key in ("largest_share", "seconds_per_1000")
        )
        cells = [f"{value:.1f}" for value in [*accuracy, np.mean(accuracy), share]]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")


def _set(word: str) -> tuple[str, str, int | None]:
    name, _, place = word.partition("=")
    place, _, count = place.partition(":")
    return name, place, int(count) if count else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=PLACE[:IMAGES A CLASS]")
    parser.add_argument("--backbone", nargs="*", default=[], metavar="NAME=BACKBONE")
    parser.add_argument("--limber", nargs="*", default=[], metavar="RUN")
    parser.add_argument("--template", default="a photo of a {}.", help="of the backbones")
    parser.add_argument("--answer", default=PAPER, help="what is scored of each class")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
