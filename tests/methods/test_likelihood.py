"""A generative model is asked which class an image shows: by likelihood, constrained, or free to answer."""

import json

import numpy as np
import pytest
import torch
from mllms import write_mllm

from wordsight.asked import Asked
from wordsight.backbones.scoring import Tree
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.estimator import load
from wordsight.export import export
from wordsight.files import csv_rows, plain_name
from wordsight.fit import fit
from wordsight.fitted import open_generator
from wordsight.methods.likelihood import Likelihood, answer_tokens, plain
from wordsight.prediction import predict
from wordsight.reader import read
from wordsight.report import report
from wordsight.runs import Run
from wordsight.settings import LikelihoodSettings
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite
from wordsight.tasks import evaluate

NAMES = ("blue", "green", "red")  # of `photos`


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write_mllm("llava", tmp_path_factory.mktemp("models") / "llava", chat=True)


@pytest.fixture(scope="module")
def generator(llava):
    return open_generator(llava, device="cpu")


@pytest.fixture(scope="module")
def run(photos, llava, tmp_path_factory):
    return asked(photos, llava, tmp_path_factory.mktemp("run") / "run")


def asked(photos, llava, out, **own):
    given = {"data": str(photos), "method": "likelihood", "shots": 2, "out": str(out), "device": "cpu"}
    return fit(read(RunSettings, given, {"settings": {"model": str(llava), **own}}))


def images(photos, count=3):
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted(photos.glob("*/*.png"))[:count]]


def scores(generator, seen, shown=(), mapper=None, names=NAMES, **own):
    return Likelihood(generator, LikelihoodSettings(**own), names, shown, mapper).scores(seen)


def test_a_run_predicts_what_the_mean_of_equation_11_says(run, photos, generator):
    rows = csv_rows((run.folder / "predictions-all.csv").read_text())
    pictures = [str(photos / row["image"]) for row in rows]
    seen = generator.see(images_at(pictures))
    lm = generator.scored_by
    for place in (0, len(rows) - 1):
        prompt = generator.captioning(seen[place])
        texts = answer_tokens(lm.tokenizer, generator.tail(prompt), [f"A photo of {name}" for name in NAMES])
        means = [score_alone(generator, prompt, text) / len(text) for text in texts]
        assert rows[place]["predicted"] == NAMES[int(np.argmax(means))]
        chance = torch.tensor(means).softmax(0).max()
        assert float(rows[place]["probability"]) == pytest.approx(float(chance), abs=1e-3)
    (event,) = run.events("eval")
    assert event["images"] == len(rows) == 12 and event["answers"] == "likelihood"


def images_at(paths):
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in paths]


def score_alone(generator, prompt, ids):
    """One text in a pass of its own, image and all."""
    text, pictures = generator._row(prompt)
    inputs = dict(generator._inputs([text], [pictures]))
    length, more = inputs["input_ids"].shape[1], torch.tensor([ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        found = generator.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
    return float(found[range(len(ids)), ids].sum())


@pytest.mark.slow
def test_predicting_asks_again_and_takes_other_classes(run, photos, capsys):
    rows = csv_rows((run.folder / "predictions-all.csv").read_text())
    pictures = [str(photos / row["image"]) for row in rows[:4]]
    answers = predict(run.folder, pictures)
    for answer, row in zip(answers, rows):
        ((name, chance),) = answers.best(answer)
        assert name == row["predicted"] and chance == pytest.approx(float(row["probability"]), abs=1e-4)
    assert main(["predict", str(run.folder), pictures[0], "--classes", "sky,grass,a red wall", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    assert found["classes"][0]["class"] in ("sky", "grass", "a red wall")
    assert main(["predict", str(run.folder), pictures[0], "--explain"]) == 2
    assert "no sentence explains what it says" in capsys.readouterr().err
    assert main(["predict", str(run.folder), pictures[0], "--max-pixels", "9"]) == 2
    assert "none of 1 images could be read" in capsys.readouterr().err


@pytest.mark.parametrize("own", [{}, {"score": "sum", "end": True}, {"by": "constrained"}, {"prior": 0.5}])
def test_scores_depend_neither_on_the_batch_nor_on_the_order_of_classes(generator, photos, own):
    seen = generator.see(images(photos))
    whole = scores(generator, seen, **own).values
    alone = torch.cat([scores(generator, [one], **own).values for one in seen])
    back = scores(generator, seen, names=NAMES[::-1], **own).values
    assert torch.allclose(whole, alone, atol=1e-4) and torch.allclose(whole, back.flip(1), atol=1e-4)
    batched = scores(generator, seen, batch=2, **own).values
    assert torch.allclose(whole, batched, atol=1e-4) and whole.std() > 0.01


def test_what_the_model_says_anyway_is_taken_away(generator, photos):
    seen = generator.see(images(photos))
    plainly, all_of_it = scores(generator, seen).values, scores(generator, seen, prior=1.0).values
    half = scores(generator, seen, prior=0.5).values
    taken = plainly - all_of_it
    assert torch.allclose(taken[0], taken[1], atol=1e-4), "the same of each image"
    assert torch.allclose(half, (plainly + all_of_it) / 2, atol=1e-4)
    blind = generator.captioning(None)
    text = answer_tokens(generator.scored_by.tokenizer, generator.tail(blind), ["A photo of blue"])[0]
    assert float(taken[0, 0]) == pytest.approx(score_alone(generator, blind, text) / len(text), abs=1e-4)


def test_constrained_answers_are_classes_with_probabilities(generator, photos):
    seen = generator.see(images(photos))
    found = scores(generator, seen, by="constrained").values
    assert torch.allclose(found.exp().sum(1), torch.ones(3), atol=1e-4)


def test_free_answers_are_mapped_to_the_nearest_class(generator, photos, backbone, monkeypatch):
    seen = generator.see(images(photos))
    said = iter(["The Green.", "a photo of blue\nand more", "something reddish"])
    monkeypatch.setattr(generator, "write", lambda prompts, how: [next(said) for _ in prompts])
    own = LikelihoodSettings(by="free", mapper="words", answer="a photo of {}")
    found = Likelihood(generator, own, NAMES, (), backbone).scores(seen)
    assert found.listed == [True, True, False]
    assert found.said == ["The Green.", "a photo of blue", "something reddish"]
    assert [NAMES[row] for row in found.values.argmax(1)[:2]] == ["green", "blue"]
    near = backbone.encode_text(["something reddish"]) @ backbone.encode_text(NAMES).T
    assert torch.allclose(found.values[2] / 100, near[0], atol=1e-5)
    assert plain(" A Golden_retriever. ") == "golden retriever"


@pytest.mark.slow
def test_examples_are_shown_kept_with_the_run_and_not_counted(photos, llava, tmp_path, said):
    run = asked(photos, llava, tmp_path / "run", examples=2, order=2, question="what?")
    again = Asked.open(Run.open(run.folder))
    assert len(again.shown) == 2 and len({name for _, name in again.shown}) == 2
    assert [answer for _, answer in again.method.shown] != [f"A photo of {name}" for _, name in again.shown]
    path = next(photos.glob("*/*.png"))
    (one,) = predict(run.folder, [str(path)])
    (other,) = predict(asked(photos, llava, tmp_path / "none", question="what?").folder, [str(path)])
    assert not np.allclose(one.probabilities, other.probabilities)
    with pytest.raises(WordsightError, match="examples=7, but the data has 6 labelled images"):
        asked(photos, llava, tmp_path / "more", examples=7)
    assert not (tmp_path / "more").exists()


@pytest.mark.slow
def test_a_suite_compares_it_with_what_compares_vectors(photos, llava, tiny_clip, tmp_path):
    (tmp_path / "asked.yaml").write_text(f"method: likelihood\nsettings: {{model: {llava}}}\n")
    given = {"suite": "few-shot", "shots": (1,), "seeds": (1, 2), "device": "cpu", "jobs": 1}
    given |= {"data": (str(photos),), "backbone": str(tiny_clip), "out": str(tmp_path / "suite")}
    methods = ("linear_probe", str(tmp_path / "asked.yaml"))
    found = run_suite(SuiteSettings(**given, methods=methods, sentences="clip7"))
    assert not found["failed"] and "| asked " in found["markdown"]
    folders = sorted(path.parent.name for path in (tmp_path / "suite").glob("*/*/finished.json"))
    assert [name for name in folders if name.startswith("asked")] == [
        "asked-1shot-seed1",
        "asked-1shot-seed2",
    ]
    unnamed = given | {"backbone": "auto", "out": str(tmp_path / "none"), "methods": ("likelihood",)}
    with pytest.raises(WordsightError, match="likelihood asks a model: name one, such as settings"):
        run_suite(SuiteSettings(**unnamed))


def test_other_data_is_measured_by_its_own_classes(run, photos):
    (event,) = evaluate(run, data=str(photos), classes="base")
    assert tuple(event["class_recall"]) == NAMES[:2] and event["images"] == 8


def test_a_question_lists_the_classes_in_the_order_asked_for(generator):
    own = {"question": "Which of {classes}?"}
    first = Likelihood(generator, LikelihoodSettings(**own), NAMES).question
    assert first == f"Which of {', '.join(NAMES)}?"
    other = Likelihood(generator, LikelihoodSettings(**own, order=3), NAMES).question
    assert other != first and sorted(other) == sorted(first)


def test_answers_are_cut_as_they_stand_behind_the_prompt(generator):
    tokens = generator.scored_by.tokenizer
    (behind,) = answer_tokens(tokens, "Q: what is it? A:", ["red"])
    assert behind == tokens(" red", add_special_tokens=False)["input_ids"]
    (fresh,) = answer_tokens(tokens, "assistant\n", ["red"])
    assert fresh == tokens("red", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("red", "Red"), "classes 'red' and 'Red' are the same tokens"),
        (("red", " "), "class name ' ' is no token"),
    ],
)
def test_class_names_that_nothing_tells_apart_are_refused(generator, photos, names, said):
    with pytest.raises(WordsightError, match=said):
        scores(generator, generator.see(images(photos, 1)), names=names)


def test_a_question_beyond_the_context_is_refused(generator, photos):
    many = [f"{first}{second} of very many" for first in "abcdef" for second in "abcdef"]
    with pytest.raises(WordsightError, match="which do not fit into the 256 positions"):
        scores(generator, generator.see(images(photos, 1)), names=many, question="Which of {classes}?")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"answer": "a photo"}, "holds {} 0 times"),
        ({"prior": 2.0}, "settings.prior=2.0 is from 0 to 1"),
        ({"prior": 0.5, "by": "constrained"}, "taken from likelihoods"),
        ({"by": "free"}, "settings.by=free and settings.mapper go together"),
        ({"batch": 0}, "settings.batch=0 scores nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(own, said):
    with pytest.raises(WordsightError, match=said):
        LikelihoodSettings(**own)


def test_a_model_that_sees_nothing_and_one_that_was_replaced_are_refused(photos, lm, run, tmp_path):
    with pytest.raises(WordsightError, match="no image input"):
        asked(photos, lm, tmp_path / "lm")
    assert not (tmp_path / "lm").exists()
    other = write_mllm("smolvlm", tmp_path / "smolvlm")
    with pytest.raises(WordsightError, match="is not the model that"):
        Asked.open(run, str(other))
    with pytest.raises(WordsightError, match="asks a model about images"):
        load(run.folder)
    with pytest.raises(WordsightError, match="asks a model and has nothing of its own to export"):
        export(run.folder, tmp_path / "exported")
    with pytest.raises(WordsightError, match="asks a model: name one, such as settings"):
        fit(RunSettings(str(photos), method="likelihood", shots=2))


def test_the_tree_of_the_class_names_is_small():
    texts = [[1, 2, 3, place] for place in range(100)]
    tree = Tree.of(texts)
    assert len(tree.inner) == 3, "three states say how likely each of a hundred names is"


def test_a_refused_question_leaves_no_folder(photos, llava, tmp_path):
    with pytest.raises(WordsightError, match="do not fit into the 256 positions"):
        asked(photos, llava, tmp_path / "run", question="which? " * 60)
    assert not (tmp_path / "run").exists()


def test_a_report_names_the_model_that_was_asked(run, llava, tmp_path):
    made = report([run.folder], tmp_path / "r.html")
    assert plain_name(str(llava)) in made["markdown"] or str(llava) in (tmp_path / "r.csv").read_text()
    assert "clip-vit-base-patch16" not in (tmp_path / "r.csv").read_text()
