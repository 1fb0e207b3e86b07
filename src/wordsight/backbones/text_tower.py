"""TextTower: a language model as the text tower. Nothing is decoded to embed a text, and the LM still writes
as before when its adapters are off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from wordsight.backbones import fingerprint, readonly, unit
from wordsight.backbones.clip import _first_line, _quiet, _reading, _shape, _tokenizer_facts
from wordsight.backbones.hub import local
from wordsight.backbones.language import (
    check_kind,
    check_vocabulary,
    drop_dropout,
    load_lm,
    resolve_wrapper,
    sketch,
    untouched,
)
from wordsight.config import WordsightError, build, to_dict
from wordsight.files import write_file

FORMAT = 1
TOWER_FILE, TENSORS_FILE = "tower.json", "tower.safetensors"
ADAPTER_FOLDER, BASE_FOLDER, CARD = "adapter", "base", "README.md"
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
_LLAMA, _BERT = ("q_proj", "k_proj", "v_proj", "o_proj"), ("query", "key", "value", "attention.output.dense")
TARGETS: dict[str, tuple[str, ...]] = {  # the attention's projections, where LoRA goes
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "mixtral",
            "qwen2",
            "qwen3",
            "smollm3",
            "olmo",
            "olmo2",
            "olmo3",
            "gemma",
            "gemma2",
            "gemma3_text",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("cohere", "granite", "starcoder2", "stablelm"), _LLAMA),
    "phi": ("q_proj", "k_proj", "v_proj", "self_attn.dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),  # the MLP has a c_proj too
    "gpt_neox": ("query_key_value", "attention.dense"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), _BERT),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "modernbert": ("attn.Wqkv", "attn.Wo"),
}

Way = Literal["auto", "one", "two"]
log = logging.getLogger(__name__)
_one_at_a_time = (
    threading.RLock()
)  # switching adapters changes the model for everybody: a server that embeds and generates takes turns


@dataclass(frozen=True)
class TowerSettings:
    """What decides a text tower besides its LM. Saved with it. The defaults are CLAMP's; width, heads and
    max_tokens are not given there.
    """

    kind: Literal["decoder", "encoder"] = "decoder"
    # vicuna, chat (the tokenizer's own template), plain, or a text with {} where the caption stands
    wrapper: str = "vicuna"
    prompts: int = 24  # K read-only vectors after the text; 0 pools the text's own states
    prompts_attend: Literal["both", "causal"] = "both"  # do prompts see the prompts after them
    front: int = 0  # soft tokens before the text (LN-prefix has 12); these the text does see
    pooling: Literal["attention", "mean", "last"] = "attention"
    heads: int = 8
    width: int | None = None  # of the attention pooler; by default the LM's
    dim: int = 512  # D, the shared width: the vision tower's
    # linear layers from pooled states to the shared space: 1 is a projection, more are an MLP (SAIL,
    # ShareLock)
    depth: int = 1
    train: Literal["lora", "prompts", "layernorms", "all", "head"] = (
        "lora"  # besides prompts, pooling and projection; head: only the last two
    )
    prompt_only_lora: bool = (
        False  # LoRA acts in the prompts' pass only: text states and cache stay the base LM's
    )
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.1
    bias: Literal["none", "all", "lora_only"] = "none"
    targets: tuple[
        str, ...
    ] = ()  # modules that get LoRA; by default the attention projections of the LM's family
    keep_generation: bool = True  # refuse whatever would keep the LM from writing as before
    max_tokens: int | None = None  # of text and wrapper; by default 256, or what the LM's positions leave


class TextBatch(NamedTuple):
    """Tokenised texts, padded on the right. What is padding is known from `lengths`, never from the pad
    token.
    """

    ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]


def alone(method: Callable) -> Callable:
    """Without gradient, in eval mode, and nobody else's call in between."""

    @wraps(method)
    def call(self, *args, **kwargs):
        training = self.training
        with _one_at_a_time, torch.no_grad():
            self.train(False)
            try:
                return method(self, *args, **kwargs)
            finally:
                self.train(training)

    return call


class TextTower(nn.Module):
    """An LM that gives one unit vector a text, and that still generates.

    CLAMP (Teterwak et al. 2023), section 3: the caption in a wrapper sentence, K read-only prompts after it
    (eq. 1), attention pooling over the prompts' outputs (eqs. 2-4), a projection, LoRA in the attention (eq.
    5). Differs from the paper: the frozen LM's own dropout is off, so that it is one function in training and
    in use; LoRA's stays."""

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: Any,
        settings: TowerSettings | None = None,
        *,
        wrapper: tuple[str, bool] | None = None,
    ):
        """`lm` is taken over: frozen, and LoRA put into it. `wrapper` is what a saved tower resolved it to.
        Errors: WordsightError for what cannot be right.
        """
        super().__init__()
        self.settings = settings or TowerSettings()
        config = lm.config
        _check_settings(self.settings, config)
        readonly.check_model(lm, self.settings.prompts)
        tokenizer.padding_side = "right"  # left padding would break the arithmetic of positions
        check_vocabulary(tokenizer, lm)
        if self.settings.kind == "encoder" and getattr(lm, "pooler", None) is not None:
            lm.pooler = None  # often untrained, and never read here
        self.tokenizer = tokenizer
        self.wrapper, self._special = wrapper or resolve_wrapper(self.settings.wrapper, tokenizer)
        self.can_generate = lm.get_output_embeddings() is not None and self.settings.kind == "decoder"
        self.truncated_texts = 0  # captions that lost their ends

        if self.settings.train != "all":
            drop_dropout(lm)
        lm.requires_grad_(False)
        self.sketch, self.origin = (
            sketch(lm),
            sketch(lm, rounded=True),
        )  # of the LM as it came: a saved tower asks for the same one
        tokens, inner = (
            lm.get_input_embeddings().weight,
            getattr(config, "word_embed_proj_dim", None) or config.hidden_size,
        )
        spread = float(tokens.float().std())
        self.prompts = (
            nn.Parameter(spread * torch.randn(self.settings.prompts, tokens.shape[1]))
            if self.settings.prompts
            else None
        )
        self.front = (
            nn.Parameter(spread * torch.randn(self.settings.front, tokens.shape[1]))
            if self.settings.front
            else None
        )
        self.pool, pooled = None, inner
        if self.settings.pooling == "attention":
            pooled = self.settings.width or inner
            if pooled % self.settings.heads:
                raise WordsightError(
                    f"width={pooled} cannot be split into heads={self.settings.heads}; give a width that "
                    f"they divide"
                )
            self.pool = readonly.AttentionPool(inner, pooled, self.settings.heads)
        layers = [nn.Linear(pooled, pooled) for _ in range(self.settings.depth - 1)]
        self.head = nn.Sequential(
            *(part for layer in layers for part in (layer, nn.GELU())),
            nn.Linear(pooled, self.settings.dim, bias=False),
        )
        for part in (self.pool, self.head):
            if part is not None:
                part.to(lm.device)  # in float32, whatever the LM is in
        for name in ("prompts", "front"):
            if getattr(self, name) is not None:
                getattr(self, name).data = getattr(self, name).data.to(lm.device)

        self.lm: PreTrainedModel | PeftModel = lm
        if self.settings.train == "lora":
            with warnings.catch_warnings():  # peft asks transformers 5 in an old way
                warnings.simplefilter("ignore", FutureWarning)
                self.lm = get_peft_model(lm, _lora(self.settings, lm))
        self._set_trained()
        self.max_tokens = self._room()
        self.eval()

    # Building, saving, loading

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        settings: TowerSettings | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        random: Mapping[str, Any] | None = None,
    ) -> TextTower:
        """A new tower on the LM of a folder or hub name. `random`: its shape only, with random weights (LiT
        trains a text tower from scratch), and with these values of its config.json changed."""
        settings = settings or TowerSettings()
        lm, tokenizer = load_lm(
            local(str(base), "text"), str(base), settings.kind, dtype=dtype, random=random
        )
        if random is None:  # by what was said, not by where the hub's cache has it on this machine
            lm.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else str(base)
        return cls(lm.to(device), tokenizer, settings)

    def save(self, folder: str | Path, *, copy_base: bool | None = None) -> None:
        """Write a folder that `load` reads back to the same vectors: tower.json, tower.safetensors, adapter/
        (peft's layout), tokenizer and LM in base/.

        `copy_base`: write the LM too, or only its name and a sketch of its weights. By default it is copied
        where it has no name or was itself trained."""
        folder, name = Path(folder), self.plain.name_or_path
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise WordsightError(
                f"{str(folder)!r} already holds something; give a folder that does not exist yet"
            )
        must = self.settings.train == "all" or not name
        if must and copy_base is False:
            raise WordsightError(
                "the LM was trained, or has no name to load it by, so its weights must be saved; leave "
                "copy_base out"
            )
        copied = must if copy_base is None else copy_base
        temporary = folder.with_name(f".{folder.name}.saving")
        shutil.rmtree(temporary, ignore_errors=True)  # of a save that was killed
        temporary.mkdir(parents=True)
        if copied:
            with _quiet():
                untouched(self.plain).save_pretrained(temporary / BASE_FOLDER)
            self.tokenizer.save_pretrained(temporary / BASE_FOLDER)
        if self.adapted:
            self.lm.save_pretrained(
                temporary / ADAPTER_FOLDER, save_embedding_layers=False
            )  # "auto" would ask the hub
            (temporary / ADAPTER_FOLDER / CARD).unlink(missing_ok=True)  # peft's form with nothing filled in
            if copied:
                file = (
                    temporary / ADAPTER_FOLDER / "adapter_config.json"
                )  # the LM is in base/, and no longer where it came from
                write_file(
                    file,
                    json.dumps(
                        json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": None},
                        indent=2,
                    )
                    + "\n",
                )
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in self.own_tensors().items()},
            temporary / TENSORS_FILE,
        )
        origin = None if copied else str(Path(name).resolve()) if Path(name).is_dir() else name
        now = sketch(untouched(self.plain), rounded=True) if copied else self.origin
        facts = {
            "kind": "text_tower",
            "format": FORMAT,
            "base": {"name": origin, "sketch": now},
            "wrapper": self.wrapper,
            "special_tokens": self._special,
            "settings": to_dict(self.settings),
        }
        write_file(temporary / TOWER_FILE, json.dumps(facts, indent=2) + "\n")
        if folder.is_dir():
            folder.rmdir()
        temporary.replace(folder)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: str = "float32"
    ) -> TextTower:
        """The tower of a folder that `save` wrote. Errors: WordsightError for whatever is absent or does not
        fit; no tensor is left at random.
        """
        folder = Path(folder)
        facts = _read_facts(folder / TOWER_FILE)
        settings = build(TowerSettings, facts["settings"])
        base = facts["base"]["name"]
        lm, tokenizer = load_lm(
            local(base, "text") if base else folder / BASE_FOLDER,
            str(base or folder),
            settings.kind,
            dtype=dtype,
        )
        lm.name_or_path = (
            base or ""
        )  # one that lies in base/ has no name: whoever saves the tower again must copy it again
        tower = cls(lm.to(device), tokenizer, settings, wrapper=(facts["wrapper"], facts["special_tokens"]))
        if tower.origin != facts["base"]["sketch"]:
            raise WordsightError(
                f"the tower in {str(folder)!r} was trained on another LM than {base or 'its base/'} now "
                f"is: their weights differ"
            )
        own, found = tower.own_tensors(), read_tensors(folder / TENSORS_FILE)
        demand(TENSORS_FILE, own, found, folder)
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(found[key])
        if tower.adapted:
            found = read_tensors(folder / ADAPTER_FOLDER / "adapter_model.safetensors")
            demand(
                f"{ADAPTER_FOLDER}/",
                get_peft_model_state_dict(tower.lm, save_embedding_layers=False),
                found,
                folder,
            )
            set_peft_model_state_dict(tower.lm, found)
        return tower

    # Parts

    @property
    def adapted(self) -> bool:
        return isinstance(self.lm, PeftModel)

    @property
    def plain(self) -> PreTrainedModel:
        """The LM in transformers' class. Where there is LoRA, it sits in its layers."""
        return self.lm.get_base_model() if self.adapted else self.lm

    @property
    def trunk(self) -> PreTrainedModel:
        """The LM without its word head."""
        return self.plain.base_model

    @property
    def device(self) -> torch.device:
        return self.plain.device

    @property
    def dim(self) -> int:
        return self.settings.dim

    @property
    def writes_as_before(self) -> bool:
        """Whether the LM, with adapters off, writes what it wrote before it became a text tower."""
        return (
            self.can_generate
            and self.settings.train not in ("layernorms", "all")
            and self.settings.bias == "none"
        )

    def own_tensors(self) -> dict[str, Tensor]:
        """What tower.safetensors holds: all that is the tower's and not the LM's, and the LM's LayerNorms
        where those were trained.
        """
        own = {key: value for key, value in self.named_parameters() if not key.startswith("lm.")}
        if self.settings.train == "layernorms":
            own |= {f"lm.{key}": value for key, value in self.plain.named_parameters() if value.requires_grad}
        return own

    def fingerprint(self) -> str:
        """Changes with everything that decides a vector: for caches of text vectors."""
        reading = (
            _tokenizer_facts(self.tokenizer),
            self.max_tokens,
            self.wrapper,
            self._special,
            to_dict(self.settings),
        )
        return fingerprint(self.state_dict(), _shape(self.plain.config), reading)

    @contextlib.contextmanager
    def adapters(self, on: bool) -> Iterator[None]:
        """With `on` false, the LM inside is the untouched one, bit for bit."""
        if on or not self.adapted:
            yield
            return
        trained = {parameter: parameter.requires_grad for parameter in self.lm.parameters()}
        try:
            with _one_at_a_time, self.lm.disable_adapter():
                yield
        finally:
            for (
                parameter,
                wanted,
            ) in trained.items():  # peft leaves adapters trainable behind it, even frozen ones
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
        kept = [(module.get_base_layer().weight, module.get_base_layer().weight.data) for module in layers]
        try:
            for module, (weight, data) in zip(layers, kept):
                weight.data = data + module.get_delta_weight("default")
            with self.adapters(False):
                yield
        finally:
            for weight, data in kept:
                weight.data = data

    # Texts to vectors

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
        vectors = torch.empty(len(distinct), self.head[0].in_features, device=self.device)
        tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH.get(
            self.device.type, TOKENS_PER_BATCH["cuda"]
        )
        with self._folded() if len(distinct) >= FOLD else contextlib.nullcontext():
            prefix, past = self._prefix(tokens)
            rest = [ids[past:] for ids in tokens]
            for rows in readonly.batches(
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
            return states[
                torch.arange(len(states), device=states.device),
                keep.sum(1) - 1 + (~keep).long().cumprod(1).sum(1),
            ]
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
            return states.to(self.head[0].weight.dtype), (columns >= self.settings.front) & (
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
        return states.to(self.head[0].weight.dtype), torch.ones(
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

    def _embed(self, ids: Int[Tensor, "B T"], prefix: readonly.Prefix | None) -> Float[Tensor, "B F+T W"]:
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
            log.warning(
                "%d of %d captions do not fit into %d tokens with their wrapper; their ends were cut off",
                len(long),
                len(texts),
                self.max_tokens,
            )
        for row, ids in enumerate(tokens):
            if not ids:
                raise WordsightError(f"the tokenizer makes no token of caption {row}, {texts[row]!r}")
        return tokens

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each caption, whether its end is cut off because it does not fit with its wrapper."""
        tokens = self._ids([self.wrapper.replace("{}", text) for text in texts]) if texts else []
        return [len(ids) > self.max_tokens for ids in tokens]

    def _ids(self, sentences: list[str]) -> list[list[int]]:
        return self.tokenizer(sentences, add_special_tokens=self._special, verbose=False)["input_ids"]

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
        pad = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id or 0
        )
        width = max(map(len, tokens), default=0)
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids in tokens], dtype=torch.long).view(
            len(tokens), width
        )
        return TextBatch(
            ids.to(self.device),
            torch.tensor([len(ids) for ids in tokens], dtype=torch.long, device=self.device),
        )

    # Texts to texts

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
        pad = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id or 0
        )
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.device
        )
        given = {"input_ids": ids, "attention_mask": mask, "pad_token_id": pad, "do_sample": False} | settings
        if len(set(rows)) > 1 and self.adapted:
            written = self.lm.generate(
                **given, adapter_names=["default" if row == "on" else "__base__" for row in rows]
            )
        else:
            with self.adapters(rows[0] == "on"):
                written = self.plain.generate(**given)
        return written[:, width:]

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

    # Inside

    def _set_trained(self) -> None:
        train = self.settings.train
        if train == "all":
            self.lm.requires_grad_(True)
        if train == "layernorms":
            for module in self.lm.modules():
                if type(module).__name__.endswith("Norm"):  # every family has its own class of RMSNorm
                    module.requires_grad_(True)
        for part in (self.prompts, self.front):
            if part is not None:
                part.requires_grad_(train != "head")

    def _room(self) -> int:
        """How many tokens a text may have."""
        config, extra = self.plain.config, self.settings.prompts + self.settings.front
        held = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
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


# Inside


def _lora(settings: TowerSettings, lm: PreTrainedModel) -> LoraConfig:
    targets = settings.targets or TARGETS.get(lm.config.model_type)
    if not targets:
        raise WordsightError(
            f"which modules of {lm.config.model_type} are attention projections is not known; give "
            f"targets=..., e.g. q_proj,v_proj"
        )
    found = [
        target
        for target in targets
        if any(f".{name}".endswith(f".{target}") for name, _ in lm.named_modules())
    ]
    if set(found) != set(targets):
        raise WordsightError(
            f"targets {', '.join(sorted(set(targets) - set(found)))} do not occur in {lm.config.model_type}"
        )
    conv1d = any(
        type(module).__name__ == "Conv1D" for module in lm.modules()
    )  # GPT-2's linear layers are transposed
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        bias=settings.bias,
        fan_in_fan_out=conv1d,
        task_type="CAUSAL_LM" if lm.get_output_embeddings() is not None else None,
    )


def _check_settings(settings: TowerSettings, config: Any) -> None:
    check_kind(config, settings.kind)
    least = {"prompts": 0, "front": 0, "heads": 1, "dim": 1, "depth": 1, "rank": 1, "alpha": 1}
    for name, bound in least.items():
        if getattr(settings, name) < bound:
            raise WordsightError(f"{name}={getattr(settings, name)} is not possible; give at least {bound}")
    if not 0 <= settings.dropout < 1:
        raise WordsightError(f"dropout={settings.dropout} is not possible; give at least 0 and less than 1")
    if settings.kind == "encoder" and (settings.prompts or settings.front or settings.pooling == "last"):
        raise WordsightError(
            f"{config.model_type} is an encoder: its text would see the prompts, and its last token means "
            f"nothing; "
            "set prompts=0, front=0 and pooling=mean or attention"
        )
    if settings.prompt_only_lora and (not settings.prompts or settings.train != "lora" or settings.front):
        raise WordsightError(
            "prompt_only_lora needs prompts, train=lora and no front tokens: LoRA acts on the prompts alone"
        )
    if settings.kind == "decoder" and settings.keep_generation:
        if settings.bias != "none":
            raise WordsightError(
                f"bias={settings.bias!r} trains the LM's own biases, which stay when adapters are off; "
                f"generation would change. "
                "Set bias=none, or keep_generation=false"
            )
        if settings.train in ("layernorms", "all"):
            raise WordsightError(
                f"train={settings.train!r} changes the LM itself, and what it writes; set "
                f"keep_generation=false"
            )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise WordsightError(f"one text {texts!r} was given where a list of texts is expected")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise WordsightError(
                f"caption {row} is {text!r}: there is nothing to embed; leave it out or give it words"
            )


def _read_facts(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WordsightError(f"{str(file.parent)!r} holds no {TOWER_FILE}; it is not a text tower's folder")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WordsightError(f"{file} is not readable as JSON: {_first_line(error)}") from error
    kinds = {
        "kind": str,
        "format": int,
        "base": dict,
        "wrapper": str,
        "special_tokens": bool,
        "settings": dict,
    }
    for key, wanted in kinds.items():
        if not isinstance(facts.get(key) if isinstance(facts, dict) else None, wanted):
            raise WordsightError(f"{file} has no proper {key!r}; it was not written by save, or was edited")
    if (
        facts["kind"] != "text_tower"
        or facts["format"] != FORMAT
        or not isinstance(facts["base"].get("sketch"), str)
    ):
        raise WordsightError(
            f"{file} is of kind {facts['kind']!r}, format {facts['format']}; this version reads "
            f"text_tower, format {FORMAT}"
        )
    return facts


def read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise WordsightError(f"{str(file)!r} does not exist; the tower is not complete, save it again")
    with _reading(str(file.parent), file.name):
        return load_file(file)


def demand(what: str, wanted: dict[str, Tensor], found: dict[str, Tensor], folder: Path) -> None:
    """Exactly these names and shapes."""
    for why, names in (("lacks", set(wanted) - set(found)), ("has too many:", set(found) - set(wanted))):
        if names:
            raise WordsightError(
                f"{what} of {str(folder)!r} {why} {', '.join(sorted(names)[:3])}; expected exactly "
                f"{len(wanted)} tensors"
            )
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise WordsightError(
                f"{what} of {str(folder)!r} has {name} as {tuple(found[name].shape)}, but the settings "
                f"make it {tuple(tensor.shape)}"
            )
        if not found[name].isfinite().all():
            raise WordsightError(f"{what} of {str(folder)!r} holds numbers in {name} that are not finite")
