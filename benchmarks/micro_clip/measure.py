"""Zero-shot accuracy of a micro CLIP folder on scikit-learn's digits: python benchmarks/micro_clip/measure.py
[folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

PACKAGE = Path(__file__).parents[2] / "src" / "wordsight"


def measure(folder: Path) -> dict[str, float]:
    """Accuracy with class names in one template, and with the mean of each digit's sentences."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    settings, data = json.loads((folder / "preprocessor_config.json").read_text()), load_digits()
    side = settings["size"]["shortest_edge"]
    pictures = [
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).convert("RGB") for image in data.images
    ]
    pixels = (
        np.stack([np.asarray(picture.resize((side, side), settings["resample"])) for picture in pictures])
        / 255
    )
    pixels = (
        torch.tensor((pixels - settings["image_mean"]) / settings["image_std"]).permute(0, 3, 1, 2).float()
    )

    def text_vectors(texts: list[str]) -> Float[Tensor, "N D"]:
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        return F.normalize(
            model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output,
            dim=-1,
        )

    with torch.no_grad():
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        sentences = json.loads((PACKAGE / "sentences" / "digits.json").read_text())
        names = text_vectors([f"a photo of a {name}." for name in sentences])
        means = F.normalize(
            torch.stack([text_vectors(lines).mean(0) for lines in sentences.values()]), dim=-1
        )
        return {
            kind: ((images @ texts.T).argmax(1).numpy() == data.target).mean().item()
            for kind, texts in (("names", names), ("sentences", means))
        }


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE / "backbones" / "micro"))
