"""Towers that several files of these tests read."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """A random image encoder alone, as wide as the tiny CLIP's vectors."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
    }
    folder = tmp_path_factory.mktemp("vit") / "vit"
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8).save_pretrained(folder)
    return folder
