"""Captions of Flickr8k's 1,000 test photos: LiMBeR, with AAPE's h as it was trained by itself and trained on,
with the image vector in its place, beside the caption of the nearest training photo and one caption for all.

python benchmarks/caption/real.py --lm gemma3-270m --backbone joined --out runs/caption --device cuda \
    --dtype bfloat16 --batch 128 --epochs 16 --starts ridge --rates 8e-3

Every run is a folder below --out; the same command goes on where it stopped. Results are in
results.jsonl, a line a run, with the table in table.md. Of several --starts and --rates one pair is
chosen for all arms: that whose LiMBeR, half as long trained with another seed, has the highest CIDEr-D on
the 250 validation photos. Nothing is chosen on the test photos. With --cell one training is made alone
(choice/START/RATE, or ARM/SEED once these are finished), so that several processes can share them.

`loss` is what people's captions of the test photos cost, in nats a token, of the first seed: of short
trainings, whose own captions are poor, it says more. The second table has what each arm adds to another, the
mean over the seeds that both have, with a 95 % interval over the photos."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.captioner import seen_by
from wordsight.config import RunSettings
from wordsight.data import Pairs
from wordsight.data.features import image_features
from wordsight.data.pairs import open_pairs
from wordsight.files import write_file
from wordsight.fit_captions import fit_captions
from wordsight.fitted import captioner_of
from wordsight.metrics import margin
from wordsight.reader import read
from wordsight.runs import Run
from wordsight.tasks.caption import constant_caption, figures, nearest_captions

ARMS = {
    "limber": ("none", "LiMBeR"),
    "frozen": ("frozen", "+ AAPE, h trained by itself"),
    "finetuned": ("finetuned", "+ AAPE, h trained on"),
    "image": ("image", "+ the image vector instead"),
}
NAMES = {arm: name for arm, (_, name) in ARMS.items()}
NAMES |= {"nearest": "nearest training photo's caption", "constant": "one caption for all"}
TRIAL_SEED = 11  # of the runs that choose the start and the learning rate
COSTS = "costs.json"  # in a run's folder

ByPhoto = dict[tuple[str, int], dict[str, np.ndarray]]  # of an arm and a seed: each figure, photo by photo
SHOWN = ("cider_d", "bleu_4", "clip_score", "ref_clip_score", "distinct", "tokens", "loss")


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = _some(options.data, out, options.limit) if options.limit else str(options.data)
    backbone = load_backbone(options.backbone, device=options.device, dtype=options.dtype)
    if options.cell:
        _cell_alone(options, data, backbone)
        return
    results = [] if options.no_baselines else _baselines(data, backbone)
    by_photo: ByPhoto = {}
    if options.arms:
        found, by_photo = _runs(options, data, backbone, results)
        results += found
    _write(out, results, options, by_photo)
    print((out / "table.md").read_text())


def _runs(
    options: argparse.Namespace, data: str, backbone: Backbone, before: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], ByPhoto]:
    """Every arm at every seed, all arms of a seed first: a table of fewer seeds is one, too."""
    lm = PrefixedLM.from_base(options.lm, device=backbone.device, dtype=options.dtype)
    (start, rate), results = _chosen(options, backbone, lm), []
    by_photo: ByPhoto = {}
    for seed in options.seeds:
        for arm in options.arms:
            began = time.monotonic()
            run, figures = _trained(options, data, arm, seed, (start, rate), backbone, lm)
            by_photo[arm, seed] = figures
            result = {"arm": arm, "seed": seed, "start": start, "lr": rate, **run.events("captions")[-1]}
            fit = run.events("fit")[-1]
            steps = run.events("train")[-1]["step"]
            if "loss" in figures:
                result["loss"] = float(figures["loss"].mean())
            result |= {"seconds": fit["seconds"], "steps": steps, "h": fit["h"]}
            result["seconds_per_step"] = round(fit["seconds"]["fit"] / steps, 4)
            results.append(result)
            print(json.dumps(result), f"in {time.monotonic() - began:.1f} s", flush=True)
            _write(options.out, before + results, options, by_photo)
    return results, by_photo


def _cell_alone(options: argparse.Namespace, data: str, backbone: Backbone) -> None:
    lm = PrefixedLM.from_base(options.lm, device=backbone.device, dtype=options.dtype)
    match options.cell.split("/"):
        case ["choice", start, rate]:
            print(options.cell, _trial(options, start, float(rate), backbone, lm), flush=True)
        case [arm, seed]:
            _trained(options, data, arm, int(seed), _chosen(options, backbone, lm), backbone, lm)
        case _:
            raise SystemExit(f"--cell {options.cell}: give choice/START/RATE or ARM/SEED")


def _trained(
    options: argparse.Namespace,
    data: str,
    arm: str,
    seed: int,
    chosen: tuple[str, float],
    backbone: Backbone,
    lm: PrefixedLM,
) -> tuple[Run, dict[str, np.ndarray]]:
    """A run, and for each test photo its CIDEr-D and, of the first seed, what people's captions cost."""
    out = options.out / f"{arm}-seed{seed}"
    run = fit_captions(_settings(options, data, arm, seed, chosen, out), backbone, lm)
    with open(next(run.folder.glob("captions-*.csv")), newline="", encoding="utf-8") as file:
        by_photo = {"cider_d": np.array([float(row["cider_d"]) for row in csv.DictReader(file)])}
    if seed == options.seeds[0]:
        kept = run.folder / COSTS
        if not kept.exists():
            write_file(kept, json.dumps(_costs(run, data, backbone, lm).tolist()) + "\n")
        by_photo["loss"] = np.array(json.loads(kept.read_text()))
    return run, by_photo


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/flickr8k"))
    parser.add_argument("--backbone", required=True, help="with a text tower, whose vectors h learns")
    parser.add_argument("--lm", required=True, help="a folder of transformers, a hub name or a GGUF file")
    parser.add_argument("--out", type=Path, default=Path("runs/caption"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--starts", nargs="+", default=["random", "ridge"])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--arms", nargs="*", default=list(ARMS), help=f"of {', '.join(ARMS)}; none: the baselines alone"
    )
    parser.add_argument("--limit", type=int, help="so many training and test photos alone, for a trial")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--cell", help="choice/START/RATE or ARM/SEED: this training alone")
    return parser.parse_args()


def _chosen(options: argparse.Namespace, backbone: Backbone, lm: PrefixedLM) -> tuple[str, float]:
    """The start and the learning rate that are best on the validation photos."""
    pairs = [(start, rate) for start in options.starts for rate in options.rates]
    if len(pairs) == 1:
        return pairs[0]
    found = {pair: _trial(options, *pair, backbone, lm) for pair in pairs}
    lines = {f"{start}/{rate:g}": value for (start, rate), value in found.items()}
    write_file(options.out / "choice.json", json.dumps(lines) + "\n")
    return max(found, key=lambda pair: found[pair])


def _trial(options: argparse.Namespace, start: str, rate: float, backbone: Backbone, lm: PrefixedLM) -> float:
    """CIDEr-D on the validation photos, which stand as test photos in a table of their own."""
    out = options.out / "choice"
    data = _some(options.data, out, options.limit, ("train", "val"))
    half = max(1, options.epochs // 2)
    folder = out / f"{start}-lr{rate:g}"
    asked = _settings(options, data, "limber", TRIAL_SEED, (start, rate), folder, half)
    return fit_captions(asked, backbone, lm).events("captions")[-1]["cider_d"]


def _settings(
    options: argparse.Namespace,
    data: str,
    arm: str,
    seed: int,
    chosen: tuple[str, float],
    out: Path,
    epochs: int | None = None,
) -> RunSettings:
    start, rate = chosen
    own = {"text": options.lm, "tokens": options.tokens, "h": ARMS[arm][0], "start": start}
    loop = {"epochs": epochs or options.epochs, "min_steps": 0, "batch_size": options.batch, "lr": rate}
    given = {"data": data, "backbone": options.backbone, "method": "limber", "seed": seed, "name": arm}
    given |= {"device": options.device, "dtype": options.dtype, "out": str(out)}
    return read(RunSettings, given, {"settings": own, "train": loop})


def _some(data: Path, out: Path, limit: int | None, parts: tuple[str, str] = ("train", "test")) -> str:
    """A table of the first photos of two parts, the second marked as test."""
    out.mkdir(parents=True, exist_ok=True)
    with open(data / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    listed = [[row for row in rows if row["split"] == part][:limit] for part in parts]
    kept = [{**row, "split": part} for part, some in zip(("train", "test"), listed) for row in some]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, "path": (data / row["path"]).absolute()} for row in kept)
    write_file(out / "some.csv", text.getvalue())  # at once, for several processes
    return str(out / "some.csv")


def _baselines(data: str, backbone: Backbone) -> list[dict[str, Any]]:
    train, test = open_pairs(data), open_pairs(data, "test")
    vectors = [_vectors(backbone, pairs) for pairs in (train, test)]
    said = {
        "nearest": nearest_captions(train, *vectors),
        "constant": [constant_caption(train.captions)] * len(test),
    }
    found = []
    for arm, texts in said.items():
        result, _ = figures(texts, test.captions, test.pictures, backbone)
        found.append({"arm": arm, **result})
    return found


@torch.no_grad()
def _costs(run: Run, data: str, backbone: Backbone, lm: PrefixedLM) -> np.ndarray:
    """What a test photo's captions cost after its soft tokens, nats a token: the mean of each photo."""
    generator, test = captioner_of(run, backbone, lm), open_pairs(data, "test")
    seen, _ = seen_by(generator, test.pictures)
    found = []
    for row, prefix in seen.items():
        tokens, _ = lm.tokenise(test.captions[row], run.settings.settings.max_tokens)
        lengths = torch.tensor([len(ids) for ids in tokens], device=lm.device)
        ids = pad_sequence([torch.tensor(ids, device=lm.device) for ids in tokens], batch_first=True)
        found.append(float(lm.loss(prefix.expand(len(ids), -1, -1), ids, lengths)))
    return np.array(found)


def _vectors(backbone: Backbone, pairs: Pairs) -> torch.Tensor:
    features = image_features(backbone, pairs.pictures)
    assert len(features.kept) == len(pairs), "a photo cannot be read"
    return features.vectors[:, 0]


def _write(out: Path, results: list[dict[str, Any]], options: argparse.Namespace, by_photo: ByPhoto) -> None:
    asked = {key: str(value) for key, value in vars(options).items()}
    lines = [json.dumps({"asked": asked, "device": _device(options.device)}), *map(json.dumps, results)]
    write_file(out / "results.jsonl", "".join(f"{line}\n" for line in lines))
    rows = ["| captions by | seeds | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for arm, name in NAMES.items():
        found = [result for result in results if result["arm"] == arm]
        if found:
            cells = [_cell([one[key] for one in found if key in one]) for key in SHOWN]
            rows.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    rows += ["", "| | over | seeds | CIDEr-D | loss |", "|---|---|---|---|---|"]
    for other, arm in itertools.combinations(ARMS, 2):
        added = [_added(by_photo, figure, arm, other) for figure in ("cider_d", "loss")]
        if added[0]:
            seeds = sum((arm, seed) in by_photo and (other, seed) in by_photo for seed in options.seeds)
            rows.append(f"| {NAMES[arm]} | {NAMES[other]} | {seeds} | {' | '.join(added)} |")
    write_file(out / "table.md", "\n".join(rows) + "\n")


def _added(by_photo: ByPhoto, figure: str, arm: str, other: str) -> str:
    """What `arm` has more than `other`: the mean over the seeds of both, and its interval over photos."""
    gaps = [
        figures[figure] - by_photo[other, seed][figure]
        for (name, seed), figures in by_photo.items()
        if name == arm and figure in figures and figure in by_photo.get((other, seed), {})
    ]
    if not gaps:
        return ""
    gap = np.mean(gaps, 0)
    mean, error = gap.mean(), margin([gap])
    return f"{mean:+.3f} [{mean - error:.3f}, {mean + error:.3f}]"


def _cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _device(device: str) -> str:
    cuda = torch.cuda.is_available() and device != "cpu"
    return torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
