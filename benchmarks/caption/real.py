"""Captions of Flickr8k's 1,000 test photos: LiMBeR, with AAPE's h as it was trained by itself and trained on,
with the image vector in its place, beside the caption of the nearest training photo and one caption for all.

python benchmarks/caption/real.py --lm gemma3-270m --backbone joined --out runs/caption --device cuda \
    --dtype bfloat16 --batch 128 --epochs 40

Every run is a folder below --out; the same command goes on where it stopped. Results are in
results.jsonl, a line a run, with the table in table.md. Of several --rates one is chosen for all arms:
that whose LiMBeR, half as long trained with another seed, has the highest CIDEr-D on the 250 validation
photos. Nothing is chosen on the test photos.

`loss` is what people's captions of the test photos cost, in nats a token: of short trainings, whose own
captions are poor, it says more. `over_limber` is its difference from LiMBeR's of the same seed, [mean, low,
high], with a 95 % interval over the photos."""

from __future__ import annotations

import argparse
import csv
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
TRIAL_SEED = 11  # of the runs that choose the learning rate
SHOWN = ("cider_d", "bleu_4", "clip_score", "ref_clip_score", "distinct", "tokens", "loss")


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = _some(options.data, out, options.limit) if options.limit else str(options.data)
    backbone = load_backbone(options.backbone, device=options.device, dtype=options.dtype)
    results = [] if options.no_baselines else _baselines(data, backbone)
    if options.arms:
        results += _runs(options, data, backbone, results)
    _write(out, results, options)
    print((out / "table.md").read_text())


def _runs(
    options: argparse.Namespace, data: str, backbone: Backbone, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every arm at every seed, all arms of a seed first: a table of fewer seeds is one, too."""
    lm = PrefixedLM.from_base(options.lm, device=backbone.device, dtype=options.dtype)
    rate, results = _rate(options, backbone, lm), []
    for seed in options.seeds:
        plain = None
        for arm in options.arms:
            settings = _settings(options, data, arm, seed, rate)
            began = time.monotonic()
            run = fit_captions(settings, backbone, lm)
            result = {"arm": arm, "seed": seed, "lr": rate, **run.events("captions")[-1]}
            fit = run.events("fit")[-1]
            steps = run.events("train")[-1]["step"]
            costs = _costs(run, data, backbone, lm)
            plain = costs if arm == "limber" else plain
            result["loss"] = float(costs.mean())
            if plain is not None and plain is not costs:
                mean, error = float((costs - plain).mean()), margin([costs - plain])
                result["over_limber"] = [mean, mean - error, mean + error]
            result |= {"seconds": fit["seconds"], "steps": steps, "h": fit["h"]}
            result["seconds_per_step"] = round(fit["seconds"]["fit"] / steps, 4)
            results.append(result)
            print(json.dumps(result), f"in {time.monotonic() - began:.1f} s", flush=True)
            _write(options.out, before + results, options)
    return results


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
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--arms", nargs="*", default=list(ARMS), help=f"of {', '.join(ARMS)}; none: the baselines alone"
    )
    parser.add_argument("--limit", type=int, help="so many training and test photos alone, for a trial")
    parser.add_argument("--no-baselines", action="store_true")
    return parser.parse_args()


def _rate(options: argparse.Namespace, backbone: Backbone, lm: PrefixedLM) -> float:
    """The learning rate that is best on the validation photos, in a table where these stand as test
    photos.
    """
    if len(options.rates) == 1:
        return options.rates[0]
    out, half = options.out / "rates", max(1, options.epochs // 2)
    data = _some(options.data, out, options.limit, ("train", "val"))
    found: dict[float, float] = {}
    for rate in options.rates:
        run = fit_captions(_settings(options, data, "limber", TRIAL_SEED, rate, half, out), backbone, lm)
        found[rate] = run.events("captions")[-1]["cider_d"]
        print(f"lr {rate}: CIDEr-D {found[rate]:.4f} on validation photos", flush=True)
    write_file(options.out / "rates.json", json.dumps(found) + "\n")
    return max(found, key=lambda rate: found[rate])


def _settings(
    options: argparse.Namespace,
    data: str,
    arm: str,
    seed: int,
    rate: float,
    epochs: int | None = None,
    out: Path | None = None,
) -> RunSettings:
    own = {"text": options.lm, "tokens": options.tokens, "h": ARMS[arm][0]}
    loop = {"epochs": epochs or options.epochs, "min_steps": 0, "batch_size": options.batch, "lr": rate}
    name = f"{arm}-seed{seed}" if out is None else f"lr{rate:g}"
    given = {"data": data, "backbone": options.backbone, "method": "limber", "seed": seed, "name": arm}
    given |= {"device": options.device, "dtype": options.dtype, "out": str((out or options.out) / name)}
    return read(RunSettings, given, {"settings": own, "train": loop})


def _some(data: Path, out: Path, limit: int | None, parts: tuple[str, str] = ("train", "test")) -> str:
    """A table of the first photos of two parts, the second marked as test."""
    out.mkdir(parents=True, exist_ok=True)
    with open(data / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    listed = [[row for row in rows if row["split"] == part][:limit] for part in parts]
    kept = [{**row, "split": part} for part, some in zip(("train", "test"), listed) for row in some]
    with open(out / "some.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "path": (data / row["path"]).absolute()} for row in kept)
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


def _write(out: Path, results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    asked = {key: str(value) for key, value in vars(options).items()}
    lines = [json.dumps({"asked": asked, "device": _device(options.device)}), *map(json.dumps, results)]
    write_file(out / "results.jsonl", "".join(f"{line}\n" for line in lines))
    rows = ["| captions by | seeds | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for arm, name in NAMES.items():
        found = [result for result in results if result["arm"] == arm]
        if found:
            cells = [_cell([one[key] for one in found if key in one]) for key in SHOWN]
            rows.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    write_file(out / "table.md", "\n".join(rows) + "\n")


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
