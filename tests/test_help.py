"""Help: what each setting means is read from its field, wherever the comment stands."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from wordsight.config import METHODS, WordsightError
from wordsight.help import SETTINGS, Setting, described, listing, show


@dataclass(frozen=True)
class Parent:
    # the first of two lines above
    # and the second
    above: int = 1
    behind: Literal["a", "b"] = "a"  # behind the field
    # -- a heading is no meaning --

    plain: str | None = None  # noqa: RUF100


@dataclass(frozen=True)
class Child(Parent):
    above: int = 2
    behind: Literal["a", "b"] = "b"  # of the child
    # above and
    within: float | None = (  # in the first line
        # and in a line of its own
        None  # and at the end
    )
    needed: bool = field(kw_only=True)
    many: tuple[int, ...] = (1, 2)
    made: dict[str, Any] = field(default_factory=dict)  # by a factory


def test_the_meaning_is_read_above_within_and_behind_a_field():
    found = described(Child)
    assert list(found) == [entry.name for entry in dataclasses.fields(Child)]
    assert found["above"] == Setting(
        2, False, "a whole number", "the first of two lines above and the second"
    )
    assert found["behind"] == Setting("b", False, "a | b", "of the child")
    assert found["plain"] == Setting(None, False, "", "")
    assert found["within"].meaning == "above and in the first line and in a line of its own and at the end"
    assert found["within"].choices == "a number" and found["made"] == Setting({}, False, "", "by a factory")
    assert found["needed"] == Setting(None, True, "true | false", "") and found["many"].choices == "a,b,..."


def test_a_class_without_a_file_has_no_meanings():
    made = dataclasses.make_dataclass("Made", [("width", int, field(default=3))])
    assert described(made) == {"width": Setting(3, False, "a whole number", "")}


def test_what_has_no_settings_is_told_with_the_nearest():
    with pytest.raises(WordsightError, match=r"'joins' has no settings .*did you mean 'join'"):
        show("joins")
    with pytest.raises(WordsightError, match="method 'xyz' is not known"):
        show("xyz")


@pytest.mark.parametrize("name", [*SETTINGS, *METHODS])
def test_every_setting_says_what_it_means(name):
    assert [key for key, entry in show(name)["described"].items() if not entry["meaning"]] == []


def test_what_installed_packages_add_is_listed(monkeypatch):
    from importlib.metadata import EntryPoint

    entries = {"wordsight.methods": [EntryPoint("theirs", "their.module:Theirs", "wordsight.methods")]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries.get(group, []))
    found = listing()
    assert "their.module:Theirs" in found["methods"]["theirs"] and "theirs" not in found["backbones"]
