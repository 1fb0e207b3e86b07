"""Audit: what was planted in real handwritten digits is found, and nothing is said of what is right."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch.nn import functional as F

import wordsight
from wordsight import terminal
from wordsight.audit import audit
from wordsight.audit.checked import open_checked
from wordsight.audit.copies import SIDE, WINDOWS, Copy, correlations, find_copies
from wordsight.audit.errors import wrong_labels
from wordsight.audit.found import grouped
from wordsight.audit.next_labels import Pick, choose_next, worth
from wordsight.audit.outliers import find_outliers
from wordsight.audit.tables import _root, setup
from wordsight.backbones import unit
from wordsight.cli import main
from wordsight.config import WordsightError
from wordsight.data import Picture, open_dataset
from wordsight.data.given import pictures_of

NAMES = ("zero", "one", "four", "six")
DIGITS = (0, 1, 4, 6)
EACH, TESTED = 8, 3  # training and test images of each digit
FLIPPED = {(0, 3), (2, 1)}  # image 3 of the zeros and 1 of the fours lie under the next class


def digit(values) -> Image.Image:
    grey = Image.fromarray(np.rint(values.reshape(8, 8) * (255 / 16)).astype(np.uint8))
    return grey.resize((32, 32), Image.Resampling.BICUBIC)


def digit_folder(root, flipped=()):
    """Real handwritten digits as PNG in train/ and test/."""
    images, labels = load_digits(return_X_y=True)
    for label, (name, number) in enumerate(zip(NAMES, DIGITS)):
        for index, values in enumerate(images[labels == number][: EACH + TESTED]):
            part = "train" if index < EACH else "test"
            folder = root / part / NAMES[(label + ((label, index) in flipped)) % len(NAMES)]
            folder.mkdir(parents=True, exist_ok=True)
            digit(values).save(folder / f"{name}{index}.png")
    return root


SETTINGS = {
    "backbone": "micro",
    "method": "linear_probe",
    "sentences": "digits",
    "shots": None,
    "flip": False,
    "references": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits of which two have a wrong label, and two stand among the test images too."""
    root = tmp_path_factory.mktemp("audit")
    data = digit_folder(root / "data", FLIPPED)
    for name in ("one5", "six2"):
        source = data / "train" / name[:-1] / f"{name}.png"
        (data / "test" / name[:-1] / "again.png").write_bytes(source.read_bytes())
    return wordsight.fit(data=str(data), out=str(root / "run"), **SETTINGS)


@pytest.fixture(scope="module")
def audited(run, tmp_path_factory):
    pool = tmp_path_factory.mktemp("pool")
    images, labels = load_digits(return_X_y=True)
    for index in np.flatnonzero(np.isin(labels, DIGITS))[-12:]:
        digit(images[index]).save(pool / f"{index}.png")
    source = run.folder.parent / "data" / "train" / "six" / "six0.png"
    (pool / "labelled.png").write_bytes(source.read_bytes())
    return audit(run.folder, pool=pool, count=7)


# -- all of it --


@pytest.mark.slow
def test_wrong_labels_are_found_with_the_right_class(audited):
    found = {entry["image"]: entry for entry in audited["label_errors"]}
    planted = {
        f"train/{NAMES[label + 1]}/{NAMES[label]}{index}.png": NAMES[label] for label, index in FLIPPED
    }
    assert planted.keys() <= found.keys()
    assert all(found[image]["suggested"] == right for image, right in planted.items())
    assert len(found) <= 5


@pytest.mark.slow
def test_labelled_images_that_were_not_drawn_are_counted(run, tmp_path, said):
    few = wordsight.fit(data=run.settings.data, out=str(tmp_path / "few"), **SETTINGS | {"shots": 4})
    checked = open_checked(few, None, None)
    assert len(checked.rows_of("train")) == 16
    assert any(line.startswith("shots=4 left 16 labelled images of") for line in said)
    open_checked(run, None, None)
    assert sum("undrawn" in line for line in said) == 1


@pytest.mark.slow
def test_copies_across_train_and_test_are_found(audited):
    groups = [{image["image"] for image in group["images"]} for group in audited["copies"] if group["across"]]
    for name in ("one/one5.png", "six/six2.png"):
        assert any({f"train/{name}", f"test/{name[:4]}again.png"} <= group for group in groups)


@pytest.mark.slow
def test_what_to_label_next_leaves_out_what_is_labelled(audited):
    images = [entry["image"] for entry in audited["next"]]
    assert len(set(images)) == 7 and "labelled.png" not in images
    assert all(entry["predicted"] in NAMES and entry["stands_for"] >= 1 for entry in audited["next"])


@pytest.mark.slow
def test_the_page_holds_pictures_and_all_sections(audited):
    text = Path(audited["html"]).read_text()
    for title in (
        "Labels in doubt",
        "Copies",
        "Outliers",
        "Classes that words confuse",
        "What to label next",
    ):
        assert f"<h2>{title}" in text
    assert text.count("data:image/png;base64") > 8 and "<script" not in text
    assert json.loads(Path(audited["json"]).read_text()) == audited


@pytest.mark.slow
def test_corrected_labels_are_fitted_to(audited, run, tmp_path):
    table = run.folder / "audit" / "labels.csv"
    rows = rows_of(table)
    assert len(rows) == len(NAMES) * (EACH + TESTED) + 2
    planted = {f"{NAMES[label]}{index}.png": NAMES[label] for label, index in FLIPPED}
    for row in rows:
        name = os.path.basename(row["path"])
        if name in planted:
            assert row["suggested"] == planted[name] != row["label"]
            row["label"] = row["suggested"]
    write(tmp_path / "fixed.csv", rows)
    fixed = open_dataset(str(tmp_path / "fixed.csv"))
    assert len(fixed.train) == len(NAMES) * EACH and len(fixed.test) == len(NAMES) * TESTED + 2
    for picture, label in zip(fixed.train.pictures, fixed.train.labels):
        assert os.path.basename(picture.name).startswith(fixed.class_names[label])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader(), out.writerows(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["path", "image"])
def test_label_studio_s_export_is_fitted_to(audited, run, tmp_path, kept):
    """Its export has the columns that were imported and the choice, under the name in label-studio.xml; or
    the address of the image alone."""
    folder = run.folder / "audit"
    rows = rows_of(folder / "label-studio.csv")
    assert '<Choices name="choice"' in (folder / "label-studio.xml").read_text()
    assert rows[0]["image"].startswith("/data/local-files/?d=") and rows[0]["given"]
    assert rows[-1]["found"] == "label next" and not rows[-1]["given"]
    exported = [
        {"annotation_id": 1, "choice": row["suggested"] or row["given"], "id": at, "image": row["image"]}
        | ({"path": row["path"]} if kept == "path" else {})
        for at, row in enumerate(rows)
    ]
    root = os.path.commonpath([os.path.dirname(row["path"]) for row in rows])
    table = (tmp_path if kept == "path" else Path(root)) / "export.csv"
    write(table, exported)
    read = open_dataset(str(table))
    assert len(read.train) == len(rows) and set(read.class_names) <= set(NAMES)
    assert all(picture.read()[0][:4] == b"\x89PNG" for picture in read.train.pictures)


# -- label errors --


def test_label_studio_reads_class_names_as_they_are():
    names = ['a "quote" & <b>', "two\nlines", "it's"]
    choices = ElementTree.fromstring(setup(names)).iter("Choice")
    assert [one.get("value") for one in choices] == names


def test_a_label_that_the_probabilities_agree_with_is_no_error():
    chances = np.full((40, 4), 0.02)
    labels = np.arange(40) % 4
    chances[np.arange(40), labels] = 0.94
    assert wrong_labels(labels, chances) == []
    given = labels.copy()
    given[5] = (labels[5] + 1) % 4
    (found,) = wrong_labels(given, chances)
    assert (found.row, found.label, found.suggested) == (5, given[5], labels[5])


def test_without_cleanlab_the_extra_is_named(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(WordsightError, match=r'audit needs .* pip install "wordsight\[audit\]"'):
        audit(run.folder)


# -- copies --


def photo(seed: int, size: int = 96) -> Image.Image:
    """Clouds of colour with edges, as a photo has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((size, size), 3)
    fine = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).resize((size, size), 0)
    return Image.blend(coarse, fine, 0.4)


def jpeg(image: Image.Image, quality: int = 70) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


COPIED = {
    "re-encoded": (lambda image: image, False),
    "resized": (lambda image: image.resize((50, 50)), False),
    "cropped": (lambda image: image.crop((4, 9, 88, 91)), False),
    "mirrored": (ImageOps.mirror, True),
    "mirrored and cropped": (lambda image: ImageOps.mirror(image).crop((0, 0, 84, 84)), True),
}


@pytest.mark.parametrize("kind", COPIED)
def test_a_copy_is_found_and_another_photo_is_not(kind):
    change, mirrored = COPIED[kind]
    contents = [jpeg(photo(1), 95), jpeg(change(photo(1))), jpeg(photo(2)), jpeg(photo(3))]
    pictures = [Picture(str(index), lambda own=own: own) for index, own in enumerate(contents)]
    vectors = unit(torch.ones(4, 3) + 0.01 * torch.eye(4, 3))  # which say that all are near
    (found,) = find_copies(pictures, vectors)
    assert (found.first, found.second, found.same, found.mirrored) == (0, 1, False, mirrored)
    assert found.likeness > 0.85


def test_equal_files_are_copies_whatever_they_show():
    pictures = pictures_of([Image.new("RGB", (9, 9), 3), Image.new("RGB", (9, 9), 3)])
    assert find_copies(pictures, unit(torch.eye(2))) == [Copy(0, 1, True, False, 1.0)]


def test_other_colours_are_another_image():
    image = photo(1)
    swapped = Image.merge("RGB", [image.getchannel(one) for one in "BRG"])
    contents = [jpeg(image, 95), jpeg(swapped, 95)]
    pictures = [Picture(str(index), lambda own=own: own) for index, own in enumerate(contents)]
    assert find_copies(pictures, unit(torch.ones(2, 3))) == []


def test_flat_images_and_unreadable_ones_are_no_copies():
    contents = [jpeg(Image.new("RGB", (9, 9), shade)) for shade in (30, 90)] + [b"no image", b"none either"]
    pictures = [Picture(str(index), lambda own=own: own) for index, own in enumerate(contents)]
    assert find_copies(pictures, unit(torch.ones(4, 2))) == []


def test_correlations_by_fourier_transforms_are_the_plain_ones():
    torch.manual_seed(0)
    whole, cut = 255 * torch.rand(2, SIDE, SIDE)
    found = correlations(whole, cut)
    height, width = round(SIDE * WINDOWS[1]), round(SIDE * WINDOWS[-1])
    template = F.interpolate(cut[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    for top, left in ((0, 0), (1, 3), (SIDE - height, SIDE - width)):
        part = whole[top : top + height, left : left + width]
        plain = torch.corrcoef(torch.stack([part.flatten(), template.flatten()]))[0, 1]
        assert torch.isclose(found[2 * len(WINDOWS) - 1, top, left], plain, atol=1e-5)
    assert found[len(WINDOWS), -1, -1] == -1  # it would leave the image


def test_groups_join_what_is_joined():
    pairs = [Copy(0, 3, True, False, 1.0), Copy(1, 2, False, False, 0.9), Copy(2, 3, False, False, 0.9)]
    assert grouped([*pairs, Copy(5, 6, True, False, 1.0)]) == [[0, 1, 2, 3], [5, 6]]


# -- outliers --


def test_an_image_far_from_all_and_one_far_from_its_class():
    torch.manual_seed(0)
    near = torch.eye(4, 16)[:2].repeat_interleave(20, 0) + 0.05 * torch.randn(40, 16)
    labels = np.repeat([0, 1], 20)
    strange = torch.eye(4, 16)[3:] + 0.05 * torch.randn(1, 16)
    vectors = unit(torch.cat([near, strange, near[:1] + 0.01 * torch.randn(1, 16)]))
    found = {one.row: one.of for one in find_outliers(vectors, np.append(labels, [0, 1]))}
    assert found[40] == "set" and found[41] == "class"


# -- what to label next --


def plain_greedy(pool, count, doubt, labelled):
    """Facility location as it is written."""
    middle = pool.mean(0)
    own = unit(pool - middle)
    similar = (own @ own.T).clamp(min=0)
    near = torch.zeros(len(pool))
    if labelled is not None:
        near = (unit(labelled - middle) @ own.T).clamp(min=0).max(0).values
    chosen = []
    for _ in range(count):
        gains = (similar - near).clamp(min=0) @ doubt
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        near = torch.maximum(near, similar[chosen[-1]])
    return chosen


@pytest.mark.parametrize("labelled", [None, 4])
def test_the_lazy_choice_is_the_plain_greedy_one(labelled):
    torch.manual_seed(1)
    pool, doubt = unit(torch.randn(60, 8)), torch.rand(60)
    some = unit(torch.randn(labelled, 8)) if labelled else None
    picks = choose_next(pool, 12, weights=doubt, labelled=some)
    assert [pick.row for pick in picks] == plain_greedy(pool, 12, doubt, some)
    gains = [pick.gain for pick in picks]
    assert all(0 <= gain <= 1 for gain in gains)


def test_clusters_are_covered_before_any_is_asked_twice():
    torch.manual_seed(0)
    centres = torch.eye(5, 12)
    pool = unit(centres.repeat_interleave(9, 0) + 0.1 * torch.randn(45, 12))
    rows = [pick.row // 9 for pick in choose_next(pool, 5)]
    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert sum(pick.stands_for for pick in choose_next(pool, 5)) == 45


def test_what_is_labelled_is_not_asked_again_and_a_small_pool_is_taken_whole():
    torch.manual_seed(0)
    pool = unit(torch.randn(6, 4))
    assert sorted(pick.row for pick in choose_next(pool, 50)) == list(range(6))
    assert choose_next(pool[:0], 3) == []
    assert isinstance(choose_next(pool, 1)[0], Pick)


def test_doubt_and_classes_with_few_labels_are_worth_more():
    chances = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    found = worth(chances, torch.tensor([3, 0]))
    assert torch.allclose(found, torch.tensor([0.1 * 0.325, 0.4 * 0.55, 0.1 * 0.925]))


# -- the command line --


@pytest.mark.slow
def test_the_command_line(audited, run, tmp_path, capsys):
    assert main(["audit", str(run.folder), f"out={tmp_path / 'out'}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label_errors"] == audited["label_errors"] and answer["pool"] is None
    terminal.audit(audited)
    said = capsys.readouterr().out
    assert "labels in doubt" in said and "across train and test" in said and audited["html"] in said


def test_label_studio_is_served_from_a_folder_above_all_images(tmp_path):
    files = [tmp_path / "a" / "x.png", tmp_path / "b" / "y.png"]
    assert _root(None, files) == tmp_path == _root(tmp_path, files)
    with pytest.raises(WordsightError, match=r"does not hold .*y.png; give a folder above all images"):
        _root(tmp_path / "a", files)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "does not exist"),
        (["RUN", "next=0"], "next=0 proposes no image"),
        (["RUN", "root=/nowhere"], "root='/nowhere' is no folder"),
        (["RUN", "pool=nowhere"], "pool=nowhere: data='nowhere' does not exist"),
        (["RUN", "pool=EMPTY"], "holds no images"),
        (["RUN", "pool=SAME"], "labelled already"),
        (["RUN", "pol=x"], "did you mean 'pool'"),
    ],
)
def test_mistakes_are_told(words, said, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {
        "RUN": str(run.folder),
        "EMPTY": str(tmp_path / "empty"),
        "SAME": str(run.folder.parent / "data" / "train" / "one"),
    }
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert main(["audit", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_image_that_is_its_class_s_only_one_is_not_judged(tmp_path):
    data = digit_folder(tmp_path / "data")
    for file in sorted((data / "train" / "six").glob("*.png"))[1:]:
        file.unlink()
    fitted = wordsight.fit(data=str(data), out=str(tmp_path / "run"), **SETTINGS)
    checked = open_checked(fitted, None, None)
    alone = [row for row, image in enumerate(checked.images) if image.part == "train" and image.label == 2]
    assert len(alone) == 1 and set(alone) == set(range(len(checked.images))) - set(checked.judged.tolist())
