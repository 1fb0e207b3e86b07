"""Chat: a conversation with what a generator's LM was told so far, kept within its positions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from wordsight.backbones.generator import Generator, Pieces, Prompt, Seen, Turn, Writing
from wordsight.config import WordsightError
from wordsight.data.images import Unreadable, read_image
from wordsight.data.pictures import pictures_of
from wordsight.tasks.answer import ENDS, cut

DEFAULT = Writing(max_new_tokens=128)

log = logging.getLogger("wordsight")


class Chat:
    """A conversation. `turns` are what was said and replied; the oldest are dropped, which is told, once all
    of them and a reply do not fit into the LM's positions together.

    `plain`: the LM goes on from "Q: ... A:", as one without a chat template has to, up to the end of the
    line. A conversation belongs to one thread; of one assistant there may be several, in several threads."""

    def __init__(self, generator: Generator, how: Writing = DEFAULT, *, plain: bool = False, seed: int = 1):
        self.generator, self.how, self.plain, self.seed = generator.remembering(), how, plain, seed
        self.turns: list[Turn] = []
        self._image: Seen | None = None

    def show(self, image: Any) -> None:
        """An image stands before what is said next: a path, a PIL image, an array, or what the generator has
        seen (`Assistant.see`). Errors: WordsightError where it cannot be read.
        """
        unseen = isinstance(image, (str, PathLike, Image.Image, np.ndarray))
        self._image = self.generator.see([read_one(image)])[0] if unseen else image

    def forget(self) -> None:
        """What was said is forgotten; the last image stands before what is said next."""
        shown = [turn.image for turn in self.turns if turn.image is not None]
        self._image = self._image if self._image is not None or not shown else shown[-1]
        self.turns = []

    def say(self, text: str) -> Reply:
        """The reply to a text, in pieces while it is written: `for piece in chat.say("What is it?")`. Once it
        has ended, or is closed, it is the last of `turns`.

        Errors: WordsightError for a blank text, for an LM without a chat template where `plain` was not asked
        for, and for a text that does not fit into the LM's positions by itself."""
        if not text.strip():
            raise WordsightError("there is nothing to reply to; give a text")
        turns = self._within([*self.turns, Turn(self._image, text.strip())])
        prompt = self._prompt(turns)
        pieces = self.generator.stream(prompt, self.how, self.seed)
        self._image = None
        return Reply(self, turns, prompt, pieces)

    def _prompt(self, turns: Sequence[Turn]) -> Prompt:
        if not self.plain:
            return self.generator.chatting(turns)
        return Generator.asking(self.generator, turns)

    def _within(self, turns: list[Turn]) -> list[Turn]:
        """The last turns, so many as fit; an image that stood before a dropped one moves on to the next."""
        kept = list(turns)
        while len(kept) > 1 and not self.generator.fits(self._prompt(kept), self.how):
            first, second, *rest = kept
            kept = [second._replace(image=first.image) if second.image is None else second, *rest]
        if dropped := len(turns) - len(kept):
            log.info(
                "the conversation is longer than what the LM reads at once, so its beginning is left out "
                "(%d of %d turns)",
                dropped,
                len(turns) - 1,
            )
        return kept


class Reply(Iterator[str]):
    """A reply in pieces. `text` is all of it so far."""

    def __init__(self, chat: Chat, turns: list[Turn], prompt: Prompt, pieces: Pieces):
        self.text = ""
        self._prompt = prompt
        self._chat, self._turns, self._pieces = chat, turns, pieces
        self._raw, self._ended = "", False

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the LM read, images included."""
        return self._chat.generator.length(self._prompt)

    @property
    def new_tokens(self) -> int:
        """How many tokens were written so far."""
        return self._pieces.tokens

    def __next__(self) -> str:
        while not self._ended:
            piece = next(self._pieces, None)
            self._raw += piece or ""
            whole = piece is None or (self._chat.plain and ENDS.search(self._raw.lstrip()) is not None)
            before, self.text = self.text, self._said(whole)
            if whole:
                self.close()
            if more := self.text[len(before) :]:
                return more
        raise StopIteration

    def close(self) -> None:
        """No more is wanted: what was said so far is the reply."""
        if not self._ended:
            self._ended = True
            self._pieces.close()
            *before, last = self._turns
            self._chat.turns = [*before, last._replace(answer=self.text)]

    def _said(self, whole: bool) -> str:
        """What can be shown of what was written: not the blanks at its end, nor what may begin the next
        question, until it is known what follows.
        """
        text = cut(self._raw) if self._chat.plain else self._raw.strip()
        return text if whole or not (self._chat.plain and text.endswith("Q")) else text[:-1].rstrip()


def read_one(image: Any) -> Image.Image:
    """An image from a path, a PIL image or an array. Errors: WordsightError where it cannot be read."""
    (picture,) = pictures_of([image])
    try:
        return read_image(picture.read()[0])
    except Unreadable as error:
        raise WordsightError(f"{picture.name} {error}; give an image file") from error
