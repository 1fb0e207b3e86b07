"""Where a backbone runs: a device that is not here is refused in words, and what was made on one is read on
the CPU.
"""

import logging

import pytest
import torch

from wordsight.backbones import device_or_cpu, load_backbone, pick_device
from wordsight.files import WordsightError


def test_auto_is_what_there_is():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "hpu", "mps:7"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(WordsightError, match=f"device='{device}' is not on this machine; give auto"):
        pick_device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 3.5])
def test_what_is_no_device(device):
    with pytest.raises(WordsightError, match=r"is not known; give auto, cpu, cuda|is not on this machine"):
        pick_device(device)


def test_asking_for_it_outright_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(WordsightError, match="not on this machine"):
        load_backbone("micro", device="cuda:99")


def test_what_was_made_on_another_device_is_read_on_the_cpu_and_told(caplog):
    with caplog.at_level(logging.INFO, logger="wordsight"):
        assert [device_or_cpu(device) for device in ("auto", "cpu", "cuda:99")] == ["auto", "cpu", "cpu"]
    assert [record.message for record in caplog.records] == [
        "device=cuda:99 is not on this machine; the CPU stands in for it"
    ]
