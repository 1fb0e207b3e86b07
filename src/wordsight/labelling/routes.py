"""Routes: what the labelling page asks, under /v1/label.

Annotations are values here, and not texts as elsewhere: FastAPI reads limits out of them."""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from wordsight.labelling.session import SIZES, Session
from wordsight.serve.refused import Refused

MOST = 200  # images that are named at once
ONE = Annotated[str, Field(min_length=1, max_length=64, description="An image's id")]


class Labelled(BaseModel):
    """An image and its class."""

    id: ONE
    label: Annotated[str, Field(min_length=1, max_length=200)]


class NewClass(BaseModel):
    """A class that was not there."""

    name: Annotated[str, Field(min_length=1, max_length=200)]


class Skipped(BaseModel):
    """An image that is asked for last."""

    id: ONE


def add_routes(app: FastAPI, session: Session) -> None:
    """All of /v1/label. The session waits for locks and the disk, so each call has a thread."""

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """What this server can, in the form that `serve` says it in."""
        return JSONResponse({"object": "list", "data": [{"object": "model", **session.about()}]})

    @app.get("/v1/label/state")
    async def state() -> JSONResponse:
        """Classes, progress, and how right the method is by now."""
        return await _in_thread(session.state)

    @app.get("/v1/label/next")
    async def following(count: Annotated[int, Query(ge=1, le=MOST)] = 1) -> JSONResponse:
        """The images to label next, with what the method thinks they show."""
        return await _in_thread(session.next, count)

    @app.get("/v1/label/labels")
    async def labels(last: Annotated[int | None, Query(ge=1)] = None) -> JSONResponse:
        """All images that have a label, or the last ones, the newest last."""
        return JSONResponse({"images": await asyncio.to_thread(session.labelled, last)})

    @app.post("/v1/label")
    async def label(given: Labelled) -> JSONResponse:
        """Keep a label: a new one, or another than before."""
        _known(session, given.id)
        return await _in_thread(session.label, given.id, given.label)

    @app.post("/v1/label/classes")
    async def add_class(given: NewClass) -> JSONResponse:
        """One class more, known by its name until it has a label; the state."""
        return await _in_thread(session.add_class, given.name)

    @app.post("/v1/label/skip")
    async def skip(given: Skipped) -> JSONResponse:
        """Ask for an image last."""
        _known(session, given.id)
        return await _in_thread(session.skip, given.id)

    @app.post("/v1/label/undo")
    async def undo() -> JSONResponse:
        """Take the last label back."""
        return await _in_thread(session.undo)

    @app.get(
        "/v1/label/images/{one}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def image(one: str, size: Annotated[int, Query(ge=SIZES.start, lt=SIZES.stop)] = 512) -> Response:
        """An image of the folder, no side longer than `size`."""
        _known(session, one)
        content = await asyncio.to_thread(session.copy, one, size)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _known(session: Session, one: str) -> None:
    if one not in session.pictures:
        raise Refused(404, "there is no such image in the folder")


async def _in_thread(call: Any, *arguments: Any) -> JSONResponse:
    return JSONResponse(await asyncio.to_thread(call, *arguments))
