"""Local: answers of a language model that runs here, of transformers or inside a backbone of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wordsight.backbones import DTYPES, OWN_FILE, Backbone, hub, load_backbone, pick_device
from wordsight.backbones.sampling import drawn
from wordsight.cluster import Needs
from wordsight.early import is_run
from wordsight.files import WordsightError
from wordsight.sentences.cleaning import marked
from wordsight.sentences.servers import Reply

if TYPE_CHECKING:
    from torch import Tensor

    from wordsight.backbones.text_tower import TextTower
    from wordsight.sentences.writers import Ask
    from wordsight.settings import WriterSettings

ROWS = 64  # answers that are written at once


def local_ask(settings: WriterSettings, tower: TextTower | None) -> Ask:
    """Who answers: the LM of `tower`, its adapters off, or the model that the settings name.

    Errors: WordsightError where it cannot be loaded."""
    if tower is None:
        folder = Path(settings.model).expanduser()
        ours = folder if folder.is_dir() else hub.own(settings.model)
        if ours is not None and (ours / OWN_FILE).is_file():
            tower = writer_of(load_backbone(settings.model, device=settings.device))
        elif ours is not None and is_run(ours):
            raise WordsightError(
                f"model {settings.model!r} is a run without an LM of its own as text tower; give a two_tower "
                f"run, or the LM that it was made with"
            )
    if tower is not None:
        return asker(tower.tokenizer, tower.generate_tokens, settings)
    return asker(*_causal_lm(settings), settings)


def needs_of(settings: WriterSettings, tower: TextTower | None) -> Needs:
    """What a process of a cluster needs to write as this one would: its threads, and a GPU for one here."""
    import torch

    device = pick_device(settings.device) if tower is None else tower.device
    return Needs(torch.get_num_threads(), int(torch.device(device).type == "cuda"))


def _causal_lm(settings: WriterSettings) -> tuple[Any, Callable[..., Tensor]]:
    """A decoder LM of transformers, in the dtype of its file: its tokenizer, and what writes on from rows of
    tokens.
    """
    import torch

    from wordsight.backbones.checkpoint import Place, padding_of, positions_of, read_config
    from wordsight.backbones.lm import load_lm, write_on
    from wordsight.backbones.sampling import keep_ends

    device = pick_device(settings.device)
    try:
        place = Place(hub.find(str(Path(settings.model).expanduser()), "LM"), "LM", settings.model)
        kept = str(read_config(place).dtype).removeprefix("torch.")
        lm, tokenizer = load_lm(place, "writer", dtype=kept if kept in DTYPES else "float32")
    except WordsightError as error:
        raise WordsightError(f"model={settings.model}: {error}") from error
    # transformers' stub wraps `to` and loses `self`
    model = lm.to(device).requires_grad_(False)  # pyright: ignore[reportArgumentType]
    keep_ends(model, tokenizer)
    padding, positions = padding_of(tokenizer), positions_of(model.config)

    def generate(prompts: list[list[int]], **sampling: Any) -> Tensor:
        width, new = max(map(len, prompts)), settings.max_tokens
        if positions is not None and width + new > positions:
            raise WordsightError(
                f"a question of {width} tokens and max_tokens={new} do not fit into the {positions} "
                f"positions of {settings.model}; give a smaller max_tokens, or a shorter question"
            )
        # padding stands before a prompt, where the last token's answer begins
        ids = torch.tensor([[padding] * (width - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        with torch.inference_mode():
            written = write_on(model, inputs=ids, attention_mask=mask, pad_token_id=padding, **sampling)
        return written[:, width:]

    return tokenizer, generate


def asker(tokenizer: Any, generate: Callable[..., Tensor], settings: WriterSettings) -> Ask:
    """Answers in batches. The seed of each comes from the question's text and its number, so order and
    resuming change nothing.
    """

    def ask(jobs: Sequence[tuple[str, int]]) -> Iterator[Reply]:
        for start in range(0, len(jobs), ROWS):
            part = jobs[start : start + ROWS]
            prompts = [_prompt(tokenizer, question, settings) for question, _ in part]
            seeds = [_seed(question, seed) for question, seed in part]
            sampling = drawn(settings.temperature, seeds)
            for tokens in generate(prompts, max_new_tokens=settings.max_tokens, **sampling).tolist():
                yield _reply(tokenizer, tokens, settings)

    return ask


def _seed(question: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {question}".encode(), digest_size=7).digest())


def _reply(tokenizer: Any, tokens: list[int], settings: WriterSettings) -> Reply:
    cut = len(tokens) == settings.max_tokens and tokens[-1] not in (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    whole = tokenizer.decode(tokens)
    # marks of thoughts may be special tokens, without which a thought would stand there as the answer
    text = whole if marked(whole) else tokenizer.decode(tokens, skip_special_tokens=True)
    if not tokenizer.chat_template:
        text = text.split("\nQ:")[0]  # a plain language model goes on to ask itself the next question
    return Reply(text, cut)


def _prompt(tokenizer: Any, question: str, settings: WriterSettings) -> list[int]:
    """The tokens of a question. Errors: WordsightError where the chat template cannot hold one."""
    if not tokenizer.chat_template:
        return tokenizer(f"Q: {question}\nA:")["input_ids"]
    from wordsight.backbones.tokens import rendered

    messages = [{"role": "user", "content": f"{question} {settings.instruction}".strip()}]
    text = rendered(settings.model, tokenizer, messages)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# -- the LM inside a backbone --


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
