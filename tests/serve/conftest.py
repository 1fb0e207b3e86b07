"""A server in this process, over a run on real handwritten digits."""

import pytest
from serving import as_image, started
from sklearn.datasets import load_digits
from standins import captioned

import wordsight
from wordsight.config import RunSettings
from wordsight.reader import read

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A zero-shot run of the micro CLIP: it needs no training."""
    digits = load_digits()
    classifier = wordsight.Classifier(
        "micro", "zero_shot", sentences="digits", class_names=NAMES, device="cpu"
    )
    classifier.fit([as_image(one) for one in digits.images[:20]], digits.target[:20])
    return classifier.save(tmp_path_factory.mktemp("served") / "digits")


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """Eight digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    for row, image in enumerate(load_digits().images[:8]):
        as_image(image).save(folder / f"{row}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def assistant_runs(tiny_clip, own_lm, tmp_path_factory):
    """A two_tower run and a limber run over one tiny LM."""
    from wordsight.assistant import Assistant

    table = captioned(tmp_path_factory.mktemp("pairs"), ["a wall in {name}"])
    loop = {"max_steps": 2, "batch_size": 10, "warmup_steps": 1, "lr": 3e-2}

    def fitted(method, **own):
        out = tmp_path_factory.mktemp(method) / method
        given = {"data": str(table), "backbone": str(tiny_clip), "method": method, "out": str(out)}
        own = {"device": "cpu", "settings": {"text": str(own_lm), **own}, "train": loop}
        return wordsight.fit(read(RunSettings, given, own)).folder

    clamp = fitted("two_tower", prompts=3, heads=2, rank=4, max_tokens=60, wrapper="plain")
    limber = fitted("limber", tokens=3, max_tokens=24)
    assistant = Assistant.from_runs(clamp, limber)
    folder = assistant.save(tmp_path_factory.mktemp("both") / "both")
    return {"clamp": clamp, "limber": limber, "both": folder, "images": sorted(table.glob("*.png"))}


@pytest.fixture(scope="session")
def served():
    """Starts servers, and ends them after the last test."""
    clients = []

    def start(*runs, **settings):
        clients.append(started(runs, **settings))
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(served, digits_run):
    return served(digits_run)
