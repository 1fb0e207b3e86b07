"""A server in this process, over a run on real handwritten digits."""

import numpy as np
import pytest
from PIL import Image
from serving import started
from sklearn.datasets import load_digits

import wordsight


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A zero-shot run of the micro CLIP: it needs no training."""
    folder = tmp_path_factory.mktemp("served") / "digits"
    words = {"data": "digits", "backbone": "micro", "sentences": "digits", "method": "zero_shot", "shots": 1}
    return wordsight.fit(**words, device="cpu", out=str(folder), references=False).folder


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """Eight digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    for row, image in enumerate(load_digits().images[:8]):
        large = Image.fromarray((image * 15.9).astype(np.uint8)).resize((40, 40))
        large.save(folder / f"{row}.png")
    return sorted(folder.glob("*.png"))


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
