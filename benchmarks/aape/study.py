"""AAPE's parts and forms beside its peers at equal words, base to new, on files of vectors: `python
benchmarks/aape/study.py NAME=FILE.npz ... [out=runs/aape-study]`.

benchmarks/aape/vectors.py makes such files. Tables: all rows at 16 labelled images a class (or as many as
each class has), fewer images, all classes labelled, AAPE less zero-shot and less the probe, and fewer
sentences; `only=ROW;ROW` runs and shows these rows alone. Seeds 1, 2, 3. What takes minutes a fit is cut:
sets of more than 500 classes have one seed and no rows of aggregators and of the paper's training, and that
training has one seed everywhere. Runs go to OUT and are not repeated."""

import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import wordsight
from wordsight.config import WordsightError, load_yaml
from wordsight.metrics import harmonic_mean

CONFIGS = Path(wordsight.__file__).parent / "configs"
PAPER = {"train": load_yaml(CONFIGS / "aape-literal.yaml")["train"]}
EQUAL = {"words": "calibrated"}
ROWS: dict[str, dict] = {
    "zero-shot, names": {"method": "zero_shot", "words": "names"},
    "zero-shot, sentences": {"method": "zero_shot", "words": "sentences"},
    "zero-shot, calibrated": {"method": "zero_shot", **EQUAL},
    "**AAPE**": {},
    "AAPE with prompt": {"settings": {"prompt": True}},
    "AAPE without offsets": {"settings": {"offsets": False}},
    "AAPE, words=names": {"words": "names"},
    "linear probe": {"method": "linear_probe", "words": "names"},
    "linear probe, calibrated": {"method": "linear_probe", **EQUAL},
    "TaskRes, calibrated": {"method": "taskres", **EQUAL},
    "Tip-Adapter-F, calibrated": {"method": "tip_adapter_f", **EQUAL},
    "CLIP-Adapter, calibrated": {"method": "clip_adapter", **EQUAL},
    "CLAP, calibrated": {"method": "clap", **EQUAL},
    "skip": {"settings": {"form": "skip"}},
    "skip without prompt": {"settings": {"form": "skip", "prompt": False}},
    "skip without distillation": {"settings": {"form": "skip", "distill": 0.0}},
    "skip, calibrated": {"settings": {"form": "skip"}, **EQUAL},
    "literal": {"settings": {"form": "literal"}},
    "skip, the paper's training": {"settings": {"form": "skip"}, **PAPER},
    "literal, the paper's training": {"settings": {"form": "literal"}, **PAPER},
    "h only": {"settings": {"form": "h_only"}},
    "skip, aggregator mlp": {"settings": {"form": "skip", "aggregator": "mlp"}},
    "skip, aggregator mean": {"settings": {"form": "skip", "aggregator": "mean"}},
    "skip, aggregator random": {"settings": {"form": "skip", "aggregator": "random"}},
}
FEW = (
    "zero-shot, calibrated",
    "**AAPE**",
    "linear probe",
    "TaskRes, calibrated",
    "Tip-Adapter-F, calibrated",
)
ALL = ("zero-shot, names", *FEW)
FEWER_SENTENCES = ("zero-shot, calibrated", "**AAPE**")
SHOTS, SENTENCES, SEEDS, LARGE = (1, 2, 4, 8, 16), (1, 5, 20), (1, 2, 3), 500


class Set(NamedTuple):
    """A file of vectors, and what it can be asked."""

    name: str
    file: str
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    sentences: bool

    @classmethod
    def of(cls, name: str, file: str) -> "Set":
        with np.load(file) as found:
            least = int(np.bincount(found["train_label"]).min())
            seeds = SEEDS[:1] if len(found["classes"]) > LARGE else SEEDS
            return cls(name, file, tuple(k for k in SHOTS if k <= least), seeds, "sentence_vectors" in found)

    def rows(self, seed: int) -> list[str]:
        large = len(self.seeds) == 1
        return [
            row
            for row, given in ROWS.items()
            if not (large and "aggregator" in row) and ("train" not in given or (seed == 1 and not large))
        ]


class Cell(NamedTuple):
    """One run: a row of a table on one set."""

    set: Set
    row: str
    shots: int
    seed: int
    sentences: int | None = None
    classes: str = "base"

    def folder(self, out: str) -> Path:
        row = "".join(c if c.isalnum() else "-" for c in self.row.strip("*"))
        some = "" if self.sentences is None else f"-{self.sentences}sentences"
        some += "" if self.classes == "base" else f"-{self.classes}"
        return Path(out, self.set.name, f"{row}{some}-{self.shots}shot-seed{self.seed}")

    def fit(self, out: str) -> None:
        if not (self.folder(out) / "finished.json").exists():
            data = self.set.file if self.sentences is None else thin(self.set, self.sentences, out)
            given = {"data": data, "shots": self.shots, "classes": self.classes, "seed": self.seed}
            named = {"out": str(self.folder(out)), "name": self.row.strip("*")}
            wordsight.fit(**given, **named, **ROWS[self.row], references=False)

    def figures(self, out: str) -> dict[str, float]:
        """Accuracy of base and new classes; empty where it was not run."""
        events = self.folder(out) / "metrics.jsonl"
        lines = events.read_text().splitlines() if (self.folder(out) / "finished.json").exists() else []
        found = [json.loads(line) for line in lines]
        return {one["classes"]: one["accuracy"] for one in found if one.get("event") == "eval"}


def cells(sets: list[Set]) -> list[Cell]:
    """All runs; those first that say most."""
    whole = [Cell(s, row, s.shots[-1], seed) for s in sets for seed in s.seeds for row in s.rows(seed)]
    few = [Cell(s, row, k, seed) for s in sets for seed in s.seeds for k in s.shots[:-1] for row in FEW]
    every = [Cell(s, row, s.shots[-1], seed, None, "all") for s in sets for seed in s.seeds for row in ALL]
    some = [
        Cell(s, row, s.shots[-1], seed, n)
        for s in sets
        if s.sentences
        for seed in s.seeds
        for n in SENTENCES
        for row in FEWER_SENTENCES
    ]
    return sorted(
        [*whole, *few, *every, *some], key=lambda cell: cell.seed
    )  # the first seed of all sets first


def thin(one: Set, count: int, out: str) -> str:
    """The file with so many sentences a class, drawn once and for all; its path."""
    path = Path(out, one.name, f"{count}-sentences.npz")
    if not path.exists():
        with np.load(one.file) as found:
            held = dict(found)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(held["sentences"]))
        kept = [order[held["sentence_label"][order] == c][:count] for c in range(len(held["classes"]))]
        rows = np.sort(np.concatenate(kept))
        for key in ("sentences", "sentence_label", "sentence_vectors"):
            held[key] = held[key][rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **held)
    return str(path)


def mean_of(row: str, one: Set, shots: int, out: str, some: int | None = None) -> dict[str, list[float]]:
    """Figures of all seeds that were run, by kind of class."""
    found = [Cell(one, row, shots, seed, some).figures(out) for seed in one.seeds]
    return {kind: [f[kind] for f in found if kind in f] for kind in ("base", "new")}


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.pstdev(values):.1f}" if values[1:] else "")


def averaged(found: list[list[float]]) -> list[float]:
    """The mean over sets of their means over seeds; empty where a set has none."""
    return [statistics.mean(map(statistics.mean, found))] if all(found) else []


def harmonic(found: dict[str, list[float]]) -> str:
    if not (found["base"] and found["new"]):
        return "–"
    return f"{harmonic_mean(statistics.mean(found['base']), statistics.mean(found['new'])):.1f}"


def whole_table(sets: list[Set], out: str) -> str:
    """base / new / H of each row; last the means over sets, and the H of these."""
    heads = [f"{one.name}, {one.shots[-1]} shots" for one in sets]
    lines = [f"| base / new / **H** | {' | '.join([*heads, 'mean'])} |", "|---" * (len(sets) + 2) + "|"]
    for row in ROWS:
        found = [mean_of(row, one, one.shots[-1], out) for one in sets]
        if not any(f["base"] for f in found):
            continue
        shown = [f"{spread(f['base'])} / {spread(f['new'])} / **{harmonic(f)}**" for f in found]
        means = {kind: averaged([f[kind] for f in found]) for kind in ("base", "new")}
        shown.append(f"{spread(means['base'])} / {spread(means['new'])} / **{harmonic(means)}**")
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def few_table(one: Set, out: str) -> str:
    """base / new at every number of shots."""
    lines = [f"| {one.name} | {' | '.join(map(str, one.shots))} |", "|---" * (len(one.shots) + 1) + "|"]
    for row in FEW:
        found = [mean_of(row, one, k, out) for k in one.shots]
        lines.append(f"| {row} | {' | '.join(spread(f['base']) + ' / ' + spread(f['new']) for f in found)} |")
    return "\n".join(lines)


def all_table(sets: list[Set], out: str) -> str:
    """Accuracy on all classes, where all are labelled; last the mean over sets."""
    lines = ["| all classes | " + " | ".join([s.name for s in sets] + ["mean"]) + " |"]
    lines.append("|---" * (len(sets) + 2) + "|")
    for row in ALL:
        cells = [[Cell(s, row, s.shots[-1], seed, None, "all") for seed in s.seeds] for s in sets]
        found = [[f["all"] for f in (c.figures(out) for c in some) if "all" in f] for some in cells]
        lines.append(f"| {row} | {' | '.join(map(spread, [*found, averaged(found)]))} |")
    return "\n".join(lines)


def difference_table(sets: list[Set], out: str) -> str:
    """AAPE less zero-shot at the same words, base and new, and less the linear probe, base."""
    lines = [f"| AAPE less | {' | '.join(map(str, SHOTS))} |", "|---" * (len(SHOTS) + 1) + "|"]
    for peer, kind in ((FEW[0], "base"), (FEW[0], "new"), ("linear probe", "base")):
        for one in sets:
            shown = [difference(one, peer, kind, k, out) for k in SHOTS]
            lines.append(f"| {peer}: {kind}, {one.name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def difference(one: Set, peer: str, kind: str, shots: int, out: str) -> str:
    ours, theirs = (mean_of(row, one, shots, out)[kind] for row in ("**AAPE**", peer))
    return f"{statistics.mean(ours) - statistics.mean(theirs):+.1f}" if ours and theirs else "–"


def sentence_table(sets: list[Set], out: str) -> str:
    """base / new / H with so many sentences a class."""
    lines = ["| sentences | " + " | ".join(s.name for s in sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for row in FEWER_SENTENCES:
        for count in (*SENTENCES, None):
            found = [mean_of(row, one, one.shots[-1], out, count) for one in sets]
            shown = [f"{spread(f['base'])} / {spread(f['new'])} / {harmonic(f)}" for f in found]
            lines.append(f"| {row}, {count or 'all'} | {' | '.join(shown)} |")
    return "\n".join(lines)


def tables(sets: list[Set], out: str) -> str:
    """All of them, of what was run."""
    few, said = [few_table(one, out) for one in sets], [one for one in sets if one.sentences]
    last = [all_table(sets, out), difference_table(sets, out), sentence_table(said, out)]
    return "\n\n".join([whole_table(sets, out), *few, *last])


def main(*words: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("wordsight").setLevel(logging.ERROR)
    given = dict(word.partition("=")[::2] for word in words)
    out = given.pop("out", "runs/aape-study")
    only = given.pop("only", "")
    sets, began = [Set.of(name, file) for name, file in given.items()], time.monotonic()
    planned = [cell for cell in cells(sets) if not only or cell.row in only.split(";")]
    for place, cell in enumerate(planned):
        try:
            cell.fit(out)
        except WordsightError as error:  # one row that cannot be does not end the others
            print(error, file=sys.stderr)
        told = f"{place + 1}/{len(planned)}, {time.monotonic() - began:.0f} s: {cell.set.name} {cell.row}"
        print(told, f"{cell.shots} shots, seed {cell.seed}", cell.figures(out), file=sys.stderr, flush=True)
    print(whole_table(sets, out) if only else tables(sets, out))


if __name__ == "__main__":
    main(*sys.argv[1:])
