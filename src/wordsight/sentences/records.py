"""Records: the file of sentences that an LLM wrote, and the answers that wait beside it until it is whole.

The file is JSON: who wrote, what was asked, and each answer with its question and seed. It is written whole,
at the end; until then every answer stands in NAME.answers, a line each, on the disk before the next one is
asked for. So a call that is stopped at any moment loses what is under way and nothing else, and the next call
ends with the same bytes as an unbroken one. Whoever writes holds NAME.answers, and one writes at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wordsight.files import WordsightError, nfc, parse_json, read_json, write_file
from wordsight.sentences import cached_texts

SIDE = ".answers"  # ends the name of the file where answers wait
log = logging.getLogger("wordsight")


class Job(NamedTuple):
    """One question about one class, asked with a seed."""

    name: str
    question: str
    seed: int


def load_record(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds, in its JSON's form; without sentences where there is none yet.

    Errors: WordsightError where others wrote the file, or we did with another `header`."""
    empty = {**header, "empty": {}, "sentences": {}}
    if not path.exists():
        return empty
    loaded = read_json(path, "sentence file")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("format"), str):
        raise WordsightError(
            f"{str(path)!r} was not written by write_sentences and will not be overwritten; give another path"
        )
    cached_texts(loaded, path.name)
    if not loaded["sentences"]:  # it binds nobody
        return empty
    loaded["sentences"] = {nfc(name): group for name, group in loaded["sentences"].items()}
    _demand_same(path, loaded, header)
    counts = loaded.setdefault("empty", {})
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise WordsightError(f"{str(path)!r} holds no table of numbers under 'empty'; it was changed by hand")
    return loaded


def _demand_same(path: Path, loaded: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    changed = [
        f"{key}: {loaded.get(key)!r} in the file, {value!r} asked for"
        for key, value in header.items()
        if loaded.get(key) != value
    ]
    if changed:
        raise WordsightError(
            f"{str(path)!r} was written with other settings ({'; '.join(changed)}); give another path, or "
            f"the file's settings"
        )


def waiting(path: Path) -> bool:
    """Whether answers wait beside a file, of a call that runs or was stopped."""
    return path.with_name(path.name + SIDE).exists()


@contextlib.contextmanager
def writing(path: Path, header: Mapping[str, Any], *, wait: bool = False) -> Iterator[Record]:
    """Hold a file for writing. Errors: WordsightError where another process holds it, unless we `wait` for
    it; where it cannot be written; and as `load_record`.
    """
    side = path.with_name(path.name + SIDE)
    with _held(side, path, wait) as handle:
        record = Record(path, side, handle, dict(header))
        try:
            yield record
        finally:
            record.close()


@contextlib.contextmanager
def _held(side: Path, path: Path, wait: bool) -> Iterator[int]:
    import fcntl

    while True:
        handle = _opened(side, path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                os.close(handle)
                raise WordsightError(
                    f"{str(path)!r} is in use: another process is writing it. Wait until it has ended, or "
                    f"give another out=..."
                ) from error
            log.info(f"waiting for another process, which is writing {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        if _same(handle, side):
            break
        os.close(handle)  # whoever held it has ended and removed it
    try:
        yield handle
    finally:
        if os.fstat(handle).st_size == 0:
            side.unlink(missing_ok=True)
        os.close(handle)


def _opened(side: Path, path: Path) -> int:
    try:
        side.parent.mkdir(parents=True, exist_ok=True)
        if side.exists() and not side.is_file():
            raise WordsightError(f"{str(side)!r} is no regular file; it is where answers wait")
        return os.open(side, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise WordsightError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _same(handle: int, side: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), side.stat())
    except FileNotFoundError:
        return False


class Record:
    """A file of sentences under way: what it holds, and the answers that wait to join it."""

    def __init__(self, path: Path, side: Path, handle: int, header: dict[str, Any]):
        self.path, self.side, self.handle, self.header = path, side, handle, header
        self.lock, self.closed = threading.Lock(), False
        self.cache = load_record(path, header)
        self.answers: dict[Job, str] = self._read_side()

    def add(self, job: Job, text: str) -> None:
        """Keep an answer: it is on the disk when this returns. Errors: WordsightError, say of a full disk."""
        with self.lock:
            if self.closed or job in self.answers:
                return
            if not self.answers:
                os.ftruncate(self.handle, 0)
                self._line({**self.header})
            self._line({**job._asdict(), "text": text})
            self.answers[job] = text

    def settle(self, name: str, jobs: Sequence[Job], empty: int) -> None:
        """Take a class into the file: the answers to `jobs`, and how many questions have none."""
        entries = [{"question": job.question, "seed": job.seed, "text": self.answers[job]} for job in jobs]
        self.cache["sentences"][name] = entries
        if empty:
            self.cache["empty"][name] = empty

    def write(self) -> None:
        write_file(self.path, json.dumps(self.cache, ensure_ascii=False, indent=1) + "\n")

    def close(self) -> None:
        """Drop the answers that waited, unless some are about a class that the file does not hold yet."""
        with self.lock:
            self.closed = True
            if all(job.name in self.cache["sentences"] for job in self.answers):
                os.ftruncate(self.handle, 0)

    def _line(self, entry: Mapping[str, Any]) -> None:
        size = os.fstat(self.handle).st_size
        try:
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            while line:
                line = line[os.write(self.handle, line) :]
            os.fsync(self.handle)
        except (OSError, UnicodeEncodeError) as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.handle, size)  # half a line would spoil the next
            says = getattr(error, "strerror", None) or error
            raise WordsightError(f"{str(self.side)!r} cannot be written: {says}") from error

    def _read_side(self) -> dict[Job, str]:
        """The answers of a call that was stopped; half a line of it is removed."""
        content = self.side.read_bytes()
        whole, newline, half = content.rpartition(b"\n")
        if half:
            os.ftruncate(self.handle, len(whole + newline))
        header, *lines = whole.split(b"\n") if whole else [b""]
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        if entries:
            _demand_same(self.side, _object(header), self.header)
        if broken := len(lines) - len(entries):
            log.warning(f"{broken} lines of {self.side} cannot be read; those answers are asked for again")
        return dict(entries)


def _entry(line: bytes) -> tuple[Job, str] | None:
    """The answer in a line of NAME.answers; None where it holds none."""
    match _object(line):
        case {"name": str(name), "question": str(question), "seed": int(seed), "text": str(text)}:
            return None if isinstance(seed, bool) else (Job(name, question, seed), text)
    return None


def _object(line: bytes) -> dict[str, Any]:
    try:
        loaded = parse_json(line.decode(), "a line")
    except (UnicodeDecodeError, WordsightError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
