"""Shards: rows and webdataset tars as an endless stream of images with captions that can be entered at any
position.

A tar is read whole, by one rank. Nothing is known of its size before it was read once; then it is remembered,
so that going on from a position passes over whole tars unread. `datasets`' IterableDataset has a state to
resume from, but empties its shuffle buffer when it does, so other samples would follow than in an unbroken
run; and it counts nothing of what it passes over."""

from __future__ import annotations

import io
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, counted, few
from wordsight.data.columns import NO_CAPTION
from wordsight.data.fetch import Gone, beside, fetch
from wordsight.data.images import hash_of
from wordsight.data.labels import CLASSNAMES, Label, class_lines
from wordsight.data.pairs import Words
from wordsight.data.samples import read_tar
from wordsight.data.sizes import Size, Sizes
from wordsight.data.tars import inner_names
from wordsight.files import parse_json

Sample = tuple[Picture, tuple[str, ...]]  # an image with its captions

ORDER, TAKE, DRAW = 1, 2, 3  # keep the streams of random numbers apart
SIZES = "sizes.json"  # beside the tars: {"000.tar": samples}, as img2dataset's and open_clip's tools write it


class Source(ABC):
    """Image-text pairs without end, by position: the same position always gives the same sample, so a resumed
    run needs no data state.

    A pass gives every sample of this rank once, in an order drawn for that pass; the ranks' parts of a pass
    are disjoint and together the whole."""

    name: str
    total: int | None  # samples a pass on all ranks together; None where nobody knows

    @property
    @abstractmethod
    def account(self) -> Account:
        """What was seen so far."""

    @abstractmethod
    def samples(self, start: int) -> Iterator[Sample]:
        """From position `start` of this rank on."""


class Rows(Source):
    """Pairs that are all known: a table's, or labelled images'. Each rank takes every `world`-th row of a
    pass's order.

    A resumed run is told where names or captions have changed. Other pixels under a name are not noticed: to
    know them, all images would have to be read first."""

    total: int

    def __init__(
        self,
        name: str,
        rows: Sequence[Sample],
        seed: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        sizes: Sizes | None = None,
        account: Account | None = None,
    ):
        if not rows:
            raise WordsightError(f"{name!r} holds no image-caption pair to train on")
        _check_share(name, len(rows), "pairs", world)
        self.name, self.rows, self.seed, self.rank, self.world = name, rows, seed, rank, world
        self.total, self.told = len(rows), account or Account("row")
        if sizes is not None:
            texts = [part for picture, captions in rows for part in (picture.name, *captions)]
            mark = hash_of(*(text.encode("utf-8", "surrogatepass") for text in texts)).hex()
            sizes.remember(f"source {seed[-1]}", Size(len(rows), 0, mark), name)

    @property
    def account(self) -> Account:
        return self.told

    def samples(self, start: int) -> Iterator[Sample]:
        number, at = divmod(start, len(range(self.rank, len(self.rows), self.world)))
        for epoch in itertools.count(number):
            order = rng(*self.seed, epoch).permutation(len(self.rows))
            for row in order[self.rank :: self.world][at:].tolist():
                yield self.rows[row]
            at = 0


class Shards(Source):
    """Tars in an order drawn for each pass, and the samples of each in an order of its own. Tar i is read by
    rank i % world alone.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        words: Words,
        seed: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        sizes: Sizes | None = None,
    ):
        _check_share(name, len(paths), "shards", world)
        self.name, self.paths, self.words, self.seed = name, list(paths), words, seed
        self.own = range(rank, len(paths), world)
        self.sizes = sizes if sizes is not None else Sizes(None)
        self.told, self.counted = Account("image"), set[str]()  # a tar is counted when it is first read
        self.damaged: dict[str, str] = {}
        self.captions: dict[str, tuple[str, ...]] = {}  # of classes
        self.class_names: list[str] | None = None
        self.last: tuple[int, list[Sample]] | None = None  # the tar read last, and what it holds
        self.inner = inner_names(paths)
        self.keys = [f"source {seed[-1]}: {inner.strip('/')}" for inner in self.inner]
        known = Size(len(paths), 0, hash_of("\n".join(self.inner).encode()).hex())
        self.sizes.remember(f"source {seed[-1]}, its shards", known, f"{name}, its shards")
        for key, path in zip(self.keys, self.paths):
            self.sizes.check_bytes(key, path)

    @cached_property
    def total(self) -> int | None:
        """From sizes.json beside the tars. Errors: WordsightError where that holds something else."""
        place = beside(self.paths[0], SIZES)
        try:
            known = parse_json(fetch(place).decode("utf-8-sig"), place)
        except Gone:
            return None
        except UnicodeDecodeError as error:
            raise WordsightError(f"{place} is not UTF-8 text") from error
        names = [os.path.basename(path) for path in self.paths]
        if not isinstance(known, dict) or not all(type(known.get(name, 0)) is int for name in names):
            raise WordsightError(f'{place} is no list of sizes; expected {{"000.tar": 1000, ...}}')
        return sum(known[name] for name in names) if all(name in known for name in names) else None

    @property
    def account(self) -> Account:
        whole = Account("image")
        if self.damaged:
            each = few([f"{path} ({why})" for path, why in self.damaged.items()], "; ", 10)
            whole.remark(
                f"{counted(len(self.damaged), 'shard')} of {self.name} could not be read whole; what "
                f"could be read is used: {each}"
            )
        whole.add(self.told)
        return whole

    def samples(self, start: int) -> Iterator[Sample]:
        left, epoch = start, 0
        known = [self.sizes.known(self.keys[shard]) for shard in self.own]
        counted_all = [size for size in known if size is not None]
        if len(counted_all) == len(known) and sum(counted_all):
            epoch, left = divmod(start, sum(counted_all))
        for number in itertools.count(epoch):
            found = 0
            for shard in rng(*self.seed, number).permutation(self.own).tolist():
                size = self.sizes.known(self.keys[shard])
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
        """Read tars of the first pass until one gives a sample; none where one is known to. Errors:
        WordsightError where nothing comes.
        """
        own = [self.keys[shard] for shard in self.own]
        if not self.sizes.any_of(own) and not any(
            self.read(shard) for shard in rng(*self.seed, 0).permutation(self.own).tolist()
        ):
            raise self._nothing()

    def read(self, shard: int) -> list[Sample]:
        """The samples of a tar, in its order; none where it cannot be read, which is told."""
        if self.last is None or self.last[0] != shard:
            path = self.paths[shard]
            try:
                content = fetch(path)
            except Gone as error:
                self.damaged[path], content = str(error), b""
            samples = self._samples(shard, content) if content else []
            size = Size(len(samples), len(content), hash_of(content).hex())
            self.sizes.remember(self.keys[shard], size, path)
            self.last = (shard, samples)
        return self.last[1]

    def _samples(self, shard: int, content: bytes) -> list[Sample]:
        path, view, account = self.paths[shard], memoryview(content), Account("image")
        loader = partial(_cutter, view)
        found, damage = read_tar(
            io.BytesIO(content), len(content), self.inner[shard], account, loader, "captions"
        )
        if damage:
            self.damaged[path] = damage
        texts = self._class_captions(
            {row.label for row in found if not row.captions and row.label is not None}
        )
        samples = [(row.picture, row.captions or texts.get(row.label, ())) for row in found]
        whole = [sample for sample in samples if sample[1]]
        account.kept += len(whole)
        for picture, captions in samples:
            if not captions:
                account.leave(NO_CAPTION, picture.name)
        account.check()
        if account.seen and not whole and not damage and not self.sizes.any_of(self.keys):
            raise WordsightError(
                f"{path!r} has no image with a caption ({'; '.join(account.notes())}); expected key.txt, "
                'key.json with {"caption": ...} or key.cls beside each key.jpg'
            )
        if path not in self.counted:
            self.counted.add(path)
            self.told.add(account)
        return whole

    def _class_captions(self, labels: set[Label]) -> dict[Label | None, tuple[str, ...]]:
        """The captions of classes: those of classnames.txt are made together, others when they are met."""
        if labels and self.class_names is None:
            self.class_names = self._read_class_names()
            self._name(self.class_names)
        names = {label: self._class(label) for label in sorted(labels, key=str)}
        self._name([name for name in dict.fromkeys(names.values()) if name not in self.captions])
        return {label: self.captions[name] for label, name in names.items()}

    def _name(self, names: Sequence[str]) -> None:
        if names:
            self.captions |= zip(names, self.words.captions_of(names, self.name, self.told))

    def _class(self, label: Label) -> str:
        if isinstance(label, str):
            return label
        if not self.class_names:
            place = beside(self.paths[0], CLASSNAMES)
            raise WordsightError(
                f"the labels of {self.name!r} are numbers, and words are needed: put {CLASSNAMES}, one name "
                f"a line, at {place!r}"
            )
        if not 0 <= label < len(self.class_names):
            raise WordsightError(
                f"label {label} of {self.name!r} is outside its {CLASSNAMES} of {len(self.class_names)} "
                f"names; labels count from 0"
            )
        return self.class_names[label]

    def _read_class_names(self) -> list[str]:
        for name in (CLASSNAMES, f"../{CLASSNAMES}"):
            place = beside(self.paths[0], name)
            try:
                return class_lines(fetch(place).decode("utf-8-sig"))
            except Gone:
                continue
            except UnicodeDecodeError as error:
                raise WordsightError(f"{place} is not UTF-8 text") from error
        return []

    def _nothing(self) -> WordsightError:
        empty = "they hold no images; expected samples such as 000.jpg with 000.txt"
        return WordsightError(
            f"none of the {counted(len(self.own), 'shard')} of {self.name!r} gives an image with a caption: "
            f"{'; '.join(self.account.notes()) or empty}"
        )


def _cutter(view: memoryview, start: int, size: int) -> Callable[[], bytes]:
    return partial(_cut, view, start, start + size)


def _cut(view: memoryview, start: int, end: int) -> bytes:
    return bytes(view[start:end])


def rng(*parts: int) -> np.random.Generator:
    """Random numbers that `parts` alone decide."""
    return np.random.default_rng([part % 2**32 for part in parts])


def _check_share(name: str, count: int, what: str, world: int) -> None:
    if count < world:
        raise WordsightError(
            f"{name!r} has {count} {what} for {world} processes, and each needs one at least; start "
            f"{count} processes or fewer, or cut it into more"
        )
