"""1,000 class names through CLAMP's text tower, beside a plain dense forward over as many tokens, and beside
the naive way.

    OMP_NUM_THREADS=1 python benchmarks/clamp/encode_speed.py ../shared/data [--lm gemma3-270m --names 100]

The LM is a random Llama of 29M parameters, for speed does not depend on its weights, or that of --lm. Rounds
are interleaved: dense, ours, naive, in turn; medians of this process's own time on the processor, which other
work on the machine disturbs least. Dense: the bare LM without LoRA over rectangles without padding or mask
that hold as many tokens as all texts with wrapper, plus their prompts. Naive: one pass, in the order given,
batches of 64 padded to their longest, what all texts begin with run in each."""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wordsight.backbones.text_tower import TextTower, TowerSettings


def tokenizer_of(sentences: list[str]) -> PreTrainedTokenizerFast:
    """8,000 byte pairs of English, so that class names have as many tokens as a real LM's tokenizer gives
    them, or a few more.
    """
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=8000, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def dense(tower: TextTower, tokens: int, columns: int, budget: int) -> None:
    """The LM over `tokens` tokens in rows of `columns`, as many rows at once as our batches have tokens."""
    rows, size = round(tokens / columns), max(1, budget // columns)
    with tower.adapters(False):
        for start in range(0, rows, size):
            tower.trunk(
                input_ids=torch.ones(min(size, rows - start), columns, dtype=torch.long), use_cache=False
            )


@torch.no_grad()
def naive(tower: TextTower, names: list[str]) -> torch.Tensor:
    return torch.cat([tower(names[start : start + 64], "one") for start in range(0, len(names), 64)])


def small(options: argparse.Namespace, sentences: list[str]) -> TextTower:
    """A random LM of eight layers, whose tokenizer has learned these sentences."""
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    return TextTower(LlamaForCausalLM(config), tokenizer_of(sentences), TowerSettings(train=options.train))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", default="auto")
    parser.add_argument("--budget", type=int, default=2048, help="tokens a batch, for ours and for dense")
    parser.add_argument("--lm", help="an LM of your own: a folder, a hub name or a GGUF file")
    parser.add_argument("--train", default="lora", help="prompts: a tower without LoRA")
    options = parser.parse_args()

    names = json.loads((options.data / "imagenet_sample" / "classes.json").read_text())["classes"]
    names = names[:: max(1, len(names) // options.names)][: options.names]
    cupl = json.loads(next((options.data / "sentences" / "cupl").rglob("imagenet*.json")).read_text())
    torch.manual_seed(0)
    if options.lm:
        tower = TextTower.from_base(options.lm, TowerSettings(train=options.train))
    else:
        tower = small(options, [sentence for found in cupl.values() for sentence in found])
    lengths = [len(ids) for ids in tower._tokens(names)]
    tokens = sum(lengths) + 24 * len(lengths)
    weights = sum(
        parameter.numel() for name, parameter in tower.trunk.named_parameters() if "lora" not in name
    )
    print(
        f"{weights / 1e6:.1f}M parameters, {len(names)} names, {tokens} tokens ({min(lengths)} to "
        f"{max(lengths)} of text a name), {torch.get_num_threads()} threads"
    )

    columns = round(tokens / len(names))
    ways = {
        "dense": lambda: dense(tower, tokens, columns, options.budget),
        "ours": lambda: tower.encode(names, options.way, tokens_per_batch=options.budget),
        "naive": lambda: naive(tower, names),
    }
    seconds = {way: [] for way in ways}
    dense(tower, 64 * columns, columns, options.budget)  # warm
    for _ in range(options.rounds):
        for way, run in ways.items():
            start = time.process_time()
            run()
            seconds[way].append(time.process_time() - start)
        print({way: round(times[-1], 2) for way, times in seconds.items()}, flush=True)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    apart = (tower.encode(names, options.way) - naive(tower, names)).abs().max()
    print(
        f"ours / dense {median['ours'] / median['dense']:.2f} (at most 1.1)   naive / ours "
        f"{median['naive'] / median['ours']:.2f} (at least 1.3)   apart by {apart:.1e}"
    )


if __name__ == "__main__":
    main()
