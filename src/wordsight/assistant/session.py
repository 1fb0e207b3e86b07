"""Session: a conversation line by line, with commands among the lines, as `wordsight chat` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wordsight.assistant import Assistant
from wordsight.assistant.chat import Chat, read_one
from wordsight.config import WordsightError
from wordsight.names import class_list
from wordsight.reader import nearest

TOP = 5  # classes that are shown
HELP = {
    "/image PATH": "look at an image: what is said next is about it",
    "/classes A,B,...": "which of these classes it shows, by their names (@FILE: one a line)",
    "/caption": "what it shows, in a sentence",
    "/new": "forget what was said; the image stays",
    "/help": "these lines",
    "/quit": "the end",
}


class Session:
    """What comes of each line of a conversation: the reply to it, or what a command gives."""

    def __init__(self, assistant: Assistant, chat: Chat):
        self.assistant, self.chat = assistant, chat
        self.path: str | None = None  # of the image that is looked at
        self._commands: dict[str, Callable[[str], Iterable[str]]] = {
            "/image": self._show,
            "/classes": self._classify,
            "/caption": self._caption,
            "/new": self._forget,
            "/help": self._help,
        }

    def react(self, line: str) -> Iterable[str]:
        """What is said to a line, in pieces. Errors: WordsightError for what cannot be; the conversation goes
        on as it was.
        """
        if not line.startswith("/"):
            return self.chat.say(line)
        word, *rest = line.split(None, 1)
        if word not in self._commands:
            known = [*self._commands, "/quit"]
            raise WordsightError(f"{word!r} is no command{nearest(word, known)}; /help names them")
        return self._commands[word]("".join(rest).strip())

    def _show(self, path: str) -> list[str]:
        path = path.strip("'\"")
        if not path:
            raise WordsightError(
                "/image shows nothing by itself; give the path of an image: /image photo.jpg"
            )
        image, generator = read_one(path), self.assistant.generator
        self.path = path
        if not generator.sees:
            return [f"looking at {path}; the LM has no image input, so it is for /classes alone"]
        self.chat.show(generator.see([image])[0])
        return [f"looking at {path}"]

    def _classify(self, names: str) -> list[str]:
        path = self._path("/classes")
        (found,) = self.assistant.classify([path], class_list(names))
        return ["\n".join(f"{chance:6.1%}  {name}" for name, chance in list(found.items())[:TOP])]

    def _caption(self, rest: str) -> list[str]:
        if rest:
            raise WordsightError(f"/caption is about the image of /image, and takes no {rest!r}")
        return self.assistant.caption([self._path("/caption")])

    def _forget(self, _: str) -> list[str]:
        self.chat.forget()
        return ["what was said is forgotten"]

    def _help(self, _: str) -> list[str]:
        return ["\n".join(f"{name:18} {told}" for name, told in HELP.items())]

    def _path(self, command: str) -> str:
        if self.path is None:
            raise WordsightError(
                f"there is no image yet that {command} could be about; /image PATH shows one"
            )
        return self.path
