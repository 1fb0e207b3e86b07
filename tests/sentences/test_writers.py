"""Writers: what is asked, what is kept, and what a stop at any moment costs."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import Sent, chat, serving
from standins import command

from wordsight.files import WordsightError
from wordsight.reader import build, to_dict
from wordsight.sentences import read_sentences, records
from wordsight.sentences.writers import write_sentences
from wordsight.settings import WriterSettings

QUESTIONS = ("Describe a(n) {}.", "What is a(n) {}?")
NAMES = ("fox", "old_owl", "cat")


def text_of(asked) -> str:
    return f"Answer {asked['seed']} to {asked['messages'][0]['content'][:12]}"


def until_three(asked):
    """Of each question the first two are answered, then the server dies."""
    return text_of(asked) if asked["seed"] < 3 else Sent("dead", 503)


def to(url: str, **changes) -> WriterSettings:
    settings = WriterSettings("m", base_url=url, questions=QUESTIONS, per_question=3, retries=0, timeout=20.0)
    return replace(settings, **changes)


@pytest.fixture
def server():
    with serving(text_of) as (url, seen):
        yield url, seen


def folder(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.is_file())


def test_settings_are_checked_and_survive_the_strict_reader():
    settings = WriterSettings("m", base_url="http://x/v1", questions=("What is {}?",))
    assert build(WriterSettings, to_dict(settings)) == settings
    assert build(WriterSettings, {"model": "m", "questions": "pets"}).questions == "pets"
    for name, value in (("per_question", 0), ("timeout", 0.0), ("max_bytes", 10), ("timeout", float("inf"))):
        with pytest.raises(WordsightError, match=f"{name}={value} is not possible; it must be at least"):
            WriterSettings("m", **{name: value})
    with pytest.raises(WordsightError, match="give one of them"):
        WriterSettings("m", base_url="http://x/v1", local=True)


def test_each_class_is_asked_about_and_the_file_is_readable(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own needs no key
    (url, seen), path = server, tmp_path / "deep" / "s.json"
    texts = write_sentences(["fox", "old_owl"], to(url), path)
    assert texts["fox"][:3] == tuple(f"Answer {seed} to Describe a f" for seed in (1, 2, 3))
    assert texts["fox"][3] == "Answer 1 to What is a fo" and seen[0]["key"] is None and len(seen) == 12
    cache = json.loads(path.read_text())
    assert (cache["format"], cache["model"], cache["temperature"]) == ("wordsight-sentences-1", "m", 0.99)
    first = {"question": "Describe an old owl.", "seed": 1, "text": texts["old_owl"][0]}
    assert cache["sentences"]["old_owl"][0] == first
    assert read_sentences(path, ["Old Owl", "fox"]) == {"Old Owl": texts["old_owl"], "fox": texts["fox"]}
    assert folder(path.parent) == ["s.json"]


def test_what_was_answered_is_never_asked_again(server, tmp_path):
    (url, seen), path = server, tmp_path / "s.json"
    first = write_sentences(["fox"], to(url), path)
    elsewhere, before = to("http://127.0.0.1:9/v1"), path.stat().st_mtime_ns
    assert write_sentences(["fox"], elsewhere, path) == first and path.stat().st_mtime_ns == before
    with pytest.raises(WordsightError, match=r"no server answers at http://127.0.0.1:9/v1"):
        write_sentences(["fox", "owl"], elsewhere, path)
    both = write_sentences(["owl", "fox"], to(url), path)
    assert list(both) == ["owl", "fox"] and both["fox"] == first["fox"] and len(seen) == 12
    assert list(json.loads(path.read_text())["sentences"]) == ["fox", "owl"]


def test_a_name_in_another_spelling_of_unicode_is_the_same_class(server, tmp_path):
    url, seen = server
    one = write_sentences(["caf\u00e9"], to(url), tmp_path / "s.json")
    two = write_sentences(["cafe\u0301"], to(url), tmp_path / "s.json")
    assert two == {"cafe\u0301": one["caf\u00e9"]} and len(seen) == 6


def test_a_failed_call_leaves_nothing_that_binds_the_next(server, tmp_path):
    path = tmp_path / "s.json"
    with serving(lambda _: Sent("no", 404)) as (url, _), pytest.raises(WordsightError, match="'other'"):
        write_sentences(["fox"], to(url, model="other"), path)
    assert not list(tmp_path.iterdir())
    assert write_sentences(["fox"], to(server[0]), path)["fox"]


def only_empty(tmp_path, reply) -> tuple[str, list[int]]:
    """What is said of a model that answers nothing, and the seeds that it was asked with."""
    with serving(lambda _: Sent(reply)) as (url, seen), pytest.raises(WordsightError) as error:
        settings = to(url, questions=QUESTIONS[:1], per_question=2, workers=1)
        write_sentences(["fox"], settings, tmp_path / "s.json")
    return str(error.value), [asked["seed"] for asked in seen]


@pytest.mark.slow
def test_empty_answers_are_asked_again_with_other_seeds_and_then_an_error(tmp_path):
    said, seeds = only_empty(tmp_path, chat(None))
    assert "only empty answers about class 'fox'; try a larger max_tokens" in said
    assert seeds == [1, 3, 5, 7, 2, 4, 6, 8]
    assert "max_tokens=60 cut its thoughts" in only_empty(tmp_path, chat("<think>a", "length"))[0]
    assert "it says: I will not." in only_empty(tmp_path, chat(None, refusal="I will not."))[0]


def test_some_empty_answers_are_left_out_counted_and_warned_of(tmp_path, said):
    def reply(asked):
        return " " if "What" in asked["messages"][0]["content"] else text_of(asked)

    with serving(reply) as (url, seen):
        texts = write_sentences(["fox"], to(url), tmp_path / "s.json")
    assert len(texts["fox"]) == 3 and len(seen) == 3 + 3 * 4
    assert json.loads((tmp_path / "s.json").read_text())["empty"] == {"fox": 3}
    assert "3 answers were empty 4 times over and are left out of s.json" in said.text


def test_one_answer_for_all_seeds_is_warned_of(tmp_path, said):
    with serving(lambda _: "A fox.") as (url, _):
        assert set(write_sentences(["fox"], to(url), tmp_path / "s.json")["fox"]) == {"A fox."}
    assert "same answer for every seed" in said.text


def test_one_text_for_two_classes_is_warned_of(tmp_path, said):
    """As of a model that declines to answer, politely and with status 200."""
    with serving(lambda asked: "I cannot help with that.") as (url, _):
        write_sentences(["fox", "owl"], to(url, per_question=1), tmp_path / "s.json")
    assert "the same text under 2 classes" in said.text and "I cannot help with that." in said.text


def test_other_settings_in_the_same_file_are_refused_and_shown(server, tmp_path):
    (url, _), path = server, tmp_path / "s.json"
    write_sentences(["fox"], to(url), path)
    says = (
        r"other settings \(temperature: 0.99 in the file, 0.5 asked for; seed: 1 in the file, 2 asked for\)"
    )
    with pytest.raises(WordsightError, match=says):
        write_sentences(["fox"], to(url, temperature=0.5, seed=2), path)
    with pytest.raises(WordsightError, match="questions: "):
        write_sentences(["fox"], to(url, questions="pets"), path)


def test_a_foreign_file_is_not_overwritten(server, tmp_path):
    (url, seen), path = server, tmp_path / "cupl.json"
    for text in (
        '{"fox": ["red"]}',
        "[1]",
        '{"format": "wordsight-sentences-1", "sentences": 3}',
        "9" * 6000,
    ):
        path.write_text(text)
        with pytest.raises(WordsightError, match=r"cupl.json|will not be overwritten"):
            write_sentences(["fox"], to(url), path)
        assert path.read_text() == text
    with pytest.raises(WordsightError, match="is a folder"):
        write_sentences(["fox"], to(url), tmp_path)
    with pytest.raises(WordsightError, match="cannot be written"):
        write_sentences(["fox"], to(url), path / "below.json")
    assert not seen and folder(tmp_path) == ["cupl.json"]


# stopped, and two at once


@pytest.fixture
def whole(server, tmp_path) -> bytes:
    """The bytes of an unbroken call."""
    write_sentences(NAMES, to(server[0]), tmp_path / "whole" / "s.json")
    server[1].clear()
    return (tmp_path / "whole" / "s.json").read_bytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_server_that_dies_costs_only_what_it_did_not_answer(server, tmp_path, whole, workers):
    (url, seen), path, lock, left = server, tmp_path / "s.json", threading.Lock(), [8]

    def dies(asked):
        with lock:
            left[0] -= 1
            return text_of(asked) if left[0] >= 0 else Sent("dead", 503)

    with serving(dies) as (dying, _), pytest.raises(WordsightError, match="dead"):
        write_sentences(NAMES, to(dying, workers=workers), path)
    assert "s.json.answers" in folder(tmp_path)
    write_sentences(NAMES, to(url), path)
    assert len(seen) == 18 - 8 and path.read_bytes() == whole and folder(tmp_path) == ["s.json"]


@pytest.mark.parametrize("torn", [b'{"name": "fox", "que', b"[1]\n", b'{"name": 3}\n', b"\xff\xfe\n"])
def test_a_broken_line_costs_one_answer(server, tmp_path, whole, torn, said):
    (url, seen), path, side = server, tmp_path / "s.json", tmp_path / "s.json.answers"
    with serving(until_three) as (dying, _), pytest.raises(WordsightError):
        write_sentences(NAMES, to(dying, workers=1), path)
    side.write_bytes(side.read_bytes() + torn)
    write_sentences(NAMES, to(url), path)
    assert len(seen) == 16 and path.read_bytes() == whole and folder(tmp_path) == ["s.json"]
    assert ("1 lines of" in said.text) == torn.endswith(b"\n")


def test_answers_that_wait_bind_as_the_file_does_and_are_kept_for_their_class(server, tmp_path):
    (url, seen), path = server, tmp_path / "s.json"
    with serving(until_three) as (dying, _), pytest.raises(WordsightError):
        write_sentences(["fox"], to(dying, workers=1), path)
    with pytest.raises(WordsightError, match=r"s.json.answers' was written with other settings \(seed: 1 in"):
        write_sentences(["fox"], to(url, seed=5), path)
    for _ in range(2):
        write_sentences(["cat"], to(url), path)
        assert folder(tmp_path) == ["s.json", "s.json.answers"]
    write_sentences(["fox"], to(url), path)
    assert len(seen) == 6 + 4 and folder(tmp_path) == ["s.json"]


def test_a_stop_between_the_last_two_steps_is_made_up_for(server, tmp_path, whole, monkeypatch):
    (url, seen), path = server, tmp_path / "s.json"
    with monkeypatch.context() as patch:
        patch.setattr(records.Record, "close", lambda self: None)
        write_sentences(NAMES, to(url), path)
    assert folder(tmp_path) == ["s.json", "s.json.answers"]
    seen.clear()
    write_sentences(NAMES, to(url), path)
    assert not seen and path.read_bytes() == whole and folder(tmp_path) == ["s.json"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_costs_one_answer(server, tmp_path, whole, monkeypatch):
    (url, seen), path, real, lines = server, tmp_path / "s.json", os.write, []

    def full(handle, line):
        lines.append(line)
        if len(lines) == 6:
            real(handle, line[:9])
            raise OSError(28, "No space left on device")
        return real(handle, line)

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "write", full)
        with pytest.raises(WordsightError, match=r"s.json.answers' cannot be written: No space left"):
            write_sentences(NAMES, to(url, workers=1), path)
    write_sentences(NAMES, to(url, workers=1), path)
    assert len(seen) == 18 + 1 and path.read_bytes() == whole


def start(url: str, path: Path):
    """The command, in a process of its own."""
    words = f"classes={','.join(NAMES)} model=m base_url={url} out={path} per_question=3 retries=0 workers=2"
    return command(
        ["sentences", *words.split(), f"questions={','.join(QUESTIONS)}"], path.with_name("errors")
    )


@pytest.mark.slow
def test_a_killed_command_goes_on_and_a_second_one_is_told(tmp_path):
    held, going, path = threading.Event(), threading.Event(), tmp_path / "s.json"

    def slow(asked):
        if len(seen) > 5 and not going.is_set():
            held.set()
            going.wait(60)
        return text_of(asked)

    with serving(slow) as (url, seen):
        first = start(url, path)
        try:
            assert held.wait(60)
            with pytest.raises(WordsightError, match=r"s.json' is in use: another process is writing it"):
                write_sentences(NAMES, to(url), path)
        finally:
            first.kill()
            first.join()
        (tmp_path / "errors").unlink()
        going.set()
        kept, asked = len((tmp_path / "s.json.answers").read_text().splitlines()) - 1, len(seen)
        assert kept >= asked - 2  # of two workers
        write_sentences(NAMES, to(url), path)
        assert len(seen) - asked == 18 - kept
        write_sentences(NAMES, to(url), tmp_path / "whole.json")
    assert folder(tmp_path) == ["s.json", "whole.json"]
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_what_is_under_way_and_frees_the_file(server, tmp_path, whole, workers):
    path = tmp_path / "s.json"

    def hangs(asked):
        if len(hanging) < 5:
            return text_of(asked)
        if len(hanging) == 5:
            threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        time.sleep(40)

    began = time.monotonic()
    with serving(hangs) as (url, hanging), pytest.raises(KeyboardInterrupt):
        write_sentences(NAMES, to(url, workers=workers), path)
    assert time.monotonic() - began < 20
    write_sentences(NAMES, to(server[0]), path)
    assert len(server[1]) == 18 - 4 and path.read_bytes() == whole and folder(tmp_path) == ["s.json"]


def test_who_waits_goes_on_when_the_other_has_ended(server, tmp_path, said):
    (url, seen), path, written = server, tmp_path / "s.json", []

    def write():
        written.append(write_sentences(["fox"], to(url), path, wait=True))

    waiter = threading.Thread(target=write)
    with records.writing(path, {}):
        waiter.start()
        while "waiting for another process" not in said.text:
            time.sleep(0.01)
        assert not seen
    waiter.join(20)
    assert written and folder(tmp_path) == ["s.json"]
