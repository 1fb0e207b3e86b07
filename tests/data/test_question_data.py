"""Questions about images: of tables and of VQA's layout, with an account of what was left out."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from standins import COLOURS, paint

from wordsight.config import WordsightError
from wordsight.data.questions import is_questions, open_questions


def vqa_files(folder, part, images, *, answered=True, missing=()):
    """Questions and annotations with the keys that visualqa.org describes, and their images."""
    shared = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": part}
    questions, annotations = [], []
    place = folder / part.replace("test-dev", "test")
    place.mkdir(parents=True, exist_ok=True)
    for image in images:
        if image not in missing:
            paint(COLOURS["red"], image).save(place / f"COCO_{place.name}_{image:012d}.jpg")
        ids = {"image_id": image, "question_id": image * 1000}
        questions.append({**ids, "question": "What is it?"})
        answers = [
            {"answer": "net" if number < 8 else "goal", "answer_confidence": "yes", "answer_id": number + 1}
            for number in range(10)
        ]
        told = {"question_type": "what is", "multiple_choice_answer": "net", "answer_type": "other"}
        annotations.append({**ids, **told, "answers": answers})
    whole = {**shared, "task_type": "Open-Ended", "questions": questions}
    (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps(whole))
    if answered:
        whole = {**shared, "annotations": annotations}
        (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps(whole))
    return folder


def rows(tmp_path, *lines, header="path,question,answer,split"):
    for name in ("a", "b"):
        paint(COLOURS["red"], 0).save(tmp_path / f"{name}.png")
    (tmp_path / "q.csv").write_text("\n".join([header, *lines]))
    return str(tmp_path / "q.csv")


def test_vqa_s_files_become_questions_of_parts_and_val_is_measured(tmp_path):
    vqa_files(tmp_path, "train2014", [9, 262148])
    vqa_files(tmp_path, "val2014", [42])
    vqa_files(tmp_path, "test-dev2015", [7], answered=False)  # whose answers are not public
    found = open_questions(str(tmp_path))
    assert is_questions(str(tmp_path)) and found.measured()[0] == "val"
    assert [(row.part, row.kind, row.usual, len(row.answers)) for row in found.rows] == [
        ("train", "other", "net", 10),
        ("train", "other", "net", 10),
        ("val", "other", "net", 10),
    ]
    assert found.rows[1].picture.name == "train2014/COCO_train2014_000000262148.jpg"
    assert found.rows[1].picture.read()[0][:2] == b"\xff\xd8"
    assert found.account.seen == 4 and found.account.kept == 3
    assert found.account.left_out["without an answer"].count == 1
    alone = open_questions(str(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"))
    assert [row.part for row in alone.rows] == ["val"]


def test_vqa_s_files_that_do_not_fit_are_refused(tmp_path):
    folder = vqa_files(tmp_path, "val2014", range(1, 6), missing=(1, 2))
    found = open_questions(str(folder))
    assert len(found.rows) == 3 and found.account.left_out["whose image is missing"].count == 2
    (folder / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    with pytest.raises(WordsightError, match=r"images of 3 of 5 questions .* are missing"):
        open_questions(str(folder))
    file = folder / "v2_mscoco_val2014_annotations.json"
    other = json.loads(file.read_text())
    other["annotations"][4]["image_id"] = 77
    file.write_text(json.dumps(other))
    with pytest.raises(WordsightError, match="about image 5, but its annotation about 77"):
        open_questions(str(folder))
    file.write_text(json.dumps({"data_subtype": "val2014", "annotations": [{"question_id": "x"}]}))
    with pytest.raises(WordsightError, match="expected image_id, answers, question_id"):
        open_questions(str(folder))


def test_a_table_has_one_answer_or_many_in_cells_and_columns_and_tells_what_it_left_out(tmp_path):
    spec = rows(
        tmp_path,
        "a.png,How many?,2,,train",
        "b.png,Is it red?,yes|yes|no,yes,test",
        'b.png,What?,"[""a net"", ""net"", ""net""]",net,test',
        "b.png,,2,,test",
        "b.png,What?,,,test",
        "c.png,What?,net,,test",
        header="path,question,answer_1,answer_2,split",
    )
    found = open_questions(spec)
    assert [(row.text, row.answers, row.kind, row.part) for row in found.rows] == [
        ("How many?", ("2",), "number", "train"),
        ("Is it red?", ("yes", "yes", "no", "yes"), "yes/no", "test"),
        ("What?", ("a net", "net", "net", "net"), "other", "test"),
    ]
    left = {reason: entry.count for reason, entry in found.account.left_out.items()}
    assert left == {"without a question": 1, "without an answer": 1, "whose image is missing": 1}
    assert found.rows[1].usual == "yes" and found.measured()[0] == "test"


def test_two_answers_and_tables_without_questions_are_refused(tmp_path):
    with pytest.raises(WordsightError, match=r"has 2 answers; give one, or 4 or more"):
        open_questions(rows(tmp_path, "a.png,What?,net|goal,test"))
    with pytest.raises(WordsightError, match="has no answer column"):
        open_questions(rows(tmp_path, "a.png,What?", header="path,question"))
    labels = rows(tmp_path, "a.png,red", header="path,label")
    assert not is_questions(labels)
    with pytest.raises(WordsightError, match="has no question column"):
        open_questions(labels)
    with pytest.raises(WordsightError, match=r"no question with an image and an answer; left out 1 of 1"):
        open_questions(rows(tmp_path, "a.png,What?,,test"))
    with pytest.raises(WordsightError, match="it does not exist; give a table of path, question and answer"):
        open_questions(str(tmp_path / "none"))


def test_shown_questions_are_of_the_training_part_about_other_images_and_nested(tmp_path):
    lines = [f"{name}.png,Is it {n}?,yes,train" for name in "ab" for n in range(20)]
    found = open_questions(rows(tmp_path, *lines, "a.png,Is it?,yes,test"))
    two = [found.shown(2, 1, number) for number in range(30)]
    assert all({row.picture.name for row in shown} == {"a.png", "b.png"} for shown in two)
    assert [found.shown(1, 1, number) for number in range(30)] == [shown[:1] for shown in two]
    assert two != [found.shown(2, 2, number) for number in range(30)]
    found.check_shots(2)
    with pytest.raises(WordsightError, match=r"shots=3 shows .* has 2 marked as train"):
        found.check_shots(3)


@pytest.fixture(scope="session")
def maker():
    """benchmarks/vqa/questions.py, which no package holds."""
    file = Path(__file__).parents[2] / "benchmarks" / "vqa" / "questions.py"
    spec = importlib.util.spec_from_file_location("made_questions", file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_questions_are_made_where_captions_agree(maker):
    captions = [
        maker.words(text)
        for text in (
            "Two black dogs run in the snow .",
            "Two dogs are in the snow",
            "A pair of animals",
            "a black dog and another",
            "Animals play .",
        )
    ]
    made = {one.question: one.answer for one in maker.yes_no("p", captions)}
    assert made["Is there a dog in the picture?"] == made["Is there snow in the picture?"] == "yes"
    assert made["Is there a bench in the picture?"] == "no"
    assert "Is there a bird in the picture?" not in made  # an animal may be one
    assert list(maker.counts("p", captions[:3])) == [("p", "How many dogs are there?", "two", "count", "dog")]
    assert not list(maker.counts("p", captions))  # `a dog and another`: not sure
    assert [one.answer for one in maker.colors("p", captions)] == ["black"]
    assert not list(maker.colors("p", [*captions, maker.words("a black and white dog")]))


@pytest.mark.slow
def test_made_questions_have_no_answer_that_is_right_more_often_than_half(maker, shared):
    (rows,) = maker.questions(shared / "data" / "flickr8k" / "captions.csv", {"test": 480}).values()
    for kind in ("yes/no", "count", "color"):
        answers = Counter(one.answer for one in rows if one.kind == kind)
        assert answers.total() >= 150 and answers.most_common(1)[0][1] * 2 <= answers.total()


def test_columns_beside_the_answers_are_no_votes(tmp_path):
    header = "path,question,answers,answerable,answer_confidence"
    path = rows(
        tmp_path, *[f"{name}.png,what?,{'|'.join(['dog'] * 10)},1,yes" for name in "ab"], header=header
    )
    assert {row.answers for row in open_questions(path).rows} == {("dog",) * 10}


def test_an_answer_of_null_is_none(tmp_path):
    folder = vqa_files(tmp_path, "train2014", [9])
    file = next(folder.glob("*annotations.json"))
    file.write_text(file.read_text().replace('"net"', "null"))
    with pytest.raises(WordsightError, match=r"answers of question 9000 of .* are no list of"):
        open_questions(str(folder))
