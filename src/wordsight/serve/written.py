"""Written: what a model's LM is asked for, in its thread: captions, answers, and replies of a chat."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wordsight.backbones.generator import Generator, Prompt, Seen, Turn, Writing
from wordsight.config import WordsightError
from wordsight.data.images import Unreadable, read_image
from wordsight.tasks.answer import cut

CAPTION, ANSWER = Writing(), Writing(max_new_tokens=16)  # as `caption` and `ask` write


class Shown(NamedTuple):
    """An image for a generator, which reads it when its turn comes: of those that wait, no pixels are
    held.
    """

    load: Callable[[], bytes]
    max_pixels: int


class Said(NamedTuple):
    """One question or reply of a chat."""

    text: str
    image: Shown | None = None


@dataclass
class Talk:
    """A chat so far, of which the reply is wanted. `hear` is called with each piece of it, in the LM's
    thread, until `gone` is set.
    """

    turns: Sequence[tuple[Said, str]]  # with the replies
    last: Said
    how: Writing
    seed: int
    hear: Callable[[str], None]
    gone: threading.Event = field(default_factory=threading.Event)


class Replied(NamedTuple):
    """A reply, and what it took."""

    text: str
    prompt_tokens: int
    new_tokens: int


class Writer:
    """A generator as a server asks it. It remembers the chat that it spoke in last, of which the next request
    brings all again."""

    def __init__(self, generator: Generator):
        self.generator = generator.remembering()

    def captions(self, images: list[Shown]) -> list[Any]:
        """What each shows, or why it cannot be said."""
        return self._each([(one, self.generator.captioning) for one in images], CAPTION, _on_one_line)

    def answers(self, asked: list[tuple[Shown, str]]) -> list[Any]:
        """The answer to each question, or why there is none."""

        def asking(question: str) -> Callable[[Seen], Prompt]:
            return lambda seen: self.generator.asking([Turn(seen, question)])

        return self._each([(one, asking(question)) for one, question in asked], ANSWER, cut)

    def replies(self, talks: list[Talk]) -> list[Any]:
        """The reply to each chat, one after another."""
        return [guarded(self._reply, talk) for talk in talks]

    def _reply(self, talk: Talk) -> Replied:
        from wordsight.assistant.chat import Chat

        generator = self.generator
        chat = Chat(generator, talk.how, plain=not generator.chats, seed=talk.seed)
        chat.turns = [self._turn(said)._replace(answer=reply) for said, reply in talk.turns]
        if talk.last.image is not None:
            chat.show(self._see(talk.last.image))
        reply = chat.say(talk.last.text)
        try:
            for piece in reply:
                talk.hear(piece)
                if talk.gone.is_set():
                    break
        finally:
            reply.close()
        return Replied(reply.text, reply.prompt_tokens, reply.new_tokens)

    def _turn(self, said: Said) -> Turn:
        return Turn(self._see(said.image) if said.image is not None else None, said.text)

    def _each(
        self,
        wanted: Sequence[tuple[Shown, Callable[[Seen], Prompt]]],
        how: Writing,
        shape: Callable[[str], str],
    ) -> list[Any]:
        """What is written about each image, all together, or why it is not."""
        found: list[Any] = [guarded(self._see, image) for image, _ in wanted]
        rows = [row for row, seen in enumerate(found) if not isinstance(seen, Exception)]
        prompts = [wanted[row][1](found[row]) for row in rows]
        for row, text in zip(rows, self._write(prompts, how)):
            found[row] = text if isinstance(text, Exception) else shape(text)
        return found

    def _write(self, prompts: Sequence[Prompt], how: Writing) -> list[Any]:
        """Texts. One that is too long for the LM spoils no other."""
        try:
            return list(self.generator.write(prompts, how)) if prompts else []
        except WordsightError as error:
            if len(prompts) == 1:
                return [error]
            return [text for prompt in prompts for text in self._write([prompt], how)]

    def _see(self, shown: Shown) -> Seen:
        image = read_image(shown.load(), shown.max_pixels)
        return self.generator.see([image])[0]


def guarded(work: Callable[..., Any], *given: Any) -> Any:
    """What is made of one of several, or why it cannot be."""
    try:
        return work(*given)
    except (WordsightError, Unreadable) as error:
        return error


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
