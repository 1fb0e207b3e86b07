"""Coverage: captions that name a class, from every form of source, counted by hand."""

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile

import pytest

from wordsight import WordsightError, cells, coverage
from wordsight.cli import main
from wordsight.coverage import BETWEEN, PIECE, forms_of
from wordsight.coverage.forms import plain

CAPTIONS = [
    "Two golden retrievers, a Golden-Retriever and a ball.",  # twice, and counted once
    "a catalogue of the women's museum",
    "A woman feeds her cat; the cats' bowl is empty",
    "golden, retriever",  # no phrase reaches across a comma
    "hot\tdog news: the glasses on a glass table, a lens",
    "",
]
NAMES = ["golden_retriever", "cat", "woman", "glass", "glasses", "new", "lens", "hot dog", "dog", "okapi"]
COUNTS = [1, 1, 2, 1, 1, 0, 1, 1, 1, 0]


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": NAMES}))
    return path


def as_text(folder):
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return folder / "captions.txt"


def as_packed_text(folder):
    (folder / "train.en.gz").write_bytes(gzip.compress("\n".join(CAPTIONS).encode()))
    return folder / "train.en.gz"


def as_csv(folder):
    rows = [f'{row}.jpg,"{text}",' for row, text in enumerate(CAPTIONS)]
    (folder / "captions.csv").write_text("\n".join(["path,caption_1,caption_2", *rows]))
    return folder


def as_parquet(folder):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"caption_id": range(3), "captions": [CAPTIONS[:2], CAPTIONS[2:], None]})
    pyarrow.parquet.write_table(table, folder / "captions.parquet")
    return folder / "captions.parquet"


def as_tars(folder):
    members = {f"{row}.txt": text.encode() for row, text in enumerate(CAPTIONS[1:])}
    members |= {"x.json": json.dumps({"caption": CAPTIONS[0]}).encode(), "x.jpg": b"no image is read"}
    with tarfile.open(folder / "000.tar", "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder / "{000..000}.tar"


def as_list_of_flickr(folder):
    lines = [f"{row}.jpg#0\t{text}" for row, text in enumerate(CAPTIONS)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines))
    return folder / "Flickr8k.token.txt"


def as_dataset(folder):
    """Captions without images, in a split of any name."""
    datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
    parts = {"whatever": CAPTIONS[:2], "test": CAPTIONS[2:]}
    kept = {split: datasets.Dataset.from_dict({"captions": some}) for split, some in parts.items()}
    datasets.DatasetDict(kept).save_to_disk(folder / "kept")
    return folder / "kept"


SOURCES = [as_text, as_packed_text, as_csv, as_parquet, as_tars, as_list_of_flickr, as_dataset]


@pytest.mark.parametrize("source", SOURCES)
def test_captions_that_name_a_class_are_counted(tmp_path, classes, source):
    found = coverage(str(source(tmp_path)), classes, cut_off=1)
    assert found["counts"] == {**dict(zip(NAMES, COUNTS))} and found["captions"] == 5
    assert (found["covered"], found["coverage"], found["count"]) == (1, 0.1, sum(COUNTS) / 10)


def test_the_command_prints_what_the_function_gives(tmp_path, classes, capsys):
    source = as_text(tmp_path)
    assert main(["coverage", str(source), "--classes", str(classes), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == coverage(source, classes)
    assert main(["coverage", str(source), "--classes", str(classes), "--cut-off", "0"]) == 0
    assert "coverage 0.80: 8 of 10" in (shown := capsys.readouterr().out) and "okapi (0)" in shown


def test_sources_are_counted_together_and_a_separator_inside_a_caption_is_none(tmp_path):
    one, other = tmp_path / "a.csv", tmp_path / "b.txt"
    one.write_text(f"caption\na dog{BETWEEN}a cat\n")
    other.write_text("a cat\n\n")
    found = coverage([one, other], ["cat", "dog"])
    assert found["captions"] == 2 and found["counts"] == {"cat": 2, "dog": 1}


def test_many_pieces_are_counted_as_one(monkeypatch, tmp_path, classes):
    source = as_text(tmp_path)
    whole = coverage(source, classes)
    monkeypatch.setitem(PIECE, "phrases", 2)
    assert coverage(source, classes, jobs=1) == whole


def test_it_counts_where_the_system_names_no_cores_of_a_process(monkeypatch, tmp_path, classes):
    source = as_text(tmp_path)
    whole = coverage(source, classes, jobs=1)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    assert coverage(source, classes) == whole
    assert not [*cells.outcomes([], None, None)]


@pytest.mark.slow
def test_processes_count_the_same(monkeypatch, tmp_path, classes):
    source = as_text(tmp_path)
    whole = coverage(source, classes)
    monkeypatch.setitem(PIECE, "phrases", 1)
    monkeypatch.setitem(sys.modules["wordsight.coverage"].ALONE, "phrases", 1)
    assert coverage(source, classes, jobs=2) == whole


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("woman", {"woman", "women"}),
        ("Women", {"woman", "women"}),
        ("head of cabbage", {"head of cabbage", "heads of cabbage", "head of cabbages"}),
        ("cactus", {"cactus", "cactuses", "cacti"}),
        ("news", {"news"}),
        ("lady's slipper", {"lady slipper", "lady slippers"}),
        ("767-300", {"767 300"}),
    ],
)
def test_forms_of_a_name(name, forms):
    assert {form.strip() for form in forms_of([name])} == forms


def test_the_plain_form_keeps_captions_apart():
    assert plain(f"It’s A_dog--run!{BETWEEN}x") == f" it a dog run | {BETWEEN} x "


def test_a_form_of_two_classes_counts_for_both():
    assert forms_of(["glass", "glasses"])[" glasses "] == [0, 1]


BAD = {
    "absent.json": (None, "does not exist; give a file with one name a line"),
    "empty.json": ("[]", "list of names"),
    "blank.json": ('["cat", " "]', "empty name at place 2"),
    "twice.txt": ("cat\nCat\n", "names a class twice"),
    "inside.txt": ("cat\n\ndog\n", "empty name at place 2"),
    "nothing.txt": ("\n", "names no class"),
    "sign.txt": ("cat\n!!\n", "'!!' has no letter or digit"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_class_list_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, name, capsys):
    content, says = BAD[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    code = main(["coverage", str(as_text(tmp_path)), "--classes", str(tmp_path / name)])
    assert code == 2 and says in (said := capsys.readouterr().err) and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\n", "holds no captions"),
        ("a.txt", b"caf\xe9 dog", "not readable as UTF-8"),
        ("a.txt.gz", b"no gzip", "cannot be read"),
        ("a.csv", b"path,text\na,b\n", "no caption column"),
        ("a.csv", b"path,caption\na,b,c\n", "3 cells"),
        ("a.parquet", b"x", "not readable as Parquet"),
        ("a.json", b"[1]", "no list of images"),
        ("a.jsonl", b'{"caption": "a cat"}\n', "JSON in lines, which is not read here"),
        ("a.json.gz", gzip.compress(b"{}", mtime=0), "packed JSON"),
        ("a.jpg", b"x", "is an image"),
        ("a.tar", b"x", "holds no captions"),
    ],
)
def test_captions_that_cannot_be_read_are_refused_in_a_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WordsightError, match=re.escape(says)):
        coverage(tmp_path / name, ["cat"])


def test_what_cannot_be_asked_is_refused(tmp_path):
    source = as_text(tmp_path)
    for given, says in (({"by": "phrase"}, "did you mean"), ({"cut_off": -1}, "below 0")):
        with pytest.raises(WordsightError, match=says):
            coverage(source, ["cat"], **given)
    with pytest.raises(WordsightError, match=r"do not exist.*did you mean 'captions.txt'"):
        coverage(tmp_path / "caption.txt", ["cat"])
    if subprocess.run([sys.executable, "-c", "import spacy"], capture_output=True).returncode:
        with pytest.raises(WordsightError, match="by=phrases needs no model"):
            coverage(source, ["cat"], by="chunks")


def test_a_column_of_numbers_or_addresses_of_captions_is_no_caption(tmp_path):
    (tmp_path / "c.csv").write_text(
        "caption_id,caption,caption_url,caption_en,caption_2\n1,a dog,http://cat,a cat,dogs\n"
    )
    found = coverage(tmp_path / "c.csv", ["dog", "cat"])
    assert found["captions"] == 3 and found["counts"] == {"dog": 2, "cat": 1}
    (tmp_path / "q.csv").write_text('caption\n"a dog\n' + "a cat\n" * 10)
    with pytest.raises(WordsightError, match="the quote that opens in line"):
        coverage(tmp_path / "q.csv", ["dog", "cat"])
