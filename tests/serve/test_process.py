"""A server as a process of its own: ended in the middle of its work, asked by OpenAI's own client, and by
whatever its schema allows."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import said_with
from standins import command

pytestmark = pytest.mark.slow


class Running:
    """A server's process, and where it listens."""

    def __init__(self, folder, *words):
        self.errors = folder / "errors.txt"
        self.process = command(["serve", *words, "--port", "0"], self.errors)
        self.address = self._wait(r"at (http://\S+);")
        self.port = int(self.address.rpartition(":")[2])

    def _wait(self, pattern):
        for _ in range(600):
            time.sleep(0.05)
            found = re.search(pattern, self.said)
            if found:
                return found[1]
            assert self.process.is_alive(), self.said
        raise AssertionError(self.said)

    @property
    def said(self):
        return self.errors.read_text() if self.errors.exists() else ""

    def end(self, sign=signal.SIGTERM):
        self.tell(sign)
        self.process.join(20)
        return self.process.exitcode

    def tell(self, sign):
        if self.process.is_alive():
            os.kill(self.process.pid, sign)


@pytest.fixture
def running(tmp_path):
    begun = []

    def begin(*words):
        begun.append(Running(tmp_path, *words))
        return begun[-1]

    yield begin
    for one in begun:
        assert one.end() == 0


def asked(port, path, body=None, kind="application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": kind} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def multipart(files):
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="images"; filename="{path.name}"\r\n\r\n'.encode()
        + path.read_bytes()
        + b"\r\n"
        for path in files
    ]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_is_under_way(running, digits_run, digit_files, sign):
    """It waits half a second for others to come, in which it is told."""
    server = running(digits_run, "--wait-ms", "800", "--max-batch", "64")
    body, kind = multipart(digit_files)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(asked, server.port, "/v1/classify", body, kind) for _ in range(3)]
        time.sleep(0.4)
        server.tell(sign)
        time.sleep(0.15)
        assert asked(server.port, "/ready")[0] == 503
        status, told = asked(server.port, "/v1/classify", body, kind)
        assert status == 503 and b"is ending" in told
        for answer in answers:
            status, content = answer.result()
            assert status == 200 and len(json.loads(content)["results"]) == len(digit_files)
    server.process.join(10)
    assert server.process.exitcode == 0
    assert "Traceback" not in server.said


def test_a_port_that_is_taken_and_a_run_that_is_broken_end_in_a_sentence(digits_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = command(["serve", digits_run, "--port", port], tmp_path / "errors")
        process.join(60)
    assert process.exitcode == 2 and "cannot listen" in (tmp_path / "errors").read_text()
    broken = shutil.copytree(digits_run, tmp_path / "broken")
    (broken / "weights.safetensors").write_bytes(b"no weights")
    process = command(["serve", broken, "--port", "0"], tmp_path / "errors")
    process.join(60)
    assert process.exitcode == 2 and "weights.safetensors" in (tmp_path / "errors").read_text()


def test_nobody_waits_for_models_to_be_loaded_before_it_ends(digits_run, tmp_path):
    process = command(["serve", digits_run, "--port", "0"], tmp_path / "errors")
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode in (0, -signal.SIGTERM)  # the latter before it listens


BUSY = """
import atexit, threading, time, torch
from wordsight.serve import _leave

def work():
    while True:
        torch.randn(64, 64).softmax(1).sum().item()

loading = threading.Thread(target=work, daemon=True)
loading.start()
time.sleep(0.5)
atexit.register(_leave, loading)
"""


def test_a_process_that_ends_while_models_are_loaded_does_not_crash():
    """Without `_leave` it is aborted: terminate called without an active exception."""
    subprocess.run([sys.executable, "-c", BUSY], check=True, timeout=60)


def test_slow_heads_and_idle_connections_hold_nobody_up(running, digits_run, digit_files):
    server = running(digits_run, "--body-seconds", "1", "--max-connections", "50")
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    for one in held:
        one.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    body, kind = multipart(digit_files)
    assert asked(server.port, "/v1/classify", body, kind)[0] == 200
    for one in held[:20]:
        one.close()
    for one in held[20:]:
        one.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(10) == b"", "it was cut"
        one.close()
    many = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    assert sum(_is_cut(one) for one in many) >= 10, "no more than 50 are open at once"
    for one in many:
        one.close()
    assert asked(server.port, "/v1/classify", body, kind)[0] == 200


def test_who_sends_on_after_the_answer_is_cut(running, digits_run):
    server = running(digits_run, "--body-seconds", "1")
    begun = b"POST /no HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    for after in (b"1\r\nb\r\n", b"no chunk\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=4) as one:
            one.sendall(begun)
            time.sleep(0.5)
            assert b"404" in one.recv(10_000)
            one.sendall(after)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(10) == b"", "it was cut"
    with socket.create_connection(("127.0.0.1", server.port), timeout=4) as one:
        one.sendall(b"no HTTP\r\n\r\n")
        time.sleep(0.5)
        assert json.loads(one.recv(10_000).partition(b"\r\n\r\n")[2])["error"]["code"] == 400
    assert "Traceback" not in server.said


def _is_cut(connection):
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_openai_s_client_talks_to_it(running, assistant_runs):
    from openai import BadRequestError, NotFoundError, OpenAI

    server = running(assistant_runs["both"], assistant_runs["limber"])
    client = OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["both", "limber"]
    turns = [{"role": "user", "content": said_with(assistant_runs["images"][0], "what is it")}]
    settings = {"model": "limber", "messages": turns, "max_tokens": 12}
    whole = client.chat.completions.create(**settings)
    said = whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens <= 12
    events = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == said and events[-1].usage == whole.usage
    drawn = [
        client.chat.completions.create(**settings, temperature=1.5, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    with pytest.raises(NotFoundError, match="is not served"):
        client.chat.completions.create(model="gpt-4", messages=turns)
    with pytest.raises(BadRequestError, match="do not fit"):
        client.chat.completions.create(
            model="limber", messages=[{"role": "user", "content": "a" * 300}], max_tokens=8
        )
    threads = [
        threading.Thread(target=lambda: next(iter(client.chat.completions.create(**settings, stream=True))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.chat.completions.create(**settings).choices[0].message.content == said
