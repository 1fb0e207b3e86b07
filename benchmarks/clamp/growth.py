"""What a contrastive batch costs: peak memory from 512 to 8,192 pairs, captions per second by chunk size, and
in 1, 2 and 3 processes.

OMP_NUM_THREADS=1 python benchmarks/clamp/growth.py [OUT] [--only memory,processes,chunks] A random Llama of
1.3M parameters with 8 prompts and LoRA, captions of 6 to 12 random tokens: neither memory nor speed depends
on the weights or the words. Whole steps of train.py. Memory is the peak above what the process holds after a
step of 16 pairs, each batch in a process of its own, and the plain step stops where twice the memory would
pass 8 GiB. Speed is in pairs per second of processor time, all processes together, which other work on the
machine disturbs least, and by the clock. Results go to OUT (default runs/growth), a file a cell, and are not
repeated."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wordsight.backbones.text_tower import TextTower
from wordsight.batches import PairBatches
from wordsight.contrast import join_processes
from wordsight.methods.two_tower import TwoTower, TwoTowerSettings, tower_settings
from wordsight.train import train

SHAPE = {
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 64,
}
DIM, SHORTEST, LONGEST = 192, 6, 12
BATCHES, CHUNK, LIMIT = (512, 1024, 2048, 4096, 8192), 256, 8 * 2**30
CHUNKS, ROUNDS = (16, 32, 64, 128, 256, 512, 1024), 3
PROCESSES, SHARED = (1, 2, 3), 768
MIB = 2**20


def made(chunk: int | None) -> TwoTower:
    torch.manual_seed(0)
    words = {"</s>": 0} | {f"w{row}": row for row in range(1, SHAPE["vocab_size"])}
    pieces = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>")
    own = TwoTowerSettings(wrapper="plain", prompts=8, chunk=chunk)
    return TwoTower(
        TextTower(LlamaForCausalLM(LlamaConfig(**SHAPE)), tokenizer, tower_settings(own, DIM)), own
    )


def pairs(count: int, rank: int = 0, world: int = 1) -> PairBatches:
    """One batch of `count` images, each with a caption of its own."""
    stream = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=stream).tolist()
    tokens = [torch.randint(1, SHAPE["vocab_size"], (length,), generator=stream) for length in lengths]
    images = torch.randn(count, 1, DIM, generator=stream)
    return PairBatches(images, [[row] for row in range(count)], tokens, count, 0, rank=rank, world=world)


def step(method: TwoTower, batches: PairBatches) -> None:
    train(method, batches, replace(TwoTower.training_defaults, max_steps=1, lr=1e-4), seed=0)


# What a process of its own measures


def peak(count: int, chunk: int | None) -> dict[str, float]:
    """Bytes above the model at the worst moment of a step."""
    method, batches = made(chunk), pairs(count)
    step(method, pairs(16))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held = status("VmRSS")
    began = time.process_time()
    step(method, batches)
    return {"bytes": status("VmHWM") - held, "rate": count / (time.process_time() - began)}


def status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def rate(count: int, chunk: list[int | None]) -> dict[str, Any]:
    """Pairs per second with each chunk, of one process or one of several. Rounds are interleaved, so that
    other work on the machine meets all alike.
    """
    rank, world = join_processes("cpu")
    method, batches = made(None), pairs(count, rank, world)
    found: dict[str, Any] = {
        "rank": rank,
        "rate": {str(size): [] for size in chunk},
        "clock": {str(size): [] for size in chunk},
    }
    step(method, pairs(16 * world, rank, world))
    for _ in range(ROUNDS):
        for size in chunk:
            method.settings = replace(method.settings, chunk=size)
            if world > 1:
                distributed.barrier()
            clock, began = time.monotonic(), time.process_time()
            step(method, batches)
            clock, spent = time.monotonic() - clock, torch.tensor(time.process_time() - began)
            if world > 1:
                distributed.all_reduce(spent)
            found["rate"][str(size)].append(count / spent.item())
            found["clock"][str(size)].append(count / clock)
    return found


# What is measured


def alone(file: Path, what: str, count: int, chunk: Any, processes: int = 1) -> dict[str, Any]:
    """`what` in fresh processes, kept in `file`."""
    if not file.exists():
        launch = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            if processes > 1
            else []
        )
        asked = json.dumps({"what": what, "count": count, "chunk": chunk, "file": str(file)})
        subprocess.run([sys.executable, *launch, __file__, "--worker", asked], check=True)
    return json.loads(file.read_text())


def memory(out: Path) -> None:
    found: dict[str, dict[int, float]] = {"plain": {}, f"chunk={CHUNK}": {}}
    rates: dict[str, dict[int, float]] = {name: {} for name in found}
    for name, chunk in zip(found, (None, CHUNK)):
        for count in BATCHES:
            if found[name] and 2 * list(found[name].values())[-1] > LIMIT and chunk is None:
                break
            figures = alone(out / f"memory-{chunk}-{count}.json", "peak", count, chunk)
            found[name][count], rates[name][count] = figures["bytes"], figures["rate"]
    print(
        "\n| peak above the model, MiB | "
        + " | ".join(f"{count:,}" for count in BATCHES)
        + " |\n|---|"
        + "---|" * len(BATCHES)
    )
    for name, values in found.items():
        print(
            f"| {name} | "
            + " | ".join(f"{values[count] / MIB:,.0f}" if count in values else "not run" for count in BATCHES)
            + " |"
        )
    for name, values in rates.items():
        cells = " | ".join(f"{values[count]:,.0f}" if count in values else "not run" for count in BATCHES)
        print(f"| {name}, pairs a processor second | {cells} |")
    plot(found, out, Path(__file__).parent / "growth.png")


def by_chunk(out: Path) -> dict[str, list[float]]:
    rates = alone(out / "chunks.json", "rate", max(CHUNKS), [None, *CHUNKS])["rate"]
    return {"plain": rates.pop("None"), **rates}


def chunks(out: Path) -> None:
    found = by_chunk(out)
    print(f"\n| chunk, batch {max(CHUNKS):,} | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    print("| pairs a processor second | " + " | ".join(map(spread, found.values())) + " |")


def processes(out: Path) -> None:
    found = [alone(out / f"processes-{count}.json", "rate", SHARED, [64], count) for count in PROCESSES]
    print(
        f"\n| processes, batch {SHARED} in all, chunk=64 | "
        + " | ".join(map(str, PROCESSES))
        + " |\n|---|"
        + "---|" * len(found)
    )
    for key, label in (
        ("rate", "pairs a processor second, all processes together"),
        ("clock", "pairs a second by the clock, on a busy machine"),
    ):
        print(f"| {label} | " + " | ".join(spread(each[key]["64"]) for each in found) + " |")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):,.0f} ± {statistics.pstdev(values):,.0f}"


def plot(peaks: dict[str, dict[int, float]], out: Path, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, values in peaks.items():
        left.plot(
            list(values), [value / MIB for value in values.values()], marker="o", markersize=3, label=name
        )
    left.set(xscale="log", yscale="log", xlabel="pairs in a batch", ylabel="peak above the model (MiB)")
    left.set_xticks(BATCHES, [f"{count:,}" for count in BATCHES])
    left.set_yticks(marks := (500, 1000, 2000, 4000), [f"{mark:,}" for mark in marks])
    left.legend(frameon=False, fontsize=8)
    found = by_chunk(out)
    plain = statistics.mean(found.pop("plain"))
    means, deviations = (
        [statistics.mean(v) for v in found.values()],
        [statistics.pstdev(v) for v in found.values()],
    )
    right.errorbar(
        list(map(int, found)), means, yerr=deviations, marker="o", markersize=3, capsize=2, label="in chunks"
    )
    right.axhline(plain, linestyle="--", color="C1", label="plain")
    right.set(
        xscale="log",
        xlabel=f"chunk, in a batch of {max(CHUNKS):,}",
        ylabel="pairs a processor second",
        ylim=(0, None),
    )
    right.set_xticks(CHUNKS, map(str, CHUNKS))
    right.legend(frameon=False, fontsize=8)
    left.minorticks_off()
    right.minorticks_off()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def work(asked: dict[str, Any]) -> None:
    figures = {"peak": peak, "rate": rate}[asked["what"]](asked["count"], asked["chunk"])
    if not figures.pop("rank", 0):
        Path(asked["file"]).write_text(json.dumps(figures))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/growth"))
    parser.add_argument("--only", default="memory,processes,chunks")
    parser.add_argument("--worker", type=json.loads, help="for the processes that this script starts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        resource.setrlimit(
            resource.RLIMIT_AS, (2 * LIMIT, 2 * LIMIT)
        )  # rather an error than a machine without memory
        work(options.worker)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        for part in options.only.split(","):
            {"memory": memory, "chunks": chunks, "processes": processes}[part](options.out)
