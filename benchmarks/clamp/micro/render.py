"""Draw every glyph some times at 8x8 pixels, as scikit-learn's digits are stored: python
benchmarks/clamp/micro/render.py [FILE]

Writes src/wordsight/data/glyphs.npz: `images` [62 x EACH, 8, 8] in 0..16, bright ink on black, `labels`, and
`names` by label: what captions call them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "micro_clip"))
from glyphs import GLYPHS, Glyphs
from texts import name

FILE = Path(__file__).parents[3] / "src" / "wordsight" / "data" / "glyphs.npz"
EACH = 24


class Small(Glyphs):
    """Glyphs left at 8x8 with 17 levels of ink."""

    def _coarse(self, ink: torch.Tensor) -> torch.Tensor:
        levels = F.avg_pool2d(ink, 4) * 16 * self._uniform(len(ink), 1, 2)
        return levels.clamp(max=16).round()


def render(each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    drawn, images = Small(seed), []
    for label in range(len(GLYPHS)):
        drawn.share = (drawn.labels == label).float()
        images.append(drawn.draw(each)[0])
    return torch.cat(images).byte().numpy(), np.repeat(np.arange(len(GLYPHS), dtype=np.uint8), each)


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, labels = render(EACH, seed=7)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    np.savez_compressed(out, images=images, labels=labels, names=[name(glyph) for glyph in GLYPHS])
    print(out, images.shape, f"{out.stat().st_size / 1e3:.0f} kB")
