"""Seconds an image of likelihood classification and of the naive loop, on a random LLaVA of 576 image tokens.

python benchmarks/zeroshot/likelihood.py --tokenizer JOINED/text --names classes.json --out likelihood.json

The naive loop passes image, prompt and one class's text for every class, as CLAMP's paper measured LLaVA-1.5:
one text at a time, and 8 at a time. It is timed on --sample classes, drawn anew each round and scored by
both, and scaled to all of them: its passes are alike. Rounds of ours and theirs alternate; medians."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from wordsight.backbones.mllm import MLLM
from wordsight.backbones.scoring import Scorer, Tree
from wordsight.fitted import open_generator
from wordsight.meter import resident
from wordsight.methods.likelihood import answer_tokens

TEXT = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10}
SEES = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
}


def main() -> None:
    options = _options()
    torch.set_grad_enabled(False)
    names = json.loads(options.names.read_text())
    names = names["classes"] if isinstance(names, dict) else names
    with tempfile.TemporaryDirectory() as folder:
        model = _llava(Path(folder), options.tokenizer)
        pixels = np.random.default_rng(0).integers(0, 256, (options.images, 336, 336, 3), dtype=np.uint8)
        seen = model.see([Image.fromarray(one) for one in pixels])
        results = [_measured(model, seen, names[:count], options) for count in options.classes]
    options.out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


def _llava(folder: Path, tokenizer: str) -> MLLM:
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"], "eos_token": "[SEP]"})
    heads = {"num_attention_heads": 8}
    config = LlavaConfig(
        vision_config=SEES | heads | {"image_size": 336, "patch_size": 14},
        text_config=TEXT | heads | {"vocab_size": len(tokens), "max_position_embeddings": 2048},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    for part in (model, tokens, images):
        part.save_pretrained(folder)
    facts = {"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1}
    facts |= {"vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(json.dumps(facts))
    found = open_generator(folder, device="cpu")
    assert isinstance(found, MLLM)
    return found


def _measured(model: MLLM, seen: list, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    lm, prompts = model.scored_by, [model.captioning(one) for one in seen]
    texts = answer_tokens(lm.tokenizer, model.tail(prompts[0]), [f"A photo of {name}" for name in names])
    scorer, tree = Scorer(lm), Tree.of(texts)
    times: dict[str, list[float]] = {"ours": [], "one at a time": [], "8 at a time": []}
    error, draw = 0.0, random.Random(1)
    for _ in range(options.rounds):
        began = time.perf_counter()
        (behind,) = model.read(prompts)
        ours = tree.summed(scorer.nodes(behind, tree))
        times["ours"].append((time.perf_counter() - began) / len(prompts))
        some = draw.sample(range(len(names)), options.sample)
        for way, size in (("one at a time", 1), ("8 at a time", 8)):
            began = time.perf_counter()
            parts = [
                _naive(model, prompts[0], [texts[row] for row in some[start : start + size]])
                for start in range(0, len(some), size)
            ]
            times[way].append((time.perf_counter() - began) * len(names) / len(some))
            error = max(error, float((torch.cat(parts) - ours[0, some]).abs().max()))
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        "parameters": sum(one.numel() for one in model.model.parameters()),
        "classes": len(names),
        "images_at_once": len(prompts),
        "prompt_tokens": behind.length,
        "tree_tokens": len(tree.tokens),
        "passed_tokens": len(tree.inner),
        "seconds_an_image": medians,
        "spread": {way: [min(values), max(values)] for way, values in times.items()},
        "ratio": {way: medians[way] / medians["ours"] for way in times if way != "ours"},
        "largest_difference": error,
        "largest_score": float(ours.abs().max()),
        "peak_memory_mib": resident("VmHWM"),
    }


def _naive(model: MLLM, prompt: Any, texts: list[list[int]]) -> torch.Tensor:
    """The log probability of each text: image, prompt and text pass, and all of it again for the next."""
    text, pictures = model._row(prompt)
    longest = max(map(len, texts))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in texts])
    inputs = dict(model._inputs([text] * len(texts), [pictures] * len(texts)))
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    found = model.model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].log_softmax(-1)
    assert inputs["input_ids"].shape[1] == length + longest
    known = torch.arange(longest) < torch.tensor([[len(row)] for row in texts])
    return (found.gather(2, ids[..., None])[..., 0] * known).sum(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokenizer", required=True, help="a folder with a tokenizer of transformers")
    parser.add_argument("--names", type=Path, required=True, help="a JSON list of class names")
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("likelihood.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
