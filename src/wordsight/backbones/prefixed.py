"""prefixed: a frozen language model that reads vectors in place of its first tokens, and goes on from them.

What an image became (methods/limber.py) stands before a caption, a question or a chat. Shapes: B rows, P
vectors in front, W the LM's width, T tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel

from wordsight.backbones import source_of
from wordsight.backbones.checkpoint import Place, check_finite, positions_of
from wordsight.backbones.hub import find
from wordsight.backbones.inner_lm import closeness
from wordsight.backbones.lm import (
    AdaptedLM,
    drop_dropout,
    identity,
    load_lm,
    write_on,
)
from wordsight.backbones.sampling import keep_ends
from wordsight.backbones.tokens import check_known, check_vocabulary
from wordsight.backbones.turns import alone
from wordsight.config import WordsightError

SAMPLED = 4096  # tokens of the vocabulary whose vectors say how large a vector is
SCORES = 2**27  # numbers of logits that are held at once: with 262,144 tokens those of 512 places


class PrefixedLM(nn.Module):
    """A frozen LM that goes on from vectors: [begin tokens; P vectors; tokens of a text].

    Vectors are of the size that the LM's own layer of token vectors gives (`spread`). In transformers 5 what
    Gemma multiplies them with, the root of its width, is in that layer, and so in what is put in their place;
    Granite's factor is in its trunk, which applies it to both. Nothing of the LM is trained, and its dropout
    is off."""

    def __init__(self, lm: PreTrainedModel, tokenizer: Any):
        super().__init__()
        check_vocabulary(tokenizer, lm)
        drop_dropout(lm)
        self.lm, self.tokenizer = lm.eval().requires_grad_(False), tokenizer
        self.origin = identity(lm, tokenizer)
        if tokenizer.eos_token_id is None:
            raise WordsightError(
                f"the tokenizer of {lm.config.model_type} has no end token, so that nothing would end a "
                f"caption; give an LM that has one"
            )
        self.end: int = tokenizer.eos_token_id
        self.begin = _begin(tokenizer)
        self.ends = keep_ends(lm, tokenizer)
        with torch.no_grad():
            known = lm.get_input_embeddings().get_parameter("weight").shape[0]
            step = max(1, known // SAMPLED)
            sample = self.embed(torch.arange(0, known, step, device=lm.device)[None])
            self.width: int = sample.shape[-1]
            self.spread = float(sample.float().square().mean().sqrt())
            self._check()

    @classmethod
    def from_base(
        cls, base: str | Path, *, device: str | torch.device = "cpu", dtype: str = "float32"
    ) -> PrefixedLM:
        """The LM of a folder, a hub name or a GGUF file. Errors: WordsightError for what cannot be right."""
        lm, tokenizer = load_lm(Place(find(str(base), "LM"), "LM", str(base)), "writer", dtype=dtype)
        lm.name_or_path = source_of(base)
        # transformers' stub wraps `to` and loses `self`
        return cls(lm.to(device), tokenizer)  # pyright: ignore[reportArgumentType]

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def context(self) -> int | None:
        """So many vectors and tokens it reads at most; None where it does not say."""
        return positions_of(self.lm.config)

    def train(self, mode: bool = True) -> PrefixedLM:
        """Whatever is trained around it: the LM itself stays as it is used."""
        return super().train(False)

    # -- texts --

    def tokenise(self, texts: Sequence[str], most: int) -> tuple[list[list[int]], int]:
        """Token ids of texts, each with the end token behind it, and how many of them were longer than `most`
        tokens, the end token among them: these lose their ends, and have none. Errors: WordsightError for a
        text with a token that the LM has not."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        check_known(rows, self.lm, self.tokenizer)
        return [[*row, self.end][:most] for row in rows], sum(len(row) >= most for row in rows)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, up to the first that ends it."""
        ended = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return self.tokenizer.decode(tokens[:ended], skip_special_tokens=True)

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """Vectors of tokens, as the LM's first layer gets them."""
        return self.lm.get_input_embeddings()(ids)

    # -- learning --

    def loss(
        self, prefix: Float[Tensor, "B P W"], ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Cross entropy of texts behind their prefixes, mean over the texts' tokens (of `tokenise`), with
        gradient to the prefixes. What is padding is known from `lengths`.

        Logits are made at these tokens alone, a part at a time, so that a large vocabulary takes little
        memory."""
        given = torch.cat([self._front(prefix), self.embed(ids[:, :-1])], 1)
        states = self._states(given)[:, given.shape[1] - ids.shape[1] :]
        spoken = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return _CrossEntropy.apply(states[spoken], ids[spoken], self.logits)

    def logits(self, states: Float[Tensor, "N W"]) -> Float[Tensor, "N vocabulary"]:
        """Scores of the next token, float32, from the trunk's states: what the LM's own class makes of
        them.
        """
        head, config = self.lm.get_output_embeddings(), self.lm.config
        assert head is not None  # `load_lm` reads decoders with their word head
        scores = head(states.to(self.lm.dtype)).float()
        scores = scores / (getattr(config, "logits_scaling", None) or 1)  # Granite
        scores = scores * (getattr(config, "logit_scale", None) or 1)  # Cohere
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(scores / cap) * cap if cap else scores

    # -- writing --

    @torch.no_grad()
    def row(self, parts: Sequence[str | Tensor], *, begin: bool = True) -> Float[Tensor, "Q W"]:
        """What the LM reads of a prompt: its begin tokens, then texts and vectors [_, W] in their order.
        Without `begin` the first text brings what begins it, as that of a chat template does.
        """
        first = self.begin if begin else []
        given = [self.embed(torch.tensor([first], device=self.device, dtype=torch.long))[0]]
        for part in parts:
            if isinstance(part, str):
                ids = self.tokenizer(part, add_special_tokens=False)["input_ids"]
                check_known([ids], self.lm, self.tokenizer)
                part = self.embed(torch.tensor([ids], device=self.device, dtype=torch.long))[0]
            given.append(part.to(given[0]))
        return torch.cat(given)

    @alone
    def write(self, rows: Sequence[Float[Tensor, "_ W"]], **settings: Any) -> list[list[int]]:
        """The tokens that follow each of `rows`; `settings` are those of transformers' `generate`, greedy
        unless they say otherwise. A row passes through the LM once: its keys and values are kept. Rows may be
        of unequal length, and what follows one does not depend on the others beyond rounding.

        A text tower on the same LM changes its weights for moments, so the two take turns."""
        return write_on(self.lm, **side_by_side(rows), **settings).tolist()

    # -- inside --

    def _front(self, prefix: Float[Tensor, "B P W"]) -> Float[Tensor, "B Q W"]:
        """What stands first: the tokens that begin every text of this LM, and the vectors."""
        begin = torch.tensor(self.begin, device=self.device, dtype=torch.long)
        tokens = self.embed(begin.expand(len(prefix), -1))
        return torch.cat([tokens, prefix.to(tokens.dtype)], 1)

    def _states(
        self, given: Float[Tensor, "B Q W"], seen: Bool[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B Q V"]:
        trunk = self.lm.base_model
        return trunk(inputs_embeds=given, attention_mask=seen, use_cache=False).last_hidden_state

    def _check(self) -> None:
        """Vectors in place of tokens, and logits as made here, give what the LM's own class gives."""
        ids = torch.tensor([[*self.begin, self.end, 0, self.end]], device=self.device)
        theirs = self.lm(input_ids=ids).logits[0].float()
        ours = self.logits(self._states(self.embed(ids))[0])
        check_finite({"logits": theirs}, f"what {self.lm.config.model_type} makes")
        if (ours - theirs).abs().max() > closeness(self.lm.dtype) * max(float(theirs.std()), 1e-3):
            raise WordsightError(
                f"{self.lm.config.model_type} makes something else of vectors in place of tokens than of the "
                f"tokens; give another LM, such as llama, qwen3, gemma3 or smollm3"
            )


def side_by_side(rows: Sequence[Float[Tensor, "_ W"]]) -> dict[str, Tensor]:
    """Rows of unequal length as one batch, for transformers' `generate`: gaps stand on the left, so that all
    end together.
    """
    longest = max(map(len, rows))
    gaps = torch.tensor([longest - len(row) for row in rows], device=rows[0].device)
    given = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    for place, row in enumerate(rows):
        given[place, longest - len(row) :] = row
    seen = torch.arange(longest, device=rows[0].device) >= gaps[:, None]
    return {"inputs_embeds": given, "attention_mask": seen.long()}


@alone
def write_adapted(
    tower: AdaptedLM, rows: Sequence[Float[Tensor, "_ W"]], adapters: Sequence[str], **settings: Any
) -> list[list[int]]:
    """The tokens that follow each of `rows`, of which each says whether the adapters are on for it: as
    `PrefixedLM.write`, by the LM of a text tower, all rows in one batch."""
    tower._check_generation([[0]] * len(rows), list(adapters))
    return tower.written(adapters, side_by_side(rows) | settings).tolist()


class _CrossEntropy(torch.autograd.Function):
    """Mean cross entropy of states at the word head, whose gradient is made in forward, part by part: no more
    than SCORES logits are ever held.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, wanted: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
        learns, total = ctx.needs_input_grad[0], states.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(states)
        size = max(1, SCORES // max(1, logits_of(states[:1]).shape[-1]))
        for some, tokens, made in zip(states.split(size), wanted.split(size), gradient.split(size)):
            with torch.set_grad_enabled(learns):
                leaf = some.detach().requires_grad_(learns)
                loss = F.cross_entropy(logits_of(leaf), tokens, reduction="sum")
            total += loss.detach()
            if learns:
                made.copy_(torch.autograd.grad(loss, leaf)[0])
        ctx.save_for_backward(gradient / max(1, len(states)))
        return total / max(1, len(states))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None


def _begin(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts in front of every text."""
    whole, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    places = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
    return whole[: places[0]] if places else []
