"""verify: what a text tower promises (the LM writes as before, prompts are read-only, padding means nothing),
measured in seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from wordsight.backbones import readonly
from wordsight.backbones.checkpoint import vocabulary_size
from wordsight.backbones.lm import first_layers, sketch, untouched, write_on
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.turns import alone

TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 5e-2,
}  # two ways of computing the same: kernels tile other shapes in another order


class Check(NamedTuple):
    """One invariant of `verify`: `value` was measured, and is at most (or, for `least`, above) `bound`."""

    passed: bool
    value: float
    bound: float
    says: str
    least: bool = False


@alone
def verify(tower: TextTower) -> dict[str, Check]:
    """Measure, in seconds, what a text tower promises: which promises there are depends on its settings. All
    must have `passed`.
    """
    settings, found = tower.settings, {}
    tolerance = TOLERANCE.get(tower.trunk.dtype, 5e-2)

    def note(name: str, value: Tensor | float, bound: float, says: str, *, least: bool = False) -> None:
        value = float(value)
        found[name] = Check(value > bound if least else value <= bound, value, bound, says, least)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return (one.float() - other.float()).abs().max()

    bare, changed = untouched(tower.plain), settings.train in ("layernorms", "all")
    if not changed:
        note(
            "base_weights",
            sketch(bare) != tower.sketch,
            0,
            "the LM's weights are those it came with (a sample of every tensor)",
        )
    texts = ["dog", "a small red house by the sea", "cat", "one more thing"]
    batch = tower.tokenise(texts)
    columns = torch.arange(batch.ids.shape[1], device=tower.device)
    other = torch.where(
        columns < batch.lengths[:, None],
        batch.ids,
        (batch.ids + 1) % vocabulary_size(tower.trunk),
    )
    other = batch._replace(ids=other)
    note("padding", apart(tower(batch), tower(other)), 0, "what stands in the padding changes nothing")
    note(
        "batching",
        apart(tower.encode(texts), torch.cat([tower.encode([text]) for text in texts])),
        tolerance,
        "a text's vector is the same alone",
    )
    if settings.kind == "encoder":
        return found

    lengths, text = batch.lengths, {"input_ids": batch.ids}
    ends, known = lengths[:, None] - 1, vocabulary_size(tower.trunk)
    last = batch.ids.scatter(1, ends, (batch.ids.gather(1, ends) + 1) % known)
    with tower.adapters(False):
        states, _ = readonly.text_pass(tower.trunk, text, lengths)
        later, _ = readonly.text_pass(tower.trunk, {"input_ids": last}, lengths)
        earlier = (columns < lengths[:, None] - 1)[..., None]
        note(
            "causal",
            apart(states * earlier, later * earlier),
            0,
            "a text's last token changes no state before it: the LM is a decoder",
        )
        seen = (columns < lengths[:, None]).long()
        if not changed:
            trunk = bare.base_model
            assert isinstance(trunk, PreTrainedModel)
            whole = first_layers(trunk, settings.layers)
            base = whole(**text, attention_mask=seen, use_cache=True).last_hidden_state
            note(
                "text_states",
                apart(states, base),
                0,
                "with adapters off, states of the text are the untouched LM's, bit for bit",
            )
        if tower.can_generate and not changed and settings.bias == "none":
            logits = [model(**text, attention_mask=seen).logits for model in (tower.plain, bare)]
            note(
                "adapters_off_logits",
                apart(*logits),
                0,
                "with adapters off, logits are the untouched LM's, bit for bit",
            )
            start = {
                "input_ids": batch.ids[:1, : lengths[0]],
                "attention_mask": seen[:1, : lengths[0]],
                "do_sample": False,
                "max_new_tokens": 8,
            }
            start["pad_token_id"] = tower.tokenizer.pad_token_id or 0
            written = [write_on(model, **start)[0].tolist() for model in (tower.plain, bare)]
            note(
                "adapters_off_tokens",
                written[0] != written[1],
                0,
                "with adapters off, it writes the untouched LM's tokens",
            )
    if tower.prompts is None:
        return found
    both, prompts = settings.prompts_attend == "both", tower.prompts.detach()
    moved = torch.cat([prompts[:-1], prompts[-1:] + 1])
    sees = readonly.window(tower.trunk.config)
    if sees is None or sees >= batch.ids.shape[1] + settings.front + settings.prompts:
        width = lengths + settings.front
        embedded = tower._embed(batch.ids, None)
        one, two = (
            readonly.one_pass(tower.trunk, embedded, given, width, both=both) for given in (prompts, moved)
        )
        note("read_only", apart(one[0], two[0]), 0, "prompts change no state of the text")
        if settings.prompts > 1:
            shift = apart(one[1][:, 0], two[1][:, 0])
            note(
                "prompts_see_one_another",
                shift,
                0,
                "the last prompt moves the first" if both else "the last prompt leaves the first alone",
                least=both,
            )
        if not settings.prompt_only_lora:
            ways = [tower.encode(texts, way) for way in ("one", "two")]
            note(
                "two_ways",
                apart(*ways),
                tolerance,
                f"one pass and two give the same vectors, to {tolerance:g}",
            )
    return found
