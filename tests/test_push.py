"""Passing a run on: the card as the hub's own library reads it, and a run that goes to a hub and back."""

import json
import os
import subprocess
import sys

import pytest
from fake_hub import hub
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

import wordsight
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.export import export
from wordsight.model_card import Part
from wordsight.model_card.metadata import front
from wordsight.push import push
from wordsight.runs import Run


@pytest.fixture(scope="module")
def run(photos, tiny_clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "colours"
    given = {"data": str(photos), "backbone": str(tiny_clip), "shots": 2, "device": "cpu", "out": str(out)}
    return wordsight.fit(**given, method="tip_adapter").folder


@pytest.mark.slow
def test_the_card_is_read_by_the_hub_s_own_library(run, tmp_path):
    folder = export(run, tmp_path / "shared", licence="apache-2.0")
    card = ModelCard.load(folder / "README.md")
    data, last = card.data, Run.open(run).events("eval")[-1]
    assert (data.library_name, data.license) == ("wordsight", "apache-2.0")
    assert (data.pipeline_tag, data.metrics) == ("image-classification", ["accuracy"])
    (found,) = data.eval_results
    assert isinstance(found, EvalResult) and found.metric_type == "accuracy"
    assert found.metric_value == round(last["accuracy"], 2) and found.dataset_split == "test"
    name, again = model_index_to_eval_results(metadata_load(folder / "README.md")["model-index"])
    assert name == "shared" and again == data.eval_results
    for section in ("## Figures", "## Data", "## Intended use and limits", "## Licence", "red"):
        assert section in card.text
    with Image.open(folder / "figures.png") as picture:
        assert min(picture.size) > 100
    assert "figures.png" in card.text and str(run.parent) not in card.content


@pytest.mark.parametrize(
    "stated, given, told",
    [
        (("mit", "mit"), None, "license: mit\n"),
        (("mit", ""), None, "license: other\n"),
        (("mit", "llama3"), None, "license: other\n"),
        (("mit", "llama3"), "cc-by-4.0", "license: cc-by-4.0\n"),
    ],
)
def test_one_licence_is_named_where_it_is_the_parts(run, stated, given, told):
    parts = [Part(f"part {place}", "", one, one) for place, one in enumerate(stated)]
    assert told in front(Run.open(run), "it", parts, [], given)


@pytest.mark.slow
def test_a_run_goes_to_a_hub_and_comes_back(run, photos, tmp_path):
    image = str(next(photos.rglob("*.png")))
    with hub() as (address, kept):
        outside = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": "secret"}

        def ask(*words, **more):
            asked = [sys.executable, "-m", "wordsight", *map(str, words)]
            return subprocess.run(asked, env=outside | more, capture_output=True, text=True)

        refused = ask("push", run, "me/colours", HF_TOKEN="wrong")
        assert refused.returncode == 2 and "hf auth login" in refused.stderr, refused.stderr
        assert not kept.repositories
        done = ask("push", run, "me/colours", "--licence", "mit")
        assert done.returncode == 0 and "hf:me/colours" in done.stdout, done.stderr
        assert {"README.md", "figures.png", "config.yaml"} <= kept.repositories["me/colours"].keys()
        here, there = ask("predict", run, image), ask("predict", "hf:me/colours", image)
        assert there.returncode == 0 and there.stdout == here.stdout, there.stderr
        code = f"import wordsight; print(wordsight.load('hf:me/colours').predict(['{image}'])[0])"
        loaded = subprocess.run([sys.executable, "-c", code], env=outside, capture_output=True, text=True)
        assert loaded.stdout.strip() in here.stdout, loaded.stderr
        table, gone = ask("report", "hf:me/colours"), ask("report", "hf:me/gone")
        assert table.returncode == 0 and "tip_adapter" in table.stdout, table.stderr
        assert gone.returncode == 2 and "hf:me/gone is not on the hub, or is private" in gone.stderr


@pytest.mark.slow
def test_a_backbone_that_was_fitted_goes_to_a_hub_and_comes_back(tmp_path):
    given = {"data": "digits", "backbone": "micro", "settings": {"text": "micro_lm"}, "device": "cpu"}
    out = wordsight.fit(method="two_tower", train={"max_steps": 2}, out=str(tmp_path / "tower"), **given)
    with hub() as (address, kept):
        outside = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": "secret"}

        def ask(*words):
            asked = [sys.executable, "-m", "wordsight", *words]
            return subprocess.check_output(asked, env=outside, text=True, cwd=tmp_path)

        ask("push", str(out.folder), "me/tower")
        card = kept.repositories["me/tower"]["README.md"].decode()
        assert "# hf:me/tower\n" in card and 'load_backbone("hf:me/tower")' in card
        here, there = ask("eval", "tower", "--json"), ask("eval", "hf:me/tower", "--json")
        assert json.loads(there)[0]["accuracy"] == json.loads(here)[0]["accuracy"]
        (cached,) = tmp_path.glob("hub/*/snapshots/*/metrics.jsonl")
        assert cached.read_bytes() == kept.repositories["me/tower"]["metrics.jsonl"]
        assert not list(cached.parent.glob("predictions-*"))
        assert ask("generate", "hf:me/tower", "two") == ask("generate", "tower", "two")


def test_what_cannot_be_pushed_is_told(run, capsys):
    with pytest.raises(WordsightError, match="owner/name"):
        push(run, "colours")
    for name in ("not a name", "./out", "../runs"):
        assert main(["push", str(run), name]) == 2 and "owner/name" in capsys.readouterr().err
