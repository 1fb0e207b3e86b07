"""The one loop. It trains any Learner on batches, in one process or several, and resumes to the same bits
from state/.

Several processes (`accelerate launch`, `torchrun`): each takes its part of every batch, the loss is that of
all parts together (contrast.gather), and gradients are averaged, so the global batch decides the step and not
how many share it. The learner is not wrapped in DDP, which would average losses of parts. Rank 0 alone logs,
shows progress and writes state/; all read it. Random numbers (dropout) depend on seed, step and rank alone.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wordsight.config import TrainSettings, WordsightError
from wordsight.contrast import average_gradients
from wordsight.files import write_file
from wordsight.methods import Learner
from wordsight.workers import progress

STATE_FILE = "state.safetensors"
WINDOW = 500  # steps whose mean loss is compared, to see that training does not get worse
PATIENCE = timedelta(
    hours=12
)  # for which processes wait for rank 0, which computes and caches the features of all images first
# trained numbers; below it one thread is faster: several wait for each other longer than each of these
# operations takes
SMALL = 3_000_000


class Batches(Protocol):
    """Training data by position: the same (epoch, index) always gives the same batch, so a resumed run needs
    no data state.
    """

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]: ...


class FeatureBatches:
    """Batches of cached features in a new order each epoch; one of the V views of an image is drawn each
    time. For one process.
    """

    def __init__(self, images: Float[Tensor, "n V D"], labels: Int[Tensor, " n"], batch_size: int, seed: int):
        self.images, self.labels, self.seed = images, labels, seed
        self.size = min(batch_size, len(images))
        self.order: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return (
            len(self.images) // self.size
        )  # what is left over comes in another epoch's order (protocol: drop_last)

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        if self.order is None or self.order[0] != epoch:
            stream = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            count, views = self.images.shape[:2]
            self.order = (
                epoch,
                torch.randperm(count, generator=stream),
                torch.randint(views, (count,), generator=stream),
            )
        chosen = slice(index * self.size, (index + 1) * self.size)
        rows, views = self.order[1][chosen], self.order[2][chosen]
        return {"images": self.images[rows, views], "labels": self.labels[rows]}


class PairBatches:
    """Batches of image features with texts as token ids: each epoch in a new order, with one of each image's
    captions and views drawn.

    Within a batch each distinct caption stands once (`ids` [M, T], `lengths` [M]); `text_of` [B] says which
    one is an image's. What `per_image` and `per_caption` hold (a teacher's vectors) is cut to the batch's
    images and captions. With several processes each gets its `rank`'s part: one below the other, the parts
    are the batch of one process."""

    def __init__(
        self,
        images: Float[Tensor, "n V D"],
        captions: Sequence[Sequence[int]],  # of each image, as rows of `tokens`
        tokens: Sequence[Sequence[int]],
        batch_size: int,
        seed: int,
        per_image: Mapping[str, Float[Tensor, "n V _"]] | None = None,
        per_caption: Mapping[str, Float[Tensor, "N _"]] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ):
        self.images, self.captions, self.tokens, self.seed = images, captions, tokens, seed
        self.size = min(batch_size, len(images))
        if self.size % world:
            least = self.size // world * world
            raise WordsightError(
                f"a batch of {self.size} pairs cannot be shared out evenly among {world} processes; "
                + (f"give train.batch_size={least}" if least else f"start {self.size} at most")
            )
        self.part = slice(rank * self.size // world, (rank + 1) * self.size // world)
        self.per_image, self.per_caption = dict(per_image or {}), dict(per_caption or {})
        self.order: tuple[int, Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images) // self.size

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        if self.order is None or self.order[0] != epoch:
            stream = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            count, views = self.images.shape[:2]
            order, view = (
                torch.randperm(count, generator=stream),
                torch.randint(views, (count,), generator=stream),
            )
            drawn = torch.rand(count, generator=stream)
            self.order = (
                epoch,
                order,
                view,
                torch.tensor([c[int(r * len(c))] for c, r in zip(self.captions, drawn.tolist())]),
            )
        chosen = slice(index * self.size + self.part.start, index * self.size + self.part.stop)
        rows, views = self.order[1][chosen], self.order[2][chosen]
        captions, text_of = self.order[3][rows].unique(return_inverse=True)
        tokens = [torch.as_tensor(self.tokens[caption]) for caption in captions.tolist()]
        return {
            "images": self.images[rows, views],
            "ids": torch.nn.utils.rnn.pad_sequence(
                tokens, batch_first=True
            ),  # what is padding is known from `lengths`
            "lengths": torch.tensor(list(map(len, tokens))),
            "text_of": text_of,
            **{name: tensor[rows, views] for name, tensor in self.per_image.items()},
            **{name: tensor[captions] for name, tensor in self.per_caption.items()},
        }


def train(
    learner: Learner,
    batches: Batches,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    state: Path | None = None,  # folder for resuming; None: not resumable
    log: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Learner:
    """Train `learner` in place. With `state`, an interrupted call leaves a state from which the same call
    ends in the same bits.

    Errors: WordsightError when the loss is no longer finite, or when training gets worse (`_Watch`); state/
    stays what the last save wrote."""
    device = torch.device(device)
    rank, world = join_processes(device)
    if world > 1 and isinstance(batches, FeatureBatches):
        raise WordsightError(
            f"labelled images are trained on in one process, not in {world}; start this without accelerate "
            f"launch or torchrun"
        )
    small = device.type == "cpu" and sum(parameter.numel() for parameter in learner.parameters()) < SMALL
    per_epoch = len(batches)
    total = total_steps(settings, per_epoch)
    epochs = math.ceil(total / per_epoch)
    learner.to(device).train()
    optimizer, watch = _optimizer(learner.parameter_groups(), settings), _Watch()
    step, saved = _restore(learner, optimizer, watch, state), time.monotonic()
    _agree(learner, step, device)
    threads = 1 if small else torch.get_num_threads()
    with (
        _threads(threads),
        progress("steps", total, step, shown=rank == 0) as advance,
        interrupts_held() as interrupted,
    ):
        while step < total:
            epoch, index = divmod(step, per_epoch)
            _seed(
                seed * 1_000_003 + step + rank * 0x9E3779B1, device
            )  # dropout and the like depend on step and rank alone
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, per_epoch, total) * group["lr_scale"]
            batch = {name: tensor.to(device) for name, tensor in batches.batch(epoch, index).items()}
            terms = learner.loss(batch)
            loss = sum(terms.values())
            value = loss.item()
            if not math.isfinite(value):
                raise WordsightError(
                    f"the loss is {value} at step {step}; {_advice(learner, settings, state)}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(learner.parameters())
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.clip_norm)
            optimizer.step()
            step += 1
            advance()
            often = (
                step % settings.log_steps == 0
                if settings.log_steps
                else index == per_epoch - 1 and epoch % max(1, epochs // 20) == 0
            )
            if rank == 0 and (often or step == total):
                log(
                    {
                        "event": "train",
                        "epoch": epoch + 1,
                        "step": step,
                        **{name: round(term.item(), 6) for name, term in terms.items()},
                    }
                )
            worse = watch.sees(step, value, learner.at_bound)
            if worse:
                raise WordsightError(f"{worse}; {_advice(learner, settings, state)}")
            stopping = _anywhere(interrupted(), device)
            if (
                state is not None
                and rank == 0
                and (stopping or time.monotonic() - saved > settings.save_seconds)
            ):
                _save(learner, optimizer, watch, state, step)
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt(f"stopped after step {step} of {total}")
    return learner.eval()


def total_steps(settings: TrainSettings, per_epoch: int) -> int:
    return settings.max_steps or max(settings.epochs, math.ceil(settings.min_steps / per_epoch)) * per_epoch


def learning_rate(settings: TrainSettings, step: int, per_epoch: int, total: int) -> float:
    """Cosine to zero over `total` steps. By epoch after a constant warm-up it is CoOp's (protocol: epoch e >=
    1 has lr/2 (1 + cos(pi (e-1)/E)) with warmup_epochs=1); by step after a linear warm-up it is that of
    CLIP's and CLAMP's training."""
    if settings.schedule == "step":
        if step < settings.warmup_steps:
            return settings.lr * (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        return settings.lr / 2 * (1 + math.cos(math.pi * done))
    epoch, epochs = step // per_epoch, math.ceil(total / per_epoch)
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr
    return settings.lr / 2 * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / epochs))


class _Watch:
    """Whether training gets worse, by the mean loss of each WINDOW steps. It has where that mean is above the
    first one, so that it knows less than at the beginning; or, with a scale at its bound, above the lowest: a
    scale that has run away, where one that is merely high has a loss that stands or falls. Above means by
    more than a tenth and 0.1, which is our choice."""

    def __init__(self):
        self.kept = torch.tensor(
            [math.inf, math.inf, 0.0], dtype=torch.float64
        )  # the first mean, the lowest, the sum in this window: saved with the state

    def sees(self, step: int, loss: float, at_bound: bool) -> str:
        """What has gone wrong with this step, in words; empty: nothing."""
        first, lowest, together = self.kept.tolist()
        together += loss
        if step % WINDOW:
            self.kept[2] = together
            return ""
        mean = together / WINDOW
        self.kept[:] = torch.tensor([mean if math.isinf(first) else first, min(lowest, mean), 0.0])
        for before, which in ((first, "the first"), (lowest if at_bound else math.inf, "the best")):
            if mean > before + abs(before) / 10 + 0.1:
                return (
                    f"training gets worse: the mean loss of {WINDOW} steps is {mean:.4g} at step {step}, "
                    f"and was {before:.4g} in {which} {WINDOW}"
                )
        return ""


def _advice(learner: Learner, settings: TrainSettings, state: Path | None) -> str:
    known = f", {learner.condition}" if learner.condition else ""
    way = f"lower train.lr (now {settings.lr}{known})" + (
        "" if settings.clip_norm else " or set train.clip_norm=1"
    )
    if state is None:
        return way
    return (
        f"{way}, and give another out=...: {state.parent} keeps these settings, and {state} what the last "
        f"save wrote"
    )


# Processes


def join_processes(device: torch.device | str) -> tuple[int, int]:
    """This process's rank and how many there are, as accelerate launch or torchrun say; the first call joins
    them, and gives each its card.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)
    return _place()


@contextmanager
def rank_0_first() -> Iterator[None]:
    """What rank 0 does while the others wait, and then they: it fills a cache that they read."""
    rank, world = _place()
    if rank > 0:
        dist.barrier()
    try:
        yield
    finally:  # where it fails for rank 0 the others are not left waiting, and find out themselves
        if world > 1 and rank == 0:
            dist.barrier()


def _place() -> tuple[int, int]:
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )


def _agree(learner: nn.Module, step: int, device: torch.device) -> None:
    """All processes begin with rank 0's tensors, at the same step."""
    if _place()[1] == 1:
        return
    steps = torch.tensor([step, -step], device=device)
    dist.all_reduce(steps, dist.ReduceOp.MAX)
    if steps[0] != -steps[1]:
        raise WordsightError(
            f"one process would go on from step {-steps[1]}, another from step {steps[0]}; the run folder "
            f"must lie on a disk that all of them see"
        )
    for tensor in changing(learner).values():
        dist.broadcast(tensor.detach(), 0)


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so in any process: all must stop after the same step."""
    if _place()[1] == 1:
        return here
    found = torch.tensor([int(here)], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


# Inside


def _seed(value: int, device: torch.device) -> None:
    """torch.manual_seed for the devices in use: the whole of it takes a tenth of a small step."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def changing(learner: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters and buffers, without the frozen weights of a language
    model.
    """
    frozen = {
        name
        for name, parameter in learner.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    return {name: tensor for name, tensor in learner.state_dict().items() if name not in frozen}


def _save(learner: nn.Module, optimizer: Any, watch: _Watch, state: Path, step: int) -> None:
    tensors = {"watch": watch.kept} | {
        f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in changing(learner).items()
    }
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value.detach().cpu().contiguous()
            for name, value in values.items()
            if value is not None
        }
    write_file(state / STATE_FILE, save(tensors, metadata={"step": str(step)}))


def _restore(learner: nn.Module, optimizer: Any, watch: _Watch, state: Path | None) -> int:
    """The step to go on from: 0 without a saved state."""
    if state is None or not (state / STATE_FILE).is_file():
        return 0
    try:
        with safe_open(state / STATE_FILE, framework="pt") as file:
            tensors, step = (
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                int(file.metadata()["step"]),
            )
    except (SafetensorError, OSError) as error:
        raise WordsightError(
            f"{state / STATE_FILE} cannot be read: {error}; delete {state} to begin anew"
        ) from error
    found = {
        name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")
    }
    if found.keys() != changing(learner).keys():
        raise WordsightError(
            f"{state / STATE_FILE} holds the tensors of another training; delete {state} to begin anew"
        )
    learner.load_state_dict(found, strict=False)  # what is absent is frozen
    watch.kept = tensors.get("watch", watch.kept)
    known = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            known["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(known)
    return step


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM (a launcher's, a cluster's) wait, as for the end of a step, so that a whole step can
    be kept; a second one does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def hold(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
