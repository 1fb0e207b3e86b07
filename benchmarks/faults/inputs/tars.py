"""Webdataset tars: cut anywhere, flipped header bytes, members double, dotted, missing or of other kinds."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tiny import CLASSES, encoded, picture, samples

from inputs import Input, both, odd, put

WORDS = ("eval", "r0", "data=t", "--json")
NEEDS = ("t", "r0")
MEMBERS = samples()
EXTRA = encoded(picture(3, 7))


def packed(members=MEMBERS, form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


WHOLE = packed()
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as _whole:
    STARTS = [info.offset for info in _whole]


def tarred(what: str, content: bytes, words: tuple[str, ...] = WORDS, **judged) -> Input:
    return Input(what, put("t/0.tar", content), words, NEEDS, **judged)


def inputs() -> Iterator[Input]:
    yield from cut_off()
    yield from flipped()
    yield from members()
    yield from labels()
    yield from kinds()
    yield from places()


def cut_off() -> Iterator[Input]:
    rng = random.Random(5)
    for number in (1, 4, 7, 12, 13, 20, 23):
        yield tarred(f"cut before member {number}", WHOLE[: STARTS[number]])
        yield tarred(f"cut in the head of member {number}", WHOLE[: STARTS[number] + rng.randrange(1, 512)])
        yield tarred(
            f"cut in the body of member {number}", WHOLE[: STARTS[number] + 512 + rng.randrange(1, 5)]
        )
    yield tarred("its closing blocks are missing", WHOLE[: STARTS[-1] + 1024])
    for number in (2, 9):
        yield tarred(
            f"zeros from member {number} on", WHOLE[: STARTS[number]] + bytes(len(WHOLE) - STARTS[number])
        )
        gap = WHOLE[: STARTS[number]] + bytes(1024) + WHOLE[STARTS[number] :]
        yield tarred(f"two blocks of zeros before member {number}", gap)
        yield tarred(
            f"one block of zeros before member {number}", gap[:-512].replace(bytes(1024), bytes(512), 1)
        )


def flipped() -> Iterator[Input]:
    fields = {"name": 0, "mode": 100, "size": 124, "time": 136, "check": 148, "type": 156, "magic": 257}
    for seed, (field, place) in enumerate(list(fields.items()) * 3):
        rng = random.Random(seed)
        content, number = bytearray(WHOLE), rng.randrange(len(STARTS))
        content[STARTS[number] + place + rng.randrange(1 if field == "type" else 3)] ^= 1 << rng.randrange(7)
        yield tarred(f"a bit of member {number}'s {field} flipped", bytes(content))
    for number in (0, 11):
        content = bytearray(WHOLE)
        content[STARTS[number] : STARTS[number] + 512] = random.Random(number).randbytes(512)
        yield tarred(f"member {number}'s head is noise", bytes(content))


def members() -> Iterator[Input]:
    first, rest = MEMBERS[:2], MEMBERS[2:]
    for what, listed, new in (
        ("an image twice", [*MEMBERS, MEMBERS[0]], 1),
        ("a label twice", [*MEMBERS, MEMBERS[1]], 0),
        ("a label twice, another", [*MEMBERS, ("000.cls", b"beta")], 0),
        ("an image twice, another", [*MEMBERS, ("000.png", EXTRA)], 1),
        ("a sample without a label", [*MEMBERS, ("900.png", EXTRA)], 1),
        ("a label without an image", [*MEMBERS, ("900.cls", b"alpha")], 1),
        ("an image without a label first", [("900.png", EXTRA), *MEMBERS], 1),
        ("two images of one key", [*MEMBERS, ("000.jpg", EXTRA)], 1),
        ("dots in the key", [*MEMBERS, ("a.b.c.png", EXTRA), ("a.b.c.cls", b"alpha")], 1),
        ("numbers with dots as keys", [*MEMBERS, ("1.5.png", EXTRA), ("1.5.cls", b"alpha")], 1),
        (
            "two keys alike up to the dot",
            [*MEMBERS, ("x.1.png", EXTRA), ("x.1.cls", b"alpha"), ("x.2.png", EXTRA), ("x.2.cls", b"beta")],
            2,
        ),
        ("a hidden member", [*MEMBERS, ("._000.png", EXTRA)], 1),
        ("a hidden folder", [*MEMBERS, (".x/900.png", EXTRA), (".x/900.cls", b"alpha")], 1),
        ("suffixes in capitals", [*MEMBERS, ("900.PNG", EXTRA), ("900.CLS", b"alpha")], 1),
        ("a member of another kind", [*MEMBERS, ("900.mp4", b"x"), ("900.cls", b"alpha")], 1),
        ("a HEIC member", [*MEMBERS, ("900.heic", b"x"), ("900.cls", b"alpha")], 1),
        ("a readme", [*MEMBERS, ("README", b"x")], 0),
        ("a broken image", [*MEMBERS, ("900.png", b"x"), ("900.cls", b"alpha")], 1),
        ("an empty image", [*MEMBERS, ("900.png", b""), ("900.cls", b"alpha")], 1),
        ("an absolute name", [*MEMBERS, ("/etc/x.png", EXTRA), ("/etc/x.cls", b"alpha")], 1),
        ("a name that leads above", [*MEMBERS, ("../../x.png", EXTRA), ("../../x.cls", b"alpha")], 1),
        ("a name with an escape", [*MEMBERS, ("\x1b[2J.png", EXTRA), ("\x1b[2J.cls", b"alpha")], 1),
        ("a name that is not UTF-8", [*MEMBERS, ("\udcff.png", EXTRA), ("\udcff.cls", b"alpha")], 1),
        ("members out of order", rest[::-1] + first[::-1], 0),
        ("labels first, images after", MEMBERS[1::2] + MEMBERS[::2], 0),
        ("samples in folders of one key", [*MEMBERS, ("b/000.png", EXTRA), ("b/000.cls", b"beta")], 1),
        ("a segmentation beside", [*MEMBERS, ("000.seg.png", EXTRA)], 1),
    ):
        yield tarred(what, packed(listed), new=new)
    yield tarred(
        "long names", packed([("d" * 90 + "/" + name, body) for name, body in MEMBERS]), judge="count"
    )
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        listed = [("\u00e9" * 120 + name, body) for name, body in MEMBERS]
        yield tarred(f"very long names, tar format {form}", packed(listed, form), judge="count")


def labels() -> Iterator[Input]:
    for what, suffix, write in (
        ("labels as .txt", "txt", str),
        ("labels as JSON", "json", '"{}"'.format),
        ("labels in a JSON object", "json", '{{"label": "{}"}}'.format),
    ):
        listed = [
            (n.replace("cls", suffix), write(b.decode()).encode() if n.endswith("cls") else b)
            for n, b in MEMBERS
        ]
        yield tarred(what, packed(listed), judge="count")
    for what, body in {
        "an empty label": b"",
        "a label that is no text": b"\xff\xfe",
        "a label with a NUL": b"al\0pha",
        "a label of a megabyte": b"x" * 1_000_000,
        "a label of two lines": b"alpha\nbeta",
        "a number as label": b"3",
        "a label with blanks": b" alpha \n",
        "a number of thousands of digits": b"9" * 5000,
    }.items():
        yield tarred(what, packed([*MEMBERS, ("900.png", EXTRA), ("900.cls", body)]), new=1)
    for what, body in {
        "JSON that is cut": b'{"label": ',
        "JSON without a label": b'{"x": 1}',
        "JSON with a list": b'{"label": ["a"]}',
        "deep JSON": b"[" * 20_000,
        "a JSON number of thousands of digits": b"9" * 6000,
        "JSON null": b"null",
        "JSON with a key twice": b'{"label": "alpha", "label": "beta"}',
    }.items():
        yield tarred(what, packed([*MEMBERS, ("900.png", EXTRA), ("900.json", body)]), new=1)
    numbers = [(n, str(CLASSES.index(b.decode())).encode() if n.endswith("cls") else b) for n, b in MEMBERS]
    yield tarred("numbers without classnames.txt", packed(numbers), must="words")
    for what, text in (
        ("", "alpha\nbeta\ngamma\n"),
        (", too short", "alpha\n"),
        (", not UTF-8", b"\xff\nb\nc\n"),
        (", with a name twice", "alpha\nalpha\ngamma\n"),
    ):
        change = both(put("t/0.tar", packed(numbers)), put("t/classnames.txt", text))
        yield Input(f"numbers with classnames.txt{what}", change, WORDS, NEEDS, must="words" * bool(what))


def typed(kind: bytes, name: str, target: str = "") -> Callable[[Path], None]:
    return partial(_typed, kind, name, target)


def _typed(kind: bytes, name: str, target: str, here: Path) -> None:
    with tarfile.open(here / "t" / "0.tar", "a") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        file.addfile(info)


def kinds() -> Iterator[Input]:
    label = both(put("t/0.tar", packed([*MEMBERS, ("900.cls", b"alpha")])))
    for what, kind, target in (
        ("a symbolic link", tarfile.SYMTYPE, "000.png"),
        ("a link outside", tarfile.SYMTYPE, "/etc/hostname"),
        ("a hard link", tarfile.LNKTYPE, "000.png"),
        ("a link to nothing", tarfile.LNKTYPE, "gone.png"),
        ("a FIFO", tarfile.FIFOTYPE, ""),
        ("a device", tarfile.CHRTYPE, ""),
        ("a folder", tarfile.DIRTYPE, ""),
    ):
        yield Input(f"{what} as a member", both(label, typed(kind, "900.png", target)), WORDS, NEEDS, new=1)


def places() -> Iterator[Input]:
    yield tarred("gzip under the name .tar", gzip.compress(WHOLE, mtime=0), must="words")
    yield tarred("no bytes", b"", must="words or told")
    yield tarred("only zeros", bytes(10240), must="words or told")
    yield tarred("a zip", b"PK\x03\x04" + bytes(999), must="words")
    yield tarred("junk after its end", WHOLE + b"junk" * 999, must="right")
    for how in ("folder", "fifo", "loop", "device", "nothing"):
        yield Input(f"a {how} in the tar's place", odd("t/0.tar", how), WORDS, NEEDS, must="words")
    second = packed([(name.replace("0", "1", 1), body) for name, body in MEMBERS])
    two = put("t/1.tar", second)
    yield Input("two tars", two, WORDS, NEEDS, new=12)
    yield Input("two tars of the same keys", put("t/1.tar", WHOLE), WORDS, NEEDS, new=12)
    for spec in ("t/{0..1}.tar", "t/*.tar", "t/[01].tar", "t/0.tar"):
        new = 0 if spec == "t/0.tar" else 12
        yield Input(
            f"data={spec}", two, ("eval", "r0", f"data={spec}", "--json"), NEEDS, control=WORDS, new=new
        )
    for spec in (
        "t/{0..2}.tar",
        "t/{0..99999999}.tar",
        "t/{1..0}.tar",
        "t/{a,b}.tar",
        "t/x*.tar",
        "t/{0..}.tar",
    ):
        yield Input(f"data={spec}", two, ("eval", "r0", f"data={spec}", "--json"), NEEDS, must="words")
    yield Input(
        "tars of train/ and test/",
        both(put("d/train/0.tar", WHOLE), put("d/test/0.tar", second)),
        ("eval", "r0", "data=d", "--json"),
        ("r0", "t"),
        control=WORDS,
        judge="count",
    )
    yield Input("a class folder beside a tar", put("t/alpha/x.png", EXTRA), WORDS, NEEDS, new=1)
