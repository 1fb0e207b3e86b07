"""Servers: the answers of an OpenAI-compatible server, or a sentence with its own words where it gives none.

A server of one's own, a gateway in front of others and a hosted one differ in what they send, and all of them
have bad days. What is read is bounded in bytes and in time, whatever comes; the key stays with us. The
openai client bounds neither body nor time in all, and takes an error under status 200 for an answer."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import random
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from wordsight.files import WordsightError
from wordsight.sentences.replies import (
    Reply,
    read_body,
    read_reply,
    seconds_to_wait,
    status_in,
    unpacked,
    words_of,
)

if TYPE_CHECKING:
    import httpx2
    from anyio.from_thread import BlockingPortal

    from wordsight.settings import WriterSettings

OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0  # a server that is there takes a connection at once
LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is not waited for, but the user is told
SHOWN = 300  # characters of a server's words in a message
PIECE = 6  # so many characters in a row of a key are not shown
REFUSED = re.compile(  # how servers speak of a parameter that they do not take
    "unsupported|not support|unrecognized|unknown|unexpected|not permitted|not allowed|extra", re.IGNORECASE
)
log = logging.getLogger("wordsight")


class _Failed(WordsightError):
    """No answer this time. `more` tries may follow, each after `pause` seconds where the server says so."""

    def __init__(self, says: str, more: float = 0, pause: float | None = None):
        super().__init__(says)
        self.more, self.pause = more, pause


@contextlib.contextmanager
def connected(settings: WriterSettings) -> Iterator[Server]:
    """A server to ask from any number of threads. Errors: WordsightError where key or address cannot be."""
    import httpx2
    from anyio.from_thread import start_blocking_portal

    key, url = read_key(settings), _address(settings)
    headers = {"Accept-Encoding": "identity", "User-Agent": "wordsight"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx2.Timeout(settings.timeout, connect=min(settings.timeout, CONNECT_SECONDS), pool=None)
    limits = httpx2.Limits(max_connections=settings.workers)
    try:
        client = httpx2.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=_certificates())
    except (ValueError, ImportError, OSError) as error:
        raise WordsightError(f"the proxy or certificates of this machine cannot be used: {error}") from error
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        yield Server(settings, key, url, portal, client)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Those that this machine trusts, which take longer to read than a server to answer."""
    import httpx2

    return httpx2.create_ssl_context()


class Server:
    """Asks one question after another, by `connected`."""

    def __init__(
        self,
        settings: WriterSettings,
        key: str | None,
        url: httpx2.URL,
        portal: BlockingPortal,
        client: httpx2.AsyncClient,
    ):
        self.settings, self.key, self.url, self.portal, self.client = settings, key, url, portal, client
        self.at = str(url.copy_with(userinfo=b"", query=None)).removesuffix("/chat/completions")
        # OpenAI's newer models refuse the first, other servers lack the second
        self.limit = "max_tokens" if settings.base_url else "max_completion_tokens"
        self.left_out: set[str] = set()  # parameters that the server does not take
        self.stopping = threading.Event()
        self.under_way: set[Future] = set()

    def ask_all(self, jobs: Sequence[tuple[str, int]]) -> Iterator[Reply]:
        """The answers to questions with their seeds, one after another."""
        for question, seed in jobs:
            yield self.ask(question, seed)

    def ask(self, question: str, seed: int) -> Reply:
        """Errors: WordsightError with the server's own words, once asking again has not helped."""
        attempt = 0
        while True:
            try:
                return self._once(question, seed)
            except _Failed as failed:
                more = attempt < min(self.settings.retries, failed.more)
                if not more or (failed.pause or 0) > LONGEST_PAUSE or self.stopping.is_set():
                    raise WordsightError(str(failed)) from failed
                pause = failed.pause or random.uniform(0.5, 1) * min(8.0, 0.5 * 2**attempt)
                if pause >= 5:
                    log.info(f"{self.at} asks for a pause of {pause:.0f} s")
                self.stopping.wait(pause)
                attempt += 1

    def stop(self) -> None:
        """Nothing is asked any more, and what is under way ends at once."""
        self.stopping.set()
        for future in list(self.under_way):
            future.cancel()

    def _once(self, question: str, seed: int) -> Reply:
        asked = self._request(question, seed)
        future = self.portal.start_task_soon(self._post, json.dumps(asked).encode())
        self.under_way.add(future)
        try:
            status, headers, body = future.result()
        finally:
            self.under_way.discard(future)
        text, loaded = read_body(body)
        if 200 <= status < 300:
            reply = read_reply(loaded)
            if reply is not None:
                return Reply(masked(reply.text, self.key), reply.cut, self._said(reply.words))
            if not isinstance(loaded, dict) or not (words := words_of(loaded)):
                raise self._no_answer(text, status)
            raise self._refusal(status_in(loaded), headers, words)
        if status in (400, 422) and self._does_without(asked, text):
            return self._once(question, seed)
        raise self._refusal(status, headers, words_of(loaded) or text)

    def _does_without(self, asked: dict[str, Any], text: str) -> bool:
        """Whether a refusal names a parameter that we can do without, or call otherwise; it is told once."""
        if not REFUSED.search(text):
            return False
        if "max_tokens" in asked and "max_completion_tokens" in text:
            self.limit = "max_completion_tokens"
            return True
        named = [name for name in ("temperature", "seed") if name in asked and name in text]
        for name in set(named) - self.left_out:
            self.left_out.add(name)
            log.warning(f"{self.at} takes no {name}: it is asked without one, and answers by its own")
        return bool(named)

    def _request(self, question: str, seed: int) -> dict[str, Any]:
        settings = self.settings
        asked = {
            "model": settings.model,
            "messages": [{"role": "user", "content": f"{question} {settings.instruction}".strip()}],
            "temperature": settings.temperature,
            "seed": seed,
            self.limit: settings.max_tokens,
        }
        return {name: value for name, value in asked.items() if name not in self.left_out}

    async def _post(self, content: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body, which is bounded. Errors: _Failed in words."""
        import anyio
        import httpx2

        longest = 2 * self.settings.timeout
        try:
            with anyio.fail_after(longest):
                sent = {"Content-Type": "application/json"}
                async with self.client.stream("POST", self.url, content=content, headers=sent) as response:
                    return response.status_code, response.headers, await self._body(response)
        except TimeoutError as error:
            raise _Failed(f"{self.at} took longer than {longest:g} s for one answer{self._slow}") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            says = self._said(str(error)) or "it takes no connection"
            raise _Failed(
                f"no server answers at {self.at} ({says}); is it running, and is base_url right?", math.inf
            ) from error
        except httpx2.TimeoutException as error:
            raise _Failed(
                f"{self.at} sent nothing for {self.settings.timeout:g} s{self._slow}", more=1
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise _Failed(f"{self.at} broke off its answer: {self._said(str(error))}", math.inf) from error

    @property
    def _slow(self) -> str:
        return "; fewer workers, a smaller model or a longer timeout=... may help"

    async def _body(self, response: httpx2.Response) -> bytes:
        body, most = bytearray(), self.settings.max_bytes
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > most:
                break
        content = unpacked(bytes(body[: most + 1]), response.headers.get("content-encoding", ""), most)
        if content is None:
            raise _Failed(f"{self.at} answered in a packed form that cannot be read")
        if len(content) > most and response.is_success:
            raise _Failed(
                f"{self.at} answered with more than {most:,} bytes, which is no sentence; max_bytes=... "
                f"reads more"
            )
        return content[:most]

    def _refusal(self, status: int, headers: httpx2.Headers, words: str) -> _Failed:
        """What went wrong at which address, and what would mend it, with the server's own words."""
        at, settings = self.at, self.settings
        said = self._said(words) or f"status {status}, without a word"
        pause = seconds_to_wait(headers.get("retry-after"))
        if pause is not None and pause > LONGEST_PAUSE and (status == 429 or status >= 500):
            return _Failed(
                f"{at} asks to wait {pause:.0f} s; run the same command then, it goes on from here: {said}"
            )
        if status in (401, 403):
            return _Failed(f"{at} refused {self._key_named()}: {said}")
        if status == 404:
            return _Failed(
                f"{at} does not know model {settings.model!r}, or is no OpenAI-compatible address (it "
                f"usually ends in /v1): {said}"
            )
        if status == 429:
            return _Failed(
                f"{at} still limits requests after {settings.retries} retries; run the same command later, "
                f"it goes on from here: {said}",
                math.inf,
                pause,
            )
        if 300 <= status < 400:
            target = self._said(headers.get("location", "another address"))
            return _Failed(f"{at} sends us on to {target}; if you trust that, give it as base_url")
        again = math.inf if status >= 500 or status in (408, 409, 425) else 0
        return _Failed(f"{at} did not answer for model {settings.model!r}: {said}", again, pause)

    def _key_named(self) -> str:
        if self.key:
            return f"the API key in environment variable {self.settings.api_key_env}"
        return f"us without an API key, and environment variable {self.settings.api_key_env} is not set"

    def _no_answer(self, text: str, status: int) -> _Failed:
        said = self._said(text) or f"status {status} and nothing else"
        return _Failed(
            f"{self.at} answered, but not as an OpenAI-compatible server does; its base_url usually ends in "
            f"/v1. It sent: {said}"
        )

    def _said(self, words: str) -> str:
        """A server's words in a message: first without the key, however short of it, and then cut short."""
        return " ".join(masked(words, self.key, strictly=True).split())[:SHOWN]


# -- the key and the address --


def read_key(settings: WriterSettings) -> str | None:
    """The key; None where a server of one's own may go without. Errors: WordsightError, which shows none."""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key and not settings.base_url:
        raise WordsightError(
            f"no API key: environment variable {settings.api_key_env} is not set. Set it, "
            "or give base_url= (a server of your own needs none) or local=true"
        )
    if not re.fullmatch(r"[!-~]*", key):
        raise WordsightError(
            f"the API key in environment variable {settings.api_key_env} holds spaces or signs that no key "
            "has; was it copied whole?"
        )
    return key or None


def masked(text: str, key: str | None, strictly: bool = False) -> str:
    """`text` without the key, whole or in part: any six characters in a row of it.

    A word that stands in for a key (`EMPTY`, `ollama`) is no secret. Of a short key of letters alone, such as
    `lm-studio`, sentences lose only the whole, since a part of it may be a word; messages, read `strictly`,
    lose both."""
    if not key or (len(key) < 8 and key.isalpha()):
        return text
    mere_words = len(key) < 16 and not any(map(str.isdigit, key)) and not strictly
    size = len(key) if mere_words else min(len(key), PIECE)
    lower = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
    key, folded = key.translate(lower), text.translate(lower)
    pieces = {key[i : i + size] for i in range(len(key) - size + 1)}
    shown: list[str] = []
    hidden_to = 0
    for i in range(len(text) - size + 1):
        if folded[i : i + size] in pieces:
            shown += [text[hidden_to:i], "***"] if i > hidden_to or not shown else []
            hidden_to = i + size
    return "".join([*shown, text[hidden_to:]])


def _address(settings: WriterSettings) -> httpx2.URL:
    import httpx2

    try:
        url = httpx2.URL(settings.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise WordsightError("base_url is no address; give one such as http://localhost:8000/v1") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise WordsightError(
            f"base_url={str(url.copy_with(userinfo=b'', query=None))!r} is no address of a server; give one "
            "such as http://localhost:8000/v1"
        )
    return url.copy_with(path=url.path.rstrip("/") + "/chat/completions")
