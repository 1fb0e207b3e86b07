"""Copies: images that stand twice in the data, byte for byte or as a resized, re-encoded, cropped or mirrored
copy, within a part or across them.

The content digest finds the first kind. For the second the image vectors propose each image's nearest ones,
and the pixels decide: similar photos have near vectors too. Shapes: n images, D shared width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

from wordsight.data import Picture
from wordsight.data.images import MAX_PIXELS, Unreadable, read_image
from wordsight.data.splits import digests
from wordsight.workers import progress

NEAREST = 3  # of each image, whose pixels are compared with its own
LEAST = 0.5  # cosine of their vectors, below which no pixel is looked at
SIDE, FINE = 32, 64  # pixels to which an image is shrunk to find where it fits, and to fit it exactly
WINDOWS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a side, which a crop may have left
PROMISING = 0.7  # correlation of pixels, from which a fit is made exact
STEPS = 60  # correlations on the way to it
ALIKE = 0.95  # correlation of colours, and
EDGES = 0.8  # of grey values' differences from their surroundings, from which two images are one
CONTROL, CONTROLS = 10, 40  # which neighbour is no copy, and of how many images it is compared
USUAL = 0.9  # share of these that are no more alike than is usual in a set
FLAT = 4.0  # grey values of standard deviation, below which an image shows nothing to compare


class Copy(NamedTuple):
    """Two images that are one."""

    first: int
    second: int
    same: bool  # byte for byte
    mirrored: bool
    likeness: float  # correlation of their pixels at the best fit; 1 byte for byte


def find_copies(
    pictures: Sequence[Picture], vectors: Float[Tensor, "n D"], max_pixels: int | None = None
) -> list[Copy]:
    """All pairs that were found, in the order of the images; of many that are the same byte for byte, each
    with the first."""
    known = digests(pictures)
    first: dict[bytes, int] = {}
    same = [
        Copy(before, row, True, False, 1.0)
        for row, digest in enumerate(known)
        if digest is not None and (before := first.setdefault(digest, row)) != row
    ]
    own = torch.tensor(sorted(first.values()), dtype=torch.int64)
    found = list(_near(pictures, vectors, own, max_pixels or MAX_PIXELS))
    return sorted(same + found)


def _near(
    pictures: Sequence[Picture], vectors: Float[Tensor, "n D"], rows: Tensor, max_pixels: int
) -> Iterator[Copy]:
    pairs, others = proposed(vectors[rows]), controls(vectors[rows])
    seen: dict[int, Small | None] = {}

    def compared(one: int, other: int) -> tuple[int, int, Likeness]:
        first, second = int(rows[one]), int(rows[other])
        for row in (first, second):
            if row not in seen:
                seen[row] = small(pictures[row], max_pixels)
        return first, second, alike(seen[first], seen[second])

    with progress("pairs of images", len(others) + len(pairs)) as advance:
        least = required([compared(*pair)[2] for pair in others])
        advance(len(others))
        for pair in pairs:
            first, second, likeness = compared(*pair)
            if likeness.pixels >= least.pixels and likeness.edges >= least.edges:
                yield Copy(first, second, False, likeness.mirrored, likeness.pixels)
            advance()


def controls(vectors: Float[Tensor, "n D"]) -> list[tuple[int, int]]:
    """Pairs that are similar and hardly copies: some images, each with a neighbour that is not of the
    nearest."""
    if len(vectors) <= CONTROL:
        return []
    rows = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:CONTROLS]
    near = (vectors[rows] @ vectors.T).topk(CONTROL + 1).indices[:, -1]
    return list(zip(rows.tolist(), near.tolist()))


def required(others: Sequence[Likeness]) -> Likeness:
    """How alike a copy must be: more than usual, and where images are alike that are none, as drawings of the
    same few strokes are, halfway from these to 1."""
    if not others:
        return Likeness(ALIKE, EDGES, False)
    pixels, edges = np.quantile([[one.pixels, one.edges] for one in others], USUAL, axis=0).tolist()
    return Likeness(max(ALIKE, (1 + pixels) / 2), max(EDGES, (1 + edges) / 2), False)


def proposed(vectors: Float[Tensor, "n D"]) -> list[tuple[int, int]]:
    """Pairs of rows of which one is among the other's nearest, each once, in order."""
    if len(vectors) < 2:
        return []
    found: set[tuple[int, int]] = set()
    count = min(NEAREST + 1, len(vectors))
    for start in range(0, len(vectors), 4096):
        cosines, places = (vectors[start : start + 4096] @ vectors.T).topk(count)
        for row, (values, near) in enumerate(zip(cosines.tolist(), places.tolist()), start):
            pairs = zip(values, near)
            found |= {(min(row, at), max(row, at)) for value, at in pairs if at != row and value >= LEAST}
    return sorted(found)


# -- pixels --------------------------------------------------------------------------------------------------


class Small(NamedTuple):
    """An image as it is compared: grey values and colours, in two sizes."""

    coarse: Float[Tensor, "S S"]
    fine: Float[Tensor, "F F"]
    coarse_colours: Float[Tensor, "3 S S"]
    fine_colours: Float[Tensor, "3 F F"]

    def mirrored(self) -> Small:
        return Small(*(part.flip(-1) for part in self))


def small(picture: Picture, max_pixels: int | None = MAX_PIXELS) -> Small | None:
    """None for what cannot be read, and where there is nothing to see."""
    try:
        image = read_image(picture.read()[0], max_pixels)
    except Unreadable:
        return None
    coarse, fine = (
        torch.from_numpy(np.array(image.resize((side, side), Resampling.BOX), np.float32)).permute(2, 0, 1)
        for side in (SIDE, FINE)
    )
    grey = coarse.mean(0)
    return Small(grey, fine.mean(0), coarse, fine) if float(grey.std()) >= FLAT else None


class Likeness(NamedTuple):
    """How well the pixels of one image fit into another's, where they fit best."""

    pixels: float  # correlation of the colours
    edges: float  # and of the grey values' differences from their surroundings
    mirrored: bool


def alike(one: Small | None, other: Small | None) -> Likeness:
    """Of two images, either of which may be a part of the other, or of its mirror image."""
    nothing = Likeness(0.0, 0.0, False)
    if one is None or other is None:
        return nothing
    turned = other.mirrored()
    fits = [
        (placed(whole.coarse, cut.coarse), whole, cut, mirrored)
        for whole, cut, mirrored in (
            (one, other, False),
            (other, one, False),
            (one, turned, True),
            (turned, one, True),
        )
    ]
    place, whole, cut, mirrored = max(fits, key=_correlation_of)
    if place.correlation < PROMISING:
        return nothing
    part = _part(whole.fine_colours, _exact(whole.fine, cut.coarse, place.box))
    edges = _correlation(_edges(part.mean(0)), _edges(cut.coarse))
    return Likeness(_correlation(part, cut.coarse_colours), edges, mirrored)


class Place(NamedTuple):
    """Where an image fits into another best, to a pixel."""

    correlation: float
    box: tuple[float, ...]  # its middle, in -1 to 1, and its share of the height and width


def _correlation_of(fit: tuple[Place, Small, Small, bool]) -> float:
    return fit[0].correlation


def placed(whole: Float[Tensor, "S S"], cut: Float[Tensor, "S S"]) -> Place:
    values, places = correlations(whole, cut).flatten(1).max(1)
    window = int(values.argmax())
    top, left = divmod(int(places[window]), SIDE)
    height, width = list(product(_sides(), _sides()))[window]
    box = (2 * top + height) / SIDE - 1, (2 * left + width) / SIDE - 1, height / SIDE, width / SIDE
    return Place(float(values[window]), box)


def _exact(
    whole: Float[Tensor, "F F"], cut: Float[Tensor, "S S"], start: tuple[float, ...]
) -> tuple[float, ...]:
    """The part of `whole` that correlates best with `cut`: its middle and its share of the height and width,
    by Nelder and Mead's simplex from a start that is nearly right."""
    from scipy.optimize import minimize

    simplex = np.array([start] + [np.add(start, step) for step in 0.04 * np.eye(4)])
    found = minimize(
        lambda box: -_correlation(_part(whole[None], tuple(box))[0], cut),
        start,
        method="Nelder-Mead",
        options={"maxfev": STEPS, "initial_simplex": simplex},
    )
    return tuple(found.x.tolist())


def _part(whole: Float[Tensor, "K F F"], box: tuple[float, ...]) -> Float[Tensor, "K S S"]:
    """A part of an image, by its middle (in -1 to 1) and its share of the height and width."""
    down, right, height, width = box
    turn = torch.tensor([[[width, 0, right], [0, height, down]]], dtype=torch.float32)
    grid = F.affine_grid(turn, [1, len(whole), SIDE, SIDE], align_corners=False)
    return F.grid_sample(whole[None], grid, padding_mode="border", align_corners=False)[0]


def _edges(part: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
    """What each pixel differs from its surroundings by."""
    around = F.avg_pool2d(F.pad(part[None, None], (2, 2, 2, 2), mode="reflect"), 5, 1)
    return part - around[0, 0]


def _correlation(one: Float[Tensor, "*K S S"], other: Float[Tensor, "*K S S"]) -> float:
    """Pearson's."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-3))


@cache
def _windows() -> tuple[Float[Tensor, "W S S"], Float[Tensor, "W S S"]]:
    """The part of an image that another may show: each height and width as a mask in the corner, and the
    places at which it lies within the image."""
    sizes = list(product(_sides(), _sides()))
    masks, fits = torch.zeros(2, len(sizes), SIDE, SIDE)
    for mask, fit, (height, width) in zip(masks, fits, sizes):
        mask[:height, :width] = 1
        fit[: SIDE - height + 1, : SIDE - width + 1] = 1
    return masks, fits


def _sides() -> list[int]:
    return [round(SIDE * share) for share in WINDOWS]


@cache
def _shrinking() -> Float[Tensor, "W S S"]:
    """What shrinks a column of pixels to each window's side, with zeros behind."""
    rows = [
        F.interpolate(torch.eye(SIDE)[None, None], (side, SIDE), mode="bilinear", antialias=True)[0, 0]
        for side in _sides()
    ]
    return torch.stack([F.pad(one, (0, 0, 0, SIDE - len(one))) for one in rows])


def correlations(whole: Float[Tensor, "S S"], cut: Float[Tensor, "S S"]) -> Float[Tensor, "W S S"]:
    """Pearson's correlation of `cut`, shrunk to each window's size, with that part of `whole` which begins at
    each pixel; -1 where the window would leave the image. By Fourier transforms."""
    masks, fits = _windows()
    templates = templates_of(cut)
    count = masks.sum((1, 2))[:, None, None]
    boxes = torch.fft.rfft2(masks).conj()
    products = _product(whole, torch.fft.rfft2(templates).conj())
    sums, squares = _product(whole, boxes), _product(whole.square(), boxes)
    spread = (squares - sums.square() / count).clamp(min=0).sqrt()
    lengths = spread * templates.square().sum((1, 2), keepdim=True).sqrt()
    return torch.where(fits > 0, products / lengths.clamp(min=1e-3), -1.0)


def _product(whole: Float[Tensor, "S S"], with_: Tensor) -> Float[Tensor, "W S S"]:
    return torch.fft.irfft2(torch.fft.rfft2(whole) * with_, s=(SIDE, SIDE))


def templates_of(cut: Float[Tensor, "S S"]) -> Float[Tensor, "W S S"]:
    """Shrunk to each window's size, less its mean, in the corner of an empty image."""
    shrinking, (masks, _) = _shrinking(), _windows()
    narrow = torch.einsum("yx,vwx->vyw", cut, shrinking)
    small = torch.einsum("huy,vyw->hvuw", shrinking, narrow).flatten(0, 1)
    means = small.sum((1, 2)) / masks.sum((1, 2))
    return (small - means[:, None, None]) * masks
