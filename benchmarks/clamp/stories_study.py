"""What a tiny real LM is worth as CLAMP's text tower: the Llama that writes children's stories (stories260K)
against its random twin.

OMP_NUM_THREADS=1 python benchmarks/clamp/stories_study.py ../shared/data [OUT] [--seeds 1,2,3] Both twins
have the same shape, wrapper, prompts, LoRA, ridge start and batches; only the frozen weights differ. The
image tower is the ViT-Tiny of ../shared/data. Also what the LM writes before, with adapters on, and off (off
must equal before, token for token), and its perplexity then. Results go to OUT (default runs/stories-study),
a file a cell, and are not repeated."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from stories import convert
from torch import Tensor, nn
from transformers import PreTrainedModel

from wordsight import metrics
from wordsight.backbones import load_backbone, unit
from wordsight.backbones.text_tower import TextTower
from wordsight.batches import PairBatches
from wordsight.data import Picture, open_dataset
from wordsight.data.features import image_features, text_features
from wordsight.data.pairs import open_pairs
from wordsight.methods.two_tower import TwoTower, TwoTowerSettings, tower_settings
from wordsight.train import train

SETS = ("caltech101", "dtd10", "cifar10")
TEMPLATE = "a photo of a {}."
SENTENCES = 2  # of CuPL's, a class
STEPS, BATCH = 32, 96
SHORT = dict(
    wrapper="{} It was", prompts=24, centre=True, start="ridge", max_tokens=64
)  # a sentence that a children's story might go on with
TRAINING = replace(TwoTower.training_defaults, max_steps=STEPS, batch_size=BATCH, lr=2e-3, warmup_steps=4)
TWINS: dict[str, dict] = {"stories260K": {}, "random twin": {"random": True}}
BEGINNINGS = (
    "Once upon a time, there was a little dog named",
    "Lily saw a picture. It was",
    "One day, a boy went to the park and",
)
NEW_TOKENS, MULTI30K = 40, 500


class Corpus(NamedTuple):
    """Images as vectors, and the captions of each."""

    images: Float[Tensor, "n D"]
    captions: list[tuple[str, ...]]
    pictures: list[Picture]

    def part(self, rows: Sequence[int]) -> Corpus:
        return Corpus(
            self.images[rows], [self.captions[row] for row in rows], [self.pictures[row] for row in rows]
        )


class World:
    """One image tower and one tiny LM, with everything that is read only once: vectors of images for training
    and for tests.
    """

    def __init__(self, data: Path, out: Path):
        self.data, self.out, self.lm = data, out, out / "stories260K"
        self.image_tower = load_backbone(
            str(data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors"), device="cpu", text=False
        )
        self.corpora: dict[str, Corpus] = {}
        if not self.lm.is_dir():
            convert(data, self.lm)

    def corpus(self, name: str, part: str = "train") -> Corpus:
        """photos: class names and CuPL's sentences; names: class names alone; aerial: five human captions
        each.
        """
        key = f"{name}-{part}"
        if key not in self.corpora:
            source = (
                str(self.data / "ucm_captions")
                if name == "aerial"
                else f"{self.data}/imagenet_sample::{self.data}/tiny_imagenet"
            )
            pairs = open_pairs(
                source, part, template=TEMPLATE, sentences=str(self.cupl) if name == "photos" else None
            )
            features = image_features(self.image_tower, pairs.pictures)
            kept = features.kept
            self.corpora[key] = Corpus(
                features.vectors[:, 0], [pairs.captions[i] for i in kept], [pairs.pictures[i] for i in kept]
            )
        return self.corpora[key]

    @cached_property
    def cupl(self) -> Path:
        file, texts = (
            self.out / "cupl.json",
            self.data / "sentences/cupl/base_prompts/imagenet_prompts_base.json",
        )
        file.write_text(
            json.dumps(
                {name: sentences[:SENTENCES] for name, sentences in json.loads(texts.read_text()).items()}
            )
        )
        return file

    @cached_property
    def labelled(self) -> dict[str, tuple[Float[Tensor, "n D"], Tensor, tuple[str, ...]]]:
        """Test images, labels and class names of the three zero-shot sets."""
        found = {}
        for name in SETS:
            dataset = open_dataset(str(self.data / name))
            features = image_features(self.image_tower, dataset.test.pictures)
            found[name] = (
                features.vectors[:, 0],
                torch.from_numpy(dataset.test.labels)[features.kept],
                dataset.class_names,
            )
        return found

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """What perplexity is measured on."""
        with gzip.open(
            self.data / "multi30k" / "task1.test_2016_flickr.en.gz", "rt", encoding="utf-8"
        ) as file:
            flickr = random.Random(0).sample(file.read().splitlines(), MULTI30K)
        return {"Multi30k": flickr, "ucm_captions": distinct(self.corpus("aerial", "test").captions)}

    def learn(
        self, corpus: Corpus, seed: int, training: dict[str, Any] | None = None, **changed: Any
    ) -> tuple[TwoTower, float]:
        """A two_tower trained on pairs, and the seconds of processor time it took."""
        own = TwoTowerSettings(text=str(self.lm), **(SHORT | changed))
        torch.manual_seed(seed)
        tower = TextTower.from_base(
            own.text, tower_settings(own, self.image_tower.dim), random={} if own.random else None
        )
        texts = distinct(corpus.captions)
        row_of = {text: row for row, text in enumerate(texts)}
        captions = [[row_of[text] for text in own_texts] for own_texts in corpus.captions]
        per_image, per_caption = {}, {}
        if own.teacher:
            teacher = load_backbone(own.teacher, device="cpu")
            per_image["teacher_images"] = image_features(teacher, corpus.pictures).vectors
            per_caption["teacher_texts"] = text_features(teacher, texts)
        began = time.process_time()
        torch.manual_seed(seed)
        method = TwoTower(tower, own, corpus.images.mean(0))
        if own.start == "ridge":
            rows = torch.tensor(
                [(caption, image) for image, listed in enumerate(captions) for caption in listed]
            )
            sums = torch.zeros(len(texts), self.image_tower.dim).index_add(
                0, rows[:, 0], corpus.images[rows[:, 1]]
            )
            method.start_at_ridge(tower.features(texts), sums / rows[:, 0].bincount()[:, None])
        tokens = tower.tokenise(texts)
        ids = [row[:length] for row, length in zip(tokens.ids, tokens.lengths.tolist())]
        settings = replace(TRAINING, **(training or {}))
        batches = PairBatches(
            corpus.images[:, None], captions, ids, settings.batch_size, seed, per_image, per_caption
        )
        if settings.max_steps:
            train(method, batches, settings, seed=seed)
        return method.eval(), time.process_time() - began

    def zero_shot(self, method: TwoTower) -> dict[str, float]:
        return {name: self.accuracy(method, *tests) for name, tests in self.labelled.items()}

    def accuracy(
        self, method: TwoTower, images: Float[Tensor, "n D"], labels: Tensor, names: Sequence[str]
    ) -> float:
        texts = method.text.encode([TEMPLATE.format(name) for name in names])
        return 100 * ((unit(images - method.image_mean) @ texts.T).argmax(1) == labels).float().mean().item()

    def recall(self, method: TwoTower, ranks: Sequence[int] = (1, 5)) -> dict[str, float]:
        """Both ways on the aerial test images, counted as `tasks.retrieve.retrieval` counts."""
        tests = self.corpus("aerial", "test")
        texts = distinct(tests.captions)
        relevant = torch.tensor([[text in own for text in texts] for own in tests.captions])
        similarity = unit(tests.images - method.image_mean) @ method.text.encode(texts).T
        row_of = {text: row for row, text in enumerate(texts)}
        asked = torch.tensor([row_of[text] for own in tests.captions for text in own])
        found = {f"image to text R@{k}": metrics.recall_at(similarity, relevant, k) for k in ranks}
        return found | {
            f"text to image R@{k}": metrics.recall_at(similarity.T[asked], relevant.T[asked], k)
            for k in ranks
        }

    # Writing

    def before(self) -> TextTower:
        """The LM as it came, in a tower without adapters: nothing of ours acts when it writes."""
        return TextTower.from_base(
            self.lm,
            tower_settings(
                TwoTowerSettings(text=str(self.lm), train="prompts", **SHORT), self.image_tower.dim
            ),
        )

    def writing(self, tower: TextTower | None = None, adapters: str = "off") -> dict[str, Any]:
        tower = tower or self.before()
        with torch.no_grad(), tower.adapters(adapters == "on"):
            found = {
                name: perplexity(tower.plain, tower.tokenizer, texts) for name, texts in self.texts.items()
            }
        return {
            "perplexity": found,
            "written": tower.generate(list(BEGINNINGS), adapters, max_new_tokens=NEW_TOKENS),
        }


def distinct(captions: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(text for own in captions for text in own))


def perplexity(lm: PreTrainedModel, tokenizer: Any, texts: Sequence[str], size: int = 32) -> float:
    """The exponential of the mean loss of a token; each text is begun afresh, and its first token is the
    tokenizer's sign of a beginning.
    """
    ids, total, count = sorted((tokenizer(text)["input_ids"] for text in texts), key=len), 0.0, 0
    for start in range(0, len(ids), size):
        rows = [torch.tensor(row) for row in ids[start : start + size]]
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)[:, 1:]
        logits = lm(input_ids=inputs, use_cache=False).logits[:, :-1]
        total += nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="sum"
        ).item()
        count += int((targets != -100).sum())
    return float(torch.tensor(total / count).exp())


def cell(file: Path, compute: Any) -> Any:
    """What `compute` gives, kept in `file`."""
    if not file.exists():
        file.write_text(json.dumps(compute(), indent=1))
    return json.loads(file.read_text())


def measure(world: World, part: str, twin: str, seed: int, trained: bool = True) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        method, seconds = world.learn(
            world.corpus(part), seed, None if trained else {"max_steps": None}, **TWINS[twin]
        )
        found: dict[str, Any] = {"seconds": seconds, "truncated": method.text.truncated_texts}
        found |= world.zero_shot(method) if part == "photos" else world.recall(method)
        if twin == "stories260K" and trained:
            before = world.writing()
            found |= {"on": world.writing(method.text, "on"), "off": world.writing(method.text, "off")}
            assert found["off"] == before, "with adapters off the LM does not write what it wrote before"
        return found

    name = f"{part}-{twin.replace(' ', '-')}{'' if trained else '-untrained'}-{seed}.json"
    return cell(world.out / name, compute)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def report(world: World, seeds: list[int]) -> None:
    figures: dict[str, dict[str, list[float]]] = {}
    for part in ("photos", "aerial"):
        rows = [
            (f"{twin}{'' if trained else ', ridge start alone'}", twin, trained)
            for twin in TWINS
            for trained in (False, True)
        ]
        found = {
            name: [measure(world, part, twin, seed, trained) for seed in seeds]
            for name, twin, trained in rows
        }
        columns = SETS if part == "photos" else tuple(key for key in found["stories260K"][0] if "R@" in key)
        print(
            f"\n| {part} | "
            + " | ".join(columns)
            + " | **mean** | processor s |\n|---|"
            + "---|" * (len(columns) + 2)
        )
        for name, cells in found.items():
            means = [statistics.mean(each[column] for column in columns) for each in cells]
            figures.setdefault(name, {})[part] = means
            values = [spread([each[column] for each in cells]) for column in columns]
            print(
                f"| {name} | {' | '.join(values)} | **{spread(means)}** | "
                f"{statistics.mean(each['seconds'] for each in cells):.0f} |"
            )
    before = cell(world.out / "before.json", world.writing)
    writers = {"before": [before]} | {
        f"on, trained on {part}": [measure(world, part, "stories260K", seed)["on"] for seed in seeds]
        for part in ("photos", "aerial")
    }
    writers["off"] = [
        measure(world, part, "stories260K", seed)["off"] for part in ("photos", "aerial") for seed in seeds
    ]
    assert all(each == before for each in writers["off"])
    print("\n| perplexity of a token | " + " | ".join(world.texts) + " |\n|---|" + "---|" * len(world.texts))
    for name, cells in writers.items():
        print(
            f"| {name} | "
            + " | ".join(spread([each["perplexity"][text] for each in cells]) for text in world.texts)
            + " |"
        )
    for row, beginning in enumerate(BEGINNINGS):
        print(f"\n{beginning} ...")
        for name, cells in writers.items():
            print(f"- {name}: {' '.join(cells[0]['written'][row].split())}")
    perplexities = {
        name: {text: [each["perplexity"][text] for each in cells] for text in world.texts}
        for name, cells in writers.items()
    }
    plot(figures, perplexities, Path(__file__).parent / "stories_study.png")


def plot(
    figures: dict[str, dict[str, list[float]]], perplexities: dict[str, dict[str, list[float]]], path: Path
) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    labels = (
        ("photos: zero-shot,\nmean of 3 sets", "aerial: recall,\nmean of R@1 and R@5 both ways"),
        tuple(next(iter(perplexities.values()))),
    )
    for axes, bars, groups, title in zip(
        panels, (figures, perplexities), labels, ("%", "perplexity of a token")
    ):
        for row, (name, values) in enumerate(bars.items()):
            places = [group + 0.2 * (row - (len(bars) - 1) / 2) for group in range(2)]
            means, deviations = zip(
                *((statistics.mean(each), statistics.pstdev(each)) for each in values.values())
            )
            axes.bar(places, means, 0.18, yerr=deviations, label=name, capsize=2)
        axes.set_xticks(range(2), groups)
        axes.margins(y=0.3)  # for the legend
        axes.set_ylabel(title)
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/stories-study"))
    parser.add_argument("--seeds", default="1,2,3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    report(World(options.data, options.out), [int(seed) for seed in options.seeds.split(",")])
