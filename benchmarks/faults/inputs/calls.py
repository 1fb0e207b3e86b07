"""Command lines that are wrong, or odd but right."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tiny import AAPE, MICRO, ZERO_SHOT, encoded, photos, picture

from inputs import Input, both, put

NEEDS = ("ph", "r0", "r", "s.json", "pairs.csv")
FIT = ("fit", "data=ph", *ZERO_SHOT, "out=q")
TRAIN = ("fit", "data=ph", *AAPE, "out=q")
SUITE = (
    "suite",
    "few-shot",
    "data=ph",
    *MICRO,
    "methods=zero_shot",
    "seeds=1",
    "shots=1",
    "jobs=1",
    "out=su",
)
IMAGE = "ph/alpha/1.png"


def nothing(here: Path) -> None:
    """Only the command line is odd."""


def inputs() -> Iterator[Input]:
    for words in refused():
        yield Input("wordsight " + " ".join(words)[:90], nothing, words, NEEDS, must="words")
    yield from allowed()


def refused() -> Iterator[tuple[str, ...]]:
    yield from (
        (*FIT, word)
        for word in (
            "shots=x",
            "shots=0",
            "shots=-1",
            "shots=nan",
            "shots=1.5",
            "shots=99",
            "shots=inf",
            "seed=x",
            "seed=1.5",
            "seed=nan",
            "classes=some",
            "classes=base,new",
            "views=0",
            "views=-1",
            "views=x",
            "dtype=float8",
            "flip=maybe",
            "device=tpu",
            "device=cuda:99",
            "template=none",
            "template={} {}",
            "template=",
            "method=nope",
            "method=",
            "data=",
            "data=nowhere",
            "backbone=nowhere",
            "backbone=",
            "settings.x=1",
            "settings=5",
            "train=5",
            "sed=1",
            "shots",
            "=1",
            "x.y.z=1",
            "nope.yaml",
            "out=ph/alpha/0.png",
            "out=/dev/null/x",
            "sentences=nope.json",
            "aliases=nope.json",
            "method=os:system",
            "method=json:loads",
            "method=nope.nope:X",
            "backbone=os:getcwd",
            "label=nope",
        )
    )
    yield from (
        (*TRAIN, word)
        for word in (
            "train.lr=nan",
            "train.lr=inf",
            "train.lr=-1",
            "train.lr=x",
            "train.epochs=-1",
            "train.epochs=1.5",
            "train.batch_size=0",
            "train.batch_size=-3",
            "train.max_steps=0",
            "train.momentum=nan",
            "train.optimizer=adam",
            "train.schedule=never",
            "train.save_seconds=nan",
            "train.clip_norm=nan",
            "train.clip_norm=-1",
            "train.weight_decay=nan",
            "train.log_steps=0",
            "train.warmup_epochs=-1",
            "train.lr=1e999",
            "train.x=1",
            "settings.width=0",
            "settings.width=-1",
            "settings.width=x",
            "settings.heads=0",
        )
    )
    yield from (
        ("fit",),
        ("fit", "--shots", "4"),
        ("nope",),
        ("predict",),
        ("predict", "r"),
        ("predict", "gone", IMAGE),
        ("predict", "r", IMAGE, "--top", "0"),
        ("predict", "r", IMAGE, "--top", "x"),
        ("predict", "r", "gone.png"),
        ("predict", "r", IMAGE, "--classes", ",,"),
        ("predict", "r", IMAGE, "--classes", "a"),
        ("predict", "r", IMAGE, "--classes", "a,a"),
        ("predict", "r", IMAGE, "--sentences", "s.json"),
        ("predict", "r", IMAGE, "--nope"),
        ("predict", "ph", IMAGE),
        ("eval",),
        ("eval", "gone"),
        ("eval", "r", "x=1"),
        ("eval", "r", "data=gone"),
        ("eval", "r", "classes=some"),
        ("eval", "ph"),
        ("report",),
        ("report", "gone"),
        ("report", "ph"),
        ("report", "r", "--out", "gone/\0.html"),
        ("report", "r", "--reference", "nope"),
        ("suite",),
        ("suite", "nope"),
        (*SUITE, "methods=nope"),
        (*SUITE, "seeds=x"),
        (*SUITE, "seeds="),
        (*SUITE, "shots=0"),
        (*SUITE, "jobs=0"),
        (*SUITE, "jobs=-1"),
        (*SUITE, "data=gone"),
        (*SUITE, "data="),
        ("sentences",),
        ("sentences", "classes=a,b", "out=o.json"),
        ("sentences", "classes=a", "model=m"),
        ("show", "nope"),
        ("generate", "r", "x"),
        ("verify", "r"),
        ("verify", "gone"),
        ("join",),
        ("join", "x=1"),
        ("join", "vision=nope", "text=nope", "out=j"),
        ("demo", "nope"),
        ("--nope",),
        ("eval", "r", "classes="),
        ("generate", "gone", "x", "--temperature", "x"),
        ("fit", "data=pairs.csv", *ZERO_SHOT, "out=q"),
    )


def allowed() -> Iterator[Input]:
    """Odd but right: the plain command's result."""
    control = (*FIT, "--json")
    for out in (
        "q q",
        "q\u00e9",
        "q=1",
        "q,1",
        "q/../q",
        "./q/",
        "q" * 120,
        "-q",
        "q{}",
        "q%s",
        "q\u202e",
        "~/q",
        "a/b/c",
    ):
        words = (*FIT[:-1], f"out={out}", "--json")
        yield Input(f"out={out[:20]!r}", nothing, words, NEEDS, control=control, judge="same", must="right")
    for words in (
        (*FIT, "seed=01", "--json"),
        (*FIT, "shots= 1", "--json"),
        ("--json", *FIT),
        (*FIT, "name=x\ny", "--json"),
        (*FIT, "shots=2", "shots=1", "--json"),
        (*FIT, "name==1+1", "--json"),
        (*FIT, "shots=1.0", "--json"),
    ):
        yield Input(
            "wordsight " + " ".join(words)[-40:], nothing, words, NEEDS, control=control, judge="same"
        )
    for name in (
        "a b.png",
        "-a.png",
        "\u00e9.png",
        "a=b.png",
        "a,b.png",
        "a'b.png",
        "a{}.png",
        "a\nb.png",
        "\x1b[2J.png",
    ):
        words = ("predict", "r", f"x/{name}", "--json")
        change = put(f"x/{name}", encoded(picture(1, 1)))
        plain = ("predict", "r", IMAGE, "--json")
        yield Input(
            f"predict {name!r}", change, words, NEEDS, control=plain, judge="any", must="right or told"
        )
    several = ("predict", "r", IMAGE, "gone.png", "ph/beta/0.png", "--json")
    yield Input(
        "predict of three files, one missing", nothing, several, NEEDS, judge="any", must="words or told"
    )
    broken = both(put("x.png", "x"))
    yield Input(
        "predict of a broken file",
        broken,
        ("predict", "r", "x.png", "--json"),
        NEEDS,
        judge="any",
        must="words or told",
    )
    inside = both(partial(photos_at, "box/sets"))
    outside = ("suite", "few-shot", "data=box/sets/sub/..", *SUITE[3:], "--json")
    yield Input("suite data=box/sets/sub/..", inside, outside, NEEDS, judge="any")
    for words in (
        ("list", "--json"),
        ("show", "run", "--json"),
        ("show", "aape", "--json"),
        ("--version",),
        ("--help",),
    ):
        yield Input("wordsight " + " ".join(words), nothing, words, NEEDS, judge="any", must="right")


def photos_at(folder: str, here: Path) -> None:
    photos(here / folder)
    (here / folder / "sub").mkdir()
