"""What tests of the server share."""

import base64
import time

import numpy as np
from PIL import Image

HERE = "http://127.0.0.1:8000"


def as_image(pixels):
    """A digit of scikit-learn's."""
    return Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((40, 40))


def started(runs, **settings):
    """A client of a server over these runs, once it is ready."""
    from starlette.testclient import TestClient

    from wordsight.serve.app import make_app
    from wordsight.serve.settings import Settings

    guard, state = make_app([str(run) for run in runs], Settings(**settings))
    client = TestClient(guard, base_url=HERE, raise_server_exceptions=False)
    client.__enter__()
    while not state.ready:
        assert state.failure is None, state.failure
        time.sleep(0.01)
    client.state = state
    return client


def files_of(paths, field="images"):
    return [(field, (path.name, path.read_bytes(), "image/png")) for path in paths]


def refused(client, code, path="/v1/classify", **more):
    answer = client.post(path, **more)
    assert answer.status_code == code, answer.text
    told = answer.json()["error"]
    assert told["code"] == code and set(told) == {"message", "type", "code"}
    return told["message"]


def in_url(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def said_with(image, text):
    return [{"type": "image_url", "image_url": {"url": in_url(image)}}, {"type": "text", "text": text}]
