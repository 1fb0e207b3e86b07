"""Digests: what only a file's content has, kept beside it, so that a bit that flipped is noticed before it is
used. Imports no torch.

Here and elsewhere texts go into a digest as UTF-8 or as `ascii` writes them. What `repr` writes depends on
the Unicode tables of each Python: of the tokens of Gemma's vocabulary 3.11 escapes some that 3.12 does
not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wordsight.files import WordsightError


def file_digest(path: str | Path) -> str:
    """What only this content has, as 32 hexadecimal digits. Errors: WordsightError where it cannot be
    read."""
    try:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise WordsightError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def digests(folder: Path, files: Iterable[str | Path]) -> dict[str, str]:
    """Of files by their names inside `folder`, to be kept beside them."""
    return {str(file): file_digest(folder / file) for file in files}


def check_digests(folder: Path, known: Any, way_on: str) -> None:
    """Errors: WordsightError where a file is not what `digests` saw, which ends with `way_on`. What keeps no
    digests, as in older folders, is not known."""
    for name, digest in (known if isinstance(known, dict) else {}).items():
        file = folder / str(name)
        if not file.is_file() or file_digest(file) != digest:
            why = "is damaged: its content is not what was written" if file.is_file() else "is missing"
            raise WordsightError(f"{file} {why}; {way_on}")
