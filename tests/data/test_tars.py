"""Webdataset tars: the same samples for few shots and for streams, and every member kept or told."""

import gzip
import itertools
import json
import os
import tarfile

import pytest
from making import fails, fill, left_out, names, png, put, tar

from wordsight.data import open_dataset
from wordsight.data.pairs import open_pairs
from wordsight.data.samples import AGAIN, ALONE, BAD_FIELD, BESIDE, CUT, HIDDEN, NO_FILE
from wordsight.data.stream import open_stream


def samples(*keys: str, first: int = 0) -> dict[str, bytes]:
    """An image and a label of each key, in turn cat and dog."""
    members = {}
    for number, key in enumerate(keys):
        members |= {f"{key}.png": png(first + number), f"{key}.cls": (b"cat", b"dog")[number % 2]}
    return members


def streamed(spec) -> set[str]:
    """The images that a stream gives."""
    found = open_stream(str(spec)).sources[0].samples(0)
    return {picture.name for picture, _ in itertools.islice(found, 40)}


@pytest.mark.parametrize(
    "keys", [("cat_v1.4", "cat_v1.5", "a", "b"), ("a/b.c/1", "a/b.c/2.x.y"), ("./p.1", "./p.2")]
)
def test_the_extension_is_what_follows_the_last_dot(tmp_path, keys):
    data = open_dataset(tar(tmp_path / "0.tar", samples(*keys)))
    assert names(data.train) == [f"{key.removeprefix('./')}.png" for key in keys] and not data.notes
    assert streamed(tmp_path / "0.tar") == set(names(data.train))


def test_further_images_of_a_sample_are_told(tmp_path):
    members = samples("000", "001") | {"000.seg.png": png(9), "001.JPG": png(8), "001.meta.json": b"{}"}
    data = open_dataset(tar(tmp_path / "0.tar", members))
    assert names(data.train) == ["000.png", "001.png"]
    assert left_out(data) == {BESIDE: ["000.seg.png", "001.JPG"], ALONE: ["001.meta.json"]}
    alone = {"0.image.png": png(), "0.cls": b"a", "1.left.png": png(1), "1.right.png": png(2), "1.cls": b"b"}
    data = open_dataset(tar(tmp_path / "1.tar", alone))
    assert names(data.train) == ["0.image.png", "1.left.png"] and left_out(data)[BESIDE] == ["1.right.png"]


def test_every_member_is_kept_or_told(tmp_path):
    members = [
        *samples("a", "b", "c", "d").items(),
        ("a.png", png(50)),
        ("b.cls", b"cat"),
        ("c/._d.png", b""),
    ]
    members += [
        ("e.png", png(60)),
        ("f.cls", b"cat"),
        ("g.heic", b""),
        ("h.npy", b""),
        (".hidden/i.png", png()),
    ]
    members += [("j.png", png(61)), ("j.json", b"{"), ("k.png", png(62)), ("k.txt", b"\xff")]
    path = tar(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("l.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        file.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    data = open_dataset(path)
    told = left_out(data)
    assert names(data.train) == ["a.png", "b.png", "c.png", "d.png"]
    assert data.train.pictures[0].load() == png(50) and data.train.labels.tolist() == [0, 0, 0, 1]
    assert told[AGAIN] == ["a.png", "b.cls"] and told[HIDDEN] == ["c/._d.png", ".hidden/i.png"]
    assert told["without a label"] == ["e.png"] and told[ALONE] == ["f.cls"] and told[NO_FILE] == ["l.png"]
    assert told[BAD_FIELD] == ["j.png", "k.png"]
    assert any("HEIC" in reason and listed == ["g.heic"] for reason, listed in told.items())


# ---- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tar of eight samples, and where each member begins."""
    path = tar(tmp_path_factory.mktemp("whole") / "0.tar", samples(*"abcdefgh"))
    with tarfile.open(path) as file:
        return path.read_bytes(), [member.offset for member in file.getmembers()]


def test_a_tar_that_is_cut_off_is_told_wherever_it_is(whole, tmp_path):
    content, starts = whole
    end = starts[-1] + 1024
    for cut in [start + shift for start in starts[6:] for shift in (0, 100, 512, 600, 1023)] + [end]:
        data = open_dataset(put(tmp_path / "0.tar", content[:cut]))
        assert 3 <= len(data.train) <= 8 and "cut off or damaged" in " ".join(data.notes), cut
        left_out(data)
    data = open_dataset(put(tmp_path / "0.tar", content[: starts[8] + 512 + 10]))
    assert left_out(data)[CUT] == ["e.png"]
    for cut in (512, 700):
        fails(put(tmp_path / "0.tar", content[:cut]), "0.tar")


def test_a_damaged_header_is_told(whole, tmp_path):
    content, starts = whole
    for start in starts[6:]:
        for byte in (0, 124, 150, 156, 300):  # name, size, checksum, type, prefix
            hurt = bytearray(content)
            hurt[start + byte] ^= 0x40
            data = open_dataset(put(tmp_path / "0.tar", bytes(hurt)))
            assert len(data.train) < 8 and data.notes, (start, byte)


def test_tars_joined_by_cat_are_told(whole, tmp_path):
    data = open_dataset(put(tmp_path / "0.tar", whole[0] * 2))
    assert len(data.train) == 8 and "behind its end mark" in data.notes[0]
    assert not open_dataset(put(tmp_path / "0.tar", whole[0] + bytes(100_000))).notes  # only padding


def test_compressed_tars_are_refused_in_words(whole, tmp_path):
    packed = gzip.compress(whole[0])
    fails(put(tmp_path / "0.tar", packed), "compressed (gzip)", "uncompress it")
    fails(put(tmp_path / "0.tar.gz", packed), "only uncompressed tars")
    fails(put(tmp_path / "no.tar", b"no tar at all" * 100), "not readable as an uncompressed tar")
    fails(put(tmp_path / "nil.tar", b""), "nil.tar")
    good = put(tmp_path / "two/0.tar", whole[0])
    put(tmp_path / "two/1.tar", packed)
    data = open_dataset(good.parent)
    assert len(data.train) == 8 and "1.tar could not be read whole" in data.notes[0]


def test_a_file_that_has_become_shorter_is_no_image(whole, tmp_path):
    path = put(tmp_path / "0.tar", whole[0])
    data = open_dataset(path)
    path.write_bytes(whole[0][:1000])
    with pytest.raises(ValueError, match="shorter than when it was opened"):
        data.train.pictures[5].load()


# ---- labels


def test_several_labels_an_image_are_refused(tmp_path):
    for content in (b'{"label": ["cat", "dog"]}', b"[0, 1]"):
        path = tar(tmp_path / "0.tar", samples("a", "b") | {"c.png": png(7), "c.json": content})
        fails(path, "the label of c.png", "one label an image")
        assert len(streamed(path)) == 2  # a long training goes on without it
    fails(tar(tmp_path / "0.tar", samples("a") | {"b.png": png(1), "b.cls": b"3"}), "partly numbers")


def test_a_label_is_named_in_json(tmp_path):
    members = {}
    for number, key in enumerate("abc"):
        words = {"label": "x", "kind": ("cat", "dog", None)[number], "caption": ["one", "two"]}
        members |= {f"{key}.png": png(number), f"{key}.json": json.dumps(words).encode()}
    path = tar(tmp_path / "0.tar", members)
    data = open_dataset(str(path), label="kind")
    assert data.class_names == ("cat", "dog") and left_out(data) == {"without a label": ["c.png"]}
    assert open_pairs(str(path)).captions == [("one", "two")] * 3


def test_a_text_is_the_label_where_there_is_no_other(tmp_path):
    members = {"a.png": png(), "a.txt": b"a sitting cat", "a.cls": b"cat", "b.png": png(1), "b.txt": b"dog"}
    path = tar(tmp_path / "0.tar", members)
    assert open_dataset(path).class_names == ("cat", "dog")
    assert open_pairs(str(path)).captions == [("a sitting cat",), ("dog",)]


# ---- many tars


def test_names_begin_at_the_folder_of_the_tars(tmp_path):
    for number, part in enumerate(("train", "train", "test")):
        tar(tmp_path / part / f"{number}.tar", samples("a", "b", first=2 * number))
    data = open_dataset(tmp_path)
    assert names(data.train) == [
        "train/0.tar/a.png",
        "train/0.tar/b.png",
        "train/1.tar/a.png",
        "train/1.tar/b.png",
    ]
    assert names(data.test) == ["test/2.tar/a.png", "test/2.tar/b.png"]
    assert names(open_dataset(f"{tmp_path}/train/{{0..1}}.tar").train)[0] == "0.tar/a.png"
    assert streamed(tmp_path) == {"0.tar/a.png", "0.tar/b.png", "1.tar/a.png", "1.tar/b.png"}
    fails(f"{tmp_path}/train/{{1..0}}.tar", "names no tars")
    fails(f"{tmp_path}/train/{{0..99999999}}.tar", "names no tars, or more than")
    fails("https://host/0.tar", "download them")


def test_tars_beside_folders_of_images_are_refused(tmp_path):
    tar(fill(tmp_path, "cat/1.jpg", "dog/1.jpg") / "backup.tar", samples("a", "b"))
    fails(tmp_path, "both .tar files and folders of images (cat, dog)", f"data='{tmp_path}/*.tar'")
    assert len(open_dataset(f"{tmp_path}/*.tar").train) == 2
    tar(fill(tmp_path / "b", "preview.png") / "0.tar", samples("a", "b"))
    assert "1 image beside the tars" in open_dataset(tmp_path / "b").notes[0]


@pytest.mark.parametrize(
    "content", ["[]", '{"0.tar": "two"}', "{", '{"0.tar": 1.5}', "9" * 6000, "[" * 20000]
)
def test_a_list_of_sizes_of_another_shape_is_answered_in_words(tmp_path, content):
    path = tar(tmp_path / "0.tar", samples("a", "b"))
    put(tmp_path / "sizes.json", content)
    source = open_stream(str(path)).sources[0]
    with pytest.raises(ValueError, match=r"sizes\.json"):
        source.total  # noqa: B018


def test_a_pipe_is_no_tar(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    fails(tmp_path / "0.tar", "0.tar", "does not exist")
    tar(tmp_path / "1.tar", samples("a", "b"))
    assert len(open_dataset(tmp_path).train) == 2


def test_the_reader_of_a_member_is_the_same_for_file_and_memory(tmp_path):
    path = tar(tmp_path / "0.tar", samples("a", "b"))
    rows = {picture.name: picture.load() for picture in open_dataset(path).train.pictures}
    source = open_stream(str(path)).sources[0]
    stream = source.samples(0)
    assert {picture.name: picture.load() for picture, _ in (next(stream), next(stream))} == rows
    assert rows["a.png"][:4] == b"\x89PNG"
