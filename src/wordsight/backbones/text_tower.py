"""TextTower: a language model as the text tower. Nothing is decoded to embed a text, and the LM still writes
as before when its adapters are off.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from wordsight.backbones import fingerprint, if_moved, readonly, source_of
from wordsight.backbones.checkpoint import Place, config_facts, exactly, tokenizer_facts
from wordsight.backbones.hub import SAVE_AGAIN, find, read_facts, save_json, save_part, weights_in
from wordsight.backbones.lm import (
    check_kind,
    drop_dropout,
    identity,
    in_float32,
    load_lm,
    sketch,
    untouched,
)
from wordsight.backbones.text_encoding import TextBatch, TextEncoding
from wordsight.backbones.tokens import check_vocabulary
from wordsight.config import WordsightError
from wordsight.digests import check_digests, digests
from wordsight.extras import needed
from wordsight.files import new_folder, write_tensors
from wordsight.reader import build, to_dict
from wordsight.tower_settings import (
    TowerSettings,
    check_dtype,
    check_settings,
    lora_config,
    resolve_wrapper,
)

with needed("lm", "a language model"):
    from peft import PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

__all__ = ["TextBatch", "TextTower"]
FORMAT = 1
TOWER_FILE, TENSORS_FILE = "tower.json", "tower.safetensors"
ADAPTER_FOLDER, ADAPTER_FILE, BASE_FOLDER = "adapter", "adapter_model.safetensors", "base"


class TextTower(TextEncoding):
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
        """`lm` is taken over: frozen, and LoRA put into it; what is trained is float32, but for `train=all`.
        `wrapper` is what a saved tower resolved it to. Errors: WordsightError for what cannot be right.
        """
        super().__init__()
        self.settings = settings or TowerSettings()
        config = lm.config
        check_kind(config, self.settings.kind)
        check_settings(self.settings, config)
        readonly.check_model(lm, self.settings.prompts)
        tokenizer.padding_side = "right"  # left padding would break the arithmetic of positions
        check_vocabulary(tokenizer, lm)
        if self.settings.kind == "encoder" and getattr(lm, "pooler", None) is not None:
            lm.register_module("pooler", None)  # often untrained, and never read here
        self.tokenizer = tokenizer
        self.wrapper, self._special = wrapper or resolve_wrapper(self.settings.wrapper, tokenizer)
        self.can_generate = lm.get_output_embeddings() is not None and self.settings.kind == "decoder"
        self.truncated_texts = 0  # captions that lost their ends

        if self.settings.train != "all":
            drop_dropout(lm)
        lm.requires_grad_(False)
        # of the LM as it came: a saved tower asks for the same one
        self.sketch, self.origin = sketch(lm), identity(lm, tokenizer)
        inner = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        self.prompts = _vectors(self.settings.prompts, lm, self._start())
        self.front = _vectors(self.settings.front, lm, [])
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
        last = nn.Linear(pooled, self.settings.dim, bias=False)
        # takes away what all texts share, most of an LM's states; CLIP's projection has none
        last.bias = nn.Parameter(torch.zeros(self.settings.dim))
        self.head = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())), last)
        for part in (self.pool, self.head):
            if part is not None:
                part.to(lm.device)  # in float32, whatever the LM is in

        self.lm: PreTrainedModel | PeftModel = lm
        if self.settings.train == "lora":
            with warnings.catch_warnings():  # peft asks transformers 5 in an old way
                warnings.simplefilter("ignore", FutureWarning)
                self.lm = get_peft_model(lm, lora_config(self.settings, lm))
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
        trains a text tower from scratch), and with these values of its config.json changed. Errors:
        WordsightError for what cannot be right, or cannot be trained in this dtype."""
        settings = settings or TowerSettings()
        check_dtype(settings, dtype)
        place = Place(find(str(base), "LM"), "LM", str(base))
        lm, tokenizer = load_lm(place, settings.kind, dtype=dtype, random=random)
        if random is None:  # by what was said, not by where the hub's cache has it on this machine
            lm.name_or_path = source_of(base)
        # transformers' stub wraps `to` and loses `self`
        return cls(lm.to(device), tokenizer, settings)  # pyright: ignore[reportArgumentType]

    def save(self, folder: str | Path, *, copy_base: bool | None = None) -> None:
        """Write a folder that `load` reads back to the same vectors: tower.json, tower.safetensors, adapter/
        (peft's layout), tokenizer and LM in base/.

        `copy_base`: write the LM too, or only its name and a sketch of its weights. By default it is copied
        where it has no name or was itself trained."""
        name = self.plain.name_or_path or ""
        must = self.settings.train == "all" or not name
        if must and copy_base is False:
            raise WordsightError(
                "the LM was trained, or has no name to load it by, so its weights must be saved; leave "
                "copy_base out"
            )
        copied = must if copy_base is None else copy_base
        bare = untouched(self.plain) if copied else self.plain
        with new_folder(folder) as temporary:
            if copied:
                save_part(temporary / BASE_FOLDER, bare, self.tokenizer)
            if self.adapted:
                self._save_adapter(temporary / ADAPTER_FOLDER, None if copied else source_of(name))
            write_tensors(temporary / TENSORS_FILE, self.own_tensors())
            facts = {
                "kind": "text_tower",
                "format": FORMAT,
                "base": {
                    "name": None if copied else source_of(name),
                    "sketch": identity(bare, self.tokenizer) if copied else self.origin,
                    "files": digests(temporary, weights_in(temporary, [BASE_FOLDER])),
                },
                "wrapper": self.wrapper,
                "special_tokens": self._special,
                "settings": to_dict(self.settings),
            }
            save_json(temporary / TOWER_FILE, facts)

    def _save_adapter(self, folder: Path, base: str | None) -> None:
        """LoRA in peft's layout, which peft reads too. `base`: where the LM lies, None for base/."""
        config = copy.copy(self.lm.peft_config["default"])
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(str(folder))
        write_tensors(folder / ADAPTER_FILE, self._adapter())

    def _adapter(self) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.lm, save_embedding_layers=False)  # "auto" would ask the hub

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: str = "float32"
    ) -> TextTower:
        """The tower of a folder that `save` wrote. Errors: WordsightError for whatever is absent or does not
        fit; no tensor is left at random.
        """
        folder = Path(folder)
        facts = _read_facts(folder / TOWER_FILE)
        base, settings = facts["base"]["name"], build(TowerSettings, facts["settings"])
        with if_moved(f"write its place as 'name' of 'base' in {folder / TOWER_FILE}"):
            where = find(base, "LM") if base else folder / BASE_FOLDER
        check_digests(folder, facts["base"].get("files"), SAVE_AGAIN)
        lm, tokenizer = load_lm(Place(where, "LM", str(base or where)), settings.kind, dtype=dtype)
        # one that lies in base/ has no name: whoever saves the tower again must copy it again
        lm.name_or_path = base or ""
        # transformers' stub wraps `to` and loses `self`
        lm = lm.to(device)  # pyright: ignore[reportArgumentType]
        tower = cls(lm, tokenizer, settings, wrapper=(facts["wrapper"], facts["special_tokens"]))
        if tower.origin != facts["base"]["sketch"]:
            raise WordsightError(
                f"the tower in {str(folder)!r} was trained on another LM than {base or 'its base/'} now "
                f"is: their weights or their tokens differ, or an older wordsight wrote it; fit it again"
            )
        named, own = f"the text tower in {str(folder)!r}", tower.own_tensors()
        found = exactly(folder / TENSORS_FILE, own, named)
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(found[key])
        if tower.adapted:
            adapter = exactly(folder / ADAPTER_FOLDER / ADAPTER_FILE, tower._adapter(), named)
            set_peft_model_state_dict(tower.lm, adapter)
        return tower

    # What it holds

    def _start(self) -> list[int]:
        """The tokens that the prompts start as; none where they start at random."""
        text = self.settings.prompts_start
        ids = [] if text is None else self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if text is not None and not ids:
            raise WordsightError(f"prompts_start={text!r} has no token; give some words, or leave it out")
        return ids

    def own_tensors(self) -> dict[str, Tensor]:
        """What tower.safetensors holds: all that is the tower's and not the LM's, and the LM's LayerNorms
        where those were trained.
        """
        own: dict[str, Tensor] = {
            key: value for key, value in self.named_parameters() if not key.startswith("lm.")
        }
        if self.settings.train == "layernorms":
            own |= {f"lm.{key}": value for key, value in self.plain.named_parameters() if value.requires_grad}
        return own

    def fingerprint(self) -> str:
        """Changes with everything that decides a vector: for caches of text vectors."""
        reading = (
            tokenizer_facts(self.tokenizer),
            self.max_tokens,
            self.wrapper,
            self._special,
            to_dict(self.settings),
        )
        return fingerprint(self.state_dict(), config_facts(self.plain.config), reading)

    def _set_trained(self) -> None:
        train = self.settings.train
        if train == "all":
            self.lm.requires_grad_(True)
        if train == "layernorms":
            for module in self.lm.modules():
                if type(module).__name__.endswith("Norm"):  # every family has its own class of RMSNorm
                    module.requires_grad_(True)
                    in_float32(module)
        for part in (self.prompts, self.front):
            if part is not None:
                part.requires_grad_(train != "head")


@torch.no_grad()
def _vectors(count: int, lm: PreTrainedModel, start: list[int]) -> nn.Parameter | None:
    """So many vectors as the LM's layers take them, in float32: those of the tokens `start`, repeated, or
    random ones of the size of token embeddings (which Gemma multiplies by the root of their width)."""
    if not count:
        return None
    embed = lm.get_input_embeddings()
    weight = embed.get_parameter("weight")
    if start:
        ids = torch.tensor((start * (count // len(start) + 1))[:count], device=weight.device)
        return nn.Parameter(embed(ids).float().clone())
    some = torch.arange(min(len(weight), 64), device=weight.device)
    scale = float(embed(some).float().norm() / weight[some].float().norm())
    random = float(weight.float().std()) * torch.randn(count, weight.shape[1])
    return nn.Parameter((scale * random).to(weight.device))


def _read_facts(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WordsightError(f"{str(file.parent)!r} holds no {TOWER_FILE}; it is not a text tower's folder")
    kinds = {"base": dict, "wrapper": str, "special_tokens": bool, "settings": dict}
    facts = read_facts(file, "text tower", "text_tower", FORMAT, **kinds)
    base = facts["base"]
    if not isinstance(base.get("sketch"), str) or not isinstance(base.get("name"), (str, type(None))):
        raise WordsightError(f"{file} has no proper 'base'; it was not written by save, or was edited")
    if "{}" not in facts["wrapper"]:
        raise WordsightError(f"{file} has wrapper={facts['wrapper']!r} without {{}}; it was edited")
    return facts
