"""lm: a language model as it comes, read strictly; and the same with adapters inside, which can be switched
off so that it writes as before.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
)

from wordsight.backbones import fingerprint, pick_dtype
from wordsight.backbones.checkpoint import (
    Place,
    check_finite,
    of_a_head,
    padding_of,
    read_config,
    read_model,
    read_tokenizer,
    reading,
)
from wordsight.backbones.inner_lm import MLLMS, inner_config, read_inner
from wordsight.backbones.sampling import ends_alone
from wordsight.backbones.turns import alone, one_at_a_time
from wordsight.config import WordsightError
from wordsight.extras import needed
from wordsight.reader import nearest
from wordsight.tower_settings import TowerSettings

with needed("lm", "a language model"):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

# numbers for functional dropout
DROPOUTS = ("attention_dropout", "activation_dropout", "dropout", "dropout_prob", "attn_dropout")

DECODERS = "give one such as llama, mistral, qwen3, smollm3, opt or gpt2"


# -- as it comes --


def load_lm(
    place: Place, kind: str, *, dtype: str = "float32", random: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, Any]:
    """An LM and its tokenizer, every tensor from the checkpoint; `random`: none, of its shape with these
    values changed. Errors: WordsightError for whatever is absent or damaged.
    """
    number, config = pick_dtype(dtype), read_config(place)
    whole = config if config.model_type in MLLMS else None  # an LM that stands inside another model
    config = config if whole is None else inner_config(whole, place.name)
    check_kind(config, kind)
    tokenizer = read_tokenizer(place)
    auto = AutoModel if kind == "encoder" else AutoModelForCausalLM
    if random is not None:
        return _random(auto, place, config, random, number), tokenizer
    if whole is not None:
        return read_inner(place, whole, number), tokenizer
    pooler = {"add_pooling_layer": False} if kind == "encoder" and _has_pooler(config) else {}
    lm = read_model(auto, place, config, dtype=number, spare=of_a_head, **pooler)
    with torch.no_grad(), reading(place.name, "the LM"):
        check_finite({"states": lm(input_ids=torch.zeros(1, 1, dtype=torch.long))[0]}, f"what {place} makes")
    return lm, tokenizer


def _random(
    auto: Any, place: Place, config: Any, changes: Mapping[str, Any], dtype: torch.dtype
) -> PreTrainedModel:
    for key, value in changes.items():
        known = config.to_dict()
        if key not in known and getattr(config, key, None) is None:
            raise WordsightError(
                f"shape has {key!r}, which config.json of {place.name!r} has not{nearest(key, known)}"
            )
        setattr(config, key, value)
    kinds, deep = getattr(config, "layer_types", None), config.num_hidden_layers
    if kinds and "layer_types" not in changes:  # of Gemma's pattern as many as there are layers
        config.layer_types = (kinds * deep)[:deep]
    lm = auto.from_config(config, dtype=dtype)
    lm.name_or_path = ""
    return lm.eval()


def _has_pooler(config: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters


def check_kind(config: Any, kind: str) -> None:
    """A decoder is a decoder, an encoder an encoder; a `writer` is a decoder that is no text tower."""
    name = config.model_type
    encoder = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    whole = getattr(config, "is_encoder_decoder", False)
    if kind == "writer" and (encoder or whole or name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        why = "an encoder, which writes nothing" if encoder and not whole else "no decoder LM"
        raise WordsightError(f"{name} is {why}; {DECODERS}")
    if whole:
        raise WordsightError(
            f"{name} is an encoder with a decoder; a text tower takes a decoder LM, or an encoder alone"
        )
    if kind == "decoder" and encoder:
        raise WordsightError(
            f"{name} is an encoder, whose text would see the prompts; set kind=encoder, prompts=0 and "
            f"wrapper=plain for it"
        )
    if kind == "decoder" and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise WordsightError(f"{name} is no decoder LM that transformers knows; {DECODERS}")
    if kind == "encoder" and not encoder:
        raise WordsightError(f"{name} is no encoder LM; set kind=decoder for it")


def first_layers(trunk: PreTrainedModel, count: int | None) -> PreTrainedModel:
    """An LM without a word head that ends after so many layers, and its last norm: another object on the very
    same modules. None: all of them, the LM itself.

    Errors: WordsightError for a family whose layers are not one list of the LM's own."""
    if count is None:
        return trunk
    names = [name for name in ("layers", "h") if isinstance(getattr(trunk, name, None), nn.ModuleList)]
    if not names:
        raise WordsightError(
            f"which layers of {trunk.config.model_type} come first is not known; leave layers out"
        )
    short, config = copy.copy(trunk), copy.copy(trunk.config)
    short._modules = dict(trunk._modules)
    short._modules[names[0]] = getattr(trunk, names[0])[:count]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    short.config = config
    return short


def untouched(lm: PreTrainedModel) -> PreTrainedModel:
    """The LM without the adapters in its layers: another object on the very same tensors, so that it costs no
    memory.
    """
    shared = {id(tensor): tensor for tensor in (*lm.parameters(), *lm.buffers())}
    bare = copy.deepcopy(lm, shared)
    for name, module in list(bare.named_modules()):
        if isinstance(module, BaseTunerLayer):
            bare.set_submodule(name, module.get_base_layer())
    vars(bare).pop("peft_config", None)
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


def identity(lm: PreTrainedModel, tokenizer: Any) -> str:
    """A hash of an LM and of which text each of its tokens is, whichever dtype it is read in."""
    places = tokenizer.get_vocab()
    return fingerprint({}, sketch(lm, rounded=True), "\n".join(sorted(places, key=places.__getitem__)))


def drop_dropout(lm: PreTrainedModel) -> None:
    """Dropout off, whether it is a layer or a number."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def in_float32(module: nn.Module) -> None:
    """Keep the numbers of a module of the LM in float32 while it takes and gives the LM's dtype: for what is
    trained, in steps so small that bfloat16 would round them away.
    """
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    if dtype.itemsize < torch.float32.itemsize:
        module.float()
        module.register_forward_pre_hook(_raised)
        module.register_forward_hook(partial(_rounded, dtype))


def _raised(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)


def _rounded(dtype: torch.dtype, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(dtype)


def write_on(lm: nn.Module, **settings: Any) -> Int[Tensor, "B T"]:
    """`generate` of an LM, with what it was given before what it wrote."""
    # neither transformers' nor peft's class of all models declares it
    return lm.generate(**settings)  # pyright: ignore[reportCallIssue]


# -- with adapters --


class AdaptedLM(nn.Module):
    """An LM with LoRA inside, or without, that writes. With the adapters off it is the untouched one, bit for
    bit.
    """

    lm: PreTrainedModel | PeftModel
    tokenizer: Any
    settings: TowerSettings
    can_generate: bool  # it is a decoder and has a word head

    @property
    def adapted(self) -> bool:
        return isinstance(self.lm, PeftModel)

    @property
    def plain(self) -> PreTrainedModel:
        """The LM in transformers' class. Where there is LoRA, it sits in its layers."""
        lm = self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm
        assert isinstance(lm, PreTrainedModel)
        return lm

    @property
    def trunk(self) -> PreTrainedModel:
        """The LM without its word head, and without layers that are not read."""
        trunk = self.plain.base_model
        assert isinstance(trunk, PreTrainedModel)
        return first_layers(trunk, self.settings.layers)

    @property
    def device(self) -> torch.device:
        return self.plain.device

    @property
    def writes_as_before(self) -> bool:
        """Whether the LM, with adapters off, writes what it wrote before it became a text tower."""
        return (
            self.can_generate
            and self.settings.train not in ("layernorms", "all")
            and self.settings.bias == "none"
        )

    @contextlib.contextmanager
    def adapters(self, on: bool) -> Iterator[None]:
        """With `on` false, the LM inside is the untouched one, bit for bit."""
        if on or not isinstance(self.lm, PeftModel):
            yield
            return
        trained = {parameter: parameter.requires_grad for parameter in self.lm.parameters()}
        try:
            with one_at_a_time, self.lm.disable_adapter():
                yield
        finally:
            # peft leaves adapters trainable behind it, even frozen ones
            for parameter, wanted in trained.items():
                parameter.requires_grad_(wanted)

    @contextlib.contextmanager
    def _folded(self) -> Iterator[None]:
        """LoRA added to copies of the weights, which costs nothing a token. Unlike merging, the weights
        themselves come back, every bit of them.

        In float32 alone: the sum rounded to bfloat16 would lose a part of LoRA.
        """
        layers = [module for module in self.lm.modules() if isinstance(module, LoraLayer)]
        if (
            not layers
            or layers[0].disable_adapters
            or self.settings.prompt_only_lora
            or self.trunk.dtype != torch.float32
        ):
            yield
            return
        weights = [module.get_base_layer().get_parameter("weight") for module in layers]
        kept = [(weight, weight.data) for weight in weights]
        try:
            for module, (weight, data) in zip(layers, kept):
                # peft's common class of these layers does not declare it
                added = module.get_delta_weight("default")  # pyright: ignore[reportCallIssue]
                weight.data = data + added
            with self.adapters(False):
                yield
        finally:
            for weight, data in kept:
                weight.data = data

    @alone
    def generate(
        self,
        texts: str | Sequence[str],
        adapters: Literal["on", "off"] | Sequence[str] = "off",
        *,
        max_new_tokens: int = 64,
        **settings: Any,
    ) -> str | list[str]:
        """What the LM writes after each text. `adapters`: off is the untouched LM, bit for bit; a list says
        it for each text, in one batch.
        """
        many = [texts] if isinstance(texts, str) else list(texts)
        tokens = self.generate_tokens(
            [self.tokenizer(text)["input_ids"] for text in many],
            adapters,
            max_new_tokens=max_new_tokens,
            **settings,
        )
        written = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
        return written[0] if isinstance(texts, str) else written

    @alone
    def generate_tokens(
        self,
        prompts: list[list[int]],
        adapters: Literal["on", "off"] | Sequence[str] = "off",
        **settings: Any,
    ) -> Int[Tensor, "B new"]:
        """The new tokens after each row of token ids; `settings` are those of transformers' `generate`,
        greedy unless they say otherwise.
        """
        rows = [adapters] * len(prompts) if isinstance(adapters, str) else list(adapters)
        self._check_generation(prompts, rows)
        width = max(map(len, prompts))
        pad = padding_of(self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.device
        )
        given = {"input_ids": ids, "attention_mask": mask, "pad_token_id": pad, "do_sample": False} | settings
        return self.written(rows, given)[:, width:]

    def written(self, rows: Sequence[str], given: dict[str, Any]) -> Int[Tensor, "B T"]:
        """What `generate` gives, with the adapters on or off for each row, all rows in one batch. What the
        LM's folder says of penalties and sampling is not asked for: greedy is the likeliest token."""
        with ends_alone(self.plain, self.tokenizer):
            if len(set(rows)) > 1 and self.adapted:
                names = ["default" if row == "on" else "__base__" for row in rows]
                return write_on(self.lm, **given, adapter_names=names)
            with self.adapters(rows[0] == "on"):
                return write_on(self.plain, **given)

    def _check_generation(self, prompts: list[list[int]], rows: list[str]) -> None:
        if not self.can_generate:
            raise WordsightError(
                f"{self.plain.config.model_type} was loaded as an {self.settings.kind} without a word "
                f"head; it cannot generate"
            )
        if not prompts or not all(prompts):
            raise WordsightError("there is nothing to write on from; give a text")
        if len(rows) != len(prompts) or set(rows) - {"on", "off"}:
            raise WordsightError(f"adapters={rows!r} does not say on or off for each of {len(prompts)} texts")
        self._check_merged()
        if "off" in rows and self.settings.train in ("layernorms", "all"):
            raise WordsightError(
                f"train={self.settings.train!r} changed the LM itself: there is no untouched one to write "
                f"with; say adapters=on"
            )
        if "off" in rows and self.settings.bias != "none":
            raise WordsightError(
                f"bias={self.settings.bias!r} trained the LM's own biases, which stay when adapters are "
                f"off; say adapters=on"
            )

    def _check_merged(self) -> None:
        if any(isinstance(module, BaseTunerLayer) and module.merged for module in self.lm.modules()):
            raise WordsightError(
                "the adapters were merged into the weights: those are rounded for good, and the untouched "
                "LM is gone; load the tower again, and merge a copy"
            )
