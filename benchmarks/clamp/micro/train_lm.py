"""Train the bundled micro LM on text about glyphs; it never sees an image, and no image was looked at to
write the text.

    OMP_NUM_THREADS=1 python benchmarks/clamp/micro/train_lm.py         # writes
    src/wordsight/backbones/micro_lm, some four minutes on one core

The same seed, machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from texts import corpus, name
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE = Path(__file__).parents[3] / "src" / "wordsight" / "backbones" / "micro_lm"
CARD = Path(__file__).parent / "card.md"
VOCABULARY, CONTEXT, WIDTH, LAYERS = 900, 128, 128, 3
SPECIAL = ["<s>", "</s>", "<pad>"]


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in lower case: the words of the corpus are tokens, any other text is made of letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(6000, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        model_max_length=CONTEXT,
        padding_side="right",
    )


def make_lm(vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=320,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def train(out: Path, *, steps: int, batch: int = 96, peak: float = 4e-3, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one thread adds in one order
    began, tokenizer = time.time(), make_tokenizer(seed)
    lm = make_lm(len(tokenizer))
    lines = tokenizer(list(corpus(steps * batch, seed + 1)))["input_ids"]
    held = tokenizer(list(corpus(1000, seed + 2)))["input_ids"]
    rows = sorted(
        range(len(lines)), key=lambda row: (row // (batch * 50), len(lines[row]))
    )  # like lengths together
    batches = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    random.Random(seed).shuffle(batches)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=max(steps, 2), pct_start=0.05, cycle_momentum=False
    )
    for step, chosen in enumerate(batches):
        value = loss(lm, [lines[row] for row in chosen])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} loss {value.item():.3f} {time.time() - began:.0f} s", flush=True)
    lm.eval().bfloat16().save_pretrained(out)  # half the bytes; read back as float32
    tokenizer.save_pretrained(out)
    seconds = time.time() - began
    with torch.no_grad():
        perplexity = math.exp(
            sum(loss(lm.float(), held[at : at + 50]).item() for at in range(0, 1000, 50)) / 20
        )
    for glyph in "0389B":
        prompt = tokenizer(f"a picture shows {name(glyph)}. it has", return_tensors="pt")["input_ids"]
        print(
            tokenizer.decode(
                lm.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=2)[0],
                skip_special_tokens=True,
            )
        )
    return {
        "perplexity": perplexity,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in lm.parameters()),
        "vocabulary": len(tokenizer),
    }


def loss(lm: LlamaForCausalLM, lines: list[list[int]]) -> torch.Tensor:
    """Mean cross entropy of the next token; the end of a line is one."""
    lines = [[*line, 1] for line in lines]
    width = max(map(len, lines))
    ids = torch.tensor([line + [2] * (width - len(line)) for line in lines])
    logits = lm(input_ids=ids[:, :-1]).logits  # padding stands on the right, where no token looks
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGE)
    parser.add_argument("--steps", type=int, default=900)
    settings = parser.parse_args()
    facts = train(settings.out, steps=settings.steps)
    print(facts)
    if CARD.is_file():
        (settings.out / "README.md").write_text(CARD.read_text().format(steps=settings.steps, **facts))
