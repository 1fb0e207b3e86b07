"""Every form a dataset may have is read, and every way to get it wrong is answered in words."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetInfo
from PIL import Image
from standins import paint

from wordsight.config import WordsightError
from wordsight.data import open_dataset
from wordsight.data.images import read_image


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, content: bytes | str = b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fails(spec, *words: str):
    with pytest.raises(WordsightError) as error:
        open_dataset(str(spec))
    for word in words:
        assert word in str(error.value), str(error.value)


def names(split) -> list[str]:
    return [picture.name for picture in split.pictures]


@pytest.fixture
def photos(tmp_path):
    for name in ("red_fox/1.png", "red_fox/deep/2.PNG", "ant/1.jpg", "ant/2.png"):
        put(tmp_path / "photos" / name, png(len(name)))
    return tmp_path / "photos"


def test_digits():
    data = open_dataset("digits")
    assert data.class_names[:3] == ("zero", "one", "two") and len(data.class_names) == 10
    assert (len(data.train), len(data.test), data.val) == (898, 899, None)
    assert np.ptp(np.bincount(data.train.labels)) <= 5
    image = data.train.pictures[0].load()
    assert (
        image.shape == (8, 8, 3)
        and image.dtype == np.uint8
        and max(picture.load().max() for picture in data.train.pictures) == 255
    )
    assert names(data.train) == names(open_dataset("digits").train) and not set(names(data.train)) & set(
        names(data.test)
    )


def test_folder_of_class_folders(photos):
    put(photos / "ant/Thumbs.db")
    put(photos / "ant/.DS_Store")
    put(photos / "loose.png", png())
    (photos / "hollow").mkdir()
    data = open_dataset(photos)
    assert data.class_names == ("ant", "red_fox") and data.val is None and data.test is None
    assert names(data.train) == ["ant/1.jpg", "ant/2.png", "red_fox/1.png", "red_fox/deep/2.PNG"]
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.pictures[0].load() == png(len("ant/1.jpg"))
    assert data.notes == (
        "left out 1 of 7 files that are hidden or lie in a hidden folder: ant/.DS_Store",
        "left out 1 of 7 files of no image format: ant/Thumbs.db",
        "left out 1 of 7 files outside the class folders: loose.png",
        "1 folder without images: hollow",
    )


def test_split_folders(tmp_path):
    for split in ("train", "Validation", "test"):
        for label in ("b", "a"):
            put(tmp_path / split / label / "x.jpg", png())
    data = open_dataset(tmp_path)
    assert data.class_names == ("a", "b") and [len(part) for part in (data.train, data.val, data.test)] == [
        2,
        2,
        2,
    ]
    put(tmp_path / "tset/a/x.jpg", png())
    fails(tmp_path, "unknown splits: 'tset'", "did you mean 'test'", "train, val")


def test_a_class_may_be_named_train(tmp_path):
    for name in ("train", "plane"):
        put(tmp_path / name / "x.jpg", png())
    assert open_dataset(tmp_path).class_names == ("plane", "train")


def test_bad_folders(tmp_path, photos):
    fails(tmp_path / "photo", "does not exist", "did you mean 'photos'")
    fails("nowhere", "does not exist", "digits")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "is empty")
    put(tmp_path / "flat/1.jpg", png())
    fails(tmp_path / "flat", "1 images (1.jpg) but no class folders", "<class>")
    put(tmp_path / "texts/a/1.txt", b"x")
    fails(tmp_path / "texts", "holds no images")
    put(tmp_path / "single/cat/1.jpg", png())
    fails(tmp_path / "single", "one class only (cat)")
    put(photos / "Red fox/1.jpg", png())
    fails(photos, "names a class twice", "'Red fox' and 'red_fox'")
    fails(put(tmp_path / "one.jpg", png()), "is one image")
    fails(put(tmp_path / "one.doc", b"x"), "of a kind that is not read here")


@pytest.fixture
def manifest(tmp_path):
    def write(rows: str, header: str = "path,label,classname,split"):
        for name in ("1.png", "2.png", "3.png"):
            put(tmp_path / name, png())
        return put(tmp_path / "manifest.csv", f"\ufeff{header}\n{rows}\n").parent

    return write


def test_manifest_keeps_label_order(manifest):
    folder = manifest("1.png,1,ant,train\n2.png,0,zebra,train\n3.png,0,zebra,valid")
    put(folder / "classes.json", json.dumps({"classes": ["zebra", "ant"], "template": "a drawing of {}."}))
    data = open_dataset(folder)
    assert (
        data.class_names == ("zebra", "ant")
        and data.template == "a drawing of {}."
        and data.train.labels.tolist() == [1, 0]
    )
    assert len(data.val) == 1 and data.test is None
    put(folder / "classes.json", json.dumps({"template": "a drawing"}))
    fails(folder, "has no {}")
    put(folder / "classes.json", "{")
    fails(folder, "classes.json' is not JSON", "line 1")


def test_real_manifest(shared):
    data = open_dataset(str(shared / "data/caltech101"))
    assert data.class_names[:2] == ("face", "leopard") and (
        len(data.train),
        len(data.val),
        len(data.test),
    ) == (1600, 400, 999)
    assert read_image(data.train.pictures[0].load()).mode == "RGB"


def test_bad_manifests(manifest, tmp_path):
    fails(manifest("1.png,0,ant,train\n2.png,1,Ant,train"), "names a class twice", "'ant' and 'Ant'")
    fails(manifest("1.png,0,ant,train\n2.png,0,bee,train"), "named both 'ant' and 'bee'")
    fails(manifest("1.png,0,ant,train\n2.png,1,bee,tset"), "unknown splits: 'tset'", "did you mean 'test'")
    fails(manifest("1.png,0,ant,train\n2.png,1"), "line 3", "2 cells")
    fails(
        manifest("1.png,0,train\n2.png,1,train", "path,label,split"),
        "numbers, and words are needed",
        "classname",
    )
    fails(
        manifest("1.png,0\n2.png,1", "pth,label"),
        "no image path column; its columns are pth, label",
        "did you mean 'path'",
    )
    fails(
        manifest("1.png,0\n2.png,1", "path,lable"),
        "no label column; its columns are path, lable",
        "did you mean 'label'",
    )
    fails(manifest("x1.png,ant\nx2.png,bee", "path,label"), "2 of 2 images", "x1.png", str(tmp_path))
    fails(manifest(""), "holds no rows")
    fails(put(tmp_path / "zero.csv"), "0 bytes")
    fails(put(tmp_path / "latin.csv", "path,label\ncafé,1".encode("latin-1")), "not readable as UTF-8")


def test_csv_with_text_labels_and_missing_files(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path / "img" / name, png())
    data = open_dataset(
        put(tmp_path / "t.csv", "Filename;Category\nimg/b.png;zebra\nimg/a.png;ant\nimg/gone.png;ant\n")
    )
    assert data.class_names == ("zebra", "ant") and len(data.train) == 2
    assert data.notes == ("left out 1 of 3 rows whose image is missing: img/gone.png",)


def test_parquet_of_paths_and_of_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path / name, png())
    pyarrow.parquet.write_table(
        pyarrow.table({"image_path": ["a.png", "b.png"], "class": ["x", "y"]}), tmp_path / "p.parquet"
    )
    assert open_dataset(tmp_path / "p.parquet").class_names == ("x", "y")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])}
    )
    rows = {"image": [{"bytes": png(9), "path": None}, {"bytes": png(), "path": "a.png"}], "label": [2, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "e.parquet")
    data = open_dataset(tmp_path / "e.parquet")
    assert data.class_names == ("x", "y", "z") and data.train.labels.tolist() == [2, 0]
    assert [picture.load() for picture in data.train.pictures] == [png(9), png()]
    linked = pyarrow.table(
        {"image": [{"bytes": None, "path": "a.png"}, {"bytes": png(9), "path": None}], "label": ["x", "y"]}
    )
    pyarrow.parquet.write_table(linked, tmp_path / "l.parquet")
    assert [picture.load() for picture in open_dataset(tmp_path / "l.parquet").train.pictures] == [
        png(),
        png(9),
    ]
    fails(put(tmp_path / "bad.parquet", b"no"), "not readable as Parquet")


def test_hugging_face(tmp_path, monkeypatch):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    part = datasets.Dataset.from_dict(
        {"img": [{"bytes": png(), "path": None}] * 3, "label": [1, 0, -1]}, features=features
    )
    both = datasets.DatasetDict({"train": part, "validation": part, "extra": part})
    both.save_to_disk(tmp_path / "kept")
    data = open_dataset(tmp_path / "kept")
    assert (
        data.class_names == ("x", "y") and len(data.train) == 2 and len(data.val) == 2 and data.test is None
    )
    assert (
        data.train.pictures[0].load() == png()
        and "extra" in data.notes[0]
        and "without a label" in data.notes[1]
    )

    asked = []
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info",
        lambda self, name, timeout: asked.append((name, timeout)) or DatasetInfo(id=name),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: asked.append((name, config)) or both)
    assert len(open_dataset("org/name@big").train) == 2 and len(open_dataset("hf:name").train) == 2
    assert [call for call in asked if call[1] != 10] == [("org/name", "big"), ("name", None)]
    text = part.remove_columns("img")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: text)
    fails("hf:name", "no image column; its columns are label")


def test_unreachable_hub_names_ways_on(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    fails(
        "org/no-such-name-here", "neither a path here nor", "no route to host", "save_to_disk", "HF_ENDPOINT"
    )


def tar(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_webdataset(tmp_path):
    for number in range(2):
        tar(
            tmp_path / f"x-{number:03d}.tar",
            {f"{number}.webp": png(number), f"{number}.cls": str(1 - number).encode()},
        )
    put(tmp_path / "classnames.txt", "ant\nbee\n")
    for spec in (f"{tmp_path}/x-{{000..001}}.tar", f"{tmp_path}/x-*.tar", str(tmp_path)):
        data = open_dataset(spec)
        assert data.class_names == ("ant", "bee") and data.train.labels.tolist() == [1, 0]
        assert [picture.load() for picture in data.train.pictures] == [png(0), png(1)]
    fails(f"{tmp_path}/x-{{000..002}}.tar", "x-002.tar", "does not exist")
    put(tmp_path / "classnames.txt", "ant\n")
    fails(tmp_path, "list of 1 class names does not reach: 1")
    (tmp_path / "classnames.txt").unlink()
    fails(tmp_path, "put classnames.txt")
    fails(put(tmp_path / "z/z.tar", b"no tar at all" * 100), "not readable as an uncompressed tar")


def test_webdataset_of_clip_benchmark_and_text_labels(tmp_path):
    for split in ("train", "test"):
        tar(
            tmp_path / split / "0.tar",
            {"s1.jpg": png(), "s1.cls": b"0", "s2.jpg": png(), "s2.cls": b"1", "s3.jpg": png()},
        )
    put(tmp_path / "classnames.txt", "ant\nbee\n")
    put(tmp_path / "zeroshot_classification_templates.txt", "a bad photo of a {c}.\n")
    data = open_dataset(tmp_path)
    assert (len(data.train), len(data.test), data.template) == (
        2,
        2,
        "a bad photo of a {}.",
    ) and "without a label" in data.notes[0]
    mixed = tar(
        tmp_path / "t/t.tar",
        {"a.png": png(), "a.txt": b"bee\n", "b.png": png(), "b.json": b'{"label": "ant"}'},
    )
    assert open_dataset(mixed).class_names == ("bee", "ant")
    fails(tar(tmp_path / "u/u.tar", {"a.png": png()}), "no image of", "key.cls")
    fails(tar(tmp_path / "v/v.tar", {"a.cls": b"0"}), "hold no images")


def test_names_that_may_be_several_labels_or_steer_a_terminal_are_told(tmp_path):
    rows = [
        "path,label",
        *(f"{row}.png,{name}" for row, name in enumerate(("cat|dog", "owl; ox", "b\x07ee", "ant"))),
    ]
    for row in range(4):
        paint((9, 9, 9), row).save(tmp_path / f"{row}.png")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    notes = "\n".join(open_dataset(str(tmp_path / "t.csv")).notes)
    assert (
        "2 class names with | or ; in it, which is read as one label and not as several: cat|dog, owl; ox"
        in notes
    )
    assert r"1 class name with control characters: 'b\x07ee'" in notes
