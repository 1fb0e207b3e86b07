"""Train eyes without words: OMP_NUM_THREADS=1 python benchmarks/clamp/micro/eyes.py OUT [--steps 500]

The micro CLIP's image tower learned with names and descriptions of these very glyphs, digits among them. This
encoder of the same shape has no text and no label: two drawings of one field (a glyph in a font) are to be
alike, and unlike those of all other fields (SimCLR, Chen et al. 2020)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ConvNextConfig, ConvNextModel

sys.path.insert(0, str(Path(__file__).parents[2] / "micro_clip"))
from glyphs import SIDE, Glyphs

MICRO = Path(__file__).parents[3] / "src" / "wordsight" / "backbones" / "micro"
TEMPERATURE = 0.15


class Twice(Glyphs):
    """Each field drawn twice, with another slant, stroke and wobble."""

    def pairs(self, batch: int) -> torch.Tensor:
        picked = torch.randperm(len(self.labels), generator=self.random)[:batch].repeat(2)
        grid = self._warp(2 * batch)
        lines = self._sample(self.middle[picked], grid) + 2.2 + 4.3 * self._uniform(2 * batch, 0, 1) ** 1.5
        bodies = self._sample(self.outline[picked], grid) + self._uniform(2 * batch, -1.0, 2.0)
        ink = torch.where(self._uniform(2 * batch, 0, 1) < 0.7, lines, bodies).add(0.5).clamp(0, 1)
        return self._coarse(self._fit(ink))


def train(out: Path, steps: int, batch: int = 128, peak: float = 3e-3, seed: int = 0) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    shape = {
        "patch_size": 4,
        "image_size": SIDE,
        "num_stages": 2,
        "hidden_sizes": [64, 128],
        "depths": [1, 2],
        "hidden_act": "relu",
    }
    model, drawn, began = (
        ConvNextModel(ConvNextConfig(**shape, layer_scale_init_value=1.0)),
        Twice(seed),
        time.time(),
    )
    head = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=max(steps, 2), pct_start=0.1, cycle_momentum=False
    )
    itself = torch.eye(2 * batch, dtype=torch.bool)
    twin = torch.arange(2 * batch).roll(batch)
    for step in range(steps):
        pixels = (drawn.pairs(batch) - 0.5) / 0.5
        with torch.autocast("cpu", torch.bfloat16):
            states = head(model(pixel_values=pixels.expand(-1, 3, -1, -1)).pooler_output)
        vectors = F.normalize(states.float(), dim=-1)
        value = F.cross_entropy((vectors @ vectors.T / TEMPERATURE).masked_fill(itself, -1e9), twin)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1} loss {value.item():.3f} {time.time() - began:.0f} s", flush=True)
    model.eval().save_pretrained(out)
    (out / "preprocessor_config.json").write_text(
        json.dumps(json.loads((MICRO / "preprocessor_config.json").read_text()), indent=2) + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    settings = parser.parse_args()
    train(settings.out, settings.steps)
