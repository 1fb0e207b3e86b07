"""Errors that need no model come before torch, which takes seconds to import."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from wordsight.cli import main
from wordsight.fit import fit
from wordsight.report import report
from wordsight.runs import Run

# commands that cannot be, and what is said of each
WRONG = {
    "fit data=gone/": "data='gone/' does not exist",
    "fit data=gone.csv": "data='gone.csv' does not exist",
    "fit": "setting 'data' is missing",
    "fit data=digits shot=16": "did you mean 'shots'?",
    "fit data=digits shots=some": "shots='some' is not a whole number",
    "fit data=digits shots=0": "shots=0 is not possible",
    "fit data=digits method=aap": "method 'aap' is not known (did you mean 'aape'",
    "fit data=digits sentences=gone.json": "sentences='gone.json' does not exist",
    "fit data=digits template=photo": "it must hold it once",
    "fit data=digits backbone=./gone": "backbone folder './gone' does not exist",
    "fit gone.yaml data=digits": "'gone.yaml' does not exist",
    "fit data=digits method=aape settings.widht=8": "'settings.widht' (did you mean 'width'?)",
    "fit data=digits method=aape settings.width=no": "settings.width='no' is not a whole number",
    "fit data=digits method=zero_shot settings.width=8": "unknown setting 'settings.width'; there are none",
    "fit data=digits method=coop train.epoch=3": "unknown setting 'train.epoch' (did you mean 'epochs'?)",
    "fit data=digits method=coop train.lr=-1": "train.lr=-1.0 is not possible",
    "fit data=digits method=two_tower settings.rnk=4": "'settings.rnk' (did you mean 'rank'?)",
    "fit data=digits method=two_tower settings.chunk=0": "settings.chunk=0 is not possible",
    "fit data=digits method=two_tower settings.layers=2 settings.compile=true": "settings.layers reads",
    "predict damaged one.jpg": "weights.safetensors is damaged: its content is not what was written",
    "eval damaged": "weights.safetensors is damaged",
    "predict older one.jpg": "was written in run format 1",
    "report damaged": "weights.safetensors is damaged",
    "report half older": "half",
    "report measured --out page.csv": "must name the HTML file",
    "report measured --reference gone": "gone",
    "fit --data photos": "fit takes settings as key=value, without dashes: data=photos",
    "predict gone one.jpg": "'gone' does not exist",
    "predict half one.jpg": "is not finished",
    "predict run gone.jpg": "'gone.jpg' does not exist (did you mean 'one.jpg'?)",
    "predict run one.jpg --unsure 2": "unsure=2.0 is no probability",
    "predict run one.jpg --unsure 0.5 --error 0.1": "give one of them",
    "predict run one.jpg --classes @gone.txt": "list of classes 'gone.txt' does not exist",
    "predict run one.jpg --sentences some.json": "--sentences describes the classes",
    "predict run one.jpg --top 0": "--top 0 names no class",
    "predict run one.jpg --max-pixels 0": "max_pixels=0 reads no image",
    "caption run one.jpg --csv run/captions-own.csv": "is a file of the run, which would be replaced",
    "ask run one.jpg Why? --csv one.jpg": "csv='one.jpg' is an image's name",
    "predict run one.jpg --csv one.jpg": "csv='one.jpg' is an image's name",  # as --csv *.jpg gives it
    "predict run one.jpg --topp 3": "--topp is no option of predict",
    "predict run one.jpg --csv run/config.yaml": "is a file of the run, which would be replaced",
    "predict run one.jpg --csv some.npz": "is a file of vectors, which would be replaced",
    "predict run list.csv --csv .": "csv='.' is a folder; give the name of a file in it",
    "predict run list.csv --csv ./list.csv": "csv='./list.csv' is read here, and would be replaced",
    "report run --csv run/metrics.jsonl": "csv='run/metrics.jsonl' is a file of the run",
    "report run --out run/weights.safetensors": "is a file of vectors",
    "eval half": "is not finished",
    "eval run data=gone/": "data='gone/' does not exist",
    "eval run classes=some": "classes='some' is not a choice",
    "report gone": "'gone' does not exist",
    "export gone out": "'gone' does not exist",
    "search gone/ dog": "data='gone/' does not exist",
    "search . --image gone.jpg": "'gone.jpg' does not exist",
    "caption gone one.jpg": "'gone' does not exist",
    "ask gone one.jpg why": "'gone' does not exist",
    "chat gone": "'gone' does not exist",
    "serve gone": "'gone' does not exist",
    "suite few-shots data=digits": "few-shots",
    "suite few-shot data=digits methods=aap": "method 'aap' is not known (did you mean 'aape'",
    "suite few-shot data=digits views=0": "views=0 is not possible",
    "suite few-shot data=digits template=photo": "it must hold it once",
    "suite few-shot data=digits train.foo=1": "unknown setting 'train.foo'",
    "suite zeroshot-24 data=digits train.lr=a": "train.lr='a' is not a number",
    "suite few-shot data=digits sentences=gone.json": "sentences='gone.json' does not exist",
    "fit data=digits unlabelled=gone/": "unlabelled=gone/: ",
    "audit run pool=gone/": "pool=gone/: ",
    "demo digit": "demo 'digit' is not known",
    "generate gone x": "'gone' does not exist",
    "verify gone": "'gone' does not exist",
    "join vision=./gone text=./gone out=o": "image encoder folder './gone' does not exist",
    "label . --classes a,A": "--classes names a class twice",
    "label . --classes a,b seed=x": "seed='x' is not a whole number",
    "label . --classes a,b method=aap": "method 'aap' is not known",
    "suite few-shot data=gone/": "data='gone/' does not exist",
    "show aap": "aap",
    "join vision=v text=t": "setting 'out' is missing",
    "join vision=v text=t out=o ridge=0": "ridge=0.0 is not possible",
    "join vision=v text=t out=o ridges=1": "unknown setting 'ridges'",
    "sentences data=gone/ model=m out=s.json": "data='gone/' does not exist",
    "sentences classes=cat model=m out=s.json temperature=-1": "temperature=-1.0 is not possible",
    "sentences classes=cat model=m out=s.json retry=3": "unknown setting 'retry'",
    "coverage gone.csv --classes gone.txt": "gone.txt",
}
ALL = """
import contextlib, io, json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, NoTorch())
from wordsight.cli import main
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    except AssertionError as error:
        code = str(error)
    print(json.dumps([command, code, said.getvalue()]))
"""


def fitted(folder, method="linear_probe", **given):
    """A finished run, of vectors."""
    folder.parent.mkdir(exist_ok=True)
    stream = np.random.default_rng(0)
    held = {"classes": np.array(["cat", "dog"]), "text": stream.normal(size=(2, 8))}
    for part in ("train", "test"):
        held |= {part: stream.normal(size=(8, 8)), f"{part}_label": np.arange(8) % 2}
    data = str(folder.parent / "vectors.npz")
    np.savez(data, **held)
    fit(data=data, method=method, out=str(folder), shots=4, **given)


@pytest.mark.parametrize("train", ["5", "abc", "[1, 2]", "true", "{epochs: 3}"])
def test_a_damaged_config_leaves_one_run_out(train, tmp_path):
    fitted(tmp_path / "run")
    fitted(tmp_path / "odd")
    config = tmp_path / "odd" / "config.yaml"
    config.write_text(config.read_text().replace("  train: null\n", f"  train: {train}\n"))
    assert len(report([tmp_path / "run", tmp_path / "odd"], tmp_path / "page.html")["skipped"]) == 1


def test_what_an_older_config_lacks_is_the_method_s_own(tmp_path):
    fitted(tmp_path / "run", method="clip_adapter", train={"epochs": 3})
    config = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    settings = Run.open(tmp_path / "run").settings
    content["settings"]["train"] = {"epochs": 3}
    del content["settings"]["words"]
    config.write_text(yaml.safe_dump(content))
    assert Run.open(tmp_path / "run").settings == settings
    fitted(tmp_path / "run", method="clip_adapter", train={"epochs": 3})
    assert report([tmp_path / "run"], tmp_path / "page.html")["skipped"] == []


def test_forms_that_train_and_that_do_not_are_rows_of_one_table(tmp_path):
    for name, given in {"b": {}, "a": {"form": "literal"}, "c": {"form": "literal"}}.items():
        more = {"train": {"epochs": 2 if name == "a" else 3}} if given else {}
        fitted(tmp_path / "runs" / name, method="aape", settings=given, **more)
    found = report([tmp_path / "runs"], tmp_path / "page.html")["markdown"]
    assert "form=literal train.epochs=2" in found and "form=literal train.epochs=3" in found
    assert "form=solved words=calibrated" in found


def test_a_link_that_leads_nowhere_does_no_harm(tmp_path):
    fitted(tmp_path / "run")
    (tmp_path / "run" / "notes").symlink_to("/nowhere")
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_a_report_is_written_without_torch(tmp_path):
    fitted(tmp_path / "run")
    asked = [sys.executable, "-c", ALL, json.dumps(["report run"])]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])[1] == 0, done.stdout
    assert (tmp_path / "report.html").is_file()


def test_what_is_wrong_is_said_without_torch(tmp_path):
    fitted(tmp_path / "run")
    (tmp_path / "list.csv").write_text("path\none.jpg\n")
    for name in ("half", "older", "damaged", "measured"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    (tmp_path / "half" / "finished.json").unlink()
    config = (tmp_path / "older" / "config.yaml").read_text()
    (tmp_path / "older" / "config.yaml").write_text(config.replace("format: 2", "format: 1"))
    with open(tmp_path / "damaged" / "weights.safetensors", "r+b") as file:
        file.write(b"\x01")
    (tmp_path / "one.jpg").write_bytes(b"")
    asked = [sys.executable, "-c", ALL, json.dumps(list(WRONG))]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [command for command, _, _ in told] == list(WRONG)
    wrong = {command: (code, said) for command, code, said in told if code != 2 or WRONG[command] not in said}
    assert not wrong, json.dumps(wrong, indent=1)
