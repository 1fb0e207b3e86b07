"""Train the bundled micro CLIP from rendered glyphs and generated captions; no photograph and no scanned
digit is used.

    python benchmarks/micro_clip/train.py            # writes src/wordsight/backbones/micro, about four
    minutes on one core python benchmarks/micro_clip/train.py --out /tmp/micro --steps 200

The same seed, machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    ConvNextConfig,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

sys.path.insert(0, str(Path(__file__).parent))
from captions import described, mixed, named
from glyphs import GLYPHS, SIDE, Glyphs, fonts

PACKAGE = Path(__file__).parents[2] / "src" / "wordsight" / "backbones" / "micro"
CARD = Path(__file__).parent / "card.md"
VOCABULARY, CONTEXT, WIDTH = 1400, 64, 96  # tokens, longest text in tokens, D
MEAN = STD = 0.5


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE over generated captions: any text has tokens, the glyphs' vocabulary has whole words."""
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("-", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [write(glyph, rng) for write in (named, described, mixed) for glyph in GLYPHS for _ in range(60)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[(special[0], 0), (special[1], 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        model_max_length=CONTEXT,
        padding_side="right",
    )


def make_model() -> VisionTextDualEncoderModel:
    """A ConvNeXt over 4x4 patches of a 32x32 image, and CLIP's text transformer in small."""
    vision = ConvNextConfig(
        patch_size=4,
        image_size=SIDE,
        num_stages=2,
        hidden_sizes=[64, 128],
        depths=[1, 2],
        hidden_act="relu",
        layer_scale_init_value=1.0,
        hidden_size=128,
    )
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=WIDTH, logit_scale_init_value=math.log(14)
    )
    return VisionTextDualEncoderModel(config)


def captions(step: int, classes: int, rng: random.Random) -> list[str]:
    """Two captions a glyph: what it is called (with a description every third time), then a description
    alone.
    """
    write = mixed if step % 3 == 2 else named
    return [write(glyph, rng) for glyph in GLYPHS[:classes]] + [
        described(glyph, rng) for glyph in GLYPHS[:classes]
    ]


def loss(
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "2C D"],
    anchors: Float[Tensor, "C D"],
    labels: Int[Tensor, " B"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Contrastive both ways for either kind of caption, where a text's positives are all images of its glyph,
    with equal shares.

    Both towers also meet at one learned anchor a glyph, thrown away afterwards: without it they need far
    longer to find each other."""
    total = F.cross_entropy(scale.exp() * images @ anchors.T, labels, label_smoothing=0.05)
    for kind in texts.chunk(2):
        logits = scale.exp() * images @ kind.T  # [B, C]
        present = labels.unique()
        share = F.one_hot(labels, len(kind)).float().T[present]
        back = -(share / share.sum(1, keepdim=True) * logits.T[present].log_softmax(1)).sum(1).mean()
        meet = F.cross_entropy(scale.exp() * kind @ anchors.T, torch.arange(len(kind)), label_smoothing=0.05)
        total = total + 0.5 * (F.cross_entropy(logits, labels, label_smoothing=0.05) + 0.3 * back + meet)
    return total


def train(out: Path, *, steps: int = 800, batch: int = 128, peak: float = 4e-3, seed: int = 0) -> float:
    """Train and write `out` in transformers' layout; returns seconds. The saved weights are a running mean of
    the last ones.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(
        1
    )  # so small a model loses more by sharing than it gains, and one thread adds in one order
    rng, glyphs, start = random.Random(seed), Glyphs(seed), time.time()
    tokenizer, model = make_tokenizer(rng), make_model()
    anchors = torch.nn.Parameter(torch.randn(len(GLYPHS), WIDTH))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), anchors], lr=peak, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=max(steps, 2), pct_start=0.1, cycle_momentum=False
    )
    average = copy.deepcopy(model)
    for step in range(steps):
        classes = (
            10 if step % 2 else len(GLYPHS)
        )  # every other batch holds digits alone: a nine is then no g, and a one no l
        pixels, labels = glyphs.draw(batch, classes)
        tokens = tokenizer(captions(step, classes, rng), padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast on two cores; the weights stay float32
            images = model.get_image_features(
                pixel_values=(pixels.expand(-1, 3, -1, -1) - MEAN) / STD
            ).pooler_output
            texts = model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
        value = loss(
            F.normalize(images.float(), dim=-1),
            F.normalize(texts.float(), dim=-1),
            F.normalize(anchors[:classes], dim=-1),
            labels,
            model.logit_scale,
        )
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(50))
            for kept, new in zip(average.parameters(), model.parameters()):
                kept.lerp_(new, max(0.02, 1 / (step // 2 + 1)))
        if step % 50 == 49:
            print(f"step {step + 1} loss {value.item():.3f} {time.time() - start:.0f} s", flush=True)
    save(out, average.eval(), tokenizer)
    return time.time() - start


def save(out: Path, model: VisionTextDualEncoderModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The folder as AutoModel and AutoTokenizer read it, with CLIP's preprocessing settings."""
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    size = {"height": SIDE, "width": SIDE}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
    }
    settings |= {"do_center_crop": True, "crop_size": size, "do_rescale": True, "rescale_factor": 1 / 255}
    settings |= {"do_normalize": True, "image_mean": [MEAN] * 3, "image_std": [STD] * 3}
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_card(out: Path, steps: int, batch: int) -> None:
    """The model card, its numbers taken from the folder as it lies there. Here, after training, real digits
    are seen for the first time.
    """
    from measure import measure

    config, weights = json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")
    megabytes = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    facts = {
        "dim": config["projection_dim"],
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "megabytes": megabytes,
    }
    (out / "README.md").write_text(
        CARD.read_text().format(**facts, fonts=len(fonts()), steps=steps, batch=batch, **measure(out))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGE)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=4e-3)
    settings = parser.parse_args()
    print(f"{train(settings.out, steps=settings.steps, batch=settings.batch, peak=settings.peak):.0f} s")
    write_card(settings.out, settings.steps, settings.batch)
