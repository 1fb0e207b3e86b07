"""timm_names: a plain ViT in one file with timm's names, as transformers' ViT."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.models.vit.configuration_vit import ViTConfig
from transformers.models.vit.modeling_vit import ViTModel

from wordsight.config import WordsightError

TIMM_PARTS = (
    ("attention.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
)


def vit_from_timm(tensors: dict[str, Tensor], name: str) -> tuple[ViTModel, Float[Tensor, "C D"] | None]:
    """A ViT of timm's names as transformers' ViTModel in float32, and its head's rows. Every tensor is used,
    or it is not such a ViT.
    """
    left = {key: value.float() for key, value in tensors.items()}
    head = left.pop("head.weight", None)
    left.pop("head.bias", None)  # moves all scores of a class alike; a text has none
    try:
        _, _, patch, _ = left["patch_embed.proj.weight"].shape
        _, tokens, width = left["pos_embed"].shape
        inner, depth = (
            len(left["blocks.0.mlp.fc1.bias"]),
            1 + max(int(key.split(".")[1]) for key in left if key.startswith("blocks.")),
        )
        if width % 64 or math.isqrt(tokens - 1) ** 2 != tokens - 1:
            raise WordsightError(
                f"{name!r} is {width} wide with {tokens - 1} patches; expected a square of patches and "
                f"heads of width 64, as timm's ViTs have"
            )
        found = {
            theirs: left.pop(ours)
            for theirs, ours in [
                ("embeddings.cls_token", "cls_token"),
                ("embeddings.position_embeddings", "pos_embed"),
                *(
                    (f"embeddings.patch_embeddings.projection.{kind}", f"patch_embed.proj.{kind}")
                    for kind in ("weight", "bias")
                ),
                *((f"layernorm.{kind}", f"norm.{kind}") for kind in ("weight", "bias")),
                *(
                    (f"layers.{i}.{theirs}.{kind}", f"blocks.{i}.{ours}.{kind}")
                    for i in range(depth)
                    for theirs, ours in TIMM_PARTS
                    for kind in ("weight", "bias")
                ),
            ]
        }
        for layer in range(depth):
            for kind in ("weight", "bias"):
                parts = left.pop(f"blocks.{layer}.attn.qkv.{kind}").chunk(3)
                found |= {
                    f"layers.{layer}.attention.{letter}_proj.{kind}": part.clone()
                    for letter, part in zip("qkv", parts)
                }
    except KeyError as error:
        raise WordsightError(
            f"{name!r} lacks {error.args[0]}; expected a plain ViT with timm's names"
        ) from error
    if left:
        raise WordsightError(
            f"{name!r} has {', '.join(sorted(left)[:3])}, which a plain ViT of timm's names has not; it is "
            f"another kind of model"
        )
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=inner,
        layer_norm_eps=1e-6,
        patch_size=patch,
        image_size=patch * math.isqrt(tokens - 1),
    )
    model = ViTModel(config, add_pooling_layer=False)
    try:
        model.load_state_dict(found, strict=True)
    except RuntimeError as error:
        raise WordsightError(
            f"{name!r} does not become a ViT of transformers: {' '.join(str(error).split())[:300]}"
        ) from error
    return model.eval(), head


def timm_pixels(size: int) -> dict[str, Any]:
    """timm's evaluation of its own ViTs: shorter side size / 0.9, centre crop, mean and deviation one half. A
    guess for others: give preprocessor=FILE.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": math.floor(size / 0.9)},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
