"""What contrastive batches of 8,192 and more need: encoding in parts, losses in tiles, features and gradients
across processes.

Shapes: B images and as many texts, D shared width, N rows over all parts. It knows no model and no loop. Each
trick equals a plain form, which is simply slower or larger: encoding all at once, `losses`, one process;
tests hold it to that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid
from torch.utils.checkpoint import checkpoint

from wordsight.config import WordsightError
from wordsight.extras import needed
from wordsight.losses import clamped_scale

Part = TypeVar("Part")
# for which processes wait for rank 0, which computes and caches the features of all images first
PATIENCE = timedelta(hours=12)
BUCKET = 2**25  # bytes of gradients that travel at once


# In parts: memory for the activations of one part, whatever the batch.


def cached(
    encode: Callable[[Part], Float[Tensor, "n D"]],
    parts: Sequence[Part],
    *,
    devices: Iterable[torch.device | str] = (),
) -> Float[Tensor, "N D"]:
    """`encode` of each part, one below the other. Only the results are kept; backward encodes part by part
    again, with the same dropout.

    GradCache (Gao et al. 2021), as torch's checkpoint does it. Differs from the paper: the result is an
    ordinary tensor, so any sum of losses goes on top and one backward does the rest; without gradient nothing
    runs twice. `encode` runs twice per part and must do the same both times. `devices`: where `encode` draws
    random numbers. Needed wherever parts are not tensors on that device (texts, say): checkpoint looks for
    random states only where its tensor arguments lie, and dropout would silently differ."""
    marks = [torch.empty(0, device=device) for device in devices]

    def afresh(part: Part, *marks: Tensor) -> Tensor:
        # else all parts share one low-precision copy of each weight, and their gradients are summed in low
        # precision
        torch.clear_autocast_cache()
        return encode(part)

    return torch.cat([checkpoint(afresh, part, *marks, use_reentrant=False) for part in parts])


# In tiles: losses of `rows` images against all texts at a time. Similarities of a tile are computed again in
# backward, so that no [B, B] is held.


def tiled_info_nce(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], log_scale: Float[Tensor, ""], *, rows: int = 1024
) -> Float[Tensor, ""]:
    """losses.info_nce in tiles. The log of a column's sum of exponentials is that of its tiles' logs."""

    def tile(image: Tensor, text: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = clamped_scale(log_scale) * image @ text.T
        return logits.logsumexp(1), logits.logsumexp(0)

    by_row, by_column = zip(*_tiles(tile, (image,), (text, log_scale), rows), strict=True)
    both = torch.cat(by_row).mean() + torch.stack(by_column).logsumexp(0).mean()
    return both - 2 * clamped_scale(log_scale) * (image * text).sum(1).mean()


def tiled_pairwise_sigmoid(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    rows: int = 1024,
) -> Float[Tensor, ""]:
    """losses.pairwise_sigmoid in tiles."""
    places = torch.arange(len(image), device=image.device)

    def tile(image: Tensor, place: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = clamped_scale(log_scale) * image @ text.T + bias
        return -logsigmoid(torch.where(place[:, None] == places, logits, -logits)).sum()

    return reduce(torch.add, _tiles(tile, (image, places), (text, log_scale, bias), rows)) / len(image)


def tiled_similarity_distillation(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    teacher_image: Float[Tensor, "B T"],
    teacher_text: Float[Tensor, "B T"],
    tau_d: float = 100.0,
    *,
    rows: int = 1024,
) -> Float[Tensor, ""]:
    """losses.similarity_distillation of image @ text.T and the teacher's, in tiles. The teacher's vectors may
    have another width.

    KL(p || q) is the mean over p of (log p - log q) before normalisation, plus the difference of the two
    normalisers. Over a column, that mean is the tiles' means, weighted with the teacher's share of each tile.
    """
    seen, taught = (len(image), len(text)), (len(teacher_image), len(teacher_text))
    if seen != taught:
        raise WordsightError(
            f"the student compares {seen} images and texts, the teacher {taught}; both must see one batch"
        )

    def tile(
        image: Tensor, teacher_image: Tensor, text: Tensor, teacher_text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ours, theirs = tau_d * image @ text.T, tau_d * (teacher_image @ teacher_text.T).to(image.dtype)
        by_row = kl_div(log_softmax(ours, 1), log_softmax(theirs, 1), reduction="sum", log_target=True)
        return by_row, ours.logsumexp(0), theirs.logsumexp(0), (theirs.softmax(0) * (theirs - ours)).sum(0)

    fixed = (text, teacher_text.detach())
    by_row, ours, theirs, gap = zip(*_tiles(tile, (image, teacher_image.detach()), fixed, rows), strict=True)
    ours, theirs, gap = torch.stack(ours), torch.stack(theirs), torch.stack(gap)
    by_column = (theirs.softmax(0) * gap).sum(0) - theirs.logsumexp(0) + ours.logsumexp(0)
    return sum(by_row) / len(image) + by_column.mean()


def _tiles(tile: Callable, cut: Sequence[Tensor], whole: Sequence[Tensor], rows: int) -> Iterator:
    """tile(a few rows of each tensor in `cut`, `whole`...), from the first rows to the last."""
    for pieces in zip(*(tensor.split(rows) for tensor in cut), strict=True):
        yield checkpoint(tile, *pieces, *whole, use_reentrant=False, preserve_rng_state=False)


# Across processes: everybody computes the loss of everybody's batch, then parameter gradients are averaged.


def gather(x: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "N ..."]:
    """The rows of all processes, in the order of ranks, with gradient; `x` itself without a process group.
    Processes may bring unequal numbers of rows.

    Every process computes the loss of the gathered batch. Backward sums a row's gradient over all processes,
    so each parameter's gradient is the number of processes times the share of this process's rows, or, for a
    parameter used after the gathering such as the scale, the whole: in both cases `average_gradients` then
    gives what one process with the whole batch would have. All processes gather the same tensors in the same
    order."""
    return _Gather.apply(x) if _processes() > 1 else x


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """The mean of each gradient over the processes, in place; nothing without a process group.

    A gradient missing here counts as zero; one missing everywhere stays missing, so that an optimizer skips
    that parameter as in one process. Every process names the same parameters in the same order; those that
    are not trained are passed over."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if _processes() == 1 or not trained:
        return
    known = torch.tensor(
        [parameter.grad is not None for parameter in trained], dtype=torch.uint8, device=trained[0].device
    )
    dist.all_reduce(known, dist.ReduceOp.MAX)
    for parameter, there in zip(trained, known.tolist(), strict=True):
        if there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, mean in zip(
            bucket, (flat / _processes()).split([gradient.numel() for gradient in bucket]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))


def same_number(rows: Int[Tensor, " n"], size: int) -> list[Int[Tensor, " _"]]:
    """`rows` in parts of `size` or less, as many in every process: for a model whose weights are shared out,
    which runs in all of them or in none.

    Where a process has fewer rows than there are parts, its first row is repeated at the end.
    """
    count = torch.tensor([-(-len(rows) // size)], device=rows.device)
    if _processes() > 1:
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return list(torch.cat([rows, rows[:1].expand(max(0, int(count) - len(rows)))]).tensor_split(int(count)))


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, up to BUCKET bytes together or one that is larger."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (alike and sum(other.nbytes for other in bucket) + tensor.nbytes <= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


class _Gather(torch.autograd.Function):
    """all_gather, whose gradient is all_reduce and the own slice. torch.distributed.nn's is deprecated and
    wants equal numbers of rows.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
        counts = [int(count) for count in counts]
        padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        ctx.own = slice(sum(counts[: dist.get_rank()]), sum(counts[: dist.get_rank() + 1]))
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own]


# Processes


def join_processes(device: torch.device | str) -> tuple[int, int]:
    """This process's rank and how many there are, as accelerate launch or torchrun say; the first call joins
    them, and gives each its card.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with needed("lm", "training in several processes"):
            from accelerate import PartialState

        PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)
    return place()


@contextmanager
def rank_0_first() -> Iterator[None]:
    """What rank 0 does while the others wait, and then they: it fills a cache that they read."""
    rank, world = place()
    if rank > 0:
        dist.barrier()
    try:
        yield
    finally:  # where it fails for rank 0 the others are not left waiting, and find out themselves
        if world > 1 and rank == 0:
            dist.barrier()


def place() -> tuple[int, int]:
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )
