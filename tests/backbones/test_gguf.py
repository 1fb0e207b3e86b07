"""LMs in GGUF files: unpacked once, and then like any folder."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wordsight.backbones import hub
from wordsight.backbones.checkpoint import Place
from wordsight.backbones.gguf import _check_tokenizer
from wordsight.backbones.hub import find, local
from wordsight.backbones.lm import load_lm
from wordsight.backbones.text_tower import TextTower
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.tower_settings import TowerSettings

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE, num_key_value_heads=2, vocab_size=258, max_position_embeddings=64)
    return Qwen2ForCausalLM(config).eval()


def written(path, model, *, without=()):
    """The LM as llama.cpp's own writer has it; its tokens are bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

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
        if name not in without:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


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


@pytest.mark.parametrize("name", ["sha256-0123", "tiny.GGUF"])
def test_a_file_is_known_by_its_content(file, tmp_path, name):
    assert find(shutil.copy(file, tmp_path / name), "LM") == find(str(file), "LM")


def test_nothing_that_a_file_lacks_is_filled_in(model, tmp_path):
    lacks = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(WordsightError, match=rf"lacks {lacks}; nothing is filled with random numbers"):
        find(str(written(tmp_path / "a.gguf", model, without=[lacks])), "LM")


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


# -- in repositories of the hub --


@pytest.fixture
def cached(file, tmp_path, monkeypatch):
    """Puts GGUF files of these names into a cache of the hub's layout, as the repository some/tiny-GGUF; the
    hub itself is out of reach."""
    root = tmp_path / "models--some--tiny-GGUF"
    (root / "refs").mkdir(parents=True), (root / "refs" / "main").write_text("0" * 40)
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(*names):
        for name in names:
            path = root / "snapshots" / ("0" * 40) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)

    return put


def test_a_repository_of_one_file_is_that_lm(cached, file):
    cached("tiny-Q8_0.gguf", "mmproj-BF16.gguf", "imatrix_tiny.gguf")
    folder = find(str(file), "LM")
    for name in ("", ":Q8_0", ":q8_0", ":latest", "/tiny-Q8_0.gguf"):
        assert find(f"some/tiny-GGUF{name}", "LM") == folder
        assert find(f"hf.co/some/tiny-GGUF{name}", "LM") == folder
    settings = TowerSettings(wrapper="a {}.", prompts=2, rank=2, heads=2)
    assert TextTower.from_base("some/tiny-GGUF:Q8_0", settings).plain.name_or_path == "some/tiny-GGUF:Q8_0"
    assert local("some/tiny-GGUF:Q8_0").name == "0" * 40


def test_of_several_files_one_is_chosen(cached, tmp_path, capsys):
    cached("tiny-Q8_0.gguf", "tiny-UD-Q4_K_XL.gguf", "BF16/tiny.gguf", "Q2_K/tiny-Q2_K-00001-of-00002.gguf")
    command = ["sentences", "classes=cat", "model=some/tiny-GGUF", "local=true", f"out={tmp_path / 'a.json'}"]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "in several GGUF files, BF16, Q2_K, Q8_0, UD-Q4_K_XL; choose one: some/tiny-GGUF:BF16" in said
    for name in (":Q8_0", ":BF16", ":q4_k_xl", ":UD-Q4_K_XL", "/BF16/tiny.gguf"):
        assert (find(f"some/tiny-GGUF{name}", "LM") / "config.json").is_file()
    with pytest.raises(WordsightError, match="join parts of one by llama-gguf-split"):
        find("some/tiny-GGUF:Q2_K", "LM")
    for name in (":Q6_K", "/other.gguf", ":K_XL"):
        with pytest.raises(
            WordsightError, match=f"some/tiny-GGUF{name}' is not a local folder.*owner/name:Q8_0"
        ):
            find(f"some/tiny-GGUF{name}", "LM")
    with pytest.raises(WordsightError, match=r"GGUF file '.*none.gguf' does not exist"):
        find(str(tmp_path / "none.gguf"), "LM")


def test_what_the_cache_lacks_is_asked_of_the_hub(cached, file, monkeypatch):
    held = [SimpleNamespace(rfilename=name) for name in ("README.md", "a-Q4_0.gguf", "a-Q8_0.gguf")]
    monkeypatch.setattr(hub.HfApi, "model_info", lambda self, name, **_: SimpleNamespace(siblings=held))
    asked = []
    monkeypatch.setattr(hub, "hf_hub_download", lambda *given: asked.append(given) or file)
    assert find("some/other-GGUF:Q4_0", "LM") == find(str(file), "LM")
    assert asked == [("some/other-GGUF", "a-Q4_0.gguf")]
    with pytest.raises(WordsightError, match="holds an LM in several GGUF files, Q4_0, Q8_0"):
        find("some/other-GGUF", "LM")
    with pytest.raises(WordsightError, match=r"has no GGUF file Q5_0; it has a-Q4_0.gguf, a-Q8_0.gguf"):
        find("some/other-GGUF:Q5_0", "LM")
    assert len(asked) == 1


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
