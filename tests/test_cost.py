"""Cost: every method is measured in one table, and what cannot be is said."""

import json
import time

import pytest
import torch

from wordsight import cost, meter
from wordsight.backbones import load_backbone
from wordsight.config import WordsightError
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(cost, "BUDGET", 0.01)
    monkeypatch.setattr(cost, "WHOLE", 0.0)
    monkeypatch.setattr(cost, "SHOTS", 3)
    monkeypatch.setattr(meter.gc, "collect", lambda: 0)  # of all that the tests hold


@pytest.mark.slow
def test_cost_measures_every_method_in_one_table(backbone, tmp_path, quickly):
    methods = ("zero_shot", "linear_probe", "coop", "tip_adapter_f")
    result = run_suite(
        SuiteSettings("cost", methods, backbone="colours", sizes=(3, 5), out=str(tmp_path)), backbone=backbone
    )
    assert not result["failed"] and [row["method"] for row in result["rows"]] == [*methods, *methods]
    by_name = {(row["method"], row["classes"]): row for row in result["rows"]}
    zero, coop = by_name["zero_shot", 5], by_name["coop", 5]
    assert (
        zero["parameters"] == 0
        and "step_ms" not in zero
        and zero["image_mflops"] == pytest.approx(2 * 5 * backbone.dim / 1e6)
    )
    assert (
        coop["parameters"] == 16 * backbone.dim
        and coop["step_ms"] > 0
        and coop["steps"] == 100
        and coop["fit_how"] == "multiplied"
    )
    assert coop["image_mflops"] == zero["image_mflops"], "classes are encoded once"
    assert (
        by_name["linear_probe", 3]["parameters"] == 0 and by_name["tip_adapter_f", 3]["images_per_second"] > 0
    )
    kept = json.loads((tmp_path / "cost.json").read_text())
    assert (
        kept["facts"]["backbone"] == "colours"
        and kept["facts"]["threads"] == 1
        and len(kept["rows"]) == len(methods) * 2
    )
    text = (tmp_path / "cost.md").read_text()
    assert "| coop | 5 | 192 |" in text and "≈" in text and text.count("| method | classes |") == 2


def test_cost_lists_what_cannot_be_and_says_what_was_given_up(backbone, tmp_path, quickly, monkeypatch):
    monkeypatch.delattr(type(backbone), "encode_tokens", raising=False)
    monkeypatch.setattr("wordsight.methods.context.TokenReader", type("Nothing", (), {}))
    monkeypatch.setattr(cost, "LIMIT", 0.02)
    monkeypatch.setattr("wordsight.methods.linear_probe.LinearProbe.setup", lambda *_: time.sleep(0.5))
    monkeypatch.setattr(cost, "warm_up", lambda *_: None)
    result = run_suite(
        SuiteSettings("cost", ("linear_probe", "coop"), sizes=(3,), out=str(tmp_path)), backbone=backbone
    )
    (row,) = result["rows"]
    assert row["fit_how"] == "given up" and "| > 0.02 |" in result["markdown"]
    assert (
        "coop learns token prompts" in result["failed"][0]["says"]
        and result["failed"][0]["run"] == "coop, 3 classes"
    )
    with pytest.raises(WordsightError, match="sizes=1 leaves nothing to choose among"):
        run_suite(SuiteSettings("cost", ("zero_shot",), sizes=(1,), out=str(tmp_path)), backbone=backbone)


def test_what_is_measured_is_the_device_in_use(backbone, tmp_path, quickly, monkeypatch):
    """On the CPU of a machine with CUDA nothing is asked of CUDA; on its second card all is asked of that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "synchronize"):
        monkeypatch.delattr(torch.cuda, name)
    result = run_suite(SuiteSettings("cost", ("taskres",), sizes=(3,), out=str(tmp_path)), backbone=backbone)
    assert result["facts"]["device"] == "cpu" and result["rows"][0]["fit_mib"] is not None
    asked, card = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.accelerator, "synchronize", asked.append)
    for name, value in {"reset_peak_memory_stats": None, "memory_allocated": 2**20}.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda device, value=value: asked.append(device) or value, raising=False
        )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**22, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert meter.clock(card) > 0 and meter.peak_mib(lambda: None, card) == 3 and asked == [card] * 3
    assert meter.device_name(card) == "cuda:1, a card"


@pytest.mark.gpu
def test_cost_on_a_card_is_measured_there(card, tiny_clip, tmp_path, quickly):
    backbone = load_backbone(tiny_clip, device=card)
    asked = SuiteSettings("cost", ("zero_shot", "taskres", "coop"), sizes=(3,), out=str(tmp_path))
    result = run_suite(asked, backbone=backbone)
    assert not result["failed"] and result["facts"]["device"].startswith(f"{backbone.device}, ")
    assert all(row["images_per_second"] > 0 and row["predict_mib"] > 0 for row in result["rows"])


def test_the_names_made_up_are_distinct_and_always_the_same():
    names = cost.made_up_names(1000, 0)
    assert (
        len(set(names)) == 1000
        and names == cost.made_up_names(1000, 0)
        and names[:10] == cost.made_up_names(10, 0)
    )
