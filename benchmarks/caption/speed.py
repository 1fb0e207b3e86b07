"""How fast captions are written and learned: `python benchmarks/caption/speed.py --lm gemma3-270m
[--device cuda]`.

Writing: a batch of 16 whose soft tokens pass through the LM once, against transformers' plain `generate`
called image by image. Learning: steps of LiMBeR against the bare LM's forward and backward pass over as
many tokens, by its own class, with logits at all places, and with logits of the captions alone, as ours has
them. Medians of alternating runs in one process."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from wordsight.backbones.prefixed import PrefixedLM
from wordsight.methods.limber import Limber
from wordsight.settings import LimberSettings

ROWS, TOKENS, WIDTH, NEW, CAPTION = 16, 49, 192, 16, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lm", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("writing", "learning"))
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step of learning")
    options = parser.parse_args()
    lm = PrefixedLM.from_base(options.lm, device=options.device, dtype=options.dtype)
    method = Limber(lm, LimberSettings(), (TOKENS, WIDTH), WIDTH)
    rows = options.rows
    grids = torch.randn(max(rows, ROWS), TOKENS, WIDTH, device=options.device)
    ids = torch.randint(5, 5000, (rows, CAPTION), device=options.device)
    batch = {"grids": grids[:rows], "images": grids[:rows, 0], "ids": ids}
    batch |= {"lengths": torch.full((rows,), CAPTION, device=options.device)}
    batch |= {"text_of": torch.arange(rows, device=options.device)}
    seen = [lm.row([one]) for one in method.prefix(grids[:ROWS], grids[:ROWS, 0]).detach()]
    whole = torch.cat([lm._front(method.prefix(grids[:rows], grids[:rows, 0]).detach()), lm.embed(ids)], 1)

    def together() -> None:
        lm.write(seen, max_new_tokens=NEW, min_new_tokens=NEW)

    def one_by_one() -> None:
        for row in seen:
            lm.write([row], max_new_tokens=NEW, min_new_tokens=NEW)

    def step() -> None:
        method.zero_grad()
        method.loss(batch)["caption"].backward()

    def bare() -> None:
        given = whole.clone().requires_grad_()
        labels = torch.nn.functional.pad(ids, (given.shape[1] - CAPTION, 0), value=-100)
        lm.lm(inputs_embeds=given, labels=labels).loss.backward()

    def shorter() -> None:
        given = whole.clone().requires_grad_()
        logits = lm.lm(inputs_embeds=given, logits_to_keep=CAPTION + 1).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    compared = (
        ("writing", together, one_by_one),
        ("learning", step, bare),
        ("learning, logits of captions alone", step, shorter),
    )
    for name, ours, theirs in compared:
        if options.only and not name.startswith(options.only):
            continue
        times = [[_seconds(work, options.device) for work in (ours, theirs)] for _ in range(options.rounds)]
        fast, plain = (statistics.median(column) for column in zip(*times[1:] or times))
        print(f"{name}: {fast:.3f} s, plain {plain:.3f} s: {plain / fast:.2f} times as fast", flush=True)


def _seconds(work: Callable[[], None], device: str) -> float:
    """On a CPU the processor time of this process, which other processes beside it change little."""
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
