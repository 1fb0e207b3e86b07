"""Class names as people type them."""

import pytest

from wordsight.files import WordsightError
from wordsight.names import class_list


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("zebra, horse", ["zebra", "horse"]),
        ('"salt, pepper",sugar', ["salt, pepper", "sugar"]),
        ('sugar, "salt, pepper"', ["sugar", "salt, pepper"]),
        ('say ""so"",19" rack', ['say ""so""', '19" rack']),
        ('"a ""b"" c"', ['a "b" c']),
        ('"@home",x', ["@home", "x"]),
        (["zebra", "a,b", '"c,d"'], ["zebra", "a", "b", "c,d"]),
        ("cafe\u0301,,", ["café"]),
        ("one\ntwo", ["one", "two"]),
    ],
)
def test_class_names_are_read_as_csv_does(words, names):
    assert class_list(words) == names


def test_thousands_of_names_are_read_at_once():
    many = [f"class {number}" for number in range(5000)]
    assert class_list(",".join(many), ["salt, pepper"]) == many
    assert class_list(",".join([*many, "salt,pepper"]), ["salt, pepper"]) == [*many, "salt, pepper"]


def test_class_names_from_a_file_stand_one_a_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes('\ufeffsalt, pepper\r\n\r\n"sugar, ""fine"""\ncafe\u0301\n'.encode())
    assert class_list(f"@{file}") == ["salt, pepper", 'sugar, "fine"', "café"]
    assert class_list([f"@{file}", "x"])[-1] == "x"


def test_what_is_no_list_of_names_is_told(tmp_path):
    for words, says in (
        ("", "names no class"),
        (" , ", "names no class"),
        ([], "names no class"),
        ('"salt, pepper', "quotes stand around a whole name"),
        ('"a" b', "quotes stand around a whole name"),
        ("@nowhere.txt", "list of classes 'nowhere.txt' does not exist"),
        (f"@{tmp_path}", "is a folder"),
    ):
        with pytest.raises(WordsightError, match=says):
            class_list(words)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("salt, pepper,sugar", ["salt, pepper", "sugar"]),
        ("sugar,salt,pepper", ["sugar", "salt, pepper"]),
        ("salt, pepper", ["salt, pepper"]),
        ("salt,sugar", ["salt", "sugar"]),
        ("a,b,c,d", ["a, b, c", "d"]),  # the longest known name wins over "a, b"
        ("cafe\u0301, au lait,tea", ["caf\u00e9, au lait", "tea"]),
        ('"salt","pepper"', ["salt, pepper"]),
    ],
)
def test_a_known_name_with_a_comma_needs_no_quotes(words, names):
    known = ["salt, pepper", "sugar", "a, b", "a, b, c", "caf\u00e9, au lait"]
    assert class_list(words, known) == names


def test_a_known_name_comes_back_as_the_run_spells_it(tmp_path):
    assert class_list("caf\u00e9,x", ["cafe\u0301"]) == ["cafe\u0301", "x"]


def test_the_path_of_a_list_needs_no_sign_before_it(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("zebra\nsalt, pepper\n")
    (tmp_path / "zebra").write_text("a file of that name is no list")
    monkeypatch.chdir(tmp_path)
    assert class_list([str(tmp_path / "names.txt"), "horse"]) == ["zebra", "salt, pepper", "horse"]
    assert class_list("names.txt") == ["zebra", "salt, pepper"]
    assert class_list("zebra,none.txt") == ["zebra", "none.txt"]
