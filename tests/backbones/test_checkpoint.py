"""Strict reading: nothing that could run is opened, and whatever is damaged ends in a sentence, never in a
traceback and never in random weights.
"""

import json
import os
import pickle
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from wordsight.backbones import load_backbone
from wordsight.backbones.checkpoint import INDEX_FILE, WEIGHTS_FILE
from wordsight.backbones.text_tower import TextTower
from wordsight.files import WordsightError
from wordsight.tower_settings import TowerSettings

NAN, HUGE = float("nan"), 10**9
DEEP, LONG = "[" * 20_000, '{"model_type": ' + "9" * 6_000 + "}"


@pytest.fixture(autouse=True)
def never_unpickled(monkeypatch):
    def opened(*_, **__):
        raise AssertionError("a pickle was opened")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, opened)


@pytest.fixture
def clip(tiny_clip, tmp_path):
    return shutil.copytree(tiny_clip, tmp_path / "clip")


def load(folder, **settings):
    return load_backbone(folder, device="cpu", **settings)


def refused(folder, says):
    with pytest.raises(WordsightError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000


def rewrite(file, *where, value):
    """The JSON of a file with one value changed; `...` takes the key away."""
    content = json.loads(file.read_text())
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    file.write_text(json.dumps(content))


def edit(folder, change, file=WEIGHTS_FILE):
    tensors = load_file(folder / file)
    save_file(change(tensors) or tensors, folder / file, {"format": "pt"})


def sharded(folder):
    """The weights in two files, with an index."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    files = {name: file for file, held in parts.items() for name in held}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return names


# Nothing that could run


def archive(folder, name):
    """What torch.save writes: a zip archive with a pickle inside."""
    torch.save(load_file(folder / WEIGHTS_FILE), folder / name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.PT", "model.pth", "last.ckpt"])
def test_an_index_that_names_a_pickle(clip, name):
    archive(clip, name)
    names = sharded(clip)
    (clip / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))
    refused(clip, "a pickle, which is never opened")


def test_an_index_that_names_a_pickle_beside_whole_weights(clip):
    index = {"metadata": {}, "weight_map": {"logit_scale": "pytorch_model.bin"}}
    (clip / INDEX_FILE).write_text(json.dumps(index))
    refused(clip, "a pickle, which is never opened")


def test_pickles_and_their_index_beside_safetensors_are_left_alone(clip):
    archive(clip, "pytorch_model-1.bin")
    index = {"metadata": {}, "weight_map": {"logit_scale": "pytorch_model-1.bin"}}
    (clip / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert load(clip).dim == 12


@pytest.mark.parametrize("link", [False, True])
def test_a_pickle_under_another_name(clip, link):
    archive(clip, "pytorch_model.bin")
    (clip / WEIGHTS_FILE).unlink()
    if link:
        (clip / WEIGHTS_FILE).symlink_to("pytorch_model.bin")
    else:
        (clip / "pytorch_model.bin").rename(clip / WEIGHTS_FILE)
    refused(clip, "model.safetensors is a pickle under another name")


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/tmp/other.safetensors", "in/other.safetensors"]
)
def test_a_path_that_leads_out(clip, outside):
    names = sharded(clip)
    shutil.copy(clip / "model-1.safetensors", clip.parent / "other.safetensors")
    rewrite(clip / INDEX_FILE, "weight_map", names[0], value=outside)
    refused(clip, "leads out of the folder")


@pytest.mark.parametrize(
    ("file", "key", "value", "says"),
    [
        ("config.json", "transformers_weights", "adapter_model.bin", "a pickle"),
        ("config.json", "transformers_weights", "../x.safetensors", "leads out of the folder"),
        ("config.json", "_attn_implementation", "somebody/kernel", "code from the hub, which is never run"),
        ("tokenizer_config.json", "vocab_file", "../../vocab.json", "leads out of the folder"),
        ("tokenizer_config.json", "tokenizer_file", "/etc/passwd", "leads out of the folder"),
        ("tokenizer_config.json", "vocab_file", "vocab.pkl", "a pickle"),
        ("preprocessor_config.json", "weights", "processor.bin", "a pickle"),
    ],
)
def test_settings_that_name_what_is_never_opened(clip, file, key, value, says):
    rewrite(clip / file, key, value=value)
    refused(clip, says)


def test_where_a_tokenizer_once_came_from_is_no_path_to_open(clip):
    rewrite(
        clip / "tokenizer_config.json", "special_tokens_map_file", value="/home/me/special_tokens_map.json"
    )
    rewrite(clip / "tokenizer_config.json", "name_or_path", value="./last.ckpt")
    assert load(clip).dim == 12


def test_an_adapter_beside_a_model(clip):
    (clip / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    refused(clip, "adapter_config.json.*in silence")


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_fifo_is_not_waited_for(clip, file):
    (clip / file).unlink()
    os.mkfifo(clip / file)
    refused(clip, "no regular file")


# Numbers


def tower_of(folder):
    return TextTower.from_base(folder, TowerSettings(prompts=2, dim=4, heads=2, rank=2))


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("kind", ["tiny_clip", "vit", "lm"])
def test_weights_that_are_not_finite(kind, bad, tmp_path, request):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")

    def spoil(tensors):
        sorted(tensors.items())[-1][1].view(-1)[-1:].fill_(bad)

    edit(folder, spoil)
    with pytest.raises(WordsightError, match="not finite"):
        tower_of(folder) if kind == "lm" else load(folder, text=kind == "tiny_clip")


def test_whole_numbers_are_no_weights(clip):
    edit(clip, lambda tensors: tensors | {"text_projection.weight": tensors["text_projection.weight"].int()})
    refused(clip, "text_projection.weight as I32.*float32, float16 or bfloat16")


def test_shards_are_read_whatever_float_each_is_in(clip, tiny_clip):
    names = sharded(clip)
    edit(clip, lambda tensors: {name: value.half() for name, value in tensors.items()}, "model-2.safetensors")
    found = load(clip)
    assert names and {weight.dtype for weight in found.model.parameters()} == {torch.float32}
    texts = ["a cat", "dog"]
    assert (found.encode_text(texts) * load(tiny_clip).encode_text(texts)).sum(-1).min() > 0.999


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "model-2.safetensors").unlink(), "lacks model-2.safetensors"),
        (
            lambda folder: edit(folder, lambda t: dict([*t.items()][1:]), "model-2.safetensors"),
            "shard .* lacks",
        ),
        (
            lambda folder: edit(folder, lambda t: t | {"more": torch.ones(1)}, "model-2.safetensors"),
            "unknown to the index, more",
        ),
        (lambda folder: rewrite(folder / INDEX_FILE, "weight_map", value=[]), "no 'weight_map'"),
        (lambda folder: rewrite(folder / INDEX_FILE, "metadata", value=...), "'metadata'"),
        (lambda folder: rewrite(folder / INDEX_FILE, "weight_map", "logit_scale", value=3), "names '3'"),
    ],
)
def test_shards_that_do_not_fit_their_index(clip, change, says):
    sharded(clip)
    change(clip)
    refused(clip, says)


# Files of another form

EVERY = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")


@pytest.mark.parametrize("file", EVERY)
@pytest.mark.parametrize("text", ["[]", "7", "", "{", DEEP, LONG, '{"a": 1, "a": 2}'])
def test_settings_of_another_form(clip, file, text):
    (clip / file).write_text(text)
    refused(clip, "JSON|is empty|nested too deeply|not readable|more than once")


@pytest.mark.parametrize("value", [..., "many", [], -1, HUGE])
@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("config.json", ("text_config",)),
        ("config.json", ("text_config", "hidden_size")),
        ("config.json", ("vision_config", "patch_size")),
        ("config.json", ("vision_config", "num_hidden_layers")),
        ("preprocessor_config.json", ("size",)),
        ("preprocessor_config.json", ("crop_size",)),
        ("tokenizer_config.json", ("model_max_length",)),
        ("tokenizer.json", ("model", "vocab")),
        ("tokenizer.json", ("model",)),
    ],
)
def test_a_value_that_cannot_be_is_refused_or_changes_nothing(clip, tiny_clip, file, where, value):
    """Some values are transformers' way to say the default; none ends in a traceback or in other vectors."""
    rewrite(clip / file, *where, value=value)
    try:
        found = load(clip)
    except WordsightError as error:
        assert "\n" not in str(error)
        return
    pixels = torch.stack([found.preprocess(Image.linear_gradient("L"))])
    assert torch.equal(found.encode_image(pixels), load(tiny_clip).encode_image(pixels))
    assert torch.equal(found.encode_text(["a cat"]), load(tiny_clip).encode_text(["a cat"]))


@pytest.mark.parametrize("std", [0, -1, [0.2, 0.2], ["a"] * 3, [NAN] * 3, [1e300] * 3])
def test_pixels_that_no_tower_was_fed_with(clip, std):
    rewrite(clip / "preprocessor_config.json", "image_std", value=std)
    refused(clip, "that no tower was fed with|cannot be read|does more than")


def test_a_config_far_larger_than_its_checkpoint_fills_no_memory(clip, lm, tmp_path):
    for key, value in (("vocab_size", 10**10), ("max_position_embeddings", 10**10)):
        folder = shutil.copytree(clip, tmp_path / key)
        rewrite(folder / "config.json", "text_config", key, value=value)
        refused(folder, "config.json asks for .* but its checkpoint holds|does not belong|cannot be read")
    folder = shutil.copytree(lm, tmp_path / "lm")
    rewrite(folder / "config.json", "num_hidden_layers", value=10**6)
    with pytest.raises(WordsightError, match="asks for 1000000 layers"):
        tower_of(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {key: value for key, value in t.items() if "q_proj" not in key}, "lacks .*q_proj"),
        (lambda t: t | {"model.layers.0.more.weight": torch.ones(2)}, "too many: .*more.weight"),
        (lambda t: t | {"model.norm.weight": torch.ones(3)}, "in another shape than config.json: model.norm"),
    ],
)
def test_an_lm_whose_tensors_do_not_fit(lm, tmp_path, change, says):
    folder = shutil.copytree(lm, tmp_path / "lm")
    edit(folder, change)
    with pytest.raises(WordsightError, match=says):
        tower_of(folder)
