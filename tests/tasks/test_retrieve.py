"""Training a text tower on pairs, from settings to a run that is a backbone."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from standins import COLOURS, paint

from wordsight.backbones import lm as lms
from wordsight.backbones import load_backbone
from wordsight.backbones.verify import verify
from wordsight.batches import PairBatches
from wordsight.config import RunSettings, WordsightError
from wordsight.data.pairs import open_pairs
from wordsight.fit import fit
from wordsight.metrics import recall_at
from wordsight.reader import read
from wordsight.runs import Run
from wordsight.tasks import evaluate, retrieve

QUICK = {"epochs": 4, "min_steps": 0, "batch_size": 6, "warmup_steps": 2, "lr": 1e-2}
LITTLE = {"wrapper": "a {}.", "prompts": 3, "rank": 2, "heads": 2, "max_tokens": 40}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve images with captions, of which four are for testing; `red` and `green` images share captions."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [["path", "split", "caption_1", "caption_2"]]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(3):
            paint(colour, 100 * number + index).save(folder / f"{name}{index}.png")
            rows.append(
                [
                    f"{name}{index}.png",
                    "test" if index == 2 else "train",
                    f"{name} paint",
                    f"a wall in {name} {index}" if index else "",
                ]
            )
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def settings(data, eyes, lm, out, loop=None, **own):
    given = {
        "data": str(data),
        "backbone": str(eyes),
        "method": "two_tower",
        "template": "{}",
        "out": str(out),
        "device": "cpu",
    }
    return read(
        RunSettings,
        given,
        {"settings": {"text": str(lm), **LITTLE, **own}, "train": {**QUICK, **(loop or {})}},
    )


@pytest.fixture(scope="module")
def trained(table, tiny_clip, lm, tmp_path_factory):
    """A finished run for tests that only read it or measure it once more."""
    return fit(settings(table, tiny_clip, lm, tmp_path_factory.mktemp("trained") / "run"))


def tensors_of(folder):
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}/{name}": tensor for name, tensor in load_file(path).items()}
    return found


def test_pairs_come_from_captions_and_from_labels_and_are_mixed(table, photos):
    captioned = open_pairs(str(table))
    assert len(captioned) == 10 and captioned.captions[:2] == [
        ("red paint",),
        ("red paint", "a wall in red 1"),
    ]
    assert (
        len(open_pairs(str(table), "test")) == 5
        and open_pairs(str(table / "captions.csv")).captions == captioned.captions
    )
    both = open_pairs(f"{table}::{photos}", template="{}")
    assert len(both) == 10 + 18 and both.captions[10] == ("blue",)
    described = open_pairs(str(photos), sentences="clip7")
    assert len(described.captions[0]) == 8 and described.captions[0][0] == "a photo of a blue."


def test_classes_without_sentences_of_their_own_go_by_name_and_are_counted(photos, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"red": ["blood"], "Blue": ["sky"]}))
    pairs = open_pairs(str(photos), template="{}", sentences=str(tmp_path / "s.json"))
    assert (
        pairs.captions[0] == ("blue", "sky")
        and pairs.captions[6] == ("green",)
        and pairs.captions[12] == ("red", "blood")
    )
    assert any("1 of 3 classes" in note and "green" in note for note in pairs.notes)


@pytest.mark.parametrize(
    "own",
    [
        {},
        pytest.param({"train": "prompts"}, marks=pytest.mark.slow),
        pytest.param({"prompts_attend": "causal", "loss": "sigmoid"}, marks=pytest.mark.slow),
        {"prompts": 0, "front": 2, "pooling": "last", "train": "layernorms", "keep_generation": False},
        {
            "random": True,
            "shape": {"num_hidden_layers": 1},
            "prompts": 0,
            "pooling": "mean",
            "train": "all",
            "keep_generation": False,
        },
        pytest.param({"prompt_only_lora": True, "chunk": 2}, marks=pytest.mark.slow),
        pytest.param({"prompts": 0, "pooling": "mean", "train": "head", "depth": 2}, marks=pytest.mark.slow),
    ],
    ids=["clamp", "no-lora", "causal-sigmoid", "ln-prefix", "lit", "prompt-only", "frozen-mlp"],
)
def test_a_fitted_run_is_a_backbone_that_passes_its_checks(table, tiny_clip, lm, tmp_path, own):
    run = fit(settings(table, tiny_clip, lm, tmp_path / "run", {"epochs": 24, "lr": 3e-3}, **own))
    found = run.events("train")
    assert found[-1]["step"] == 24 and run.events("fit")[0]["captions"] == 10
    loss = "sigmoid" if own.get("loss") else "contrastive"
    assert found[-1][loss] < found[0][loss]
    figures = run.events("retrieval")[0]
    assert figures["images"] == 5 and set(figures["image_to_text"]) == {"recall@1", "recall@5", "recall@10"}
    backbone = load_backbone(run.folder, device="cpu")
    assert backbone.dim == 12 and backbone.encode_text(["red", "blue"]).shape == (2, 12)
    assert all(check.passed for check in verify(backbone.text).values())


def test_a_tower_of_random_weights_is_known_by_its_seed(table, tiny_clip, lm, tmp_path, monkeypatch):
    """The last bits of what is drawn differ between processors: a finished run is given back on another."""
    own = {"random": True, "shape": {"num_hidden_layers": 1}, "train": "all", "keep_generation": False}
    asked = settings(table, tiny_clip, lm, tmp_path / "run", {"epochs": 1}, prompts=0, pooling="mean", **own)
    done = fit(asked)
    drawn = lms._random

    def elsewhere(*given):
        made = drawn(*given)
        with torch.no_grad():
            next(made.parameters()).mul_(1.01)
        return made

    monkeypatch.setattr(lms, "_random", elsewhere)
    assert fit(asked).events("fit") == done.events("fit")


@pytest.mark.slow
def test_chunks_give_the_same_run_to_rounding(table, tiny_clip, lm, tmp_path):
    """By SGD: AdamW makes whole steps of rounding where a gradient is zero, and which way they go is the
    processor's.
    """
    loop = {"optimizer": "sgd", "lr": 0.1}
    runs = [
        fit(settings(table, tiny_clip, lm, tmp_path / str(chunk), loop, chunk=chunk, dropout=0.0))
        for chunk in (None, 2, 100)
    ]
    one, *others = (tensors_of(run.folder) for run in runs)
    assert all(
        torch.allclose(tensor, other[name], atol=1e-5) for other in others for name, tensor in one.items()
    )


@pytest.mark.slow
def test_a_teacher_is_distilled_and_its_width_may_differ(table, tiny_clip, lm, tmp_path):
    run = fit(settings(table, tiny_clip, lm, tmp_path / "run", teacher="micro", centre=True))
    assert "distillation" in run.events("train")[0]
    assert load_file(run.folder / "weights.safetensors")["image_mean"].abs().sum() > 0


@pytest.mark.slow
def test_its_own_start_teaches_nothing_new_at_first_and_needs_a_start(table, tiny_clip, lm, tmp_path):
    own = {"start": "ridge", "teacher": "start", "dropout": 0.0}
    losses = fit(settings(table, tiny_clip, lm, tmp_path / "run", **own)).events("train")
    assert abs(losses[0]["distillation"]) < 1e-5 < losses[-1]["distillation"]
    with pytest.raises(WordsightError, match=r"at a random start is nothing; set settings.start=ridge"):
        settings(table, tiny_clip, lm, tmp_path / "other", teacher="start")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(table, tiny_clip, lm, tmp_path, monkeypatch):
    unbroken = tensors_of(
        fit(settings(table, tiny_clip, lm, tmp_path / "one", loop={"save_seconds": 0})).folder
    )
    real, calls = PairBatches.batch, []

    def killed(self, epoch, index):
        calls.append(epoch)
        if len(calls) == 3:
            raise MemoryError
        return real(self, epoch, index)

    monkeypatch.setattr(PairBatches, "batch", killed)
    with pytest.raises(MemoryError):
        fit(settings(table, tiny_clip, lm, tmp_path / "two", loop={"save_seconds": 0}))
    state = load_file(tmp_path / "two" / "state" / "state.safetensors")
    assert not any(
        "embed_tokens" in name or "base_layer" in name for name in state
    )  # the frozen LM is not written every few seconds
    run = fit(settings(table, tiny_clip, lm, tmp_path / "two", loop={"save_seconds": 0}))
    assert calls[3] == 2  # from the step that was under way
    resumed = tensors_of(run.folder)
    assert unbroken.keys() == resumed.keys() and all(
        torch.equal(unbroken[name], resumed[name]) for name in unbroken
    )
    assert fit(settings(table, tiny_clip, lm, tmp_path / "two", loop={"save_seconds": 0})).finished


@pytest.mark.slow
def test_zero_shot_on_labelled_images_and_adapting_on_top(trained, photos, tmp_path):
    (result,) = evaluate(trained, data=str(photos))
    # six of 18 are in the table too, and were trained on
    assert result["event"] == "eval" and result["images"] == 12 and result["chance"] == pytest.approx(100 / 3)
    adapted = fit(
        read(
            RunSettings,
            {"data": str(photos), "backbone": str(trained.folder), "shots": 2, "out": str(tmp_path / "aape")},
        )
    )
    assert adapted.events("eval")[0]["images"] == 12
    with pytest.raises(WordsightError, match="it is a backbone"):
        Run.open(trained.folder).method()


def test_classes_of_one_name_can_be_trained_on_and_are_not_measured(photos, tiny_clip, lm, tmp_path, said):
    rows = [
        f"{photos / name / '0.png'},{label},{shown}"
        for label, (name, shown) in enumerate([("red", "crane"), ("blue", "crane"), ("green", "rose")])
    ]
    (tmp_path / "table.csv").write_text(
        "\n".join(["path,label,classname,split", *(f"{row},train" for row in rows), f"{rows[0]},test"]) + "\n"
    )
    run = fit(settings(tmp_path / "table.csv", tiny_clip, lm, tmp_path / "run"))
    assert run.finished and not run.events("eval") and any("names a class twice" in line for line in said)


@pytest.mark.slow
def test_a_changed_image_tower_is_refused(table, tiny_clip, lm, tmp_path):
    import shutil

    eyes = tmp_path / "eyes"
    shutil.copytree(tiny_clip, eyes)
    run = fit(settings(table, eyes, lm, tmp_path / "run"))
    tensors = load_file(eyes / "model.safetensors")
    tensors["visual_projection.weight"] += 1
    save_file(tensors, eyes / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WordsightError, match="has changed since"):
        load_backbone(run.folder, device="cpu")
    with pytest.raises(WordsightError, match="holds another run: image_fingerprint"):
        fit(settings(table, eyes, lm, run.folder))


def test_a_long_caption_is_counted(table, tiny_clip, lm, tmp_path, said):
    run = fit(settings(table, tiny_clip, lm, tmp_path / "run", max_tokens=12))
    assert run.events("fit")[0]["truncated_captions"] == 9 and any("lost their ends" in line for line in said)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"settings": {"chunk": 0}}, "settings.chunk=0 is not possible"),
        ({"settings": {"tau_d": 0}}, "settings.tau_d=0.0 is not possible"),
        (
            {"settings": {"train": "all", "keep_generation": False}, "dtype": "bfloat16"},
            "train=all trains the LM's own weights, and bfloat16 rounds small steps of them away; set",
        ),
        ({"settings": {"dim": 7}}, "settings.dim=7, but the image tower's vectors are 12 wide"),
        ({"settings": {"teachr": "micro"}}, "did you mean 'teacher'"),
        ({"settings": {"shape": {"n_embd": 8}}}, "settings.random=true"),
        ({"settings": {"random": True, "shape": {"hidden_sze": 8}}}, "did you mean 'hidden_size'"),
        ({"classes": "base"}, "learns from pairs"),
        ({"template": "photo"}, "it must hold it once"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_bad_settings_get_a_sentence(table, tiny_clip, lm, tmp_path, given, says):
    with pytest.raises(WordsightError, match=says):
        own = {"settings": {"text": str(lm), **LITTLE}}
        place = {"data": str(table), "backbone": str(tiny_clip), "method": "two_tower"}
        fit(read(RunSettings, place, {"out": str(tmp_path / "run")}, own, given))
    assert not (tmp_path / "run").exists()


def test_recall_counts_queries_with_something_right_among_the_first():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.1, 0.3], [0.1, 0.2, 0.3]])
    relevant = torch.tensor([[False, True, False], [True, True, False], [False, False, False]])
    assert (
        recall_at(similarity, relevant, 1) == 0
        and recall_at(similarity, relevant, 2) == 100
        and recall_at(similarity, relevant, 10) == 100
    )


def test_captions_that_images_share_are_right_for_each_of_them(trained):
    figures = trained.events("retrieval")[0]
    assert figures["captions"] == 10 and figures["distinct_captions"] == 10
    assert figures["text_to_image"]["recall@5"] == 100  # there are five images


def test_a_run_classifies_by_names_and_says_what_it_lacks(trained, photos):
    import wordsight

    classifier = wordsight.load(trained.folder, class_names=["red", "blue"])
    assert set(classifier.predict([str(photos / "red" / "0.png")])) <= {"red", "blue"}
    with pytest.raises(WordsightError, match="a backbone without classes of its own; name at least 2"):
        wordsight.load(trained.folder)


def test_nothing_marked_as_test_is_said(table, tiny_clip, lm, tmp_path, said):
    (tmp_path / "t.csv").write_text(
        "path,caption\n" + "\n".join(f"{table}/{name}0.png,{name}" for name in COLOURS) + "\n"
    )
    run = fit(settings(tmp_path / "t.csv", tiny_clip, lm, tmp_path / "run"))
    assert not run.events("retrieval") and any("nothing was measured" in line for line in said)


@pytest.mark.parametrize("key", ["text", "teacher"])
def test_a_tower_that_is_not_there_is_named_by_its_setting_and_leaves_nothing(
    table, tiny_clip, lm, tmp_path, key
):
    with pytest.raises(WordsightError, match=rf"settings\.{key}=nope: "):
        fit(settings(table, tiny_clip, lm, tmp_path / "run", **{key: "nope"}))
    assert not (tmp_path / "run").exists()


def test_a_report_shows_zero_shot_and_retrieval_of_runs(trained, photos, tmp_path):
    from wordsight.report import report

    evaluate(trained, data=str(photos))
    written = report([trained.folder], tmp_path / "r.html")
    assert (
        "**Retrieval**" in written["markdown"]
        and "i→t @1" in written["markdown"]
        and "→" in written["markdown"]
    )
    assert "Retrieval</h2>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_test_part_of_training_images_loses_no_run(table, tiny_clip, lm, tmp_path, said):
    lines = [f"{table}/{name}0.png,{name},{part}" for part in ("train", "test") for name in COLOURS]
    (tmp_path / "t.csv").write_text("path,caption,split\n" + "\n".join(lines) + "\n")
    run = fit(settings(tmp_path / "t.csv", tiny_clip, lm, tmp_path / "run"))
    assert run.finished and not run.events("retrieval") and "nothing is left to test on" in said.text
    with pytest.raises(WordsightError, match="nothing is left to test on"):
        evaluate(run, data=str(tmp_path / "t.csv"))


def test_recall_is_the_same_a_block_of_queries_at_a_time(monkeypatch):
    images, texts = (
        torch.randn(count, 6, generator=torch.Generator().manual_seed(count)) for count in (40, 90)
    )
    rows = [[place, place + 40, (7 * place) % 90] for place in range(40)]
    whole = retrieve.recalls(images, texts, rows)
    monkeypatch.setattr(retrieve, "AT_ONCE", 200)
    blocks = retrieve.recalls(images, texts, rows)
    assert (
        all(blocks[way] == pytest.approx(whole[way]) for way in whole)
        and whole["image_to_text"]["recall@5"] > 0
    )
