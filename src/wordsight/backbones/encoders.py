"""encoders: one image or text encoder of transformers, read strictly. What Vision and Joined are built
from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from wordsight.backbones.clip import _first_line, _quiet, _reading
from wordsight.config import WordsightError


def encoder_config(folder: Path, name: str, wanted: str) -> Any:
    """The encoder's config.json, if it is of the sort that takes `wanted`."""
    sort, other = ("image", "text") if wanted == "pixel_values" else ("text", "image")
    if not (folder / "config.json").is_file():
        raise WordsightError(f"{sort} encoder {str(folder)!r} holds no config.json of transformers")
    with _quiet(), _reading(name, "config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    kind = MODEL_MAPPING.get(type(config), None)
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        raise WordsightError(
            f"{name!r} ({config.model_type}) is both an image and a text encoder; a {sort} encoder alone "
            f"is needed to join"
        )
    if getattr(kind, "main_input_name", None) != wanted:
        raise WordsightError(
            f"{name!r} ({config.model_type}) was given as the {sort} encoder, but is none; is it the "
            f"{other} encoder?"
        )
    return config


def load_encoder(
    folder: Path, name: str, config: Any, *, pooler: bool, whole: bool, dtype: torch.dtype
) -> PreTrainedModel:
    """The encoder, every tensor of it from the checkpoint. `whole`: and none of the checkpoint left over;
    otherwise a head may be.
    """
    if not any(folder.glob("model*.safetensors")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        why = (
            f"only {pickled[0]}, a pickle, which is never opened; save it with safetensors"
            if pickled
            else "no weights (model.safetensors)"
        )
        raise WordsightError(f"encoder folder {str(folder)!r} holds {why}")
    kind = MODEL_MAPPING[type(config)]
    settings = (
        {"add_pooling_layer": pooler}
        if "add_pooling_layer" in inspect.signature(kind.__init__).parameters
        else {}
    )
    with _quiet(), _reading(name, "the weights"):
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            **settings,
        )
    own = {"embeddings", "encoder", *(part for part, _ in model.named_children())}
    left = [
        key
        for key in info["unexpected_keys"]
        if whole or key.removeprefix(f"{kind.base_model_prefix}.").split(".")[0] in own
    ]
    for what, keys in (
        ("lacks", info["missing_keys"]),
        ("has too many:", left),
        ("has in another shape than config.json:", info["mismatched_keys"]),
    ):
        if keys:
            listed = sorted(key if isinstance(key, str) else key[0] for key in keys)
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            raise WordsightError(
                f"the checkpoint in {str(folder)!r} {what} {', '.join(listed[:3])}{more}; nothing is "
                f"filled with random numbers"
            )
    return model.eval()


@torch.no_grad()
def width_of(tower: Callable, sample: Any, name: str) -> int:
    """The width of a tower's vectors, found by trying on `sample`."""
    try:
        return tower(sample).shape[1]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WordsightError(
            f"encoder {name!r} ({tower.model.config.model_type}) gives no vector with "
            f"pooling={tower.pooling} ({_first_line(error)})"
        ) from error
