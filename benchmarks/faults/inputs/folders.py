"""Folders of class folders: hidden things, links, names of every sort, splits in every manner."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tiny import encoded, photos, picture

from inputs import EVAL, Input, both, odd, put

EXTRA = encoded(picture(3, 7))
SAME = {"must": "right"}
PARTED = ("eval", "r0", "data=ph", "--json")


def inputs() -> Iterator[Input]:
    yield from additions()
    yield from links()
    yield from names()
    yield from parts()
    yield from spellings()
    yield from layouts()


def additions() -> Iterator[Input]:
    """Something more lies there: kept, or told of."""
    for file, new in {
        "ph/alpha/.thumbnails/0.png": 1,
        "ph/alpha/.hidden.png": 1,
        "ph/alpha/._0.png": 1,
        "ph/alpha/@eaDir/0.png": 1,
        "ph/__MACOSX/alpha/0.png": 1,
        "ph/.git/alpha/0.png": 1,
        "ph/alpha/deep/er/0.png": 1,
        "ph/alpha/train/0.png": 1,
        "ph/loose.png": 1,
        "ph/delta/more/0.png": 1,
        "ph/alpha/0.png.bak/x.png": 1,
        "ph/alpha/lost+found/x.png": 1,
        "ph/alpha/a\nb.png": 1,
        "ph/alpha/tab\t.png": 1,
        "ph/alpha/\x1b[31mred.png": 1,
        "ph/alpha/'quo\"te'.png": 1,
        "ph/alpha/=1+1.png": 1,
        "ph/alpha/,;.png": 1,
        "ph/alpha/%41.png": 1,
        "ph/alpha/\u202egnp.png": 1,
        "ph/alpha/-rf.png": 1,
        "ph/alpha/*.png": 1,
        "ph/alpha/" + "x" * 240 + ".png": 1,
    }.items():
        another = file.count("/") > 1 and not file.startswith(
            "ph/alpha/"
        )  # a class more, perhaps: other answers
        judge = "count" if another else "rows"
        yield Input(f"an image more: {file[:40]!r}", put(file, EXTRA), new=new, judge=judge)
    for file in (
        "ph/alpha/notes.txt",
        "ph/README.md",
        "ph/alpha/Thumbs.db",
        "ph/alpha/.DS_Store",
        "ph/x.zip",
    ):
        yield Input(f"a file that is no image: {file}", put(file, "hello"))
    for file in ("ph/manifest.json", "ph/dataset_info.json", "ph/labels.csv", "ph/alpha/x.tar"):
        yield Input(f"a file that other forms have: {file}", put(file, "{}"))
    yield Input("an empty tar beside the classes", put("ph/x.tar", bytes(10240)))
    yield Input("a name that is not UTF-8", partial(_bytes_name, b"ph/alpha/\xff\xfe.png"), new=1)
    yield Input(
        "a class whose name is not UTF-8", partial(_bytes_name, b"ph/caf\xe9/0.png"), new=1, judge="count"
    )
    yield Input("the same bytes under two labels", put("ph/alpha/9.png", encoded(picture(1, 100))), new=1)
    yield Input("the same bytes twice in a class", put("ph/alpha/9.png", encoded(picture(1, 1))), new=1)
    yield Input("a socket named .png", _socket)
    yield Input("an empty class folder", odd("ph/delta", "folder"))
    yield Input("a class of text files only", put("ph/delta/x.txt", "x"))
    yield Input("a class of one broken image only", put("ph/delta/x.png", "x"), new=1, judge="count")


def _bytes_name(name: bytes, here: Path) -> None:
    path = os.path.join(os.fsencode(here), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(EXTRA)


def _socket(here: Path) -> None:
    os.chdir(here / "ph" / "alpha")  # a socket's path is short
    socket.socket(socket.AF_UNIX).bind("s.png")
    os.chdir(here)


def link(at: str, to: str) -> Callable[[Path], None]:
    return partial(_link, at, to)


def _link(at: str, to: str, here: Path) -> None:
    (here / at).parent.mkdir(parents=True, exist_ok=True)
    (here / at).symlink_to(to)


def links() -> Iterator[Input]:
    yield Input("a link to an image beside it", link("ph/alpha/9.png", "0.png"), new=1)
    yield Input(
        "a link to an image outside",
        both(put("out/x.png", EXTRA), link("ph/alpha/9.png", "../../out/x.png")),
        new=1,
    )
    yield Input("a link to nothing", link("ph/alpha/9.png", "gone.png"), new=1)
    yield Input("a link to itself", odd("ph/alpha/9.png", "loop"), new=1)
    yield Input("a link to a device", link("ph/alpha/9.png", "/dev/zero"), new=1)
    yield Input("a FIFO", odd("ph/alpha/9.png", "fifo"), new=1)
    for to in (".", "..", "../..", "../beta", "/proc/self"):
        extra = {"../beta": 4}.get(to, 0)
        yield Input(f"a link inside a class to {to}", link("ph/alpha/again", to), new=extra)
    for to in (".", "alpha", "../ph", "../ph0/alpha"):
        extra = {"alpha": 4, "../ph0/alpha": 4}.get(to, 0)
        yield Input(f"a link as a class to {to}", link("ph/delta", to), new=extra, judge="count")
    moved = both(partial(_rename, "ph/alpha", "elsewhere"), link("ph/alpha", "../elsewhere"))
    yield Input("a class folder that is a link to a folder outside", moved, must="right")
    yield Input(
        "the data folder is a link", both(partial(_rename, "ph", "real"), link("ph", "real")), must="right"
    )
    hard = partial(_hard, "ph/alpha/0.png", "ph/alpha/9.png")
    yield Input("a hard link of an image", hard, new=1)


def _hard(file: str, to: str, here: Path) -> None:
    os.link(here / file, here / to)


def _rename(old: str, new: str, here: Path) -> None:
    (here / new).parent.mkdir(parents=True, exist_ok=True)
    (here / old).rename(here / new)


def names() -> Iterator[Input]:
    """A class of another name: its images are kept as they were, or the name is refused."""
    for name in (
        "Alpha",
        "beta ",
        "be ta",
        "be_ta",
        "BETA",
        "caf\u00e9",
        unicodedata.normalize("NFD", "caf\u00e9"),
        "\u732b",
        "\U0001f431",
        "b,eta",
        'b"eta',
        "b'eta",
        "b{}eta",
        "b%s",
        "-beta",
        "\x1b[2Jb",
        "b\nta",
        "CON",
        "0",
        "1e5",
        "null",
        "true",
        "all",
        "b" * 200,
        "\u202eateb",
        "be\u200bta",
        "=beta",
        "<b>beta</b>",
        "..beta",
        "b:eta",
        "$HOME",
    ):
        change = partial(_rename, "ph/beta", f"ph/{name}")
        yield Input(f"class beta is called {name[:20]!r}", change, judge="count")
    twin = both(
        put("ph/caf\u00e9/0.png", EXTRA), put(unicodedata.normalize("NFD", "ph/caf\u00e9/1.png"), EXTRA)
    )
    yield Input("two folders of one name, composed and decomposed", twin, new=2, judge="count")
    yield Input("two folders that differ in case", put("ph/Alpha/9.png", EXTRA), new=1, judge="count")
    yield Input("two folders that differ in a blank", put("ph/alpha /9.png", EXTRA), new=1, judge="count")
    twin = both(put("ph/a_b/9.png", EXTRA), put("ph/a b/8.png", EXTRA))
    yield Input("two folders that differ in _", twin, new=2, judge="count")


def parted(*folders: str) -> Callable[[Path], None]:
    """`ph` becomes folders of class folders, with other pictures in each."""
    return partial(_parted, folders)


def _parted(folders: tuple[str, ...], here: Path) -> None:
    for seed, folder in enumerate(folders):
        photos(here / "d" / folder, seed + 4, each=2)


def parts() -> Iterator[Input]:
    """train, val and test above the classes: as many are measured as lie in test, and the rest is told."""
    data = ("eval", "r0", "data=d", "--json")
    plain = parted("train", "test")
    for folders in (
        ("Train", "TEST"),
        ("train", "test", "valid"),
        ("training", "testing"),
        ("train", "test", "val"),
        ("train", "test", ".cache"),
    ):
        yield Input(
            f"parts {', '.join(folders)}", parted(*folders), data, plain=plain, control=data, judge="count"
        )
    for folders in (
        ("train", "test", "valid", "validation"),
        ("train", "test", "extra"),
        ("train", "test", "tset"),
        ("train", "test", "Test"),
        ("train", "test", "alpha"),
        ("amazon", "webcam"),
        ("train",),
        ("test",),
        ("train", "tests"),
        ("split1/train", "split1/test"),
        ("train/real", "test/real"),
    ):
        must = "" if len(folders) == 1 else "words or told"
        made = parted(*folders)
        yield Input(f"parts {', '.join(folders)}", made, data, judge="any", must=must, plain=plain)
    flat = both(plain, put("d/test/x.png", EXTRA))
    yield Input("a loose image in test/", flat, data, plain=plain, control=data, new=1)
    flat_only = both(parted("train"), put("d/test/x.png", EXTRA), put("d/test/y.png", EXTRA))
    yield Input("a flat test/", flat_only, data, plain=plain, judge="any", must="words or told")
    new_class = both(plain, put("d/test/delta/x.png", EXTRA))
    yield Input("a class in test/ alone", new_class, data, plain=plain, judge="any")
    train_class = both(plain, put("d/train/delta/x.png", EXTRA))
    yield Input("a class in train/ alone", train_class, data, plain=plain, judge="any")
    nfd = unicodedata.normalize("NFD", "caf\u00e9")
    twin = both(plain, put("d/train/caf\u00e9/x.png", EXTRA), put(f"d/test/{nfd}/y.png", EXTRA))
    one = both(plain, put("d/train/caf\u00e9/x.png", EXTRA), put("d/test/caf\u00e9/y.png", EXTRA))
    yield Input("composed in train/, decomposed in test/", twin, data, plain=one, control=data, judge="count")
    empty = both(parted("train"), odd("d/test", "folder"))
    yield Input("an empty test/", empty, data, plain=plain, judge="any")


def spellings() -> Iterator[Input]:
    for spec in ("ph/", "./ph", "ph/.", "ph//", "x/../ph", "{here}/ph", "~/ph", " ph ", "./ph/../ph"):
        change = both(odd("x", "folder"), link("../home/ph", "../here/ph"))
        yield Input(f"data={spec!r}", change, ("eval", "r0", f"data={spec}", "--json"), control=EVAL, **SAME)
    for old, new in (
        ("ph", "my photos"),
        ("ph", "ph\u00e9"),
        ("ph", "a=b"),
        ("ph", "a::b"),
        ("ph", "x.tar"),
        ("ph", "digits2"),
        ("ph", "x.csv"),
        ("ph", "{a}"),
        ("ph", "*"),
    ):
        words = ("eval", "r0", f"data={new}", "--json")
        yield Input(f"the folder is called {new!r}", partial(_rename, old, new), words, control=EVAL)


def layouts() -> Iterator[Input]:
    empty, words = odd("e", "folder"), ("eval", "r0", "data=e", "--json")
    yield Input("an empty folder", empty, words, must="words")
    yield Input("a folder that is not there", odd("e", "nothing"), words, must="words")
    yield Input("a FIFO as the data", odd("e", "fifo"), words, must="words")
    yield Input("a device as the data", odd("e", "device"), words, must="words")
    yield Input("one class only", put("e/alpha/0.png", EXTRA), words, must="words")
    yield Input("images without classes", put("e/0.png", EXTRA), words, must="words")
    yield Input("only text files", put("e/alpha/0.txt", "x"), words, must="words")
    yield Input("only HEIC", both(put("e/alpha/0.HEIC", "x"), put("e/beta/0.HEIC", "x")), words, must="words")
    yield Input(
        "only broken images", both(put("e/alpha/0.png", "x"), put("e/beta/0.png", "x")), words, must="words"
    )
