"""What a language model's knowledge is worth where no image was ever paired: real digits by name, after pairs
of letters only.

    OMP_NUM_THREADS=1 python benchmarks/clamp/micro/eyes.py /tmp/eyes       # eyes without words, for the
    second table OMP_NUM_THREADS=1 python benchmarks/clamp/micro/study.py [OUT] [--blind-eyes /tmp/eyes]
    [--seeds 1,2,3]

Runs go to OUT (default runs/clamp-micro) and are not repeated; the tables are printed, and study.png is drawn
beside this file."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import torch.nn.functional as F
from texts import DIGITS, GLYPHS, PARTS, SHAPES, choose, describe, name

from wordsight.backbones import Backbone, load_backbone
from wordsight.config import RunSettings
from wordsight.data import Picture, open_dataset
from wordsight.data.features import image_features
from wordsight.demo.clamp import GLYPHS as RENDERED
from wordsight.demo.clamp import TOWER, TOWERS, TRAIN, png
from wordsight.files import write_file
from wordsight.fit import fit

HERE = Path(__file__).parent
COVERAGES = {
    "letters": "52 letters, no digit",
    "half-digits": "52 letters and 5 digits",
    "half-letters": "26 letters, no digit",
}
NAMES = {
    "clamp": "CLAMP",
    "untrained": "CLAMP, ridge start alone",
    "random-lm": "the same, random LM",
    "lit": "LiT",
}
CHANGES: dict[str, tuple[dict, dict]] = {tower: (own, {}) for tower, (_, own) in TOWERS.items()} | {
    "untrained": ({}, {"epochs": 0})
}


def paired(coverage: str, seed: int) -> str:
    """The glyphs that occur in pairs. Halves are drawn by the seed."""
    rng, letters = random.Random(seed), GLYPHS[10:]
    if coverage == "half-letters":
        return "".join(sorted(rng.sample(letters, 26)))
    return letters + ("".join(sorted(rng.sample(GLYPHS[:10], 5))) if coverage == "half-digits" else "")


def write_pairs(path: Path, glyphs: str, captions: str, seed: int) -> Path:
    """A table of images and captions, of which one is drawn each time an image is seen: the name, or besides
    it four descriptions a glyph.
    """
    rng, rows = random.Random(seed), []
    described = {
        glyph: [describe(glyph, rng) for _ in range(4)] if captions == "descriptions" else []
        for glyph in glyphs
    }
    with np.load(RENDERED) as data:
        for image, label in zip(data["images"], data["labels"].tolist()):
            if (glyph := GLYPHS[label]) in glyphs:
                texts = [name(glyph), *described[glyph]]
                rows.append({"image": png(image)} | {f"caption_{i}": text for i, text in enumerate(texts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


class Study:
    """One pair of eyes. Every figure is of real digits, all 1,797 of them; they are used for nothing else."""

    def __init__(self, out: Path, eyes: str):
        self.out, self.eyes_name = out, eyes
        self.image_tower = load_backbone(eyes, device="cpu", text=False)
        digits = open_dataset("digits")
        self.vectors = self.see(
            [picture for split in (digits.train, digits.test) for picture in split.pictures]
        )
        self.labels = np.concatenate([digits.train.labels, digits.test.labels])

    def see(self, pictures: list[Picture]) -> torch.Tensor:
        return image_features(self.image_tower, pictures).vectors[:, 0]

    def rendered(self) -> tuple[torch.Tensor, np.ndarray]:
        """Vectors of the rendered glyphs, and their places in GLYPHS."""
        with np.load(RENDERED) as data:
            pictures = [
                Picture(f"glyph[{i}]", lambda image=image: png(image))
                for i, image in enumerate(data["images"])
            ]
            return self.see(pictures), data["labels"].astype(int)

    def tower(self, coverage: str, captions: str, tower: str, seed: int, **changed) -> tuple[Backbone, float]:
        """`changed`: of `own` and `train`, for trials on rendered digits."""
        data, (own, train) = self.out / f"{coverage}-{captions}-{seed}.parquet", CHANGES[tower]
        if not data.exists():
            write_pairs(data, paired(coverage, seed), captions, seed)
        settings = RunSettings(
            data=str(data),
            backbone=self.eyes_name,
            method="two_tower",
            template="the digit {}",
            seed=seed,
            device="cpu",
            out=str(self.out / f"{coverage}-{captions}-{tower}-{seed}"),
            settings=TOWER | own | changed.get("own", {}),
            train=TRAIN | train | changed.get("train", {}),
        )
        run = fit(settings, backbone=self.image_tower)
        return load_backbone(run.folder, device="cpu"), run.events("fit")[0]["seconds"]["fit"]

    def measure(self, coverage: str, captions: str, tower: str, seed: int) -> dict[str, float]:
        file = self.out / f"{coverage}-{captions}-{tower}-{seed}.json"
        if not file.exists():
            backbone, seconds = self.tower(coverage, captions, tower, seed)
            found = {
                "seconds": seconds,
                **accuracies(backbone, self.vectors, self.labels, paired(coverage, seed)),
            }
            write_file(file, json.dumps(found))
            print(file.stem, found, flush=True)
        return json.loads(file.read_text())


def accuracies(
    backbone: Backbone, vectors: torch.Tensor, labels: np.ndarray, glyphs: str
) -> dict[str, float]:
    """Of images of digits that were never paired, by name: among those alone (new), and among all ten; and of
    all images among all ten.
    """
    texts = backbone.encode_text([f"the digit {word}" for word in DIGITS])
    logits = (backbone.image_vectors(vectors) @ texts.T).numpy()
    new = [digit for digit in range(10) if str(digit) not in glyphs]
    unseen = np.isin(labels, new)
    among = np.array(new)[logits[:, new].argmax(1)]
    right = logits.argmax(1) == labels
    return {
        "new": 100 * float((among == labels)[unseen].mean()),
        "new_of_ten": 100 * float(right[unseen].mean()),
        "all": 100 * float(right.mean()),
        "chance": 100 / len(new),
    }


# -- why -----------------------------------------------------------------------------------------------------


def knowledge() -> tuple[torch.Tensor, torch.Tensor]:
    """What the LM says of each glyph after the wrapper: its last state, and the log probability of every
    part's phrase.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = TOWER["text"]
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    wordings = [choose(words.split(";")[0], random.Random(0)) for words in PARTS.values()]
    states, chances = [], []
    with torch.no_grad():
        for glyph in GLYPHS:
            start = tokenizer(TOWER["wrapper"].replace("{}", name(glyph)))["input_ids"]
            lines = [start + tokenizer(words)["input_ids"][1:] for words in wordings]
            width = max(map(len, lines))
            ids = torch.tensor([line + [2] * (width - len(line)) for line in lines])
            output = lm(ids, output_hidden_states=True)
            logs = output.logits.log_softmax(-1)
            states.append(output.hidden_states[-1][0, len(start) - 1])
            chances.append(
                [
                    sum(logs[row, at - 1, line[at]].item() for at in range(len(start), len(line)))
                    for row, line in enumerate(lines)
                ]
            )
    return torch.stack(states), torch.tensor(chances)


def why(study: Study) -> None:
    """Where knowledge is lost: from the table of parts to the LM, and from there to the eyes."""
    from sklearn.metrics import roc_auc_score

    vectors, labels = study.rendered()
    mean = vectors[labels >= 10].mean(0)
    images = F.normalize(torch.stack([vectors[labels == glyph].mean(0) for glyph in range(62)]) - mean, dim=1)
    parts = torch.tensor([[float(part in SHAPES[glyph].split()) for part in PARTS] for glyph in GLYPHS])
    states, chances = knowledge()
    told = roc_auc_score(parts[:10].flatten().numpy(), (chances - chances.mean(0))[:10].flatten().numpy())
    print(f"the LM tells true parts of a digit from false ones: AUC {told:.3f}")
    seen = F.normalize(study.vectors - mean, dim=1)
    for title, known in (
        ("true parts", parts),
        ("LM's log probabilities of parts", chances.clamp(min=-12)),
        ("LM's last state", states),
    ):
        guess = ridge(known - known[10:].mean(0), images)
        print(
            f"ridge from {title} of 52 letters to their mean images, then real digits: "
            f"{100 * ((seen @ guess.T).argmax(1).numpy() == study.labels).mean():.1f}"
        )
    right = 100 * ((seen @ images[:10].T).argmax(1).numpy() == study.labels).mean()
    print(f"mean images of rendered digits in place of any text (what these eyes could do): {right:.1f}")
    near = {
        title: nearest(space)
        for title, space in (
            ("text", states - states.mean(0)),
            ("image", images),
            ("parts", parts - parts.mean(0)),
        )
    }
    for digit in range(10):
        print(
            f"| {digit} | "
            + " | ".join(" ".join(GLYPHS[at] for at in near[title][digit]) for title in near)
            + " |"
        )
    for title in ("text", "parts"):
        shared = [len(set(near[title][digit]) & set(near["image"][digit])) for digit in range(10)]
        print(
            f"of a digit's 3 nearest letters by {title}, {statistics.mean(shared):.1f} are among the 3 "
            f"nearest by image (chance {9 / 52:.2f})"
        )


def ridge(known: torch.Tensor, images: torch.Tensor, penalty: float = 0.3) -> torch.Tensor:
    """Vectors of the ten digits, from the map that fits the letters."""
    gram = known @ known[10:].T / known[10:].square().sum(1).mean()
    return F.normalize(
        gram[:10] @ torch.linalg.solve(gram[10:] + penalty * torch.eye(52), images[10:]), dim=1
    )


def nearest(space: torch.Tensor, count: int = 3) -> list[list[int]]:
    unit = F.normalize(space, dim=1)
    return [[10 + at for at in row] for row in (unit[:10] @ unit[10:].T).topk(count).indices.tolist()]


# -- tables --------------------------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def table(
    study: Study, cells: list[tuple[str, str]], seeds: list[int]
) -> dict[tuple[str, str], dict[str, list[float]]]:
    found = {
        cell: {tower: [study.measure(*cell, tower, seed) for seed in seeds] for tower in NAMES}
        for cell in cells
    }
    print(
        "\n| text tower | "
        + " | ".join(f"{COVERAGES[coverage]}; {captions}" for coverage, captions in cells)
        + " | s |"
    )
    print("|---|" + "---|" * (len(cells) + 1))
    for tower, title in NAMES.items():
        line = []
        for coverage, captions in cells:
            each = found[coverage, captions][tower]
            text = spread([one["new"] for one in each])
            line.append(
                f"{text} (all ten: {spread([one['all'] for one in each])})"
                if coverage == "half-digits"
                else text
            )
        print(
            f"| {title} | {' | '.join(line)} | "
            f"{statistics.mean(one['seconds'] for one in found[cells[0]][tower]):.0f} |"
        )
    print(
        "| chance | " + " | ".join(f"{found[cell]['clamp'][0]['chance']:.0f}" for cell in cells) + " | |",
        flush=True,
    )
    return {
        cell: {tower: [one["new"] for one in each] for tower, each in towers.items()}
        for cell, towers in found.items()
    }


def plot(groups: list[tuple[str, float, dict[str, list[float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    for row, (tower, title) in enumerate(NAMES.items()):
        places = [group + 0.19 * (row - (len(NAMES) - 1) / 2) for group in range(len(groups))]
        values = [found[tower] for _, _, found in groups]
        axes.bar(
            places,
            [statistics.mean(each) for each in values],
            0.18,
            label=title,
            color=("#0072b2", "#56b4e9", "#999999", "#d55e00")[row],
        )
        for place, each in zip(places, values):
            axes.plot([place] * len(each), each, ".", color="black", markersize=4)
    for group, (_, chance, _) in enumerate(groups):
        axes.plot([group - 0.42, group + 0.42], [chance] * 2, "--", color="black", linewidth=1)
    axes.set_xticks(range(len(groups)), [title for title, *_ in groups], fontsize=8)
    axes.set_ylabel("real digits that were never paired,\nby name (%)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/clamp-micro"))
    parser.add_argument("--blind-eyes", help="the folder that eyes.py wrote")
    parser.add_argument("--seeds", default="1,2,3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, study = [int(seed) for seed in options.seeds.split(",")], Study(options.out, "micro")
    cells = [(coverage, "names") for coverage in COVERAGES] + [("letters", "descriptions")]
    found = table(study, cells, seeds)
    chances = {"half-digits": 20.0}
    groups = [
        (
            f"{COVERAGES[coverage]}\n{captions}".replace("descriptions", "names and descriptions"),
            chances.get(coverage, 10.0),
            found[coverage, captions],
        )
        for coverage, captions in cells
    ]
    why(study)
    if options.blind_eyes:
        blind = Study(options.out / "blind", options.blind_eyes)
        groups.append(
            (
                "52 letters, no digit\nnames; eyes without words",
                10.0,
                table(blind, [("letters", "names")], seeds)["letters", "names"],
            )
        )
        why(blind)
    plot(groups, HERE / "study.png")
