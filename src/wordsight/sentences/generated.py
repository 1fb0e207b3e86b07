"""Sentences written by an LLM: each class is asked about several times, and every answer is kept with its
model, question and seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wordsight.backbones import OWN_FILE, Backbone, hub, load_backbone, pick_device
from wordsight.config import WordsightError
from wordsight.files import read_json, write_file
from wordsight.reader import nearest
from wordsight.sentences import CACHE_FORMAT, cached_texts, fill

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from wordsight.backbones.text_tower import TextTower

QUESTIONS = Path(__file__).parent / "questions.json"
TRIES = 4  # an empty answer is asked for again with three more seeds

ROWS = 64  # answers that a model run here writes at once
Ask = Callable[
    [list[tuple[str, int]]], Iterable[tuple[str, bool]]
]  # [(question, seed)] -> [(answer, whether max_tokens cut it)]


@dataclass(frozen=True)
class WriterSettings:
    """Which LLM writes, what it is asked, and how often. The temperature is CuPL's; so is the manner of the
    questions, not their words.
    """

    # a server's model name; with local=true a folder or a hub name of a causal LM, or of a backbone that has
    # one (a two_tower run)
    model: str
    base_url: str | None = (
        None  # any OpenAI-compatible server, such as http://localhost:8000/v1; null is api.openai.com
    )
    local: bool = False  # run the model here, with transformers
    # the environment variable that holds the key; a server given by base_url may go without
    api_key_env: str = "OPENAI_API_KEY"
    questions: str | tuple[str, ...] = (
        "generic"  # a set in questions.json, or your own questions, each with one {}
    )
    # follows the question; a model without chat template never sees it
    instruction: str = "Answer in one plain sentence, without lists or markup."
    per_question: int = 10
    temperature: float = 0.99
    max_tokens: int = 60  # CLIP reads 77 tokens and drops the rest
    seed: int = 1
    workers: int = 4  # requests under way at once
    retries: int = (
        5  # by the openai client, with growing pauses: rate limits, lost connections, server errors
    )
    device: str = "auto"  # for a local model

    def __post_init__(self):
        for name, least in (
            ("per_question", 1),
            ("max_tokens", 1),
            ("workers", 1),
            ("retries", 0),
            ("temperature", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise WordsightError(
                    f"{name}={getattr(self, name)} is too small; it must be at least {least}"
                )
        if self.local and self.base_url is not None:
            raise WordsightError(
                f"local=true runs the model here, base_url={self.base_url!r} asks a server: give one of them"
            )


class Answer(NamedTuple):
    question: str
    seed: int
    text: str


def read_questions(which: str | Sequence[str]) -> tuple[str, ...]:
    """The questions of a set in questions.json, or one's own. Each holds one `{}`; `a(n) {}` becomes "a" or
    "an" as the name demands.
    """
    if isinstance(which, str):
        table = read_json(QUESTIONS, "question file")
        if which not in table:
            raise WordsightError(
                f"question set {which!r} is not known{nearest(which, table)}; give your own list or one of "
                f"{', '.join(table)}"
            )
        which = table[which]
    if not which:
        raise WordsightError("the list of questions is empty; 'generic' names a ready set")
    for question in which:
        if not isinstance(question, str) or question.count("{}") != 1:
            raise WordsightError(
                f"question {question!r} must be text that holds {{}} once, where the class name goes"
            )
    return tuple(which)


def ask_about(question: str, name: str) -> str:
    """The question with the class name in it: ask_about("Describe a(n) {}.", "old_owl") is "Describe an old
    owl.".
    """
    return fill(
        question.replace("a(n) {}", f"{article(name)} {{}}").replace(
            "A(n) {}", f"{article(name).capitalize()} {{}}"
        ),
        name,
    )


def article(name: str) -> str:
    """ "a" or "an" by sound: a unicycle, an hour, an F-16, a U-2, an 8-ball. A guess by rule, right for
    nearly all names.
    """
    first = re.split(r"[\s_/-]", name.strip(" _"))[0] if name.strip(" _") else ""
    letters = re.match(r"[A-Z]*", first)[0]
    spelled = (
        len(first) == 1
        or (letters and first[len(letters) :].isdigit())
        or (len(letters) > 1 and not set(letters) & set("AEIOUY"))
    )
    if 1 < len(letters) < 4 and letters[0] == "U":  # USB, UAV
        return "a"
    if spelled and first[0].isalpha():  # read letter by letter: MG, A320, F/A-18
        return "an" if first[0] in "AEFHILMNORSXaefhilmnorsx" else "a"
    if first[:1].isdigit():  # eight, eleven, eighteen and the years 11xx, 18xx
        return "an" if re.match(r"8|1[18](\d\d)?(?!\d)", first) else "a"
    word = first.lower()
    if re.match(r"hour|honest|honou?r|heir|suv$", word):
        return "an"
    if re.match(r"eu|ewe|one(?![a-z])|once|ouija|uk[aeiou]|uni(?![nm])|ur[ai]|us[aeiu]|ut[aeio]", word):
        return "a"
    return "an" if word[:1] in tuple("aeiou") else "a"


def clean(answer: str, cut: bool = False) -> str:
    """One line of text. A `<think>` part goes; an answer that max_tokens cut ends with its last whole
    sentence, if it has one.
    """
    text = re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.DOTALL)
    text = " ".join(
        text.encode("utf-8", "ignore").decode().split()
    )  # half a surrogate pair cannot be written to a file
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s|$)", text)] if cut else []
    return text[: ends[-1]] if ends else text


def write_sentences(
    class_names: Sequence[str],
    settings: WriterSettings,
    path: str | Path,
    progress: bool = True,
    *,
    tower: TextTower | None = None,
) -> dict[str, tuple[str, ...]]:
    """An LLM's sentences about each class, kept in the JSON file `path`. With `tower`, its LM writes,
    adapters off, instead of what settings.model names.

    CuPL (Pratt et al., 2023) asks a few questions about each class and keeps several answers to each; this is
    that, with any model. The file is written after each class, so a stopped call resumes and asks only for
    what is missing, and nothing in the file is ever asked for again. `read_sentences(path, class_names)`
    reads it back. Differs from CuPL: chat models, one request an answer, own questions.

    Errors: WordsightError when the file was written with other settings (the difference is shown), when the
    server or the model is not to be had, and when a class gets no usable answer at all. Some empty answers
    are warned of."""
    names = tuple(dict.fromkeys(class_names))
    path = Path(path)
    questions = read_questions(settings.questions)
    cache = _open_cache(path, _header(settings, questions))
    missing = [name for name in names if not cache["sentences"].get(name)]
    if missing:
        write_file(
            path, json.dumps(cache, ensure_ascii=False, indent=1) + "\n"
        )  # a folder that cannot be written to is found before the first answer is paid for
        with _writer(settings, tower) as ask:
            for name in _shown(missing, progress):
                answers = _answers(name, questions, settings, ask)
                cache["sentences"][name] = [answer._asdict() for answer in answers if answer.text]
                if empty := sum(not answer.text for answer in answers):
                    cache["empty"][name] = empty
                write_file(path, json.dumps(cache, ensure_ascii=False, indent=1) + "\n")
        _warn(cache, missing, settings, path)
    texts = cached_texts(cache, path.name)
    return {name: texts[name] for name in names}


def _answers(name: str, questions: Sequence[str], settings: WriterSettings, ask: Ask) -> list[Answer]:
    """An answer for each question and seed. An empty one is asked for again; the seeds of later tries are
    none of the first ones.
    """
    jobs = [
        (ask_about(question, name), settings.seed + i)
        for question in questions
        for i in range(settings.per_question)
    ]
    answers, left = [Answer(question, seed, "") for question, seed in jobs], list(range(len(jobs)))
    for attempt in range(TRIES):
        tried = [(jobs[row][0], jobs[row][1] + attempt * settings.per_question) for row in left]
        for row, (question, seed), answer in zip(left, tried, ask(tried)):
            if text := clean(*answer):
                answers[row] = Answer(question, seed, text)
        left = [row for row in left if not answers[row].text]
        if not left:
            break
    if len(left) == len(jobs):
        raise WordsightError(
            f"model {settings.model!r} gave only empty answers about class {name!r}; try a larger "
            f"max_tokens or another model"
        )
    return answers


def _warn(cache: Mapping[str, Any], written: Sequence[str], settings: WriterSettings, path: Path) -> None:
    empty = sum(cache["empty"].get(name, 0) for name in written)
    if empty:
        warnings.warn(
            f"{empty} answers were empty {TRIES} times over and are left out of {path.name}", stacklevel=3
        )
    groups: dict[str, list[str]] = {}
    for name in written:
        for entry in cache["sentences"][name]:
            groups.setdefault(entry["question"], []).append(entry["text"])
    if (
        settings.temperature
        and settings.per_question > 1
        and all(len(texts) > 1 and len(set(texts)) == 1 for texts in groups.values())
    ):
        warnings.warn(
            f"model {settings.model!r} gave the same answer for every seed, so {path.name} holds each text "
            f"{settings.per_question} times: the server "
            "ignores the temperature (`transformers serve` does unless the model's generation_config.json "
            "has do_sample)",
            stacklevel=3,
        )


def _header(settings: WriterSettings, questions: Sequence[str]) -> dict[str, Any]:
    """The settings that decide the texts. The server's address is not among them: the same model may move."""
    same = ("model", "local", "instruction", "per_question", "temperature", "max_tokens", "seed")
    return {
        "format": CACHE_FORMAT,
        **{name: getattr(settings, name) for name in same},
        "questions": list(questions),
    }


def _open_cache(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    if not path.exists():
        return {**header, "empty": {}, "sentences": {}}
    cache = read_json(path, "sentence file")
    if not isinstance(cache, dict) or not isinstance(cache.get("format"), str):
        raise WordsightError(
            f"{str(path)!r} was not written by write_sentences and will not be overwritten; give another path"
        )
    cached_texts(cache, path.name)
    if not cache[
        "sentences"
    ]:  # a call that failed before its first class, perhaps on a wrong model name, binds nobody
        return {**header, "empty": {}, "sentences": {}}
    changed = [
        f"{key}: {cache.get(key)!r} in the file, {value!r} asked for"
        for key, value in header.items()
        if cache.get(key) != value
    ]
    if changed:
        raise WordsightError(
            f"{str(path)!r} was written with other settings ({'; '.join(changed)}); give another path, or "
            f"the file's settings"
        )
    return {"empty": {}, **cache}


def _shown(names: Sequence[str], progress: bool) -> Iterator[str]:
    from rich.console import Console
    from rich.progress import track

    yield from track(names, "writing sentences", console=Console(stderr=True), disable=not progress)


@contextlib.contextmanager
def _writer(settings: WriterSettings, tower: TextTower | None) -> Iterator[Ask]:
    if tower is not None or settings.local:
        yield _local(settings) if tower is None else _asked(tower.tokenizer, tower.generate_tokens, settings)
        return
    with _client(settings) as client, ThreadPoolExecutor(settings.workers) as pool:
        try:
            yield lambda jobs: pool.map(lambda job: _ask_server(client, settings, *job), jobs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _client(settings: WriterSettings):
    import openai

    key = os.environ.get(settings.api_key_env) or (settings.base_url and "none")
    if not key:
        raise WordsightError(
            f"no API key: environment variable {settings.api_key_env} is not set. Set it, "
            "or give base_url= (a server of your own needs none) or local=true"
        )
    return openai.OpenAI(api_key=key, base_url=settings.base_url, max_retries=settings.retries)


def _ask_server(client: Any, settings: WriterSettings, question: str, seed: int) -> tuple[str, bool]:
    import openai

    limit = (
        "max_tokens" if settings.base_url else "max_completion_tokens"
    )  # OpenAI's newer models refuse the first, other servers lack the second
    try:
        reply = client.chat.completions.create(
            model=settings.model,
            messages=[{"role": "user", "content": f"{question} {settings.instruction}".strip()}],
            temperature=settings.temperature,
            seed=seed,
            **{limit: settings.max_tokens},
        )
    except openai.OpenAIError as error:
        raise WordsightError(_spoken(error, client, settings)) from error
    except json.JSONDecodeError:  # the client lets a broken body through as it is
        reply = None
    if not isinstance(reply, openai.types.chat.ChatCompletion) or not reply.choices:
        raise WordsightError(
            f"{client.base_url} answered, but not as an OpenAI-compatible server does; its base_url "
            f"usually ends in /v1"
        )
    choice = reply.choices[0]
    return choice.message.content or "", choice.finish_reason == "length"


def _spoken(error: Exception, client: Any, settings: WriterSettings) -> str:
    """What went wrong at which address, and what would mend it. Never shows the key."""
    import openai

    at, said = (
        str(client.base_url).rstrip("/"),
        " ".join(str(error).replace(client.api_key, "***").split())[:300],
    )
    if isinstance(error, openai.APITimeoutError):
        return f"{at} took too long to answer; fewer workers or a smaller model may help"
    if isinstance(error, openai.APIConnectionError):
        return (
            f"no server answers at {at} ({str(error.__cause__ or error)[:200]}); is it running, and is "
            f"base_url right?"
        )
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        return f"{at} refused the API key in environment variable {settings.api_key_env}: {said}"
    if isinstance(error, openai.NotFoundError):
        return (
            f"{at} does not know model {settings.model!r}, or is no OpenAI-compatible address (it usually "
            f"ends in /v1): {said}"
        )
    if isinstance(error, openai.RateLimitError):
        return (
            f"{at} still limits requests after {settings.retries} retries; run the same call later, it "
            f"resumes: {said}"
        )
    return f"{at} did not answer for model {settings.model!r}: {said}"


def _local(settings: WriterSettings) -> Ask:
    """A model run here: a causal LM of transformers, or the one inside a backbone of ours."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device, folder = pick_device(settings.device), Path(settings.model)
    ours = folder if folder.is_dir() else hub.own(settings.model)
    if ours is not None and (ours / OWN_FILE).is_file():
        tower = writer_of(load_backbone(settings.model, device=settings.device))
        return _asked(tower.tokenizer, tower.generate_tokens, settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        model = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto").to(device).eval()
    except (OSError, ValueError, ImportError) as error:
        raise WordsightError(
            f"model {settings.model!r} cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    model.requires_grad_(
        False
    )  # a weight that wants a gradient is multiplied in another order, which moves the last bits
    padding = next(
        (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
    )

    def generate(prompts: list[list[int]], **sampling: Any) -> torch.Tensor:
        width = max(map(len, prompts))  # padding stands before a prompt, where the last token's answer begins
        ids = torch.tensor([[padding] * (width - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask, pad_token_id=padding, **sampling)[
                :, ids.shape[1] :
            ]

    return _asked(tokenizer, generate, settings)


def _asked(tokenizer: Any, generate: Callable[..., torch.Tensor], settings: WriterSettings) -> Ask:
    """The seed of an answer comes from the question's text and its number, so order and resuming change
    nothing.
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def ask(jobs: list[tuple[str, int]]) -> list[tuple[str, bool]]:
        answers = []
        for start in range(0, len(jobs), ROWS):
            part = jobs[start : start + ROWS]
            prompts = [_prompt(tokenizer, question, settings.instruction) for question, _ in part]
            seeds = [
                int.from_bytes(hashlib.blake2b(f"{seed} {question}".encode(), digest_size=7).digest())
                for question, seed in part
            ]
            for tokens in generate(
                prompts, max_new_tokens=settings.max_tokens, **drawn(settings.temperature, seeds)
            ).tolist():
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                if not tokenizer.chat_template:
                    text = text.split("\nQ:")[
                        0
                    ]  # a plain language model goes on to ask itself the next question
                answers.append((text, len(tokens) == settings.max_tokens and tokens[-1] not in ends))
        return answers

    return ask


def drawn(temperature: float, seeds: Sequence[int]) -> dict[str, Any]:
    """The settings of transformers' `generate` for one seed a row; at temperature 0 the likeliest token
    always follows.
    """
    from transformers import LogitsProcessorList

    if not 0 <= temperature < math.inf or min(seeds) < 0:
        raise WordsightError(
            f"temperature={temperature} with seed={min(seeds)} is not possible; both are 0 or more"
        )
    return {"do_sample": False} | (
        {"logits_processor": LogitsProcessorList([Draws(temperature, seeds)])} if temperature else {}
    )


class Draws:
    """Each row draws its tokens from a seed of its own, so that what is written does not depend on which
    other rows run beside it.

    The largest of logits / temperature + Gumbel noise is a draw from their softmax: greedy generation over
    such scores samples."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        import torch

        self.temperature, self.generators = (
            temperature,
            [torch.Generator().manual_seed(seed) for seed in seeds],
        )

    def __call__(
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B vocabulary"]
    ) -> Float[Tensor, "B vocabulary"]:
        import torch

        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() / self.temperature - noise.log().to(scores.device)


def tower_of(backbone: Backbone) -> TextTower:
    """The language model inside a backbone, as its text tower. Errors: WordsightError where there is none."""
    from wordsight.backbones.llm import LLM

    if not isinstance(backbone, LLM):
        raise WordsightError(
            f"backbone {backbone.name!r} is a {type(backbone).__name__}, which has no language model as "
            f"its text tower; give a two_tower run, or its folder"
        )
    return backbone.text


def writer_of(backbone: Backbone) -> TextTower:
    """The LM inside a backbone that writes as it came, once its adapters are off. Errors: WordsightError
    where there is none.
    """
    tower, other = tower_of(backbone), "have another LM write, with `wordsight sentences`"
    if not tower.can_generate:
        raise WordsightError(
            f"the text tower of {backbone.name!r} is {tower.plain.config.model_type}, an encoder, which "
            f"cannot write; {other}"
        )
    if not tower.writes_as_before:
        raise WordsightError(
            f"the LM of {backbone.name!r} was itself trained (train={tower.settings.train}, "
            f"bias={tower.settings.bias}): there is no untouched one to write "
            f"sentences; {other}"
        )
    return tower


def _prompt(tokenizer: Any, question: str, instruction: str) -> list[int]:
    if not tokenizer.chat_template:
        return tokenizer(f"Q: {question}\nA:")["input_ids"]
    messages = [{"role": "user", "content": f"{question} {instruction}".strip()}]
    # enable_thinking is read by templates of reasoning models and ignored by the others
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, enable_thinking=False
    )["input_ids"]
