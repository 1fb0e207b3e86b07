"""CLIP equals transformers; and says in words what it cannot load."""

import functools
import importlib.util
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ConvNextConfig,
    ConvNextModel,
    GPT2Config,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

import wordsight.backbones.clip as clip_module
from wordsight.backbones import hub, load_backbone
from wordsight.backbones.clip import CLIP
from wordsight.backbones.pixels import Preprocess
from wordsight.config import WordsightError

CPU = torch.device("cpu")
TEXTS = [
    "a photo of a cat.",
    "a dog",
    "a photo of a large dog in a small box",
    "a dog",
    "x",
    "a cat and a dog and a cat",
]
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LETTERS = "abcdefghijklmnopqrstuvwxyz."


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Towers this small lose more to the threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The three kinds of dual encoder, tiny and random, in the hub's layout."""
    root = tmp_path_factory.mktemp("models")
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    return {
        "clip": make_clip(root / "clip"),
        "siglip": make_siglip(root / "siglip"),
        "dual": make_dual(root / "dual"),
    }


def make_clip(folder):
    vocabulary = [
        *LETTERS,
        *(letter + "</w>" for letter in LETTERS),
        "ca",
        "cat</w>",
        "do",
        "dog</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    tokenizer = CLIPTokenizer(
        {word: row for row, word in enumerate(vocabulary)},
        [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")],
        model_max_length=77,
    )
    text = TRANSFORMER | {
        "vocab_size": len(vocabulary),
        "eos_token_id": len(vocabulary) - 1,
        "bos_token_id": len(vocabulary) - 2,
    }
    vision = TRANSFORMER | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return save(folder, model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32))


def make_siglip(folder):
    text = TRANSFORMER | {"vocab_size": 64, "max_position_embeddings": 64, "projection_size": 32}
    vision = TRANSFORMER | {"image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    return save(
        folder,
        model,
        letters_tokenizer("$A </s>", pad="</s>", lower=False, length=64),
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    )


def make_dual(folder):
    convnext = ConvNextConfig(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], image_size=32, hidden_size=24
    )
    bert = BertConfig(**TRANSFORMER, vocab_size=64, max_position_embeddings=48)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(convnext, bert, projection_dim=20)
    model = VisionTextDualEncoderModel(config, ConvNextModel(convnext), BertModel(bert))
    return save(
        folder,
        model,
        letters_tokenizer("<s> $A </s>", pad="<pad>", lower=True, length=48),
        ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    )


def letters_tokenizer(template, pad, lower, length):
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate([*special, *LETTERS])}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase() if lower else normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", 1), ("<s>", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if lower else ["input_ids"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=names,
    )


def save(folder, model, tokenizer, processor):
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def load(folder, **settings) -> CLIP:
    return load_backbone(folder, device="cpu", **settings)


@functools.cache
def kept(folder) -> CLIP:
    """Loaded once for all tests that leave it as it is."""
    return load(folder)


def images():
    """Odd sizes, portrait, one pixel, grey, palette, transparency."""
    draw = np.random.default_rng(0)
    made = [
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((32, 32), (33, 57), (91, 40), (1, 1), (200, 301), (5, 64))
    ]
    return [*made, made[1].convert("L"), made[2].convert("P"), made[1].convert("1"), made[4].convert("RGBA")]


def pixels_of(backbone, count=4):
    return torch.stack([backbone.preprocess(image) for image in images()[:count]])


def reference(folder, texts, dtype=torch.float32):
    """Text vectors as transformers' own examples make them."""
    model, tokenizer = (
        model_class(folder).from_pretrained(folder, dtype=dtype),
        AutoTokenizer.from_pretrained(folder),
    )
    length = 64 if isinstance(model, SiglipModel) else 77 if isinstance(model, CLIPModel) else None
    inputs = tokenizer(
        texts, padding="max_length" if length else True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        vectors = model.get_text_features(**inputs).pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


def model_class(folder):
    return clip_module.model_class(json.loads((folder / "config.json").read_text())["model_type"])


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "dual": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
}
KINDS = pytest.mark.parametrize("kind", list(PROCESSORS))


@KINDS
def test_pixels_equal_transformers(folders, kind):
    backbone = kept(folders[kind])
    for image in images():
        pixels = backbone.preprocess(image)
        theirs = PROCESSORS[kind](image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32)
        torch.testing.assert_close(backbone.transform.normalise(pixels), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [224, 336])
def test_pixels_equal_transformers_at_the_published_sizes(size):
    theirs = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)
    ours = Preprocess.from_pretrained(
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": size, "crop_size": size}
    )  # openai's files
    for image in images():
        torch.testing.assert_close(
            ours.normalise(ours(image)),
            theirs(image.convert("RGB"), return_tensors="pt")["pixel_values"][0],
            atol=1e-6,
            rtol=1e-6,
        )


@KINDS
def test_image_vectors_equal_transformers(folders, kind):
    backbone = kept(folders[kind])
    model = model_class(folders[kind]).from_pretrained(folders[kind])
    with torch.no_grad():
        theirs = model.get_image_features(
            **PROCESSORS[kind]([image.convert("RGB") for image in images()], return_tensors="pt")
        ).pooler_output
    ours = backbone.encode_image(pixels_of(backbone, len(images())))
    torch.testing.assert_close(ours, theirs / theirs.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    assert ours.shape[1] == backbone.dim
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert (backbone.logit_bias is not None) == (kind == "siglip")


@KINDS
def test_text_vectors_equal_transformers_in_their_order(folders, kind):
    """For CLIP the reference is padded to 77: padding to the batch's longest is exact."""
    torch.testing.assert_close(
        kept(folders[kind]).encode_text(TEXTS), reference(folders[kind], TEXTS), atol=1e-5, rtol=0
    )


@KINDS
def test_vectors_do_not_depend_on_the_batch(folders, kind, monkeypatch):
    backbone = kept(folders[kind])
    text, pixels = backbone.encode_text(TEXTS), pixels_of(backbone)
    torch.testing.assert_close(
        torch.cat([backbone.encode_text([text]) for text in TEXTS]), text, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.cat([backbone.encode_image(image[None]) for image in pixels]),
        backbone.encode_image(pixels),
        atol=1e-5,
        rtol=0,
    )
    monkeypatch.setattr(clip_module, "TOKENS_PER_BATCH", 30)
    torch.testing.assert_close(backbone.encode_text(TEXTS), text, atol=1e-5, rtol=0)


def test_equal_texts_are_encoded_once(folders, monkeypatch):
    backbone, seen = kept(folders["clip"]), []
    encode = backbone.model.get_text_features
    monkeypatch.setattr(
        backbone.model,
        "get_text_features",
        lambda **inputs: seen.append(inputs["input_ids"].shape) or encode(**inputs),
    )
    vectors = backbone.encode_text(["a cat", "a dog", "a cat"] * 10)
    assert seen == [(2, 4)] and vectors.shape == (30, 16) and torch.equal(vectors[0], vectors[29])
    assert backbone.encode_text([]).shape == (0, 16)
    with pytest.raises(WordsightError, match="one text 'a cat' was given where a list"):
        backbone.encode_text("a cat")


def test_siglip_sees_lower_case(folders):
    backbone = kept(folders["siglip"])
    assert torch.equal(backbone.encode_text(["A Cat"]), backbone.encode_text(["a cat"]))


@pytest.mark.parametrize("kind, length", [("clip", 77), ("siglip", 64), ("dual", 48)])
def test_a_long_text_keeps_its_end_token_and_is_told(folders, kind, length, said):
    backbone = load(folders[kind])
    assert backbone.encode_text(["x " * 200, "a cat"]).isfinite().all()
    backbone.tokenize(["x " * 200, "a cat"])
    assert backbone.truncated(["x " * 200, "a cat"]) == [True, False] and backbone.truncated([]) == []
    assert len(said) == 1 and f"1 of 2 texts are longer than the {length} tokens" in said.text
    ids = backbone._tokenize(["x " * 200])["input_ids"][0]
    assert len(ids) == backbone.max_tokens == length and ids[-1] == backbone.tokenizer.eos_token_id


@KINDS
def test_towers_are_frozen_and_vectors_unit(folders, kind):
    backbone = kept(folders[kind])
    assert not backbone.model.training and not any(
        weight.requires_grad for weight in backbone.model.parameters()
    )
    for vectors in (backbone.encode_text(TEXTS), backbone.encode_image(pixels_of(backbone))):
        assert vectors.dtype == torch.float32 and not vectors.is_inference()  # methods train on them
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


@KINDS
def test_bfloat16_is_close(folders, kind):
    plain, half = kept(folders[kind]), load(folders[kind], dtype="bfloat16")
    assert half.logit_scale == plain.logit_scale  # bfloat16 would round it
    for ours, theirs in (
        (half.encode_text(TEXTS), plain.encode_text(TEXTS)),
        (half.encode_image(pixels_of(half)), plain.encode_image(pixels_of(plain))),
    ):
        assert ours.dtype == torch.float32
        assert (ours * theirs).sum(-1).min() > 0.995
    assert (
        half.image_fingerprint != plain.image_fingerprint and half.text_fingerprint != plain.text_fingerprint
    )


def test_float16_weights_are_read_as_the_asked_dtype(folders, tmp_path):
    folder = edited(
        folders["clip"], tmp_path, lambda tensors: {key: value.half() for key, value in tensors.items()}
    )
    backbone = load(folder)
    assert {weight.dtype for weight in backbone.model.parameters()} == {torch.float32}
    assert (backbone.encode_text(TEXTS) * kept(folders["clip"]).encode_text(TEXTS)).sum(-1).min() > 0.999


def test_a_box_is_that_part_resized(folders):
    backbone, image = kept(folders["clip"]), images()[4]
    view = backbone.preprocess(image, box=(10, 20, 110, 90))
    theirs = image.crop((10, 20, 110, 90)).resize((32, 32), Image.Resampling.BICUBIC)
    assert view.shape == (3, 32, 32) and view.is_contiguous()
    assert torch.equal(view, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))
    assert backbone.preprocess(image.convert("L"), box=(1.5, 2.5, 90.25, 40)).shape == (3, 32, 32)
    with pytest.raises(WordsightError, match=r"not inside the image of 301x200"):
        backbone.preprocess(image, box=(10, 20, 302, 90))


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in PROCESSORS), ("clip", "bfloat16")]
)
def test_saved_and_loaded_gives_the_same_vectors(folders, kind, dtype, tmp_path):
    backbone = load(folders[kind], dtype=dtype)
    text, pixels = backbone.encode_text(TEXTS), pixels_of(backbone)
    backbone.save_pretrained(tmp_path / "deep" / "saved")
    again = load(tmp_path / "deep" / "saved", dtype=dtype)
    assert torch.equal(again.encode_text(TEXTS), text)
    assert torch.equal(pixels_of(again), pixels) and torch.equal(
        again.encode_image(pixels), backbone.encode_image(pixels)
    )
    assert (again.image_fingerprint, again.text_fingerprint) == (
        backbone.image_fingerprint,
        backbone.text_fingerprint,
    )
    assert again.logit_scale == backbone.logit_scale and again.logit_bias == backbone.logit_bias
    assert not [
        file
        for file in (tmp_path / "deep").rglob("*")
        if file.suffix in (".bin", ".pt", ".pkl") or file.name.startswith(".")
    ]
    with pytest.raises(WordsightError, match=r"already holds something"):
        backbone.save_pretrained(tmp_path / "deep" / "saved")


@pytest.mark.slow
def test_fingerprints_follow_their_own_side(folders, tmp_path):
    plain = kept(folders["clip"])

    def changed(word):
        return lambda tensors: {
            key: value + 0.01 if key.startswith(word) else value for key, value in tensors.items()
        }

    image, text = (
        load(edited(folders["clip"], tmp_path / "i", changed("vision_model"))),
        load(edited(folders["clip"], tmp_path / "t", changed("text_model"))),
    )
    assert (
        image.image_fingerprint != plain.image_fingerprint
        and image.text_fingerprint == plain.text_fingerprint
    )
    assert (
        text.image_fingerprint == plain.image_fingerprint and text.text_fingerprint != plain.text_fingerprint
    )
    mean = copied(folders["clip"], tmp_path / "mean")
    rewrite(mean / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert load(mean).image_fingerprint != plain.image_fingerprint
    act = copied(folders["clip"], tmp_path / "act")
    config = json.loads((act / "config.json").read_text())
    rewrite(act / "config.json", vision_config=config["vision_config"] | {"hidden_act": "gelu"})
    assert load(act).image_fingerprint != plain.image_fingerprint  # same weights, other vectors


def test_loading_leaves_transformers_settings_alone(folders):
    transformers_logging.enable_progress_bar()
    transformers_logging.set_verbosity_warning()
    load(folders["clip"])
    assert (
        transformers_logging.is_progress_bar_enabled()
        and transformers_logging.get_verbosity() == logging.WARNING
    )


def test_loading_is_quiet(folders, capfd):
    load(folders["dual"]).encode_text(TEXTS)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
def test_a_folder_is_found_from_home_and_from_elsewhere(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["clip"].parent))
    monkeypatch.chdir(folders["clip"].parent)
    relative, home = load("clip"), load("~/clip")
    assert (relative.name, home.name) == ("clip", "~/clip")
    assert relative.source == home.source == str(folders["clip"].resolve())
    monkeypatch.chdir(tmp_path)
    again = load(relative.source)
    assert again.image_fingerprint == relative.image_fingerprint
    assert again.text_fingerprint == relative.text_fingerprint == home.text_fingerprint
    assert load("micro").source == "micro"


# What cannot be loaded


@pytest.mark.parametrize("name", ["nobody/no-such-clip", "no-such-clip", "not a name!"])
def test_a_hub_name_out_of_reach(name, monkeypatch):
    def unreachable(self, name, **_):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    with pytest.raises(WordsightError, match=r"local folder.*backbone=micro") as caught:
        load_backbone(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./runs/clip", "models/towers/clip"])
def test_a_folder_that_does_not_exist(path):
    with pytest.raises(WordsightError, match=r"folder .* does not exist"):
        CLIP.from_pretrained(path, name=path, device=CPU)


def test_a_cached_hub_name_needs_no_network(folders, tmp_path, monkeypatch):
    import huggingface_hub

    def never(self, name, **_):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub.HfApi, "model_info", never)
    snapshot = tmp_path / "models--some--clip" / "snapshots" / ("0" * 40)
    shutil.copytree(folders["clip"], snapshot)
    (tmp_path / "models--some--clip" / "refs").mkdir()
    (tmp_path / "models--some--clip" / "refs" / "main").write_text("0" * 40)
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path), raising=False)
    backbone = load("some/clip")
    assert torch.equal(backbone.encode_text(TEXTS), kept(folders["clip"]).encode_text(TEXTS))


@pytest.mark.parametrize(
    "config, says",
    [
        (GPT2Config(), "'gpt2': a decoder language model.*wordsight join"),
        (ViTConfig(), "'vit': an image encoder alone.*wordsight join"),
        (BertConfig(), "'bert': a text encoder alone.*wordsight join"),
        ({"model_type": "siglip2"}, "fixed resolution"),
        ({}, "model_type None"),
    ],
)
def test_another_kind_of_model(config, says, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(config if isinstance(config, dict) else config.to_dict())
    )
    with pytest.raises(WordsightError, match=says):
        load(tmp_path)


@KINDS
def test_a_missing_tensor_is_never_random(folders, kind, tmp_path):
    folder = edited(
        folders[kind],
        tmp_path,
        lambda tensors: {key: value for key, value in tensors.items() if key != "logit_scale"},
    )
    with pytest.raises(WordsightError, match=r"lacks logit_scale"):
        load(folder)


def test_an_unexpected_tensor(folders, tmp_path):
    with pytest.raises(WordsightError, match=r"too many: text_model.extra"):
        load(
            edited(folders["clip"], tmp_path, lambda tensors: tensors | {"text_model.extra": torch.zeros(2)})
        )


def test_a_tensor_of_another_shape(folders, tmp_path):
    with pytest.raises(WordsightError, match=r"in another shape than config.json: text_projection.weight"):
        load(
            edited(
                folders["clip"],
                tmp_path,
                lambda tensors: tensors | {"text_projection.weight": torch.zeros(3, 3)},
            )
        )


def test_the_position_buffers_of_old_checkpoints_are_no_error(folders, tmp_path):
    ids = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    load(edited(folders["clip"], tmp_path, lambda tensors: tensors | ids))


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_broken_file(folders, file, tmp_path):
    folder = copied(folders["clip"], tmp_path)
    (folder / file).write_bytes(b"broken")
    with pytest.raises(WordsightError, match=r"cannot be read|is not JSON"):
        load(folder)


def test_a_tokenizer_without_its_library(folders, tmp_path):
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    folder = copied(folders["siglip"], tmp_path)
    rewrite(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    with pytest.raises(WordsightError, match=r"SentencePiece.*pip install sentencepiece"):
        load(folder)


def test_a_pickle_is_not_opened(folders, tmp_path):
    folder = copied(folders["clip"], tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WordsightError, match=r"no weights"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(WordsightError, match=r"only pytorch_model.bin, a pickle, which is never opened"):
        load(folder)


@pytest.mark.parametrize(
    "file, says",
    [("tokenizer.json", "no tokenizer"), ("preprocessor_config.json", "no preprocessor_config.json")],
)
def test_a_missing_part(folders, file, says, tmp_path):
    folder = copied(folders["clip"], tmp_path)
    (folder / file).unlink()
    with pytest.raises(WordsightError, match=says):
        load(folder)


def test_parts_that_do_not_belong_together(folders, tmp_path):
    size = copied(folders["clip"], tmp_path / "size")
    rewrite(size / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    with pytest.raises(WordsightError, match=r"24x24 pixels, but its image tower takes 32x32"):
        load(size)
    end = copied(folders["clip"], tmp_path / "end")
    config = json.loads((end / "config.json").read_text())
    rewrite(end / "config.json", text_config=config["text_config"] | {"eos_token_id": 7})
    with pytest.raises(WordsightError, match=r"does not end a text with token 7"):
        load(end)
    words = copied(folders["siglip"], tmp_path / "words")
    letters = json.loads((words / "tokenizer.json").read_text())
    letters["model"]["vocab"]["z"] = 900
    (words / "tokenizer.json").write_text(json.dumps(letters))
    with pytest.raises(WordsightError, match=r"gives token 900"):
        load(words).encode_text(["z"])


def test_a_tower_that_does_not_pool(tmp_path):
    bert, vit = (
        BertConfig(**TRANSFORMER, vocab_size=64, max_position_embeddings=48),
        ViTConfig(**TRANSFORMER, image_size=32, patch_size=8),
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vit, bert, projection_dim=20)
    model = VisionTextDualEncoderModel(config)
    model.text_model.pooler = None
    tokenizer = letters_tokenizer("<s> $A </s>", pad="<pad>", lower=True, length=48)
    parts = clip_module.Parts(
        model.eval(), tokenizer, Preprocess.from_pretrained(PROCESSORS["siglip"].to_dict())
    )
    with pytest.raises(
        WordsightError, match=r"the text tower of 'mine' \(bert\) does not pool to one vector"
    ):
        clip_module._check(parts, "mine")


@pytest.mark.parametrize(
    "config, says",
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "one fixed size"),
        ({"image_processor_type": "DINOv3ViTImageProcessor"}, "no PIL form"),
        ({}, "names no image_processor_type"),
    ],
)
def test_preprocessing_that_cannot_be_exact(config, says):
    with pytest.raises(WordsightError, match=says):
        Preprocess.from_pretrained(config, name="mine")


def test_an_unknown_dtype(folders):
    with pytest.raises(WordsightError, match=r"dtype='float16' is not a choice"):
        load(folders["clip"], dtype="float16")


def copied(folder, target):
    return shutil.copytree(folder, target, dirs_exist_ok=True)


def edited(folder, target, change):
    copied(folder, target)
    save_file(
        {key: value.contiguous() for key, value in change(load_file(folder / "model.safetensors")).items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    return target


def rewrite(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
