"""What reaches a terminal: other people's text, made harmless, in whatever encoding the terminal has."""

import io
import json
import logging
import os
import sys

import pytest

from wordsight.files import WordsightError
from wordsight.terminal import caption, evaluate, json_text, out, out_json, speaking

STEERS = "al\x1b]0;owned\x07pha \x9b31m \u202egnp.exe"
NOT_UTF8 = os.fsdecode(b"a\xe9.jpg")


@pytest.fixture
def stream(monkeypatch):
    """stdout and stderr of an encoding, and what they were given."""

    def made(encoding):
        # what pytest keeps of a log goes to another process, which takes no name that is not UTF-8
        monkeypatch.setattr(logging.getLogger("wordsight"), "propagate", False)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, errors="strict"))

        def written(name):
            getattr(sys, name).flush()
            return getattr(sys, name).buffer.getvalue().decode(encoding)

        return written

    return made


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_name_steers_a_terminal_or_ends_in_a_traceback(stream, encoding):
    written = stream(encoding)
    with speaking():
        for name in (STEERS, NOT_UTF8, "caf\u00e9 \u4e2d \U0001f33b"):
            out(name)
            logging.getLogger("wordsight").info("skipped %s: a reason", name)
    for text in (written("stdout"), written("stderr")):
        assert not set("\x1b\x07\x9b\u202e") & set(text)
        assert "al\\x1b]0;owned\\x07pha" in text and "a\\udce9.jpg" in text
    assert written("stderr").startswith("skipped al\\x1b")


def test_an_image_is_a_line_whatever_its_name(capsys):
    caption(
        {"captions": [{"image": "new\nline.png", "caption": "a dog"}, {"image": "b.png", "caption": "a cat"}]}
    )
    assert capsys.readouterr().out == "new\\nline.png  a dog\nb.png  a cat\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_json_gives_every_name_back_and_holds_no_sign_that_steers(stream, encoding):
    written = stream(encoding)
    value = {"names": [STEERS, NOT_UTF8, "caf\u00e9 \u4e2d \U0001f33b", 'quoted " and \\'], "tab": "a\tb"}
    with speaking():
        out_json(value)
    text = written("stdout")
    assert json.loads(text) == value
    assert not set("\x1b\x07\x9b\x7f\u202e") & set(text) and "a\\udce9.jpg" in text


def test_json_keeps_letters_of_all_scripts_readable():
    assert "caf\u00e9 \u4e2d" in json_text(["caf\u00e9 \u4e2d"])


def test_what_is_refused_prints_no_half_of_a_json_text(capsys):
    def entries(refused):
        if refused:
            raise WordsightError("there is no image")
        yield from ({"image": "a.jpg"}, {"image": "b.jpg"})

    with pytest.raises(WordsightError):
        out_json({"predictions": entries(True), "skipped": list})
    assert not capsys.readouterr().out
    out_json({"predictions": entries(False), "skipped": list})
    said = {"predictions": [{"image": "a.jpg"}, {"image": "b.jpg"}], "skipped": []}
    assert json.loads(capsys.readouterr().out) == said


def test_the_handler_goes_with_the_command():
    log = logging.getLogger("wordsight")
    before = (log.handlers[:], log.level)
    with speaking():
        assert log.isEnabledFor(logging.INFO) and len(log.handlers) == len(before[0]) + 1
    assert (log.handlers, log.level) == before


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        ([2.0, 1.0, 3.0], "yes"),
        ([-2.0, -3.0, -1.0], "no, they cost accuracy"),
        ([1.0, -1.0, 3.0], "not shown"),
    ],
)
def test_an_evaluation_says_whether_labels_helped_by_which_images_and_seed(capsys, difference, says):
    figures = {"accuracy": 80.0, "mean_class_recall": 80.0, "top5": None, "images": 50, "chance": 10.0}
    beside = {"zero_shot": {"accuracy": 78.0, "difference": difference}}
    evaluate([{"classes": "all", "references": beside} | figures])
    told = f"labels helped over names alone: {says} (95 % intervals over these images alone: one seed)"
    assert told in capsys.readouterr().out
