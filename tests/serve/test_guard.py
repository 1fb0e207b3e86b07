"""What stands before the application: keys, sizes, times, other sites, and a queue that is full."""

import asyncio
import threading
import zlib
from struct import pack

import pytest
from serving import HERE, files_of, refused

from wordsight.config import WordsightError
from wordsight.serve.settings import Limits, Settings
from wordsight.verb_serve import keys_of


def bomb(side):
    """A PNG of a few bytes that says it is a square of so many pixels."""

    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def narrow(served, digits_run):
    """A server with keys and small limits."""
    limits = Limits(max_body_mb=1, max_images=2, body_seconds=0.3, max_queue=1, max_pixels=100_000)
    return served(digits_run, keys=("right", "other"), limits=limits, allow_hosts=("127.0.0.1",))


KEY = {"Authorization": "Bearer right"}


def test_only_keys_open_the_door(narrow):
    told = refused(narrow, 401, "/v1/embed", json={"texts": ["a"]})
    for wrong in ("", "Bearer", "Bearer wrong", "Bearer right ly", "Basic right", "Bearer rig\u00fft"):
        headers = {"Authorization": wrong.encode("latin-1")}
        assert refused(narrow, 401, "/v1/embed", json={"texts": ["a"]}, headers=headers) == told
    assert narrow.get("/metrics").status_code == narrow.get("/v1/models").status_code == 401
    for right in ("Bearer right", "bearer other"):
        assert narrow.get("/v1/models", headers={"Authorization": right}).status_code == 200
    for path in ("/", "/health", "/ready", "/openapi.json"):
        assert narrow.get(path).status_code == 200


@pytest.mark.parametrize("given", ["", " , "])
def test_keys_that_are_named_and_empty_do_not_leave_the_door_open(monkeypatch, given):
    monkeypatch.setenv("WORDSIGHT_API_KEYS", "a, b")
    assert keys_of(None) == ("a", "b")
    monkeypatch.setenv("WORDSIGHT_API_KEYS", given)
    with pytest.raises(WordsightError, match="is set and holds no key"):
        keys_of(None)


def test_pages_of_other_sites_are_not_answered(narrow):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9", "http://["):
        assert "another site" in refused(
            narrow, 403, "/v1/embed", json={"texts": ["a"]}, headers=KEY | {"Origin": origin}
        )
    own = KEY | {"Origin": HERE}
    assert narrow.post("/v1/embed", json={"texts": ["a"]}, headers=own).status_code == 200
    other = {"Host": "evil.example:8000"}
    assert "--allow-host" in refused(narrow, 403, "/v1/embed", json={"texts": ["a"]}, headers=other | KEY)


def test_a_large_body_is_refused_before_it_is_read(narrow):
    read = []

    def parts(count):
        for place in range(count):
            read.append(place)
            yield b"x" * 2**16

    told = {"Content-Length": str(2 * 2**30), "Content-Type": "application/json"} | KEY
    assert "larger than 1 MB" in refused(narrow, 413, "/v1/embed", content=parts(3), headers=told)
    assert len(read) == 3, "what was under way is read, so that its sender looks for the answer"
    read.clear()
    chunked = {"Content-Type": "application/json"} | KEY
    assert "larger than 1 MB" in refused(narrow, 413, "/v1/embed", content=parts(40), headers=chunked)
    form = {"Content-Type": "multipart/form-data; boundary=x"} | KEY
    refused(narrow, 413, "/v1/classify", content=parts(40), headers=form)
    for wrong in ("-1", "x", "9" * 400):
        headers = told | {"Content-Length": wrong}
        refused(narrow, 413, "/v1/embed", content=parts(1), headers=headers)


def test_json_of_many_parts_is_refused_before_it_is_objects(narrow):
    for wide in (b'{"messages": [' + b"[]," * 60_000, b'{"texts": [' + b'"",' * 60_000):
        told = refused(
            narrow, 413, "/v1/embed", content=wide, headers=KEY | {"Content-Type": "application/json"}
        )
        assert "more than 50,000 parts" in told


def test_a_request_that_ends_at_two_places_is_refused(narrow):
    both = KEY | {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    assert "both a Content-Length" in refused(narrow, 400, "/v1/embed", content=b"{}", headers=both)


def test_commas_of_images_are_not_counted_however_a_form_is_called(client, digit_files):
    body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body += digit_files[0].read_bytes() + b"," * 60_000 + b"\r\n--x--\r\n"
    kind = {"Content-Type": "Multipart/Form-Data; boundary=x"}
    answer = client.post("/v1/classify", content=body, headers=kind)
    assert answer.status_code == 200 and "classes" in answer.json()["results"][0]


def test_a_jpeg_of_many_scans_is_refused(client):
    scans = b"\xff\xd8" + b"\xff\xda" * 101
    answer = client.post("/v1/classify", files={"images": ("a.jpg", scans)})
    assert "more than 100 scans" in answer.json()["results"][0]["error"]


def test_bombs_are_refused_by_their_header(narrow):
    files = [("images", ("a.png", bomb(30_000))), ("images", ("b.png", bomb(400)))]
    results = narrow.post("/v1/classify", files=files, headers=KEY).json()["results"]
    assert all("too large" in one["error"] for one in results)
    assert len(bomb(30_000)) < 100


def test_what_cannot_wait_is_told_to_come_again(narrow, digit_files):
    answer = narrow.post("/v1/classify", files=files_of(digit_files[:2]), headers=KEY)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "busy"
    alone = narrow.post("/v1/classify", files=files_of(digit_files[:1]), headers=KEY)
    assert alone.status_code == 200


def test_errors_that_nobody_foresaw_say_a_number_alone(client, digit_files, monkeypatch, said):
    from wordsight.serve.models import Model

    def broken(self, items):
        raise RuntimeError("in /home/me/secret.py")

    monkeypatch.setattr(Model, "look", broken)
    told = refused(client, 500, files=files_of(digit_files[:1]))
    assert "secret" not in told and told.rpartition(" ")[2] in said.text and "secret.py" in said.text
    monkeypatch.undo()
    assert client.post("/v1/classify", files=files_of(digit_files[:1])).status_code == 200


# -- beneath HTTP: a client that is slow, or goes --


def passing(guard, messages, path="/v1/classify", kind=b"multipart/form-data; boundary=x"):
    """What the application sends to a client that sends these messages; a float is a pause."""
    sent = []
    line = iter(messages)

    async def receive():
        message = next(line, None)
        if message is None:
            await asyncio.sleep(60)
        if isinstance(message, float):
            await asyncio.sleep(message)
            return await receive()
        return message

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", kind), (b"authorization", b"Bearer right")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    return guard(scope, receive, send), sent


def body(data, more):
    return {"type": "http.request", "body": data, "more_body": more}


GONE = {"type": "http.disconnect"}


def test_a_slow_client_is_sent_away(narrow):
    work, sent = passing(narrow.app, [body(b"--x", True), 5.0])
    narrow.portal.call(lambda: work)
    assert sent[0]["status"] == 408 and b"within 0.3 seconds" in sent[1]["body"]
    assert narrow.state.under_way == 0


def test_a_cut_connection_leaves_no_work(client, digit_files, monkeypatch):
    from wordsight.serve.models import Model

    begun, goes_on, looked = threading.Event(), threading.Event(), []
    look = Model.look

    def slow(self, items):
        looked.append(len(items))
        begun.set()
        assert goes_on.wait(10)
        return look(self, items)

    monkeypatch.setattr(Model, "look", slow)
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    whole = part + digit_files[0].read_bytes() + b"\r\n--x--\r\n"
    work, sent = passing(client.app, [body(whole[:50], True), GONE])
    client.portal.call(lambda: work)
    assert sent == [] and looked == []
    first, _ = passing(client.app, [body(whole, False), 0.3, GONE])
    second, sent = passing(client.app, [body(whole, False), 0.3, GONE])

    async def both():
        await asyncio.gather(first, asyncio.ensure_future(_after(begun, second)))

    client.portal.call(both)
    goes_on.set()
    assert sent == [] and client.state.under_way == 0
    assert client.post("/v1/classify", files=files_of(digit_files[:1])).status_code == 200
    assert looked == [1, 1], "what the second asked for was dropped before its turn came"


def test_what_nobody_waits_for_takes_no_place_in_the_queue():
    from wordsight.serve.worker import Busy, Worker

    begun, goes_on = threading.Event(), threading.Event()

    def slow(items):
        begun.set()
        assert goes_on.wait(10)
        return items

    worker = Worker("slow", wait=0.0, most=1, room=2)
    try:
        (first,) = worker.do(slow, [0])
        assert begun.wait(10)
        waiting = worker.do(slow, [1, 2])
        with pytest.raises(Busy):
            worker.do(slow, [3])
        waiting[0].cancel()
        (last,) = worker.do(slow, [3])
    finally:
        goes_on.set()
        worker.close()
    assert [one.result() for one in (first, waiting[1], last)] == [0, 2, 3]
    with pytest.raises(Busy):
        worker.do(slow, [4])


async def _after(begun, work):
    while not begun.is_set():
        await asyncio.sleep(0.01)
    await work


def test_a_server_that_ends_takes_nothing_new(narrow):
    narrow.state.ending = True
    try:
        assert refused(narrow, 503, "/v1/embed", json={"texts": ["a"]}, headers=KEY)
        assert narrow.get("/ready").status_code == 503 and narrow.get("/health").status_code == 200
    finally:
        narrow.state.ending = False


def test_a_limit_that_lets_nothing_through_is_refused():
    with pytest.raises(ValueError, match="max_images=0 lets nothing through"):
        Limits(max_images=0)
    with pytest.raises(ValueError, match="--port 70000 is no port; give a number from 0"):
        Settings(port=70_000)
    assert Settings().limits.max_images == 32
