"""Tables and hub datasets: one label an image, columns by name, and every row kept or told."""

import gzip
import os
import subprocess
import sys
import unicodedata

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from making import fails, fill, left_out, names, png, put

from wordsight.config import WordsightError
from wordsight.data import open_dataset
from wordsight.data.columns import NO_CAPTION, REPEATED
from wordsight.data.pairs import open_pairs
from wordsight.data.tables import MISSING, read_columns
from wordsight.files import csv_text


@pytest.fixture
def table(tmp_path):
    """Writes a CSV beside 1.png to 6.png."""
    fill(tmp_path, *(f"{number}.png" for number in range(1, 7)))

    def write(text: str | bytes, name: str = "t.csv"):
        return put(tmp_path / name, text)

    return write


def parquet(tmp_path, name="t.parquet", **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
    return tmp_path / name


def bytes_of(count: int) -> list[bytes]:
    return [png(shade) for shade in range(count)]


# ---- which column


def test_a_named_column(table):
    path = table("path,label,choice,number\n1.png,a,yes,1\n2.png,b,no,1\n3.png,a,,2\n")
    assert open_dataset(path).class_names == ("a", "b")
    data = open_dataset(path, label="choice")
    assert data.class_names == ("yes", "no") and [picture.name for picture in data.unlabelled] == ["3.png"]
    assert left_out(data) == {"without a label": ["3.png"]}
    assert open_dataset(path, label="Choice").class_names == ("yes", "no")
    fails(path, "its columns are path, label, choice, number", "did you mean 'choice'", label="chioce")
    fails(path, "are numbers, and words are needed", label="number")
    fails(path.parent / "1.png", "is one image", label="choice")
    fails(fill(path.parent / "photos", "a/1.jpg", "b/1.jpg"), "is a folder without one", label="choice")
    fails("digits", "names a column of a table, but 'digits' has none", label="choice")
    np.savez(path.parent / "vectors.npz", train=np.eye(2), train_label=["x", "y"])
    fails(path.parent / "vectors.npz", "is a file of vectors, whose labels have names", label="choice")
    spoken = table("path,label,classname,choice\n1.png,0,cat,x\n2.png,1,dog,x\n3.png,0,cat,y\n")
    assert open_dataset(spoken).class_names == ("cat", "dog")
    assert open_dataset(spoken, label="choice").class_names == ("x", "y")  # classname is not about choice


def test_columns_of_one_name_are_refused(table, tmp_path):
    fails(table("path,label,label\n1.png,a,b\n"), "columns of one name: label")
    fails(table("path,Label,label\n1.png,a,b\n"), "2 columns called label", "'Label', 'label'")
    doubled = pyarrow.Table.from_arrays([pyarrow.array(["1.png"])] * 2, names=["path", "path"])
    pyarrow.parquet.write_table(doubled, tmp_path / "d.parquet")
    fails(tmp_path / "d.parquet", "columns of one name: path")
    assert len(open_dataset(table("path,label,,\n1.png,a,,\n2.png,b,,\n")).train) == 2  # a spreadsheet's


# ---- labels


@pytest.mark.parametrize("labels", [[["a"], ["a", "b"]], [[0], [1]], [{"name": "a"}, {"name": "b"}]])
def test_several_labels_an_image_are_refused(tmp_path, labels):
    fails(parquet(tmp_path, image=bytes_of(2), label=labels), "column label", "one label an image")


@pytest.mark.parametrize("cell", ['"[0, 1]"', "\"['a', 'b']\"", '"[0 1]"', '"{""a"": 1}"'])
def test_lists_written_into_csv_are_several_labels(table, cell):
    fails(table(f"path,label\n1.png,{cell}\n2.png,a\n"), "one label an image")


def test_a_label_list_of_the_hub_is_refused(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))}
    rows = {"image": [{"bytes": png(), "path": None}] * 2, "label": [[0], [0, 1]]}
    saved = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    saved.save_to_disk(tmp_path / "kept")
    fails(tmp_path / "kept", "column label", "one label an image")


def test_types_of_labels(table, tmp_path):
    fails(table("path,label\n1.png,1\n2.png,cat\n"), "partly numbers (1) and partly text (cat)")
    fails(table("path,label\n1.png,1.5\n2.png,2\n"), "1.5", "a whole number or a name")
    fails(parquet(tmp_path, image=bytes_of(2), label=[1.5, 2.0]), "1.5", "a whole number or a name")
    assert open_dataset(table("path,label\n1.png,007\n2.png,12\n")).class_names == ("007", "12")
    assert open_dataset(parquet(tmp_path, image=bytes_of(2), label=[True, False])).class_names == (
        "True",
        "False",
    )
    put(tmp_path / "classes.json", '["ant", "bee"]')
    for text in ("path,label\n1.png,1.0\n2.png,0.0\n3.png,\n", "path,label\n1.png,1\n2.png,0\n3.png,\n"):
        data = open_dataset(table(text))  # pandas writes 1.0 where a cell is blank
        assert data.class_names == ("ant", "bee") and data.train.labels.tolist() == [1, 0]
        assert len(data.unlabelled) == 1
    frame = pandas.DataFrame({"image": bytes_of(3), "label": [1, None, 0]})
    frame.to_parquet(tmp_path / "nan.parquet")
    data = open_dataset(tmp_path / "nan.parquet")
    assert data.train.labels.tolist() == [1, 0] and left_out(data) == {"without a label": ["row 2"]}
    assert open_dataset(table('path,label\n1.png,"salt, pepper"\n2.png,b\n')).class_names == (
        "salt, pepper",
        "b",
    )


def test_labels_are_compared_in_one_unicode_form(table):
    nfd = unicodedata.normalize("NFD", "café")
    data = open_dataset(table(f"path,label\n1.png,café\n2.png,{nfd}\n3.png,tea\n"))
    assert data.class_names == ("café", "tea") and data.train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"classes": 5}', "must be a list of names"),
        ('{"classes": [1, 2]}', "must be a list of names"),
        ('{"classes": {"0": "a"}}', "must be a list of names"),
        ("7", "must be a list of names"),
        ('{"classes": ["a", "b"], "template": 5}', "no {} for the class name"),
        ('{"classes": ["a", "b"], "template": "a {} {}"}', "no {} for the class name"),
        ("[" * 20000, "nested too deeply"),
        ("9" * 6000, "not readable"),
        ('["a"]', "does not reach: 1"),
        ("", "is empty"),
        ('{"classes": ["a"], "classes": ["a", "b"]}', "more than once"),
    ],
)
def test_a_class_list_of_another_shape_is_answered_in_words(table, tmp_path, content, words):
    put(tmp_path / "classes.json", content)
    fails(table("path,label\n1.png,0\n2.png,1\n"), "classes.json" if words[0] != "d" else "list of 1", words)


# ---- rows


def test_rows_are_kept_or_told(table, tmp_path):
    fill(tmp_path, "7.heic")
    data = open_dataset(
        table("path,label\n1.png,a\n1.png,a\n2.png,b\n./2.png,b\ngone.png,a\n,b\n3.png,\n4.png,a\n7.heic,a\n")
    )
    told = left_out(data)
    assert data.account.seen == 9 and names(data.train) == ["1.png", "2.png", "4.png"]
    assert told[REPEATED] == ["1.png", "2.png"] and told[MISSING] == ["gone.png", "row 6"]
    assert told["without a label"] == ["3.png"] and any("HEIC" in reason for reason in told)
    fails(table("path,label\n1.png,a\n2.png,b\n1.png,b\n"), "gives '1.png' two labels, 'a' and 'b'")
    fails(table("path,label\n1.png,\n2.png,\n"), "no image of", "without a label")
    fails(table("path,label,split\n1.png,a,train\n2.png,b,\n"), "column split", "blank in 1 row")


def test_an_image_in_two_parts_stays_in_both(table):
    rows = "1.png,a,train\n1.png,a,test\n2.png,b,train\n2.png,b,test\n2.png,b,test\n"
    data = open_dataset(table("path,label,split\n" + rows))  # no evaluation counts what a fit has seen
    assert names(data.train) == names(data.test) == ["1.png", "2.png"]
    assert left_out(data)[REPEATED] == ["2.png"]
    fails(table("path,label,split\n1.png,a,train\n1.png,b,test\n2.png,b,train\n"), "'1.png' two labels")


def test_names_that_look_alike_are_refused(table):
    for sign in ("\u200b", "\u200f", "\ufeff", "\u00ad"):
        fails(table(f"path,label\n1.png,cat\n2.png,cat{sign}\n3.png,dog\n"), "invisible signs aside", "'cat'")


def test_paths_as_people_write_them(tmp_path):
    nfc, nfd = "café.png", unicodedata.normalize("NFD", "café.png")
    root = fill(tmp_path / "sub", "in/1.png", nfd, "../up.png")
    rows = f"in\\1.png,a\n{nfc},b\n../up.png,a\n{root / 'in'}/../in/1.png,a\n"
    data = open_dataset(put(root / "t.csv", "path,label\n" + rows))
    assert names(data.train) == ["in/1.png", nfd, "../up.png"] and left_out(data)[REPEATED] == ["in/1.png"]
    assert data.train.pictures[2].load() == png(2)
    os.mkfifo(root / "pipe.png")
    data = open_dataset(put(root / "t.csv", f"path,label\nin/1.png,a\n{nfc},b\npipe.png,a\n"))
    assert left_out(data) == {MISSING: ["pipe.png"]}


def test_tables_that_are_no_text_are_answered_in_words(table, tmp_path):
    fails(
        table("path,label\ncafé.png,a\n".encode("latin-1")),
        "not readable as UTF-8",
        "Latin-1",
        "save it as UTF-8",
    )
    fails(table("path,label\n1.png,a\n".encode("utf-16")), "UTF-16")
    fails(table("path,label\n1.png,a\n".encode("utf-16-le")), "UTF-16")
    fails(table(gzip.compress(b"path,label\n1.png,a\n")), "gzip; unpack it")
    fails(table(b"PK\3\4 and so on"), "a spreadsheet or an archive; save it as CSV")
    fails(table("path\tlabel\n1.png\n", "t.tsv"), "line 2", "1 cells")
    assert len(open_dataset(table("path\tlabel\n1.png\ta,b\n2.png\tc\n", "t.tsv")).train) == 2
    fails(parquet(tmp_path, image=[1, 2], label=["a", "b"]), "the image column", "expected a path")
    fails(parquet(tmp_path, image=[["1.png"], ["2.png"]], label=["a", "b"]), "the image column")


def test_parquet_rows_without_an_image(tmp_path):
    cells = [{"bytes": png(1), "path": None}, None, {"bytes": png(2), "path": None}]
    data = open_dataset(parquet(tmp_path, image=cells, label=["a", "a", "b"]))
    assert len(data.train) == 2 and left_out(data) == {MISSING: ["row 2"]}
    data = open_dataset(parquet(tmp_path, image=[*bytes_of(2), None], label=["a", "b", "a"]))
    assert left_out(data) == {MISSING: ["row 3"]}


# ---- captions


def test_captions_stand_in_columns_in_lists_and_in_rows(table, tmp_path):
    wide = open_pairs(str(table("path,caption_1,caption_2\n1.png,one,uno\n2.png,two,\n")))
    assert wide.captions == [("one", "uno"), ("two",)]
    long = open_pairs(str(table("path,caption\n1.png,one\n1.png,uno\n2.png,two\n2.png,two\n3.png,\n")))
    assert long.captions == [("one", "uno"), ("two",)] and long.account.seen == 5 and long.account.kept == 3
    assert long.account.left_out[REPEATED].names == ["2.png"]
    assert long.account.left_out[NO_CAPTION].names == ["3.png"]
    cells = '"[""one"", ""uno""]"', "\"['two', 'dos']\"", "[a wall]"
    rows = "".join(f"{row}.png,{cell}\n" for row, cell in enumerate(cells, 1))
    assert open_pairs(str(table("path,caption\n" + rows))).captions == [
        ("one", "uno"),
        ("two", "dos"),
        ("[a wall]",),
    ]
    lists = parquet(tmp_path, image=bytes_of(3), captions=[["one", "uno"], [], ["two", None]])
    assert open_pairs(str(lists)).captions == [("one", "uno"), ("two",)]


@pytest.mark.parametrize("captions", [[1, 2], [[1], [2]], [{"raw": "a"}, {"raw": "b"}]])
def test_captions_of_other_types_are_refused(tmp_path, captions):
    path = parquet(tmp_path, image=bytes_of(2), caption=captions)
    with pytest.raises(WordsightError, match="a caption is a text, or a list of texts"):
        open_pairs(str(path))


def test_captions_of_the_hub(tmp_path):
    rows = {
        "image": [{"bytes": png(), "path": None}] * 2,
        "caption": [["a", "b"], ["c"]],
        "caption_id": [1, 2],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Sequence(datasets.Value("string")),
            "caption_id": datasets.Value("int64"),
        }
    )
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        tmp_path / "k"
    )
    assert open_pairs(str(tmp_path / "k")).captions == [("a", "b"), ("c",)]
    fails(tmp_path / "k", "no label column", "two_tower")


# ---- hub


def test_hub_splits_are_kept_or_told(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(), "path": None}] * 3, "label": [1, 0, -1]}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": part, "test": part, "extra": part}).save_to_disk(tmp_path / "k")
    data = open_dataset(tmp_path / "k")
    assert left_out(data) == {
        "in a split of another name": ["extra"],
        "without a label": ["train[2]", "test[2]"],
    }
    assert data.account.seen == 9 and len(data.unlabelled) == 2
    datasets.DatasetDict({"train": part, "valid": part, "validation": part}).save_to_disk(tmp_path / "v")
    fails(tmp_path / "v", "mean the same part: valid, validation")
    turned = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    other = datasets.Dataset.from_dict(rows, features=turned)
    datasets.DatasetDict({"train": part, "test": other}).save_to_disk(tmp_path / "o")
    fails(tmp_path / "o", "split test", "other class names in column label")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"features": 5}', '{"splits": "x"}'])
def test_a_damaged_saved_dataset_is_answered_in_words(tmp_path, content):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(), "path": None}] * 2, "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "k")
    put(tmp_path / "k/state.json", content)
    fails(tmp_path / "k", "kept with save_to_disk, but cannot be read")


def test_a_quote_mark_that_keeps_a_spreadsheet_from_computing_is_no_part_of_a_label(table):
    labels = ["=x", "+1 more", "@home", "'quoted'", "-a"]
    text = csv_text(["path", "label"], [(f"{number}.png", label) for number, label in enumerate(labels, 1)])
    assert "'=x" in text and "'quoted'" in text
    assert set(open_dataset(str(table(text))).class_names) == set(labels)


READ = """
import os
import pyarrow.parquet
from pathlib import Path
from wordsight.data.tables import read_columns
from wordsight.data.texts import captions_in

before = len(os.listdir("/proc/self/task"))
assert read_columns(Path("t.parquet")).count == 3
assert len(list(captions_in("t.parquet"))) == 3
assert len(os.listdir("/proc/self/task")) == before
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted where Linux lists them")
def test_parquet_is_read_in_one_thread(tmp_path):
    """Another one that still holds the file when Python ends would abort the process, its work done."""
    parquet(tmp_path, path=["1.png", "2.png", "3.png"], caption=["a cat", "a dog", "an okapi"])
    subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, check=True)


def test_a_bit_that_flipped_in_parquet_is_noticed(tmp_path):
    rows = pyarrow.table({"caption": [f"a dog of {number} days" for number in range(50)]})
    file = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(rows, file, write_page_checksum=True, compression="none")
    content = bytearray(file.read_bytes())
    content[content.index(b"a dog of 7 days")] ^= 2
    file.write_bytes(content)
    fails(file, "not readable as Parquet", "CRC checksum")


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path):
    path = tmp_path / "t.csv"
    lines = ["path,label", "a.png,cat", 'b.png,"dog', *(f"{row}.png,cat" for row in range(20))]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(WordsightError, match="the quote that opens in line 3 is never closed"):
        read_columns(path)
    path.write_text('path,label\n"a\nb.png","say ""cat"""\nc.png,in"side\n')
    assert read_columns(path).cells("label") == ['say "cat"', 'in"side']
