"""Files: written whole or not at all, read strictly, and never opened as something that could run.

One place for what every folder of ours keeps to: a temporary name and a rename, a digest that notices a
flipped bit, JSON and YAML whose odd shapes end in a sentence, a lock that dies with its process, and text
that is safe to print. Imports no torch at the top."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

PART = ".part"  # ends the temporary name of a file that is being written
UNDER_WAY = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(PART)}$")  # the end of such a name, as `writing` makes it
SAVING = ".saving"  # the same of a folder
DIGEST = "digest"  # the key in a safetensors file's metadata under which `write_tensors` keeps it
# what makes a spreadsheet compute a cell, the wide signs of Chinese and Japanese ones included
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}  # turn the text around them


class WordsightError(ValueError):
    """Something the user can mend: the message says what was wrong, which value, and what would be right. The
    command line exits with 2."""


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a whole file or none: a temporary name in the same folder, then a rename.

    Errors: WordsightError when the disk is full or the folder is closed; what stood there before is intact.
    """
    try:
        whole = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise WordsightError(
            f"{str(path)!r} cannot be written: {error.object[error.start : error.end]!r} is no Unicode text"
        ) from error
    with writing(path) as file:
        file.write(whole)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece. It takes its name at the end of the block; where an error or Ctrl-C
    ends the block, nothing is left of it. Errors: as `write_file`.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise WordsightError(f"{str(path)!r} is a folder and no name of a file to write")
    if str(path) == "-":
        raise WordsightError("'-' is no name of a file to write, and stands for no stream here; give a name")
    if os.path.exists(path) and not (
        os.path.isfile(path) or os.path.isdir(path)
    ):  # a rename would put a file in its place
        raise WordsightError(f"{str(path)!r} is a pipe or a device, and a whole file is written here")
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path  # where a link leads
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PART}")  # two may write one file at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, path.name, PART)
        with open(part, "wb") as file, held(part):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        raise WordsightError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; what stood there before is intact"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@lru_cache(maxsize=100)  # once a process: a folder of a million images takes a second to list
def _sweep(folder: Path, name: str, ends: str) -> None:
    """Remove what killed writers of a file or folder have left beside it, and nobody holds."""
    for left in folder.glob(f"{glob.escape(name)}.{'[0-9a-f]' * 8}{ends}"):
        with contextlib.suppress(OSError), held(left) as ours:
            if ours and time.time() - left.stat().st_mtime > 1:  # a younger one may not be held yet
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def free(folder: str | Path) -> Path:
    """`folder`, where something new may be written: it does not exist, or is empty.

    Errors: WordsightError where it already holds something.
    """
    folder = Path(folder).expanduser()
    new = folder.name not in ("", "..") and not (folder.exists() and not folder.is_dir())
    if not new or (folder.exists() and any(folder.iterdir())):
        raise WordsightError(
            f"{str(folder)!r} already holds something; give a folder that does not exist yet"
        )
    return folder


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` at the end, once all is in it.

    Errors: WordsightError where `folder` already holds something, or cannot be written.
    """
    folder = free(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{SAVING}")
    try:
        _sweep(folder.parent, f".{folder.name}", SAVING)
        temporary.mkdir(parents=True)
        with held(temporary):
            yield temporary
            free(folder)  # another process may have been sooner
            temporary.replace(folder)
    except OSError as error:
        raise WordsightError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def in_use(folder: str | Path) -> Iterator[None]:
    """Hold a folder: another process that asks for it meanwhile is told so. The hold ends with its process.
    Errors: WordsightError where another process holds it, or where it cannot be a folder."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WordsightError(f"{str(folder)!r} cannot be a folder: {error.strerror or error}") from error
    try:
        with held(folder) as ours:
            if ours is False:
                raise WordsightError(
                    f"{str(folder)!r} is in use: another process is working on it. Wait until it has ended, "
                    f"or give another out=..."
                )
            yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # still empty: nothing came of it


@contextlib.contextmanager
def held(folder: str | Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool | None]:
    """Hold a folder alone, where nobody else does, or after one to `wait` for; or together with all who share
    it, after waiting for one that has it alone. Gives whether it is held, None on a file system without
    locks."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            alone = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_SH if shared else alone)
            ours: bool | None = True
        except BlockingIOError:
            ours = False
        except OSError:
            ours = None
        yield ours
    finally:
        os.close(handle)


def read_bytes(path: str | Path, what: str) -> bytes:
    """A whole regular file. Errors: WordsightError for a folder, a FIFO or device, or what cannot be read."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise WordsightError(f"{what} {str(path)!r} is a folder; expected a file")
        if not stat.S_ISREG(mode):  # reading it could wait for ever
            raise WordsightError(f"{what} {str(path)!r} is no regular file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise WordsightError(f"{what} {str(path)!r} does not exist") from error
    except OSError as error:
        raise WordsightError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from error


def read_text(path: str | Path, what: str) -> str:
    """A whole UTF-8 file, with or without a byte order mark. Errors: as `read_bytes`, or where it is not
    UTF-8.
    """
    content = read_bytes(path, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        form = "it is in UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"see byte {error.start}"
        raise WordsightError(
            f"{what} {str(path)!r} cannot be read as UTF-8 text ({form}); save it as UTF-8"
        ) from error


def read_json(path: str | Path, what: str) -> Any:
    """The JSON in a file. Errors: WordsightError as `parse_json`, and where the file is empty or cannot be
    read.
    """
    text = read_text(path, what)
    if not text.strip():
        raise WordsightError(f"{what} {str(path)!r} is empty ({Path(path).stat().st_size} bytes)")
    return parse_json(text, f"{what} {str(path)!r}")


def parse_json(text: str, where: str, *, strict: bool = True) -> Any:
    """JSON, read strictly: a key given twice is an error, where Python's reader silently keeps the last.

    Errors: WordsightError for what is no JSON, nested too deeply, holds a number of thousands of digits, or,
    where `strict`, half a surrogate pair, which no file can hold again."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            listed = ", ".join(map(repr, twice[:5]))
            raise WordsightError(f"{where} gives {listed} more than once; join the entries under one key")
        return dict(pairs)

    try:
        loaded = json.loads(text, object_pairs_hook=once if strict else None)
        if strict and re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(loaded, ensure_ascii=False).encode()
        return loaded
    except WordsightError:
        raise
    except json.JSONDecodeError as error:
        raise WordsightError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeEncodeError as error:
        raise WordsightError(f"{where} holds half a surrogate pair, which is no text") from error
    except RecursionError as error:
        raise WordsightError(f"{where} is nested too deeply") from error
    except ValueError as error:  # a number longer than Python converts
        raise WordsightError(f"{where} is not readable: {error}") from error


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of a file's tensors and of the metadata beside them."""
    return content_hash(tensors, sorted(metadata.items()))


def content_hash(tensors: Mapping[str, Tensor], facts: object) -> str:
    """A hash of names, shapes, dtypes and bytes, and of whatever else decides."""
    import torch

    digest = hashlib.blake2b(ascii(facts).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file with a digest of its content, written whole or not at all."""
    from safetensors.torch import save

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = dict(metadata or {})
    written = save(kept, metadata=known | {DIGEST: digest_of(kept, known)})
    end = 8 + int.from_bytes(written[:8], "little")
    header = json.loads(written[8:end])  # whose metadata come in another order each time
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    write_file(path, written[:8] + text + written[end:])


def read_tensors(
    path: str | Path, what: str = "", *, finite: bool = True, sealed: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Errors: WordsightError where it cannot be read, where its digest (of a file by `write_tensors`) is another
    or, with `sealed`, is missing; and, with `finite`, where a number is not finite."""
    from safetensors import SafetensorError, safe_open

    named = f"{what} {path}".strip()
    if not Path(path).is_file():  # a FIFO too: opening it could wait for ever
        raise WordsightError(f"{named} cannot be read: it does not exist or is no regular file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WordsightError(f"{named} cannot be read: {error}") from error
    kept = metadata.pop(DIGEST, None)
    if (sealed or kept is not None) and kept != digest_of(tensors, metadata):
        raise WordsightError(f"{named} is damaged: its content is not what was written")
    broken = [name for name, tensor in tensors.items() if finite and not bool(tensor.isfinite().all())]
    if broken:
        raise WordsightError(f"{named} holds numbers that are not finite, in {', '.join(sorted(broken)[:3])}")
    return tensors, metadata


def cache_folder() -> Path:
    """Where image features and sentences are kept between runs: $WORDSIGHT_CACHE, or ~/.cache/wordsight."""
    folder = os.environ.get("WORDSIGHT_CACHE") or "~/.cache/wordsight"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # a container whose user has no name, and no HOME
        raise WordsightError(
            f"{folder!r} is kept in a home folder, and this user has none; name a folder in WORDSIGHT_CACHE"
        ) from error


def printable(text: str, kept: str = "\n\t") -> str:
    """`text` without control characters, which could move the cursor or rename the terminal: each is written
    out, as are signs that turn the direction of text, and bytes that are not UTF-8. Those `kept` stay."""
    if text.isprintable():  # nearly every text, and much sooner known
        return text
    return "".join(
        sign if sign in kept or not moves(sign) else sign.encode("unicode_escape").decode() for sign in text
    )


def moves(sign: str) -> bool:
    """Whether a sign steers a terminal or the direction of text, or is half a surrogate pair."""
    return ord(sign) in BIDI or unicodedata.category(sign) in ("Cc", "Cs")


def nfc(name: str) -> str:
    """A name in Unicode's composed form, in which names are compared: a Mac writes é as two signs."""
    return unicodedata.normalize("NFC", name)


def visible(name: str) -> str:
    """A name without signs that leave nothing to see, such as a zero-width space that was copied along."""
    return name if name.isascii() else "".join(sign for sign in name if unicodedata.category(sign) != "Cf")


def plain_name(path: str) -> str:
    """The last part of a path or name, fit to be part of a folder's name: letters, digits, - and _ alone."""
    place = Path(path).expanduser()
    last = place.resolve().name if os.path.exists(place) else place.name  # Path.exists fails for long names
    signs = (sign if sign.isalnum() or _is_mark(sign) else "-" for sign in nfc(last or path))
    return re.sub("-+", "-", "".join(signs)).strip("-")[:60] or "data"


def _is_mark(sign: str) -> bool:
    return sign == "_" or unicodedata.category(sign).startswith("M")  # a vowel sign, an accent


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV in which no text is a formula to a spreadsheet: one that begins like one stands behind a quote
    mark. A number is none, whatever its sign."""
    out = io.StringIO()
    csv.writer(out).writerows([map(_disarmed, row) for row in [header, *rows]])
    return out.getvalue()


def csv_line(row: Sequence[Any]) -> bytes:
    """A line of `csv_text`, for a file written in pieces; bytes of a name that are no UTF-8 are spelt out."""
    return csv_text(row, []).encode("utf-8", "backslashreplace")


def _disarmed(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and _formula(cell) else cell


def _formula(cell: str) -> bool:
    """Whether a spreadsheet would compute it (no negative number), or another's quote mark stands before."""
    if not cell.lstrip("'").startswith(FORMULA):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return not cell.startswith("-")


def as_it_was(cell: str) -> str:
    """A text without the quote mark that `csv_text`, or a spreadsheet's user, put before a formula."""
    return cell[1:] if cell[:1] == "'" and _formula(cell[1:]) else cell


def csv_rows(text: str) -> list[dict[str, str]]:
    """What `csv_text` wrote, as it was. Errors: WordsightError where it is no CSV."""
    try:
        found = [list(map(as_it_was, row)) for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise WordsightError(f"a table cannot be read as CSV: {error}") from error
    header, *rows = found or [[]]
    return [dict(zip(header, row)) for row in rows]
