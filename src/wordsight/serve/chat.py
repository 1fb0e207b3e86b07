"""Chat: OpenAI's chat completions, asked of the LM of a model that is served."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from wordsight.backbones.generator import Writing
from wordsight.serve.incoming import Sent, checked, text_of
from wordsight.serve.models import Model
from wordsight.serve.refused import Refused, body_of
from wordsight.serve.service import Service
from wordsight.serve.settings import MB, Limits
from wordsight.serve.written import Replied, Said, Shown, Talk

TOKENS = 128  # of a reply, where a request names no number, and half of what the LM reads at most


class ImageUrl(BaseModel):
    """An image by a data: URL, or a URL on a host that is allowed."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """What one said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """A chat whose reply is wanted. Fields of OpenAI's that are not here are not read."""

    model_config = ConfigDict(extra="ignore")

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=1000)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**53)
    n: int | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None


class Reply(BaseModel):
    role: str = "assistant"
    content: str


class Choice(BaseModel):
    index: int
    message: Reply
    finish_reason: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The reply."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Conversation:
    """One request of a chat, on its way through the LM."""

    def __init__(self, service: Service, model: Model, asked: Asked):
        self.service, self.model, self.asked = service, model, asked
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.how = _how(asked, service.limits, model.written.generator.context if model.written else None)
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def whole(self) -> dict[str, Any]:
        """The reply as one answer."""
        talk = await self._talk()
        replied = await self._replied(talk)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": replied.text},
            "finish_reason": self._end(replied),
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": _usage(replied)}

    async def begun(self) -> AsyncIterator[bytes]:
        """The reply in pieces, as server-sent events. Errors before the first piece are raised here."""
        talk = await self._talk()
        task = asyncio.ensure_future(self._replied(talk))
        task.add_done_callback(lambda _: self._pieces.put_nowait(None))
        try:
            first = await self._pieces.get()
        except asyncio.CancelledError:
            talk.gone.set()
            raise
        if first is None and task.exception() is not None:
            await task
        return self._events(talk, task, first)

    async def _events(
        self, talk: Talk, task: asyncio.Task[Replied], piece: str | None
    ) -> AsyncIterator[bytes]:
        try:
            yield self._event({"role": "assistant", "content": ""})
            while piece is not None:
                yield self._event({"content": piece})
                piece = await self._pieces.get()
            if (error := task.exception()) is not None:
                yield _line(body_of(500, str(error) if isinstance(error, ValueError) else "it broke off"))
                return
            replied = task.result()
            yield self._event({}, self._end(replied))
            if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
                usage = {"choices": [], "usage": _usage(replied)}
                yield _line(self._head("chat.completion.chunk") | usage)
            yield b"data: [DONE]\n\n"
        finally:
            talk.gone.set()

    async def _replied(self, talk: Talk) -> Replied:
        written = self.model.written
        assert written is not None  # of a model that can chat
        try:
            (replied,) = await self.service.done(self.model.writer, written.replies, [talk])
            return replied
        except asyncio.CancelledError:
            talk.gone.set()
            raise

    async def _talk(self) -> Talk:
        """The chat as the LM is asked it. Errors: Refused for a form that it cannot have."""
        loop = asyncio.get_running_loop()
        turns, last = await self._turns()
        seed = 1 if self.asked.seed is None else self.asked.seed

        def hear(piece: str) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        return Talk(turns, last, self.how, seed, hear)

    async def _turns(self) -> tuple[list[tuple[Said, str]], Said]:
        """What was said with the replies, and what was said last."""
        told: list[str] = []  # by the system, before what the user says next
        asked: list[Said] = []  # by the user, with no reply yet
        turns: list[tuple[Said, str]] = []
        for message in self.asked.messages:
            said = await self._said(message)
            if message.role in ("system", "developer"):
                told.append(said.text)
            elif message.role == "user":
                asked.append(said._replace(text="\n\n".join([*told, said.text])))
                told = []
            else:
                turns.append((_joined(asked), said.text))
                asked = []
        return turns, _joined(asked)

    async def _said(self, message: Message) -> Said:
        parts = message.content
        if isinstance(parts, str):
            return Said(text_of(parts, "messages", self.service.limits.max_text))
        texts = [part.text or "" for part in parts if part.type == "text"]
        urls = [part.image_url.url for part in parts if part.image_url is not None]
        if len(urls) > 1 or (urls and message.role != "user"):
            raise Refused(422, "messages: one image stands in a message, and it is a user's")
        text = text_of("\n".join(texts), "messages", self.service.limits.max_text)
        return Said(text, await self._image(urls[0]) if urls else None)

    async def _image(self, url: str) -> Shown:
        if "answer" not in self.model.abilities:
            raise Refused(422, "messages: this model has no image input")
        sent = _in_url(url, self.service.limits) or self.service.linked(url)
        (fetched,) = await self.service.fetched([sent])
        return Shown(fetched.load, self.service.limits.max_pixels)

    def _end(self, replied: Replied) -> str:
        return "length" if replied.new_tokens >= self.how.max_new_tokens else "stop"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.id}

    def _event(self, delta: dict[str, str], end: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        return _line(self._head("chat.completion.chunk") | {"choices": [choice]})


def check(asked: Asked, limits: Limits) -> None:
    """Errors: Refused for what OpenAI's API can and this cannot."""
    if asked.n not in (None, 1):
        raise Refused(422, "n: one reply is written")
    for name in ("stop", "tools"):
        if getattr(asked, name):
            raise Refused(422, f"{name}: is not known here; leave it out")
    parts = [part for one in asked.messages if isinstance(one.content, list) for part in one.content]
    images = sum(part.image_url is not None for part in parts)
    if images > limits.max_images:
        raise Refused(413, f"messages: {images} images are more than {limits.max_images}")


def _how(asked: Asked, limits: Limits, context: int | None) -> Writing:
    usual = TOKENS if context is None else min(TOKENS, context // 2)
    wanted = asked.max_completion_tokens or asked.max_tokens or usual
    temperature = asked.temperature or 0.0
    return Writing(
        max_new_tokens=min(wanted, limits.max_tokens),
        temperature=temperature,
        top_p=(asked.top_p or 1.0) if temperature else 1.0,
    )


def _joined(asked: Sequence[Said]) -> Said:
    """Messages of the user without a reply between them, as one. Errors: Refused for none."""
    text = "\n".join(said.text for said in asked if said.text.strip())
    if not text:
        raise Refused(422, "messages: a text of the user stands before each reply, and at the end")
    images = [said.image for said in asked if said.image is not None]
    if len(images) > 1:
        raise Refused(422, "messages: two images stand before one reply; ask about one at a time")
    return Said(text, images[0] if images else None)


def _in_url(url: str, limits: Limits) -> Sent | None:
    """The image inside a data: URL; None for any other URL."""
    if not url.startswith("data:"):
        return None
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Refused(422, "messages: a data: URL holds an image in base64: data:image/png;base64,...")
    if len(content) > limits.max_image_mb * MB * 4 // 3 + 4:
        raise Refused(413, f"messages: an image is larger than {limits.max_image_mb} MB")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "messages: what stands in a data: URL is no base64") from error
    return Sent("image", lambda: checked(data))


def _usage(replied: Replied) -> dict[str, int]:
    total = replied.prompt_tokens + replied.new_tokens
    return {
        "prompt_tokens": replied.prompt_tokens,
        "completion_tokens": replied.new_tokens,
        "total_tokens": total,
    }


def _line(value: Any) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "backslashreplace")
