"""A server on loopback that gives the replies a test wants, for what a real one does on a bad day."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """What a server sends: `body` as text, bytes or JSON; or a function that writes to the socket itself."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}


@contextmanager
def serving(reply: Callable[[dict], Any]) -> Iterator[tuple[str, list[dict]]]:
    """The address of a server, and the requests that it saw. `reply(request)` gives a `Sent`, or the text of
    an answer."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"key": self.headers["Authorization"], **asked})
            sent = reply(seen[-1])
            with suppress(OSError):
                self.send(sent if isinstance(sent, Sent) else Sent(chat(sent)))

        def send(self, sent: Sent) -> None:
            if callable(sent.body):
                self.close_connection = True
                sent.body(self)
                return
            body = sent.body if isinstance(sent.body, (bytes, str)) else json.dumps(sent.body)
            body = body if isinstance(body, bytes) else body.encode()
            self.send_response(sent.status)
            for name, value in {"Content-Length": str(len(body)), **sent.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, request, client_address):
            """The client went away: that is what some tests are about."""

    httpd = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def chat(content: Any, reason: str = "stop", **message: Any) -> dict[str, Any]:
    """An answer in the form of chat completions."""
    message = {"role": "assistant", "content": content, **message}
    return {"id": "1", "choices": [{"index": 0, "finish_reason": reason, "message": message}]}
