"""Vision: an image encoder alone, whose vectors are its own, and which says in words that it has none."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file
from standins import without_digests
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from wordsight.backbones import hub, load_backbone
from wordsight.backbones.timm_names import vit_from_timm
from wordsight.backbones.vision import Vision
from wordsight.config import WordsightError

PATCHES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Tiny random encoders in transformers' layout, and one file with timm's names."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    encoders = {
        "vit": ViTForImageClassification(ViTConfig(**PATCHES, num_labels=3)),
        "dino": Dinov2Model(
            Dinov2Config(
                hidden_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
            )
        ),
        "clip": CLIPVisionModel(CLIPVisionConfig(**PATCHES)),
    }
    for name, model in encoders.items():
        model.save_pretrained(root / name)
        CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32).save_pretrained(root / name)
    save_file(
        timm_names(ViTForImageClassification.from_pretrained(root / "vit").vit.state_dict()),
        root / "vit.safetensors",
    )
    return root


def timm_names(tensors):
    parts = {
        "attn.proj": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    found = {
        "cls_token": tensors["embeddings.cls_token"],
        "pos_embed": tensors["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = tensors[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = tensors[f"layernorm.{kind}"]
        found |= {
            f"blocks.0.{ours}.{kind}": tensors[f"layers.0.{theirs}.{kind}"] for ours, theirs in parts.items()
        }
        found[f"blocks.0.attn.qkv.{kind}"] = torch.cat(
            [tensors[f"layers.0.attention.{letter}_proj.{kind}"] for letter in "qkv"]
        )
    return {key: value.contiguous() for key, value in found.items()}


def load(name, **settings) -> Vision:
    return load_backbone(name, device="cpu", text=False, **settings)


def pixels_of(backbone):
    draw = np.random.default_rng(0)
    images = [
        Image.fromarray(draw.integers(0, 256, (30 + 9 * row, 61 - 7 * row, 3), dtype=np.uint8))
        for row in range(3)
    ]
    return torch.stack([backbone.preprocess(image) for image in images])


@pytest.mark.parametrize("kind", ["vit", "dino", "clip"])
def test_vectors_are_the_encoders_own(folders, kind):
    backbone, model = load(folders / kind), AutoModel.from_pretrained(folders / kind).eval()
    pixels = pixels_of(backbone)
    with torch.no_grad():
        output = model(pixel_values=backbone.vision.transform.normalise(pixels))
    own = output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output
    assert (
        type(backbone) is Vision
        and backbone.dim == 64
        and not any(weight.requires_grad for weight in backbone.vision.model.parameters())
    )
    torch.testing.assert_close(
        backbone.encode_image(pixels), torch.nn.functional.normalize(own, dim=-1), atol=1e-5, rtol=0
    )


def test_a_timm_file_is_an_image_encoder(folders):
    backbone, same = load(folders / "vit.safetensors"), load(folders / "vit")
    pixels = pixels_of(backbone)
    model, head = vit_from_timm(load_file(folders / "vit.safetensors"), "file")
    with torch.no_grad():
        states = model(pixel_values=backbone.vision.transform.normalise(pixels)).last_hidden_state[:, 0]
        own = same.vision.model(pixel_values=backbone.vision.transform.normalise(pixels)).last_hidden_state[
            :, 0
        ]
    assert head is None and backbone.vision.pooling == "cls"
    torch.testing.assert_close(backbone.encode_image(pixels), torch.nn.functional.normalize(states, dim=-1))
    assert (states - own).abs().max() < 1e-2  # timm's layer norms have another epsilon than transformers'


@pytest.mark.parametrize("name", ["vit", "dino", "vit.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_gives_the_same_vectors(folders, tmp_path, name, dtype):
    backbone = load(folders / name, dtype=dtype)
    backbone.save_pretrained(tmp_path / "deep" / "saved")
    again, pixels = load(tmp_path / "deep" / "saved", dtype=dtype), pixels_of(backbone)
    assert torch.equal(pixels_of(again), pixels) and torch.equal(
        again.encode_image(pixels), backbone.encode_image(pixels)
    )
    assert again.image_fingerprint == backbone.image_fingerprint and again.dtype == backbone.dtype
    AutoModel.from_pretrained(tmp_path / "deep" / "saved")
    with pytest.raises(WordsightError, match="already holds something"):
        backbone.save_pretrained(tmp_path / "deep" / "saved")
    with pytest.raises(WordsightError, match=r"an image encoder alone.*wordsight join"):
        load_backbone(tmp_path / "deep" / "saved")


def test_it_has_no_words(folders):
    with pytest.raises(
        WordsightError,
        match="is an image encoder alone; `wordsight join` or a two_tower run gives it a text tower",
    ):
        load(folders / "vit").encode_text(["a dog"])


@pytest.mark.parametrize("name", ["vit", "dino", "clip", "vit.safetensors"])
def test_whoever_wants_words_is_told_before_it_is_read(folders, name):
    with pytest.raises(WordsightError, match=r"an image encoder alone, without a text tower.*wordsight join"):
        load_backbone(folders / name)


def test_one_that_has_words_keeps_them(tiny_clip):
    backbone, plain = load(tiny_clip), load_backbone(tiny_clip, device="cpu")
    assert (
        torch.equal(backbone.encode_text(["a dog"]), plain.encode_text(["a dog"]))
        and backbone.image_fingerprint == plain.image_fingerprint
    )
    assert load("micro").encode_text(["a dog"]).shape[0] == 1


def test_a_cached_hub_name_needs_no_network(folders, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda name, **given: asked.append((name, given["local_files_only"])) or str(folders / "dino"),
    )
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda name, file: "/there" if file == "config.json" else None
    )
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    backbone = load("facebook/dinov2-small")
    assert (
        backbone.name == "facebook/dinov2-small"
        and backbone.image_fingerprint == load(folders / "dino").image_fingerprint
    )
    assert set(asked) == {("facebook/dinov2-small", True)}


def test_a_hub_name_out_of_reach(monkeypatch):
    def unreachable(self, name, **_):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(
        WordsightError, match=r"image encoder 'nobody/no-such-vit' is not a local folder.*Name or service"
    ):
        load("nobody/no-such-vit")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda folder: (folder / "wordsight_backbone.json").write_text("{"), "is not JSON"),
        (
            lambda folder: (folder / "wordsight_backbone.json").write_text("[]"),
            "holds a list; expected a JSON object",
        ),
        (lambda folder: spoil_facts(folder, format=9), "format 9"),
        (lambda folder: spoil_facts(folder, pooling="max"), "pooling='max'"),
        (
            lambda folder: spoil_tensors(folder, lambda tensors: tensors | {"more": torch.zeros(1)}),
            "too many: more",
        ),
        (lambda folder: spoil_tensors(folder, lambda tensors: dict(list(tensors.items())[1:])), "lacks"),
    ],
)
def test_a_spoilt_folder_is_refused(folders, tmp_path, spoil, says):
    load(folders / "vit").save_pretrained(tmp_path / "saved")
    spoil(without_digests(tmp_path / "saved"))
    with pytest.raises(WordsightError, match=says):
        load(tmp_path / "saved")


def spoil_facts(folder, **changes):
    file = folder / "wordsight_backbone.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def spoil_tensors(folder, change):
    save_file(
        change(load_file(folder / "model.safetensors")),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def test_a_text_encoder_is_no_image_encoder(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WordsightError, match="was given as the image encoder, but is none"):
        load(tmp_path / "bert")


def test_a_download_that_was_cut_off_is_not_whole(tmp_path):
    def holds(*names):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        return hub._weights_there(folder)

    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert not holds(first) and holds(first, second) and holds("model.safetensors")
    assert holds("model.safetensors", first) and not holds("config.json")


def test_transformers_talks_again_once_all_threads_are_done(monkeypatch):
    from transformers.utils import logging as talk

    before = talk.get_verbosity()
    with ThreadPoolExecutor(8) as pool:

        def within(_):
            with hub.quiet():
                time.sleep(0.01)
                return talk.get_verbosity()

        assert set(pool.map(within, range(40))) == {talk.ERROR}
    assert talk.get_verbosity() == before
