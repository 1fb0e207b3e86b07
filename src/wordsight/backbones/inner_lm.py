"""inner_lm: the language model inside an image-text-to-text model, as the LM that it is by itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from wordsight.backbones.checkpoint import Place, read_model, vocabulary_size
from wordsight.backbones.hub import listed, quiet
from wordsight.config import WordsightError

# text parts of families that have no class of their own, and which LM they are where positions are those of a
# text: three equal numbers of a place in place of one
ALIKE = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
# model types that read images beside texts and write
MLLMS = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
CLOSE = 1e-3  # by which logits may differ from those of the whole model


def inner_config(config: Any, name: str) -> Any:
    """The configuration of the LM inside. Errors: WordsightError where it is no LM of transformers."""
    text = config.get_text_config()
    kind = ALIKE.get(text.model_type or "", text.model_type or "")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise WordsightError(
            f"{name!r} is a {config.model_type}, whose language model ({text.model_type}) transformers has "
            f"not by itself; give an LM, or a LLaVA, Qwen2-VL, SmolVLM, Idefics 2 or 3 or PaliGemma"
        )
    values = {key: value for key, value in text.to_dict().items() if key != "model_type"}
    if kind != text.model_type:
        rope = dict(values.get("rope_parameters") or {})
        rope.pop("mrope_section", None)
        rope.pop("mrope_interleaved", None)
        values["rope_parameters"] = rope | {"rope_type": "default"}
    values["tie_word_embeddings"] = config.tie_word_embeddings
    return CONFIG_MAPPING[kind](**values)


def read_inner(place: Place, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The LM inside the model of a folder, all of which is read: every tensor of the checkpoint has its
    place.

    Errors: as `read_model`; and WordsightError where the LM alone would not give what the whole model gives
    to a text."""
    whole = read_model(AutoModelForImageTextToText, place, config, dtype=dtype)
    return inner_lm(whole, place.name)


def inner_lm(whole: PreTrainedModel, name: str) -> PreTrainedModel:
    """The LM inside, on the very tensors of the whole."""
    made = inner_config(whole.config, name)
    kind: Any = AutoModelForCausalLM._model_mapping[type(made)]
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    if head is None:
        raise WordsightError(f"the LM of {name!r} has no word head; it cannot be taken out")
    state = {f"{kind.base_model_prefix}.{key}": value for key, value in decoder.state_dict().items()}
    state |= {f"lm_head.{key}": value for key, value in head.state_dict().items()}
    with quiet():
        lm, info = kind.from_pretrained(
            None, config=made, state_dict=state, dtype=whole.dtype, output_loading_info=True
        )
    odd = [*info["missing_keys"], *info["unexpected_keys"]]
    odd += [entry[0] for entry in info["mismatched_keys"]]
    if odd:
        raise WordsightError(f"the LM of {name!r} is none of {made.model_type}: {listed(odd)} differ")
    lm = lm.eval()
    _check(whole, lm, name)
    return lm


def closeness(dtype: torch.dtype, least: float = 1e-2) -> float:
    """By how much scores of one LM, made in two ways, may differ, in units of their spread."""
    return max(least, 8 * torch.finfo(dtype).eps)


@torch.no_grad()
def _check(whole: PreTrainedModel, lm: PreTrainedModel, name: str) -> None:
    most = vocabulary_size(lm)
    ids = torch.tensor([[token % most for token in (11, 23, 5, 37, 8, 19)]], device=whole.device)
    mask = torch.ones_like(ids)
    theirs, ours = (model(input_ids=ids, attention_mask=mask).logits.float() for model in (whole, lm))
    if not (ours - theirs).abs().max() <= closeness(whole.dtype, CLOSE) * theirs.std():
        raise WordsightError(
            f"the LM of {name!r} by itself ({lm.config.model_type}) says something else than inside the "
            f"whole model ({whole.config.model_type}); it cannot be taken out"
        )
