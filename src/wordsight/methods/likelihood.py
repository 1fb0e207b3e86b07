"""Likelihood: an LM that sees an image says which class it shows, by how likely it holds each class's text,
or by what it writes. What multimodal LLMs are judged by where CLAMP is compared with them.

Shapes: B images, C classes, n nodes of the tree of answers (backbones/scoring.py)."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.backbones.generator import Generator, Prompt, Seen, Turn, Writing
from wordsight.backbones.scoring import Scorer, Tree, prompts_at_once
from wordsight.config import DEFAULT_BACKBONE, RunSettings, WordsightError
from wordsight.methods import Asking
from wordsight.sentences import fill
from wordsight.settings import LikelihoodSettings

CLASSES = "{classes}"  # in a question, the list of all class names
SCALE = 100.0  # of cosines where free answers are mapped: CLIP's
WRITING = Writing(max_new_tokens=16)  # free answers
ARTICLES = re.compile(r"^(an?|the) ")

log = logging.getLogger("wordsight")


class Scores(NamedTuple):
    """What was made of images."""

    values: Float[Tensor, "B C"]
    said: list[str] | None = None  # what was written of each, where it was free to
    listed: list[bool] | None = None  # whether that is the name of a class

    def cosines(self) -> list[float]:
        """Of what was written with the nearest class."""
        return self.values.max(1).values.div(SCALE).tolist()

    def outside(self) -> dict[str, float]:
        """The share of what was written that names no class, in percent."""
        listed = self.listed
        return {} if listed is None else {"outside": 100 * (1 - sum(listed) / max(1, len(listed)))}


class Likelihood(Asking):
    """Scores classes by a generative model, exactly: the mean over an answer's tokens of log P(token |
    earlier tokens, image), the answer being "A photo of" and the class name (CLAMP, eq. 11). As in the
    paper.

    Differs in how it is computed: the image passes through the LM once, and what answers share is scored
    once, which is equal within rounding. Guesses where the paper is silent: that the mean is over all tokens
    of the answer and not over the name's alone, and that no end token is counted."""

    Settings: ClassVar[type] = LikelihoodSettings
    fits: ClassVar[str] = "wordsight.fit_likelihood:fit_likelihood"

    @classmethod
    def check(cls, settings: RunSettings) -> None:
        for name in ("sentences", "unlabelled", "teacher"):
            if getattr(settings, name) is not None:
                raise WordsightError(
                    f"{name}={getattr(settings, name)} is not read by method={settings.method}, which asks "
                    f"an LM about images; leave it out"
                )
        if settings.words != "names":
            raise WordsightError(
                f"words={settings.words} is of class vectors, but method={settings.method} has none; leave "
                f"it out"
            )

    @classmethod
    def model_name(cls, settings: RunSettings) -> str:
        """Who is asked. Errors: WordsightError where nobody was named."""
        named = settings.settings.model or settings.backbone
        if named == DEFAULT_BACKBONE:  # what stands where nothing was given
            raise WordsightError(
                f"method={settings.method} asks a model: name one, such as settings.model=runs/limber or "
                f"settings.model=llava-hf/llava-1.5-7b-hf"
            )
        return named

    def __init__(
        self,
        generator: Generator,
        settings: LikelihoodSettings,
        class_names: Sequence[str],
        shown: Sequence[tuple[Seen, str]] = (),
        mapper: Backbone | None = None,
    ):
        """`shown` are images, as the generator saw them, with their classes. Errors: WordsightError for class
        names that the LM cannot tell apart."""
        super().__init__()
        self.generator, self.settings, self.class_names = generator, settings, tuple(class_names)
        self.mapper = mapper
        names = list(self.class_names)
        self.shown = [(seen, fill(settings.answer, name)) for seen, name in shown]
        if settings.order:
            draw = random.Random(settings.order)
            draw.shuffle(names)
            draw.shuffle(self.shown)
        self.question = settings.question and settings.question.replace(CLASSES, ", ".join(names))
        self._tree: Tree | None = None
        self._scorer: Scorer | None = None
        self._prior: Float[Tensor, " C"] | None = None
        self._at_once = settings.batch
        if settings.by == "free":
            assert mapper is not None  # the settings name one
            self._known = mapper.encode_text([name.replace("_", " ") for name in self.class_names])

    @torch.no_grad()
    def scores(self, seen: Sequence[Seen]) -> Scores:
        """Scores of the classes for images; softmax gives probabilities. float32, on the CPU."""
        prompts = [self._prompt(image) for image in seen]
        if self.settings.by == "free":
            return self._free(prompts)
        parts, done = [], 0
        while done < len(prompts):
            some = prompts[done : done + (self._at_once or 1)]
            parts.append(self._scored(some))
            done += len(some)
        return Scores(torch.cat(parts) if parts else torch.empty(0, len(self.class_names)))

    # -- inside --

    def _prompt(self, image: Seen | None) -> Prompt:
        if self.question is None:
            return self.generator.captioning(image, self.shown)
        turns = [Turn(one, self.question, answer) for one, answer in self.shown]
        return self.generator.asking([*turns, Turn(image, self.question)])

    def _scored(self, prompts: Sequence[Prompt]) -> Float[Tensor, "B C"]:
        tree, scorer = self._prepared(prompts[0])
        prior = self._prior_of(tree)
        found = torch.empty(len(prompts), len(self.class_names))
        for behind in self.generator.read(prompts):
            self._check_room(behind.length, tree)
            if self._at_once is None:
                self._at_once = prompts_at_once(scorer.lm, behind, tree)
                log.info(
                    "%d images at once: the keys and values of one take %.1f MiB",
                    self._at_once,
                    behind.bytes_each / 2**20,
                )
            found[behind.rows] = self._of_classes(scorer.nodes(behind, tree), tree).cpu()
        return found - self.settings.prior * prior if prior is not None else found

    def _of_classes(self, nodes: Float[Tensor, "B n"], tree: Tree) -> Float[Tensor, "B C"]:
        """What the scores of tokens say of the classes."""
        if self.settings.by == "constrained":
            return tree.summed(tree.among_siblings(nodes))
        summed = tree.summed(nodes)
        return summed / torch.tensor(tree.lengths, device=nodes.device) if self._mean else summed

    @property
    def _mean(self) -> bool:
        return self.settings.score == "mean"

    def _prepared(self, prompt: Prompt) -> tuple[Tree, Scorer]:
        """The answers as tokens, which depend on the text before them, and what scores them."""
        if self._tree is None or self._scorer is None:
            self._scorer = Scorer(self.generator.scored_by)
            self._tree = Tree.of(self._tokens(self.generator.tail(prompt)))
        return self._tree, self._scorer

    def _tokens(self, tail: str) -> list[list[int]]:
        lm = self.generator.scored_by
        texts = [fill(self.settings.answer, name) for name in self.class_names]
        nameless, *rows = answer_tokens(lm.tokenizer, tail, [self.settings.answer.replace("{}", ""), *texts])
        first: dict[tuple[int, ...], str] = {}
        for name, row in zip(self.class_names, rows):
            if not row or not name.strip() or row == nameless:
                raise WordsightError(
                    f"class name {name!r} is no token of {self.generator.name!r}; give a name in letters "
                    f"that it reads"
                )
            other = first.setdefault(tuple(row), name)
            if other != name:
                raise WordsightError(
                    f"classes {other!r} and {name!r} are the same tokens to {self.generator.name!r}, so that "
                    f"nothing tells them apart; rename one"
                )
        ended = self.settings.end or self.settings.by == "constrained"
        return [[*row, lm.end] for row in rows] if ended else rows

    def _prior_of(self, tree: Tree) -> Float[Tensor, " C"] | None:
        """The scores without the image, made once."""
        if self.settings.prior and self._prior is None:
            if self.generator.needs_image:
                raise WordsightError(
                    f"settings.prior={self.settings.prior} needs what {self.generator.name!r} says without "
                    f"an image, and it cannot be asked without one; leave it out"
                )
            assert self._scorer is not None  # made with the tree
            (behind,) = self.generator.read([self._prompt(None)])
            self._prior = self._of_classes(self._scorer.nodes(behind, tree), tree)[0].cpu()
        return self._prior

    def _check_room(self, length: int, tree: Tree) -> None:
        lm, longest = self.generator.scored_by, max(tree.lengths)
        if lm.context is not None and length + longest > lm.context:
            listed = f", {CLASSES} among it" if CLASSES in (self.settings.question or "") else ""
            raise WordsightError(
                f"an image with its question{listed} is {length} tokens and the longest answer {longest}, "
                f"which do not fit into the {lm.context} positions of {self.generator.name!r}; show fewer "
                f"examples, or ask something shorter"
            )

    def _free(self, prompts: Sequence[Prompt]) -> Scores:
        assert self.mapper is not None  # the settings name one
        size = self.settings.batch or 16
        said = [
            " ".join(text.split("\n")[0].split())
            for start in range(0, len(prompts), size)
            for text in self.generator.write(prompts[start : start + size], WRITING)
        ]
        values = self.mapper.encode_text([text or " " for text in said]).float().cpu() @ self._known.cpu().T
        place = {plain(name): row for row, name in enumerate(self.class_names)}
        listed = []
        for row, text in enumerate(said):
            column = place.get(plain(text), place.get(plain(text.removeprefix(self._before))))
            listed.append(column is not None)
            if column is not None:
                values[row, column] = 1.0  # a cosine: none is above it
        return Scores(SCALE * values, said, listed)

    @property
    def _before(self) -> str:
        return self.settings.answer.partition("{}")[0]


def plain(text: str) -> str:
    """A name as it is compared: in small letters, without article and full stop."""
    return ARTICLES.sub("", " ".join(text.casefold().replace("_", " ").split()).strip(" .,!\"'"))


def answer_tokens(tokenizer: Any, tail: str, answers: Sequence[str]) -> list[list[int]]:
    """Tokens of answers as they stand behind a prompt that ends in `tail`: after a space, unless it ends in
    one, and as the tokenizer cuts both together where it leaves the prompt's own tokens alone.
    """
    joint = " " if tail and not tail[-1].isspace() else ""

    def cut(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    alone = cut([joint + answer for answer in answers])
    if not tail:
        return alone
    (front,), together = cut([tail]), cut([tail + joint + answer for answer in answers])
    return [
        row[len(front) :] if row[: len(front)] == front and len(row) > len(front) else own
        for row, own in zip(together, alone)
    ]
