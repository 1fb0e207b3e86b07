"""Files: CSV that computes nothing, and files that are whole or not there. (Locking and strict reading are
tested where they are used.)
"""

import csv
import hashlib
import os
import threading
import time

import pytest

from wordsight.backbones import fingerprint
from wordsight.files import (
    WordsightError,
    csv_rows,
    csv_text,
    digest_of,
    held,
    new_folder,
    write_file,
    writing,
)


def test_only_regular_files_are_replaced(tmp_path):
    """As root a rename would put a file in the place of /dev/stdout, or of the link to a file elsewhere."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WordsightError, match="is a pipe or a device"):
        write_file(tmp_path / "pipe", "text")
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "there" / "out.csv")
    for text in ("one", "two"):
        write_file(tmp_path / "link.csv", text)
        assert (tmp_path / "there" / "out.csv").read_text() == text
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "pipe").is_fifo()


def test_a_dash_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WordsightError, match="'-' is no name of a file"):
        write_file("-", "x")
    assert not os.listdir()


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_folder_is_no_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WordsightError, match="is a folder and no name of a file"):
        write_file(name, "text")
    assert not list(tmp_path.iterdir())


def test_csv_disarms_formulas_in_names_and_cells_and_gives_them_back(tmp_path):
    odd = [
        "=1+1",
        "+1",
        "-x",
        "@x",
        "\t=1",
        "'=1",
        "''-2",
        "'tis",
        "\uff1d1",
        "a,b",
        'say "so"',
        "two\nlines",
    ]
    text = csv_text(odd, [odd, [1, -2.5, *odd[2:]]])
    for row in csv.reader(text.splitlines(keepends=True)):
        assert not any(cell.startswith(("=", "+", "-x", "@", "\t", "\uff1d")) for cell in row)
    first, second = csv_rows(text)
    assert list(first) == odd and list(first.values()) == odd
    assert [second["=1+1"], second["+1"]] == ["1", "-2.5"]


def test_a_file_that_is_not_written_to_its_end_leaves_nothing(tmp_path):
    file = tmp_path / "out.csv"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), writing(file) as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    with writing(file) as out:
        out.write(b"one ")
        out.write(b"two")
    assert file.read_text() == "one two" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(WordsightError, match="cannot be written"), writing(file / "below") as out:
        pass


def test_two_who_write_one_file_at_once_write_it_whole_one_after_the_other(tmp_path):
    file = tmp_path / "out.txt"
    with writing(file) as first:
        first.write(b"first")
        with writing(file) as second:
            second.write(b"the second")
        assert file.read_text() == "the second"
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, left = tmp_path / "out[1].csv", tmp_path / "out[1].csv.0123abcd.part"
    others = [tmp_path / "out[1].csv.notes.part", tmp_path / "out1.csv.0123abcd.part"]
    for part in (left, *others):
        part.write_text("half")
        os.utime(part, (0, 0))
    with writing(file) as out:
        out.write(b"whole")
        (under_way,) = tmp_path.glob("out?1?.csv.[0-9a-f]*.part")
        os.utime(under_way, (0, 0))
        write_file(file.name, "another")  # leaves alone what is being written
        assert under_way.exists()
    assert file.read_text() == "whole" and sorted(tmp_path.iterdir()) == sorted([file, *others])


def test_two_who_write_one_folder_at_once_leave_one_whole_and_one_is_told(tmp_path):
    left = tmp_path / ".out.0123abcd.saving"
    left.mkdir()
    os.utime(left, (0, 0))
    with pytest.raises(WordsightError, match="already holds something"), new_folder(tmp_path / "out") as one:
        (one / "file").write_text("first")
        with new_folder(tmp_path / "out") as two:
            (two / "file").write_text("second")
    assert (tmp_path / "out" / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_folder_one_stands_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WordsightError, match="give a folder that does not exist yet"), new_folder("."):
        pass


def test_a_negative_number_is_no_formula_and_what_is_no_csv_is_said():
    (line,) = csv_text(["a", "b", "c"], [["-0.0", "-x", -0.5]]).splitlines()[1:]
    assert line == "-0.0,'-x,-0.5" and csv_rows(f"a,b,c\n{line}")[0] == {"a": "-0.0", "b": "-x", "c": "-0.5"}
    with pytest.raises(WordsightError, match="cannot be read as CSV"):
        csv_rows("a\n" + "x" * 200_000)


def test_who_waits_for_a_folder_gets_it_after_the_other(tmp_path):
    order = []

    def second():
        with held(tmp_path, wait=True) as ours:
            order.append(("second", ours))

    with held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append(("first", True))
    thread.join()
    assert order == [("first", True), ("second", True)]


def test_a_digest_of_texts_is_the_same_under_every_python():
    """What `repr` escapes follows the Unicode tables of each: Python 3.12 knows this face, 3.11 does not; the
    letter before it, which both know, shows that nothing is left to them.
    """
    text = "\u0120\U0001fae8"
    assert fingerprint({}, text) == hashlib.blake2b(rb"('\u0120\U0001fae8',)", digest_size=16).hexdigest()
    of_metadata = hashlib.blake2b(rb"[('a', '\u0120\U0001fae8')]", digest_size=16).hexdigest()
    assert digest_of({}, {"a": text}) == of_metadata
