"""Image-text-to-text models: read strictly, they write about images; their parts serve a two_tower."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mllms import FAMILIES, write_mllm
from PIL import Image
from safetensors.torch import load_file, save_file
from standins import COLOURS, mostly_slow, paint

from wordsight.backbones import load_backbone
from wordsight.backbones.checkpoint import Place
from wordsight.backbones.generator import Turn, Writing
from wordsight.backbones.lm import load_lm
from wordsight.captioner import caption
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.fit import fit
from wordsight.fitted import open_generator
from wordsight.reader import read

BRIEF = Writing(max_new_tokens=4)
# Idefics 3 is what SmolVLM is made of
EACH = mostly_slow(FAMILIES, "llava", "qwen2_vl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each family; made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("mllms"), {}

    def folder(family, chat=False):
        key = f"{family}-{chat}"
        if key not in made:
            made[key] = write_mllm(family, root / key, chat)
        return made[key]

    return folder


def images(count=3):
    return [paint(colour, row, 20) for row, colour in enumerate(list(COLOURS.values())[:count])]


@pytest.mark.parametrize("family", EACH)
def test_each_family_captions_and_answers_alone_as_in_a_batch(folders, family):
    generator = open_generator(folders(family), device="cpu")
    seen = generator.see(images())
    prompts = [generator.captioning(seen[0]), generator.asking([Turn(seen[1], "what is it?")])]
    if family != "paligemma":  # which sees one image
        prompts.append(generator.asking([Turn(seen[1], "is it?", "no"), Turn(seen[2], "why is it?")]))
        prompts.append(generator.asking([Turn(None, "why is it?")]))
    together = generator.write(prompts, BRIEF)
    assert together == [generator.write([prompt], BRIEF)[0] for prompt in prompts]
    assert all(together) and (len(set(together)) > 1 or family == "paligemma")
    vectors = generator.encode_image(torch.stack([generator.preprocess(image) for image in images()]))
    assert vectors.shape == (3, generator.dim) and torch.allclose(vectors.norm(dim=1), torch.ones(3))
    alone = generator.encode_image(generator.preprocess(images()[1])[None])
    assert torch.allclose(vectors[1], alone[0], atol=1e-5) and not torch.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize("family", EACH)
def test_the_lm_inside_is_read_as_the_lm_that_it_is(folders, family):
    """That it gives the whole model's logits is looked at when it is read."""
    lm, tokenizer = load_lm(Place(folders(family), "LM", family), "decoder")
    whole = load_backbone(folders(family), device="cpu", text=False).model
    ids = tokenizer("a red wall", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs, ours = (one(input_ids=ids, attention_mask=ids > -1).logits for one in (whole, lm))
    assert torch.allclose(theirs, ours, atol=1e-4) and type(lm).__name__.endswith("ForCausalLM")
    assert not any("vision" in name for name, _ in lm.named_parameters())


@pytest.mark.slow
def test_a_chat_template_is_what_an_instruction_tuned_model_is_asked_through(folders):
    generator = open_generator(folders("llava", chat=True), device="cpu")
    image = images(1)[0]
    text, shown = generator._row(generator.asking([Turn(image, "is it?", "no"), Turn(image, "why?")]))
    short = "Answer with a word or two."
    assert text == (
        f"user: <image>is it? {short}\nassistant: no\nuser: <image>why? {short}\nassistant:"
    ) and shown == [image, image]
    assert generator._row(generator.captioning(image))[0].startswith("user: <image>Describe the image")
    plain = open_generator(folders("llava"), device="cpu")
    assert plain._row(plain.asking([Turn(image, "why?")]))[0] == "<image>Q: why? A:"
    own = open_generator(folders("paligemma"), device="cpu")
    assert own._row(own.asking([Turn(image, "why?")]))[0] == "<image>answer en why?"
    assert own._row(own.captioning(image))[0] == "<image>caption en"


@pytest.mark.slow
def test_drawn_tokens_depend_on_the_row_s_seed_alone(folders):
    generator = open_generator(folders("smolvlm"), device="cpu")
    prompts = [generator.captioning(image) for image in images()]
    how = Writing(max_new_tokens=6, temperature=1.0)
    together = generator.write(prompts, how, [5, 6, 7])
    assert together[1] == generator.write(prompts[1:2], how, [6])[0]
    assert together != generator.write(prompts, how, [8, 9, 10])


def changed(folder, tmp_path, part, drop=False):
    """A copy of a model's folder in which the first tensor of a part is another, or is not there."""
    copy = shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if part in name)
    tensors |= {} if drop else {name: tensors[name] + 1}
    kept = {key: value for key, value in tensors.items() if key != name or not drop}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_what_is_not_whole_is_refused(folders, tmp_path, lm, vit):
    folder = folders("llava")
    broken = changed(folder, tmp_path, "projector", drop=True)
    with pytest.raises(WordsightError, match=r"lacks .*projector.*nothing is filled with random"):
        open_generator(broken)
    shutil.copy(folder / "model.safetensors", broken)
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"image_token_index": 5}))
    with pytest.raises(
        WordsightError, match=r"'<image>' as token \d+, but its model reads images at token 5"
    ):
        open_generator(broken)
    (broken / "config.json").write_text(json.dumps(settings))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (broken / name).unlink()
    with pytest.raises(WordsightError, match=r"holds no preprocessor_config.json"):
        open_generator(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    shutil.copy(folder / "preprocessor_config.json", broken)
    with pytest.raises(WordsightError, match="a pickle, which is never opened"):
        open_generator(broken)
    for other in (lm, vit):
        with pytest.raises(
            WordsightError, match="has no image input, or writes nothing; give a run of limber"
        ):
            open_generator(other)
    with pytest.raises(WordsightError, match="an image-text-to-text model, whose texts have no vectors"):
        load_backbone(folder)


def test_prompts_that_cannot_be_read_are_told(folders):
    generator = open_generator(folders("paligemma"), device="cpu")
    assert generator.needs_image
    with pytest.raises(WordsightError, match="cannot read a text without an image"):
        generator.write([generator.asking([Turn(None, "why?")])], BRIEF)
    generator = open_generator(folders("llava"), device="cpu")
    with pytest.raises(WordsightError, match="do not fit into the 256 positions"):
        generator.write([generator.asking([Turn(images(1)[0], "why " * 70)])], BRIEF)


@pytest.mark.slow
def test_a_two_tower_takes_its_image_tower_and_its_lm(folders, photos, tmp_path):
    """CLAMP on both sides of one model; the run is a backbone, and the LM inside writes as before."""
    given = {"data": str(photos), "backbone": str(folders("llava")), "method": "two_tower", "device": "cpu"}
    own = {"text": str(folders("qwen2_vl")), "rank": 2, "prompts": 2, "heads": 2, "wrapper": "plain"}
    loop = {"max_steps": 2, "batch_size": 4, "warmup_steps": 1}
    run = fit(read(RunSettings, {**given, "out": str(tmp_path / "run")}, {"settings": own, "train": loop}))
    again = load_backbone(run.folder, device="cpu")
    assert again.encode_text(["a red wall"]).shape == (1, 16) and again.image.name.endswith("llava-False")
    base, tokenizer = load_lm(Place(folders("qwen2_vl"), "LM", "qwen"), "decoder")
    ids = tokenizer("a red", return_tensors="pt")["input_ids"]
    before = base.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist()
    assert again.text.generate_tokens([ids[0].tolist()], max_new_tokens=5)[0].tolist() == before


@pytest.mark.slow
def test_a_saved_copy_gives_the_same_vectors_and_the_lm_decides_none(folders, tmp_path):
    first = load_backbone(folders("smolvlm"), device="cpu", text=False)
    first.save_pretrained(tmp_path / "copy")
    again = load_backbone(tmp_path / "copy", device="cpu", text=False)
    assert again.image_fingerprint == first.image_fingerprint
    pixels = first.preprocess(images(1)[0])[None]
    assert torch.equal(first.encode_image(pixels), again.encode_image(pixels))
    for part, same in (("lm_head", True), ("vision_model", False)):
        (tmp_path / part).mkdir()
        model = changed(folders("smolvlm"), tmp_path / part, part)
        other = load_backbone(model, device="cpu", text=False)
        assert (other.image_fingerprint == first.image_fingerprint) is same


@pytest.mark.slow
def test_the_verbs_take_a_model(folders, photos, tmp_path, capsys):
    model, image = str(folders("smolvlm")), str(next((photos / "red").glob("*.png")))
    assert main(["ask", model, image, "what is it?", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(image)
    assert main(["caption", model, image, "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(image)
    rows = [f"{image},is it red?,yes,test", f"{image},why?,because,train"]
    (tmp_path / "q.csv").write_text("\n".join(["path,question,answer,split", *rows]))
    assert main(["eval", model, f"data={tmp_path}/q.csv", "--json"]) == 0
    (event,) = json.loads(capsys.readouterr().out)
    assert event["questions"] == 1 and {"accuracy", "blind"} <= event.keys()
    assert main(["eval", model]) == 2 and "say what to measure it on" in capsys.readouterr().err
    (tmp_path / "c.csv").write_text(f"path,caption\n{image},a red wall\n")
    assert main(["eval", model, f"data={tmp_path}/c.csv", "scorer=micro", "--json"]) == 0
    (event,) = json.loads(capsys.readouterr().out)
    assert event["scorer"] == "micro" and {"cider_d", "clip_score"} <= event.keys()
    for word, told in (("classes=base", "is of runs"), ("shots=2", "questions that are shown")):
        assert main(["eval", model, f"data={tmp_path}/c.csv", word]) == 2
        assert told in capsys.readouterr().err
    assert main(["ask", model, image, "why?", "--backbone", "x"]) == 2
    assert "brings its own image tower" in capsys.readouterr().err


def test_an_image_that_the_model_takes_no_such_of_is_skipped(folders, tmp_path):
    """Qwen's processor raises for sides more than 200:1 apart, which ended all others of the batch."""
    Image.new("RGB", (900, 3)).save(tmp_path / "wide.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "whole.png")
    captions = caption(str(folders("qwen2_vl")), [tmp_path], max_new_tokens=2)
    assert [Path(one.picture.name).name for one in captions] == ["whole.png"]
    (skipped,) = captions.skipped
    assert skipped["image"].endswith("wide.png") and "aspect ratio" in skipped["reason"]
