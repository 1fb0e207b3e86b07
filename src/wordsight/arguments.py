"""Arguments: what a verb takes, in argparse's terms, with hints where argparse has none."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from wordsight import __version__, help, hints, terminal
from wordsight.files import printable

Argument = tuple[tuple[str, ...], dict[str, Any]]  # names and options of argparse's add_argument


class Verb(NamedTuple):
    """A verb of the command line."""

    run: Callable[[argparse.Namespace], Any]  # gives the answer in plain values
    show: Callable[[Any], None] | None  # prints it for a person; None: `run` has
    summary: str
    arguments: Sequence[Argument] = ()

    @property
    def options(self) -> set[str]:
        names = {name for names, _ in self.arguments for name in names if name.startswith("-")}
        return names | {"--json", "--help", "-h"}


def argument(*names: str, **options: Any) -> Argument:
    return names, options


def natural(text: str) -> int:
    """0 or more, as argparse reads it."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


RUN = argument("run", metavar="RUN", help="a run folder, or hf:org/name")
WORDS = argument(
    "words", nargs="*", metavar="KEY=VALUE", help="settings, or YAML files of them; later ones win"
)
HOST = argument("--host", default="127.0.0.1", metavar="NAME", help="where to listen (default 127.0.0.1)")
PORT = argument("--port", type=int, default=8000, metavar="N", help="(default 8000)")
BACKBONE = argument("--backbone", metavar="NAME", help="where the run's backbone lies now, if it has moved")
LM = argument("--lm", metavar="NAME", help="where the run's LM lies now, if it has moved")
SEED = argument("--seed", type=natural, default=1, metavar="N", help="what they are drawn from (default 1)")
CSV = argument("--csv", metavar="FILE", help="write a table: a line an image")
MAX_PIXELS = argument("--max-pixels", type=int, metavar="N", help="the largest image that is read, in pixels")
DEVICE = argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default the run's")


def options_first(words: Sequence[str], verb: Verb) -> list[str]:
    """The words behind a verb, with its options in front: argparse takes no words on both sides of an option.
    What follows `--` stays.
    """
    flags = {"--json", "--help", "-h"}
    flags |= {name for names, how in verb.arguments for name in names if how.get("action") == "store_true"}
    first: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            others += [word, *rest]
        elif not re.match(r"--?[A-Za-z]", word):
            others.append(word)
        else:
            meant = {word} & verb.options or {name for name in verb.options if name.startswith(word)}
            takes_value = bool(meant) and not meant <= flags
            first += [word, *islice(rest, int(takes_value))]
    return first + others


def parser_of(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of a table of verbs; every verb takes --json."""
    parser = _Parser(
        prog="wordsight", description="Adapts vision-language models through their language side."
    )
    parser.add_argument("--version", action="version", version=f"wordsight {__version__}")
    below = parser.add_subparsers(dest="verb", metavar="VERB")
    parser.choices = list(verbs)
    for name, verb in verbs.items():
        sub = below.add_parser(name, help=verb.summary, description=verb.summary)
        sub.verb = name
        for names, options in verb.arguments:
            sub.add_argument(*names, **options)
        sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with what was probably meant where a verb is mistyped, and a verb's settings in its help."""

    verb = ""  # of a verb's own parser
    choices: Sequence[str] = ()  # the verbs, of the parser above them

    def error(self, message: str) -> Any:
        word = message.partition("invalid choice: '")[2].partition("'")[0]
        meant = hints.verb_meant(word, self.choices) if word and not self.verb else ""
        super().error(printable(message + meant + hints.MISSING.get(self.verb, "") * ("required" in message)))

    def format_help(self) -> str:
        if self.verb not in help.SETTINGS:
            return super().format_help()
        return f"{super().format_help()}\nsettings:\n{terminal.settings_text(help.show(self.verb))}\n"
