"""A source is known by what it holds, never by how its path was typed or where it lies."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from making import fill, png, put, tar

from wordsight.data import Picture, Split, open_dataset
from wordsight.data.images import Unreadable
from wordsight.data.splits import conflict_note, conflicts, digests, fingerprint

FOLDER = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")


def build(kind: str, root):
    """A source of this form in `root`: what data= names, and the file of one of its images or rows."""
    if kind == "folder":
        return fill(root, *FOLDER), root / "cat/1.png"
    if kind == "tar":
        members = {f"{name}.png": png(shade) for shade, name in enumerate("abcd")}
        members |= {f"{name}.cls": (b"cat", b"dog")[shade % 2] for shade, name in enumerate("abcd")}
        return tar(root / "0.tar", members), None
    fill(root, *FOLDER)
    rows = "".join(f"{name},{name[:3]}\n" for name in FOLDER)
    return put(root / "manifest.csv", "path,label\n" + rows).parent, root / "cat/1.png"


def of(spec) -> str:
    return fingerprint(open_dataset(str(spec)).train)


@pytest.mark.parametrize("kind", ["folder", "table", "tar"])
def test_the_spelling_and_the_place_do_not_matter(kind, tmp_path, monkeypatch):
    spec, _ = build(kind, tmp_path / "photos")
    known = of(spec)
    assert known.startswith("4, fingerprint ")
    monkeypatch.chdir(tmp_path)
    inside = os.path.relpath(spec, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (inside, f"./{inside}", f"photos/../{inside}", f"~/{inside}"):
        assert of(typed) == known, typed
    if kind != "tar":
        assert of(f"{inside}/") == known
    moved = shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere/renamed é")
    assert of(moved / os.path.relpath(spec, tmp_path / "photos")) == known
    (tmp_path / "link").symlink_to(moved)
    assert of(tmp_path / "link" / os.path.relpath(spec, tmp_path / "photos")) == known


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_other_pixels_labels_and_orders_are_noticed(kind, tmp_path):
    spec, file = build(kind, tmp_path)
    known = of(spec)
    before = file.read_bytes()
    file.write_bytes(png(200))
    assert of(spec) != known
    file.write_bytes(before)
    assert of(spec) == known
    if kind == "table":
        table = spec / "manifest.csv"
        header, *rows = table.read_text().splitlines()
        for changed in ([*rows[1:], rows[0]], [rows[0].replace(",cat", ",dog"), *rows[1:]]):
            table.write_text("\n".join([header, *changed]) + "\n")
            assert of(spec) != known
        table.write_text("\n".join([header, *(f"./{row}" for row in rows)]) + "\n")
        assert of(spec) == known
    else:
        (spec / "cat/1.png").rename(spec / "dog/0.png")
        assert of(spec) != known


def test_the_unicode_form_of_names_does_not_matter(tmp_path):
    forms = []
    for form in ("NFC", "NFD"):
        names = (unicodedata.normalize(form, name) for name in ("café/é.png", "café/f.png", "tea/1.png"))
        forms.append(of(fill(tmp_path / form, *names)))
    assert forms[0] == forms[1]


def split(*pictures: Picture, labels=None) -> Split:
    return Split(list(pictures), np.array(labels or [0] * len(pictures), dtype=np.int64))


@pytest.mark.parametrize("count", [3, 200])
def test_an_image_is_read_once_for_its_digest(count):
    loads = []

    def load(number: int) -> bytes:
        loads.append(number)
        if number == 1:
            raise OSError("gone")
        return png(number)

    pictures = [Picture(str(number), lambda number=number: load(number)) for number in range(count)]
    found = digests(pictures)
    assert found[1] is None and len({digest for digest in found if digest}) == count - 1
    assert all(len(digest) == 16 for digest in found if digest)
    assert digests(pictures) == found and loads.count(0) == 1
    with pytest.raises(Unreadable, match="cannot be read: gone"):
        pictures[1].digest  # noqa: B018
    assert fingerprint(split(*pictures)) != fingerprint(split(*pictures[::-1]))


def test_labels_of_several_classes_are_known_however_numpy_prints(tmp_path):
    pictures, shown = open_dataset(str(fill(tmp_path, *FOLDER))).train.pictures, np.ones((4, 2000), bool)
    known = fingerprint(Split(pictures, np.full(4, -1), shown))
    with np.printoptions(threshold=10**6):
        assert fingerprint(Split(pictures, np.full(4, -1), shown)) == known
    shown[0, 1000] = False  # which numpy leaves out of what it prints
    assert fingerprint(Split(pictures, np.full(4, -1), shown)) != known


def test_equal_bytes_under_two_labels_are_named():
    same = [Picture(name, lambda: png(5)) for name in ("a.png", "b.png", "c.png")]
    other = Picture("d.png", lambda: png(6))
    assert conflicts(split(*same, other, labels=[0, 0, 0, 1])) == []
    assert conflict_note(("cat", "dog"), split(*same, other)) is None
    train, test = split(same[0], other, labels=[0, 0]), split(same[1], labels=[1])
    assert conflicts(train, None, test) == [[("a.png", 0), ("b.png", 1)]]
    note = conflict_note(("cat", "dog"), train, test)
    assert (
        note.startswith("1 image with equal bytes under different labels")
        and "a.png (cat), b.png (dog)" in note
    )
