"""text_encoding: texts to unit vectors through an LM: the caption in its wrapper, the passes, the pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wordsight.backbones import batches, readonly, several, unit
from wordsight.backbones.checkpoint import padding_of, positions_of
from wordsight.backbones.lm import AdaptedLM
from wordsight.backbones.tokens import check_known
from wordsight.backbones.turns import alone
from wordsight.config import WordsightError

MAX_TOKENS = 256  # of a text with its wrapper, where the settings do not say
TOKENS_PER_BATCH = {
    "cpu": 2048,
    "cuda": 16384,
    # padding and prompts counted; on a CPU a batch should stay in its caches (measured), a GPU wants to be
    # filled
    # (a guess)
}
FEW = 4  # texts: below, calling the LM twice costs more than the end of its last layer saves (measured)
FOLD = 16  # texts for which adding LoRA to the weights once is cheaper than adding its output to each token's
SHARE = 2, 8  # a common beginning of so many tokens, in so many texts, is worth a pass of its own

Way = Literal["auto", "one", "two"]


class TextBatch(NamedTuple):
    """Tokenised texts, padded on the right. What is padding is known from `lengths`, never from the pad
    token.
    """

    ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]


class TextEncoding(AdaptedLM):
    """An LM that gives one unit vector a text: what a text tower does, apart from how it is made and kept."""

    wrapper: str  # the sentence with {} where the caption stands
    prompts: nn.Parameter | None  # [K, W], after the text
    front: nn.Parameter | None  # before it
    pool: readonly.AttentionPool | None
    head: nn.Sequential
    max_tokens: int  # of a text with its wrapper
    truncated_texts: int  # captions that lost their ends
    _special: bool  # whether the tokenizer adds its special tokens to the wrapper

    def tokenise(self, texts: Sequence[str]) -> TextBatch:
        """Captions in their wrapper as token ids. One that is too long loses its end, not the wrapper's, and
        is counted. Errors: an empty caption.
        """
        return self._collate(self._tokens(texts))

    def forward(
        self, texts: Sequence[str] | TextBatch, way: Way = "auto", mask: Tensor | None = None
    ) -> Float[Tensor, "N D"]:
        """Unit vectors with gradient. `auto`: one pass, or two where the text needs no gradient: no states of
        its last layer are made, and none kept. `mask`: your own for one pass, [N, 1, T + K, T + K]."""
        batch = texts if isinstance(texts, TextBatch) else self.tokenise(texts)
        return unit(self.head(self._pooled(batch, way, mask=mask)))

    def encode(
        self, texts: Sequence[str], way: Way = "auto", *, tokens_per_batch: int | None = None
    ) -> Float[Tensor, "N D"]:
        """Unit vectors, float32, in the order of `texts`. Equal texts are run once, what all begin with is
        run once, and like lengths run together.
        """
        with torch.no_grad():
            return unit(self.head(self.features(texts, way, tokens_per_batch=tokens_per_batch)))

    @property
    def dim(self) -> int:
        """D, the shared width."""
        return self.settings.dim

    @property
    def _first(self) -> nn.Linear:
        """The layer that pooled states enter."""
        first = self.head[0]
        assert isinstance(first, nn.Linear)
        return first

    @alone
    def features(
        self, texts: Sequence[str], way: Way = "auto", *, tokens_per_batch: int | None = None
    ) -> Float[Tensor, "N V"]:
        """Pooled states before the projection. With a frozen LM and mean or last pooling they never change:
        cache them, and train `head` alone.
        """
        self._check_merged()
        _check_texts(texts)
        distinct = list(dict.fromkeys(texts))
        tokens = self._tokens(distinct)
        vectors = torch.empty(len(distinct), self._first.in_features, device=self.device)
        tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH.get(
            self.device.type, TOKENS_PER_BATCH["cuda"]
        )
        with self._folded() if len(distinct) >= FOLD else contextlib.nullcontext():
            prefix, past = self._prefix(tokens)
            rest = [ids[past:] for ids in tokens]
            for rows in batches(
                [len(ids) for ids in rest],
                past + self.settings.front + self.settings.prompts,
                tokens_per_batch,
            ):
                vectors[rows] = self._pooled(self._collate([rest[row] for row in rows]), way, prefix=prefix)
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[[row_of[text] for text in texts]]

    def _pooled(
        self,
        batch: TextBatch,
        way: Way = "auto",
        *,
        prefix: readonly.Prefix | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B V"]:
        states, keep = self._states(batch, way, prefix, mask)
        if self.pool is not None:
            return self.pool(states, keep)
        if self.settings.pooling == "last":
            return states[torch.arange(len(states), device=states.device), last_kept(keep)]
        return (states * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)

    def _states(
        self, batch: TextBatch, way: Way, prefix: readonly.Prefix | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is pooled, in the dtype of what is trained (float32), and which of it: the prompts' states, or
        the text's where there are none.
        """
        past = prefix.states.shape[1] if prefix else 0
        ahead = past or self.settings.front
        lengths = batch.lengths + ahead
        if self.prompts is None:
            states, _ = readonly.text_pass(
                self.trunk, self._text(batch.ids, prefix), lengths, prefix=prefix, cache=False
            )
            if prefix:
                states = torch.cat([prefix.states.expand(len(states), -1, -1), states], 1)
            columns = torch.arange(states.shape[1], device=states.device)
            return states.to(self._first.weight.dtype), (columns >= self.settings.front) & (
                columns < lengths[:, None]
            )
        way = self._way(way, ahead + batch.ids.shape[1], len(batch.ids)) if mask is None else "one"
        both = self.settings.prompts_attend == "both"
        if way == "one":
            states = readonly.one_pass(
                self.trunk,
                self._embed(batch.ids, prefix),
                self.prompts,
                lengths,
                prefix=prefix,
                both=both,
                mask=mask,
            )[1]
        else:
            with (
                torch.set_grad_enabled(torch.is_grad_enabled() and not self._text_is_constant),
                self.adapters(not self.settings.prompt_only_lora),
            ):
                cache = readonly.fill_cache(self.trunk, self._text(batch.ids, prefix), lengths, prefix=prefix)
            states = readonly.prompt_pass(self.trunk, self.prompts, lengths, cache, both=both)
        return states.to(self._first.weight.dtype), torch.ones(
            states.shape[:2], dtype=torch.bool, device=states.device
        )

    def _way(self, way: Way, columns: int, rows: int) -> Way:
        if way not in ("auto", "one", "two"):
            raise WordsightError(f"way={way!r} is not a choice; the choices are auto, one, two")
        if self.settings.prompt_only_lora:
            if way == "one":
                raise WordsightError(
                    "prompt_only_lora needs way='two': in one pass LoRA would act on the text too"
                )
            return "two"
        if way != "auto":
            return way
        if self.training and readonly.checkpoints(self.trunk):
            return "one"
        sees = readonly.window(self.trunk.config)
        too_far = sees is not None and columns + self.settings.prompts > sees
        if torch.is_grad_enabled():
            return "two" if too_far or self._text_is_constant else "one"
        return "two" if too_far or rows >= FEW else "one"

    @property
    def _text_is_constant(self) -> bool:
        return (
            self.settings.train in ("prompts", "head") or self.settings.prompt_only_lora
        ) and self.front is None

    def _text(self, ids: Int[Tensor, "B T"], prefix: readonly.Prefix | None) -> dict[str, Tensor]:
        """The LM's input: plain tokens where nothing stands before them, so that its pass is literally its
        own.
        """
        return (
            {"input_ids": ids} if self.front is None or prefix else {"inputs_embeds": self._embed(ids, None)}
        )

    def _embed(self, ids: Int[Tensor, "B T"], prefix: readonly.Prefix | None) -> Float[Tensor, "B Q W"]:
        """Token vectors, after the soft tokens at the front, which a prefix already has."""
        vectors = self.trunk.get_input_embeddings()(ids)
        if self.front is None or prefix:
            return vectors
        return torch.cat([self.front.to(vectors.dtype).expand(len(ids), -1, -1), vectors], 1)

    def _prefix(self, tokens: list[list[int]]) -> tuple[readonly.Prefix | None, int]:
        """What all texts begin with, run once, and how many tokens it is. One token of each text stays out:
        something must be left to run.
        """
        tokens_worth, texts_worth = SHARE
        if self.settings.kind == "encoder" or len(tokens) < texts_worth:
            return None, 0
        differs = [
            one != other for one, other in zip(min(tokens), max(tokens))
        ]  # in lexical order, so that all others lie between
        shared = min(differs.index(True) if True in differs else len(differs), min(map(len, tokens)) - 1)
        if shared < tokens_worth:
            return None, 0
        ids = torch.tensor([tokens[0][:shared]], device=self.device)
        with self.adapters(not self.settings.prompt_only_lora):
            return readonly.run_prefix(self.trunk, self._text(ids, None)), shared

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        _check_texts(texts)
        if not texts:
            return []
        tokens = self._ids([self.wrapper.replace("{}", text) for text in texts])
        long = [row for row, ids in enumerate(tokens) if len(ids) > self.max_tokens]
        for row in long:
            tokens[row] = self._shorten(texts[row])
        if long:
            self.truncated_texts += len(long)
        for row, ids in enumerate(tokens):
            if not ids:
                raise WordsightError(f"the tokenizer makes no token of caption {row}, {texts[row]!r}")
        return tokens

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each caption, whether its end is cut off because it does not fit with its wrapper."""
        tokens = self._ids([self.wrapper.replace("{}", text) for text in texts]) if texts else []
        return [len(ids) > self.max_tokens for ids in tokens]

    def _ids(self, sentences: list[str]) -> list[list[int]]:
        rows = self.tokenizer(sentences, add_special_tokens=self._special, verbose=False)["input_ids"]
        check_known(rows, self.plain, self.tokenizer)
        return rows

    def _shorten(self, text: str) -> list[int]:
        """The longest beginning of a caption that fits, cut between words where a word fits at all, in the
        whole wrapper.
        """
        text = text.strip()
        ends = [
            index for index, letter in enumerate(text) if letter.isspace() and not text[index - 1].isspace()
        ]
        for cuts in (ends, list(range(1, len(text)))):
            low, high, best = 0, len(cuts) - 1, None
            while low <= high:
                middle = (low + high) // 2
                ids = self._ids([self.wrapper.replace("{}", text[: cuts[middle]])])[0]
                low, high, best = (
                    (middle + 1, high, ids) if len(ids) <= self.max_tokens else (low, middle - 1, best)
                )
            if best is not None:
                return best
        raise WordsightError(
            f"max_tokens={self.max_tokens} holds no letter of a caption beside the wrapper "
            f"{self.wrapper!r}; give more, or a shorter wrapper"
        )

    def _collate(self, tokens: list[list[int]]) -> TextBatch:
        pad = padding_of(self.tokenizer)
        width = max(map(len, tokens), default=0)
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in tokens], dtype=torch.long).view(
            len(tokens), width
        )
        return TextBatch(
            ids.to(self.device),
            torch.tensor([len(ids) for ids in tokens], dtype=torch.long, device=self.device),
        )

    def _room(self) -> int:
        """How many tokens a text may have."""
        config, extra = self.plain.config, self.settings.prompts + self.settings.front
        held = positions_of(config)
        if held and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            held -= (config.pad_token_id or 0) + 1  # their positions begin after the pad token's
        reads = [self.tokenizer.model_max_length] if self.settings.kind == "encoder" else []
        room = min([held - extra if held else MAX_TOKENS, *reads])
        wanted = self.settings.max_tokens
        if wanted and wanted > room:
            raise WordsightError(
                f"max_tokens={wanted} and {extra} prompts do not fit into the {held} positions of "
                f"{config.model_type}; give at most {room}"
            )
        found, least = min(wanted or MAX_TOKENS, room), len(self._ids([self.wrapper.replace("{}", "a")])[0])
        if found < least:
            raise WordsightError(
                f"text and prompts are longer than the LM's positions: {self.wrapper!r} with a caption of "
                f"one letter takes {least} tokens and the prompts "
                f"{extra}, but there is room for {found} tokens of text; take fewer prompts, or a shorter "
                f"wrapper"
            )
        return found


def last_kept(keep: Bool[Tensor, "B S"]) -> Int[Tensor, " B"]:
    """The column of each row's last state that is kept."""
    columns = torch.arange(keep.shape[1], device=keep.device)
    return torch.where(keep, columns, -1).amax(1)


def _check_texts(texts: Sequence[str]) -> None:
    for row, text in enumerate(several(texts)):
        if not isinstance(text, str) or not text.strip():
            raise WordsightError(
                f"caption {row} is {text!r}: there is nothing to embed; leave it out or give it words"
            )
