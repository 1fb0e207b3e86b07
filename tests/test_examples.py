"""What stands in examples/ runs: a method from outside, through fit, evaluation, prediction and a suite."""

from pathlib import Path

import pytest

import wordsight
from wordsight.config import RunSettings
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite
from wordsight.tasks import evaluate

NAME = "nearest_mean:NearestMean"


def test_a_method_from_outside_goes_everywhere(photos, backbone, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    settings = RunSettings(
        data=str(photos), method=NAME, shots=2, settings={"share": 0.7}, out=str(tmp_path / "r")
    )
    run = wordsight.fit(settings, backbone=backbone)
    (event,) = run.events("eval")
    assert (
        event["accuracy"] > 90
        and evaluate(run.folder, backbone=backbone)[0]["confusion"] == event["confusion"]
    )
    classifier = wordsight.load(run.folder, backbone=backbone)
    assert classifier.predict([str(photos / "red" / "0.png")]) == ["red"]
    asked = SuiteSettings(
        "few-shot", (NAME, "zero_shot"), (str(photos),), (1,), shots=(1,), out=str(tmp_path / "s")
    )
    assert NAME.partition(":")[2] in run_suite(asked, backbone=backbone)["markdown"]
    with pytest.raises(wordsight.WordsightError, match=r"settings\.shar"):
        wordsight.fit(data=str(photos), method=NAME, settings={"shar": 1})
