"""Next labels: the images of a pool whose labels would teach most.

An image is worth labelling where it stands for many images that no labelled image stands for, that the
method is unsure of, and that it takes to be of classes with few labels: the facility location function,
weighted. The greedy choice is within 1 - 1/e of the best set (Nemhauser, Wolsey and Fisher 1978), and diverse
by itself: what an image stands for is not counted again.

Shapes: N images of the pool, M of them that are stood for, n labelled ones, C classes, D shared width."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import unit

HEARD = 10_000  # images of the pool that are stood for at most; of a larger pool so many are drawn
AT_ONCE = 1024  # images whose similarities to these are held at a time
TRIED = 16  # candidates that are judged anew together


class Pick(NamedTuple):
    """An image to label."""

    row: int  # in the pool
    gain: float  # share of what is still not stood for that it would stand for
    stands_for: int  # images of the pool that no other pick or labelled image is nearer to


def choose_next(
    pool: Float[Tensor, "N D"],
    count: int,
    *,
    weights: Float[Tensor, " N"] | None = None,  # what it is worth that each is stood for; None: all the same
    labelled: Float[Tensor, "n D"] | None = None,
) -> list[Pick]:
    """The `count` images to label next, the most useful first, or all where the pool has fewer.

    How well one image stands for another is the cosine of their vectors less the pool's mean, where that is
    above 0. Lazy greedy: gains only fall, so a candidate whose old gain is below the best new one needs no
    look; the choice equals the plain greedy one."""
    count = min(count, len(pool))
    if count < 1:
        return []
    middle = pool.mean(0)
    candidates = unit(pool - middle)
    heard = _drawn(len(pool))
    own = torch.ones(len(heard)) if weights is None else weights[heard]
    state = _State(candidates, candidates[heard], own)
    if labelled is not None and len(labelled):
        state.stand(unit(labelled - middle))
    rows = state.greedy(count)
    return [Pick(row, gain, stands_for) for (row, gain), stands_for in zip(rows, state.counts(rows))]


def worth(chances: Float[Tensor, "N C"], counts: Int[Tensor, " C"]) -> Float[Tensor, " N"]:
    """What it is worth that an image is stood for: how unsure the method is of it, times how few labels the
    class has that it may be of. `counts` are the labels of each class so far."""
    chances = chances.float()
    return (1 - chances.max(1).values) * (chances @ (1 / (1 + counts.float())))


def _drawn(count: int) -> Tensor:
    if count <= HEARD:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:HEARD].sort().values


class _State:
    """How well each image is stood for by now."""

    def __init__(
        self, candidates: Float[Tensor, "N D"], heard: Float[Tensor, "M D"], weights: Float[Tensor, " M"]
    ):
        self.candidates, self.heard, self.weights = candidates, heard, weights
        self.near = torch.zeros(len(heard))  # similarity to the image that stands for it
        self.by = torch.full((len(heard),), -1)  # which pick that is; -1: a labelled image, or none

    def stand(self, vectors: Float[Tensor, "n D"]) -> None:
        """These are labelled."""
        for some in vectors.split(AT_ONCE):
            self.near = torch.maximum(self.near, (some @ self.heard.T).max(0).values)

    def gains(self, rows: Tensor) -> Float[Tensor, " _"]:
        """What each of these candidates would add."""
        found = [
            ((self.candidates[some] @ self.heard.T) - self.near).clamp(min=0) @ self.weights
            for some in rows.split(AT_ONCE)
        ]
        return torch.cat(found)

    def greedy(self, count: int) -> list[tuple[int, float]]:
        """Candidates with the share of what was open that each adds."""
        bounds = self.gains(torch.arange(len(self.candidates)))
        heap = [(-gain, row) for row, gain in enumerate(bounds.tolist())]
        heapq.heapify(heap)
        chosen: list[tuple[int, float]] = []
        while len(chosen) < count:
            row, gain = self._best(heap)
            open_before = float(((1 - self.near).clamp(min=0)) @ self.weights)
            chosen.append((row, gain / max(open_before, 1e-9)))
            self._take(row, len(chosen) - 1)
        return chosen

    def _best(self, heap: list[tuple[float, int]]) -> tuple[int, float]:
        """The candidate of the largest gain, of equal ones the first, which leaves the heap."""
        fresh: list[tuple[float, int]] = []
        while True:
            tried = [heapq.heappop(heap) for _ in range(min(TRIED, len(heap)))]
            rows = [row for _, row in tried]
            fresh += [(-gain, row) for gain, row in zip(self.gains(torch.tensor(rows)).tolist(), rows)]
            best = min(fresh)
            if not heap or heap[0] > best:
                break
        for entry in fresh:
            if entry != best:
                heapq.heappush(heap, entry)
        return best[1], -best[0]

    def _take(self, row: int, pick: int) -> None:
        similar = self.heard @ self.candidates[row]
        nearer = similar > self.near
        self.near = torch.where(nearer, similar, self.near)
        self.by = torch.where(nearer, torch.tensor(pick), self.by)

    def counts(self, chosen: list[tuple[int, float]]) -> list[int]:
        """How many of the whole pool each stands for, itself included at least."""
        share = len(self.candidates) / len(self.heard)
        found = torch.bincount(self.by[self.by >= 0], minlength=len(chosen))
        return [max(1, round(number * share)) for number in found.tolist()]
