"""A conversation that keeps what its LM read, beside one that reads all of it anew for each reply:

    python benchmarks/assistant/speed.py LM_OR_RUN [--plain] [--image PHOTO] [--rounds 3]

Each line is said to one and then to the other, so that whatever else the machine does meets both. Medians
over the rounds, in seconds of processor time of this process; the replies of both are compared."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from wordsight.assistant import Assistant
from wordsight.assistant.chat import Chat
from wordsight.backbones.generator import Writing
from wordsight.backbones.lm_generator import LMGenerator
from wordsight.fitted import open_generator

LINES = (
    "I photographed my street early this morning and want to write a few lines about it. What matters?",
    "There is a red bicycle that leans on a blue door, and a cat asleep on the step. How would you begin?",
    "Make that shorter, and mention that it has rained in the night.",
    "Now a second sentence about the light on the wet stones.",
    "Which of the two is the better first sentence, and why?",
    "Give the photograph a title of three words.",
)


def talk(assistant: Assistant, options: argparse.Namespace) -> list[tuple[int, int, list[float]]]:
    """Of each line: vectors of the whole prompt, tokens written, and the seconds of both ways, each up to the
    first piece of the reply and up to its end.
    """
    how = Writing(max_new_tokens=options.max_new_tokens)
    kept, anew = (Chat(assistant.generator, how, plain=options.plain) for _ in range(2))
    anew.generator, found = assistant.generator, []
    assert isinstance(anew.generator, LMGenerator)  # an image-text-to-text model keeps nothing
    if options.image:
        seen = assistant.see(options.image)
        kept.show(seen), anew.show(seen)
    for line in LINES:
        seconds = [part for chat in (kept, anew) for part in _seconds(chat, line)]
        if kept.turns[-1].answer != anew.turns[-1].answer:
            print(f"other words: {kept.turns[-1].answer!r} and {anew.turns[-1].answer!r}", flush=True)
        asked = [*anew.turns[:-1], anew.turns[-1]._replace(answer=None)]
        written = len(anew.generator.lm.tokenizer(anew.turns[-1].answer)["input_ids"])
        found.append((len(anew.generator.row(anew._prompt(asked))), written, seconds))
    return found


def _seconds(chat: Chat, line: str) -> tuple[float, float]:
    began, reply = time.process_time(), chat.say(line)
    next(reply, None)
    first = time.process_time() - began
    "".join(reply)
    return first, time.process_time() - began


def _listed(seconds: list[float]) -> str:
    return " | ".join(f"{one:.2f}" for one in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="an LM, a limber run, or an assistant's folder")
    parser.add_argument("--plain", action="store_true", help="for an LM without a chat template")
    parser.add_argument("--image", help="a photo that stands before the first line")
    parser.add_argument("--dtype", help="of the LM of a limber run, where it is not the run's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    if options.dtype:
        assistant = Assistant(None, open_generator(options.name, dtype=options.dtype), name=options.name)
    else:
        assistant = Assistant.open(options.name)
    rounds = [talk(assistant, options) for _ in range(options.rounds)]
    print("| turn | prompt | written | kept: first piece | whole reply | anew: first piece | whole reply |")
    print("|---|---|---|---|---|---|---|")
    totals = [0.0] * 4
    for turn, same in enumerate(zip(*rounds), 1):
        medians = [statistics.median(column) for column in zip(*(seconds for *_, seconds in same))]
        totals = [total + median for total, median in zip(totals, medians)]
        print(f"| {turn} | {same[0][0]} | {same[0][1]} | {_listed(medians)} |")
    print(f"| all | | | {_listed(totals)} |")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
