"""Sentences: natural language about classes. The contract, the template sets, and the way from class names to
text vectors.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.files import WordsightError, nfc, read_json
from wordsight.reader import nearest
from wordsight.sentences.templates import TEMPLATE_SETS, fill

# texts -> unit vectors [N, D]; a backbone's encode_text, or a cached one
EncodeText = Callable[[Sequence[str]], Tensor]

# sentences for scikit-learn's digits, so that a first run needs no file
OWN = "own"  # sentences=own: the data's own templates, each filled with the class name
DIGITS = Path(__file__).parent / "digits.json"
SAME = 1e-5  # by which a text's vector may differ between batches
CACHE_FORMAT = "wordsight-sentences-1"  # of the JSON that write_sentences writes


@dataclass(frozen=True)
class ClassTexts:
    """What words say about C classes, as text and as unit vectors. Every method is bound to one of these and
    can be bound anew.
    """

    names: tuple[str, ...]
    name_vectors: Float[Tensor, "C D"]  # the class name in the template
    sentences: tuple[tuple[str, ...], ...]  # per class; may be empty
    sentence_vectors: tuple[Float[Tensor, "_ D"], ...]
    template: str = "{}"  # that the class names stand in

    def means(self) -> Float[Tensor, "C D"]:
        """The unit mean of each class's sentences; the name's vector where it has none (CuPL)."""
        rows = [
            vectors.mean(0) if len(vectors) else name
            for vectors, name in zip(self.sentence_vectors, self.name_vectors)
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def with_each_left_out(self, row: int) -> ClassTexts:
        """The same classes, and behind them one of them again and again, each time without one of its
        sentences."""
        own, vectors = self.sentences[row], self.sentence_vectors[row]
        count = len(own)
        fewer = [own[:i] + own[i + 1 :] for i in range(count)]
        rows = [torch.cat([vectors[:i], vectors[i + 1 :]]) for i in range(count)]
        return replace(
            self,
            names=self.names + (self.names[row],) * count,
            name_vectors=torch.cat([self.name_vectors, self.name_vectors[row].expand(count, -1)]),
            sentences=(*self.sentences, *fewer),
            sentence_vectors=(*self.sentence_vectors, *rows),
        )

    def alike(self) -> list[tuple[str, str]]:
        """Pairs of classes of one vector, up to rounding: nothing of their names reaches the text tower that
        tells them apart.
        """
        vectors = self.means().double()
        along = torch.linspace(1, 2, vectors.shape[1], dtype=torch.float64)
        order = (vectors @ along.to(vectors)).argsort()  # equal ones become neighbours
        same = (vectors[order[1:]] - vectors[order[:-1]]).abs().amax(1) < SAME
        pairs = [sorted(order[place : place + 2].tolist()) for place in same.nonzero()[:, 0].tolist()]
        return [(self.names[one], self.names[other]) for one, other in sorted(pairs)]


def read_sentences(
    source: str | Path | Mapping[str, Sequence[str]] | None,
    class_names: Sequence[str],
    aliases: str | Path | Mapping[str, str] | None = None,
    *,
    partly: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Each class's sentences, in class order.

    `source` is a JSON file {class: [sentences]}, a file written by `write_sentences`, the same as a mapping,
    the name of a template set (every template filled with the class name), or `digits` (bundled). None gives
    every class no sentences. Keys not asked for are left out.

    A class finds its key when the two are equal, or equal once `_` is a space, and case and blanks around it
    are ignored; both in Unicode's composed form. Nothing fuzzier happens by itself: sentences of the wrong
    class would be a silent error. `aliases`, {class name: key}, a JSON file or a mapping, settles the rest. A
    class that finds none is an error, or with `partly` goes without.

    Errors: WordsightError where a class ends with no sentences, naming every such class and the nearest keys.
    """
    names = tuple(map(nfc, class_names))
    if repeated := _repeated(names):
        raise WordsightError(f"class names must differ, but {_listed(repeated)} occur more than once")
    if source is None or (isinstance(source, str) and source in TEMPLATE_SETS):
        if aliases is not None:
            raise WordsightError(
                f"aliases map class names to keys of a sentence file, but sentences={source!r} is not one; "
                f"leave aliases out"
            )
        return {
            name: tuple(fill(template, name) for template in TEMPLATE_SETS[source]) if source else ()
            for name in class_names
        }
    table, where = _read_table(source)
    keys = _match(names, table, _read_aliases(aliases, names, table, where), where, partly)
    if not partly:
        _demand_all(names, table, keys, where)
    return {name: table[keys[nfc(name)]] if nfc(name) in keys else () for name in class_names}


def class_texts(
    encode: EncodeText,
    names: Sequence[str],
    template: str = "a photo of a {}.",
    sentences: Mapping[str, Sequence[str]] | None = None,
) -> ClassTexts:
    """Class names and sentences as unit vectors, all texts in one call of `encode`.

    `sentences` must have a key for every name (an empty list is allowed: that class has none) and may have
    more, so one table serves every subset of the classes."""
    names = tuple(names)
    if not names:
        raise WordsightError("there are no class names to encode")
    if sentences is not None and (missing := [name for name in names if name not in sentences]):
        raise WordsightError(
            f"sentences has no entry for {_listed(missing)}; read_sentences(source, class_names) matches "
            f"names to keys"
        )
    kept = tuple(
        _texts(name, sentences[name], "sentences") if sentences is not None else () for name in names
    )
    texts = [fill(template, name) for name in names] + [text for group in kept for text in group]
    name_vectors, *groups = _encode(encode, texts).split([len(names), *map(len, kept)])
    return ClassTexts(names, name_vectors, kept, tuple(groups), template)


def saved_sentences(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The sentences that a run folder keeps: {class: [sentences]}, where a class may have none.

    Errors: WordsightError for any other form, and for what cannot be read."""
    loaded = read_json(path, "sentence file")
    if not isinstance(loaded, Mapping):
        raise WordsightError(f"{path} holds {_kind(loaded)}; expected an object {{class: [sentences]}}")
    return {name: _texts(name, texts, str(path)) for name, texts in loaded.items()}


def cached_texts(loaded: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The texts in a file of `write_sentences`: {class: [{"question": ..., "seed": ..., "text": ...}]} under
    "sentences".
    """
    entries = loaded.get("sentences")
    if loaded.get("format") != CACHE_FORMAT or not isinstance(entries, Mapping):
        raise WordsightError(
            f"{where} has format {loaded.get('format')!r}; this version reads {CACHE_FORMAT!r}, with a "
            f"table under 'sentences'"
        )
    for name, group in entries.items():
        if not isinstance(group, list) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("text"), str) for entry in group
        ):
            raise WordsightError(f"{where}: the entries of {name!r} are not a list of objects with a 'text'")
    return {name: _texts(name, [entry["text"] for entry in group], where) for name, group in entries.items()}


def _read_table(source: str | Path | Mapping[str, Sequence[str]]) -> tuple[dict[str, tuple[str, ...]], str]:
    if isinstance(source, Mapping):
        loaded, where = source, "the sentences mapping"
    elif not isinstance(source, (str, Path)):
        raise WordsightError(
            f"sentences={str(source)[:80]!r} is of type {type(source).__name__}; give "
            "{class: [sentence, ...]}, its JSON file or a named set"
        )
    else:
        path = DIGITS if source == "digits" else Path(source).expanduser()
        if isinstance(source, str) and not path.exists():
            sets = ("digits", *TEMPLATE_SETS)
            raise WordsightError(
                f"sentences={source!r} is neither a file nor a named set{nearest(source, sets)}; the sets "
                f"are {', '.join(sets)}"
            )
        loaded, where = read_json(path, "sentence file"), path.name
    if not isinstance(loaded, Mapping):
        raise WordsightError(f"{where} holds {_kind(loaded)}; expected an object {{class: [sentences]}}")
    if isinstance(loaded.get("format"), str):
        table = cached_texts(loaded, where)
    else:
        table = {str(key): _texts(str(key), value, where) for key, value in loaded.items()}
    if twice := _repeated(map(nfc, table)):
        raise WordsightError(f"{where} gives {_listed(twice)} in two spellings of Unicode; join the entries")
    return {nfc(key): texts for key, texts in table.items()}, where


def _texts(key: str, value: Any, where: str) -> tuple[str, ...]:
    """The sentences of one class without empty ones. A bare string is refused: as a sequence it would be its
    letters.
    """
    if not isinstance(value, (list, tuple)):
        raise WordsightError(f"{where}: {key!r} holds {_kind(value)}; expected a list of sentences")
    for text in value:
        if not isinstance(text, str):
            raise WordsightError(
                f"{where}: {key!r} holds {_kind(text)} ({str(text)[:40]}) among its sentences; expected text"
            )
    return tuple(text.strip() for text in value if text.strip())


def _read_aliases(
    aliases: str | Path | Mapping[str, str] | None, names: Sequence[str], table: Mapping[str, Any], where: str
) -> dict[str, str]:
    if aliases is None:
        return {}
    named = isinstance(aliases, (str, Path))
    loaded = read_json(Path(aliases).expanduser(), "alias file") if named else aliases
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded.values()):
        raise WordsightError(
            f"an alias table is an object of {{class name: key in the sentence file}}, text to text; "
            f"{str(aliases)[:80]!r} is not"
        )
    table_of_names = {nfc(str(name)): nfc(key) for name, key in loaded.items()}
    for name, key in table_of_names.items():
        if name not in names:
            raise WordsightError(
                f"the alias table names class {name!r}, which the data does not "
                f"have{_near(name, names, 'classes')}"
            )
        if key not in table:
            raise WordsightError(
                f"the alias table sends class {name!r} to key {key!r}, which {where} does not "
                f"have{_near(key, table, 'keys')}"
            )
    return table_of_names


def _match(
    names: Sequence[str], table: Mapping[str, Any], aliases: Mapping[str, str], where: str, partly: bool
) -> dict[str, str]:
    """{class: key} for every class that finds one. With `partly` two classes that find the same key get
    nothing, unless it is one's very name.
    """
    folded = defaultdict(list)
    for key in table:
        folded[_fold(key)].append(key)
    found: dict[str, str] = {}
    owner: dict[str, str] = {}  # who took a key by its name; an alias may share one
    for name in names:
        choices = (
            [aliases[name]] if name in aliases else [name] if name in table else folded.get(_fold(name), [])
        )
        if len(choices) > 1:
            raise WordsightError(
                f"class {name!r} matches {_listed(choices)} of {where}; give an alias table that names one"
            )
        if choices and partly and name not in aliases and name not in table:
            rivals = [other for other in names if other != name and _fold(other) == _fold(name)]
            choices = [] if rivals else choices
        if choices and name not in aliases and owner.setdefault(choices[0], name) != name:
            both = f"classes {owner[choices[0]]!r} and {name!r} both match key {choices[0]!r} of {where}"
            raise WordsightError(f"{both}; give an alias table if that is meant")
        if choices:
            found[name] = choices[0]
    return found


def _demand_all(
    names: Sequence[str],
    table: Mapping[str, tuple[str, ...]],
    keys: Mapping[str, str],
    where: str,
    shown: int = 10,
) -> None:
    lacking = [name for name in names if not table.get(keys.get(name, ""))]
    if not lacking:
        return
    said = [
        f"{name!r} (key {keys[name]!r} is empty)" if name in keys else f"{name!r}{_near(name, table, 'keys')}"
        for name in lacking[:shown]
    ]
    more = f"; and {len(lacking) - shown} more" if len(lacking) > shown else ""
    filled = [key for key, texts in table.items() if texts]
    key = next(iter(_nearest_two(lacking[0], filled)), "key in the file")
    example = json.dumps({lacking[0]: key}, ensure_ascii=False)
    raise WordsightError(
        f"{where} has no sentences for {len(lacking)} of {len(names)} classes: {'; '.join(said)}{more}. "
        f"Give aliases, a JSON file of {{class name: key}} such as {example}, or add the sentences."
    )


def _encode(encode: EncodeText, texts: list[str]) -> Float[Tensor, "N D"]:
    """One call, and its promise checked: a vector that is not a unit vector would bend every score without a
    word.
    """
    vectors = encode(texts)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise WordsightError(
            f"the text encoder gave shape {tuple(vectors.shape)} for {len(texts)} texts; expected one row "
            f"for each"
        )
    wrong = ~((vectors.float().norm(dim=-1) - 1).abs() < 0.02)  # also true for nan; bfloat16 is good to 0.01
    if wrong.any():
        text = texts[int(wrong.nonzero()[0])]
        raise WordsightError(
            f"the text encoder gave no unit vector for {int(wrong.sum())} of {len(texts)} texts, the first "
            f"{text!r}"
        )
    return vectors


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _nearest_two(name: str, keys: Iterable[str]) -> list[str]:
    """For a message only: shared words weigh more than shared letters, so that 'yin_yang' finds 'yin and yang
    symbol'.
    """
    words = set(_fold(name).split())

    def likeness(key: str) -> float:
        return len(words & set(_fold(key).split())) + SequenceMatcher(None, _fold(name), _fold(key)).ratio()

    return heapq.nlargest(2, keys, key=likeness)


def _near(name: str, choices: Iterable[str], what: str) -> str:
    near = _nearest_two(name, choices)
    return f" (nearest {what}: {', '.join(map(repr, near))})" if near else ""


def _repeated(words: Iterable[str]) -> list[str]:
    return [word for word, count in Counter(words).items() if count > 1]


def _listed(words: Sequence[str], shown: int = 10) -> str:
    return ", ".join(map(repr, words[:shown])) + (
        f" and {len(words) - shown} more" if len(words) > shown else ""
    )


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
