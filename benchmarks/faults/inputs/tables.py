"""Tables: CSV in every spelling, Parquet of every type, damaged ones of both."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tiny import CLASSES, encoded, picture, rows, table

from inputs import Input, both, cut, flip, odd, put

ROWS = rows()
WORDS = ("eval", "r0", "data=table.csv", "--json")
NEEDS = ("ph", "table.csv", "r0")
PARQUET = ("eval", "r0", "data=table.parquet", "--json")


def inputs() -> Iterator[Input]:
    yield from spellings()
    yield from cells()
    yield from labels()
    yield from damaged()
    yield from parquet()
    yield from parquet_damaged()


def csv(what: str, content: str | bytes, **judged: Any) -> Input:
    return Input(f"csv: {what}", put("table.csv", content), judged.pop("words", WORDS), NEEDS, **judged)


def spellings() -> Iterator[Input]:
    """The same rows, written otherwise: the same result."""
    plain = table(ROWS)
    quoted = table([[f'"{cell}"' for cell in row] for row in ROWS])
    for what, content in {
        "semicolons": table(ROWS, by=";"),
        "tabs": table(ROWS, by="\t"),
        "quoted cells": quoted,
        "Windows line ends": plain.replace("\n", "\r\n"),
        "old Mac line ends": plain.replace("\n", "\r"),
        "a byte order mark": b"\xef\xbb\xbf" + plain.encode(),
        "no last line end": plain.rstrip("\n"),
        "blank lines": plain.replace("\n", "\n\n"),
        "blanks around cells": table([[f" {cell} " for cell in row] for row in ROWS], (" path", "label ")),
        "a header in capitals": table(ROWS, ("PATH", "Label")),
        "columns the other way": table([row[::-1] for row in ROWS], ("label", "path")),
        "a column more": table([[*row, "7"] for row in ROWS], ("path", "label", "size")),
        "rows the other way": table(ROWS[::-1]),
        "other words of the header": table(ROWS, ("filename", "category")),
        "paths with ./": table([[f"./{path}", label] for path, label in ROWS]),
        "empty columns at the end": table([[*row, ""] for row in ROWS], ("path", "label", "")),
    }.items():
        yield csv(what, content, judge="count")
    for what, content in {
        "bars": table(ROWS, by="|"),
        "UTF-16": plain.encode("utf-16"),
        "UTF-32": plain.encode("utf-32"),
        "Latin-1 with an accent": plain.replace("beta", "b\u00e9ta").encode("latin-1"),
        "cp1252 with a dash": plain.replace("beta", "b\u2013ta").encode("cp1252"),
        "EBCDIC": plain.encode("cp500"),
        "a comment line first": "# made by hand\n" + plain,
        "sep= line first": "sep=,\n" + plain,
        "paths with backslashes": plain.replace("/", "\\"),
        "absolute paths that are not here": plain.replace("ph/", "/data/ph/"),
        "paths as file: addresses": plain.replace("ph/", "file:///ph/"),
        "paths as web addresses": plain.replace("ph/", "https://example.org/ph/"),
        "paths with ~": plain.replace("ph/", "~/ph/"),
        "no header": "".join(",".join(row) + "\n" for row in ROWS),
        "a header alone": "path,label\n",
        "nothing": "",
        "blank lines alone": "\n\n\n",
        "one column": table([[row[0]] for row in ROWS], ("path",)),
        "JSON lines": "".join(json.dumps({"path": path, "label": label}) + "\n" for path, label in ROWS),
        "a web page": "<html><body>log in</body></html>",
        "an Excel file's head": b"PK\x03\x04" + bytes(99),
        "a quote that never ends": plain.replace("ph/beta/0.png", '"ph/beta/0.png'),
        "a NUL": plain.replace("beta", "be\0ta"),
        "a cell of a megabyte": table([*ROWS, ["x" * 1_000_000, "alpha"]]),
        "a line with a cell more": plain.replace("0.png,beta", "0.png,beta,x"),
        "a line with a cell less": plain.replace("0.png,beta", "0.png"),
    }.items():
        yield csv(what, content)


def cells() -> Iterator[Input]:
    """Rows that are blank, missing, double or lead elsewhere: kept or told of."""
    more = {
        "a blank label": ["ph/alpha/0.png", ""],
        "a blank path": ["", "alpha"],
        "both blank": ["", ""],
        "a missing file": ["ph/alpha/99.png", "alpha"],
        "a folder as a file": ["ph/alpha", "alpha"],
        "a FIFO as a file": ["fifo.png", "alpha"],
        "a device as a file": ["/dev/zero", "alpha"],
        "a row twice": ROWS[0],
        "a file under two labels": ["ph/alpha/0.png", "beta"],
        "a file above the table": ["../../../../etc/hostname", "alpha"],
        "a broken image": ["broken.png", "alpha"],
        "a class of one row": ["ph/alpha/0.png", "delta"],
        "a label with blanks around": ["ph/alpha/0.png", " alpha "],
        "a label in capitals": ["ph/alpha/0.png", "ALPHA"],
        "a label that is a formula": ["ph/alpha/0.png", "=1+1"],
        "a label with an escape": ["ph/alpha/0.png", "\x1b[2Jx"],
        "a label NA": ["ph/alpha/0.png", "NA"],
        "a label nan": ["ph/alpha/0.png", "nan"],
        "a label None": ["ph/alpha/0.png", "None"],
        "a label -1": ["ph/alpha/0.png", "-1"],
    }
    for what, row in more.items():
        change = both(odd("fifo.png", "fifo"), put("broken.png", "x"), put("table.csv", table([*ROWS, row])))
        new = 0 if what == "both blank" else 1
        judge = "count" if row[1].strip() != "alpha" else "rows"  # a class more, perhaps: other answers
        yield Input(f"csv: {what}", change, WORDS, NEEDS, new=new, judge=judge)
    half = [[path.replace("0.png", "x.png"), label] for path, label in ROWS]
    yield csv("a quarter of the files missing", table(half))
    yield csv("all files missing", table([[f"no/{path}", label] for path, label in ROWS]), must="words")
    for parts in (
        ("train", "test"),
        ("Train", "TEST"),
        ("train", "dev"),
        ("train", ""),
        ("0", "1"),
        ("", ""),
    ):
        listed = [[*row, parts[i % 2]] for i, row in enumerate(ROWS)]
        yield csv(f"split column of {parts}", table(listed, ("path", "label", "split")), judge="any")


def labels() -> Iterator[Input]:
    numbers = [[path, str(CLASSES.index(label))] for path, label in ROWS]
    mixed = [["ph/alpha/0.png", "1"], *ROWS[1:]]
    for what, listed in {
        "lists as labels": [[path, f"\"['{label}', 'x']\""] for path, label in ROWS],
        "several labels with |": [[path, f"{label}|x"] for path, label in ROWS],
        "several labels with ;": [[path, f'"{label};x"'] for path, label in ROWS],
        "labels as JSON": [[path, f'"{{""a"": ""{label}""}}"'] for path, label in ROWS],
        "numbers as labels": numbers,
        "floats as labels": [[path, f"{number}.0"] for path, number in numbers],
        "fractions as labels": [[path, f"{number}.5"] for path, number in numbers],
        "mixed labels": mixed,
        "true and false": [[path, ("true", "false")[label == "beta"]] for path, label in ROWS],
        "dates": [[path, f"2024-01-0{number}"] for path, number in numbers],
        "one label": [[path, "alpha"] for path, _ in ROWS],
        "blank labels everywhere": [[path, ""] for path, _ in ROWS],
        "labels of numbers with thousands of digits": [[path, "9" * 5000] for path, _ in ROWS],
    }.items():
        plain_text = what in ("true and false", "dates", "fractions as labels")  # which a class may be called
        yield csv(what, table(listed), judge="any", must="" if plain_text else "words or told")
    named = [[*row, label] for row, (_, label) in zip(numbers, ROWS)]
    yield csv("numbers with names", table(named, ("path", "label", "classname")), judge="count")
    twice = [[*row, "alpha"] for row in ROWS]
    yield csv("two label columns", table(twice, ("path", "label", "label")), must="words or told")
    yield csv("two path columns", table(twice, ("path", "label", "path")), must="words or told")
    yield csv("label and Label", table(twice, ("path", "label", "Label")), must="words or told")
    yield csv("label and class", table(twice, ("path", "label", "class")), must="words or told or right")
    yield csv("a caption column beside", table(twice, ("path", "label", "caption")), judge="count")
    yield csv("only captions", table(ROWS, ("path", "caption")), must="words")


def damaged() -> Iterator[Input]:
    for seed in range(10):
        yield Input(f"csv: a bit flipped ({seed})", flip("table.csv", seed), WORDS, NEEDS, judge="any")
    for share in (0.1, 0.5, 0.9):
        yield Input(f"csv: cut at {share}", cut("table.csv", share), WORDS, NEEDS, judge="any")
    for how in ("folder", "fifo", "loop", "device", "nothing"):
        yield Input(f"csv: a {how}", odd("table.csv", how), WORDS, NEEDS, must="words")


def write_parquet(
    columns: dict[str, Sequence], types: dict[str, Any], metadata: bytes | None, here: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    made = {name: pyarrow.array(values, types.get(name)) for name, values in columns.items()}
    whole = pyarrow.table(made)
    if metadata is not None:
        whole = whole.replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(whole, here / "table.parquet")


PATHS, NAMES = [row[0] for row in ROWS], [row[1] for row in ROWS]
BYTES = [encoded(picture(1, 100 * CLASSES.index(name) + int(Path(path).stem))) for path, name in ROWS]
STRUCTS = [{"bytes": content, "path": None} for content in BYTES]


def made(columns: dict[str, Sequence], metadata: bytes | None = None, **types: Any) -> Callable[[Path], None]:
    return partial(write_parquet, columns, types, metadata)


PLAIN = made({"image": BYTES, "label": NAMES})


def one(values: Sequence, value: Any) -> list:
    return [value, *values[1:]]


def parquet() -> Iterator[Input]:
    import pyarrow

    names = json.dumps(
        {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    ).encode()
    numbers = [CLASSES.index(name) for name in NAMES]
    for what, make in {
        "structs of bytes": made({"image": STRUCTS, "label": NAMES}),
        "structs of paths": made(
            {"image": [{"bytes": None, "path": path} for path in PATHS], "label": NAMES}
        ),
        "paths": made({"path": PATHS, "label": NAMES}),
        "large text": made({"path": PATHS, "label": NAMES}, label=pyarrow.large_string()),
        "dictionary labels": made({"image": BYTES, "label": pyarrow.array(NAMES).dictionary_encode()}),
        "numbers with names": made({"image": BYTES, "label": numbers}, names),
        "small numbers with names": made({"image": BYTES, "label": numbers}, names, label=pyarrow.int8()),
    }.items():
        yield Input(f"parquet: {what}", make, PARQUET, plain=PLAIN, judge="count")
    for what, make in {
        "a null image": made({"image": one(BYTES, None), "label": NAMES}),
        "a null struct": made({"image": one(STRUCTS, None), "label": NAMES}),
        "a struct of nulls": made({"image": one(STRUCTS, {"bytes": None, "path": None}), "label": NAMES}),
        "empty bytes": made({"image": one(BYTES, b""), "label": NAMES}),
        "a null path": made({"path": one(PATHS, None), "label": NAMES}),
        "a null label": made({"image": BYTES, "label": one(NAMES, None)}),
    }.items():
        yield Input(f"parquet: {what}", make, PARQUET, plain=PLAIN)
    for what, make in {
        "numbers without names": made({"image": BYTES, "label": numbers}),
        "a number that has no name": made({"image": BYTES, "label": one(numbers, 7)}, names),
        "lists of labels": made({"image": BYTES, "label": [[name, "x"] for name in NAMES]}),
        "lists of one label": made({"image": BYTES, "label": [[name] for name in NAMES]}),
        "structs as labels": made({"image": BYTES, "label": [{"name": name} for name in NAMES]}),
        "fractions as labels": made({"image": BYTES, "label": [number + 0.5 for number in numbers]}),
        "a NaN as label": made(
            {"image": BYTES, "label": one([float(n) for n in numbers], float("nan"))}, names
        ),
        "truth values as labels": made({"image": BYTES, "label": [name == "beta" for name in NAMES]}),
        "dates as labels": made({"image": BYTES, "label": [datetime.date(2024, 1, 1 + n) for n in numbers]}),
        "decimals as labels": made({"image": BYTES, "label": [decimal.Decimal(n) for n in numbers]}),
        "bytes as labels": made({"image": BYTES, "label": [name.encode() for name in NAMES]}),
        "bytes as labels that are no text": made(
            {"image": BYTES, "label": one([b"a"] * len(BYTES), b"\xff")}
        ),
        "lists of images": made({"image": [[struct] for struct in STRUCTS], "label": NAMES}),
        "numbers as images": made({"image": numbers, "label": NAMES}),
        "pixels as lists": made({"image": [[[0, 1], [2, 3]]] * len(NAMES), "label": NAMES}),
        "structs of other fields": made({"image": [{"data": b"x"}] * len(NAMES), "label": NAMES}),
        "no label column": made({"image": BYTES}),
        "no image column": made({"label": NAMES}),
        "no rows": made({"image": [], "label": []}, image=pyarrow.binary(), label=pyarrow.string()),
        "all labels null": made({"image": BYTES, "label": [None] * len(BYTES)}, label=pyarrow.string()),
        "a column of type null": made({"image": BYTES, "label": [None] * len(BYTES)}),
        "metadata that is no JSON": made({"image": BYTES, "label": NAMES}, b"{"),
        "metadata of another form": made({"image": BYTES, "label": NAMES}, b"[1]"),
        "metadata with names that are no list": made(
            {"image": BYTES, "label": numbers}, b'{"info": {"features": {"label": {"names": 5}}}}'
        ),
        "metadata with features that are a list": made(
            {"image": BYTES, "label": NAMES}, b'{"info": {"features": []}}'
        ),
    }.items():
        yield Input(
            f"parquet: {what}", make, PARQUET, judge="any", must="words or told or right", plain=PLAIN
        )


def parquet_damaged() -> Iterator[Input]:
    for seed in range(8):
        change = both(PLAIN, flip("table.parquet", seed, 1))
        yield Input(f"parquet: a bit flipped ({seed})", change, PARQUET, plain=PLAIN, judge="any")
    for seed in range(5):
        change = both(PLAIN, flip("table.parquet", seed, 2, 0.95))
        yield Input(f"parquet: bits of its foot flipped ({seed})", change, PARQUET, plain=PLAIN, judge="any")
    for share in (0, 0.1, 0.5, 0.99):
        yield Input(
            f"parquet: cut at {share}", both(PLAIN, cut("table.parquet", share)), PARQUET, must="words"
        )
    for how in ("folder", "fifo", "device"):
        yield Input(f"parquet: a {how}", odd("table.parquet", how), PARQUET, must="words")
