"""The one loop. It trains any Learner on batches, in one process or several, and resumes to the same bits
from state/.

Several processes (`accelerate launch`, `torchrun`): each takes its part of every batch, the loss is that of
all parts together (contrast.gather), and gradients are averaged, so the global batch decides the step and not
how many share it. The learner is not wrapped in DDP, which would average losses of parts. Rank 0 alone logs,
shows progress and writes state/; all read it. Random numbers (dropout) depend on seed, step and rank alone.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wordsight.backbones import pick_device
from wordsight.batches import Batches, FeatureBatches
from wordsight.config import TrainSettings, WordsightError
from wordsight.contrast import average_gradients, join_processes, place
from wordsight.files import read_tensors, write_tensors
from wordsight.meter import torch_threads
from wordsight.methods import Learner
from wordsight.workers import progress

STATE_FILE = "state.safetensors"
WINDOW = 500  # steps whose mean loss is compared, to see that training does not get worse
# trained numbers; below it one thread is faster: several wait for each other longer than each of these
# operations takes
SMALL = 3_000_000


class Keeper(Protocol):
    """Where training keeps what it has reached; a run folder does."""

    @property
    def state(self) -> Path | None:
        """The folder that an interrupted training goes on from; None: it does not."""

    def log(self, event: dict[str, Any]) -> None:
        """Keep an event."""

    def rewind(self, step: float) -> None:
        """Forget events of steps after this one, which are trained again."""


def train(
    learner: Learner,
    batches: Batches,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    run: Keeper | None = None,  # None: nothing is logged, and it cannot be resumed
) -> Learner:
    """Train `learner` in place. With `run`, an interrupted call leaves a state from which the same call ends
    in the same bits, and each step's event stands once.

    Errors: WordsightError when the loss is no longer finite, when training gets worse (`_Watch`), or when the
    state is not one of this training; state/ stays what the last save wrote."""
    rank, world = join_processes(device)
    device = pick_device(device)
    if world > 1 and isinstance(batches, FeatureBatches) and batches.labels is not None:
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
    state = None if run is None else run.state
    step, saved = _restore(learner, optimizer, watch, state, total), time.monotonic()
    if run is not None and rank == 0:
        run.rewind(step)
    _agree(learner, step, device)
    threads = 1 if small else torch.get_num_threads()
    with (
        torch_threads(threads),
        _room(settings, device),
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
            loss = reduce(torch.add, terms.values())
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
            if run is not None and rank == 0 and (often or step == total):
                run.log(
                    {
                        "event": "train",
                        "epoch": epoch + 1,
                        "step": step,
                        **{name: round(term.item(), 6) for name, term in terms.items()},
                    }
                )
            worse = watch.sees(step, value - _pulled(terms, learner.pulls), learner.at_bound)
            if worse:
                raise WordsightError(f"{worse}; {_advice(learner, settings, state)}")
            stopping = _anywhere(interrupted(), device)
            if (
                state is not None
                and rank == 0
                and (stopping or step == total or time.monotonic() - saved > settings.save_seconds)
            ):
                _save(learner, optimizer, watch, state, step)
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt(f"stopped after step {step} of {total}")
    return learner.eval()


@contextmanager
def _room(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """A device whose memory does not hold a step gets a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise WordsightError(
            f"{device} has no memory left for a step of {settings.batch_size}; give a smaller "
            f"train.batch_size, dtype=bfloat16, or for a two_tower settings.chunk=64 (with the gradients "
            f"of the whole batch), and another out="
        ) from error


def total_steps(settings: TrainSettings, per_epoch: int) -> int:
    return settings.max_steps or max(settings.epochs, math.ceil(settings.min_steps / per_epoch)) * per_epoch


def learning_rate(settings: TrainSettings, step: int, per_epoch: int, total: int) -> float:
    """Cosine to zero over `total` steps. By epoch after a constant warm-up it is CoOp's (protocol: epoch e >=
    1 has lr/2 (1 + cos(pi (e-1)/E)) with warmup_epochs=1); by step after a linear warm-up it is that of
    CLIP's and CLAMP's training."""
    if settings.schedule == "step":
        if step < settings.warmup_steps:
            return settings.rate * (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
        return settings.rate / 2 * (1 + math.cos(math.pi * done))
    epoch, epochs = step // per_epoch, math.ceil(total / per_epoch)
    if epoch < settings.warmup_epochs:
        return settings.warmup_lr
    return settings.rate / 2 * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / epochs))


def _pulled(terms: Mapping[str, Tensor], pulls: tuple[str, ...]) -> float:
    """What these terms have in the loss. Weight decay raises them too, against the loss."""
    return sum(terms[name].item() for name in pulls if name in terms)


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
    way = f"lower train.lr (now {settings.rate}{known})" + (
        "" if settings.clip_norm else " or set train.clip_norm=1"
    )
    if state is None:
        return way
    return (
        f"{way}, and give another out=...: {state.parent} keeps these settings, and {state} what the last "
        f"save wrote"
    )


# Processes


def _agree(learner: nn.Module, step: int, device: torch.device) -> None:
    """All processes begin with rank 0's tensors, at the same step."""
    if place()[1] == 1:
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
    if place()[1] == 1:
        return here
    found = torch.tensor([int(here)], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


# Inside


def _seed(value: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and the device in use, which need not be the current one: the whole of it
    takes a tenth of a small step.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def _optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(
        groups, lr=settings.rate, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def changing(learner: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters and buffers, without the frozen weights of a language model.
    A parameter of two names, as tied word embeddings are, stands under its first.
    """
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    parameters = {name for name, _ in learner.named_parameters(remove_duplicate=False)}
    kept = learner.state_dict().items()
    return {name: tensor for name, tensor in kept if name in trained or name not in parameters}


def _save(learner: nn.Module, optimizer: Any, watch: _Watch, state: Path, step: int) -> None:
    tensors = {"watch": watch.kept} | {f"model.{name}": tensor for name, tensor in changing(learner).items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    write_tensors(state / STATE_FILE, tensors, {"step": str(step)})


def _restore(learner: nn.Module, optimizer: Any, watch: _Watch, state: Path | None, total: int) -> int:
    """The step to go on from: 0 without a saved state."""
    if state is None or not (state / STATE_FILE).is_file():
        return 0
    path, anew = state / STATE_FILE, f"; delete {state} to begin anew"
    try:
        tensors, metadata = read_tensors(path, finite=False, sealed=True)
        kept = tensors.pop("watch")
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        _check_alike(model, changing(learner))
        known = optimizer.state_dict()
        known["state"] = _optimizer_state(tensors, optimizer)
        step = int(metadata["step"])
        if kept.shape != watch.kept.shape or kept.dtype != watch.kept.dtype or not 0 <= step <= total:
            raise ValueError(f"step {step} of {total}")
    except WordsightError as error:
        raise WordsightError(f"{error}{anew}") from error
    except (KeyError, ValueError, IndexError) as error:
        raise WordsightError(f"{path} is not a state of this training ({error}){anew}") from error
    learner.load_state_dict(model, strict=False)  # what is absent is frozen
    watch.kept = kept
    optimizer.load_state_dict(known)
    return step


def _check_alike(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Errors: ValueError where names, shapes or dtypes differ, or a number is not finite."""
    if found.keys() != wanted.keys():
        raise ValueError("it holds the tensors of another training")
    for name, tensor in wanted.items():
        if (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} is {tuple(found[name].shape)} of {found[name].dtype}")
        if not found[name].isfinite().all():
            raise ValueError(f"{name} is not finite")


def _optimizer_state(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """What an optimizer knows of each parameter. Errors: ValueError where it is not this optimizer's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    adam = isinstance(optimizer, torch.optim.AdamW)
    whole = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            found.setdefault(int(index), {})[key] = tensor
            wanted = torch.Size() if key == "step" else parameters[int(index)].shape
            if key not in whole or tensor.shape != wanted:
                raise ValueError(f"{name} is {tuple(tensor.shape)}")
        elif not name.startswith("model."):
            raise ValueError(f"{name} is not known")
    broken = [index for index, values in found.items() if values.keys() != whole]
    if broken:
        raise ValueError(f"optimizer.{broken[0]} is not complete")
    return found


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

    previous: dict[int, Any] = {
        number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
