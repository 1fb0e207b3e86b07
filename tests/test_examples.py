"""What stands in examples/ runs: a method from outside, through fit, evaluation, prediction and a suite."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standins import COLOURS, paint

import wordsight
from wordsight.config import RunSettings
from wordsight.onnx.exporting import export_graph
from wordsight.onnx.predicting import predict
from wordsight.suite_settings import SuiteSettings
from wordsight.suites import run_suite
from wordsight.tasks import evaluate

EXAMPLES = Path(__file__).parents[1] / "examples"
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


@pytest.fixture(scope="module")
def graph(photos, tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    words = {"data": str(photos), "backbone": str(tiny_clip), "method": "aape", "references": False}
    return export_graph(wordsight.fit(**words, shots=2, out=str(folder / "run")).folder, folder / "model")


@pytest.fixture
def images(tmp_path):
    for row, colour in enumerate(COLOURS.values()):
        paint(colour, row).resize((41 + 20 * row, 50)).save(tmp_path / f"{row}.png")
    Image.effect_noise((77, 130), 80).convert("RGB").save(tmp_path / "5.jpg", quality=90)
    return sorted(map(str, tmp_path.glob("?.*")))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_graph_answers_without_wordsight_and_torch(graph, images):
    example = EXAMPLES / "onnx_classify.py"
    assert len(example.read_text().splitlines()) <= 60
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print([name for name in ('torch', 'wordsight') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(example), str(graph), *images]
    *lines, loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert loaded == "[]"
    answers = predict(graph, images)
    for line, answer in zip(lines, answers, strict=True):
        ((name, chance),) = answers.best(answer)
        assert line.startswith(f"{answer.image}  {name} ") and ("unlike" in line) == answer.unlike
        assert float(line.split(f"{name} ")[1].split("%")[0]) == pytest.approx(100 * chance, abs=0.06)


@pytest.mark.slow
def test_the_page_answers_as_predict_does(graph, images, tmp_path):
    """In real Chromium, with onnxruntime-web, which examples/browser/README.md says how to get."""
    ort, chromium = EXAMPLES / "browser" / "ort", shutil.which("chromium")
    if not ort.is_dir() or chromium is None:
        pytest.skip(f"needs Chromium, and onnxruntime-web in {ort} (the README there says how)")
    from playwright.sync_api import sync_playwright

    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text((EXAMPLES / "browser" / "index.html").read_text())
    (site / "ort").symlink_to(ort)
    (site / "model").symlink_to(graph)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_function("!document.querySelector('#files').disabled")
            page.set_input_files("#files", images)
            page.wait_for_function(f"document.querySelectorAll('article').length === {len(images)}")
            wide = page.evaluate("document.documentElement.scrollWidth")
            told = page.evaluate(
                "[...document.querySelectorAll('article')].map(one => [one.dataset.probabilities, "
                "one.querySelector('.strange') !== null])"
            )
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    assert wide == 390
    for (chances, strange), answer in zip(told[::-1], predict(graph, images), strict=True):
        assert np.array(json.loads(chances)) == pytest.approx(answer.probabilities, abs=1e-4)
        assert strange == answer.unlike
