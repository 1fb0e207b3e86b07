"""The verb `push`: from the command line's options to wordsight.push. Imports no torch before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from wordsight import hints, terminal
from wordsight.arguments import BACKBONE, RUN, Verb, argument
from wordsight.early import check_hub_name


def push(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run("push", options.run)
    check_hub_name(options.name)
    hints.check_kept(options.run)
    from wordsight.push import push

    given = {name: getattr(options, name) for name in ("licence", "backbone")}
    url = push(options.run, options.name, private=options.private or None, **given)
    return {"run": options.run, "name": f"hf:{options.name.removeprefix('hf:')}", "url": url}


def show(answer: Mapping[str, Any]) -> None:
    terminal.out(f"{answer['run']} is at {answer['url']}; read it as {answer['name']}")


PUSH = Verb(
    push,
    show,
    "share a run on the Hugging Face hub, with a model card: wordsight push RUN org/name",
    [
        RUN,
        argument("name", metavar="ORG/NAME", help="the repository; made where there is none"),
        argument("--private", action="store_true", help="where it is made: for its owner alone"),
        argument(
            "--licence",
            metavar="ID",
            help="what it is shared under, as apache-2.0; by default what all parts state",
        ),
        BACKBONE,
    ],
)
