"""The one loop. It trains any Learner on batches, on accelerate, and resumes to the same bits from state/."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wordsight.config import TrainSettings, WordsightError, write_file

STATE_FILE = "state.safetensors"
SMALL = 3_000_000  # trained numbers; below it one thread is faster: several wait for each other longer than each of these operations takes


class Batches(Protocol):
    """Training data by position: the same (epoch, index) always gives the same batch, so a resumed run needs no data state."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]: ...


class FeatureBatches:
    """Batches of cached features in a new order each epoch; one of the V views of an image is drawn each time."""

    def __init__(self, images: Float[Tensor, "n V D"], labels: Int[Tensor, " n"], batch_size: int, seed: int):
        self.images, self.labels, self.seed = images, labels, seed
        self.size = min(batch_size, len(images))
        self.order: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images) // self.size  # what is left over comes in another epoch's order (protocol: drop_last)

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        if self.order is None or self.order[0] != epoch:
            stream = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            count, views = self.images.shape[:2]
            self.order = (epoch, torch.randperm(count, generator=stream), torch.randint(views, (count,), generator=stream))
        chosen = slice(index * self.size, (index + 1) * self.size)
        rows, views = self.order[1][chosen], self.order[2][chosen]
        return {"images": self.images[rows, views], "labels": self.labels[rows]}


class PairBatches:
    """Batches of image features with texts as token ids: each epoch in a new order, with one of each image's captions and views drawn.

    Within a batch each distinct caption stands once (`ids` [M, T], `lengths` [M]); `text_of` [B] says which one is an image's. What `per_image` and
    `per_caption` hold (a teacher's vectors) is cut to the batch's images and captions.
    """

    def __init__(
        self,
        images: Float[Tensor, "n V D"],
        captions: Sequence[Sequence[int]],  # of each image, as rows of `tokens`
        tokens: Sequence[Sequence[int]],
        batch_size: int,
        seed: int,
        per_image: Mapping[str, Float[Tensor, "n V _"]] | None = None,
        per_caption: Mapping[str, Float[Tensor, "N _"]] | None = None,
    ):
        self.images, self.captions, self.tokens, self.seed = images, captions, tokens, seed
        self.size = min(batch_size, len(images))
        self.per_image, self.per_caption = dict(per_image or {}), dict(per_caption or {})
        self.order: tuple[int, Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images) // self.size

    def batch(self, epoch: int, index: int) -> dict[str, Tensor]:
        if self.order is None or self.order[0] != epoch:
            stream = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            count, views = self.images.shape[:2]
            order, view = torch.randperm(count, generator=stream), torch.randint(views, (count,), generator=stream)
            drawn = torch.rand(count, generator=stream)
            self.order = (epoch, order, view, torch.tensor([c[int(r * len(c))] for c, r in zip(self.captions, drawn.tolist())]))
        chosen = slice(index * self.size, (index + 1) * self.size)
        rows, views = self.order[1][chosen], self.order[2][chosen]
        captions, text_of = self.order[3][rows].unique(return_inverse=True)
        tokens = [torch.as_tensor(self.tokens[caption]) for caption in captions.tolist()]
        return {
            "images": self.images[rows, views],
            "ids": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),  # what is padding is known from `lengths`
            "lengths": torch.tensor(list(map(len, tokens))),
            "text_of": text_of,
            **{name: tensor[rows, views] for name, tensor in self.per_image.items()},
            **{name: tensor[captions] for name, tensor in self.per_caption.items()},
        }


def train(
    learner: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    state: Path | None = None,  # folder for resuming; None: not resumable
    log: Callable[[dict[str, Any]], None] = lambda event: None,
    progress: bool = False,
) -> nn.Module:
    """Train `learner` in place. With `state`, an interrupted call leaves a state from which the same call ends in the same bits.

    Errors: WordsightError when the loss is no longer finite.
    """
    from accelerate import Accelerator

    small = torch.device(device).type == "cpu" and sum(parameter.numel() for parameter in learner.parameters()) < SMALL
    accelerator = Accelerator(cpu=torch.device(device).type == "cpu")
    epochs = max(settings.epochs, math.ceil(settings.min_steps / len(batches)))
    optimizer = _optimizer(learner.parameter_groups(), settings)
    learner, optimizer = accelerator.prepare(learner.train(), optimizer)
    step = _restore(accelerator.unwrap_model(learner), optimizer, state)
    total, saved = epochs * len(batches), time.monotonic()
    with _threads(1 if small else torch.get_num_threads()), _bar(total, step, progress) as shown, _interrupts_held() as interrupted:
        while step < total:
            epoch, index = divmod(step, len(batches))
            _seed(seed * 1_000_003 + step, accelerator.device)  # dropout and the like depend on the step alone
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, len(batches), epochs) * group["lr_scale"]
            batch = {name: tensor.to(accelerator.device) for name, tensor in batches.batch(epoch, index).items()}
            terms = learner.loss(batch)
            total_loss = sum(terms.values())
            if not torch.isfinite(total_loss):
                raise WordsightError(f"the loss is {total_loss.item()} at step {step}; lower train.lr (now {settings.lr}) or set train.clip_norm=1")
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(total_loss)
            if settings.clip_norm is not None:
                accelerator.clip_grad_norm_(learner.parameters(), settings.clip_norm)
            optimizer.step()
            step += 1
            shown(step)
            if index == len(batches) - 1 and (epoch % max(1, epochs // 20) == 0 or step == total):
                log({"event": "train", "epoch": epoch + 1, "step": step, **{name: round(term.item(), 6) for name, term in terms.items()}})
            stopping = interrupted()
            if state is not None and (stopping or time.monotonic() - saved > settings.save_seconds):
                _save(accelerator.unwrap_model(learner), optimizer, state, step)
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt(f"stopped after step {step} of {total}")
    return accelerator.unwrap_model(learner).eval()


def learning_rate(settings: TrainSettings, step: int, per_epoch: int, epochs: int) -> float:
    """Cosine to zero. By epoch after a constant warm-up it is CoOp's (protocol: epoch e >= 1 has lr/2 (1 + cos(pi (e-1)/E)) with warmup_epochs=1); by
    step after a linear warm-up it is that of CLIP's and CLAMP's training."""
    if settings.schedule == "step":
        if step < settings.warmup_steps:
            return settings.lr * (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(1, epochs * per_epoch - settings.warmup_steps)
        return settings.lr / 2 * (1 + math.cos(math.pi * done))
    epoch = step // per_epoch
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr
    return settings.lr / 2 * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / epochs))


def _seed(value: int, device: torch.device) -> None:
    """torch.manual_seed for the devices in use: the whole of it takes a tenth of a small step."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def _changing(learner: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters and buffers, without the frozen weights of a language model."""
    frozen = {name for name, parameter in learner.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in learner.state_dict().items() if name not in frozen}


def _save(learner: nn.Module, optimizer: Any, state: Path, step: int) -> None:
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in _changing(learner).items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.detach().cpu().contiguous() for name, value in values.items() if value is not None}
    write_file(state / STATE_FILE, save(tensors, metadata={"step": str(step)}))


def _restore(learner: nn.Module, optimizer: Any, state: Path | None) -> int:
    """The step to go on from: 0 without a saved state."""
    if state is None or not (state / STATE_FILE).is_file():
        return 0
    try:
        with safe_open(state / STATE_FILE, framework="pt") as file:
            tensors, step = {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["step"])  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WordsightError(f"{state / STATE_FILE} cannot be read: {error}; delete {state} to begin anew") from error
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    if found.keys() != _changing(learner).keys():
        raise WordsightError(f"{state / STATE_FILE} holds the tensors of another training; delete {state} to begin anew")
    learner.load_state_dict(found, strict=False)  # what is absent is frozen
    known = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            known["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(known)
    return step


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of the step, so that a whole step can be kept; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def hold(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bar(total: int, done: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal for training that takes more than two seconds."""
    if not (show and sys.stderr.isatty()):
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, began = bar.add_task("steps", total=total, completed=done), time.monotonic()

    def shown(step: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > 2:
            bar.start()
        bar.update(task, completed=step)

    try:
        yield shown
    finally:
        bar.stop()
