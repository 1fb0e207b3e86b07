"""Servers: the text, or the server's own words; bounded in bytes and time; and never the key."""

import gzip
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_server import Sent, chat, serving

from wordsight.files import WordsightError
from wordsight.sentences import servers
from wordsight.sentences.replies import read_reply, seconds_to_wait, words_of
from wordsight.sentences.servers import connected, masked
from wordsight.settings import WriterSettings

A = "A zebra has black and white stripes."
KEY = "sk-proj-Zq81LmT0vX3wY7"


def asked(url, **changes):
    """The reply to one question."""
    settings = WriterSettings("m", **{"base_url": url, "retries": 0, "timeout": 5.0, **changes})
    with connected(settings) as server:
        return server.ask("What is a zebra?", 1)


def refused(sent, **changes) -> str:
    with serving(lambda _: sent) as (url, _), pytest.raises(WordsightError) as error:
        asked(url, **changes)
    assert url in str(error.value)
    return str(error.value)


# forms of an answer


@pytest.mark.parametrize(
    "body",
    [
        chat(A),
        chat([{"type": "text", "text": A}]),
        chat(
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": A}]
        ),
        chat([{"type": "text", "text": "A zebra has black and "}, "white stripes."]),
        chat([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": {"value": A}}, None, 3]),
        chat({"type": "text", "text": A}),
        chat(A, reasoning_content="hm", reasoning="hm", tool_calls=[]),
        {"choices": [{"text": A}]},
        {"choices": [{"text": A, "message": None}]},
        {"error": None, **chat(A)},
        {"error": {"code": 0, "message": "success"}, **chat(A)},
        "\ufeff" + json.dumps(chat(A)),
        json.dumps(chat(A)).replace('"id": "1"', '"id": "1", "id": "2"'),
        json.dumps(chat(A)).replace("zebra", "\\u007aebra"),
    ],
)
def test_the_text_is_found(body):
    with serving(lambda _: Sent(body)) as (url, seen):
        assert asked(url).text == A
    assert seen[0]["messages"][0]["content"].startswith("What is a zebra? Answer in one plain sentence")
    assert seen[0]["max_tokens"] == 60 and seen[0]["temperature"] == 0.99 and seen[0]["seed"] == 1


def test_sentences_in_parts_do_not_run_together():
    parts = [{"type": "text", "text": "It is red."}, {"type": "text", "text": "It is big."}]
    assert read_reply(chat(parts)).text == "It is red. It is big."


def test_packed_answers_are_read():
    packed = gzip.compress(json.dumps(chat(A)).encode())
    with serving(lambda _: Sent(packed, headers={"Content-Encoding": "gzip"})) as (url, _):
        assert asked(url).text == A


def test_a_thought_alone_or_a_refusal_is_an_empty_answer():
    assert read_reply(chat(None, reasoning_content="hm. a zebra", reason="length")).text == ""
    assert read_reply(chat(None, reason="length")).cut
    assert read_reply(chat(None, refusal="I will not.")).words == "I will not."
    assert read_reply(chat([{"type": "refusal", "refusal": "no"}])).text == ""
    assert read_reply(chat("", "content_filter")).words == "content_filter"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [1],
        "null",
        '"x"',
        "",
        "{broken",
        "<html>",
        "9" * 6000,
        '{"choices":' + "9" * 6000 + "}",
        "[" * 100_000,
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": ["abc"]},
        {"choices": {"0": 1}},
        {"choices": "abc"},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "abc"}]},
        {"choices": [{"message": [A]}]},
        chat(5),
        chat(True),
        chat({"a": 1}),
        b'{"choices":[{"message":{"content":"\xff\xfe"}}]}',
    ],
)
def test_what_is_no_answer_is_told_with_what_was_sent(body):
    said = refused(Sent(body))
    assert "not as an OpenAI-compatible server does" in said
    text = body if isinstance(body, str) else "UTF-8" if isinstance(body, bytes) else json.dumps(body)
    assert (text[:200] or "status 200 and nothing else") in said and len(said) < 600


# its own words


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "quota used up", "code": 429}},
        {"choices": None, "error": {"message": "quota used up"}},
        {"error": "quota used up"},
        {"error": {"detail": [{"msg": "quota used up"}]}},
        {"detail": "quota used up"},
        {"detail": [{"loc": ["body"], "msg": "quota used up"}]},
        {"message": "quota used up", "code": 1302},
        {"object": "error", "message": "quota used up"},
        {"error": "Bad", "message": "quota used up"},
        {"choices": [{"finish_reason": "error", "message": {"content": "A ze"}}], "error": "quota used up"},
        {"error": {"message": "quota used up"}, **chat("")},
    ],
)
def test_an_error_under_status_200_is_told_in_the_servers_words(body):
    assert "quota used up" in refused(Sent(body))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refused the API key in environment variable WORDSIGHT_TEST_KEY: no, sorry"),
        (403, "refused the API key"),
        (404, r"does not know model 'm', or is no OpenAI-compatible address \(it usually ends in /v1"),
        (429, "still limits requests after 0 retries; run the same command later"),
        (400, "did not answer for model 'm': no, sorry"),
        (500, "did not answer for model 'm': no, sorry"),
    ],
)
def test_a_refusal_is_told_with_what_would_mend_it(monkeypatch, status, says):
    monkeypatch.setenv("WORDSIGHT_TEST_KEY", KEY)
    with (
        serving(lambda _: Sent('{"error": {"message": "no,\\n sorry"}}', status)) as (url, seen),
        pytest.raises(WordsightError, match=says),
    ):
        asked(url, api_key_env="WORDSIGHT_TEST_KEY")
    assert seen[0]["key"] == f"Bearer {KEY}" and len(seen) == 1


@pytest.mark.parametrize(
    ("refused", "body", "kept"),
    [
        (
            "max_tokens",
            {"error": {"message": "'max_tokens' is not supported, use 'max_completion_tokens' instead."}},
            "max_completion_tokens",
        ),
        ("temperature", {"error": {"message": "temperature does not support 0.99 with this model"}}, "seed"),
        (
            "seed",
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "max_tokens",
        ),
    ],
)
def test_a_parameter_that_a_server_does_not_take_is_left_out(refused, body, kept, said):
    with serving(lambda asked: Sent(body, 400) if refused in asked else A) as (url, seen):
        settings = WriterSettings("m", base_url=url, retries=0)
        with connected(settings) as server:
            assert [server.ask("What is a zebra?", seed).text for seed in (1, 2)] == [A, A]
    assert len(seen) == 3 and kept in seen[-1] and refused not in seen[-1]  # it is remembered
    assert (f"takes no {refused}" in said.text) == (refused != "max_tokens")


def test_a_value_that_a_server_refuses_is_told():
    assert "must be below 2" in refused(Sent({"error": {"message": "temperature must be below 2"}}, 400))


def test_odd_refusals_are_told_too(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "without an API key, and environment variable OPENAI_API_KEY is not set" in refused(Sent("", 401))
    assert "<h1>bad gateway" in refused(Sent("<h1>bad gateway", 502))
    assert "status 503, without a word" in refused(Sent("", 503))
    assert r"no \xff" in refused(Sent(b"no \xff", 400))
    assert "sends us on to http://elsewhere/; if you trust that" in refused(
        Sent("", 307, {"Location": "http://elsewhere/"})
    )
    assert words_of([["a"], {"msg": "b"}]) == "a: b" and words_of({"error": {"x": 1}}) == ""


def test_where_nobody_listens():
    with pytest.raises(WordsightError, match=r"no server answers at http://127.0.0.1:9/v1 .*is it running"):
        asked("http://127.0.0.1:9/v1")


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://[::1", "x\x00y"])
def test_what_is_no_address(address):
    with pytest.raises(WordsightError, match="give one such as http://localhost:8000/v1"):
        asked(address)


def test_a_broken_proxy_is_told(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(WordsightError, match="proxy"):
        asked("http://127.0.0.1:9/v1")


# again, and for how long


def nothing(handler):
    """The connection is closed."""


def test_it_is_asked_again_where_that_may_help(monkeypatch):
    monkeypatch.setattr(servers.random, "uniform", lambda *_: 0.01)
    replies = [Sent("x", 500), Sent("x", 429, {"Retry-After": "0.01"}), Sent(nothing), Sent(chat(A))]
    with serving(lambda _: replies.pop(0)) as (url, seen):
        assert asked(url, retries=3).text == A
    assert len(seen) == 4
    with serving(lambda _: Sent("x", 400)) as (url, seen), pytest.raises(WordsightError):
        asked(url, retries=3)
    assert len(seen) == 1


def test_a_long_pause_is_told_and_not_slept():
    began = time.monotonic()
    for status in (429, 503):
        said = refused(Sent({"error": "slow down"}, status, {"Retry-After": "3000"}), retries=5)
        assert "asks to wait 3000 s; run the same command then, it goes on from here: slow down" in said
    assert time.monotonic() - began < 20


def test_a_pause_may_be_a_date_and_junk_is_none():
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert 80 < seconds_to_wait(format_datetime(later)) < 91
    assert seconds_to_wait("2.5") == 2.5
    for junk in (None, "", "soon", "-3", "0", "nan", "inf", "1e999", "Wed, 99 Foo 2020", "9" * 400):
        assert seconds_to_wait(junk) is None


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def dripping_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
    for _ in range(1000):
        handler.wfile.write(b"a")
        time.sleep(0.02)


def silent(handler):
    time.sleep(20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (dripping, "took longer than 1 s for one answer"),
        (dripping_headers, "took longer than 1 s for one answer"),
        (silent, "sent nothing for 0.5 s; fewer workers"),
    ],
)
def test_a_server_that_takes_for_ever_is_left(body, says):
    began = time.monotonic()
    assert says in refused(
        Sent(body), timeout=0.5
    )  # far longer than from drop to drop, on a busy machine too
    assert time.monotonic() - began < 8


def endless(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.sent = 0
    while handler.sent < 1 << 28:
        handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        handler.sent += 0x10000


@pytest.mark.parametrize(
    "sent",
    [
        Sent(chat("word " * 300_000)),
        Sent(endless),
        Sent(gzip.compress(b" " * 60_000_000), headers={"Content-Encoding": "gzip"}),
    ],
)
def test_a_huge_body_is_not_read_to_its_end(sent):
    assert (
        "answered with more than 1,048,576 bytes, which is no sentence; max_bytes=... reads more"
        in refused(sent)
    )


def test_a_huge_error_is_cut():
    said = refused(Sent(b"quota used up " * 200_000, 429))
    assert "quota used up" in said and len(said) < 600


def broken(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf")


def junk(handler):
    handler.wfile.write(b"junk\r\n\r\n")


@pytest.mark.parametrize("body", [broken, nothing, junk])
def test_an_answer_that_breaks_off(body):
    assert "broke off its answer: " in refused(Sent(body))


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_what_cannot_be_unpacked(encoding):
    assert "in a packed form that cannot be read" in refused(
        Sent(b"zz", headers={"Content-Encoding": encoding})
    )


def test_what_is_under_way_ends_at_once_when_it_is_stopped():
    with serving(lambda _: Sent(silent)) as (url, _), connected(WriterSettings("m", base_url=url)) as server:
        ended = threading.Event()

        def ask():
            with pytest.raises(BaseException):  # noqa: B017  cancelled: nobody reads what it raises
                server.ask("?", 1)
            ended.set()

        threading.Thread(target=ask).start()
        while not server.under_way:
            time.sleep(0.01)
        server.stop()
        assert ended.wait(10)


# the key


@pytest.mark.parametrize(
    "echo",
    [KEY, f"Bearer {KEY}", KEY[:9], KEY[-7:], KEY[4:14], KEY.upper(), f"{KEY[:12]}...", f"x{KEY}{KEY}y"],
)
def test_the_key_is_not_told_whole_or_in_part(monkeypatch, echo):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    cut, bare, moved = f"{'x' * 291} {echo}", f"bad key {echo}", {"Location": echo}
    for sent in (Sent({"error": cut}), Sent(bare, 401), Sent("", 302, moved)):
        said = refused(sent).lower()
        assert not any(KEY[i : i + 6].lower() in said for i in range(len(KEY) - 5))
    with serving(lambda _: f"It is {echo}.") as (url, _):
        text = asked(url).text.lower()
    assert "***" in text and not any(KEY[i : i + 6].lower() in text for i in range(len(KEY) - 5))


def test_a_word_that_stands_in_for_a_key_is_no_secret():
    assert masked("a photo studio and an ollama", "lm-studio") == "a photo studio and an ollama"
    assert masked("my lm-studio", "lm-studio") == "my ***"
    assert masked("a photo studio", "lm-studio", strictly=True) == "a photo ***"
    assert masked("an EMPTY box", "EMPTY") == "an EMPTY box" and masked("sk-x!", "sk-x") == "***!"
    assert masked("any", None) == "any"


def test_a_key_in_the_wrong_place_is_not_told(monkeypatch):
    with pytest.raises(WordsightError, match="it is not the key itself") as error:
        WriterSettings("m", api_key_env=KEY)
    assert KEY not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY} {KEY}")
    with pytest.raises(WordsightError, match="was it copied whole") as error:
        asked("http://127.0.0.1:9/v1")
    assert KEY not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(WordsightError, match="no server answers") as error:
        asked(f"http://user:{KEY}@127.0.0.1:9/v1?key={KEY}")
    assert KEY not in str(error.value)


def test_without_key_and_without_server_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(WordsightError, match=r"OPENAI_API_KEY is not set.*base_url=.*local=true"):
        asked(None)
