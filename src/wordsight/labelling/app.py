"""App: a labelling session behind the server's gate (docs/label.md)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI

from wordsight import __version__
from wordsight.labelling.routes import add_routes
from wordsight.labelling.session import Session
from wordsight.serve import forms
from wordsight.serve.app import add_open
from wordsight.serve.guard import Guard, State
from wordsight.serve.meters import Meters
from wordsight.serve.refused import add_handlers
from wordsight.serve.settings import Settings

log = logging.getLogger("wordsight")


def make_app(
    session: Session, begin: Callable[[], None], settings: Settings, address: str = ""
) -> tuple[Guard, State]:
    """The application of a session. It answers at once; `begin` encodes the images meanwhile, and begins to
    fit."""
    meters, state = Meters(), State()
    state.ready = True

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        beginning = asyncio.ensure_future(asyncio.to_thread(_begin, begin, state))
        log.info(
            "labelling %s at %s; Ctrl-C ends it, labels are in %s", session.folder, address, session.kept.path
        )
        yield
        await asyncio.to_thread(session.close)
        await beginning

    app = FastAPI(
        title="Wordsight labelling",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        responses=forms.ERRORS,
    )
    add_handlers(app)
    add_routes(app, session)

    def starting() -> str | None:
        return None if session.rows else "the images are being encoded"

    add_open(app, state, meters, starting)
    return Guard(app, settings, state, meters), state


def _begin(begin: Callable[[], None], state: State) -> None:
    try:
        begin()
    except BaseException as error:
        state.failure = error
