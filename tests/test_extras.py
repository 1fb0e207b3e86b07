"""What `pip install wordsight` needs not bring: fitting and predicting without it, and what is said then."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import wordsight
from wordsight.extras import is_there, missing, needed
from wordsight.files import WordsightError

SETTINGS = Path(wordsight.__file__).parents[2] / "pyproject.toml"
# what only extras bring, by the names of their modules
ONLY_EXTRAS = (
    "accelerate",
    "ahocorasick",
    "cleanlab",
    "datasets",
    "fastapi",
    "gguf",
    "inflect",
    "matplotlib",
    "num2words",
    "onnx",
    "onnxruntime",
    "pandas",
    "peft",
    "prometheus_client",
    "pyarrow",
    "ray",
    "simplemma",
    "uvicorn",
)
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class WithoutExtras(PathFinder):  # as if they were not installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ONLY_EXTRAS} else super().find_spec(name, path, target)

sys.meta_path = [WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path]
from wordsight.cli import main
"""
WHOLE_WAY = """
run = ["fit", "data=digits", "backbone=micro", "shots=1", "sentences=digits", "out=run"]
for words in (run, ["predict", "run", "one.png"], ["eval", "run"], ["report", "run"]):
    assert main(words) == 0, words
assert "wordsight[report]" in open("report.html").read()
import wordsight
wordsight.load("run")
assert main(["export", "run", "exported"]) == 0
refused = [["serve", "run"], ["label", ".", "--classes", "a,b"], ["audit", "run"]]
refused += [["export", "run", "g", "--onnx"]]
for words in refused:
    assert main(words) == 2, words
"""
WITHOUT_LMS = """
import sys
from importlib.machinery import PathFinder

class WithoutPeft(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "peft" else super().find_spec(name, path, target)

sys.meta_path = [WithoutPeft if finder is PathFinder else finder for finder in sys.meta_path]
import wordsight.audit, wordsight.estimator, wordsight.labelling.app, wordsight.onnx, wordsight.serve.app
"""


def python(code, folder):
    return subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_classifying_needs_no_extra(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    done = python(WHOLE_WAY, tmp_path)
    assert done.returncode == 0, done.stderr
    for extra in ("serve", "audit", "onnx"):
        assert f"wordsight[{extra}]" in done.stderr


@pytest.mark.slow
def test_serving_auditing_and_graphs_need_no_language_model(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_LMS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, extra",
    [
        (["fit", "method=two_tower", "data=digits", "backbone=micro", "settings.text=micro_lm"], "lm"),
        (["fit", "data=table.parquet", "backbone=micro"], "datasets"),
        (["fit", "data=digits", "backbone=micro", "engine=ray"], "ray"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, words, extra):
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    done = python(f"sys.exit(main({words}))", tmp_path)
    assert done.returncode == 2 and f'pip install "wordsight[{extra}]"' in done.stderr, done.stderr


def test_one_sentence_for_all():
    said = r'captions needs the package no_such_package, .*"wordsight\[lm\]"'
    with pytest.raises(WordsightError, match=said), needed("lm", "captions"):
        import no_such_package  # noqa: F401
    assert is_there("json") and not is_there("no_such_package") and "[ray]" in missing("ray", "a", "b")


def test_every_extra_that_is_named_exists_and_all_has_them():
    extras = tomllib.loads(SETTINGS.read_text())["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    listed = set(everything.partition("[")[2].rstrip("]").split(","))
    # chunks needs a model beside, eval is for researchers, the others are for whoever works on the project
    assert listed == extras.keys() - {"all", "dev", "docs", "chunks", "eval"}
