"""Fetch: a whole file as bytes, here or behind http(s):// and what fsspec knows."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from wordsight.config import WordsightError
from wordsight.files import read_bytes

WAITS = (1.0, 4.0)  # seconds before a URL that does not answer is asked again
TIMEOUT = 60  # seconds without a byte


class Gone(Exception):
    """Why one file cannot be read, now or later: the others go on without it."""


class Unanswered(Exception):
    """Why a URL did not answer; it may the next time."""


def fetch(path: str) -> bytes:
    """A whole file. Errors: Gone where it is not there; WordsightError where a URL does not answer, asked
    three times.
    """
    read = _local if "://" not in path else _http if path.startswith(("http://", "https://")) else _remote
    for wait in (*WAITS, None):
        try:
            return read(path)
        except Unanswered as error:
            if wait is None:
                raise WordsightError(
                    f"{path} does not answer: {error}; mend the address or the network and give the same "
                    f"command: it goes on"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last wait is None")


def size_of(path: str) -> int:
    """Bytes of a file here; 0 for one that is not, or lies elsewhere."""
    return os.path.getsize(path) if "://" not in path and os.path.isfile(path) else 0


def beside(path: str, name: str) -> str:
    """`name` in the folder of a path or URL; a URL's question mark and what follows are kept."""
    if "://" not in path:
        return str(Path(path).parent / name)
    scheme, host, place, query, _ = urllib.parse.urlsplit(path)
    folder = place.rsplit("/", 1)[0]
    folder, name = (folder.rsplit("/", 1)[0], name[3:]) if name.startswith("../") else (folder, name)
    return urllib.parse.urlunsplit((scheme, host, f"{folder}/{name}", query, ""))


def _local(path: str) -> bytes:
    try:
        return read_bytes(path, "file")
    except WordsightError as error:
        raise Gone(str(error)) from error


def _http(url: str) -> bytes:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"User-Agent": "wordsight"}), timeout=TIMEOUT
        ) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (401, 403, 404, 410):
                raise Gone(f"HTTP {error.code} {error.reason}") from error
            raise Unanswered(f"HTTP {error.code} {error.reason}") from error
    except (
        OSError,
        http.client.HTTPException,
    ) as error:  # URLError is an OSError; IncompleteRead: the connection ended early
        raise Unanswered(str(getattr(error, "reason", "") or error or type(error).__name__)) from error


def _remote(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            # one address gives one file, never the list that fsspec's stub allows for
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except (FileNotFoundError, PermissionError) as error:
        raise Gone(str(error) or type(error).__name__) from error
    except (ImportError, ValueError) as error:
        raise WordsightError(
            f"{url} cannot be opened: {error} (s3:// needs `pip install s3fs`, gs:// gcsfs)"
        ) from error
    except Exception as error:  # each of fsspec's clients has errors of its own
        raise Unanswered((str(error).strip() or type(error).__name__).splitlines()[0]) from error
