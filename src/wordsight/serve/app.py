"""App: the routes of the HTTP API (docs/serve.md)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from wordsight import __version__
from wordsight.serve import forms
from wordsight.serve.guard import Guard, State
from wordsight.serve.meters import KIND, Meters
from wordsight.serve.refused import Refused, add_handlers
from wordsight.serve.routes import add_routes, form_limits
from wordsight.serve.service import Service
from wordsight.serve.settings import Settings

PAGE = Path(__file__).parent / "page.html"
NONE = "'none'"
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

log = logging.getLogger("wordsight")


def make_app(runs: Sequence[str], settings: Settings, address: str = "") -> tuple[Guard, State]:
    """The application of a server, whose models are loaded when it starts. `address` is where it listens."""
    meters, state = Meters(), State()
    service = Service(settings, meters)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        # nobody who ends the server meanwhile waits for it
        state.loading = threading.Thread(target=_load, args=(service, runs, state, address), daemon=True)
        state.loading.start()
        yield
        if state.ready:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Wordsight",
        version=__version__,
        lifespan=life,
        docs_url=None,  # which would load scripts of a third party
        redoc_url=None,
        form_limits=form_limits(settings.limits),  # pyright: ignore[reportArgumentType]
        responses=forms.ERRORS,
    )
    add_handlers(app)

    def starting() -> str | None:
        return None if state.ready else "starting"

    def measure() -> None:
        for model in service.models.values():
            meters.waiting.labels(model.id).set(model.waiting)

    add_open(app, state, meters, starting, measure)
    add_routes(app, service)
    guard = Guard(app, settings, state, meters)
    return guard, state


def _load(service: Service, runs: Sequence[str], state: State, address: str) -> None:
    """Open what is served, while /health and /ready are answered already."""
    try:
        service.open(runs)
        state.ready = True
        log.info("serving %s at %s; Ctrl-C ends it", ", ".join(service.models), address)
    except BaseException as error:
        state.failure = error


def add_open(
    app: FastAPI,
    state: State,
    meters: Meters,
    starting: Callable[[], str | None],
    measure: Callable[[], None] = lambda: None,
) -> None:
    """The page, and what operators ask. `starting` says what is waited for before requests are taken,
    `measure` sets the meters that are read when they are asked for."""
    page, policy = _page()

    @app.get("/", response_class=HTMLResponse, responses={200: {"content": {"text/html": {}}}})
    async def index() -> Response:
        """The page."""
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> forms.Health:
        """Whether the process answers."""
        return forms.Health(status="ok")

    @app.get("/ready")
    async def ready() -> forms.Health:
        """Whether requests are taken."""
        if why := "ending" if state.ending else starting():
            raise Refused(503, why)
        return forms.Health(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        measure()
        return Response(meters.text(), media_type=KIND)


def _page() -> tuple[str, str]:
    """The page, and what a browser may load for it: its own inline parts, and this server's answers."""
    text = PAGE.read_text(encoding="utf-8")
    own: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in INLINE.findall(text):
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        own[kind].append(f"'sha256-{digest}'")
    allowed = [f"{kind}-src {' '.join(hashes) or NONE}" for kind, hashes in own.items()]
    rest = f"default-src {NONE}; connect-src 'self'; img-src 'self' blob: data:; base-uri {NONE}; "
    return text, f"{rest}form-action {NONE}; frame-ancestors {NONE}; {'; '.join(allowed)}"
