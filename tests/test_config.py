"""The strict reader: every mistake ends in a sentence with the value and what would be right."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from wordsight.config import METHODS, RunSettings, TrainSettings, WordsightError, resolve
from wordsight.files import cache_folder, write_file
from wordsight.reader import nearest, read, to_dict


@dataclass(frozen=True)
class Sample:
    count: int = 1
    rate: float = 0.5
    on: bool = False
    kind: Literal["small", "large"] = "small"
    maybe: int | None = 3
    text: str | None = None
    several: tuple[int, ...] = ()


def test_words_are_read_as_yaml_1_2_would():
    assert read(Sample, "rate=1e-4").rate == 1e-4
    assert read(Sample, "count=3", "rate=2", "on=true", "kind=large", "several=1,2") == Sample(
        3, 2.0, True, "large", several=(1, 2)
    )
    assert read(Sample, "on=False").on is False
    assert read(Sample, "count=010").count == 10
    assert (
        read(Sample, "maybe=null").maybe is None
        and read(Sample, "maybe=None").maybe is None
        and read(Sample, "maybe=7").maybe == 7
    )
    assert (
        read(Sample, "text=null").text is None
        and read(Sample, "text=yes").text == "yes"
        and read(Sample, "text=a=b").text == "a=b"
    )
    assert type(read(Sample, {"rate": 2}).rate) is float


def test_a_yaml_says_true_and_false_as_the_command_line_does(tmp_path):
    file = tmp_path / "sample.yaml"
    file.write_text("on: True\ntext: no\n")
    assert read(Sample, file).on is True and read(Sample, file).text == "no"
    file.write_text("on: yes\n")
    with pytest.raises(WordsightError, match="on='yes' is not true or false"):
        read(Sample, file)


@pytest.mark.parametrize(
    "word, message",
    [
        ("count=1.5", "count='1.5' is not a whole number"),
        ("count=many", "not a whole number"),
        ("count=null", "not a whole number"),
        ("rate=fast", "rate='fast' is not a number"),
        ("rate=nan", "not a number"),
        ("on=yes", "on='yes' is not true or false"),
        ("on=1", "not true or false"),
        ("kind=larg", "did you mean 'large'.*the choices are small, large"),
        ("text=a\0b", "holds a zero byte"),
        ("maybe=some", "not a whole number"),
        ("several=1,x", "not a whole number"),
        ("ratio=1", "unknown setting 'ratio'.*did you mean 'rate'"),
        ("=3", "unknown setting ''"),
        ("count", "neither key=value, nor a YAML file"),
        ("count.deep=1", "not a whole number"),
    ],
)
def test_a_wrong_word_ends_in_a_sentence(word, message):
    with pytest.raises(WordsightError, match=message):
        read(Sample, word)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"count": True}, "count=True is not a whole number"),
        ({"count": float("inf")}, "not a whole number"),
        ({"rate": 10**400}, "not a number"),
        ({"text": ["a"]}, r"text=\['a'\] is not"),
        ({"text": True}, "text=True is not text"),
        ({"kind": []}, "not a choice"),
        ({3: 4}, "unknown setting '3'"),
        ({True: 4}, "unknown setting 'True'"),
    ],
)
def test_a_wrong_value_ends_in_a_sentence(values, message):
    with pytest.raises(WordsightError, match=message):
        read(Sample, values)


def test_later_sources_win_and_mappings_merge(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data: x\nshots: 4\nsettings: {form: skip, width: 8, heads: 2}\ntrain:\n  lr: 1e-4\n"
    )
    (tmp_path / "b.yaml").write_text("shots: null\nsettings:\n  width: 16\n")
    settings = read(
        RunSettings,
        tmp_path / "a.yaml",
        str(tmp_path / "b.yaml"),
        "settings.heads=4",
        "train.epochs=2",
        {"seed": 3},
    )
    assert settings == RunSettings(
        data="x",
        shots=None,
        seed=3,
        settings={"form": "skip", "width": 16, "heads": "4"},
        train={"lr": "1e-4", "epochs": "2"},
    )
    assert settings.train == TrainSettings(lr=1e-4, epochs=2)
    assert read(RunSettings, "data=x", tmp_path / "b.yaml", "data=y").data == "y"


def test_reading_changes_no_source():
    first = {"data": "x", "settings": {"width": 1}}
    read(RunSettings, first, "settings.width=2")
    assert first == {"data": "x", "settings": {"width": 1}}


def test_a_comma_in_a_number_is_no_rate_of_zero():
    assert TrainSettings(lr=(0.1, 0.01)).rates == (0.1, 0.01) and TrainSettings(lr=0.0).rates == (0.0,)
    with pytest.raises(
        WordsightError, match=r"train\.lr=0,1 tries a rate of 0; decimals stand behind a point"
    ):
        read(RunSettings, "data=x", "method=taskres", "train.lr=0,001")


@pytest.mark.parametrize("word", ["text=", "text= ", "text.a=\t"])
def test_a_word_without_a_value_is_refused(word):
    with pytest.raises(WordsightError, match="has no value \\(a variable that is not set"):
        read(Sample, word)


def test_data_is_demanded():
    with pytest.raises(WordsightError, match=r"setting 'data' is missing; give it as data=\.\.\."):
        read(RunSettings, "shots=1")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1", "not readable as YAML"),
        (b"\xff\xfe\xfa", r"cannot be read as UTF-8 text \(it is in UTF-16\); save it as UTF-8"),
        (b"a: caf\xe9", r"cannot be read as UTF-8 text \(see byte 6\); save it as UTF-8"),
        (b"- 1\n- 2\n", "holds no settings"),
        (b"", "holds no settings"),
        (b"just text", "holds no settings"),
        (b"a: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        (b"a: 1\nb: &x 1\nc: *x", "line 2 has an anchor, which is not read here"),
        (b"a: 1\nb: c: d\n", "mapping values are not allowed in this context at line 2"),
        (b"b: *x", "line 1 has an anchor, which is not read here"),
        (b"[" * 200_000, "is nested too deeply to be settings"),  # at which libyaml alone ends the process
    ],
)
def test_a_yaml_that_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(WordsightError, match=message) as error:
        read(Sample, tmp_path / "broken.yaml")
    assert "broken.yaml" in str(error.value)


def test_a_yaml_is_read_as_words_are(tmp_path):
    """YAML 1.1 makes 12:30 a 750 and 010 an 8."""
    (tmp_path / "s.yaml").write_text("count: 010\nmaybe: 0x1F\nrate: 1_0.5\ntext: 12:30\n")
    assert read(Sample, tmp_path / "s.yaml") == Sample(10, 10.5, maybe=31, text="12:30")


def test_training_settings_of_another_shape_are_answered_in_words():
    with pytest.raises(WordsightError, match=r"train=\[1\] is not a table of settings"):
        read(RunSettings, "data=digits", {"train": [1]})


def test_a_home_that_is_not_there_is_answered_in_words(monkeypatch):
    """As of a container's user without a name."""

    def lost(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WORDSIGHT_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", lost)
    with pytest.raises(WordsightError, match="name a folder in WORDSIGHT_CACHE"):
        cache_folder()


def test_a_yaml_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WordsightError, match=r"none.yaml' does not exist"):
        read(Sample, tmp_path / "none.yaml")


def test_settings_go_to_yaml_and_back():
    import yaml

    settings = RunSettings(data="x", shots=None, settings={"width": 3}, template="a {}: yes")
    assert read(RunSettings, yaml.safe_load(yaml.safe_dump(to_dict(settings)))) == settings


def test_a_name_is_found_or_its_nearest_is_said():
    assert resolve(METHODS, "zero_shot", "method").__name__ == "ZeroShot"
    with pytest.raises(
        WordsightError, match=r"method 'aap' is not known.*did you mean 'aape'.*the choices are .*zero_shot,"
    ):
        resolve(METHODS, "aap", "method")
    assert nearest("AAPE", METHODS) == " (did you mean 'aape'?)" and nearest("qqqqq", METHODS) == ""


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_file(path, "first ö")
    assert path.read_text(encoding="utf-8") == "first ö"
    write_file(path, b"second")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(WordsightError, match="cannot be written: No space left on device"):
                write_file(path, "third")
        assert path.read_bytes() == b"second" and [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_path_through_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WordsightError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", "y")


def test_a_yaml_changes_what_it_inherits(tmp_path):
    (tmp_path / "base.yaml").write_text("data: x\nshots: 4\nsettings: {width: 8, heads: 2}\n")
    (tmp_path / "more.yaml").write_text("inherits: base.yaml\nsettings:\n  heads: 4\n")
    (tmp_path / "own.yaml").write_text("inherits: [more.yaml, zero_shot]\nmethod: aape\n")
    settings = read(RunSettings, tmp_path / "own.yaml")
    assert (settings.shots, settings.settings.width, settings.settings.heads) == (4, 8, 4)
    (tmp_path / "base.yaml").write_text("inherits: own.yaml\n")
    with pytest.raises(WordsightError, match="inherits from itself"):
        read(RunSettings, tmp_path / "own.yaml")


def test_a_method_of_somebody_else_is_found_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "other_methods.py").write_text(
        "from wordsight.methods.zero_shot import ZeroShot\nclass Mine(ZeroShot):\n    'Mine.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert RunSettings(data="d", method="other_methods:Mine").method == "other_methods:Mine"
    with pytest.raises(WordsightError, match="cannot be imported: No module named 'nowhere'"):
        RunSettings(data="d", method="nowhere:Mine")
    with pytest.raises(WordsightError, match="is no method"):
        RunSettings(data="d", method="json:JSONDecoder")
