"""lm_generator: a frozen LM that writes on from texts, and from whatever became vectors for it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wordsight.backbones.generator import (
    Generator,
    Pieces,
    Prompt,
    Seen,
    Writing,
)
from wordsight.backbones.past import Past, has_past
from wordsight.backbones.prefixed import PrefixedLM
from wordsight.backbones.scoring import Behind, read_rows
from wordsight.backbones.streaming import Streamed
from wordsight.backbones.tokens import rendered
from wordsight.config import WordsightError

MARK = "\ufffc"  # stands for an image while a chat template writes the text around it


class LMGenerator(Generator):
    """An LM by itself, which sees nothing; a prompt is its begin token, and then its parts: texts, and
    vectors [_, W] of images. Messages of a chat go through its chat template, which brings its own begin.
    """

    sees = False
    past: Past | None = None  # of one conversation

    def __init__(self, lm: PrefixedLM, *, name: str):
        self.lm, self.name, self.device = lm, name, lm.device

    @property
    def chats(self) -> bool:
        return bool(self.lm.tokenizer.chat_template)

    def see(self, images: Sequence[Image.Image]) -> list[Seen]:
        """Errors: WordsightError, always: it has no image input."""
        raise WordsightError(
            f"{self.name!r} has no image input; give a run of limber, which gives an LM one, or an "
            f"image-text-to-text model"
        )

    @torch.no_grad()
    def write(self, prompts: Sequence[Prompt], how: Writing, seeds: Sequence[int] | None = None) -> list[str]:
        rows = [self.row(prompt) for prompt in prompts]
        self.check_room(rows, how)
        written = self.lm.write(rows, **how.settings(seeds or [1] * len(rows)))
        return [self.lm.text_of(tokens) for tokens in written]

    def stream(self, prompt: Prompt, how: Writing, seed: int = 1) -> Pieces:
        row = self.row(prompt)
        self.check_room([row], how)
        past = self.past if how.beams == 1 else None  # beams share out what was read among themselves
        write = partial(self.lm.write, [row]) if past is None else partial(past.write, row)
        return Streamed(partial(write, **how.settings([seed])), self.lm.text_of)

    def remembering(self) -> Generator:
        if self.past is not None:
            return self
        other = copy.copy(self)
        other.past = Past(self.lm) if has_past(self.lm) else None
        return other

    @property
    def context(self) -> int | None:
        return self.lm.context

    def length(self, prompt: Prompt) -> int:
        return len(self.row(prompt))

    @property
    def fingerprint(self) -> str:
        return self.lm.origin

    @property
    def scored_by(self) -> PrefixedLM:
        return self.lm

    def read(self, prompts: Sequence[Prompt]) -> list[Behind]:
        return read_rows(self.lm, [self.row(prompt) for prompt in prompts])

    def tail(self, prompt: Prompt) -> str:
        parts = self._parts(prompt)
        behind = itertools.takewhile(lambda part: isinstance(part, str), reversed(parts))
        return "".join(reversed([*behind]))

    def row(self, prompt: Prompt) -> Tensor:
        """A prompt as the vectors [Q, W] that the LM reads."""
        chat = any(isinstance(part, dict) for part in prompt)
        row = self.lm.row(self._parts(prompt), begin=not chat)
        if not len(row):
            raise WordsightError(
                f"{self.name!r} begins a text with no token of its own, so that nothing stands before what "
                f"it is to say; ask it something"
            )
        return row

    def _parts(self, prompt: Prompt) -> list[Any]:
        """A prompt as texts and vectors."""
        return self._templated(prompt) if any(isinstance(part, dict) for part in prompt) else [*prompt]

    def check_room(self, rows: Sequence[Tensor], how: Writing) -> None:
        """Errors: WordsightError where a row and what is to be written do not fit into the LM's positions."""
        self.check_length(max(map(len, rows)), how)

    def _templated(self, messages: Prompt) -> list[Any]:
        """Messages as the chat template writes them: texts, with the images' vectors between them."""
        images = [part["image"] for one in messages for part in one["content"] if part["type"] == "image"]
        told = [{"role": one["role"], "content": _told(one["content"])} for one in messages]
        texts = rendered(self.name, self.lm.tokenizer, told).split(MARK)
        if len(texts) != len(images) + 1:
            raise WordsightError(
                f"the chat template of {self.name!r} writes {len(texts) - 1} of {len(images)} images; it "
                f"cannot be used for questions about images"
            )
        parts: list[Any] = [texts[0]]
        for image, after in zip(images, texts[1:]):
            parts += [image, after]
        return [part for part in parts if not isinstance(part, str) or part]


def _told(content: Sequence[dict[str, Any]]) -> str:
    """The text of a message, with a mark in place of each image."""
    return "\n".join(MARK if part["type"] == "image" else part["text"].replace(MARK, "") for part in content)
