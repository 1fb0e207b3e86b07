"""Guard: what stands before the application: keys, hosts, sizes and times of requests, and how many are under
way; around it, the headers of every answer, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wordsight.serve.meters import Meters
from wordsight.serve.refused import BUSY, Refused, answer_of, unexpected
from wordsight.serve.settings import MB, Limits, Settings

OPEN = ("/", "/health", "/ready", "/openapi.json")  # answered without a key
ALWAYS = (*OPEN, "/metrics")  # answered while the server starts or ends, and however many are under way
JSON_PARTS = (b"[", b"{", b",")  # each becomes an object, which takes a hundred times its byte
PATIENCE = 5.0  # seconds in which a refused body may end
CLOSED = "the server is ending; ask again later"
STARTING = "the models are being loaded; ask again in a few seconds"
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class State:
    """Where a server stands."""

    def __init__(self) -> None:
        self.ready = self.ending = False
        self.under_way = 0
        self.held = 0  # bytes of the requests under way
        self.failure: BaseException | None = None  # why models could not be loaded
        self.loading: threading.Thread | None = None  # what loads them


class Guard:
    """The application behind its gate."""

    def __init__(self, app: ASGIApp, settings: Settings, state: State, meters: Meters):
        self.app, self.settings, self.state, self.meters = app, settings, state, meters
        self.keys = [_digest(key) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, request = time.perf_counter(), _Passing(receive, send, self.settings.limits, self.state)
        try:
            await self._answer(scope, request)
        finally:
            self._count(scope, request, time.perf_counter() - begun)

    async def _answer(self, scope: Scope, request: _Passing) -> None:
        try:
            self._check(scope)
            request.expect(Headers(scope=scope))
        except Refused as error:
            await request.discard(Headers(scope=scope))
            answer = answer_of(error.status_code, str(error.detail), error.headers)
            await answer(scope, request.receive, request.send)
            return
        self.state.under_way += 1
        self.meters.under_way.inc()
        try:
            await request.run(self.app, scope)
        finally:
            self.state.under_way -= 1
            self.meters.under_way.dec()

    def _check(self, scope: Scope) -> None:
        """Errors: Refused for what is not let in; nothing of its body has been read."""
        path, headers = scope["path"], Headers(scope=scope)
        self._check_origin(headers)
        if path not in OPEN:
            self._check_key(headers)
        if path in ALWAYS:
            return
        if self.state.ending or not self.state.ready:
            raise Refused(503, CLOSED if self.state.ending else STARTING, {"Retry-After": "5"})
        if self.state.under_way >= self.settings.limits.max_requests:
            raise Refused(429, BUSY, {"Retry-After": "1"})

    def _check_origin(self, headers: Headers) -> None:
        """A page of another site must not ask in the name of whoever looks at it."""
        host = headers.get("host", "")
        own = self.settings.allow_hosts
        if own and _name(f"//{host}") not in own:
            raise Refused(403, "the server is not called by this Host; --allow-host names others")
        origin = headers.get("origin")
        if origin is not None and urlsplit_or_none(origin) != host:
            raise Refused(403, "a page of another site (Origin) is not answered")

    def _check_key(self, headers: Headers) -> None:
        if not self.keys:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip() if kind.lower() == "bearer" else "")
        found = [hmac.compare_digest(digest, key) for key in self.keys]  # all of them: equal time
        if not any(found):
            raise Refused(
                401,
                "no such key; give one as the header 'Authorization: Bearer KEY'",
                {"WWW-Authenticate": "Bearer"},
            )

    def _count(self, scope: Scope, request: _Passing, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the latter: refused before, or none
        self.meters.requests.labels(route, str(request.status)).inc()
        self.meters.seconds.labels(route).observe(seconds)


class _Passing:
    """One request on its way: its body is counted as it comes, and its work ends when the client goes."""

    def __init__(self, receive: Receive, send: Send, limits: Limits, state: State):
        self._receive, self._send, self._limits, self._state = receive, send, limits, state
        self._most, self._seconds = limits.max_body_mb * MB, limits.body_seconds
        self._json, self._parts = False, 0
        self._read, self._end = 0, time.monotonic() + self._seconds
        self._arrived = False
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.status = 499  # until an answer begins: the client went first

    def expect(self, headers: Headers) -> None:
        """Errors: Refused where the body says that it is too large, or ends at two places: a proxy may have
        read the other one, and taken the rest for the next request."""
        if "transfer-encoding" in headers and "content-length" in headers:
            told = "the request has both a Content-Length and a Transfer-Encoding; send one of them"
            raise Refused(400, told, {"Connection": "close"})
        if not headers.get("content-type", "").lower().startswith("multipart/"):
            self._json, self._most = True, min(self._most, self._limits.max_json_mb * MB)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._most:
            raise self._too_large()

    async def discard(self, headers: Headers) -> None:
        """Read on for a while what is not wanted: most clients look for an answer once all is sent."""
        if "expect" in headers or not {"content-length", "transfer-encoding"} & set(headers.keys()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                message = await self._receive()
                while message.get("more_body", False) and self._read < 2 * self._most:
                    self._read += len(message["body"])
                    message = await self._receive()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """The application's answer, or an error's."""
        self._task = asyncio.ensure_future(app(scope, self.receive, self.send))
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            if not self._gone.is_set():
                raise
        except Exception as error:
            if self.status == 499:  # else it has been told, and is raised for a log alone
                await unexpected(error)(scope, self.receive, self.send)
        finally:
            self._state.held -= self._read
            if self._watch is not None:
                self._watch.cancel()

    async def receive(self) -> Message:
        """What the application reads. Errors: Refused for a body that is too large or too slow."""
        if self._arrived:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), self._end - time.monotonic())
        except TimeoutError:
            raise Refused(
                408, f"the request did not arrive within {self._seconds:g} seconds", {"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            self._leave()
            await asyncio.sleep(0)  # where the application's task, which this is, ends
            return message
        body = message.get("body", b"")
        self._read += len(body)
        self._state.held += len(body)
        self._parts += sum(map(body.count, JSON_PARTS)) if self._json else 0
        if self._parts > self._limits.max_json_parts:
            raise Refused(413, f"the JSON has more than {self._limits.max_json_parts:,} parts")
        if self._read > self._most:
            raise self._too_large()
        if self._state.held > self._limits.max_held_mb * MB:
            raise Refused(429, BUSY, {"Retry-After": "1", "Connection": "close"})
        if not message.get("more_body", False):
            self._arrived = True
            self._watch = asyncio.ensure_future(self._wait_for_end())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SAFE.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def _wait_for_end(self) -> None:
        """Until the client goes, or has its answer."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._leave()

    def _leave(self) -> None:
        self._arrived = True
        self._gone.set()
        if self._task is not None:
            self._task.cancel()

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"the request is larger than {self._most // MB} MB; send fewer or smaller images",
            {"Connection": "close"},
        )


def _digest(key: str) -> bytes:
    """Of equal length, whatever the key: comparing tells nothing of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def urlsplit_or_none(url: str) -> str | None:
    """The host and port of a URL, None where there are none."""
    return _part(url, lambda parts: parts.netloc)


def _name(url: str) -> str | None:
    return _part(url, lambda parts: parts.hostname)


def _part(url: str, part: Callable[[Any], str | None]) -> str | None:
    try:
        return part(urlsplit(url)) or None
    except ValueError:  # a broken IPv6 address
        return None
