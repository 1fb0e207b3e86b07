"""Serve: runs behind an HTTP API, with a page for people (docs/serve.md)."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wordsight.config import WordsightError
from wordsight.extras import needed
from wordsight.serve.settings import Settings

if TYPE_CHECKING:
    from wordsight.serve.guard import Guard, State

log = logging.getLogger("wordsight")
NOISY = ("python_multipart", "uvicorn.error")  # that warn of each request which is none
OPTIONS: dict[str, Any] = {  # of uvicorn
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "lifespan": "on",
    "ws": "none",
    "timeout_graceful_shutdown": 5,
}


def serve(runs: Sequence[str], settings: Settings | None = None) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and then finish those under way.

    `runs` are what the command line calls RUN: run folders, hf:org/name, folders of an assistant, or
    image-text-to-text models. Errors: WordsightError for what cannot be served."""

    def make(own: Settings, address: str) -> tuple[Guard, State]:
        log.info("loading %s", ", ".join(runs))
        from wordsight.serve.app import make_app

        return make_app(runs, own, address)

    run_until_told(make, settings or Settings())


def run_until_told(make: Callable[[Settings, str], tuple[Guard, State]], settings: Settings) -> None:
    """Answer requests with the application that `make` gives, from settings and the address, until SIGTERM or
    Ctrl-C; then finish those under way. Errors: WordsightError for a port that is taken, or what its
    beginning raised."""
    with needed("serve", "serve"):
        import prometheus_client  # noqa: F401 (looked for before models are loaded)
        import python_multipart  # noqa: F401
        import uvicorn
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _listening(settings.host, settings.port) as listening:
        address = f"http://{settings.host}:{listening.getsockname()[1]}"
        guard, state = make(settings, address)
        from wordsight.serve.server import Server, protocol

        config = uvicorn.Config(guard, http=protocol(settings.limits), **OPTIONS)
        server = Server(config, state, settings.limits.drain_seconds)
        server.run(sockets=[listening])
    if state.failure is not None:
        raise state.failure
    if state.loading is not None:
        atexit.register(_leave, state.loading)


def _leave(loading: threading.Thread) -> None:
    """End the process at once where it would crash, as a thread is still inside torch."""
    if loading.is_alive():
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise WordsightError(
            f"cannot listen at {host}, port {port}: {why}; give another --host or --port"
        ) from error
