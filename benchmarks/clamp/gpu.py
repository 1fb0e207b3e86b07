"""What CLAMP's training takes on a CUDA device: captions a second, memory, and the share of the card's
measured matrix rate.

python benchmarks/clamp/gpu.py [--shapes 1B,7B] [--batch 8192] [--steps 5] [--device cuda]
torchrun --nproc_per_node 2 benchmarks/clamp/gpu.py ...
Llamas of random weights in bfloat16, 24 prompts, LoRA, captions of 32 to 48 random tokens, as long as with
CLAMP's wrapper, and random image vectors: neither memory nor speed depends on weights or words. Whole steps
of train.py by cached gradients, after one that is not timed. `--shapes tiny --batch 64 --device cpu` tries
the script itself."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import pairwise
from statistics import median, pstdev
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from wordsight.backbones import pick_device
from wordsight.backbones.text_tower import TextTower
from wordsight.batches import PairBatches
from wordsight.contrast import join_processes
from wordsight.cost import Ends
from wordsight.meter import clock, device_name, peak_mib
from wordsight.methods.two_tower import TwoTower, TwoTowerSettings, tower_settings
from wordsight.train import train

WORDS, DIM, SHORTEST, LONGEST, SIDE = 32_000, 512, 32, 48, 8192
# of the Llamas of these sizes; chunk: texts that pass through the LM at a time, so that 80 GB hold a 7B's
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "tiny": (16, {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}),
    "1B": (
        256,
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "7B": (64, {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}),
}


def made(shape: str, device: torch.device) -> TwoTower:
    torch.manual_seed(0)
    words = {"</s>": 0} | {f"w{row}": row for row in range(1, WORDS)}
    pieces = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>")
    chunk, sizes = SHAPES[shape]
    config = LlamaConfig(**sizes, vocab_size=WORDS, max_position_embeddings=128)
    with device:
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    own = TwoTowerSettings(wrapper="plain", chunk=chunk)
    return TwoTower(TextTower(lm, tokenizer, tower_settings(own, DIM)), own)


def pairs(count: int, rank: int, world: int) -> PairBatches:
    """One batch of `count` images, each with a caption of its own."""
    stream = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=stream).tolist()
    tokens = [torch.randint(1, WORDS, (length,), generator=stream) for length in lengths]
    images = torch.randn(count, 1, DIM, generator=stream)
    return PairBatches(images, [[row] for row in range(count)], tokens, count, 0, rank=rank, world=world)


def steps(method: TwoTower, batches: PairBatches, count: int, device: torch.device) -> list[float]:
    """Seconds of each step but the first; rank 0 alone takes the time."""
    settings, ends = replace(TwoTower.training_defaults, max_steps=count, log_steps=1), Ends(device)
    train(method, batches, settings, seed=0, device=device, run=ends)
    return [later - sooner for sooner, later in pairwise(ends.clocks)]


def matrix_rate(device: torch.device) -> float:
    """Multiplications and additions a second of one large product in bfloat16."""
    side = SIDE if device.type != "cpu" else SIDE // 16
    factor = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    taken = []
    for _ in range(20):
        began = clock(device)
        torch.mm(factor, factor)
        taken.append(clock(device) - began)
    return 2 * side**3 / median(taken)


def row(shape: str, batch: int, count: int, device: torch.device, rank: int, world: int) -> list[str]:
    method = made(shape, device)
    few = 2 * world * SHAPES[shape][0]
    with FlopCounterMode(display=False) as counter:
        steps(method, pairs(few, rank, world), 1, device)
    # of all processes, counted as executed: cached gradients pass each text twice
    flops = counter.get_total_flops() * world * batch / few
    taken: list[float] = []
    peak = peak_mib(lambda: taken.extend(steps(method, pairs(batch, rank, world), count + 1, device)), device)
    if rank:
        return []
    held = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers())) / 2**20
    share = flops / median(taken) / world / matrix_rate(device)
    rates = [batch / seconds for seconds in taken]
    return [
        shape,
        f"{world}",
        f"{SHAPES[shape][0]}",
        f"{median(rates):,.0f} ± {pstdev(rates):,.0f}",
        f"{held:,.0f}",
        "–" if peak is None else f"{peak:,.0f}",
        f"{100 * share:.0f} %",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="1B,7B")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    rank, world = join_processes(options.device)
    device = pick_device(options.device)
    if rank == 0:
        rate = matrix_rate(device) / 1e12
        print(f"{device_name(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
        print(f"batch {options.batch:,}; one product in bfloat16: {rate:.3g} TFLOP/s\n")
        titles = "LM, processes, chunk, captions/s, MiB of the model, MiB above it, share of the matrix rate"
        print(f"| {titles.replace(', ', ' | ')} |\n|{'---|' * 7}")
    for shape in options.shapes.split(","):
        cells = row(shape, options.batch, options.steps, device, rank, world)
        if rank == 0:
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
