"""Refused: why a request gets no answer, in the one form that every error has, and without a path."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from wordsight.config import WordsightError
from wordsight.data.images import Unreadable
from wordsight.files import printable
from wordsight.serve.worker import Busy

TYPES = {  # of an error, by its code
    400: "invalid_request",
    401: "invalid_key",
    403: "forbidden",
    404: "not_found",
    405: "invalid_request",
    408: "too_slow",
    413: "too_large",
    415: "invalid_request",
    422: "invalid_request",
    429: "busy",
    500: "server_error",
    503: "not_ready",
}
BUSY = "more is asked than can wait; ask again in a second"
# an absolute path among other words: two parts at least, so that a class "and/or" stays
PATH = re.compile(r"(?<![\w:/.<])~?/(?:[^\s/'\",;:()]+/)+[^\s/'\",;:()]*")
NO_FILE = "Value error, Expected UploadFile"  # as FastAPI says that a text came in place of a file
LONGEST = 600  # signs of a message: what was sent is not sent back

log = logging.getLogger("wordsight")


class Refused(HTTPException):
    """A request that gets no answer: the message says what was wrong, which value, and what would be
    right.
    """

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(code, message, dict(headers or {}))


def body_of(code: int, message: str) -> dict[str, Any]:
    """An error as JSON."""
    kind = TYPES.get(code, "invalid_request" if code < 500 else "server_error")
    return {"error": {"message": plain(message), "type": kind, "code": code}}


def answer_of(code: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse(body_of(code, message), code, dict(headers or {}))


def plain(message: str) -> str:
    """A message without paths of this machine and without control characters."""
    short = message if len(message) <= LONGEST else message[:LONGEST] + " ..."
    return printable(PATH.sub(_last, short.replace(str(Path.home()), "~").replace(os.getcwd() + "/", "")))


def _last(found: re.Match[str]) -> str:
    return found[0].rstrip("/").rpartition("/")[2]


def unexpected(error: BaseException) -> JSONResponse:
    """What is said of an error that nobody foresaw: a number, under which the log has it."""
    number = uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=error)
    return answer_of(500, f"something went wrong here; the server's log has it as error {number}")


def add_handlers(app: FastAPI) -> None:
    """Whatever is raised becomes an answer of one form."""

    async def http(_: Request, error: Any) -> JSONResponse:
        many = error.status_code == 400 and str(error.detail).startswith("Too many")  # parts of a form
        return answer_of(413 if many else error.status_code, str(error.detail), error.headers)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        first, *others = error.errors()
        if first["msg"].startswith(NO_FILE):
            field = next(part for part in first["loc"] if part != "body")
            return answer_of(422, f"{field}: it came as a text; send a file, with curl -F {field}=@NAME")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        more = f" (and {len(others)} more)" if others else ""
        return answer_of(422, f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}")

    async def mistaken(_: Request, error: Any) -> JSONResponse:
        return answer_of(400, str(error))

    async def busy(_: Request, error: Any) -> JSONResponse:
        return answer_of(429, BUSY, {"Retry-After": "1"})

    async def other(_: Request, error: Any) -> JSONResponse:
        return unexpected(error)

    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(WordsightError, mistaken)
    app.add_exception_handler(Unreadable, mistaken)
    app.add_exception_handler(Busy, busy)
    app.add_exception_handler(Exception, other)
