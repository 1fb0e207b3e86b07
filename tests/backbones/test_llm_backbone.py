"""The LLM as a backbone: a folder that gives the same vectors back, refuses towers that have changed, and is
a backbone like any other.
"""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

import wordsight
from wordsight.backbones import hub, load_backbone, unit
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.config import WordsightError
from wordsight.tower_settings import TowerSettings

LITTLE = TowerSettings(wrapper="a {}.", prompts=3, dim=12, rank=2, heads=2)
TEXTS = ["a dog", "x", "a red house by the sea", "x"]


@pytest.fixture(params=["vit", "clip"])
def eyes(request, vit, tiny_clip) -> Path:
    return vit if request.param == "vit" else tiny_clip


def make(lm, eyes, name="made", settings=LITTLE, **load) -> LLM:
    image = load_backbone(eyes, device="cpu", text=False, **load)
    torch.manual_seed(1)
    text = TextTower.from_base(lm, settings)
    for (
        key,
        parameter,
    ) in text.named_parameters():  # LoRA's second matrix starts at zero, and would do nothing
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return LLM(image, text, image_mean=0.1 * torch.randn(12), logit_scale=30.0, name=name)


def load(folder, **settings) -> LLM:
    return load_backbone(folder, device="cpu", **settings)


PIXELS = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_same(one, other):
    assert torch.equal(one.encode_text(TEXTS), other.encode_text(TEXTS)) and torch.equal(
        one.encode_image(PIXELS), other.encode_image(PIXELS)
    )
    assert (one.image_fingerprint, one.text_fingerprint) == (other.image_fingerprint, other.text_fingerprint)
    assert one.logit_scale == pytest.approx(other.logit_scale, rel=1e-6) and one.dim == other.dim


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


# The formula


def test_images_are_centred_and_texts_are_the_towers(lm, eyes):
    backbone = make(lm, eyes)
    plain = backbone.image.encode_image(PIXELS)
    assert torch.equal(backbone.encode_image(PIXELS), unit(plain - backbone.image_mean)) and not torch.equal(
        backbone.encode_image(PIXELS), plain
    )
    assert torch.equal(backbone.image_vectors(plain), backbone.encode_image(PIXELS))
    assert torch.equal(backbone.encode_text(TEXTS), backbone.text.encode(TEXTS)) and backbone.encode_text(
        []
    ).shape == (0, 12)
    assert (
        backbone.encode_text(TEXTS).dtype == torch.float32 and not backbone.encode_text(TEXTS).requires_grad
    )
    bare = LLM(backbone.image, backbone.text, image_mean=None, logit_scale=30.0, name="bare")
    torch.testing.assert_close(bare.encode_image(PIXELS), plain)
    assert (
        bare.image_fingerprint != backbone.image_fingerprint
        and bare.text_fingerprint == backbone.text_fingerprint
    )


def test_what_does_not_fit_together_is_refused(lm, vit):
    backbone = make(lm, vit)
    with pytest.raises(WordsightError, match=r"vectors of width 8, but the image tower .* of 12; set dim=12"):
        make(lm, vit, settings=TowerSettings(wrapper="plain", prompts=0, dim=8, heads=2))
    for mean, scale, says in (
        (torch.zeros(8), 1.0, "image_mean has shape"),
        (torch.full((12,), torch.nan), 1.0, "finite"),
        (None, 0.0, "logit_scale"),
    ):
        with pytest.raises(WordsightError, match=says):
            LLM(backbone.image, backbone.text, image_mean=mean, logit_scale=scale, name="made")


# The folder


@pytest.mark.parametrize(("copied", "tower"), [(None, "vit"), (True, "tiny_clip")], ids=["named", "copied"])
def test_saved_and_loaded_gives_the_same_vectors(lm, tmp_path, copied, tower, request):
    eyes = request.getfixturevalue(tower)
    backbone = make(lm, eyes)
    backbone.save_pretrained(tmp_path / "deep" / "saved", copy_base=copied, copy_image=copied)
    again = load(tmp_path / "deep" / "saved")
    assert type(again) is LLM and again.name == str(tmp_path / "deep" / "saved")
    assert_same(again, backbone)
    assert again.text.generate("a dog", max_new_tokens=4) == backbone.text.generate("a dog", max_new_tokens=4)
    facts = json.loads((tmp_path / "deep" / "saved" / "wordsight_backbone.json").read_text())
    assert facts["image"] == (None if copied else str(eyes)) and (
        tmp_path / "deep" / "saved" / "image"
    ).exists() is bool(copied)
    assert set(load_file(tmp_path / "deep" / "saved" / "weights.safetensors")) == {"image_mean", "log_scale"}
    again.save_pretrained(
        tmp_path / "again"
    )  # what was copied is copied once more, rather than named by a path
    shutil.rmtree(tmp_path / "deep")
    assert_same(load(tmp_path / "again"), backbone)
    with pytest.raises(WordsightError, match="already holds something"):
        backbone.save_pretrained(tmp_path / "again")


@pytest.mark.slow
def test_a_run_folder_is_a_backbone_once_its_weights_are_there(lm, vit, tmp_path):
    backbone, run = make(lm, vit), tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("format: 1\n")
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "text").mkdir()
    (run / "text" / "tower.json").write_text("half")  # of an attempt that was killed
    backbone.write_into(run)
    with pytest.raises(WordsightError, match=r"holds no finished.json: its training is not finished"):
        load(run)
    save_file(backbone.weights(), run / "weights.safetensors")
    with pytest.raises(WordsightError, match=r"holds no finished.json"):
        load(run)
    (run / "finished.json").write_text("{}")
    assert_same(load(run), backbone)
    backbone.write_into(run)
    assert_same(load(run), backbone)
    assert (run / "config.yaml").read_text() == "format: 1\n" and not [
        file for file in run.iterdir() if file.name.startswith(".")
    ]


@pytest.mark.slow
def test_the_lm_in_bfloat16_leaves_the_image_tower_as_it_was_trained(lm, vit, tmp_path):
    backbone = make(lm, vit)
    backbone.save_pretrained(tmp_path / "saved")
    half = load(tmp_path / "saved", dtype="bfloat16")
    assert (
        torch.equal(half.encode_image(PIXELS), backbone.encode_image(PIXELS))
        and half.image_fingerprint == backbone.image_fingerprint
    )
    assert (
        half.text_fingerprint != backbone.text_fingerprint
        and (half.encode_text(TEXTS) * backbone.encode_text(TEXTS)).sum(1).min() > 0.98
    )
    coarse = make(lm, vit, dtype="bfloat16")
    coarse.save_pretrained(tmp_path / "coarse")
    assert_same(load(tmp_path / "coarse"), coarse)


def test_eyes_that_were_never_saved_are_copied(lm, vit, tmp_path):
    backbone = make(lm, vit)
    backbone.image.name, backbone.image.source = "made here", ""
    with pytest.raises(WordsightError, match="has no name or folder to load it by"):
        backbone.save_pretrained(tmp_path / "saved", copy_image=False)
    backbone.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "image").is_dir()
    assert_same(load(tmp_path / "saved"), backbone)


@pytest.mark.slow
def test_the_bundled_micro_is_named_and_never_copied(lm, tmp_path):
    image = load_backbone("micro", device="cpu")
    text = TextTower.from_base(
        lm, TowerSettings(wrapper="plain", prompts=0, pooling="mean", heads=2, dim=image.dim, train="head")
    )
    LLM(image, text, image_mean=None, logit_scale=10.0, name="made").save_pretrained(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved" / "wordsight_backbone.json").read_text())["image"] == "micro"
        and load(tmp_path / "saved").dim == image.dim
    )


def test_what_was_trained_in_the_lm_itself_is_saved_again_and_again(lm, vit, tmp_path):
    backbone = make(
        lm,
        vit,
        settings=TowerSettings(
            wrapper="plain", prompts=2, dim=12, heads=2, train="layernorms", keep_generation=False
        ),
    )
    for parameter in backbone.text.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    backbone.save_pretrained(tmp_path / "one")
    load(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert_same(load(tmp_path / "two"), backbone)


def test_the_card_says_what_it_is(lm, vit, tmp_path):
    make(lm, vit).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    for words in (
        "library_name: wordsight",
        str(lm),
        str(vit),
        "| `prompts` | `3` |",
        "the LM writes as it did before",
        "load_backbone(",
    ):
        assert words in card
    changed = TextTower.from_base(
        lm, TowerSettings(dim=12, heads=2, wrapper="plain", prompts=0, train="all", keep_generation=False)
    )
    LLM(
        load_backbone(vit, device="cpu", text=False), changed, image_mean=None, logit_scale=1.0, name="all"
    ).save_pretrained(tmp_path / "all")
    card = (tmp_path / "all" / "README.md").read_text()
    assert "in `text/base/`" in card and "not kept" in card


# What is refused


@pytest.fixture(scope="module")
def kept(lm, vit, tmp_path_factory) -> Path:
    """A backbone that names its LM and image tower, with both beside it. No test changes it."""
    root = tmp_path_factory.mktemp("kept")
    copies = [Path(shutil.copytree(folder, root / folder.name)) for folder in (lm, vit)]
    make(*copies).save_pretrained(root / "saved")
    return root


@pytest.fixture
def saved(kept, tmp_path) -> Path:
    """The same in a folder of the test's own, naming the copies in it."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    for file in ("wordsight_backbone.json", "text/tower.json"):
        path = tmp_path / "saved" / file
        path.write_text(path.read_text().replace(str(kept), str(tmp_path)))
    return tmp_path / "saved"


def more(word):
    return lambda tensors: {key: value + 0.01 if word in key else value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda f: edit(f.parent / "vit" / "model.safetensors", more("cls_token")),
            r"the image tower .*vit' has changed since .* was trained",
        ),
        (
            lambda f: rewrite(f.parent / "vit" / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
            r"has changed since",
        ),
        (
            lambda f: shutil.rmtree(f.parent / "vit"),
            r"the image tower of backbone .*vit', cannot be loaded: .*does not exist.*"
            r"write its place as 'image' in .*wordsight_backbone\.json",
        ),
        (
            lambda f: shutil.rmtree(f.parent / "llama"),
            r"LM folder .*does not exist.*write its place as 'name' of 'base' in .*tower\.json",
        ),
        (
            lambda f: edit(f.parent / "llama" / "model.safetensors", more("embed_tokens")),
            r"was trained on another LM",
        ),
        (lambda f: (f / "weights.safetensors").write_bytes(b"x"), r"cannot be read"),
        (
            lambda f: edit(f / "weights.safetensors", lambda t: t | {"more": torch.zeros(1)}),
            r"weights.safetensors of .* has too many: more",
        ),
        (
            lambda f: edit(f / "weights.safetensors", lambda t: {"log_scale": t["log_scale"]}),
            r"weights.safetensors of .* lacks image_mean",
        ),
        (
            lambda f: edit(f / "weights.safetensors", lambda t: t | {"image_mean": torch.zeros(8)}),
            r"image_mean as \(8,\)",
        ),
        (
            lambda f: edit(f / "weights.safetensors", lambda t: t | {"log_scale": torch.tensor(torch.nan)}),
            r"not finite, in log_scale",
        ),
        (
            lambda f: rewrite(f / "wordsight_backbone.json", format=9),
            r"format 9; this version reads kind 'llm'",
        ),
        (lambda f: rewrite(f / "wordsight_backbone.json", image=3), r"has image=3; it was not written"),
        (
            lambda f: rewrite(f / "wordsight_backbone.json", image=None),
            r"the image tower of backbone .*image', cannot be loaded",
        ),
        (lambda f: rewrite(f / "wordsight_backbone.json", kind="lm"), r"'lm' is not known"),
        (lambda f: shutil.rmtree(f / "text"), r"not a text tower's folder"),
    ],
)
def test_a_spoilt_folder_is_refused(saved, spoil, says):
    load(saved)
    spoil(saved)
    with pytest.raises(WordsightError, match=says):
        load(saved)


# The hub


def test_pushed_with_both_towers_where_these_have_only_a_path(lm, vit, tmp_path, monkeypatch):
    calls, backbone = [], make(lm, vit)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **given: calls.append((repo, given)))
    monkeypatch.setattr(
        HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path, commit_message: (
            shutil.copytree(folder_path, tmp_path / "pushed") and "the/commit"
        ),
    )
    assert backbone.push_to_hub("me/eyes", private=True) == "the/commit" and calls == [
        ("me/eyes", {"private": True, "exist_ok": True})
    ]
    files = {
        str(file.relative_to(tmp_path / "pushed"))
        for file in (tmp_path / "pushed").rglob("*")
        if file.is_file()
    }
    assert {
        "README.md",
        "weights.safetensors",
        "image/model.safetensors",
        "text/base/model.safetensors",
        "text/tower.json",
    } <= files
    for file in files:
        assert str(lm.parent).encode() not in (tmp_path / "pushed" / file).read_bytes(), (
            file
        )  # no path of this machine
    assert_same(load(tmp_path / "pushed"), backbone)


@pytest.mark.parametrize("name", ["me/eyes", "hf:me/eyes"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_repository_of_ours_is_known_by_its_hub_name(lm, vit, tmp_path, monkeypatch, name, cached):
    backbone, asked = make(lm, vit), []
    backbone.save_pretrained(tmp_path / "there")
    there = str(tmp_path / "there")

    def snapshot(name, *, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        return there

    files = [huggingface_hub.hf_api.RepoSibling(rfilename="wordsight_backbone.json")]
    info = type("Info", (), {"siblings": files})
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(
        hub,
        "try_to_load_from_cache",
        lambda name, file: there if cached and file == "wordsight_backbone.json" else None,
    )
    monkeypatch.setattr(
        HfApi, "model_info", lambda self, name, timeout: pytest.fail("the hub was asked") if cached else info
    )
    found = load(name)
    assert found.name == name and asked == [("me/eyes", cached)]
    assert_same(found, backbone)


def test_a_base_of_the_hub_is_named_by_its_hub_name_and_not_by_this_machines_cache(
    lm, vit, tmp_path, monkeypatch
):
    from wordsight.backbones import text_tower

    monkeypatch.setattr(text_tower, "find", lambda name, what: lm)
    make("some/llama", vit).save_pretrained(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved" / "text" / "tower.json").read_text())["base"]["name"] == "some/llama"
    )
    assert "base_model: [some/llama]" in (tmp_path / "saved" / "README.md").read_text()
    assert load(tmp_path / "saved").text.plain.name_or_path == "some/llama"


# An ordinary backbone


@pytest.mark.slow
def test_it_classifies_like_any_other(lm, vit, tmp_path, photos):
    make(lm, vit).save_pretrained(tmp_path / "saved")
    images = sorted(photos.glob("*/*.png"))
    labels = [image.parent.name for image in images]
    sentences = {name: [f"it is {name}", f"a {name} one"] for name in sorted(set(labels))}
    clf = wordsight.Classifier(
        backbone=str(tmp_path / "saved"),
        method="taskres",
        sentences=sentences,
        train={"epochs": 2, "min_steps": 4},
        template="a {}",
        device="cpu",
    ).fit(images, labels)
    scores = clf.predict_proba(images)
    assert scores.shape == (len(images), 3) and set(clf.predict(images)) <= set(labels)
    clf.save(tmp_path / "fitted")
    assert (wordsight.load(tmp_path / "fitted").predict_proba(images) == scores).all()
    assert clf.with_classes(["red", "orange"]).predict(images[:1])[0] in ("red", "orange")
