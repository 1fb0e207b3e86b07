"""Shards: webdataset tars, here or behind http(s):// and s3://, as an endless stream of images with captions
that can be entered at any position.

A sample is `key.jpg` with `key.txt` (its caption), `key.json` ({"caption": text or list of texts}) or
`key.cls` (a class: its number in classnames.txt beside the tars, or its name). A shard is read whole, by one
rank. Nothing is known of a shard's size before it was read once; then it is remembered, so that going on from
a position passes over whole shards unread."""

from __future__ import annotations

import glob
import http.client
import io
import itertools
import json
import os
import re
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import counted, few
from wordsight.data.images import hash_of
from wordsight.data.sources import IMAGES, LABEL_COLUMNS, _key
from wordsight.files import write_file

Sample = tuple[Picture, tuple[str, ...]]  # an image with its captions

WAITS = (1.0, 4.0)  # seconds before a URL that does not answer is asked again
TIMEOUT = 60  # seconds without a byte
SAVE_SECONDS = 5.0


class Source(ABC):
    """Image-text pairs without end, by position: the same position always gives the same sample, so a resumed
    run needs no data state.

    A pass gives every sample of this rank once, in an order drawn for that pass; the ranks' parts of a pass
    are disjoint and together the whole."""

    name: str
    total: int | None  # samples a pass on all ranks together; None where nobody knows

    @abstractmethod
    def samples(self, start: int) -> Iterator[Sample]:
        """From position `start` of this rank on."""

    def notes(self) -> list[str]:
        """What was left out so far, in sentences for the user."""
        return []


class Rows(Source):
    """Pairs that are all known: a table's, or labelled images'. Each rank takes every `world`-th row of a
    pass's order.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Sample],
        seed: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        sizes: Sizes | None = None,
    ):
        if not rows:
            raise WordsightError(f"{name!r} holds no image-caption pair to train on")
        _check_share(name, len(rows), "pairs", world)
        self.name, self.rows, self.seed, self.rank, self.world, self.total = (
            name,
            rows,
            seed,
            rank,
            world,
            len(rows),
        )
        if sizes is not None:
            content = (
                part.encode("utf-8", "surrogatepass")
                for picture, texts in rows
                for part in (picture.name, *texts)
            )
            sizes.remember(name, len(rows), hash_of(*content).hex())

    def samples(self, start: int) -> Iterator[Sample]:
        number, at = divmod(start, len(range(self.rank, len(self.rows), self.world)))
        for epoch in itertools.count(number):
            for row in (
                rng(*self.seed, epoch).permutation(len(self.rows))[self.rank :: self.world][at:].tolist()
            ):
                yield self.rows[row]
            at = 0


class Shards(Source):
    """Tars in an order drawn for each pass, and the samples of each in an order of its own. Shard i is read
    by rank i % world alone.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        captions_of: Callable[[Sequence[str]], list[tuple[str, ...]]],  # of class names
        seed: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        sizes: Sizes | None = None,
    ):
        _check_share(name, len(paths), "shards", world)
        self.name, self.paths, self.captions_of, self.seed = name, list(paths), captions_of, seed
        self.own = range(rank, len(paths), world)
        self.sizes = sizes if sizes is not None else Sizes(None)
        self.damaged: dict[str, str] = {}
        self.wordless: dict[str, int] = {}  # how many images of a shard have no caption
        self.captions: dict[str, tuple[str, ...]] = {}  # of classes
        self.class_names: list[str] | None = None
        self.last: tuple[int, list[Sample]] | None = None  # the shard read last, and what it holds
        self.sizes.remember(f"{name}, its shards", len(paths), hash_of("\n".join(paths).encode()).hex())
        for path in self.paths:
            if "://" not in path and self.sizes.known(path) is not None:
                self.sizes.check_mark(path, _bytes(path))

    @cached_property
    def total(self) -> int | None:
        """From sizes.json beside the shards ({"000.tar": count}), as img2dataset's and open_clip's tools
        write it.
        """
        try:
            known = json.loads(fetch(_beside(self.paths[0], "sizes.json")))
            return sum(int(known[os.path.basename(path)]) for path in self.paths)
        except (Gone, KeyError, ValueError, TypeError):
            return None

    def samples(self, start: int) -> Iterator[Sample]:
        left, epoch = start, 0
        known = [self.sizes.known(self.paths[shard]) for shard in self.own]
        if None not in known and sum(known):
            epoch, left = divmod(start, sum(known))
        for number in itertools.count(epoch):
            found = 0
            for shard in rng(*self.seed, number).permutation(self.own).tolist():
                size = self.sizes.known(self.paths[shard])
                if size is None or left < size:
                    size = len(self.read(shard))
                found += size
                if left >= size:
                    left -= size
                    continue
                rows = self.read(shard)
                for row in rng(*self.seed, number, shard).permutation(size)[left:].tolist():
                    yield rows[row]
                left = 0
            if not found:
                raise self._nothing()

    def check(self) -> None:
        """Read shards of the first pass until one gives a sample; none where one is known to. Errors:
        WordsightError where nothing comes.
        """
        own = [self.paths[shard] for shard in self.own]
        if not self.sizes.any_of(own) and not any(
            self.read(shard) for shard in rng(*self.seed, 0).permutation(self.own).tolist()
        ):
            raise self._nothing()

    def read(self, shard: int) -> list[Sample]:
        """The samples of a shard, in its order; none where it cannot be read, which is counted."""
        if self.last is None or self.last[0] != shard:
            path = self.paths[shard]
            try:
                content = fetch(path)
            except Gone as error:
                self.damaged[path], content = str(error), None
            samples = [] if content is None else self._samples(path, content)
            self.sizes.remember(path, len(samples), len(content or b"") if "://" in path else _bytes(path))
            self.last = (shard, samples)
        return self.last[1]

    def notes(self) -> list[str]:
        said = []
        if self.damaged:
            each = few([f"{path} ({why})" for path, why in self.damaged.items()], "; ", 10)
            said.append(
                f"{counted(len(self.damaged), 'shard')} of {self.name} could not be read whole; what "
                f"could be read is used: {each}"
            )
        if self.wordless:
            said.append(
                f"left out {counted(sum(self.wordless.values()), 'image')} of {self.name} without a caption"
            )
        return said

    def _samples(self, path: str, content: bytes) -> list[Sample]:
        members, damage = read_tar(path, content)
        if damage:
            self.damaged[path] = damage
        words = [_words(fields) for _, fields in members]
        self._name_classes({word for word in words if isinstance(word, (str, int))})
        samples = [
            (picture, self.captions[self._class(word)] if isinstance(word, (str, int)) else word)
            for (picture, _), word in zip(members, words)
        ]
        whole = [sample for sample in samples if sample[1]]
        if members and not whole and not self.sizes.any_of(self.paths):
            raise WordsightError(
                f"{path!r} has {counted(len(members), 'image')} and no caption; expected key.txt, "
                f"key.json with "
                '{"caption": ...} or key.cls beside each key.jpg'
            )
        if len(whole) < len(samples):
            self.wordless[path] = len(samples) - len(whole)
        return whole

    def _name_classes(self, labels: set[str | int]) -> None:
        """Give every class its captions: those of classnames.txt together, others when they are met."""
        if not labels:
            return
        if self.class_names is None:
            self.class_names = self._read_class_names()
            self.captions |= zip(self.class_names, self.captions_of(self.class_names))
        new = [name for name in map(self._class, sorted(labels, key=str)) if name not in self.captions]
        if new:
            self.captions |= zip(new, self.captions_of(new))

    def _class(self, label: str | int) -> str:
        if isinstance(label, str):
            return label
        if not self.class_names:
            place = _beside(self.paths[0], "classnames.txt")
            raise WordsightError(
                f"the labels of {self.name!r} are numbers, and words are needed: put classnames.txt, one "
                f"name a line, at {place!r}"
            )
        if not 0 <= label < len(self.class_names):
            raise WordsightError(
                f"label {label} of {self.name!r} is outside its classnames.txt of {len(self.class_names)} "
                f"names; labels count from 0"
            )
        return self.class_names[label]

    def _read_class_names(self) -> list[str]:
        for name in ("classnames.txt", "../classnames.txt"):
            try:
                lines = fetch(_beside(self.paths[0], name)).decode("utf-8-sig").splitlines()
                return [line.strip() for line in lines if line.strip()]
            except Gone:
                continue
        return []

    def _nothing(self) -> WordsightError:
        why = "; ".join(self.notes()) or "they hold no images; expected samples such as 000.jpg with 000.txt"
        return WordsightError(
            f"none of the {counted(len(self.own), 'shard')} of {self.name!r} gives an image with a "
            f"caption: {why}"
        )


class Sizes:
    """How many samples each shard and table held when it was first read, in a small JSON: a resumed run
    passes over whole shards, and finds out when its data has changed, which would change its batches
    silently. Each rank writes a file of its own beside the first one's."""

    def __init__(self, path: Path | None, rank: int = 0, world: int = 1):
        self.path = path if path is None or rank == 0 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
        self.world, self.saved = world, 0.0
        self.entries: dict[str, list] = {}  # name -> count, and the bytes or the digest that it had
        if self.path is not None and self.path.is_file():
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self.entries, before = kept["samples"], kept["world"]
            except (ValueError, KeyError, OSError) as error:
                raise WordsightError(
                    f"{str(self.path)!r} cannot be read: {error}; delete it, and the shards are counted again"
                ) from error
            if before != world:
                raise WordsightError(
                    f"this run began with {before} processes and has {world} now: its batches would be "
                    f"others; {self._anew()}"
                )

    def known(self, name: str) -> int | None:
        return self.entries[name][0] if name in self.entries else None

    def any_of(self, names: Sequence[str]) -> bool:
        """Whether any of them is known to hold a sample."""
        return any(self.known(name) for name in names)

    def remember(self, name: str, count: int, mark: int | str) -> None:
        if name in self.entries:
            self.check_mark(name, mark)
        self.entries[name] = [count, mark]
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def check_mark(self, name: str, mark: int | str) -> None:
        count, before = self.entries[name]
        if before != mark:
            raise WordsightError(
                f"{name!r} is not what it was when this run began ({count} then): its batches would be "
                f"others; {self._anew()}"
            )

    def save(self) -> None:
        if self.path is not None:
            write_file(self.path, json.dumps({"world": self.world, "samples": self.entries}, indent=0))
            self.saved = time.monotonic()

    def _anew(self) -> str:
        return (
            f"put it back, or give another out=, or delete {str(self.path.parent)!r} to train anew"
            if self.path
            else "leave data alone while it trains"
        )


# ---- tars


def is_shards(source: str) -> bool:
    """Whether a source is webdataset shards: a tar, a pattern of tars, a URL, a folder that holds tars."""
    path = Path(source).expanduser()
    return (
        "://" in source
        or source.startswith("pipe:")
        or bool(re.search(r"\.(tar|tar\.\w+|tgz)$", source))
        or bool(path.is_dir() and _tars_in(path))
    )


def shards_of(source: str) -> list[str]:
    """Every shard behind `x-{000..003}.tar`, `x-{a,b}.tar`, a glob, a folder or a URL, in order. Errors:
    WordsightError where there is none.
    """
    if source.startswith("pipe:"):
        raise WordsightError(
            f"data={source!r}: commands are not run for data; give http(s)://, s3:// or a local path"
        )
    local = str(Path(source).expanduser()) if "://" not in source else source
    if os.path.isdir(local):
        return _tars_in(Path(local))
    each = [local] if os.path.isfile(local) else list(dict.fromkeys(_braces(local)))
    for path in each:
        if not (urllib.parse.urlsplit(path).path if "://" in path else path).endswith(".tar"):
            raise WordsightError(
                f"data={source!r}: {path!r} is no .tar; only uncompressed tars are read as shards, and "
                f"tables only from a local path"
            )
        if "://" in path and set("*[") & set(path):
            raise WordsightError(
                f"data={source!r}: * is looked up only in local folders; name remote shards as in "
                f"x-{{000..099}}.tar"
            )
    if "://" in local:
        return each
    found = [
        path
        for one in each
        for path in ([one] if os.path.isfile(one) else sorted(glob.glob(one)) or _missing(one, source))
    ]
    return list(dict.fromkeys(found))


def _missing(path: str, source: str) -> list[str]:
    raise WordsightError(f"shard {path!r} of data={source!r} does not exist")


def _tars_in(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar"))) or sorted(map(str, (folder / "train").glob("*.tar")))


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    low, high, listed = found.groups()
    each = (
        listed.split(",")
        if listed is not None
        else [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    )
    return [path for one in each for path in _braces(pattern[: found.start()] + one + pattern[found.end() :])]


def read_tar(path: str, content: bytes) -> tuple[list[tuple[Picture, dict[str, bytes]]], str | None]:
    """The images of a tar in their order, each with its .txt, .json and .cls; and what is wrong with the tar,
    if anything: what stands before is given.
    """
    view, images, fields, damage = memoryview(content), {}, {}, None
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                start, end = member.offset_data, member.offset_data + member.size
                folder, base = os.path.split(member.name)
                key, _, extension = base.partition(".")
                extension = extension.lower()
                if end > len(content) or not member.isfile() or base.startswith("."):
                    continue
                if "." + extension in IMAGES:
                    images[f"{folder}/{key}"] = Picture(
                        f"{path}/{member.name}", partial(_cut, view, start, end)
                    )
                elif extension in ("txt", "json", "cls"):
                    fields.setdefault(f"{folder}/{key}", {})[extension] = bytes(view[start:end])
            if view[tar.offset : tar.offset + tarfile.BLOCKSIZE].tobytes() != tarfile.NUL * tarfile.BLOCKSIZE:
                damage = f"cut off or damaged at byte {min(tar.offset, len(content)):,}"
    except (
        tarfile.TarError,
        OSError,
        ValueError,
        EOFError,
    ) as error:  # a damaged header can raise any of them
        damage = str(error) if images else f"not readable as an uncompressed tar: {error}"
    return [(picture, fields.get(key, {})) for key, picture in images.items()], damage


def _cut(view: memoryview, start: int, end: int) -> bytes:
    return bytes(view[start:end])


def _words(fields: dict[str, bytes]) -> tuple[str, ...] | str | int:
    """A sample's captions, or its class as name or number; an empty tuple where it has neither."""
    try:
        if text := fields.get("txt", b"").decode("utf-8").strip():
            return (text,)
        described = json.loads(fields.get("json", b"{}"))
        described = described if isinstance(described, dict) else {}
        captions = described.get("caption", described.get("captions")) or ()
        texts = tuple(
            str(text).strip()
            for text in ([captions] if isinstance(captions, str) else captions)
            if str(text or "").strip()
        )
        label: Any = (
            fields["cls"].decode("utf-8")
            if "cls" in fields
            else next((described[key] for key in LABEL_COLUMNS if key in described), None)
        )
        label = _key(label)
        return texts or (() if label is None or label == "" else label)
    except (ValueError, TypeError):  # neither UTF-8 nor JSON: counted among those without a caption
        return ()


# ---- bytes from anywhere


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


def _local(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Gone(error.strerror or str(error)) from error


def _bytes(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


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
            return file.read()
    except (FileNotFoundError, PermissionError) as error:
        raise Gone(str(error) or type(error).__name__) from error
    except (ImportError, ValueError) as error:
        raise WordsightError(
            f"{url} cannot be opened: {error} (s3:// needs `pip install s3fs`, gs:// gcsfs)"
        ) from error
    except Exception as error:  # each of fsspec's clients has errors of its own
        raise Unanswered((str(error).strip() or type(error).__name__).splitlines()[0]) from error


# ---- common to all


def rng(*parts: int) -> np.random.Generator:
    """Random numbers that `parts` alone decide."""
    return np.random.default_rng([part % 2**32 for part in parts])


def _check_share(name: str, count: int, what: str, world: int) -> None:
    if count < world:
        raise WordsightError(
            f"{name!r} has {count} {what} for {world} processes, and each needs one at least; start "
            f"{count} processes or fewer, or cut it into more"
        )


def _beside(path: str, name: str) -> str:
    """`name` in the folder of a path or URL; a URL's question mark and what follows are kept."""
    if "://" not in path:
        return str(Path(path).parent / name)
    scheme, host, place, query, _ = urllib.parse.urlsplit(path)
    folder = place.rsplit("/", 1)[0]
    folder, name = (folder.rsplit("/", 1)[0], name[3:]) if name.startswith("../") else (folder, name)
    return urllib.parse.urlunsplit((scheme, host, f"{folder}/{name}", query, ""))
