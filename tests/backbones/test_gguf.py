"""LMs in GGUF files: unpacked once, and then like any folder."""

import shutil

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wordsight.backbones.checkpoint import Place
from wordsight.backbones.gguf import _check_tokenizer
from wordsight.backbones.hub import find
from wordsight.backbones.lm import load_lm
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.tower_settings import TowerSettings
from wordsight.cli import main
from wordsight.config import WordsightError

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE, num_key_value_heads=2, vocab_size=258, max_position_embeddings=64)
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """A Qwen2 of a few thousand numbers whose tokens are bytes, as llama.cpp's own writer has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer, config = gguf.GGUFWriter(path, "qwen2"), model.config
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return path


def test_its_weights_are_the_files_in_bfloat16_and_it_is_unpacked_once(file, model, said):
    folder = find(str(file), "LM")
    assert len([line for line in said if "tiny.gguf" in line and "bfloat16" in line]) == 1
    assert find(str(file), "LM") == folder and len(said) == 1
    lm, tokenizer = load_lm(Place(folder, "LM", str(file)), "auto", dtype="float32")
    ids = torch.tensor([tokenizer("the path")["input_ids"]])
    assert tokenizer.decode(ids[0]) == "the path" and len(ids[0]) == 6, "t and h are one token"
    rounded = model.to(torch.bfloat16).float()
    with torch.inference_mode():
        torch.testing.assert_close(lm(ids).logits, rounded(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_moved_file_is_the_same_lm(file, tmp_path):
    assert find(shutil.copy(file, tmp_path / "other.gguf"), "LM") == find(str(file), "LM")


def test_it_is_a_text_tower(file):
    tower = TextTower.from_base(str(file), TowerSettings(wrapper="a {}.", prompts=2, rank=2, heads=2))
    assert tower.plain.name_or_path == str(file)


def test_what_is_no_gguf_file_is_told(file, tmp_path, capsys):
    whole = file.read_bytes()
    for name, content, told in (
        ("cut.gguf", whole[: len(whole) // 2], "cut off or damaged"),
        ("other.gguf", b"PK\x03\x04" + whole, "no GGUF file"),
        ("family.gguf", whole.replace(b"qwen2", b"qwenx"), "of a family"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(WordsightError, match=told):
            find(str(path), "LM")
    with pytest.raises(WordsightError, match="does not exist"):
        find(str(tmp_path / "none.gguf"), "LM")
    command = ["sentences", "classes=cat", f"model={path}", "local=true", f"out={tmp_path / 'a.json'}"]
    assert main(command) == 2 and "of a family" in capsys.readouterr().err


class Letters:
    """A tokenizer that lost its merges."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __call__(self, text, **_):
        return {"input_ids": list(text)}


def test_a_large_vocabulary_read_letter_by_letter_is_refused(tmp_path):
    with pytest.raises(WordsightError, match="cuts a plain sentence into 39 tokens, nearly one a letter"):
        _check_tokenizer(tmp_path / "a.gguf", Letters(262_144))
    _check_tokenizer(tmp_path / "a.gguf", Letters(258))
