"""What prompt learning costs here, and written as its papers' code has it. One thread, interleaved, medians
of processor time.

    OMP_NUM_THREADS=1 python benchmarks/speed/incumbents.py [--shapes small,ViT-B/16] [--rounds 5]

Plain is the field's way: an image passes the tower in every step and at every prediction, class texts are 77
tokens long, and they are encoded again for every batch of test images. It runs on the same random CLIP of
transformers, through the same kernels, so that what differs is the algorithm alone; the same images, labels,
context and SGD. Ours is the library's method as `wordsight fit` trains it, from features that were computed
once."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging

from wordsight.backbones import load_backbone
from wordsight.backbones.clip import CLIP
from wordsight.batches import FeatureBatches
from wordsight.config import METHODS, RunSettings, resolve
from wordsight.fitting import fit_method
from wordsight.methods import FitData
from wordsight.runs import RunFacts
from wordsight.sentences import class_texts
from wordsight.train import total_steps, train

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS, SHOTS, SENTENCES, TEST_BATCH, CONTEXT = 77, 16, 20, 100, 4
SHAPES = {  # text tower, image tower, shared width, numbers of classes
    "small": (
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"patch_size": 32},
        256,
        (10, 50, 100),
    ),
    "ViT-B/16": (
        {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
        {"patch_size": 16},
        512,
        (10,),
    ),
}


def random_clip(text: dict, image: dict, dim: int, folder: Path) -> CLIP:
    """A CLIP of this shape whose words are letters, read back as the library reads any."""
    torch.manual_seed(0)
    words = [
        *LETTERS,
        ".",
        *(letter + "</w>" for letter in LETTERS),
        ".</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    text = text | {
        "intermediate_size": 4 * text["hidden_size"],
        "vocab_size": len(words),
        "eos_token_id": len(words) - 1,
        "bos_token_id": len(words) - 2,
    }
    wide = 768 if dim == 512 else dim
    image = image | {
        "hidden_size": wide,
        "num_hidden_layers": text["num_hidden_layers"],
        "num_attention_heads": wide // 64,
        "intermediate_size": 4 * wide,
    }
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=image | {"image_size": 224}, projection_dim=dim)
    )
    for part in (
        model,
        CLIPTokenizer({word: row for row, word in enumerate(words)}, [], model_max_length=TOKENS),
        CLIPImageProcessorPil(),
    ):
        part.save_pretrained(folder)
    return load_backbone(str(folder), device="cpu")


class Plain:
    """CoOp and CoCoOp as their papers' code has them: nothing is kept from one batch to the next."""

    def __init__(self, clip: CLIP, names: tuple[str, ...], context: torch.Tensor):
        self.model, self.scale, self.size = clip.model, clip.logit_scale, len(context)
        self.ids = clip.tokenizer(
            [" ".join(["x"] * self.size) + f" {name}." for name in names],
            padding="max_length",
            max_length=TOKENS,
            return_tensors="pt",
        )
        self.context = context.detach().clone().requires_grad_()
        width, dim = context.shape[1], clip.dim
        self.meta = torch.nn.Sequential(
            torch.nn.Linear(dim, dim // 16), torch.nn.ReLU(), torch.nn.Linear(dim // 16, width)
        )

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=1)

    def texts(self, context: torch.Tensor) -> torch.Tensor:
        def put(layer, inputs, output):
            return torch.cat(
                [output[:, :1], context.expand(len(output), -1, -1), output[:, 1 + self.size :]], 1
            )

        handle = self.model.text_model.get_input_embeddings().register_forward_hook(put)
        try:
            return F.normalize(self.model.get_text_features(**self.ids).pooler_output, dim=1)
        finally:
            handle.remove()

    def coop(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.scale * vectors @ self.texts(self.context).T

    def cocoop(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [self.scale * vector @ self.texts(self.context + self.meta(vector)).T for vector in vectors]
        )

    def step(
        self,
        logits: Callable[[torch.Tensor], torch.Tensor],
        vectors: torch.Tensor,
        labels: torch.Tensor,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits(vectors), labels).backward()
        optimizer.step()


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Interleaved: each in every round, once before the first."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def compare(shape: str, clip: CLIP, count: int, rounds: int) -> None:
    names = tuple(one + other for one in LETTERS for other in LETTERS)[:count]
    torch.manual_seed(1)
    labels = torch.arange(count).repeat_interleave(SHOTS)
    pixels = torch.randn(TEST_BATCH, 3, 224, 224)
    vectors = F.normalize(torch.randn(len(labels), clip.dim), dim=1)
    sentences = {name: [f"{name} {one}" for one in LETTERS[:SENTENCES]] for name in names}
    texts = class_texts(clip.encode_text, names, "a {}.", sentences)

    def ours(name: str, **settings):
        kind = resolve(METHODS, name, "method")
        torch.manual_seed(2)
        method = kind(names, clip, kind.Settings(**settings))
        method.set_classes(texts)
        return method

    coop, cocoop = ours("coop", ctx=CONTEXT), ours("cocoop", ctx=CONTEXT, init=None)
    plain = Plain(clip, names, coop.context)
    optimizer = torch.optim.SGD([plain.context], lr=2e-3, momentum=0.9, weight_decay=5e-4)
    both = torch.optim.SGD(
        [plain.context, *plain.meta.parameters()], lr=2e-3, momentum=0.9, weight_decay=5e-4
    )

    with torch.no_grad():
        apart = (plain.coop(vectors[:32]) - coop.logits(vectors[:32])).abs().max().item()
    some, targets, one = vectors[:32], labels[:32], vectors[:1]
    (theirs,) = torch.autograd.grad(F.cross_entropy(plain.coop(some), targets), [plain.context])
    (own,) = torch.autograd.grad(
        coop.loss({"images": some, "labels": targets})["cross_entropy"], [coop.context]
    )
    bent = ((theirs - own).norm() / theirs.norm()).item()
    print(
        f"\n## {shape}, {count} classes\n\nlargest difference of logits {apart:.1e}, of the gradient "
        f"{bent:.1e} of its length",
        flush=True,
    )

    def train_steps(method, size: int, steps: int) -> None:
        batches = FeatureBatches(vectors[:, None], labels, size, 1)
        train(method, batches, replace(method.training_defaults, max_steps=steps), seed=1)

    fast = 10  # steps timed together, where one is short
    step = medians(
        {
            "plain": lambda: plain.step(plain.coop, plain.images(pixels[:32]), targets, optimizer),
            "plain, images kept": lambda: plain.step(plain.coop, some, targets, optimizer),
            "ours": lambda: train_steps(coop, 32, fast),
            "CoCoOp plain": lambda: plain.step(plain.cocoop, plain.images(pixels[:1]), targets[:1], both),
            "CoCoOp plain, images kept": lambda: plain.step(plain.cocoop, one, targets[:1], both),
            "CoCoOp ours": lambda: train_steps(cocoop, 1, fast),
        },
        rounds,
    )
    step |= {name: step[name] / fast for name in ("ours", "CoCoOp ours")}
    coop.set_classes(texts)
    cocoop.set_classes(texts)
    many = 1000  # predictions from features timed together
    with torch.no_grad():
        predict = medians(
            {
                "plain": lambda: plain.coop(plain.images(pixels)),
                "plain, images kept": lambda: plain.coop(vectors[:TEST_BATCH]),
                "ours, image tower too": lambda: coop.logits(plain.images(pixels)),
                "ours": lambda: [coop.logits(vectors[:TEST_BATCH]) for _ in range(many)],
            },
            rounds,
        )
        predict["ours"] /= many
        image = predict["ours, image tower too"] / TEST_BATCH
    print(
        "\n| CoOp | ms a step of 32 | times ours | ms to predict 100 images | times ours "
        "|\n|---|---|---|---|---|"
    )
    for name in ("plain", "plain, images kept", "ours, image tower too", "ours"):
        cells = [
            f"{1000 * table[name]:,.3g} | {table[name] / table['ours']:,.1f}" if name in table else "– | –"
            for table in (step, predict)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    cocoop_steps = total_steps(cocoop.training_defaults, len(labels))

    def fit_aape() -> None:
        settings = RunSettings(data="none", shots=SHOTS)
        facts = RunFacts(names, clip.dim, clip.logit_scale, "a {}.")
        fit_method(settings, facts, FitData(vectors[:, None], labels, texts, 1), clip)

    aape = statistics.median(seconds(fit_aape) for _ in range(min(rounds, 3)))
    read = seconds(lambda: clip.encode_text([sentence for group in sentences.values() for sentence in group]))
    fits = {
        "CoCoOp plain": cocoop_steps * step["CoCoOp plain"],
        "CoCoOp plain, images kept": cocoop_steps * step["CoCoOp plain, images kept"],
        "CoCoOp ours": cocoop_steps * step["CoCoOp ours"] + len(labels) * image,
        "CoCoOp ours, images kept": cocoop_steps * step["CoCoOp ours"],
        "AAPE, images and sentences encoded once": aape + len(labels) * image + read,
        "AAPE, both kept": aape,
    }
    print(f"\n| whole fit, {SHOTS} shots | s | times AAPE's with both kept |\n|---|---|---|")
    for name, value in fits.items():
        print(
            f"| {name} | {'≈ ' if 'CoCoOp' in name else ''}{value:,.3g} | {value / aape:,.1f} |", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for shape in options.shapes.split(","):
        *towers, counts = SHAPES[shape]
        with tempfile.TemporaryDirectory() as folder:
            clip = random_clip(*towers, Path(folder))
        for count in counts:
            compare(shape, clip, count, options.rounds)
