"""Extras: packages that only some work needs (pyproject.toml lists them), and one sentence where one is
missing. Imports nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from wordsight.files import WordsightError


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Around the imports of an extra's packages, for `what` ("captions"). Errors: WordsightError that says
    what to install, where a package is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise WordsightError(missing(extra, what, error.name or extra)) from error


def missing(extra: str, what: str, package: str) -> str:
    """What to do where a package of an extra is not there."""
    return f'{what} needs the package {package}, which is not installed: pip install "wordsight[{extra}]"'


def is_there(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    return importlib.util.find_spec(package) is not None
