"""Arguments: what a verb takes, in argparse's terms, with hints where argparse has none."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
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
