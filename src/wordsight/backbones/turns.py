"""turns: one thread at a time on the LMs of a process. Switching adapters changes an LM for everybody, and
some models keep what they read last: whoever embeds, reads or writes waits for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
one_at_a_time = threading.RLock()


def in_turn(call: Callable[P, T]) -> Callable[P, T]:
    """Nobody else's call in between, of those that take turns."""

    @wraps(call)
    def one(*args: P.args, **kwargs: P.kwargs) -> T:
        with one_at_a_time:
            return call(*args, **kwargs)

    return one


def alone(method: Callable) -> Callable:
    """Without gradient, in eval mode, and nobody else's call in between."""

    @wraps(method)
    def call(self, *args, **kwargs):
        training = self.training
        with one_at_a_time, torch.no_grad():
            self.train(False)
            try:
                return method(self, *args, **kwargs)
            finally:
                self.train(training)

    return call
