"""Grids of images, computed once: so many vectors an image, in float16 on the disk, of which a batch is read
when it is asked for. The same cache as of vectors (store.py), found by the images' content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data import Encoded, Picture
from wordsight.data.features import PIXEL_RECIPE, VIEW_RECIPE, ImageJob, rounding
from wordsight.data.images import MAX_PIXELS
from wordsight.data.store import GRIDS, Store


@dataclass(frozen=True)
class Grids:
    """Grids of the pictures that could be read; row i belongs to picture kept[i]. View 0 is the centre
    crop.
    """

    rows: Sequence[np.ndarray]  # float16 [V, G, Wv] of each, on the disk
    kept: list[int]
    skipped: list[tuple[str, str]]  # (name, reason)
    shape: tuple[int, int]  # G, Wv

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: tuple[Int[Tensor, " B"], Int[Tensor, " B"]]) -> Float[Tensor, "B G Wv"]:
        """Those of these rows, each in the view beside it, read from the disk now. float16."""
        chosen = [self.rows[row][view] for row, view in zip(at[0].tolist(), at[1].tolist())]
        return torch.from_numpy(np.stack(chosen) if chosen else np.empty((0, *self.shape), np.float16))

    def centre(self, rows: Sequence[int]) -> Float[Tensor, "B G Wv"]:
        """The centre crops of these rows, in float16."""
        chosen = torch.tensor(list(rows), dtype=torch.long)
        return self[chosen, torch.zeros_like(chosen)]

    def take(self, rows: Sequence[int]) -> Grids:
        """Those of some rows alone."""
        return Grids([self.rows[row] for row in rows], [self.kept[row] for row in rows], [], self.shape)


def grid_features(
    backbone: Backbone,
    pictures: Sequence[Picture],
    tokens: int,
    *,
    views: int = 1,
    seed: int = 0,
    flip: bool = True,
    max_pixels: int | None = None,
    folder: str | Path | None = None,
    batch_size: int | None = None,
) -> Grids:
    """Grids of `pictures`, `tokens` vectors at most each, under the same views as `image_features` has.

    Errors: WordsightError for a tower without a grid and for data that is vectors; NoneReadable as there."""
    tower = backbone.image_tower
    if any(isinstance(picture, Encoded) for picture in pictures):
        raise WordsightError("the data is vectors, one an image; captions are made from images themselves")
    shape = grid_shape(tower, tokens)
    recipe = (VIEW_RECIPE, seed, flip) if views > 1 else "centre"
    key = ("grid", tokens, tower.image_fingerprint, recipe, PIXEL_RECIPE, *rounding(tower))
    store = Store(folder, (views, *shape), *key, form=GRIDS)
    largest = max_pixels or MAX_PIXELS
    job = ImageJob(tower, tokens, pictures, views, seed, flip, largest, batch_size, store)
    return Grids(*job.run(), shape)


def grid_shape(backbone: Backbone, tokens: int) -> tuple[int, int]:
    """G and Wv of an image tower's grids: known by trying. Errors: WordsightError for a tower without one."""
    tower = backbone.image_tower
    black = tower.preprocess(Image.new("RGB", (32, 32)))
    _, count, width = tower.encode_grid(black[None], tokens).shape
    return count, width
