"""Server: uvicorn's, which finishes what is under way before it closes its door, and waits for no client that
is slow to say what it wants, or to take its answer."""

from __future__ import annotations

import asyncio
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from wordsight.serve.guard import State
from wordsight.serve.settings import Limits


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


def protocol(limits: Limits) -> type[H11Protocol]:
    """How connections are read and written within these limits."""

    class Timely(_Timely):
        seconds, most = limits.body_seconds, limits.max_connections

    return Timely


class _Timely(H11Protocol):
    """A connection that is cut where a request's head, or the taking of an answer, lasts for too long."""

    seconds: float
    most: int  # connections at once
    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._head = self._cut_later()

    def data_received(self, data: bytes) -> None:
        if self._head is None and self._waits_for_head():
            self._head = self._cut_later()
        super().data_received(data)
        if not self._waits_for_head():
            self._head = _stopped(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._taking = _stopped(self._head), _stopped(self._taking)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self._taking or self._cut_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking = _stopped(self._taking)

    def _waits_for_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _cut_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.seconds, self.transport.abort)


def _stopped(timer: Any) -> None:
    """No timer, in place of this one."""
    if timer is not None:
        timer.cancel()
