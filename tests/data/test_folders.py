"""Folders of class folders: every file is kept or told, whatever people and systems leave there."""

import os
import unicodedata
from pathlib import Path

import pytest
from making import fails, files_below, fill, left_out, names, png, put
from PIL import Image

from wordsight.data import open_dataset
from wordsight.data.account import Account
from wordsight.data.folders import OUTSIDE, OUTSIDE_PARTS
from wordsight.data.images import read_image
from wordsight.data.rows import NO_IMAGE, NO_SUFFIX
from wordsight.data.sources import read_pictures
from wordsight.data.walk import BROKEN, HIDDEN, LOOP, NO_FILE, READ_ITSELF

TWO = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


def test_hidden_files_and_folders_are_left_out_at_any_depth(tmp_path):
    fill(tmp_path, *TWO)
    hidden = (
        "cat/.ipynb_checkpoints/1-checkpoint.jpg",
        "cat/._1.jpg",
        "dog/deep/.thumbs/a/b.jpg",
        ".git/x.jpg",
        ".DS_Store",
        "__MACOSX/cat/._1.jpg",
        "dog/@eaDir/1.jpg",
    )
    fill(tmp_path, *hidden, "dog/Thumbs.db")
    data = open_dataset(tmp_path)
    assert names(data.train) == list(TWO) and data.class_names == ("cat", "dog")
    assert sorted(left_out(data)[HIDDEN]) == sorted(hidden) and left_out(data)[NO_IMAGE] == ["dog/Thumbs.db"]
    assert data.account.seen == files_below(tmp_path)
    inside = open_dataset(fill(tmp_path / ".hidden/photos", *TWO))  # what is above the source does not count
    assert len(inside.train) == 4 and not inside.notes


def test_links_are_followed_once(tmp_path):
    root, outside = fill(tmp_path / "photos", *TWO), fill(tmp_path / "elsewhere", "3.jpg", "deep/4.jpg")
    (root / "cat/link.jpg").symlink_to(root / "dog/1.jpg")  # kept under dog, where it lies
    (root / "cat/far.jpg").symlink_to(outside / "3.jpg")
    (root / "cat/gone.jpg").symlink_to("nowhere.jpg")
    (root / "cat/self.jpg").symlink_to("self.jpg")
    (root / "cat/up").symlink_to(root)
    (root / "dog/same").symlink_to("deeper")
    fill(root, "dog/deeper/5.jpg")
    (root / "owl").symlink_to(outside)
    (root / "zoo").symlink_to(outside / "deep")
    data = open_dataset(root)
    told = left_out(data)
    assert told[READ_ITSELF] == ["cat/link.jpg", "dog/same", "owl/3.jpg", "zoo"]
    assert told[BROKEN] == ["cat/gone.jpg", "cat/self.jpg"] and told[LOOP] == ["cat/up"]
    assert names(data.train) == [*TWO[:2], "cat/far.jpg", *TWO[2:], "dog/deeper/5.jpg", "owl/deep/4.jpg"]
    assert "1 folder without images: zoo" in data.notes


def test_links_between_parts_and_from_a_pool_of_images(tmp_path):
    root = fill(tmp_path / "photos", "pool/1.jpg", "pool/2.jpg", "pool/3.jpg")
    for number, name in enumerate(("train/cat", "train/dog", "test/cat"), 1):
        (root / name).mkdir(parents=True)
        (root / name / "x.jpg").symlink_to(root / f"pool/{number}.jpg")
    data = open_dataset(root)
    assert (len(data.train), len(data.test)) == (2, 1)
    assert left_out(data)[OUTSIDE_PARTS] == ["pool/1.jpg", "pool/2.jpg", "pool/3.jpg"]
    whole = fill(tmp_path / "whole", *(f"train/{name}" for name in TWO))
    (whole / "test").symlink_to("train")
    data = open_dataset(whole)
    assert (
        len(data.train) == 4 and data.test is None and left_out(data)[READ_ITSELF] == ["test/cat", "test/dog"]
    )


def test_unknown_suffixes_are_named(tmp_path):
    fill(tmp_path, *TWO)
    others = {
        "cat/IMG_1.HEIC": "in HEIC or HEIF",
        "cat/a.heif": "in HEIC or HEIF",
        "dog/b.CR2": "camera's raw format",
        "dog/c.dng": "camera's raw format",
        "dog/d.svg": "image format that is not read here",
        "dog/e.mp4": "films",
        "dog/f": NO_SUFFIX,
        "dog/g.txt": NO_IMAGE,
        "dog/h.jpg.part": NO_IMAGE,
    }
    for name in others:
        put(tmp_path / name, b"x")
    told = left_out(open_dataset(tmp_path))
    for name, reason in others.items():
        assert any(reason in known and name in listed for known, listed in told.items()), name
    assert open_dataset(tmp_path).account.seen == files_below(tmp_path)
    for name in ("cat/1.heic", "dog/1.HEIC"):
        put(tmp_path / "phone" / name)
    fails(tmp_path / "phone", "holds no images", "HEIC", "convert them to JPEG", "cat/1.heic")


def test_formats_that_are_read(tmp_path):
    for name in ("cat/1.jp2", "cat/2.J2K", "dog/3.tga", "dog/4.TIFF", "dog/5.JPG"):
        path = put(tmp_path / name)
        Image.new("RGB", (9, 7), (200, 10, 30)).save(path, {".J2K": "JPEG2000"}.get(path.suffix))
    data = open_dataset(tmp_path)
    assert len(data.train) == 5 and not data.notes
    for picture in data.train.pictures:
        assert read_image(picture.load()).size == (9, 7), picture.name


def test_what_is_no_file_is_not_touched(tmp_path):
    fill(tmp_path, *TWO)
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    (tmp_path / "dog/device.jpg").symlink_to("/dev/zero")
    data = open_dataset(tmp_path)
    assert len(data.train) == 4 and left_out(data)[NO_FILE] == ["cat/pipe.jpg", "dog/device.jpg"]
    os.mkfifo(tmp_path / "photos")
    fails(tmp_path / "photos", "is a pipe")
    (tmp_path / "dog/2.jpg").unlink()
    os.mkfifo(tmp_path / "dog/2.jpg")  # it became one after it was seen
    with pytest.raises(ValueError, match="no regular file"):
        data.train.pictures[3].load()


def test_two_folders_of_one_part_are_refused(tmp_path):
    for first, second in (("valid", "validation"), ("train", "Training"), ("test", "testing")):
        root = fill(
            tmp_path / first, *(f"{part}/{name}" for part in ("train", first, second) for name in TWO)
        )
        fails(root, f"{second}/", f"{first}/", "mean the same part")
    empty = fill(tmp_path / "empty", *(f"{part}/{name}" for part in ("train", "val") for name in TWO))
    (empty / "validation").mkdir()
    assert len(open_dataset(empty).val) == 4


def test_images_without_a_label_are_kept_apart(tmp_path):
    root = fill(
        tmp_path / "kaggle", *(f"train/{name}" for name in TWO), "test/10.jpg", "test/9.jpg", "train/0.jpg"
    )
    data = open_dataset(root)
    assert data.test is None and [picture.name for picture in data.unlabelled] == [
        "test/10.jpg",
        "test/9.jpg",
    ]
    assert left_out(data) == {OUTSIDE: ["train/0.jpg"], "without a label": ["test/10.jpg", "test/9.jpg"]}
    for name in ("unlabelled", "unlabeled"):
        data = open_dataset(fill(tmp_path / name, *TWO, f"{name}/a.jpg", f"{name}/deep/b.jpg"))
        assert data.class_names == ("cat", "dog") and len(data.unlabelled) == 2 and len(data.train) == 4
    beside = fill(
        tmp_path / "beside", *(f"train/{name}" for name in TWO), "unlabelled/a.jpg", "docs/read.txt"
    )
    data = open_dataset(beside)
    assert len(data.unlabelled) == 1 and left_out(data)[NO_IMAGE] == ["docs/read.txt"]


def test_what_stands_beside_parts_is_told_or_refused(tmp_path):
    root = fill(tmp_path / "a", *(f"train/{name}" for name in TWO), "extra/1.jpg", "1.jpg")
    assert left_out(open_dataset(root)) == {OUTSIDE_PARTS: ["1.jpg", "extra/1.jpg"]}
    fails(fill(tmp_path / "b", *TWO, "test/cat/1.jpg"), "class folders (cat, dog) beside test/", "b/train/")
    fails(fill(tmp_path / "c", "train/1.jpg", "test/2.jpg"), "images directly in test/, train/", "<class>")


def test_folders_above_the_class_folders_are_refused(tmp_path):
    office = fill(tmp_path / "office", *(f"{domain}/{name}" for domain in ("real", "sketch") for name in TWO))
    fails(
        office,
        "folders above its class folders",
        "cat, dog stand in each of real, sketch",
        f"data={office}/real",
    )
    fails(fill(tmp_path / "w", *(f"photos/{name}" for name in TWO)), "one class only (photos)", "w/photos")
    train = fill(tmp_path / "t", *(f"train/{domain}/{name}" for domain in ("a", "b") for name in TWO))
    fails(train, f"data={train}/train/a")
    tiny = open_dataset(fill(tmp_path / "tiny", "n01/images/1.jpg", "n02/images/2.jpg"))  # Tiny ImageNet's
    assert tiny.class_names == ("n01", "n02") and not tiny.notes
    nested = open_dataset(fill(tmp_path / "n", "animal/cat/1.jpg", "animal/dog/1.jpg", "car/bus/1.jpg"))
    assert nested.class_names == ("animal", "car") and "animal (with cat, dog)" in nested.notes[0]


def test_names_are_compared_in_one_unicode_form(tmp_path):
    parted = open_dataset(fill(tmp_path / "p", f"train/{NFC}/1.jpg", "train/tea/1.jpg", f"test/{NFD}/2.jpg"))
    assert parted.class_names == (NFC, "tea") and parted.test.labels.tolist() == [0]
    both = open_dataset(fill(tmp_path / "b", f"{NFC}/1.jpg", f"{NFD}/1.jpg", "tea/1.jpg"))
    assert both.class_names == (NFC, "tea") and len(both.train) == 3
    assert any("differ only in their Unicode form" in note for note in both.notes)


def test_odd_names(tmp_path):
    fill(tmp_path, *TWO, "cat/a\x1b[31m\n.jpg", "dog/a, b.jpg", "salt, pepper/1.jpg")
    bad = os.fsdecode(b"caf\xe9.jpg")
    put(tmp_path / "cat" / bad, png(99))
    data = open_dataset(tmp_path)
    assert data.class_names == ("cat", "dog", "salt, pepper")
    picture = next(picture for picture in data.train.pictures if "caf" in picture.name)
    assert picture.name == "cat/caf\\xe9.jpg" and picture.load() == png(99)
    (tmp_path / os.fsdecode(b"th\xe9")).mkdir()
    fails(tmp_path, "'th\\\\xe9'", "not named in UTF-8", "rename it")


def test_classes_that_a_part_lacks_are_told(tmp_path):
    root = fill(tmp_path, *(f"train/{name}" for name in TWO), "test/cat/3.jpg", "test/owl/3.jpg")
    (root / "train/hollow").mkdir()
    notes = open_dataset(root).notes
    assert "1 folder of train/ without images: hollow" in notes
    assert "1 of 3 classes have no train image: owl" in notes
    assert "1 of 3 classes have no test image: dog" in notes


def test_the_images_of_a_folder_come_one_after_another(tmp_path):
    fill(tmp_path, "b/2.jpg", "b/10.jpg", "a.jpg", ".hidden/x.jpg", "b/x.txt")
    (tmp_path / "b/again.jpg").symlink_to(tmp_path / "a.jpg")
    account = Account()
    assert [picture.name for picture in read_pictures(tmp_path, account)] == ["a.jpg", "b/10.jpg", "b/2.jpg"]
    account.check()
    assert account.seen == files_below(tmp_path) and READ_ITSELF in account.left_out


def test_the_order_does_not_depend_on_the_unicode_form(tmp_path):
    letters = ("\u00e9", "f", "e", "z")
    orders = []
    for form in ("NFC", "NFD"):
        root = fill(
            tmp_path / form, *(unicodedata.normalize(form, f"cat/{letter}.jpg") for letter in letters)
        )
        data = open_dataset(fill(root, "dog/1.jpg"))
        orders.append([unicodedata.normalize("NFC", Path(name).stem) for name in names(data.train)])
    assert orders[0] == orders[1]
