"""streaming: what transformers' `generate` writes, piece by piece while it is written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from wordsight.backbones.generator import Pieces

TORN = "\ufffd"  # what stands for a sign of which some bytes are still to come


class Streamed(Pieces):
    """The text of one row, in pieces. It is written in a thread of its own, by `generate` itself, so it is
    what would be written at once; whoever needs no more of it calls `close`, which ends the writing at the
    next token.

    Errors: what `write` raises, from the next piece that is asked for."""

    def __init__(self, write: Callable[..., Any], text_of: Callable[[Sequence[int]], str]):
        """`write` hands what it is given on to `generate`; `text_of` is the text of so many new tokens."""
        self._write, self._text_of = write, text_of
        self._line: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._tokens: list[int] = []
        self._shown, self._ended = "", False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def __next__(self) -> str:
        while not self._ended:
            item = self._line.get()
            if isinstance(item, BaseException):
                self.close()
                raise item
            if item is None:
                self._ended = True
            else:
                self._tokens.append(item)
            text = self._text_of(self._tokens)
            whole = self._ended or not text.endswith(TORN)
            if whole and len(text) > len(self._shown) and text.startswith(self._shown):
                piece, self._shown = text[len(self._shown) :], text
                return piece
        raise StopIteration

    def close(self) -> None:
        """No more is wanted; ends once nothing is written any more."""
        self._ended = True
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            with torch.no_grad():  # which each thread has for itself
                stop = StoppingCriteriaList([_Stop(self._stopped)])
                self._write(streamer=_Tokens(self._line), stopping_criteria=stop)
            self._line.put(None)
        except BaseException as error:
            self._line.put(error)


class _Tokens(BaseStreamer):
    """Takes what `generate` gives: first the prompt, then token by token."""

    def __init__(self, line: queue.SimpleQueue):
        self.line, self.prompt = line, True

    def put(self, value: Tensor) -> None:
        if not self.prompt:
            for token in value.flatten().tolist():
                self.line.put(token)
        self.prompt = False

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    def __init__(self, stopped: threading.Event):
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)
