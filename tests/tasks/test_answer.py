"""Answers to questions: how they are asked, cut and measured, with a generator whose answers are known."""

import csv
import io

import numpy as np
import pytest
import torch
from standins import COLOURS, paint

from wordsight.backbones.generator import Generator, Turn, Writing
from wordsight.config import WordsightError
from wordsight.data.questions import open_questions
from wordsight.tasks.answer import Answers, Asker, constants, cut, figures, measure, measured, table
from wordsight.verb_ask import _parts


class Namer(Generator):
    """Names the nearest colour of the last image; without one it says what the last example says, or red."""

    name, device = "namer", torch.device("cpu")

    def __init__(self):
        self.prompts, self.images = [], 0

    def see(self, images):
        self.images += len(images)
        means = [np.asarray(image, float).mean((0, 1)) for image in images]
        return [min(COLOURS, key=lambda name: abs(mean - COLOURS[name]).sum()) for mean in means]

    def write(self, prompts, how, seeds=None):
        self.prompts += prompts
        return [f" {self._last(prompt)} and more\nQ: What now?" for prompt in prompts]

    def _last(self, prompt):
        seen = [part for part in prompt if part in COLOURS]
        told = [part.split()[-1] for part in prompt if part.endswith("\n")]
        return (seen or told or ["red"])[-1]


@pytest.fixture
def asked(tmp_path):
    """Two training and three test images; the training answers are mostly blue."""
    lines = ["path,question,answer,kind,split"]
    rows = [("red", "train"), ("blue", "train"), ("blue", "train"), ("red", "test"), ("green", "test")]
    rows.append(("blue", "test"))
    for number, (colour, part) in enumerate(rows):
        paint(COLOURS[colour], number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,What colour?,{colour},{'shade' if number == 4 else 'colour'},{part}")
    lines.append("3.png,Is it red?,yes,yes/no,test")
    (tmp_path / "q.csv").write_text("\n".join(lines))
    return open_questions(str(tmp_path / "q.csv"))


def test_an_answer_ends_with_its_line_or_the_next_question_and_at_the_longest_reference():
    assert cut(" a man Q: Why?\nno") == "a man"
    assert cut("\n two dogs \nQ:") == "two dogs"
    assert cut("a red ball of wool", ["ball", "red ball"]) == "a red"
    assert cut("Q: what?") == cut("") == ""


def test_the_paper_s_form_with_examples_and_without_images():
    turns = [Turn("<1>", "How many?", "two"), Turn("<2>", "Why?")]
    asking = Namer().asking
    assert asking(turns) == ["<1>", "Q: How many? A: two\n", "<2>", "Q: Why? A:"]
    blind = [turn._replace(image=None) for turn in turns]
    assert asking(blind) == ["Q: How many? A: two\n", "Q: Why? A:"]


def test_accuracy_of_each_kind_beside_the_blind_lm_and_the_constant_answer(asked):
    event, _ = measured(Namer(), asked)
    assert (event["questions"], event["accuracy"], event["part"], event["shots"]) == (4, 75.0, "test", 0)
    assert event["blind"] == 25.0 and "constant" not in event  # no training question is of two of the kinds
    assert event["whole"] == 0.0  # `and more`, which the longest reference cuts off
    mean, low, high = event["over_blind"]
    assert mean == 50.0 and low < 50 < high
    kinds = event["kinds"]
    assert {kind: one["accuracy"] for kind, one in kinds.items()} == {
        "colour": 100.0,
        "shade": 100.0,
        "yes/no": 0.0,
    }
    assert constants(asked) == {"colour": "blue"} and kinds["colour"]["constant"] == 50.0


def test_examples_stand_before_each_question_and_images_are_seen_once(asked):
    namer = Namer()
    asker = Asker(namer)
    answers = measure(asker, asked, shots=2, seed=3)
    shown = asked.shown(2, 3, 0)
    assert namer.prompts[0] == [
        *(part for one in shown for part in (one.usual, f"Q: What colour? A: {one.usual}\n")),
        "red",
        "Q: What colour? A:",
    ]
    assert len(answers) == 4 and namer.images <= 6
    assert measure(asker, asked, shots=2, seed=3) == answers and namer.images <= 6
    blind = measure(asker, asked, shots=2, seed=3, look="none")
    assert [one.said for one in blind] == [asked.shown(2, 3, number)[-1].usual for number in range(4)]
    other = measure(asker, asked, look="other")
    assert [one.said for one in other] == ["green", "blue", "red", "green"]


def test_an_image_that_cannot_be_read_is_told_and_not_counted(asked, tmp_path):
    (tmp_path / "4.png").write_bytes(b"no image")
    event, _ = measured(Namer(), asked)
    assert event["questions"] == 3 and [name for name, _ in event["skipped"]] == ["4.png"]
    for number in (3, 5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(WordsightError, match="none of its images can be read"):
        measured(Namer(), asked)


def test_the_interval_is_over_images_and_the_table_holds_every_answer(asked):
    answers = measure(Asker(Namer()), asked)
    twice = [one for one in answers for _ in range(2)]  # the same images again are no new trials
    blind = measure(Asker(Namer()), asked, look="none")
    once = figures(answers, blind)["over_blind"]
    assert figures(twice, [one for one in blind for _ in range(2)])["over_blind"] == pytest.approx(once)
    read = list(csv.DictReader(io.StringIO(table(answers))))
    assert [(row["said"], row["accuracy"]) for row in read] == [
        ("red", "1"),
        ("green", "1"),
        ("blue", "1"),
        ("red", "0"),
    ]


def test_one_question_about_many_images(asked, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no image")
    namer = Namer()
    with pytest.raises(WordsightError, match=r"none of 1 images could be read; the first: .*0\.png"):
        list(Answers(namer, [tmp_path / "0.png"], "Why?"))
    answers = Answers(namer, [tmp_path], " What \n colour? ")
    said = [one.answer for one in answers]
    assert said == [f"{name} and more" for name in ("blue", "blue", "red", "green", "blue")]
    assert [one["image"].rsplit("/")[-1] for one in answers.skipped] == ["0.png"]
    place = tmp_path / "said.csv"
    (again,) = Answers(namer, [tmp_path / "3.png"], "What colour?", csv=place)
    assert list(csv.DictReader(io.StringIO(place.read_text()))) == [again._asdict()]
    for what, says in ({"question": "  "}, "blank"), ({"question": "Why?", "shots": 1}, "of which data"):
        with pytest.raises(WordsightError, match=says):
            Answers(namer, [tmp_path], **what)


def test_a_question_may_be_longer_than_the_name_of_a_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    question = f"Which of {'these, ' * 100}is it?"
    assert _parts([str(tmp_path / "a.jpg"), question]) == ([str(tmp_path / "a.jpg")], question)


def test_examples_stand_before_one_question(asked, tmp_path):
    namer = Namer()
    (said,) = Answers(namer, [tmp_path / "3.png"], "What colour?", examples=asked, shots=2)
    assert said.answer == "red and more" and len(namer.prompts[0]) == 6


def test_writing_that_cannot_be_is_refused():
    with pytest.raises(WordsightError, match="max_new_tokens=0"):
        Writing(max_new_tokens=0)
    with pytest.raises(WordsightError, match="give one of the two"):
        Writing(beams=2, temperature=0.5)
