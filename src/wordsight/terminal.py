"""What the command line prints: results to stdout, sentences to stderr, both safe on any terminal.

Class names, file names and answers of servers are other people's text: no control character of theirs
reaches the terminal, and an encoding that lacks a sign writes it out instead of ending in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from wordsight.files import moves, printable

log = logging.getLogger("wordsight")


class Sentences(logging.Handler):
    """Writes what the library says to stderr, a line a message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(record.getMessage()), file=sys.stderr)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Within it, messages of the logger "wordsight" from INFO on go to stderr, and no stream has a strict
    encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # of several processes one speaks; an error may come from any of them
    handler, level = Sentences(logging.ERROR if int(os.environ.get("RANK", "0")) else 0), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def out(text: str = "") -> None:
    """One line, or several, of a verb's answer."""
    print(printable(text))


def out_json(value: Any) -> None:
    print(json_text(value))


def json_text(value: Any) -> str:
    """JSON whose text holds every name as it is, with the signs that steer a terminal written as \\uXXXX.

    So are bytes of file names that are not UTF-8, and every sign that stdout's encoding lacks: Python's
    `json.loads` gives them back."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(sys.stdout), indent=1, allow_nan=False)
    return re.sub(r"[^\n -~]", _steering, text)


def _steering(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}" if moves(found[0]) else found[0]


def _is_unicode(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
