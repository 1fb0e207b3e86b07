"""Context: learned vectors that stand among the tokens of a class's text. The one splice, and what all who
learn such vectors share.

Shapes: C classes, N texts, R rows of tokens, n context vectors, L tokens, W token width, D shared width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wordsight.backbones import Backbone, TokenReader
from wordsight.config import WordsightError
from wordsight.methods import Classifier, Learner, Space
from wordsight.sentences import ClassTexts, fill
from wordsight.settings import ContextSettings

PLACEHOLDERS = (
    ("X", "Y"),
    ("a", "b"),
    ("one", "two"),
)  # words that are one token each; which pair is, depends on the tokenizer
# more pass through the tower in parts, which are computed again for their gradients: memory stays that of one
# part
TOKENS_AT_ONCE = 8192
STD = 0.02  # of random context vectors


class Prompts(NamedTuple):
    """Texts in which placeholders hold the places of context vectors, in R rows: one a text, or fewer where
    texts share their beginning.
    """

    tokens: dict[str, Tensor]  # what the tower reads, R rows each
    places: Int[Tensor, "R n"]  # where the context stands, from left to right
    # row and place of each text's end, in ascending order, where texts share rows
    ends: Int[Tensor, "N 2"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of a row."""
        rows, columns = self.tokens["input_ids"].shape
        return rows, columns

    def take(self, first: int, last: int) -> Prompts:
        """The rows from `first` up to `last`."""
        ends = self.ends
        if ends is not None:
            ends = ends[(ends[:, 0] >= first) & (ends[:, 0] < last)] - torch.tensor(
                [first, 0], device=ends.device
            )
        return Prompts(
            {name: values[first:last] for name, values in self.tokens.items()}, self.places[first:last], ends
        )

    def repeat(self, times: int) -> Prompts:
        """All texts, `times` over."""
        ends = self.ends
        if ends is not None:
            steps = torch.arange(times, device=ends.device).repeat_interleave(len(ends)) * self.shape[0]
            ends = ends.repeat(times, 1) + torch.stack([steps, torch.zeros_like(steps)], 1)
        tokens = {name: torch.cat([values] * times) for name, values in self.tokens.items()}
        return Prompts(tokens, self.places.repeat(times, 1), ends)


def share_beginnings(prompts: Prompts, room: int) -> Prompts:
    """The same texts in fewer rows of at most `room` tokens, for a causal tower: what all have in common, the
    start token and the context, once a row, and behind it as many names as find room, each at the positions
    it would have alone and blind to the others. The vectors stay the same; with 16 context vectors about a
    third of the tokens are left."""
    ids, start = prompts.tokens["input_ids"].cpu(), int(prompts.places.max()) + 1
    lengths = prompts.tokens["attention_mask"].sum(1).cpu() - start  # of what is each text's own
    rows, columns = _laid_out(lengths.tolist(), start, room)
    step = torch.cat([torch.arange(length) for length in lengths.tolist()])
    text = torch.arange(len(ids)).repeat_interleave(lengths)
    at = rows[text], columns[text] + step
    packed = ids[:1].expand(int(rows.max()) + 1, -1)[:, :start]
    packed = nn.functional.pad(packed, (0, int(at[1].max()) + 1 - start))
    positions, owners = (
        torch.arange(packed.shape[1]).expand_as(packed).clone(),
        torch.full_like(packed, -2),
    )  # -2: nobody's, what a row has left over
    owners[:, :start] = -1  # everybody's
    packed[at], positions[at], owners[at] = ids[text, start + step], start + step, text
    seen = ((owners[:, :, None] == owners[:, None]) | (owners[:, None] == -1)).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    tokens = {"input_ids": packed, "position_ids": positions, "attention_mask": mask}
    device = prompts.places.device
    ends = torch.stack([rows, columns + lengths - 1], 1)
    return Prompts(
        {name: values.to(device) for name, values in tokens.items()},
        prompts.places[: len(packed)],
        ends.to(device),
    )


def _laid_out(lengths: list[int], start: int, room: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """The row and the first column of each text, one behind the other in their order."""
    places, row, column = [], 0, start
    for length in lengths:
        if column > start and column + length > room:
            row, column = row + 1, start
        places.append((row, column))
        column += length
    rows, columns = torch.tensor(places).unbind(1)
    return rows, columns


class Splice:
    """A frozen text tower that reads context vectors in place of placeholders.

    The tower runs as it always does, on the placeholders' ids; only what its embedding layer gives is
    replaced at their places. So it works on any tower of transformers, and nothing of the tower is written
    again here. Copies of a method share the one tower."""

    def __init__(self, tower: TokenReader):
        self.tower = tower

    def __deepcopy__(self, memo: dict[int, Any]) -> Splice:
        return self

    @cached_property
    def pair(self) -> tuple[str, str]:
        """Two words that are one token each, and not the same one. Where texts with the one and with the
        other differ, a placeholder stands.
        """
        for pair in PLACEHOLDERS:
            one, other = (self.tower.tokenize([word])["input_ids"] for word in pair)
            if one.shape == other.shape and (one != other).sum() == 1:
                return pair
        raise WordsightError(
            f"the text tower's tokenizer knows none of {PLACEHOLDERS} as words of one token each; context "
            f"cannot be placed"
        )

    def words(self, text: str) -> Float[Tensor, "n W"]:
        """The embeddings of a text's own tokens, without those that begin and end every text. An empty text
        has none.
        """
        first, last = (
            self._placeholders(lambda word, before=before: [f"{before} {word}".strip()]).places[0, 0]
            for before in ("", text)
        )
        ids = self.tower.tokenize([text])["input_ids"]
        return self.tower.token_embedding(ids)[0, first:last].detach().float()

    def prompts(self, names: tuple[str, ...], count: int, position: str, shared: bool = True) -> Prompts:
        """The texts `X X X name.` (end), `name X X X.` (front) or `X X name X X.` (middle), with `count`
        places for context.

        `shared` says that all will have one context: where it stands in front and the tower is causal, texts
        are laid into common rows."""
        before = {"end": count, "front": 0, "middle": count // 2}[position]
        prompts = self._placeholders(
            lambda word: [
                " ".join([word] * before + [fill("{}", name)] + [word] * (count - before)) + "."
                for name in names
            ]
        )
        if prompts.places.shape != (len(names), count):
            longest = max(names, key=len)
            raise WordsightError(
                f"{count} context tokens and the class name {longest!r} are more than the text tower "
                f"reads; give fewer (settings.ctx) or a shorter name"
            )
        shared = (
            shared
            and position == "end"
            and len(names) > 1
            and self.tower.row_tokens > 0
            and "attention_mask" in prompts.tokens
        )
        return share_beginnings(prompts, self.tower.row_tokens) if shared else prompts

    def _placeholders(self, texts: Callable[[str], list[str]]) -> Prompts:
        """The texts with a placeholder word, as tokens, and where it stands. Where a text was cut, fewer
        places than there are words.
        """
        one, other = (self.tower.tokenize(texts(word)) for word in self.pair)
        differ = one["input_ids"] != other["input_ids"]
        count = int(differ.sum(1).min())
        return Prompts(one, differ.byte().argsort(dim=1, descending=True, stable=True)[:, :count])

    def encode(self, prompts: Prompts, context: Float[Tensor, "*R n W"]) -> Float[Tensor, "N D"]:
        """Unit text vectors with `context` at its places: one for all rows, or one for each. Gradients reach
        the context alone.
        """
        rows, length = prompts.shape
        size = max(1, TOKENS_AT_ONCE // length)
        if rows <= size:
            return self._encode(prompts, context)
        parts = []
        for first in range(0, rows, size):
            part, own = (
                prompts.take(first, first + size),
                context[first : first + size] if context.ndim == 3 else context,
            )
            parts.append(
                checkpoint(self._encode, part, own, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._encode(part, own)
            )
        return torch.cat(parts)

    def _encode(self, prompts: Prompts, context: Float[Tensor, "*R n W"]) -> Float[Tensor, "N D"]:
        with self._placed(prompts.places, context):
            return self.tower.encode_tokens(prompts.tokens, prompts.ends)

    @contextmanager
    def _placed(self, places: Int[Tensor, "R n"], context: Float[Tensor, "*R n W"]) -> Iterator[None]:
        thread = threading.get_ident()  # a server's other threads read their texts through the same layer

        def put(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if threading.get_ident() != thread:
                return None
            where = places[..., None].expand(-1, -1, output.shape[-1])
            return output.scatter(1, where, context.to(output).expand(len(output), -1, -1))

        handle = self.tower.token_embedding.register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


class PromptLearner(Classifier, Learner):
    """What learners of token prompts share: context vectors, spliced into the texts of the classes. Classes
    are encoded once, when they are set.
    """

    Settings: type = ContextSettings
    needs_tower = True

    class_vectors: Tensor

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: ContextSettings):
        super().__init__(class_names, space, settings)
        if not isinstance(space, TokenReader):
            lacking = (
                f"backbone {space.name!r} has none that takes token embeddings"
                if isinstance(space, Backbone)
                else "there is no backbone here"
            )
            raise WordsightError(
                f"{type(self).__name__.lower()} learns token prompts of a text tower; {lacking}. Take a "
                f"CLIP, "
                "SigLIP or joined backbone"
            )
        self.splice = Splice(space)
        self.context = nn.Parameter(self.start())
        self.prompts = self.prompts_of(self.class_names)

    def start(self) -> Float[Tensor, "n W"]:
        """The context before training, on the CPU."""
        if self.settings.init is None:
            return STD * torch.randn(self.settings.ctx, self.splice.words(self.splice.pair[0]).shape[1])
        words = self.splice.words(self.settings.init).cpu()
        if not len(words):
            raise WordsightError(
                f"settings.init={self.settings.init!r} has no tokens; give words such as 'a photo of a', "
                f"or null for random vectors"
            )
        return words

    def prompts_of(self, names: tuple[str, ...]) -> Prompts:
        return self.splice.prompts(
            names, self.context.shape[-2], self.settings.position, shared=self.context.ndim == 2
        )

    @torch.no_grad()
    def set_classes(self, texts: ClassTexts) -> None:
        vectors = self.splice.encode(self.prompts_of(texts.names), self.context)
        self.register_buffer("class_vectors", vectors, persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self.logit_scale * images @ self.class_vectors.T

    def class_weights(self) -> Float[Tensor, "C D"]:
        """Vectors of the labelled classes as the context is now, with gradient."""
        return self.splice.encode(self.prompts, self.context)
