"""Generator: the role of whatever writes about images: a frozen LM that reads soft tokens (limber), or an
image-text-to-text model of transformers (mllm).

A prompt is a sequence of texts and of images that were seen, in the order in which the LM reads them. Tasks
say what is asked; the generator says how its LM is asked it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from PIL import Image

from wordsight.backbones.sampling import drawn
from wordsight.config import WordsightError

if TYPE_CHECKING:
    from wordsight.backbones.prefixed import PrefixedLM
    from wordsight.backbones.scoring import Behind

Seen: TypeAlias = Any  # what a generator makes of an image, for its own prompts: soft tokens, or the pixels
Prompt: TypeAlias = Sequence[Any]  # texts (str) and seen images, or the messages of a chat (dict)


class Turn(NamedTuple):
    """A question about an image, and its answer where one is shown."""

    image: Seen | None  # None: the question alone, as a blind LM is asked
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Writing:
    """How a generator writes. Errors: WordsightError for what cannot be."""

    max_new_tokens: int = 32
    temperature: float = 0.0  # 0: always the likeliest token; above: tokens are drawn
    beams: int = 1  # 1: no beam search
    top_p: float = 1.0  # tokens are drawn among the likeliest that have so much probability together

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.beams < 1 or not 0 <= self.temperature < math.inf:
            raise WordsightError(
                f"max_new_tokens={self.max_new_tokens}, beams={self.beams}, temperature={self.temperature}: "
                f"the first two are 1 or more, the last is finite and 0 or more"
            )
        if not 0 < self.top_p <= 1 or (self.top_p < 1 and not self.temperature):
            raise WordsightError(
                f"top_p={self.top_p} is above 0 and up to 1, and goes with a temperature above 0, at which "
                f"tokens are drawn"
            )
        if self.beams > 1 and self.temperature:
            raise WordsightError(
                f"beams={self.beams} looks for the likeliest text and temperature={self.temperature} draws "
                f"one; give one of the two"
            )

    def settings(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The same in terms of transformers' `generate`, for rows that draw from these seeds."""
        known: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        return known | drawn(self.temperature, seeds, self.top_p)


class Pieces(Iterator[str]):
    """What is written, in pieces as they come."""

    def __init__(self, texts: Iterable[str]):
        self._texts = iter(texts)

    @property
    def tokens(self) -> int:
        """How many tokens were written so far; 0 where it is not known."""
        return 0

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """No more is wanted."""


class Generator(ABC):
    """Writes about images, and says how likely a text is (scoring.py). Its LM and image tower are frozen, in
    eval mode, and no call keeps a gradient."""

    name: str  # what the user wrote
    device: torch.device
    needs_image: bool = False  # whether it cannot be asked without an image
    chats: bool = False  # whether it has a chat template
    sees: bool = True  # whether it has an image input

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what it says. Errors: WordsightError where nobody can tell."""
        raise self._unscored()

    @abstractmethod
    def see(self, images: Sequence[Image.Image]) -> list[Seen]:
        """What the LM reads of each image, made once however often it is asked about. The images are RGB and
        upright.
        """

    @abstractmethod
    def write(self, prompts: Sequence[Prompt], how: Writing, seeds: Sequence[int] | None = None) -> list[str]:
        """What the LM writes after each prompt, without the prompt and without special tokens. Prompts of one
        call are one batch, and what is written of each does not depend on the others beyond rounding.
        `seeds` are what each draws its tokens from where tokens are drawn; None: 1 for all.

        Errors: WordsightError where a prompt and `how.max_new_tokens` do not fit into the LM's positions.
        """

    @property
    def scored_by(self) -> PrefixedLM:
        """The LM that goes on behind a prompt that was read."""
        raise self._unscored()

    def read(self, prompts: Sequence[Prompt]) -> list[Behind]:
        """What the LM holds behind prompts: those of equal length together."""
        raise self._unscored()

    def tail(self, prompt: Prompt) -> str:
        """The text of a prompt behind its last image, which decides how what follows is cut into tokens."""
        raise self._unscored()

    def _unscored(self) -> WordsightError:
        return WordsightError(
            f"{self.name!r} writes and does not say how likely a text is; give a run of limber, or an "
            f"image-text-to-text model of transformers"
        )

    def captioning(self, image: Seen | None, shown: Sequence[tuple[Seen, str]] = ()) -> Prompt:
        """What is written after it is the image's caption, in the way of the images and captions that are
        `shown` before it. None: without the image.
        """
        told = [part for one, caption in shown for part in (one, f"{caption}\n")]
        return [*told, *([] if image is None else [image])]

    def asking(self, turns: Sequence[Turn]) -> Prompt:
        """What is written after it is the answer to the last turn; those before are shown with theirs. The
        paper's form, "[image] Q: .. A: .." (AAPE, section 5), for an LM that goes on from a text.
        """
        prompt: list[Any] = []
        for turn in turns:
            told = "" if turn.answer is None else f" {turn.answer}\n"
            prompt += [] if turn.image is None else [turn.image]
            prompt.append(f"Q: {turn.question} A:{told}")
        return prompt

    def why_not(self, image: Image.Image) -> str:
        """Why it sees no such image; empty where it does."""
        return ""

    def chatting(self, turns: Sequence[Turn]) -> Prompt:
        """What is written after it is the reply to the last turn of a chat, in the form of the LM's chat
        template. Errors: WordsightError for an LM that has none.
        """
        if self.chats:
            return messages_of(turns)
        raise WordsightError(
            f"the LM of {self.name!r} has no chat template, so it was hardly trained to chat; give one that "
            f"was (its name often ends in -it, -instruct or -chat), or have this one go on from "
            f'"Q: ... A:": --plain (plain=True in Python)'
        )

    def stream(self, prompt: Prompt, how: Writing, seed: int = 1) -> Pieces:
        """What `write` writes after one prompt, in pieces as they come: all at once where a generator knows
        no other way.
        """
        return Pieces(self.write([prompt], how, [seed]))

    def remembering(self) -> Generator:
        """For one conversation: what writes and streams the same, and where it can keeps what its LM read, so
        that of a longer prompt of `stream` only what is new is read.
        """
        return self

    @property
    def context(self) -> int | None:
        """So many tokens its LM reads at most, those of images included; None where it does not say."""
        return None

    def length(self, prompt: Prompt) -> int:
        """How many tokens a prompt is, for its LM: asked where `context` is known."""
        raise NotImplementedError

    def fits(self, prompt: Prompt, how: Writing) -> bool:
        """Whether a prompt and `how.max_new_tokens` fit into the LM's positions."""
        return self.context is None or self.length(prompt) + how.max_new_tokens <= self.context

    def check_length(self, given: int, how: Writing) -> None:
        """Errors: WordsightError where a prompt of so many tokens and what is to be written do not fit."""
        if self.context is not None and given + how.max_new_tokens > self.context:
            raise WordsightError(
                f"a prompt of {given} tokens, images included, and {how.max_new_tokens} new ones do not fit "
                f"into the {self.context} positions of {self.name!r}; give a shorter text or fewer examples, "
                f"or ask for fewer tokens"
            )


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The messages of a chat, in the form that chat templates read."""
    messages = []
    for turn in turns:
        messages.append(message("user", turn.image, turn.question))
        if turn.answer is not None:
            messages.append(message("assistant", None, turn.answer))
    return messages


def message(role: str, image: Seen | None, text: str) -> dict[str, Any]:
    """What one of them says, behind the image that it is about."""
    content = [] if image is None else [{"type": "image", "image": image}]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}
