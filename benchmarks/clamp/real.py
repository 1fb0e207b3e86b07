"""CLAMP with a real LLM on photos: text towers of one frozen image tower, and what each of their parts adds.

python benchmarks/clamp/real.py DATA OUT LM [--mpnet FOLDER] [--minilm FOLDER] [--device cuda] [--cell CELL]
DATA is the folder with flickr8k, imagenet_sample and the three sets, LM Gemma 3 270M as a folder or a GGUF
file. Without --cell: all cells that are missing, one after the other, then the tables; --list names them, so
that several processes can share them. A cell that is finished is not made again. Recipes are compared on
200 left-out classes of imagenet_sample and the validation photos of flickr8k, never on test images.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from study import SETS, counts, spread

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.config import RunSettings
from wordsight.coverage import CUT_OFF
from wordsight.data import open_dataset
from wordsight.data.pairs import open_pairs
from wordsight.fit import fit
from wordsight.fitted import Fitted
from wordsight.tasks.classify import featurise, figures, test_part
from wordsight.tasks.retrieve import retrieval

HELD = 5  # every fifth class of imagenet_sample is left out of the choice's training
TEMPLATE = "a photo of a {}."
ASKS = " In short, this is a picture of something that looks like this, and the one word for it is:"
PLAIN = {"wrapper": "plain", "centre": True, "max_tokens": 48}
READ = {"layers": 16, "prompts_start": ASKS}
GEMMA = {"text": "LM", "start": "ridge", **PLAIN, **READ}
BARE = GEMMA | {"train": "prompts"}  # prompts, pooling and projection alone: no LoRA
SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 4}
ENCODER = {"kind": "encoder", "prompts": 0, "start": "ridge", "pooling": "attention", **PLAIN}
TRAIN = {"epochs": 12, "batch_size": 500, "lr": 2e-4, "weight_decay": 0.1, "warmup_steps": 10, "min_steps": 0}
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clamp": (GEMMA | {"teacher": "start", "chunk": 125}, {}),
    "clamp-lora": (GEMMA | {"chunk": 125}, {}),  # the same without distillation
    "clamp-no-lora": (BARE, {}),
    "clamp-no-lora-distilled": (BARE | {"teacher": "start"}, {}),
    "clamp-untrained": (BARE, {"epochs": 0}),
    "random-prompts": (BARE | {"prompts_start": None}, {}),
    "all-layers": (BARE | {"layers": None}, {}),
    "twin": (BARE | {"random": True}, {}),
    "twin-untrained": (BARE | {"random": True}, {"epochs": 0}),
    "lit": (
        {
            "text": "LM",
            "random": True,
            "shape": SMALL,
            "train": "all",
            "keep_generation": False,
            "chunk": 50,  # or a step takes 22 GB
            **PLAIN,
        },
        {"lr": 5e-4},
    ),
    "frozen-mlp": (
        {"text": "LM", "train": "head", "prompts": 0, "pooling": "mean", "depth": 2, **PLAIN, "layers": 16},
        {"lr": 1e-3, "epochs": 30},
    ),
    "ridge": (
        {"text": "LM", "start": "ridge", "prompts": 0, "pooling": "last", **PLAIN, "layers": 16},
        {"epochs": 0},
    ),
    "mpnet": ({"text": "MPNET", **ENCODER}, {}),
    "mpnet-untrained": ({"text": "MPNET", **ENCODER}, {"epochs": 0}),
    "mpnet-head": ({"text": "MPNET", **ENCODER, "train": "head"}, {}),
    "minilm": ({"text": "MINILM", **ENCODER}, {}),
    "minilm-head": ({"text": "MINILM", **ENCODER, "train": "head"}, {}),
    "minilm-untrained": ({"text": "MINILM", **ENCODER}, {"epochs": 0}),
}
MIXES = ("captions", "names")
CLOSED = {name for name, (_, training) in TOWERS.items() if training.get("epochs") == 0}
# what is tried on the held-out classes: changes of the settings and of the training
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "untrained": TOWERS["clamp-untrained"],
    "untrained-all-layers": (BARE | {"layers": None}, {"epochs": 0}),
    "untrained-random-prompts": (BARE | {"prompts_start": None}, {"epochs": 0}),
    "no-lora": TOWERS["clamp-no-lora"],
    "no-lora-long": (BARE, {"epochs": 30}),
    "lora": (GEMMA | {"chunk": 125}, {}),
    "lora-slow": (GEMMA | {"chunk": 125}, {"lr": 5e-5}),
    "lora-anchored": TOWERS["clamp"],
    "prompt-only-lora": (GEMMA | {"prompt_only_lora": True}, {}),
    "lit-long": (TOWERS["lit"][0], {"lr": 1e-3, "epochs": 30}),
}


class Study:
    def __init__(self, options: argparse.Namespace):
        self.data, self.out, self.options = options.data.resolve(), options.out, options
        self.image_tower = str(self.data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors")
        self.models = {"LM": options.lm, "MPNET": options.mpnet, "MINILM": options.minilm}
        self.out.mkdir(parents=True, exist_ok=True)
        self.tables()

    def tables(self) -> None:
        """imagenet_sample in two: the classes that the choice learns from, and the others."""
        folder = self.data / "imagenet_sample"
        with open(folder / "manifest.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for name, wanted in (("learned", False), ("held", True)):
            chosen = [row for row in rows if (int(row["label"]) % HELD == 0) is wanted]
            lines = [("path", "label", "split")]
            part = "test" if wanted else "train"
            lines += [(str(folder / row["path"]), row["classname"], part) for row in chosen]
            with open(self.out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)

    def source(self, mix: str) -> str:
        photos = f"{self.data}/flickr8k"
        return {
            "captions": photos,
            "names": f"{photos}::{self.data}/imagenet_sample",
            "choice": f"{photos}::{self.out}/learned.csv",
        }[mix]

    def settings(self, mix: str, **changed: Any) -> RunSettings:
        return RunSettings(
            data=self.source(mix),
            backbone=self.image_tower,
            method="two_tower",
            template=TEMPLATE,
            device=self.options.device,
            dtype=self.options.dtype,
            **changed,
        )

    def run(self, mix: str, name: str, own: dict, training: dict, seed: int) -> dict[str, Any]:
        epochs = self.options.epochs
        file = self.out / (f"{mix}-{name}-{seed}" + (f"-{epochs}epochs" if epochs else "") + ".json")
        if not file.exists():
            training = training | ({"epochs": epochs} if epochs else {})
            own = own | {"text": self.models[own["text"]]}
            folder = str(self.out / "runs" / file.stem)
            asked = self.settings(mix, seed=seed, out=folder, settings=own, train=TRAIN | training)
            run = fit(asked)
            backbone = load_backbone(run.folder, device=self.options.device, dtype=self.options.dtype)
            assert isinstance(backbone, LLM)
            event = run.events("fit")[0]
            found = {key: event[key] for key in ("seconds", "images", "parameters")}
            found["last"] = (run.events("train") or [{}])[-1]
            found |= self.chosen_by(backbone) if mix == "choice" else self.measured(backbone, own)
            file.write_text(json.dumps(found))
        return json.loads(file.read_text())

    def chosen_by(self, backbone: Backbone) -> dict[str, Any]:
        found = self.zero_shot(backbone, str(self.out / "held.csv"))
        found |= {"retrieval": retrieval(backbone, open_pairs(f"{self.data}/flickr8k", "val"))}
        return found

    def measured(self, backbone: LLM, own: dict) -> dict[str, Any]:
        found = {source: self.zero_shot(backbone, f"{self.data}/{source}") for source in SETS}
        test = open_pairs(f"{self.data}/flickr8k", "test")
        found["retrieval"] = retrieval(backbone, test)
        if backbone.text.can_generate and not own.get("random") and own.get("prompts", 24):
            texts = [captions[0] for captions in test.captions[:200]]
            found["writing"] = {way: writing(backbone.text, texts, way) for way in ("off", "on")}
        return found

    def zero_shot(self, backbone: Backbone, source: str) -> dict[str, Any]:
        whole = open_dataset(source)
        fitted = Fitted.by_names(backbone, whole.class_names, TEMPLATE)
        tested = featurise(backbone, test_part(whole), self.settings("captions"))
        event = figures(fitted.best(tested.vectors), tested.labels, whole.class_names)
        return {"accuracy": event["accuracy"], "recall": event["class_recall"]}

    def cells(self, seeds: list[int]) -> list[tuple[str, str, int]]:
        return [
            (mix, name, seed)
            for name, (own, _) in TOWERS.items()
            if self.models[own["text"]]
            for mix in MIXES
            for seed in (seeds[:1] if name in CLOSED and not own.get("random") else seeds)
        ]


@torch.no_grad()
def writing(text: TextTower, captions: list[str], adapters: str) -> dict[str, Any]:
    """Perplexity of captions, and how it goes on from three beginnings."""
    total, count = 0.0, 0
    with text.adapters(adapters == "on"):
        for caption in captions:
            ids = torch.tensor([text.tokenizer(caption)["input_ids"]], device=text.device)
            logits = text.plain(input_ids=ids).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    starts = ["The dog ran", "An okapi looks like", "The capital of France is"]
    return {
        "perplexity": math.exp(total / count),
        "writes": text.generate(starts, adapters, max_new_tokens=24),
    }


def covered(study: Study) -> dict[str, dict[str, bool]]:
    """Whether a class is named in more than 5 of Flickr8k's training captions (as CLAMP counts)."""
    captions = [text for texts in open_pairs(f"{study.data}/flickr8k").captions for text in texts]
    names = {source: open_dataset(f"{study.data}/{source}").class_names for source in SETS}
    named = {source: counts(captions, listed, study.out) for source, listed in names.items()}
    return {source: {name: row[name] > CUT_OFF for name in row} for source, row in named.items()}


def halves(found: dict[str, Any], known: dict[str, dict[str, bool]]) -> list[float]:
    """Mean of per-class recall over covered, then over uncovered classes: the mean of the sets that have
    some."""
    means = []
    for wanted in (True, False):
        chosen = [[v for c, v in found[s]["recall"].items() if known[s][c] is wanted] for s in SETS]
        means.append(statistics.mean(statistics.mean(values) for values in chosen if values))
    return means


def report(study: Study, seeds: list[int]) -> None:
    known = covered(study)
    for source, listed in known.items():
        print(f"{source}: {sum(listed.values())} of {len(listed)} class names covered")
    ways = [(way, f"recall@{k}") for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    for mix in MIXES:
        titles = [*SETS, "**mean**", "covered", "uncovered"]
        titles += [f"{'i→t' if way[0] == 'i' else 't→i'} {k.replace('recall', 'R')}" for way, k in ways]
        print(f"\n| {mix} | {' | '.join([*titles, 's'])} |\n|{'---|' * (len(titles) + 2)}")
        for name in dict.fromkeys(name for kind, name, _ in study.cells(seeds) if kind == mix):
            files = [study.out / f"{mix}-{name}-{seed}.json" for seed in seeds]
            found = [json.loads(file.read_text()) for file in files if file.exists()]
            if not found:
                continue
            columns = [[each[source]["accuracy"] for each in found] for source in SETS]
            columns.append([statistics.mean(values) for values in zip(*columns)])
            columns += [list(half) for half in zip(*(halves(each, known) for each in found))]
            columns += [[each["retrieval"][way][k] for each in found] for way, k in ways]
            seconds = statistics.mean(each["seconds"]["fit"] for each in found)
            cells = [spread(values) for values in columns]
            cells[3] = f"**{cells[3]}**"
            print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |")


def main() -> None:
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("lm")
    parser.add_argument("--mpnet")
    parser.add_argument("--minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=int, help="with --cell: another length, kept in a file of its own")
    parser.add_argument("--list", action="store_true", help="name the cells that are missing")
    parser.add_argument("--choose", action="store_true", help="with --list: the cells of the choice")
    parser.add_argument("--cell", help="MIX/TOWER/SEED, or choice/RECIPE/SEED")
    options = parser.parse_args()
    study, seeds = Study(options), [int(seed) for seed in options.seeds.split(",")]
    if options.list and options.choose:
        print("\n".join(f"choice/{name}/{seeds[0]}" for name in RECIPES))
        return
    if options.cell:
        mix, name, seed = options.cell.split("/")
        own, training = (RECIPES if mix == "choice" else TOWERS)[name]
        study.run(mix, name, own, training, int(seed))
        return
    cells = study.cells(seeds)
    for mix, name, seed in cells:
        if options.list:
            if not (options.out / f"{mix}-{name}-{seed}.json").exists():
                print(f"{mix}/{name}/{seed}")
        else:
            study.run(mix, name, *TOWERS[name], seed)
    if not options.list:
        report(study, seeds)


if __name__ == "__main__":
    main()
