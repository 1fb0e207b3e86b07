"""Questions: sets, articles, and what is wrong with one's own."""

import json

import pytest

from wordsight.files import WordsightError
from wordsight.sentences.questions import QUESTIONS, article, ask_about, read_questions


def test_every_question_set_is_well_formed():
    sets = json.loads(QUESTIONS.read_text())
    assert set(sets) == {
        "generic",
        "texture",
        "satellite",
        "pets",
        "flowers",
        "aircraft",
        "cars",
        "food",
        "scenes",
        "actions",
        "contrast",
    }
    for name in sets:
        questions = read_questions(name, two=name == "contrast")
        assert len(questions) >= 3
        asked = [ask_about(question, "old owl", "ant_hill") for question in questions]
        assert not any("(n)" in one or "{" in one for one in asked)


def test_questions_fail_in_words():
    with pytest.raises(WordsightError, match=r"'flower' is not known \(did you mean 'flowers'\?\)"):
        read_questions("flower")
    for bad in (["Describe it."], ["{} or {}?"], [3]):
        with pytest.raises(WordsightError, match="must be text that holds"):
            read_questions(bad)
    assert read_questions('What is a {}?,"A {}, in short?"') == ("What is a {}?", "A {}, in short?")
    with pytest.raises(WordsightError, match="empty"):
        read_questions([])
    with pytest.raises(WordsightError, match=r"is about two classes; \{other\} is for `wordsight sentences"):
        read_questions("contrast")
    for bad in ("generic", ["{} or {other} or {other}"]):
        with pytest.raises(WordsightError, match=r"must hold \{other\} once.*questions=contrast"):
            read_questions(bad, two=True)


def test_articles_follow_the_sound():
    an = (
        "owl ant hour heirloom umbrella urchin F-16 F/A-18 MD-80 A320 A340-200 ERJ_135 Il-76 MG SUV 8-ball "
        "11 1850 x-ray uninhabited_isle emu"
    )
    a = (
        "cat unicycle euphonium ewer one-man_band U-2 USB BMW FIAT RAM 737-200 C-130 DHC-6 T-shirt 110 "
        "2012_FIAT yin_yang utility_pole user ukulele _"
    )
    assert [word for word in an.split() if article(word) != "an"] == [] and [
        word for word in a.split() if article(word) != "a"
    ] == []
    assert (
        ask_about("Describe a(n) {}.", "old_owl") == "Describe an old owl."
        and ask_about("A(n) {}?", "owl") == "An owl?"
    )
    both = "How does a(n) {} differ from a(n) {other}?"
    assert ask_about(both, "old_owl", "emu_egg") == "How does an old owl differ from an emu egg?"
    assert ask_about("What is {} food?", "apple_pie") == "What is apple pie food?"
