"""The demos, cut to a few runs: they fit, resume, and say what to try next."""

import numpy as np
import pytest

from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.data.pairs import open_pairs
from wordsight.demo import aape as module
from wordsight.demo import demo
from wordsight.demo.aape import runs_of
from wordsight.demo.clamp import GLYPHS, MICRO_LM

CUT = {"shots": (1,), "seeds": (1,), "methods": ("zero_shot", "linear_probe", "aape")}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo("aape", folder, show=False, **CUT)


@pytest.mark.slow
def test_it_fits_all_and_writes_a_report(first):
    folder, result = first
    assert result["fitted"] == len(result["runs"]) == 6
    assert (
        (folder / "report.html").is_file()
        and (folder / "report.csv").is_file()
        and (folder / "digit.png").is_file()
    )
    zero, probe, aape = result["rows"]
    assert float(zero["all"]) > 50 and float(aape["all"]) > 50 and probe["H"] == "–" and float(aape["H"]) > 50


@pytest.mark.slow
def test_a_second_call_fits_nothing_and_shows_the_same(first, capsys):
    folder, result = first
    again = demo("aape", folder, **CUT)
    assert again["fitted"] == 0 and [row["H"] for row in again["rows"]] == [
        row["H"] for row in result["rows"]
    ]
    shown = capsys.readouterr().out
    assert all(len(line) <= 110 for line in shown.splitlines() if str(folder) not in line)
    assert f"wordsight predict {folder / 'aape-1shot-all-seed1'}" in shown
    words = " ".join(shown.split())  # it is wrapped
    assert "0 of 6 runs fitted now" in words and "On the five digits without labels" in words


@pytest.mark.slow
def test_a_run_without_its_figures_is_shown_without_them(first, capsys):
    folder, _ = first
    events = folder / "aape-1shot-base-seed1" / "metrics.jsonl"
    kept = events.read_text()
    events.write_text("")
    assert [row["H"] for row in demo("aape", folder, **CUT)["rows"]][2] == "–"
    assert "On the five" not in capsys.readouterr().out
    events.write_text(kept)


def test_methods_without_labels_are_fitted_once(tmp_path):
    plan = list(runs_of(tmp_path, ("zero_shot", "aape"), (1, 4), (1, 2)))
    assert (
        len(plan) == 2 + 8
        and len({settings.out for settings in plan}) == len(plan)
        and not any(settings.flip for settings in plan)
    )


@pytest.mark.slow
def test_an_interrupted_demo_goes_on(tmp_path, monkeypatch):
    fit, calls = module.fit, []

    def interrupted(settings, **given):
        calls.append(settings)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(settings, **given)

    monkeypatch.setattr(module, "fit", interrupted)
    cut = CUT | {"methods": ("zero_shot", "linear_probe")}
    with pytest.raises(KeyboardInterrupt):
        demo("aape", tmp_path / "out", show=False, **cut)
    assert demo("aape", tmp_path / "out", show=False, **cut)["fitted"] == 2


# -- CLAMP

SHORT = {"towers": ("clamp", "random-lm"), "epochs": 2}


@pytest.fixture(scope="module")
def clamp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clamp") / "out"
    return folder, demo("clamp", folder, show=False, **SHORT)


@pytest.mark.slow
def test_clamp_learns_from_letters_alone_and_is_tested_on_digits(clamp):
    folder, result = clamp
    pairs = open_pairs(str(folder / "letters.parquet"))
    assert len(pairs) == 52 * 24 and not any("digit" in text for texts in pairs.captions for text in texts)
    assert result["fitted"] == 2 and [row["chance"] for row in result["rows"]] == [10.0, 10.0]
    assert result["rows"][0]["accuracy"] > 15, "even the start, before any training, is above chance"


@pytest.mark.slow
def test_clamp_keeps_what_the_lm_writes(clamp):
    folder, result = clamp
    assert result["passed"] and len(result["checks"]) > 5 and all(result["checks"].values())
    assert all(line["before"] == line["off"] and line["before"].strip() for line in result["written"])
    page = (folder / "report.html").read_text()
    assert (
        "What the LM writes" in page
        and "adapters off" in page
        and (folder / "report.csv").read_text().count("\n") == 3
    )


@pytest.mark.slow
def test_a_second_call_of_clamp_fits_nothing_and_shows_the_same(clamp, capsys):
    folder, result = clamp
    again = demo("clamp", folder, **SHORT)
    assert again["fitted"] == 0 and again["rows"] == result["rows"]
    shown = capsys.readouterr().out
    assert all(len(line) <= 110 for line in shown.splitlines() if str(folder) not in line)
    assert (
        f"wordsight verify {folder / 'clamp'}" in shown
        and "the same, token for token" in shown
        and "0 of 2 runs fitted now" in shown
    )


def test_a_demo_that_is_none_is_refused_with_the_nearest(capsys):
    with pytest.raises(WordsightError, match=r"'clmap' is not known.*did you mean 'clamp'.*aape, clamp"):
        demo("clmap")
    assert main(["demo", "aaep"]) == 2 and "did you mean 'aape'" in capsys.readouterr().err


def test_the_bundled_models_are_small_and_speak_of_the_same_glyphs():
    assert sum(file.stat().st_size for file in MICRO_LM.iterdir()) < 2e6 and GLYPHS.stat().st_size < 1e5
    with np.load(GLYPHS) as glyphs:
        assert (
            glyphs["images"].shape == (62 * 24, 8, 8)
            and glyphs["images"].max() <= 16
            and len(set(glyphs["names"].tolist())) == 62
        )
