"""JSON and YAML of the wrong shape, wherever such a file is read."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tiny import AAPE, MICRO, ZERO_SHOT

from inputs import Input, both, cut, odd, put

IMAGE = "ph/alpha/1.png"
MEAN = ("fit", "data=ph", *MICRO, "method=sentence_mean", "shots=1", "sentences=s.json", "out=q", "--json")
OTHER_MODEL = ("fit", "data=ph", "backbone=m", *ZERO_SHOT[1:], "out=q", "--json")
TOWER = ("eval", "tw", "data=pairs.csv", "--json")
# file -> the command that reads it, and what it needs beside that file
READ: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "s.json": (MEAN, ("ph", "s.json")),
    "aliases.json": ((*MEAN, "aliases=aliases.json"), ("ph", "s.json", "aliases.json")),
    "mani/classes.json": (("eval", "r0", "data=mani", "--json"), ("mani", "r0")),
    "own/split_own.json": (("eval", "r0", "data=own", "--json"), ("own", "r0")),
    "r/sentences.json": (("predict", "r", IMAGE, "--explain", "--json"), ("ph", "r", "s.json")),
    "m/config.json": (OTHER_MODEL, ("ph", "m")),
    "m/preprocessor_config.json": (OTHER_MODEL, ("ph", "m")),
    "m/tokenizer.json": (OTHER_MODEL, ("ph", "m")),
    "m/tokenizer_config.json": (OTHER_MODEL, ("ph", "m")),
    "tw/wordsight_backbone.json": (TOWER, ("ph", "pairs.csv", "tw")),
    "tw/text/tower.json": (TOWER, ("ph", "pairs.csv", "tw")),
    "tw/text/adapter/adapter_config.json": (TOWER, ("ph", "pairs.csv", "tw")),
}
SHAPES = {
    "a list": "[]",
    "null": "null",
    "a number": "5",
    "a text": '"x"',
    "an empty object": "{}",
    "nesting without end": "[" * 20_000,
    "deep objects": '{"a":' * 5_000,
    "a number of thousands of digits": '{"alpha": ' + "9" * 6_000 + "}",
    "NaN": '{"alpha": NaN}',
    "nothing": "",
    "blanks": "  \n",
    "half a pair of surrogates": '{"alpha": ["\\ud800"], "beta": ["b"], "gamma": ["c"]}',
    "bytes that are no UTF-8": b'{"alpha": ["\xff"]}',
    "UTF-16": codecs.BOM_UTF16_LE + '{"alpha": ["a"]}'.encode("utf-16-le"),
    "NULs": bytes(200),
    "a comment": "// mine\n{}",
    "a key twice": '{"alpha": ["a"], "alpha": ["b"], "beta": ["b"], "gamma": ["c"]}',
    "values of the wrong type": '{"alpha": 3, "beta": "b", "gamma": null}',
    "lists in lists": '{"alpha": [["a"]], "beta": [["b"]], "gamma": [[]]}',
    "empty lists": '{"alpha": [], "beta": [], "gamma": []}',
}


def inputs(base: Path) -> Iterator[Input]:
    yield from shapes()
    yield from nodes(base)
    yield from settings()
    yield from kept_settings()
    yield from events()
    yield from pickles()
    yield from sentence_files()


def shapes() -> Iterator[Input]:
    for row, (file, (words, needs)) in enumerate(READ.items()):
        for column, (what, content) in enumerate(SHAPES.items()):
            if file.startswith("tw/") and (row + column) % 3:  # a two_tower takes seconds to open
                continue
            yield Input(f"{file} is {what}", put(file, content), words, needs, judge="same")
        yield Input(f"{file} is cut", cut(file, 0.7), words, needs, judge="same")
        for how in ("folder", "fifo", "device"):
            yield Input(f"{file} is a {how}", odd(file, how), words, needs, judge="same")


def change_node(file: str, seed: int, here: Path) -> None:
    """One value somewhere in a JSON file becomes another sort of value, or goes."""
    loaded, rng = json.loads((here / file).read_text()), random.Random(f"{file} {seed}")
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(node[key])

    walk(loaded)
    node, key = rng.choice(places[:400])
    value = rng.choice([None, [], {}, -1, 10**30, "x", True, 1e308, ["a", 1], {"a": None}, "gone"])
    if value == "gone":
        del node[key]
    else:
        node[key] = value
    (here / file).write_text(json.dumps(loaded))


def nodes(base: Path) -> Iterator[Input]:
    for file, (words, needs) in READ.items():
        for seed in range(2 if file.startswith("tw/") else 5):
            change = partial(change_node, file, seed)
            yield Input(f"{file}: value {seed} is of another sort", change, words, needs, judge="any")


YAMLS = {
    "a date that is none": "seed: 2001-13-45\n",
    "a date": "seed: 2001-01-01\n",
    "a number of thousands of digits": "seed: " + "9" * 6_000 + "\n",
    "a wrong tag": "seed: !!int abc\n",
    "a Python tag": "seed: !!python/object/apply:os.system ['touch pwned']\n",
    "a binary tag": "name: !!binary abc=\n",
    "a set": "train: !!set {a, b}\n",
    "nesting without end": "train: " + "[" * 20_000,
    "deep maps": "train: " + "{a: " * 3_000,
    "an anchor": "name: &a x\nbackbone: *a\n",
    "a bomb of anchors": "a: &a [x,x]\nb: &b [*a,*a]\nname: [*b,*b]\n",
    "a key twice": "seed: 1\nseed: 2\n",
    "a merge": "<<: {seed: 2}\n",
    "a list": "- seed: 1\n",
    "a text": "hello\n",
    "nothing": "",
    "tabs": "train:\n\tlr: 1\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "bytes that are no UTF-8": b"name: \xff\n",
    "UTF-16": "seed: 1\n".encode("utf-16"),
    "NULs": bytes(99),
    "a control character": "name: \x07\n",
    "a list as a key": "? [a, b]\n: 1\n",
    "a map as a key": "? {a: b}\n: 1\n",
    "null as a key": "null: 1\n",
    "a number as a key": "3: 1\n",
    "a wrong name": "sed: 3\n",
    "a list where a number is wanted": "seed: [1]\n",
    "a text where a number is wanted": "seed: x\n",
    "infinity": "seed: .inf\n",
    "not a number": "train: {lr: .nan}\n",
    "sixty": "seed: 1:30\n",
    "a map where a text is wanted": "template: {a: b}\n",
    "settings of another method": "settings: {width: 3}\n",
    "inherits itself": "inherits: set.yaml\n",
    "inherits what is not there": "inherits: gone.yaml\n",
    "inherits a list": "inherits: [1, 2]\n",
    "inherits a map": "inherits: {a: b}\n",
}


def settings() -> Iterator[Input]:
    words = ("fit", *ZERO_SHOT, "data=ph", "set.yaml", "out=q", "--json")
    control = tuple(word for word in words if word != "set.yaml")
    for what, content in YAMLS.items():
        change = put("set.yaml", content)
        yield Input(f"settings file: {what}", change, words, ("ph",), control=control, judge="same")
    for how in ("folder", "fifo", "device", "loop"):
        change = odd("set.yaml", how)
        yield Input(f"settings file: a {how}", change, words, ("ph",), must="words")


def in_config(old: str, new: str, here: Path) -> None:
    text = (here / "r" / "config.yaml").read_text()
    assert old in text, old
    (here / "r" / "config.yaml").write_text(text.replace(old, new, 1))


def kept_settings() -> Iterator[Input]:
    words, needs = ("predict", "r", IMAGE, "--json"), ("ph", "r", "s.json")
    for what, content in YAMLS.items():
        yield Input(f"config.yaml: {what}", put("r/config.yaml", content), words, needs, must="words")
    for old, new in (
        ("format:", "fromat:"),
        ("settings:", "setings:"),
        ("facts:", "fcats:"),
        ("method: aape", "method: coop"),
        ("method: aape", "method: nope"),
        ("method: aape", "method: [aape]"),
        ("method: aape", "method: two_tower"),
        ("backbone: micro", "backbone: nope"),
        ("dim: 96", "dim: 97"),
        ("dim: 96", "dim: -1"),
        ("dim: 96", "dim: x"),
        ("- alpha\n", ""),
        ("- alpha", "- {a: b}"),
        ("- alpha", "- beta"),
        ("- alpha", "- null"),
        ("logit_scale:", "logit_scale: .nan #"),
        ("logit_scale:", "logit_scale: x #"),
        ("device: cpu", "device: cuda"),
        ("device: cpu", "device: tpu"),
        ("dtype: float32", "dtype: float8"),
        ("seed: 1", "seed: x"),
        ("shots: 2", "shots: -2"),
        ("template: a photo", "template: no braces, a photo"),
        ("a photo of a {}.", "{} {}"),
        ("data: ", "data: gone #"),
        ("image_fingerprint: ", "image_fingerprint: x #"),
    ):
        yield Input(
            f"config.yaml: {old!r} is {new!r}", partial(in_config, old, new), words, needs, judge="any"
        )


def events() -> Iterator[Input]:
    needs = ("ph", "r")
    for what, line in {
        "a number": "1",
        "a text": '"x"',
        "null": "null",
        "an eval without figures": '{"event": "eval"}',
        "a fit without figures": '{"event": "fit"}',
        "nesting": "[" * 20_000,
        "half a line": '{"event": "ev',
        "no UTF-8": b'{"event": "\xff"}',
        "a huge number": '{"event": "eval", "accuracy": ' + "9" * 6_000 + "}",
        "NaN": '{"event": "eval", "accuracy": NaN}',
        "an event of no name": '{"event": 5}',
        "no event": "{}",
        "figures that are texts": '{"event": "eval", "data": "ph", "classes": "all", "accuracy": "x"}',
        "a list": "[]",
        "an unknown event": '{"event": "party"}',
        "NULs": bytes(50),
    }.items():
        content = line if isinstance(line, bytes) else line.encode()
        for words in (("report", "r", "--json"), ("fit", "data=ph", *AAPE, "out=r", "--json")):
            change = partial(add_line, content)
            yield Input(
                f"metrics.jsonl: a line is {what}, {words[0]}",
                change,
                words,
                (*needs, "s.json"),
                judge="same",
            )


def add_line(content: bytes, here: Path) -> None:
    with open(here / "r" / "metrics.jsonl", "ab") as file:
        file.write(content + b"\n")


PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch pwned\x85R."


def pickles() -> Iterator[Input]:
    """Nothing opens a pickle, however it is named."""
    index = json.dumps(
        {"metadata": {}, "weight_map": {"text_model.final_layer_norm.weight": "pytorch_model.bin"}}
    )
    gone, needs = odd("m/model.safetensors", "nothing"), ("ph", "m")
    for what, make in {
        "pytorch_model.bin alone": both(gone, put("m/pytorch_model.bin", PICKLE)),
        "an index that names one": both(
            gone, put("m/pytorch_model.bin", PICKLE), put("m/model.safetensors.index.json", index)
        ),
        "pytorch's own index": both(
            gone, put("m/pytorch_model.bin", PICKLE), put("m/pytorch_model.bin.index.json", index)
        ),
        "a pickle named model.safetensors": put("m/model.safetensors", PICKLE),
        "an index that leads above": both(
            gone, put("m/model.safetensors.index.json", index.replace("py", "../py"))
        ),
        "an index that is a list": both(gone, put("m/model.safetensors.index.json", "[]")),
        "an index of numbers": both(gone, put("m/model.safetensors.index.json", '{"weight_map": {"a": 5}}')),
        "code of its own": both(
            put("m/modeling.py", "open('pwned', 'w')"),
            put("m/config.json", '{"auto_map": {"AutoModel": "modeling.M"}, "model_type": "x"}'),
        ),
    }.items():
        yield Input(f"model: {what}", make, OTHER_MODEL, needs, must="words")
    beside = put("m/pytorch_model.bin", PICKLE)
    yield Input("model: a pickle beside its weights", beside, OTHER_MODEL, needs, judge="same")
    both_there = put("m/model.safetensors.index.json", index)
    yield Input("model: an index beside its weights", both_there, OTHER_MODEL, needs, judge="same")


def sentence_files() -> Iterator[Input]:
    """Sentences as people write them: taken, refused, or told of."""
    needs = ("ph", "s.json")
    for what, content in {
        "a class is missing": {"alpha": ["a"], "beta": ["b"]},
        "a class more": {"alpha": ["a"], "beta": ["b"], "gamma": ["c"], "delta": ["d"]},
        "another case": {"Alpha": ["a"], "BETA": ["b"], "gamma": ["c"]},
        "a blank sentence": {"alpha": ["a", " "], "beta": ["b"], "gamma": ["c"]},
        "a very long sentence": {"alpha": ["a " * 5_000], "beta": ["b"], "gamma": ["c"]},
        "an escape": {"alpha": ["\x1b[2J a"], "beta": ["b"], "gamma": ["c"]},
        "one text for a list": {"alpha": "a", "beta": "b", "gamma": "c"},
        "another script": {"alpha": ["\u732b"], "beta": ["\U0001f431"], "gamma": ["\u200b"]},
    }.items():
        change = put("s.json", json.dumps(content))
        yield Input(f"sentences: {what}", change, MEAN, needs, judge="any")
