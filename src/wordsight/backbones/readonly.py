"""Read-only prompts: vectors appended after a text that see all of it and that it never sees. Masks,
positions, and the two ways to run them.

Columns are [text, padding | prompts]; shapes: B texts, T columns of text and padding, K prompts, W width, Q
query rows (those not in the cache). The text may begin with `past` columns that are already in a key/value
cache: the same for every row, computed once, never padding."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import CacheLayerMixin, DynamicCache
from transformers.modeling_utils import PreTrainedModel

from wordsight.config import WordsightError

ATTENTIONS = (
    "sdpa",
    "eager",
)  # flash attention cannot honour a mask per row and column; flex aborts the process on a dense one
ALIBI = (
    "bloom",
    "mpt",
)  # positions by column, so that padding would move the prompts; Falcon says so in its config
NO_KEYS = (
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "xlstm",
    "recurrent_gemma",
)  # recurrent: nothing that prompts could attend to
LAYERS = ("full_attention", "sliding_attention")


class Prefix(NamedTuple):
    """What all texts of a batch begin with, run once: its key/value cache and its last states. One row, to be
    expanded.
    """

    cache: list[tuple[Tensor, Tensor]]
    states: Float[Tensor, "1 F W"]

    def expand(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self.cache
        ]


class TextCache(DynamicCache):
    """A key/value cache that stops the LM once the last layer's keys and values are in: the rest of that
    layer would only make states nobody reads.
    """

    def __init__(self, last: int, data: Any = None):
        self.last, self.stops = last, False
        super().__init__(data)  # which updates

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *more: Any, **others: Any
    ) -> tuple[Tensor, Tensor]:
        seen = super().update(keys, values, layer_idx, *more, **others)
        if self.stops and layer_idx == self.last:
            raise _Filled
        return seen


class _Filled(Exception):
    pass


class AttentionPool(nn.Module):
    """Some vectors become one: a learned query attends to them, with several heads.

    CLAMP, eqs. 2-4. The paper gives neither width nor heads, so both are settings, nor how it starts. Here it
    starts as the mean, whatever the states: the query near zero, values and output as the identity (or, at
    another width, as a projection that keeps angles)."""

    def __init__(self, inner: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.key, self.value, self.out = (
            nn.Linear(inner, width),
            nn.Linear(inner, width),
            nn.Linear(width, width),
        )
        for layer in (self.value, self.out):
            (nn.init.eye_ if layer.in_features == layer.out_features else nn.init.orthogonal_)(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Float[Tensor, "B S W"], keep: Bool[Tensor, "B S"]) -> Float[Tensor, "B V"]:
        rows, count, _ = states.shape
        keys, values = (
            part(states).view(rows, count, self.heads, -1).transpose(1, 2) for part in (self.key, self.value)
        )
        query = self.query.view(1, self.heads, 1, -1).expand(rows, -1, -1, -1)
        return self.out(
            scaled_dot_product_attention(query, keys, values, attn_mask=keep[:, None, None]).flatten(1)
        )


def additive_mask(
    lengths: Int[Tensor, " B"],
    width: int,
    prompts: int,
    *,
    past: int = 0,
    both: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B 1 Q S"]:
    """What each row may see, as numbers to add to the scores: 0, or the least number of `dtype`.

    Text sees text before it; prompts see the whole text, and one another (`both`) or only the ones before.
    Nobody sees padding. Additive and in the model's dtype because eager attention adds a boolean mask as 0
    and 1, which is silently wrong; this form is right for eager and sdpa alike."""
    columns = torch.arange(width + prompts, device=lengths.device)
    rows = columns[past:]
    real = (columns < lengths[:, None]) | (columns >= width)
    seen = columns <= rows[:, None]
    if both:
        seen = seen | (rows >= width)[:, None]
    return as_numbers(~(real[:, None] & seen), dtype)


def as_numbers(hidden: Bool[Tensor, "B Q S"], dtype: torch.dtype) -> Float[Tensor, "B 1 Q S"]:
    """A mask as numbers to add to the scores, for all heads alike: the least of `dtype` where it hides."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
        hidden, torch.finfo(dtype).min
    )[:, None]


def positions(lengths: Int[Tensor, " B"], width: int, prompts: int, *, past: int = 0) -> Int[Tensor, "B Q"]:
    """Text counts from the left; prompts go on where their text ends, not where its padding does."""
    text = torch.arange(past, width, device=lengths.device).expand(len(lengths), -1)
    return torch.cat([text, lengths[:, None] + torch.arange(prompts, device=lengths.device)], 1)


def one_pass(
    model: PreTrainedModel,
    text: Float[Tensor, "B Q W"],
    prompts: Float[Tensor, "K W"],
    lengths: Int[Tensor, " B"],
    *,
    prefix: Prefix | None = None,
    both: bool = True,
    mask: Tensor | None = None,
) -> tuple[Float[Tensor, "B Q W"], Float[Tensor, "B K W"]]:
    """Text and prompts through the LM together, under an explicit mask. Gives the states of both. For
    training: works with gradient checkpointing.
    """
    past = prefix.states.shape[1] if prefix else 0
    width = past + text.shape[1]
    check_window(model, width + len(prompts))
    if mask is None:
        shared = (
            lengths[:1] if bool((lengths == lengths[0]).all()) else lengths
        )  # without padding one mask does for every row
        mask = additive_mask(shared, width, len(prompts), past=past, both=both, dtype=text.dtype)
    check_mask(model, mask)
    states = model(
        inputs_embeds=torch.cat([text, prompts.to(text.dtype).expand(len(text), -1, -1)], 1),
        attention_mask=mask,
        position_ids=positions(lengths, width, len(prompts), past=past),
        past_key_values=DynamicCache(prefix.expand(len(text))) if prefix else None,
        use_cache=prefix is not None,
    ).last_hidden_state
    return states.split([text.shape[1], len(prompts)], 1)


def text_pass(
    model: PreTrainedModel,
    text: dict[str, Tensor],
    lengths: Int[Tensor, " B"],
    *,
    prefix: Prefix | None = None,
    cache: bool = True,
) -> tuple[Float[Tensor, "B Q W"], DynamicCache | None]:
    """The LM's own pass over the text (`input_ids` or `inputs_embeds`), as without any prompts: its states,
    and the key/value cache if wanted.
    """
    # Not DynamicCache(config=...): for sliding layers it would keep window - 1 keys, and the mask would not
    # fit
    kept = DynamicCache(prefix.expand(len(lengths))) if prefix else DynamicCache() if cache else None
    return _run_text(model, text, lengths, kept).last_hidden_state, kept


def fill_cache(
    model: PreTrainedModel,
    text: dict[str, Tensor],
    lengths: Int[Tensor, " B"],
    *,
    prefix: Prefix | None = None,
) -> TextCache:
    """The cache that `text_pass` gives, bit for bit, without the states: all that the prompts' pass needs."""
    cache = TextCache(model.config.num_hidden_layers - 1, prefix.expand(len(lengths)) if prefix else None)
    cache.stops = True
    with contextlib.suppress(_Filled):
        _run_text(model, text, lengths, cache)
    cache.stops = False
    return cache


def _run_text(
    model: PreTrainedModel, text: dict[str, Tensor], lengths: Int[Tensor, " B"], cache: DynamicCache | None
) -> Any:
    width = next(iter(text.values())).shape[1] + (cache.get_seq_length() if cache is not None else 0)
    seen = (
        torch.arange(width, device=lengths.device) < lengths[:, None]
    ).long()  # from lengths: a pad token may also be a real one
    return model(**text, attention_mask=seen, past_key_values=cache, use_cache=cache is not None)


def prompt_pass(
    model: PreTrainedModel,
    prompts: Float[Tensor, "K W"],
    lengths: Int[Tensor, " B"],
    cache: DynamicCache,
    *,
    both: bool = True,
) -> Float[Tensor, "B K W"]:
    """The prompts' short pass over the cache of the text. The cache is used up: the LM appends the prompts to
    it.
    """
    if model.training and checkpoints(model):
        raise WordsightError(
            "two passes do not go with gradient checkpointing in training: transformers drops the cache in "
            "silence, and the prompts would see no text; "
            "use way='one', or turn checkpointing off"
        )
    width = cache.get_seq_length()
    dtype = keys_and_values(cache)[0][0].dtype
    return model(
        inputs_embeds=prompts.to(dtype).expand(len(lengths), -1, -1),
        attention_mask=additive_mask(lengths, width, len(prompts), past=width, both=both, dtype=dtype),
        position_ids=positions(lengths, width, len(prompts), past=width),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def run_prefix(model: PreTrainedModel, text: dict[str, Tensor]) -> Prefix:
    """The cache of what all texts begin with."""
    columns = next(iter(text.values())).shape[1]
    states, cache = text_pass(model, text, torch.tensor([columns], device=model.device))
    assert cache is not None
    return Prefix(keys_and_values(cache), states)


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, in a cache that has been filled."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
        found.append((layer.keys, layer.values))
    return found


# What would be wrong in silence


def check_model(model: PreTrainedModel, prompts: int) -> None:
    """Refuse models on which read-only prompts cannot be right."""
    config, name = model.config, model.config.model_type
    if config._attn_implementation not in ATTENTIONS:
        raise WordsightError(
            f"attn_implementation={config._attn_implementation!r} cannot take the mask of read-only "
            f"prompts (flex attention aborts on a dense mask, "
            f"flash attention ignores it); load the model with one of {', '.join(ATTENTIONS)}"
        )
    if name in ALIBI or getattr(config, "alibi", False):
        raise WordsightError(
            f"{name} knows positions by ALiBi, which counts columns: padding would move the prompts; take "
            f"a model with other positions"
        )
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(LAYERS))
    if prompts and (name in NO_KEYS or other):
        raise WordsightError(
            f"{name} has layers without keys and values ({', '.join(other) or 'recurrent'}), which prompts "
            f"cannot read; set prompts=0"
        )


def check_mask(model: PreTrainedModel, mask: Tensor) -> None:
    how = model.config._attn_implementation
    if mask.ndim != 4:
        raise WordsightError(
            f"the mask has shape {tuple(mask.shape)}; expected [B or 1, 1 or heads, rows, columns]"
        )
    if not mask.is_floating_point() and not (mask.dtype == torch.bool and how == "sdpa"):
        raise WordsightError(
            f"a mask of {mask.dtype} under {how} attention would be added to the scores as 0 and 1, which "
            f"is silently wrong; "
            "give an additive mask: 0 where a row sees, torch.finfo(dtype).min where not "
            "(readonly.additive_mask)"
        )


def window(config: Any) -> int | None:
    """How far a token of this LM sees, if not to the beginning."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        return None
    return getattr(config, "sliding_window", None)


def checkpoints(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on; transformers renamed the property that says so."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def check_window(model: PreTrainedModel, columns: int) -> None:
    sees = window(model.config)
    if sees is not None and columns > sees:
        raise WordsightError(
            f"text plus prompts are {columns} columns, but {model.config.model_type} has a sliding window "
            f"of {sees}, which the mask of one pass would "
            "turn off for the text; use way='two', or shorter texts (max_tokens)"
        )
