"""What servers answer: thoughts in every form, bodies of every wrong shape, connections that end or hang."""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from inputs import Input
from inputs.calls import nothing

TRUE = "A small cat with grey fur."
THOUGHTS = {
    "think": f"<think>secret plan</think>{TRUE}",
    "think with blanks": f"<think>\nsecret\nplan\n</think>\n\n{TRUE}",
    "think without its opening": f"secret plan</think>{TRUE}",
    "thinking": f"<thinking>secret plan</thinking>{TRUE}",
    "think in brackets": f"[THINK]secret plan[/THINK]{TRUE}",
    "thought": f"<thought>secret plan</thought>{TRUE}",
    "reasoning": f"<reasoning>secret plan</reasoning>{TRUE}",
    "capitals": f"<THINK>secret plan</THINK>{TRUE}",
    "attributes": f'<think id="1">secret plan</think>{TRUE}',
    "harmony": "<|channel|>analysis<|message|>secret plan<|end|><|start|>assistant<|channel|>final<|message|>"
    f"{TRUE}<|return|>",
    "two thoughts": f"<think>secret</think>{TRUE}<think>secret again</think>",
    "a thought in a thought": f"<think>secret <think>more secret</think> secret</think>{TRUE}",
    "stop tokens": f"{TRUE}<|im_end|>",
    "end of text": f"{TRUE}<|endoftext|>",
    "s": f"{TRUE}</s>",
    "eot": f"{TRUE}<|eot_id|>",
    "turn": f"{TRUE}<end_of_turn>",
    "seed thoughts": f"<seed:think>secret plan</seed:think>{TRUE}",
    "begin of thought": f"<|begin_of_thought|>secret plan<|end_of_thought|>{TRUE}",
    "unicode marks": f"\u25c1think\u25b7secret plan\u25c1/think\u25b7{TRUE}",
}
UNFINISHED = {"think without an end": "<think>secret plan", "only a thought": "<think>secret plan</think>"}


def answer(content: Any, **more: Any) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            **more,
        }
    )


BODIES: dict[str, tuple[int, str | bytes]] = {
    "no choices": (200, answer("x").replace("choices", "chioces")),
    "an empty list of choices": (200, '{"choices": []}'),
    "choices that are an object": (200, '{"choices": {"0": 1}}'),
    "choices that are texts": (200, '{"choices": ["abc"]}'),
    "choices that are null": (200, '{"choices": [null]}'),
    "a choice without a message": (200, '{"choices": [{"index": 0}]}'),
    "a message that is null": (200, '{"choices": [{"index": 0, "message": null}]}'),
    "content that is null": (200, answer(None)),
    "content that is a number": (200, answer(5)),
    "content that is an object": (200, answer({"a": 1})),
    "content that is an empty list": (200, answer([])),
    "a list": (200, "[1]"),
    "a text": (200, '"x"'),
    "null": (200, "null"),
    "no bytes": (200, ""),
    "JSON that is cut": (200, '{"choices": ['),
    "deep JSON": (200, "[" * 100_000),
    "a huge number": (200, '{"choices":' + "9" * 6_000 + "}"),
    "a web page": (200, "<html>hi"),
    "an error under status 200": (200, '{"error": {"message": "model is loading"}}'),
    "an error that is a text, under 200": (200, '{"error": "model is loading"}'),
    "bytes that are no UTF-8": (
        200,
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"\xff"}}]}',
    ),
    "an endless answer": (200, answer("word " * 2_000_000)),
    "the key in an error": (401, '{"error": {"message": "Incorrect API key provided: sk-secret0123456789"}}'),
    "the key, cut short, in an error": (400, '{"error": {"message": "bad key sk-secret01234*"}}'),
    "an error that is a list": (400, '[{"error": "no"}]'),
    "an error that is no JSON": (500, "boom"),
    "an error without bytes": (503, ""),
    "an unknown status": (299, "x"),
    "not found": (404, '{"detail": "Not Found"}'),
    "too many requests": (429, '{"error": {"message": "slow down"}}'),
    "an error with an escape": (400, '{"error": {"message": "\\u001b[2J bad"}}'),
}
RIGHT: dict[str, tuple[int, str | bytes]] = {
    "plain": (200, answer(TRUE)),
    "parts": (200, answer([{"type": "text", "text": TRUE}])),
    "parts, a thought first": (
        200,
        answer([{"type": "thinking", "thinking": "secret"}, {"type": "text", "text": TRUE}]),
    ),
    "more fields": (200, answer(TRUE, usage=None, extra={"a": 1})),
    "half a pair of surrogates": (200, answer(TRUE + "\ud83d")),
    "escapes": (200, answer(f"\x1b[31m{TRUE}\x1b[0m\x07")),
    "a content type of its own": (201, answer(TRUE)),
} | {name: (200, answer(text)) for name, text in THOUGHTS.items()}
KINDS = {
    **BODIES,
    **RIGHT,
    **{name: (200, answer(text)) for name, text in UNFINISHED.items()},
    "closes at once": (0, ""),
    "says more bytes than come": (0, "short"),
    "hangs": (0, "hang"),
    "drips": (0, "drip"),
}


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """The client has gone, as it does from an answer without end: no word of ours."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind = "plain"
    pause = 0.0

    def log_message(self, *words: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.pause)
        status, body = KINDS[self.kind]
        if not status and body == "hang":
            time.sleep(600)
        content = body if isinstance(body, bytes) else body.encode()
        if status or body:
            self.send_response(status or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content) if status else 5_000))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        while not status and body == "drip":
            time.sleep(0.5)
            self.wfile.write(b" ")
            self.wfile.flush()
        if not status:
            self.close_connection = True


def serve(kind: str, pause: float = 0.0) -> str:
    """A server in a thread of this process; its address."""
    handler = type("Kind", (Handler,), {"kind": kind, "pause": pause})
    server = Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def inputs() -> Iterator[Input]:
    words = (
        "sentences",
        "classes=cat,dog",
        "model=m",
        "base_url={server}",
        "out=o.json",
        "per_question=1",
        "retries=0",
        "--json",
    )
    for kind in KINDS:
        must = "words" if kind in BODIES or kind in UNFINISHED or not KINDS[kind][0] else "right"
        must = "words or told" if kind == "an endless answer" else must
        yield Input(f"server: {kind}", nothing, words, (), judge="same", must=must, server=kind)


def serve_answers(pause: float, log: Path) -> str:
    """A server in a process of its own, whose answer is the question's and seed's own; its address. Each
    request adds a byte to `log`.
    """

    class Answers(Handler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open(log, "ab") as file:
                file.write(b".")
            time.sleep(pause)
            text = f"{asked['messages'][-1]['content'][:60]} No. {asked.get('seed')}."
            self.send_response(200)
            content = answer(text).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = Server(("127.0.0.1", 0), Answers)
    pid = os.fork()
    if not pid:
        server.serve_forever()
    server.server_close()
    atexit.register(os.kill, pid, signal.SIGTERM)
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
