"""Writers: sentences about classes by an LLM, each kept with its model, question and seed."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from wordsight.cluster import Needs, current
from wordsight.files import WordsightError, nfc
from wordsight.sentences import CACHE_FORMAT, cached_texts
from wordsight.sentences.cleaning import clean
from wordsight.sentences.questions import ask_about, read_questions
from wordsight.sentences.records import Job, Record, load_record, waiting, writing
from wordsight.sentences.servers import SHOWN, Reply, connected
from wordsight.settings import WriterSettings
from wordsight.workers import each

if TYPE_CHECKING:
    from wordsight.backbones.text_tower import TextTower

TRIES = 4  # an empty answer is asked for again with three more seeds
SIGNS_A_TOKEN = 10  # characters of an answer that are kept, times max_tokens: more is not what was asked for
log = logging.getLogger("wordsight")


# [(question, seed)] -> an answer to each, in order
Ask = Callable[[Sequence[tuple[str, int]]], Iterable[Reply]]
# the classes that a batch asked about, and an empty answer of each that had one
Asked: TypeAlias = tuple[list[str], dict[str, Reply]]


@dataclass(frozen=True)
class Writer:
    """A model that answers: so many calls of `ask` at once, each with one question; or, with `rows`, with
    about so many, all those about some classes, so that the same rows stand beside one another whenever they
    are asked.
    """

    ask: Ask
    jobs: int = 1
    rows: int = 0
    stop: Callable[[], None] | None = None  # ends at once what is under way


@dataclass(frozen=True)
class FarWriter:
    """A model that answers in the processes of a cluster, each with `needs`, about so many `rows` at once."""

    needs: Needs
    rows: int
    tower: TextTower | None  # None: the settings name the model


def write_sentences(
    class_names: Sequence[str],
    settings: WriterSettings,
    path: str | Path,
    *,
    tower: TextTower | None = None,
    wait: bool = False,
) -> dict[str, tuple[str, ...]]:
    """An LLM's sentences about each class, kept in the JSON file `path`. With `tower`, its LM writes,
    adapters off, instead of what settings.model names.

    CuPL (Pratt et al., 2023) asks a few questions about each class and keeps several answers to each; this is
    that, with any model. Every answer is on the disk before the next is asked for (records.py), so a stopped
    call resumes and asks only for what is missing, and nothing that was answered is ever asked for again.
    `read_sentences(path, class_names)` reads the file back. Differs from CuPL: chat models, one request an
    answer, own questions.

    Errors: WordsightError when the file was written with other settings (the difference is shown), when
    another process writes it (or `wait` for that one to end), when the server or the model is not to be had,
    and when a class gets no usable answer at all. Some empty answers are warned of."""
    names = tuple(dict.fromkeys(map(nfc, class_names)))
    questions = read_questions(settings.questions)
    asked = {name: [ask_about(question, name) for question in questions] for name in names}
    header = header_of(settings, questions)
    texts = write_answers(asked, header, settings, Path(path).expanduser(), tower=tower, wait=wait)
    return {name: texts[nfc(name)] for name in class_names}


def write_answers(
    asked: Mapping[str, Sequence[str]],
    header: Mapping[str, Any],
    settings: WriterSettings,
    path: Path,
    *,
    tower: TextTower | None = None,
    wait: bool = False,
) -> dict[str, tuple[str, ...]]:
    """An LLM's answers to the questions `asked` about each class, kept under `header` in the file `path`, as
    `write_sentences` has it. The header decides the questions about a class.
    """
    cache = load_record(path, header)
    if not all(cache["sentences"].get(name) for name in asked):
        with settings.on(), writing(path, header, wait=wait) as record:
            _Call(record, asked, settings).run(tower)
            cache = record.cache
    elif waiting(path):  # a call was stopped between its last two steps, or another one adds classes
        with contextlib.suppress(WordsightError), writing(path, header):
            pass
    return cached_texts(cache, path.name)


def header_of(settings: WriterSettings, questions: Sequence[str]) -> dict[str, Any]:
    """The settings that decide the texts. The server's address is not among them: the same model may move."""
    same = ("model", "local", "instruction", "per_question", "temperature", "max_tokens", "seed")
    return {
        "format": CACHE_FORMAT,
        **{name: getattr(settings, name) for name in same},
        "questions": list(questions),
    }


@contextlib.contextmanager
def _writer(settings: WriterSettings, tower: TextTower | None) -> Iterator[Writer | FarWriter]:
    if tower is not None or settings.local:
        from wordsight.sentences.local import ROWS, needs_of

        if current() is not None:
            yield FarWriter(needs_of(settings, tower), ROWS, tower)
        else:
            yield Writer(_local_ask(settings, tower), rows=ROWS)
        return
    with connected(settings) as server:
        yield Writer(server.ask_all, settings.workers, stop=server.stop)


class _Call:
    """One call of `write_sentences`: what it asks, and how far it is."""

    def __init__(self, record: Record, asked: Mapping[str, Sequence[str]], settings: WriterSettings):
        self.record, self.settings = record, settings
        seeds = range(settings.seed, settings.seed + settings.per_question)
        self.jobs = {  # of each class that the file does not hold
            name: [Job(name, question, seed) for question in questions for seed in seeds]
            for name, questions in asked.items()
            if not record.cache["sentences"].get(name)
        }
        self.failure: WordsightError | None = None  # no further question is asked after it

    def run(self, tower: TextTower | None) -> None:
        """Ask, and write the file: as far as it came, where this is stopped."""
        done: set[str] = set()
        try:
            with _writer(self.settings, tower) as writer:
                for name in self._asked(writer):
                    done.add(name)
        finally:
            self._settle(done)
        self._warn()

    def _asked(self, writer: Writer | FarWriter) -> Iterator[str]:
        """Ask whatever has no answer yet. Gives the classes about which all is asked."""
        batches = self._batches(writer.rows)
        left = Counter(name for batch in batches for name in _names(batch))
        yield from [name for name in self.jobs if not left[name]]

        far = isinstance(writer, FarWriter)
        asked = self._far(writer, batches) if far else self._here(writer, batches)
        for names, empty in asked:
            for name in names:
                left[name] -= 1
                if left[name] == 0:
                    self._demand_one(name, empty.get(name))
                    yield name

    def _batches(self, rows: int) -> list[list[Job]]:
        """What is asked at once. A whole batch is asked again though some of it was answered."""
        if not rows:
            return [[job] for group in self.jobs.values() for job in group if self._answered(job) is None]
        batches: list[list[Job]] = []
        for group in self.jobs.values():
            if batches and len(batches[-1]) + len(group) <= rows:
                batches[-1] += group
            else:
                batches.append(list(group))
        return [batch for batch in batches if any(self._answered(job) is None for job in batch)]

    def _answered(self, job: Job) -> Job | None:
        tries = _tries(job, self.settings)
        return next((tried for tried in tries if tried in self.record.answers), None)

    def _here(self, writer: Writer, batches: list[list[Job]]) -> Iterator[Asked]:
        def ending() -> None:  # after a failure what is under way is paid for, and waited for
            if writer.stop is not None and self.failure is None:
                writer.stop()

        replies, label = partial(self._replies, writer.ask), "batches" if writer.rows else "questions"
        work = partial(_ask, replies, self.settings, self.record.add)
        return each(work, batches, jobs=writer.jobs, label=label, ending=ending)

    def _far(self, writer: FarWriter, batches: list[list[Job]]) -> Iterator[Asked]:
        """The same on a cluster; what comes back is on the disk before the class counts as asked about."""
        given = (self.settings, writer.tower, writer.needs.cpus)
        found = each(
            _write, batches, jobs=1, given=given, processes=True, label="batches", needs=writer.needs
        )
        with contextlib.closing(found):
            for answers, asked in found:
                for job, text in answers:
                    self.record.add(job, text)
                yield asked

    def _replies(self, ask: Ask, questions: Sequence[tuple[str, int]]) -> Iterator[Reply]:
        if self.failure is not None:
            raise self.failure
        try:
            yield from ask(questions)
        except WordsightError as error:
            self.failure = self.failure or error
            raise

    def _demand_one(self, name: str, empty: Reply | None) -> None:
        if any(self._answered(job) for job in self.jobs[name]):
            return
        says, hint = "", "try a larger max_tokens or another model"
        if empty is not None and empty.words:
            says = f"; it says: {empty.words}"
        elif empty is not None and empty.cut:
            hint = f"max_tokens={self.settings.max_tokens} cut its thoughts, so give a larger max_tokens"
        self.failure = WordsightError(
            f"model {self.settings.model!r} gave only empty answers about class {name!r}{says or '; ' + hint}"
        )
        raise self.failure

    def _settle(self, done: set[str]) -> None:
        """Write the classes that are done into the file, up to the first that is not: so an unbroken call has
        the same order.
        """
        count = 0
        for name, group in self.jobs.items():
            if name not in done:
                break
            answered = [self._answered(job) for job in group]
            self.record.settle(name, [job for job in answered if job], answered.count(None))
            count += 1
        if count:
            self.record.write()

    def _warn(self) -> None:
        cache, settings, file = self.record.cache, self.settings, self.record.path.name
        if empty := sum(cache["empty"].get(name, 0) for name in self.jobs):
            log.warning(f"{empty} answers were empty {TRIES} times over and are left out of {file}")
        texts: dict[str, list[str]] = {}
        told_of: dict[str, set[str]] = {}  # the classes that a text stands under
        for name in self.jobs:
            for entry in cache["sentences"][name]:
                texts.setdefault(entry["question"], []).append(entry["text"])
                told_of.setdefault(entry["text"], set()).add(name)
        shared = [text for text, names in told_of.items() if len(names) > 1]
        if shared:
            count = len(set[str]().union(*(told_of[text] for text in shared)))
            log.warning(
                f"{file} holds the same text under {count} classes, which tells nothing of either (does "
                f"{settings.model!r} decline to answer?): {shared[0][:SHOWN]!r}"
            )
        same = all(len(group) > 1 and len(set(group)) == 1 for group in texts.values())
        if settings.temperature and settings.per_question > 1 and same:
            log.warning(
                f"model {settings.model!r} gave the same answer for every seed, so {file} holds each text "
                f"{settings.per_question} times: the server ignores the temperature (`transformers serve` "
                "does unless the model's generation_config.json has do_sample)"
            )


def _tries(job: Job, settings: WriterSettings) -> list[Job]:
    """The same question with the seeds that are tried in turn: none of them is first for another."""
    return [job._replace(seed=job.seed + i * settings.per_question) for i in range(TRIES)]


def _ask(ask: Ask, settings: WriterSettings, keep: Callable[[Job, str], None], batch: list[Job]) -> Asked:
    """Ask a batch, and again what is answered with nothing."""
    left, empty = batch, {}
    for attempt in range(TRIES):
        tried = [_tries(job, settings)[attempt] for job in left]
        unanswered = []
        for job, asked, reply in zip(left, tried, ask([(one.question, one.seed) for one in tried])):
            text = clean(reply.text, reply.cut, SIGNS_A_TOKEN * settings.max_tokens)
            if text:
                keep(asked, text)
            else:
                unanswered.append(job)
                empty[job.name] = reply
        left = unanswered
        if not left:
            break
    return _names(batch), empty


def _write(
    batch: list[Job], settings: WriterSettings, tower: TextTower | None, threads: int
) -> tuple[list[tuple[Job, str]], Asked]:
    """Ask a batch in a process of a cluster. Gives the answers, too."""
    import torch

    torch.set_num_threads(threads)
    answers: list[tuple[Job, str]] = []
    ask = _loaded(settings) if tower is None else _local_ask(settings, tower)
    asked = _ask(ask, settings, lambda job, text: answers.append((job, text)), batch)
    return answers, asked


@cache
def _loaded(settings: WriterSettings) -> Ask:
    return _local_ask(settings, None)


def _local_ask(settings: WriterSettings, tower: TextTower | None) -> Ask:
    from wordsight.sentences.local import local_ask

    return local_ask(settings, tower)


def _names(batch: Sequence[Job]) -> list[str]:
    """The classes that a batch asks about."""
    return list(dict.fromkeys(job.name for job in batch))
