"""Server: uvicorn's, which finishes what is under way before it closes its door."""

from __future__ import annotations

import time
from types import FrameType

import uvicorn

from wordsight.serve.guard import State


class Server(uvicorn.Server):
    """Told to end, it refuses new work at once, ends when what was under way is done, or after `drain`
    seconds, and then returns as if nobody had told it; told twice, it ends at once.
    """

    def __init__(self, config: uvicorn.Config, state: State, drain: float):
        super().__init__(config)
        self.state, self.drain = state, drain
        self._told_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self._told_at is not None
        self._told_at = self._told_at or time.monotonic()
        self.state.ending = True

    async def on_tick(self, counter: int) -> bool:
        if self.state.failure is not None:
            self.should_exit = True
        elif self._told_at is not None:
            late = time.monotonic() - self._told_at > self.drain
            self.should_exit = late or self.force_exit or not self.state.under_way
        return await super().on_tick(counter)
