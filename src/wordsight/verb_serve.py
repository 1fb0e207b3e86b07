"""The verb `serve`: from the command line's options to wordsight.serve. Imports no torch before it runs."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence

from wordsight import hints
from wordsight.arguments import DEVICE, HOST, PORT, Verb, argument
from wordsight.config import WordsightError
from wordsight.files import read_text
from wordsight.serve.settings import Limits, Settings

KEYS = "WORDSIGHT_API_KEYS"  # of the environment, separated by blanks or commas
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(options: argparse.Namespace) -> None:
    for run in options.runs:
        hints.check_run_or_model("serve", run)
    settings = _settings(options)
    from wordsight.serve import serve

    serve(options.runs, settings)


def _settings(options: argparse.Namespace) -> Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)}
    keys = keys_of(options.keys)
    names = ("host", "port", "search", "corrections", "device", "allow_private")
    return Settings(
        **{name: getattr(options, name) for name in names},
        keys=keys,
        allow_urls=tuple(options.allow_url or ()),
        allow_hosts=hosts_of(options.allow_host, options.host, keys),
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
    )


def keys_of(file: str | None) -> tuple[str, ...]:
    """One a line, or those of the environment. Errors: WordsightError where either is there without any: who
    names keys means that nobody else is answered."""
    if file is None:
        given = os.environ.get(KEYS)
        found = tuple((given or "").replace(",", " ").split())
        if given is not None and not found:
            raise WordsightError(f"{KEYS} is set and holds no key; give it one, or unset it")
        return found
    lines = (line.strip() for line in read_text(file, "file of keys").splitlines())
    if not (found := tuple(line for line in lines if line and not line.startswith("#"))):
        raise WordsightError(f"{file} holds no key; write one a line, or leave --keys out")
    return found


def hosts_of(names: Sequence[str] | None, host: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """By which names the server may be called: any where keys are asked for or it listens to others; else
    those of this machine, so that no page elsewhere can have a browser ask it under a name of its own.
    """
    own = tuple(names or ())
    return (*own, *LOOPBACK) if own or (host in LOOPBACK and not keys) else ()


def _limit(field: dataclasses.Field) -> tuple[tuple[str, ...], dict]:
    kind = float if isinstance(field.default, float) else int
    name = "--" + field.name.replace("_", "-")
    return argument(name, type=kind, metavar="N", help=f"default {field.default:,}")


SERVE = Verb(
    serve,
    None,
    "answer over HTTP, with a page for people: wordsight serve RUN",
    [
        argument(
            "runs",
            nargs="+",
            metavar="RUN",
            help="run folders, hf:org/name, folders of an assistant, image-text-to-text models",
        ),
        HOST,
        PORT,
        argument("--search", metavar="FOLDER", help="images that can be searched"),
        argument("--corrections", metavar="FILE", help="a CSV that corrected labels are kept in"),
        argument("--keys", metavar="FILE", help=f"keys of clients, one a line; or the environment's {KEYS}"),
        argument("--allow-url", action="append", metavar="HOST", help="whose images may be named by URL"),
        argument("--allow-private", action="store_true", help="such hosts may be of this machine or network"),
        argument(
            "--allow-host",
            action="append",
            metavar="HOST",
            help="by which name it may be called (Host), where a proxy stands before it",
        ),
        DEVICE,
        *map(_limit, dataclasses.fields(Limits)),
    ],
)
