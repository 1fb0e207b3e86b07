"""Reader: from YAML files, `key=value` words and mappings to a settings dataclass, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from wordsight.files import WordsightError, read_text

CONFIGS = Path(__file__).parent / "configs"  # the YAML files that travel with the package, known by name
SHOWN = 80  # signs of a value that a message shows at most
Settings = TypeVar("Settings")


def nearest(word: str, choices: Iterable[str]) -> str:
    """' (did you mean ...?)' or nothing: ready to stand inside a message."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), folded, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(folded[word]) for word in close)}?)" if close else ""


def nearest_path(path: Path, *others: str) -> str:
    """As `nearest`, of a path that is not there: among its neighbours that are not hidden, and `others`."""
    near = path.parent.iterdir() if path.parent.is_dir() else []
    return nearest(path.name, [*others, *(other.name for other in near if not other.name.startswith("."))])


def read(cls: type[Settings], *sources: str | Path | Mapping[str, Any]) -> Settings:
    """Build the settings dataclass `cls` from YAML files, `key=value` words and mappings, later ones winning.

    A dotted key reaches into a mapping (`settings.width=16`). A YAML is a path, or the name of one that
    travels with the package (`clamp-vicuna13b`); its `inherits:` names others beside it whose values it
    changes. An unknown key fails with the nearest known name."""
    merged: dict[str, Any] = {}
    for source in sources:
        values = _as_mapping(source)
        if not isinstance(source, Mapping) and "=" not in str(source):
            _check_keys(cls, values, f"{source}: ")
        _merge(merged, values)
    return build(cls, merged)


def build(cls: type[Settings], values: Mapping[str, Any], prefix: str = "") -> Settings:
    """`cls(**values)` with every key known and every value of the annotated type, or a sentence."""
    hints = typing.get_type_hints(cls)
    _check_keys(cls, values, prefix=prefix)
    missing = [
        f.name
        for f in _fields(cls)
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        raise WordsightError(
            f"setting {prefix + missing[0]!r} is missing; give it as {prefix + missing[0]}=..."
        )
    return cls(**{key: coerce(value, hints[key], prefix + key) for key, value in values.items()})


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls)  # type: ignore[arg-type]


def _check_keys(cls: type, values: Mapping[str, Any], where: str = "", prefix: str = "") -> None:
    known = [f.name for f in _fields(cls)]
    for key in map(str, values):  # YAML reads `3:` and `true:` as a number and a truth value
        if key not in known:
            every = f"known: {', '.join(prefix + name for name in known)}" if known else "there are none"
            raise WordsightError(
                f"{where}unknown setting {prefix + key!r}{nearest(key, known) or f'; {every}'}"
            )


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type. Text is read as YAML 1.2 would read it: `1e-4` is a number, `yes` is
    text.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and (
            value is None or (isinstance(value, str) and value.lower() in ("null", "none"))
        ):
            return None
        last = WordsightError(f"{where} takes no value")  # a union has members: one of them says more
        for argument in arguments:
            if argument is not type(None):
                try:
                    return coerce(value, argument, where)
                except WordsightError as error:
                    last = error
        raise last
    if origin is Literal:
        if value in arguments:
            return value
        raise WordsightError(
            f"{where}={_short(value)} is not a choice{nearest(str(value), map(str, arguments))}; the "
            f"choices are "
            f"{', '.join(map(str, arguments))}"
        )
    if origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, (list, tuple)):
            return tuple(coerce(item, arguments[0], where) for item in items)
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif hint in (int, float):
        if not isinstance(value, bool):
            try:
                number = hint(value)
                if number == float(value) and math.isfinite(number):
                    return number
            except (TypeError, ValueError, OverflowError):
                pass
    elif (
        hint is str and isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
    ):  # YAML reads a bare `true` as one
        if "\0" in str(value):  # which no path holds
            raise WordsightError(f"{where}={_short(value)} holds a zero byte, and no name or path does")
        return str(value)
    raise WordsightError(f"{where}={_short(value)} is not {_spoken(hint)}")


def _short(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number longer than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, ready for YAML: those within it too, tuples as lists."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _as_mapping(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    word = str(source)
    key, equals, value = word.partition("=")
    if not equals:
        return read_yaml(word)
    if not value.strip():  # `unlabelled=$POOL` would be taken for no pool
        raise WordsightError(
            f"{word!r} has no value (a variable that is not set?); give one, or leave it out"
        )
    given: Any = value
    for part in reversed(key.split(".")):
        given = {part: given}
    return given


def read_yaml(word: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings in a YAML file, with those that it inherits below them.

    `word` is a path or a shipped file's name; `above` are the files that led here.
    Errors: WordsightError where there is no such file, or where files inherit from one another in a circle.
    """
    path = Path(word).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{word}.yaml"
        if not path.is_file():
            shipped = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
            raise WordsightError(
                f"{str(word)!r} is neither key=value, nor a YAML file, nor one of the shipped settings"
                f"{nearest(str(word), shipped)}"
            )
    values = load_yaml(path)
    if path.resolve() in above:
        raise WordsightError(
            f"{path} inherits from itself, by way of {', '.join(map(str, above[1:])) or 'no other'}"
        )
    parents = values.pop("inherits", ())
    merged: dict[str, Any] = {}
    for parent in (
        [parents] if isinstance(parents, str) else coerce(parents, tuple[str, ...], f"{path}: inherits")
    ):
        beside = path.parent / parent
        _merge(merged, read_yaml(beside if beside.suffix else parent, (*above, path.resolve())))
    _merge(merged, values)
    return merged


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Errors: WordsightError for anything else, keys given twice and anchors
    included.
    """
    import yaml

    # of libyaml where PyYAML was built with it: ten times as fast, and a report reads hundreds of runs
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Strict(loader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:
                raise yaml.YAMLError(f"{', '.join(map(str, twice[:5]))} stands there more than once")
            return super().construct_mapping(node, deep)

        def construct_number(self, node: Any) -> Any:
            """A number, or text that YAML 1.1 alone takes for one: 12:30 is no 750 and 010 no 8."""
            if ":" in node.value or re.match(r"[-+]?0[\d_]", node.value):
                return node.value
            return {"int": self.construct_yaml_int, "float": self.construct_yaml_float}[node.tag[18:]](node)

        def construct_truth(self, node: Any) -> Any:
            """true or false; what YAML 1.1 alone takes for one (yes, no, on, off) is text."""
            return {"true": True, "false": False}.get(node.value.lower(), node.value)

    Strict.add_constructor("tag:yaml.org,2002:bool", Strict.construct_truth)
    for kind in ("int", "float"):
        Strict.add_constructor(f"tag:yaml.org,2002:{kind}", Strict.construct_number)
    text = read_text(path, "settings file")
    try:
        depth = 0
        for event in yaml.parse(text, loader):
            if getattr(event, "anchor", None):
                line = event.start_mark.line + 1
                raise yaml.YAMLError(f"line {line} has an anchor, which is not read here")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > 100:  # which libyaml would follow until the process ends
                raise RecursionError
        loaded = yaml.load(text, Strict)
    except RecursionError as error:
        raise WordsightError(f"{path} is nested too deeply to be settings") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, LookupError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        said = f"{getattr(error, 'problem', None) or first} at line {mark.line + 1}" if mark else first
        raise WordsightError(f"{path} is not readable as YAML: {said}") from error
    if not isinstance(loaded, dict):
        raise WordsightError(f"{path} holds no settings; expected lines such as `method: aape`")
    return loaded


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _spoken(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "of the right kind: " + str(hint).replace("typing.", ""))
