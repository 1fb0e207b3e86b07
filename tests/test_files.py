"""Files: names as people type them. (Writing, locking and strict reading are tested where they are used.)"""

import pytest

from wordsight.files import WordsightError, class_list


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
