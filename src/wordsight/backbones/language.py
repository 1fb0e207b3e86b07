"""A language model of transformers as it comes: loading it strictly, its wrapper sentence, what kind it is,
and itself without adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from wordsight.backbones import fingerprint
from wordsight.backbones.clip import DTYPES, TOKENIZER_FILES, _quiet, _reading
from wordsight.config import WordsightError, nearest

ASKS = "A photo of a {}. A {} has the following visual attributes."
WRAPPERS = {
    # CLAMP's: the turns are separated by a space, as in Vicuna's own format
    "vicuna": f"USER: {ASKS} ASSISTANT: 1.",
    "plain": "{}",
}
DROPOUTS = (
    "attention_dropout",
    "activation_dropout",
    "dropout",
    "dropout_prob",
    "attn_dropout",
)  # numbers for functional dropout


def load_lm(
    folder: Path, name: str, kind: str, *, dtype: str = "float32", random: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, Any]:
    """An LM and its tokenizer from a folder of transformers, every tensor from the checkpoint; `random`:
    none, of its shape with these values changed. Errors: WordsightError for whatever is absent.
    """
    if dtype not in DTYPES:
        raise WordsightError(f"dtype={dtype!r} is not a choice; the choices are {', '.join(DTYPES)}")
    if not (folder / "config.json").is_file():
        raise WordsightError(f"LM folder {str(folder)!r} holds no config.json of transformers")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise WordsightError(
            f"LM folder {str(folder)!r} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])} or the like); "
            f"copy it from its origin"
        )
    with _quiet(), _reading(name, "config.json or tokenizer"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_kind(config, kind)
    auto = AutoModel if kind == "encoder" else AutoModelForCausalLM
    if random is not None:
        for key, value in random.items():
            if not hasattr(config, key):
                raise WordsightError(
                    f"shape has {key!r}, which config.json of {name!r} has "
                    f"not{nearest(key, config.to_dict())}"
                )
            setattr(config, key, value)
        lm = auto.from_config(config, dtype=DTYPES[dtype])
        lm.name_or_path = ""
        return lm.eval(), tokenizer
    if not any(folder.glob("model*.safetensors")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        why = (
            f"only {pickled[0]}, a pickle, which is never opened; save it with safetensors"
            if pickled
            else "no weights (model.safetensors)"
        )
        raise WordsightError(f"LM folder {str(folder)!r} holds {why}")
    pooler = {"add_pooling_layer": False} if kind == "encoder" and _has_pooler(config) else {}
    with _quiet(), _reading(name, "the weights"):
        lm, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below, with their names
            local_files_only=True,
            **pooler,
        )
    for what, key in (
        ("lacks", "missing_keys"),
        ("has in another shape than config.json:", "mismatched_keys"),
    ):
        if info[key]:
            tensors = sorted(entry if isinstance(entry, str) else entry[0] for entry in info[key])
            raise WordsightError(
                f"the checkpoint in {str(folder)!r} {what} {', '.join(tensors[:3])}; nothing is filled "
                f"with random numbers"
            )
    return lm.eval(), tokenizer


def _has_pooler(config: Any) -> bool:
    return "add_pooling_layer" in MODEL_MAPPING[type(config)].__init__.__code__.co_varnames


def check_kind(config: Any, kind: str) -> None:
    """A decoder is a decoder, and an encoder an encoder."""
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise WordsightError(
            f"{name} is an encoder with a decoder; a text tower takes a decoder LM, or an encoder alone"
        )
    encoder = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if kind == "decoder" and encoder:
        raise WordsightError(
            f"{name} is an encoder, whose text would see the prompts; set kind=encoder, prompts=0 and "
            f"wrapper=plain for it"
        )
    if kind == "decoder" and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise WordsightError(
            f"{name} is no decoder LM that transformers knows; give one such as llama, mistral, qwen3, "
            f"smollm3, opt or gpt2"
        )
    if kind == "encoder" and not encoder:
        raise WordsightError(f"{name} is no encoder LM; set kind=decoder for it")


def resolve_wrapper(name: str, tokenizer: Any) -> tuple[str, bool]:
    """The sentence with {} where the caption stands, and whether the tokenizer still adds its special tokens.
    Kept with the tower: templates date themselves.
    """
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise WordsightError(
                "wrapper='chat', but the tokenizer has no chat template; the choices are vicuna, plain, or "
                "a text with {}"
            )
        turn = [{"role": "user", "content": ASKS}]
        found = (
            tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            + "1."
        )
        if found.count("{}") != ASKS.count("{}"):
            raise WordsightError(
                f"the tokenizer's chat template has braces of its own, or drops the user's turn: "
                f"{found!r}; write the wrapper out"
            )
        return found, False  # the template has written them
    found = WRAPPERS.get(name, name)
    if "{}" not in found:
        raise WordsightError(
            f"wrapper={name!r} has no {{}} where the caption stands{nearest(name, (*WRAPPERS, 'chat'))}; "
            f"or give vicuna, chat or plain"
        )
    return found, True


def untouched(lm: PreTrainedModel) -> PreTrainedModel:
    """The LM without the adapters in its layers: another object on the very same tensors, so that it costs no
    memory.
    """
    shared = {id(tensor): tensor for tensor in (*lm.parameters(), *lm.buffers())}
    bare = copy.deepcopy(lm, shared)
    for name, module in list(bare.named_modules()):
        if isinstance(module, BaseTunerLayer):
            bare.set_submodule(name, module.get_base_layer())
    if hasattr(bare, "peft_config"):
        del bare.peft_config
    return bare


def sketch(lm: PreTrainedModel, *, rounded: bool = False) -> str:
    """A hash of some numbers of every tensor: tells two LMs apart in a moment. `rounded` to bfloat16: the
    same whichever dtype a checkpoint is read in.
    """
    tensors = {
        key: value.detach().flatten()[:: max(1, value.numel() // 64)] for key, value in lm.named_parameters()
    }
    if rounded:
        tensors = {key: value.bfloat16() for key, value in tensors.items()}
    return fingerprint(tensors, lm.config.model_type, [tuple(value.shape) for value in lm.parameters()])


def drop_dropout(lm: PreTrainedModel) -> None:
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def check_vocabulary(tokenizer: Any, lm: PreTrainedModel) -> None:
    known, vocabulary = lm.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        raise WordsightError(
            f"the tokenizer knows no words, only {tokenizer.all_special_tokens}: its vocabulary file is "
            f"missing"
        )
    highest = max(vocabulary.values())
    far = known - highest > 1024 and highest < 0.9 * known  # a few are padding to a round number
    if highest >= known or far:
        raise WordsightError(
            f"the tokenizer's highest token is {highest}, but the LM ({lm.config.model_type}) knows "
            f"{known}: their vocabularies differ, so they do not "
            "belong together"
        )
