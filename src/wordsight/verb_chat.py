"""The verb `chat`: lines from stdin to wordsight.assistant, and what it says to each. Imports no torch
before it runs.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from wordsight import hints, terminal
from wordsight.arguments import DEVICE, SEED, Verb, argument
from wordsight.config import WordsightError

if TYPE_CHECKING:
    from wordsight.assistant.session import Session

END = ("/quit", "/exit")

log = logging.getLogger("wordsight")


def chat(options: argparse.Namespace) -> dict[str, Any]:
    _check(options.runs)
    from wordsight.assistant import Assistant
    from wordsight.assistant.session import Session
    from wordsight.backbones.generator import Writing

    names = ("max_new_tokens", "temperature", "top_p")
    how = Writing(**{name: getattr(options, name) for name in names})
    opened = Assistant.from_runs if len(options.runs) > 1 else Assistant.open
    assistant = opened(*options.runs, device=options.device, backbone=options.backbone)
    if options.save:
        log.info("the assistant is in %s", assistant.save(options.save))
    session = Session(assistant, assistant.chat(how, plain=options.plain, seed=options.seed))
    failed: list[dict[str, str]] = []
    turns = _turns(session, failed, whole=options.json)
    return {"run": assistant.name, "turns": turns, "skipped": failed}


def _check(runs: list[str]) -> None:
    if len(runs) > 2:
        raise WordsightError(
            f"{len(runs)} runs were given; an assistant is one run, or a two_tower run and a limber run"
        )
    for run in runs:
        hints.check_run_or_model("chat", run)


def _turns(session: Session, failed: list[dict[str, str]], *, whole: bool) -> Iterator[dict[str, Any]]:
    """Each line with what is said to it: in pieces, or `whole`. A sentence about a line that cannot be is
    said, and `failed` has it where no person is there to say it another way.
    """
    asked = sys.stdin.isatty() and not whole
    for line in _lines("> " if asked else ""):
        told: list[dict[str, str]] = []
        pieces = _guarded(session, line, told)
        yield {"you": line, "said": "".join(pieces) if whole else pieces, "echo": not asked}
        if not sys.stdin.isatty():
            failed += told


def _guarded(session: Session, line: str, told: list[dict[str, str]]) -> Iterator[str]:
    try:
        yield from session.react(line)
    except WordsightError as error:
        log.error("wordsight: %s", error)
        told.append({"line": line, "reason": str(error)})


def _lines(prompt: str) -> Iterable[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line.split()[:1] and line.split()[0] in END:
            return
        if line:
            yield line


CHAT = Verb(
    chat,
    terminal.chat,
    "talk with one LM that sees, classifies and writes: wordsight chat CLAMP LIMBER",
    [
        argument(
            "runs",
            nargs="+",
            metavar="RUN",
            help="a folder of --save; or a two_tower run and a limber run over one LM; or one of them, an "
            "image-text-to-text model or an LM",
        ),
        argument("--save", metavar="FOLDER", help="keep both runs as one folder, for chat and verify"),
        argument(
            "--plain",
            action="store_true",
            help='have an LM without a chat template go on from "Q: ... A:"',
        ),
        argument(
            "--max-new-tokens", type=int, default=128, metavar="N", help="tokens of a reply (default 128)"
        ),
        argument(
            "--temperature",
            type=float,
            default=0.0,
            metavar="T",
            help="0 (default): always the likeliest token; above, tokens are drawn",
        ),
        argument(
            "--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest that have P of it"
        ),
        SEED,
        argument("--backbone", metavar="NAME", help="where the limber run's backbone lies now"),
        DEVICE,
    ],
)
