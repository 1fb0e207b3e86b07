"""What the LM inside a two_tower run writes: with a real, very small LM that writes children's stories."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from standins import COLOURS, fill_folder, letters, paint
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

import wordsight
from wordsight.backbones import load_backbone
from wordsight.backbones.llm import LLM
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.verify import verify
from wordsight.config import RunSettings, WordsightError
from wordsight.fit import fit
from wordsight.reader import read
from wordsight.sentences import local, self_written
from wordsight.sentences.self_written import sentences_for
from wordsight.sentences.writers import write_sentences
from wordsight.settings import WriterSettings
from wordsight.tasks.generate import generate, open_tower
from wordsight.tower_settings import TowerSettings

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
    "she saw a big dog. The dog was very happy "
    "and wanted to play with Lily. Lily smiled and gave the dog a ball. They played together all day and "
    "had a lot of fun."
)


def fit_two_tower(data, eyes, lm, out, **own):
    own = {"text": str(lm), "rank": 4, **own}
    train = {"epochs": 4, "min_steps": 0, "batch_size": 6, "warmup_steps": 1, "lr": 1e-2}
    words = {
        "data": str(data),
        "backbone": str(eyes),
        "method": "two_tower",
        "out": str(out),
        "device": "cpu",
        "settings": own,
        "train": train,
    }
    return fit(read(RunSettings, words))


@pytest.fixture(scope="module")
def clamp(photos, tiny_clip, stories, tmp_path_factory):
    """A trained two_tower over the real LM: CLAMP's settings, with 24 prompts."""
    return fit_two_tower(photos, tiny_clip, stories, tmp_path_factory.mktemp("clamp") / "run").folder


# The converted LM


def test_the_converted_lm_finds_a_story_likely_and_tells_one(stories):
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(stories), AutoTokenizer.from_pretrained(stories)
    ids = tokenizer(STORY, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert math.exp(lm(input_ids=ids, labels=ids).loss) < 2.2
        backwards = torch.cat([ids[:, :1], ids[:, 1:].flip(1)], 1)
        assert math.exp(lm(input_ids=backwards, labels=backwards).loss) > 50
    start = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    written = tokenizer.decode(
        lm.generate(**start, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True
    )
    assert written.startswith("Once upon a time, there was a little girl named Lily. She loved to play")


def test_its_tokens_are_llama2c_s(stories, stories_converter, shared):
    tokenizer, pieces = (
        AutoTokenizer.from_pretrained(stories),
        stories_converter.read_pieces(shared / "data" / "stories260K" / "tok512.bin"),
    )
    random = np.random.default_rng(0)
    texts = [
        STORY,
        "",
        "a",
        "  two  spaces ",
        "café, naïve: “quoted” 你好 €5\n\nnew line\ttab",
        "Q: What?\nA:",
        "ababababa thethe",
    ]
    texts += ["".join(random.choice(list("abehtndo .A,é"), 60)) for _ in range(50)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == stories_converter.bpe_encode(text, pieces)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


# Writing


@pytest.mark.slow
def test_off_is_the_untouched_lm_on_is_not_and_both_is_one_batch_of_the_two(clamp, stories):
    tower = open_tower(str(clamp), device="cpu")
    assert all(check.passed for check in verify(tower).values())
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(stories).requires_grad_(False),
        AutoTokenizer.from_pretrained(stories),
    )
    start = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    ids = lm.generate(**start, max_new_tokens=30, do_sample=False)[0]
    off = generate(tower, "Once upon a time", "off", max_new_tokens=30)
    assert "Once upon a time" + off["off"] == tokenizer.decode(ids, skip_special_tokens=True)
    on = generate(tower, "Once upon a time", "on", max_new_tokens=30)
    assert on["on"] != off["off"]
    assert generate(tower, "Once upon a time", "both", max_new_tokens=30) == off | on
    assert generate(tower, "Once upon a", max_new_tokens=1) == {
        "off": " time"
    }  # with the space that this tokenizer drops at a beginning


@pytest.mark.slow
def test_a_seed_says_what_is_drawn(clamp):
    tower, state = open_tower(str(clamp), device="cpu"), torch.get_rng_state()
    one, again, other = (
        generate(tower, "One day", max_new_tokens=20, temperature=1.0, seed=seed)["off"] for seed in (1, 1, 2)
    )
    assert one == again != other and torch.equal(torch.get_rng_state(), state)
    both = generate(tower, "One day", "both", max_new_tokens=20, temperature=1.0, seed=1)
    assert both["off"] == one != both["on"]


@pytest.mark.slow
def test_what_cannot_be_written_is_told(clamp, photos, tiny_clip, stories, lm, tmp_path):
    tower = open_tower(str(clamp), device="cpu")
    for text, settings, says in (
        (" ", {}, "nothing to write on from"),
        ("a", {"adapters": "maybe"}, "the choices are on, off, both"),
        ("a", {"max_new_tokens": 0}, "give 1 or more"),
        (
            "a",
            {"max_new_tokens": 600},
            r"2 tokens and 600 new ones do not fit into the 512 positions of llama",
        ),
    ):
        with pytest.raises(WordsightError, match=says):
            generate(tower, text, **settings)
    with pytest.raises(WordsightError, match=r"'micro' is a CLIP, which has no language model"):
        open_tower("micro")
    words = {
        "data": str(photos),
        "backbone": str(tiny_clip),
        "method": "zero_shot",
        "shots": 2,
        "out": str(tmp_path / "zs"),
    }
    run = fit(read(RunSettings, words))
    with pytest.raises(
        WordsightError,
        match=r"is a run of zero_shot, a classifier without an LM of its own; give a two_tower run",
    ):
        open_tower(str(run.folder))
    whole = fit_two_tower(
        photos,
        tiny_clip,
        lm,
        tmp_path / "all",
        train="all",
        keep_generation=False,
        prompts=0,
        pooling="mean",
        wrapper="plain",
    ).folder
    with pytest.raises(WordsightError, match=r"train='all' changed the LM itself.*say adapters=on"):
        generate(open_tower(str(whole)), "a dog", "both", max_new_tokens=2)
    assert generate(open_tower(str(whole)), "a dog", "on", max_new_tokens=2).keys() == {"on"}
    with pytest.raises(
        WordsightError,
        match=r"was itself trained \(train=all, bias=none\): there is no untouched one to write sentences",
    ):
        sentences_for("self", ["red"], None, load_backbone(whole, device="cpu"))


def test_an_encoder_neither_generates_nor_writes_sentences(tiny_clip):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    bert = BertForMaskedLM(BertConfig(vocab_size=31, **sizes)).base_model
    tower = TextTower(
        bert, letters(), TowerSettings(kind="encoder", prompts=0, pooling="mean", wrapper="plain", dim=12)
    )
    with pytest.raises(
        WordsightError, match="bert was loaded as an encoder without a word head; it cannot generate"
    ):
        generate(tower, "a dog")
    backbone = LLM(
        load_backbone(tiny_clip, device="cpu"), tower, image_mean=None, logit_scale=10.0, name="made"
    )
    with pytest.raises(
        WordsightError,
        match=r"text tower of 'made' is bert, an encoder, which cannot write; have another LM write",
    ):
        sentences_for("self", ["red"], None, backbone)


# sentences=self


@pytest.fixture
def short(monkeypatch):
    """Two answers a question, of few tokens."""
    monkeypatch.setattr(
        self_written, "WriterSettings", partial(WriterSettings, per_question=2, max_tokens=12)
    )


def self_fit(data, backbone, out):
    words = {
        "data": str(data),
        "backbone": str(backbone),
        "sentences": "self",
        "shots": 2,
        "device": "cpu",
        "out": str(out),
    }
    return fit(read(RunSettings, words, {"train": {"epochs": 2, "min_steps": 10}}))


@pytest.mark.slow
def test_one_lm_writes_the_sentences_embeds_them_and_classifies(
    short, clamp, photos, stories, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "cache"))
    run = self_fit(photos, clamp, tmp_path / "run")
    assert run.settings.method == "aape" and run.events("eval")[0]["images"] == 12
    record = json.loads((run.folder / "sentences-self.json").read_text())
    assert record["model"] == str(stories) and set(record["sentences"]) == {"red", "green", "blue"}
    assert all(
        {"question", "seed", "text"} == set(entry)
        for group in record["sentences"].values()
        for entry in group
    )

    untouched = write_sentences(
        ["red", "green", "blue"],
        WriterSettings(str(stories), local=True, per_question=2, max_tokens=12, device="cpu"),
        tmp_path / "base.json",
    )
    assert run.sentences == {name: untouched[name] for name in run.sentences}, (
        "adapters off, it did not write what the untouched LM writes"
    )
    from_run = write_sentences(
        ["red"],
        WriterSettings(str(clamp), local=True, per_question=2, max_tokens=12, device="cpu"),
        tmp_path / "run.json",
    )
    assert from_run["red"] == untouched["red"]

    other = fill_folder(tmp_path / "more", ("red", "yellow"))
    asked = []
    real = local.asker
    monkeypatch.setattr(local, "asker", lambda *rest: lambda jobs: asked.extend(jobs) or real(*rest)(jobs))
    again = self_fit(photos, clamp, tmp_path / "again")
    assert asked == [] and again.sentences == run.sentences, "a class was written about twice"
    assert self_fit(other, clamp, tmp_path / "more-run").sentences["red"] == run.sentences["red"]
    assert asked and not any("red" in question for question, _ in asked)
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "elsewhere"))
    assert (
        self_fit(photos, clamp, tmp_path / "run").sentences == run.sentences
    )  # a second fit writes the same


@pytest.mark.slow
def test_the_estimator_asks_the_same_lm(short, clamp, tmp_path, monkeypatch):
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "cache"))
    images = [paint(COLOURS[name], seed) for name in ("red", "green") for seed in range(3)]
    classifier = wordsight.Classifier(
        str(clamp), sentences="self", device="cpu", train={"epochs": 1, "min_steps": 5}
    )
    classifier.fit(images, ["red"] * 3 + ["green"] * 3)
    assert len(classifier.fitted_.sentences["red"]) == 6 and len(classifier.predict(images)) == 6
    assert len(classifier.with_classes(["red", "purple"], "self").fitted_.sentences["purple"]) == 6
    classifier.save(tmp_path / "saved")
    assert wordsight.load(tmp_path / "saved").fitted_.sentences == classifier.fitted_.sentences


def test_a_backbone_without_an_lm_cannot_write_its_own_sentences(photos, tiny_clip, tmp_path):
    with pytest.raises(WordsightError, match=r"is a CLIP, which has no language model"):
        self_fit(photos, tiny_clip, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# lm-eval


@pytest.fixture(scope="module")
def plain_clamp(photos, tiny_clip, lm, tmp_path_factory):
    """A CLAMP over a random LM of letters, for which no real data is needed."""
    own = {"wrapper": "a {}.", "prompts": 3, "heads": 2}
    return fit_two_tower(photos, tiny_clip, lm, tmp_path_factory.mktemp("plain") / "run", **own).folder


CHOOSE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
WRITE = """\
task: tiny_writing
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["#"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # lm-eval's own
def test_lm_eval_reads_the_adapter_and_measures_the_lm_as_it_is_on_and_off(
    plain_clamp, lm, tmp_path, monkeypatch
):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (tmp_path / "tasks").mkdir()
    rows = [
        {"question": "a dog is", "choices": ["good", "a cat", "red"], "answer": 0},
        {"question": "snow is", "choices": ["hot", "white"], "answer": 1},
    ]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choose", CHOOSE), ("write", WRITE)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    tower = open_tower(str(plain_clamp), device="cpu")
    seen = {}
    for adapters, peft in (("off", ""), ("on", f",peft={plain_clamp / 'text' / 'adapter'}")):
        found = simple_evaluate(
            "hf",
            f"pretrained={lm}{peft},dtype=float32",
            ["tiny_choice", "tiny_writing"],
            task_manager=manager,
            device="cpu",
            batch_size=1,
            bootstrap_iters=0,
        )
        assert (
            0 <= found["results"]["tiny_choice"]["acc,none"] <= 1
            and "exact_match,none" in found["results"]["tiny_writing"]
        )
        seen[adapters] = [
            value for sample in found["samples"]["tiny_choice"] for (value, _), *_ in sample["resps"]
        ]
        ours = [
            likelihood(tower, row["question"], f" {choice}", adapters == "on")
            for row in rows
            for choice in row["choices"]
        ]
        assert seen[adapters] == pytest.approx(ours, abs=1e-4)
        written = [sample["resps"][0][0] for sample in found["samples"]["tiny_writing"]]
        assert written == [tower.generate(row["question"], adapters, max_new_tokens=6) for row in rows]
    assert max(abs(one - two) for one, two in zip(seen["on"], seen["off"])) > 1e-2


def likelihood(tower, text, answer, on):
    """log P(answer | text), by the LM inside the tower."""
    ids = tower.tokenizer(text + answer, return_tensors="pt")["input_ids"]
    begin = len(tower.tokenizer(text)["input_ids"])
    with torch.no_grad(), tower.adapters(on):
        chances = tower.plain(ids).logits[0, begin - 1 : -1].log_softmax(-1)
    return chances.gather(1, ids[0, begin:, None]).sum().item()
