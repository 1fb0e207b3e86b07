"""Images a second through `image_features` beside the tower's bare speed: the plain loop of pre-made pixel
batches through encode_image.

python benchmarks/features/encode_speed.py --images 10000 --round 1000 ../shared/data/caltech101
../shared/data/cifar10 Rounds are interleaved, bare and cached in turn, on images that no earlier round saw;
each round writes to a fresh cache."""

import argparse
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from wordsight.backbones import Backbone, load_backbone, unit
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.images import read_image
from wordsight.data.rows import IMAGES, read_file


class Tiny(Backbone):
    """ViT-Tiny/16 at 224 pixels with random weights: speed does not depend on them."""

    name, dim, logit_scale, image_fingerprint, text_fingerprint = (
        "vit-tiny",
        192,
        100.0,
        "random-vit-tiny",
        "",
    )
    device = torch.device("cpu")

    def __init__(self):
        config = ViTConfig(
            hidden_size=192,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=224,
        )
        self.model = ViTModel(config, add_pooling_layer=False).eval()

    def preprocess(self, image, box=None):
        if box is None:
            scale = 224 / min(image.size)
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
            )
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            image = image.crop((left, top, left + 224, top + 224))
        else:
            image = image.crop(tuple(map(int, box))).resize((224, 224), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    @torch.inference_mode()
    def encode_image(self, pixels):
        return unit(self.model(pixels.float() / 127.5 - 1).last_hidden_state[:, 0])

    def encode_text(self, texts):
        raise NotImplementedError

    def save_pretrained(self, folder):
        raise NotImplementedError


def bare(backbone, batches):
    began = time.perf_counter()
    for pixels in batches:
        backbone.encode_image(pixels)
    return time.perf_counter() - began


def cached(backbone, pictures, batch_size):
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        image_features(backbone, pictures, folder=folder, batch_size=batch_size)
        return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--round", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bare-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", help="a backbone's name; a random ViT-Tiny otherwise")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    backbone = load_backbone(given.backbone) if given.backbone else Tiny()
    files = sorted(
        path for folder in given.folders for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGES
    )
    random.Random(0).shuffle(files)
    files = files[: given.images]
    ratios, totals = [], [0.0, 0.0]
    for start in range(0, len(files), given.round):
        part = files[start : start + given.round]
        pixels = torch.stack([backbone.preprocess(read_image(read_file(path))) for path in part])
        batches = pixels.split(given.bare_batch)
        pictures = [Picture(str(path), lambda path=path: read_file(path)) for path in part]
        bare(backbone, batches[:2])

        turns = [partial(bare, backbone, batches), partial(cached, backbone, pictures, given.batch)]
        order = (0, 1) if (start // given.round) % 2 == 0 else (1, 0)
        seconds = {turn: turns[turn]() for turn in order}
        totals = [totals[0] + seconds[0], totals[1] + seconds[1]]
        ratios.append(seconds[0] / seconds[1])
        print(
            f"{start + len(part):6d}  bare {len(part) / seconds[0]:7.1f}/s  cached "
            f"{len(part) / seconds[1]:7.1f}/s  ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"{len(files)} images, {given.threads} threads: bare {len(files) / totals[0]:.1f}/s, cached "
        f"{len(files) / totals[1]:.1f}/s"
    )
    print(
        f"ratio of totals {totals[0] / totals[1]:.3f}, median of rounds {statistics.median(ratios):.3f}, "
        f"lowest {min(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
