"""How much image-text data a CLAMP tower needs against LiT, and what each of its parts is worth.

OMP_NUM_THREADS=1 python benchmarks/clamp/scaling.py ../shared/data JOINED [OUT] [--seeds 1,2,3] [--ablations]
The LM is the tiny real Llama of stories_study.py, so that all of it fits a CPU; LiT has its shape, random
weights, and trains all of them. JOINED is the teacher that benchmarks/joined/build.py writes. Subsets are of
images, drawn by seed, each inside the next; every cell of a study trains for the same number of steps.
Results go to OUT (default runs/scaling), a file a cell, and are not repeated. With --ablations the curves
over sizes are left out."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from stories_study import SETS, Corpus, World, cell, spread

from wordsight.backbones import unit
from wordsight.methods.two_tower import TwoTower

PARTS = 16, 8, 4, 2, 1  # a sixteenth of the images to all
STEPS = {"names": 144, "aerial": 32}  # so that the largest set of pairs is seen once at least
# of each so many images of tiny_imagenet one is no pair but a test: class names that occurred, images that
# did not
HELD_OUT = 8
FIGURES = {
    "names": {"mean of 3 sets": SETS, "held-out images": ("held-out",)},
    "aerial": {way: (f"{way} R@5",) for way in ("image to text", "text to image")},
}
LIT = {
    "random": True,
    "train": "all",
    "keep_generation": False,
    "wrapper": "plain",
    "prompts": 0,
    "pooling": "last",
}
TOWERS: dict[str, dict] = {"CLAMP": {}, "LiT": LIT}
ABLATIONS: dict[str, dict] = {
    "CLAMP": {"teacher": "JOINED"},
    "without LoRA": {"train": "prompts", "teacher": "JOINED"},
    "without distillation": {},
    "prompts causal": {"prompts_attend": "causal", "teacher": "JOINED"},
    "prompt-only LoRA": {"prompt_only_lora": True, "teacher": "JOINED"},
}


class Scaling:
    def __init__(self, world: World, joined: str, seeds: list[int]):
        self.world, self.joined, self.seeds = world, joined, seeds

    def corpus(self, part: str) -> Corpus:
        whole = self.world.corpus(part)
        return whole if part == "aerial" else whole.part(self.rows(whole)[0])

    def rows(self, names: Corpus) -> tuple[list[int], list[int]]:
        """Of the images with class names: what pairs are made of, and what is held out."""
        seen: Counter[str] = Counter()
        halves: tuple[list[int], list[int]] = [], []
        for row, (name,) in enumerate(names.captions):
            seen[name] += 1
            halves[seen[name] % HELD_OUT == 0].append(row)
        return halves

    def size(self, part: str, divisor: int) -> int:
        return len(self.corpus(part).captions) // divisor

    def evaluate(self, part: str, method: TwoTower) -> dict[str, float]:
        if part == "aerial":
            return self.world.recall(method)
        tests = (names := self.world.corpus(part)).part(self.rows(names)[1])
        texts = list(dict.fromkeys(text for (text,) in tests.captions))
        logits = unit(tests.images - method.image_mean) @ method.text.encode(texts).T
        right = logits.argmax(1) == torch.tensor([texts.index(text) for (text,) in tests.captions])
        return self.world.zero_shot(method) | {"held-out": 100 * right.float().mean().item()}

    def measure(self, part: str, name: str, own: dict[str, Any], divisor: int = 1) -> list[dict[str, float]]:
        """A cell for each seed. The joined teacher knows ImageNet's classes and nothing of aerial images:
        those are learned without one.
        """
        own = own | {
            "teacher": self.joined if part == "names" and own.get("teacher") else None,
            "tau_d": 16.0,
        }
        if own["teacher"]:
            name = f"{name} taught"

        def compute(seed: int) -> dict[str, Any]:
            corpus = self.corpus(part)
            order = torch.randperm(
                len(corpus.captions), generator=torch.Generator().manual_seed(seed)
            ).tolist()
            subset = corpus.part(sorted(order[: self.size(part, divisor)]))
            method, seconds = self.world.learn(
                subset, seed, {"max_steps": STEPS[part], "batch_size": 64}, **own
            )
            return {"seconds": seconds, **self.evaluate(part, method)}

        return [
            cell(
                self.world.out / f"{part}-{name.replace(' ', '-')}-{self.size(part, divisor)}-{seed}.json",
                lambda seed=seed: compute(seed),
            )
            for seed in self.seeds
        ]

    def values(self, part: str, cells: list[dict[str, float]]) -> dict[str, list[float]]:
        return {
            label: [statistics.mean(each[key] for key in keys) for each in cells]
            for label, keys in FIGURES[part].items()
        }

    def curves(self, part: str) -> dict[str, dict[int, list[float]]]:
        """One for each tower and figure, over the number of pairs' images; printed as a table."""
        sizes = [self.size(part, divisor) for divisor in PARTS]
        found: dict[str, dict[int, list[float]]] = {}
        for name, own in TOWERS.items():
            for divisor, size in zip(PARTS, sizes):
                for label, values in self.values(part, self.measure(part, name, own, divisor)).items():
                    found.setdefault(f"{name}, {label}", {})[size] = values
        print(
            f"\n| {part}, images | "
            + " | ".join(f"{size:,}" for size in sizes)
            + " |\n|---|"
            + "---|" * len(sizes)
        )
        for label, curve in found.items():
            print(f"| {label} | {' | '.join(map(spread, curve.values()))} |", flush=True)
        return found

    def ablations(self, part: str) -> None:
        columns = [*SETS, *FIGURES[part]] if part == "names" else [*FIGURES[part]]
        print(
            f"\n| {part}, {self.size(part, 1):,} images | "
            + " | ".join(columns)
            + " | processor s |\n|---|"
            + "---|" * (len(columns) + 1)
        )
        for name, own in ABLATIONS.items():
            if part == "aerial" and name == "without distillation":
                continue  # there is none here
            cells = self.measure(part, "CLAMP" if name == "without distillation" else name, own)
            single = {key: [each[key] for each in cells] for key in SETS} if part == "names" else {}
            values = map(spread, (single | self.values(part, cells)).values())
            print(
                f"| {name} | {' | '.join(values)} | "
                f"{statistics.mean(each['seconds'] for each in cells):.0f} |",
                flush=True,
            )


def plot(curves: dict[str, dict[str, dict[int, list[float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axes, (part, lines) in zip(panels, curves.items()):
        for label, curve in lines.items():
            means = [statistics.mean(values) for values in curve.values()]
            deviations = [statistics.pstdev(values) for values in curve.values()]
            colour, line = (
                "C0" if label.startswith("CLAMP") else "C1",
                "--" if label.endswith(("text to image", "3 sets")) else "-",
            )
            axes.errorbar(
                list(curve),
                means,
                yerr=deviations,
                label=label,
                color=colour,
                linestyle=line,
                marker="o",
                markersize=3,
                capsize=2,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes := list(next(iter(lines.values()))), [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(
            {
                "names": "images with class names as captions",
                "aerial": "aerial images, five human captions each",
            }[part]
        )
        axes.set_ylabel({"names": "zero-shot accuracy (%)", "aerial": "recall@5 (%)"}[part])
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("joined")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/scaling"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--ablations", action="store_true", help="these alone, without the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    made = Scaling(
        World(options.data, options.out), options.joined, [int(seed) for seed in options.seeds.split(",")]
    )
    found = {} if options.ablations else {part: made.curves(part) for part in FIGURES}
    for part in FIGURES:
        made.ablations(part)
    if found:
        plot(found, Path(__file__).parent / "scaling.png")
