"""tokens: which an LM knows of those that a tokenizer makes, what people wrote kept apart from those that end
a turn or show an image, and messages as the text that an LM was trained to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from wordsight.backbones.checkpoint import vocabulary_size
from wordsight.backbones.hub import first_line
from wordsight.config import WordsightError

# what templates of reasoning models read, so that they answer at once; the others ignore it
NO_THINKING = {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}


def rendered(
    name: str, tokenizer: Any, messages: Sequence[dict[str, Any]], template: str | None = None
) -> str:
    """Messages as the chat template of the tokenizer (or another `template`) writes them, with what begins an
    answer. It brings its own begin token; what people wrote brings no special token (`as_text`). Errors:
    WordsightError where the template of `name` cannot hold them."""
    told = [one | {"content": _said(one["content"], tokenizer)} for one in messages]
    how = {"chat_template": template, "add_generation_prompt": True, "tokenize": False, **NO_THINKING}
    try:
        return tokenizer.apply_chat_template(told, **how)
    except Exception as error:  # a template is a program of others
        raise WordsightError(f"the chat template of {name!r} cannot be used: {first_line(error)}") from error


def _said(content: str | Sequence[dict[str, Any]], tokenizer: Any) -> Any:
    """What a message holds, a text or parts of which some are texts."""
    if isinstance(content, str):
        return as_text(content, tokenizer)
    return [part | {"text": as_text(part["text"], tokenizer)} if "text" in part else part for part in content]


@lru_cache(maxsize=8)  # Gemma 3's has 6,249, and each message of a chat is looked at
def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The tokens that are no text: what begins or ends one, or a turn of a chat, or stands for an image."""
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


@lru_cache(maxsize=8)
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens))) or "(?!)")


def as_text(text: str, tokenizer: Any) -> str:
    """What somebody wrote, without special tokens: what looks like one is read letter by letter."""
    special = special_tokens(tokenizer)
    if not _any_of(special).search(text):
        return text
    for token in sorted(special):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def check_vocabulary(tokenizer: Any, lm: PreTrainedModel) -> None:
    """The tokenizer gives no token that the LM does not know, and was not made for a far larger one. Special
    tokens beyond are none of a text's: Gemma 3's tokenizer has one for images, its text models have not."""
    known, named = vocabulary_size(lm), {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    apart = special_tokens(tokenizer) - named
    highest = max(place for token, place in tokenizer.get_vocab().items() if token not in apart)
    far = known - highest > 1024 and highest < 0.9 * known  # a few are padding to a round number
    if highest >= known or far:
        raise WordsightError(
            f"the tokenizer's highest token is {highest}, but the LM ({lm.config.model_type}) knows "
            f"{known}: their vocabularies differ, so they do not belong together"
        )


def check_known(rows: Iterable[Sequence[int]], lm: PreTrainedModel, tokenizer: Any) -> None:
    """Errors: WordsightError for a token that the LM has no embedding of: a special one, written out."""
    most = vocabulary_size(lm)
    if odd := {token for row in rows for token in row if token >= most}:
        raise WordsightError(
            f"a text holds {tokenizer.convert_ids_to_tokens(max(odd))!r}, a token that "
            f"{lm.config.model_type} does not know; leave it out"
        )
