"""The demo, cut to a few runs: it fits, resumes, and says what to try next."""

import pytest

from wordsight import demo as module
from wordsight.demo import demo, runs_of
from wordsight.runs import Run

CUT = {"shots": (1,), "seeds": (1,), "methods": ("zero_shot", "linear_probe", "aape")}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo(folder, show=False, **CUT)


def test_it_fits_all_and_writes_a_report(first):
    folder, result = first
    assert result["fitted"] == len(result["runs"]) == 6
    assert (folder / "report.html").is_file() and (folder / "report.csv").is_file() and (folder / "digit.png").is_file()
    zero, probe, aape = result["rows"]
    assert float(zero["all"]) > 50 and float(aape["all"]) > 50 and probe["H"] == "–" and float(aape["H"]) > 50


def test_a_second_call_fits_nothing_and_mends_a_run_without_figures(first, capsys):
    folder, result = first
    run = Run.open(folder / "aape-1shot-base-seed1")
    written = (run.folder / "weights.safetensors").stat().st_mtime_ns
    (run.folder / "metrics.jsonl").write_text("")  # killed between its weights and its figures
    again = demo(folder, **CUT)
    assert again["fitted"] == 0 and (run.folder / "weights.safetensors").stat().st_mtime_ns == written
    assert [row["H"] for row in again["rows"]] == [row["H"] for row in result["rows"]]
    shown = capsys.readouterr().out
    assert all(len(line) <= 110 for line in shown.splitlines() if str(folder) not in line)
    assert f"wordsight predict {folder / 'aape-1shot-all-seed1'}" in shown and "0 of 6 runs fitted now" in shown


def test_methods_without_labels_are_fitted_once(tmp_path):
    plan = list(runs_of(tmp_path, ("zero_shot", "aape"), (1, 4), (1, 2)))
    assert len(plan) == 2 + 8 and len({settings.out for settings in plan}) == len(plan) and not any(settings.flip for settings in plan)


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
        demo(tmp_path / "out", show=False, **cut)
    assert demo(tmp_path / "out", show=False, **cut)["fitted"] == 2
