"""Captions in the layouts that COCO, NoCaps and Flickr come in."""

import json

import pytest
from standins import COLOURS, paint

from wordsight.config import WordsightError
from wordsight.data.caption_lists import is_caption_list
from wordsight.data.pairs import open_pairs
from wordsight.data.sources import is_captioned


@pytest.fixture
def images(tmp_path):
    """Four photos, of which one lies in a folder of its own part."""
    for place in ("images", "val2014"):
        (tmp_path / place).mkdir()
    for number, name in enumerate(("images/a.jpg", "images/b.jpg", "images/c.jpg", "val2014/d.jpg")):
        paint(list(COLOURS.values())[number], number).save(tmp_path / name)
    return tmp_path


def karpathy(name, split, *texts, **more):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts], **more}


def found(path, part="train"):
    pairs = open_pairs(str(path), part)
    return dict(zip([picture.name for picture in pairs.pictures], pairs.captions))


def test_karpathy_s_json(images):
    listed = [
        karpathy("a.jpg", "train", "A red wall.", "Red paint."),
        karpathy("d.jpg", "restval", "Blue.", filepath="val2014"),
        karpathy("b.jpg", "test", "Green."),
        karpathy("lost.jpg", "train", "Gone."),
    ]
    path = images / "dataset_coco.json"
    path.write_text(json.dumps({"images": listed, "dataset": "coco"}))
    assert is_captioned(str(path))
    assert found(path) == {"a.jpg": ("A red wall.", "Red paint."), "val2014/d.jpg": ("Blue.",)}
    assert found(path, "test") == {"b.jpg": ("Green.",)}
    pairs = open_pairs(str(path))
    assert pairs.pictures[0].read()[0] == (images / "images" / "a.jpg").read_bytes()
    assert any("whose image is missing: lost.jpg" in note for note in pairs.notes)


@pytest.mark.parametrize(
    ("name", "part"), [("captions_train2014", "train"), ("nocaps_val_4500_captions", "test")]
)
def test_coco_s_and_nocaps_annotations(images, name, part):
    whole = {
        "images": [{"id": 5, "file_name": "a.jpg", "domain": "in-domain"}, {"id": 7, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 7, "id": 1, "caption": "Green."},
            {"image_id": 5, "id": 2, "caption": "Red."},
            {"image_id": 5, "id": 3, "caption": "Red paint."},
        ],
    }
    path = images / f"{name}.json"
    path.write_text(json.dumps(whole))
    assert found(path, part) == {"a.jpg": ("Red.", "Red paint."), "b.jpg": ("Green.",)}


def test_flickr_s_tokens_with_its_lists_of_parts(images):
    path = images / "Flickr8k.token.txt"
    path.write_text("a.jpg#0\tA red wall .\na.jpg#1\tRed paint .\nb.jpg#0\tGreen .\nc.jpg#0\tBlue .\n")
    assert len(found(path)) == 3  # without lists all are trained on
    (images / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (images / "Flickr_8k.testImages.txt").write_text("b.jpg\n")
    assert found(path) == {"a.jpg": ("A red wall .", "Red paint .")} and found(path, "test") == {
        "b.jpg": ("Green .",)
    }
    assert any("that no list of a part names: c.jpg" in note for note in open_pairs(str(path)).notes)


def test_flickr_s_tables(images):
    barred = images / "results.csv"
    barred.write_text(
        "image_name| comment_number| comment\n"
        "a.jpg| 0| A red wall , with paint .\n"
        "a.jpg| 1| Red .\n"
        "b.jpg| 4   A green one .\n"
    )
    assert found(barred) == {"a.jpg": ("A red wall , with paint .", "Red ."), "b.jpg": ("A green one .",)}
    plain = images / "captions.txt"
    plain.write_text('image,caption\na.jpg,"A red wall , with paint ."\nb.jpg,Green .\n')
    assert found(plain) == {"a.jpg": ("A red wall , with paint .",), "b.jpg": ("Green .",)}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", '{"questions": []}', "no list of images"),
        (
            "x.json",
            '{"images": [{"filename": "a.jpg", "split": "odd", "sentences": []}]}',
            "expected filename",
        ),
        ("x.json", '{"images": [], "annotations": [{"image_id": 1}]}', "expected image_id and caption"),
        ("x.json", '{"images": [{"id": 1}], "annotations": []}', "expected id and file_name"),
        ("x.token", "a.jpg#0\tRed .\nno caption here\n", "line 2 of"),
        ("x.token", "lost.jpg#0\tRed .\nstray.jpg#0\tBlue .\n", "files of 2 of 2 images"),
    ],
)
def test_what_is_in_no_layout_is_told(images, name, content, says):
    (images / name).write_text(content)
    with pytest.raises(WordsightError, match=says):
        open_pairs(str(images / name))


def test_other_texts_are_no_captions(images):
    (images / "notes.txt").write_text("hello")
    (images / "v2_questions.json").write_text('{"questions": []}')
    assert not is_caption_list(images / "notes.txt") and not is_caption_list(images / "v2_questions.json")
    assert not is_caption_list(images / "absent.json")


def test_no_caption_of_a_list_is_cut_or_dropped_in_silence(images):
    table = images / "captions.txt"
    table.write_text("image,caption\na.jpg,one\nc.jpg,two, three\n")
    assert found(table) == {"a.jpg": ("one",), "c.jpg": ("two, three",)}
    for content, says in (
        (
            "image,caption\na.jpg,one\nb.jpg\n",
            "line 3 of .*'b.jpg'; expected an image, a comma",
        ),
        ('image,caption\na.jpg,"one\nb.jpg,two\n', "the quote that opens in line 1 is never closed"),
    ):
        table.write_text(content)
        with pytest.raises(WordsightError, match=says):
            found(table)
    whole = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": None}]}
    said = {"image_id": "1", "caption": "Red."}
    path = images / "captions_train2014.json"
    path.write_text(json.dumps(whole | {"annotations": [*whole["annotations"], said]}))
    with pytest.raises(WordsightError, match="does not list: image_id '1'"):
        open_pairs(str(path))
