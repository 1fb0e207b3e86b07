"""Images of glyphs: matplotlib's fonts as distance fields, drawn anew each time with another slant, stroke
and wobble.

B images, G glyph drawings, S the side of a field in pixels.
"""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

GLYPHS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FIELD, HEIGHT = 64, 44  # side of a field, and of the box a glyph fills in it
SIDE = 32  # pixels of an image as the model sees it


def enlarge(few: int, many: int) -> Float[Tensor, "many few"]:
    """Bicubic interpolation of a line of pixels as a matrix, as PIL does it (antialias: a = -0.5). Ten times
    faster than F.interpolate.
    """
    return F.interpolate(torch.eye(few)[None, None], size=(many, few), mode="bicubic", antialias=True)[0, 0]


ENLARGE = {sizes: enlarge(*sizes) for sizes in ((5, FIELD), (8, SIDE), (16, SIDE))}


@cache
def fonts() -> list[Path]:
    """Fonts shipped with matplotlib that draw all 62 glyphs, sorted. LastResort draws boxes and is left
    out.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    whole = [
        path
        for path in folder.glob("*.ttf")
        if {ord(g) for g in GLYPHS} <= set(FT2Font(str(path)).get_charmap())
    ]
    return sorted(path for path in whole if not path.name.startswith(("LastResort", "cmsy", "cmex")))


class Drawing(NamedTuple):
    """How a glyph is written: which character stands for it, what is cut from its foot, how much wider it
    gets, whether a dash crosses it.
    """

    character: str
    trim: float = 0.0
    widen: float = 1.0
    crossed: bool = False


# what handwriting does and type does not: a one without a foot and with a long flag, a crossed seven, a nine
# written like a g
HANDS = {
    "1": [Drawing("1", 0.13), Drawing("1", 0.13, 1.4), Drawing("1", 0.13, 1.8)],
    "7": [Drawing("7", crossed=True)],
    "9": [Drawing("g"), Drawing("q")],
}


def drawings() -> list[tuple[int, Path, Drawing]]:
    """Class, font and manner of everything that is drawn. Computer Modern has no dash, and only DejaVu Sans a
    g with one storey.
    """
    able = {
        "1": "",
        "7": "DejaVu",
        "g": "DejaVuSans",
        "q": "DejaVuSans",
    }  # how the name of a font begins that can draw this
    plain = [(label, path, Drawing(glyph)) for label, glyph in enumerate(GLYPHS) for path in fonts()]
    hands = [
        (int(glyph), path, hand)
        for glyph in HANDS
        for hand in HANDS[glyph]
        for path in fonts()
        if path.name.startswith(able[hand.character])
    ]
    return plain + hands


def mask(path: Path, drawing: Drawing) -> Bool[np.ndarray, "S S"]:
    """One glyph as ink, its longer side HEIGHT pixels, in the middle of the field."""
    font = ImageFont.truetype(str(path), 160)
    left, top, right, bottom = font.getbbox(drawing.character)
    picture = Image.new("L", (right - left, round((bottom - top) * (1 - drawing.trim))))
    pen = ImageDraw.Draw(picture)
    pen.text((-left, -top), drawing.character, fill=255, font=font)
    if drawing.crossed:
        pen.text((picture.width / 2, picture.height * 0.55), "\N{EN DASH}", fill=255, font=font, anchor="mm")
    picture = picture.crop(picture.getbbox())
    scale = HEIGHT / max(picture.width * drawing.widen, picture.height)
    picture = picture.resize(
        (max(3, round(picture.width * drawing.widen * scale)), max(3, round(picture.height * scale))),
        Image.Resampling.BOX,
    )
    field = Image.new("L", (FIELD, FIELD))
    field.paste(picture, ((FIELD - picture.width) // 2, (FIELD - picture.height) // 2))
    return np.asarray(field) > 110


def thin(ink: Bool[np.ndarray, "G S S"]) -> Bool[np.ndarray, "G S S"]:
    """Strokes worn down to lines one pixel wide (Zhang and Suen, 1984)."""
    ink = ink.copy()
    while True:
        before = ink.sum()
        for first in (True, False):
            n, e, s, w = (np.roll(ink, shift, axis) for shift, axis in ((1, 1), (-1, 2), (-1, 1), (1, 2)))
            ring = [n, np.roll(n, -1, 2), e, np.roll(s, -1, 2), s, np.roll(s, 1, 2), w, np.roll(n, 1, 2)]
            count = sum(side.view(np.uint8) for side in ring)
            turns = sum((~a & b).view(np.uint8) for a, b in zip(ring, ring[1:] + ring[:1]))
            keep = (n & e & s) | (e & s & w) if first else (n & e & w) | (n & s & w)
            ink &= ~((count >= 2) & (count <= 6) & (turns == 1) & ~keep)
        if ink.sum() == before:
            return ink


@cache
def fields() -> tuple[Float[Tensor, "G S S"], Float[Tensor, "G S S"], Int[Tensor, " G"]]:
    """Distance to the outline (positive inside), distance to the middle line (never positive), and the class
    of each drawing.
    """
    masks = np.stack([mask(path, drawing) for _, path, drawing in drawings()])
    outline = np.stack([distance_transform_edt(ink) - distance_transform_edt(~ink) for ink in masks])
    middle = np.stack([-distance_transform_edt(~line) for line in thin(masks)])
    return (
        torch.tensor(outline).float(),
        torch.tensor(middle).float(),
        torch.tensor([label for label, *_ in drawings()]),
    )


class Glyphs:
    """Endless images of glyphs. The same seed gives the same arrays."""

    def __init__(self, seed: int, digits: float = 0.5):
        self.outline, self.middle, self.labels = fields()
        self.random = torch.Generator().manual_seed(seed)
        self.share = (
            torch.where(self.labels < 10, digits / 10, (1 - digits) / 52)
            / self.labels.bincount()[self.labels]
        )

    def draw(
        self, batch: int, classes: int = len(GLYPHS)
    ) -> tuple[Float[Tensor, "B 1 32 32"], Int[Tensor, " B"]]:
        """Images in 0..1, bright ink on black, of the first `classes` glyphs, and their classes."""
        picked = torch.multinomial(
            self.share * (self.labels < classes), batch, replacement=True, generator=self.random
        )
        grid = self._warp(batch)
        lines = self._sample(self.middle[picked], grid) + 2.2 + 4.3 * self._uniform(batch, 0, 1) ** 1.5
        bodies = self._sample(self.outline[picked], grid) + self._uniform(batch, -1.0, 2.0)
        ink = torch.where(self._uniform(batch, 0, 1) < 0.7, lines, bodies).add(0.5).clamp(0, 1)
        return self._coarse(self._fit(ink)), self.labels[picked]

    def _uniform(self, batch: int, low: float, high: float) -> Float[Tensor, "B 1 1"]:
        return torch.rand(batch, 1, 1, generator=self.random) * (high - low) + low

    def _warp(self, batch: int) -> Float[Tensor, "B S S 2"]:
        """Slant, turn, stretch, and a smooth random displacement."""
        turn, slant, wide = (
            self._uniform(batch, -0.2, 0.2),
            self._uniform(batch, -0.15, 0.3),
            self._uniform(batch, 0.75, 1.3),
        )
        cos, sin, nil = turn.cos(), turn.sin(), torch.zeros_like(turn)
        affine = torch.cat(
            [
                torch.cat([cos * wide, cos * slant - sin, nil], 2),
                torch.cat([sin * wide, sin * slant + cos, nil], 2),
            ],
            1,
        )
        grid = F.affine_grid(affine, [batch, 1, FIELD, FIELD], align_corners=False)
        wobble = (
            torch.randn(batch, 2, 5, 5, generator=self.random) * self._uniform(batch, 0.02, 0.14)[..., None]
        )
        wobble[:, 1] += (
            self._uniform(batch, -0.2, 0.2) * torch.tensor([0, 0.75, 1, 0.75, 0])[:, None]
        )  # the upper half grows or shrinks
        return grid + (ENLARGE[5, FIELD] @ wobble @ ENLARGE[5, FIELD].T).permute(0, 2, 3, 1)

    @staticmethod
    def _sample(
        images: Float[Tensor, "B S S"], grid: Float[Tensor, "B T T 2"], padding: str = "border"
    ) -> Float[Tensor, "B T T"]:
        return F.grid_sample(images[:, None], grid, align_corners=False, padding_mode=padding)[:, 0]

    def _fit(self, ink: Float[Tensor, "B S S"]) -> Float[Tensor, "B 32 32"]:
        """The ink's bounding box, scaled to the height of the image with its own proportions, a little off
        the middle.
        """
        batch = len(ink)
        low, high = [], []
        for axis in (1, 2):  # columns (x), then rows (y): amax over the other axis
            there = (ink.amax(axis) > 0.5).float()
            low.append(there.argmax(1))
            high.append(FIELD - there.flip(1).argmax(1))
        low, high = torch.stack(low, 1).float(), torch.stack(high, 1).float()  # [B, 2], x then y
        high[:, 1] -= (high - low)[:, 1] * self._uniform(batch, -0.3, 0.12)[:, 0, 0].clamp(
            min=0
        )  # some lose a little of the foot
        centre, extent = (low + high) / FIELD - 1, (high - low) / FIELD  # half extent in the grid's -1..1
        tall = extent[:, 1:].clamp(min=0.1) / self._uniform(batch, 0.9, 1.05)[:, :, 0]
        wide = torch.maximum(
            tall * self._uniform(batch, 0.8, 1.3)[:, :, 0],
            extent[:, :1] / self._uniform(batch, 0.65, 1.0)[:, :, 0],
        )
        half = torch.cat([wide, tall], 1)
        shift = (torch.rand(batch, 2, generator=self.random) - 0.5) * torch.tensor([0.25, 0.1])
        steps = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        return self._sample(
            ink, (grid + shift[:, None, None]) * half[:, None, None] + centre[:, None, None], "zeros"
        )

    def _coarse(self, ink: Float[Tensor, "B 32 32"]) -> Float[Tensor, "B 1 32 32"]:
        """Most images through 8x8 with 17 levels, some through 16x16, and back with PIL's bicubic filter."""
        levels = F.avg_pool2d(ink, 4) * 16 * self._uniform(len(ink), 1, 2)
        small = ENLARGE[8, SIDE] @ (levels.clamp(max=16).round() / 16) @ ENLARGE[8, SIDE].T
        finer = ENLARGE[16, SIDE] @ F.avg_pool2d(ink, 2) @ ENLARGE[16, SIDE].T
        return torch.where(self._uniform(len(ink), 0, 1) < 0.85, small, finer).clamp(0, 1)[:, None]
