"""Train settings: how the one loop of train.py trains. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wordsight.files import WordsightError

LEAST = dict.fromkeys(
    (
        "epochs",
        "min_steps",
        "lr",
        "weight_decay",
        "eps",
        "momentum",
        "warmup_epochs",
        "warmup_lr",
        "warmup_steps",
    ),
    0,
) | {"batch_size": 1, "max_steps": 1, "log_steps": 1, "save_seconds": 0, "clip_norm": 0}


@dataclass(frozen=True)
class TrainSettings:
    """How the one loop of train.py trains. A method's YAML says what its paper says."""

    epochs: int = 40  # times that every training image is seen
    min_steps: int = 100  # epochs are added until there are as many steps: a few images make short epochs
    # exactly so many steps, whatever `epochs` and `min_steps` say; needed where nobody knows how long the
    # data is
    max_steps: int | None = None
    batch_size: int = 32  # images (or pairs) a step
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW or SGD of torch
    # the learning rate at its highest; several: the best on validation images, and the first where there are
    # none
    lr: float | tuple[float, ...] = 1e-3
    weight_decay: float = 0.0  # as the optimizer has it: decoupled for adamw, in the gradient for sgd
    momentum: float = 0.9  # SGD only
    eps: float = 1e-8  # AdamW only: what its denominator has beside the root of the squared gradients
    schedule: Literal["epoch", "step"] = "epoch"  # the cosine falls once an epoch (CoOp), or at every step
    warmup_epochs: int = 0  # schedule=epoch: epochs at `warmup_lr` before the cosine begins
    warmup_lr: float = 1e-5  # schedule=epoch: the learning rate of those epochs
    warmup_steps: int = 0  # schedule=step: steps that rise in a line from zero to `lr`
    clip_norm: float | None = None  # gradients are scaled down to this norm; null: never
    log_steps: int | None = None  # how often the losses are logged; null: at the ends of about twenty epochs
    save_seconds: float = 10.0  # how often state/ is written, so that a killed run resumes

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and one < least:
                    raise WordsightError(f"train.{name}={one} is not possible; it is {least} or more")
        if not self.rates or len(set(self.rates)) < len(self.rates):
            raise WordsightError(f"train.lr={self.lr} is not possible; give one rate, or several that differ")
        if len(self.rates) > 1 and 0 in self.rates:  # at which nothing is learned
            raise WordsightError(
                f"train.lr={','.join(f'{rate:g}' for rate in self.rates)} tries a rate of 0; decimals stand "
                "behind a point, as in 0.001"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)

    @property
    def rate(self) -> float:
        """The learning rate of a training that tries no other."""
        return self.rates[0]
