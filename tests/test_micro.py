"""The bundled micro CLIP: small, read by transformers alone, and right about real digits it never saw."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

ROOT = Path(__file__).parents[1]
MICRO = ROOT / "src" / "wordsight" / "backbones" / "micro"
SENTENCES = ROOT / "src" / "wordsight" / "sentences" / "digits.json"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
sys.path.insert(0, str(ROOT / "benchmarks" / "micro_clip"))


def test_the_folder_is_under_four_megabytes():
    assert sum(path.stat().st_size for path in MICRO.iterdir()) < 4e6


@pytest.mark.slow
def test_names_and_sentences_classify_real_digits():
    from measure import measure  # plain transformers

    accuracy = measure(MICRO)
    assert accuracy["names"] >= 0.80 and accuracy["sentences"] >= 0.80
    assert all(f"{value:.1%}" in (MICRO / "README.md").read_text() for value in accuracy.values())


def test_the_sentences_name_no_digit():
    sentences = json.loads(SENTENCES.read_text())
    assert tuple(sentences) == NAMES and all(12 <= len(set(lines)) <= 20 for lines in sentences.values())
    assert not any(
        name in re.findall("[a-z]+", line.lower()) for name, lines in sentences.items() for line in lines
    )


def test_padding_changes_no_text_vector():
    model, tokenizer = AutoModel.from_pretrained(MICRO).eval(), AutoTokenizer.from_pretrained(MICRO)
    alone, padded = (
        tokenizer(texts, padding=True, return_tensors="pt")
        for texts in (["zero"], ["zero", "a much longer caption of two loops"])
    )
    with torch.no_grad():
        alone, padded = (
            model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
            for tokens in (alone, padded)
        )
    assert torch.allclose(alone[0], padded[0], atol=1e-5)


@pytest.fixture
def few_fonts(monkeypatch):
    """Two of the fonts, whose distance fields are there at once."""
    import glyphs

    chosen = glyphs.fonts()[:2]
    monkeypatch.setattr(glyphs, "fonts", lambda: chosen)
    glyphs.fields.cache_clear()
    yield
    glyphs.fields.cache_clear()


def test_rendering_is_a_function_of_the_seed(few_fonts):
    from glyphs import Glyphs

    first, again, other = (Glyphs(seed).draw(8) for seed in (1, 1, 2))
    assert (
        torch.equal(first[0], again[0])
        and torch.equal(first[1], again[1])
        and not torch.equal(first[0], other[0])
    )
    assert first[0].shape == (8, 1, 32, 32) and first[0].min() >= 0 and first[0].max() <= 1


def test_no_sentence_of_the_demo_shares_six_words_in_a_row_with_a_fact_of_the_captions():
    from captions import ACCOUNTS, FACTS, choose

    rng = random.Random(0)
    facts = [fact for table in (FACTS, ACCOUNTS) for line in table.values() for fact in line.split(";")]
    seen = {run for fact in facts for _ in range(20) for run in runs_of_six(choose(fact, rng))}
    assert not [
        line
        for lines in json.loads(SENTENCES.read_text()).values()
        for line in lines
        if seen & runs_of_six(line)
    ]


def runs_of_six(text):
    words = re.findall("[a-z]+", text.lower())
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


@pytest.mark.slow
def test_training_twice_gives_the_same_weights(few_fonts, tmp_path, monkeypatch):
    import train

    monkeypatch.setattr(train, "GLYPHS", train.GLYPHS[:12])  # the digits, and two more
    for name in ("first", "again"):
        train.train(tmp_path / name, steps=2, batch=8)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
