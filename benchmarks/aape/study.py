"""AAPE's forms and their parts, base to new, 16 shots, on real photos: `python benchmarks/aape/study.py
JOINED ../shared/data [OUT]`.

JOINED is the folder that benchmarks/joined/build.py writes. One table a dataset: base, new and H of the
averages over seeds 1, 2, 3. Every row is the same default with one thing changed; sentences are CuPL's. Runs
go to OUT (default runs/aape-study) and are not repeated."""

import json
import statistics
import sys
from pathlib import Path

import torch

from wordsight.backbones import load_backbone
from wordsight.config import RunSettings, load_yaml
from wordsight.fit import fit
from wordsight.metrics import harmonic_mean

ALIASES = Path(__file__).parents[1] / "aliases" / "caltech101.json"
SETS = {"caltech101": ("cal", str(ALIASES)), "dtd10": ("texture", None), "cifar10": ("cifar10", None)}
PAPER = load_yaml(Path(__file__).parents[2] / "configs" / "aape-as-in-paper.yaml")
ROWS: dict[str, dict] = {
    "zero-shot (name)": {"method": "zero_shot"},
    "mean of sentences (CuPL)": {"method": "sentence_mean"},
    "linear probe": {"method": "linear_probe"},
    "AAPE as in the paper": {"settings": PAPER["settings"], "train": PAPER["train"]},
    "AAPE as in the paper, AdamW 1e-3": {"settings": PAPER["settings"]},
    "AAPE, h only": {"settings": {"form": "h_only", "width": 32}},
    "**AAPE, default**": {},
    "query = mean + image": {"settings": {"query": "mean+image"}},
    "aggregator mlp": {"settings": {"aggregator": "mlp"}},
    "aggregator mean": {"settings": {"aggregator": "mean"}},
    "aggregator random": {"settings": {"aggregator": "random"}},
    "no distillation": {"settings": {"distill": 0.0}},
    "no calibration": {"settings": {"calibrate": False}},
    "no class residual": {"settings": {"class_residual": False}},
    "width 16": {"settings": {"width": 16}},
    "width 32": {"settings": {"width": 32}},
    "no pull": {"settings": {"pull": 0.0}},
    "pull 1": {"settings": {"pull": 1.0}},
    "new strength 0": {"settings": {"new_strength": 0.0}},
    "new strength 0.1": {"settings": {"new_strength": 0.1}},
    "new strength 0.3": {"settings": {"new_strength": 0.3}},
    "new strength 1": {"settings": {"new_strength": 1.0}},
}


def main(joined: str, data: str, out: str = "runs/aape-study") -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(joined)
    print("| base / new / H | " + " | ".join(SETS) + " |\n|---|" + "---|" * len(SETS))
    record = {}
    for name, changed in ROWS.items():
        cells = []
        for dataset, (prompts, aliases) in SETS.items():
            base, new = [], []
            for seed in (1, 2, 3):
                words = {
                    "sentences": f"{data}/sentences/cupl/full_prompts/{prompts}_prompts_full.json",
                    "aliases": aliases,
                }
                folder = f"{out}/{dataset}-{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
                settings = RunSettings(
                    data=f"{data}/{dataset}",
                    backbone=joined,
                    classes="base",
                    seed=seed,
                    out=folder,
                    **words,
                    **changed,
                )
                run = fit(settings, backbone=backbone)
                figures = {event["classes"]: event["accuracy"] for event in run.events("eval")}
                base.append(figures["base"])
                new.append(figures.get("new"))
            cells.append(cell(base, new))
            record[f"{name} {dataset}"] = {"base": base, "new": new}
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    Path(out, "figures.json").write_text(json.dumps(record, indent=1))


def cell(base: list[float], new: list[float | None]) -> str:
    """`base ± spread / new ± spread / H`; a method that cannot score new classes has no H."""
    first = f"{statistics.mean(base):.1f} ± {statistics.pstdev(base):.1f}"
    if None in new:
        return f"{first} / – / –"
    both = harmonic_mean(statistics.mean(base), statistics.mean(new))
    return f"{first} / {statistics.mean(new):.1f} ± {statistics.pstdev(new):.1f} / {both:.1f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
