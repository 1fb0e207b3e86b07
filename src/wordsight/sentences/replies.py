"""Replies: what the body of a server's answer holds, in any of the forms in which servers send text, refusals
and errors."""

from __future__ import annotations

import contextlib
import math
import re
import time
import zlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from wordsight.files import WordsightError, parse_json

# under which names a server says what is wrong
WORDS = (
    "message",
    "error",
    "detail",
    "details",
    "msg",
    "error_message",
    "error_description",
    "reason",
    "title",
)


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    text: str
    cut: bool = False  # whether max_tokens ended it
    words: str = ""  # what it says where it declines to answer


def unpacked(body: bytes, encoding: str, most: int) -> bytes | None:
    """The body as it was before it was packed, at most one byte more than `most`; None where that fails.
    We ask for no packing, which not every server heeds.
    """
    if encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most + 1)
    return None


def read_body(body: bytes) -> tuple[str, Any]:
    """A body as text, and what its JSON holds; None where it is no JSON."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:  # a guess at what it says would end in a file
        return "bytes that are not UTF-8: " + body.decode("utf-8", "backslashreplace"), None
    with contextlib.suppress(WordsightError):
        return text, parse_json(text, "the answer", strict=False)
    return text, None


def read_reply(loaded: Any) -> Reply | None:
    """The first choice of an answer in OpenAI's form, of chat or of completions; None where there is none."""
    choices = loaded.get("choices") if isinstance(loaded, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("error") or choice.get("finish_reason") == "error":
        return None
    message, text = choice.get("message"), choice.get("text")
    if message is None and isinstance(text, str):  # the older form, of completions
        message = {"content": text}
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    content = [content] if isinstance(content, dict) and "text" in content else content
    if not isinstance(content, (str, list, type(None))):
        return None
    text, reason = _joined(content), choice.get("finish_reason")
    if not text and loaded.get("error"):
        return None
    refused = message.get("refusal") or ("content_filter" if reason == "content_filter" else "")
    return Reply(text, reason == "length", refused if isinstance(refused, str) else "")


def _joined(content: Any) -> str:
    """The text of a content, which may be a list of parts; thoughts, pictures and tools have none."""
    parts = [content] if isinstance(content, str) else content or []
    joined = ""
    for part in parts:
        text = part
        if isinstance(part, dict):
            text = part.get("text") if part.get("type", "text") in ("text", "output_text") else ""
            text = text.get("value") if isinstance(text, dict) else text
        if isinstance(text, str) and text:
            joined += (" " if re.search(r"[.!?]\Z", joined) and text[0].isalnum() else "") + text
    return joined


def words_of(said: Any, depth: int = 4) -> str:
    """What a server says in an error: a text, or the texts under the names that servers use for it."""
    if isinstance(said, str) or depth == 0:
        return said if isinstance(said, str) else ""
    parts = []
    if isinstance(said, dict):
        parts = [words_of(said[name], depth - 1) for name in WORDS if name in said]
    elif isinstance(said, list):
        parts = [words_of(part, depth - 1) for part in said[:3]]
    return ": ".join(dict.fromkeys(filter(None, parts)))


def status_in(loaded: dict[str, Any]) -> int:
    """The status that an error under status 200 would have had, where it names one."""
    inner = loaded.get("error")
    for said in (inner, loaded):
        code = said.get("code", said.get("status")) if isinstance(said, dict) else None
        if re.fullmatch(r"[45]\d\d", digits := str(code)[:9]):
            return int(digits)
    return 200


def seconds_to_wait(value: str | None) -> float | None:
    """The seconds of a Retry-After, which may be a date; None for anything else."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, IndexError):
            return None
    return seconds if 0 < seconds < math.inf else None
