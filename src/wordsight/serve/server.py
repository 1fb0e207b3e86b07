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
from wordsight.serve.refused import answer_of
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
    """A connection that is cut where a request's head, the taking of an answer, or a body that is sent on
    after its answer, lasts for too long.
    """

    seconds: float
    most: int  # connections at once
    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None

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
        if not self._sends_on():
            self._rest = _stopped(self._rest)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._sends_on() and self._rest is None:
            self._rest = self._cut_later()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in the form of every error, unless its answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        answer = answer_of(400, "this is no request of HTTP/1.1", {"Connection": "close"})
        head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._taking, self._rest):
            _stopped(timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self._taking or self._cut_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking = _stopped(self._taking)

    def _waits_for_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _sends_on(self) -> bool:
        """Whether a body goes on that nobody reads, as its request is answered."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _cut_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.seconds, self.transport.abort)


def _stopped(timer: Any) -> None:
    """No timer, in place of this one."""
    if timer is not None:
        timer.cancel()
