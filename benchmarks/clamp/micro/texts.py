"""Text about 62 glyphs, and nothing else: what strokes, loops and openings each one has, what it resembles,
how two of them differ.

All that the micro LM ever learns from. [a|b] stands for either wording. The same seed gives the same text.
"""

from __future__ import annotations

import random
import string
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "micro_clip"))
from captions import DIGITS, FACTS, choose

GLYPHS = string.digits + string.ascii_uppercase + string.ascii_lowercase  # in the order of glyphs.py

PARTS = {  # what a glyph can have; digits and letters share every one of these phrases
    "ring": "a [closed|single] [loop|ring] that is the whole shape;one [big|large] [loop|ring]",
    "low": "a closed [loop|ring] [at the bottom|below|in the lower half];a hole in the lower half",
    "high": "a closed [loop|ring] [at the top|above|in the upper half];a hole in the upper half",
    "two": "two closed [loops|rings] [stacked|one above the other];two holes",
    "none": "no [loop|ring|hole];no closed part",
    "left": "a [straight|vertical] stem on the left;a [straight|flat] left side",
    "right": "a [straight|vertical] stem on the right;a straight right side",
    "middle": "a [straight|vertical] stem in the [middle|centre]",
    "bar-top": "a [flat|horizontal] bar [at|along] the top;a flat top",
    "bar-middle": "a [flat|horizontal] bar [in|across] the [middle|centre];a crossbar",
    "bar-bottom": "a [flat|horizontal] bar [at|along] the bottom;a flat [base|bottom]",
    "slant-left": "a [slanted|diagonal] stroke down to the lower left",
    "slant-right": "a [slanted|diagonal] stroke down to the lower right",
    "round-top": "a [round|curved] top",
    "round-bottom": "a [round|curved] bottom;a round [belly|bowl] below",
    "open-left": "an open left side;a curve open to the left",
    "open-right": "an open right side;a curve open to the right",
    "open-top": "an open top;a [cup|shape] open at the top",
    "open-bottom": "an open bottom;two feet with a gap between",
    "bulge-right": "a [bulge|curve] on the right;a round right side",
    "bulge-left": "a [bulge|curve] on the left;a round left side",
    "bulges-right": "two [bulges|bumps] on the right, one above the other",
    "point-top": "a [point|peak] at the top",
    "point-bottom": "a [point|peak] at the bottom",
    "corner-ul": "a [sharp|] corner at the upper left",
    "corner-ur": "a [sharp|] corner at the upper right",
    "corner-ll": "a [sharp|] corner at the lower left",
    "empty-ur": "an empty upper right;nothing at the upper right",
    "empty-ul": "an empty upper left;nothing at the upper left",
    "empty-lr": "an empty lower right;nothing at the lower right",
    "empty-ll": "an empty lower left;nothing at the lower left",
    "tail-down": "a [tail|stem|leg] that goes down on the right",
    "tail-up": "a [tail|stem|stroke] that goes up on the left",
    "hook": "a hook to the left at the bottom",
    "flag": "a short flag at the upper left",
    "arm": "a short arm at the upper right",
    "dot": "a dot above",
    "cross": "strokes that cross",
    "waist": "a narrow waist in the middle",
    "straight": "only straight strokes;no curve",
    "curved": "only curves;no corner",
    "narrow": "a [narrow|thin] shape;almost no width",
    "wide": "a wide shape",
    "mirror": "two equal sides, left and right",
    "upside": "two equal halves, upper and lower",
}
SHAPES = {
    "0": "ring curved mirror upside round-top round-bottom bulge-right bulge-left", "1": "middle none narrow straight flag",
    "2": "round-top bar-bottom slant-left open-left corner-ll none empty-ul", "3": "bulges-right open-left round-top round-bottom curved none waist",
    "4": "right bar-middle slant-left straight cross empty-ll open-top", "5": "bar-top corner-ul round-bottom open-left none bulge-right",
    "6": "low tail-up round-bottom bulge-left empty-ur curved", "7": "bar-top corner-ur slant-left none straight empty-lr empty-ll",
    "8": "two waist curved mirror round-top round-bottom", "9": "high tail-down round-top empty-ll bulge-right",
    "A": "point-top bar-middle slant-left slant-right mirror straight open-bottom", "B": "left two bulges-right waist upside",
    "C": "open-right bulge-left round-top round-bottom none curved upside", "D": "left ring bulge-right upside",
    "E": "left bar-top bar-middle bar-bottom open-right straight none upside corner-ul corner-ll", "F": "left bar-top bar-middle empty-lr straight none corner-ul open-right",
    "G": "open-right bulge-left round-top round-bottom bar-middle none", "H": "left right bar-middle open-top open-bottom mirror straight none upside",
    "I": "middle narrow straight none mirror", "J": "right hook round-bottom empty-ul none", "K": "left slant-left slant-right open-right straight none upside",
    "L": "left bar-bottom corner-ll empty-ur straight none", "M": "left right slant-left slant-right open-bottom mirror straight wide none",
    "N": "left right slant-right straight none", "O": "ring curved mirror upside round-top round-bottom bulge-right bulge-left wide",
    "P": "left high bulge-right empty-lr", "Q": "ring curved slant-right round-top bulge-right bulge-left wide", "R": "left high slant-right open-bottom bulge-right",
    "S": "round-top round-bottom open-right open-left curved none", "T": "bar-top middle mirror straight none empty-ll empty-lr",
    "U": "left right round-bottom open-top mirror none", "V": "point-bottom slant-left slant-right open-top mirror straight none",
    "W": "slant-left slant-right open-top mirror straight wide none", "X": "cross slant-left slant-right mirror upside straight waist open-top open-bottom",
    "Y": "open-top middle mirror straight none cross", "Z": "bar-top bar-bottom slant-left corner-ur corner-ll straight none",
    "a": "low right round-top bulge-left open-left", "b": "left low tail-up bulge-right empty-ur round-bottom", "c": "open-right bulge-left round-top round-bottom none curved",
    "d": "right low bulge-left empty-ul round-bottom", "e": "high bar-middle open-right round-top round-bottom bulge-left", "f": "middle round-top bar-middle cross arm none",
    "g": "high tail-down hook round-top bulge-right", "h": "left open-bottom empty-ur tail-up bulge-right none", "i": "middle dot narrow none straight", "j": "right dot hook narrow none empty-ul",
    "k": "left slant-left slant-right open-right straight none empty-ur tail-up", "l": "middle narrow straight none", "m": "left right middle round-top open-bottom wide none mirror",
    "n": "left right round-top open-bottom none", "o": "ring curved mirror upside round-top round-bottom bulge-right bulge-left", "p": "left high bulge-right empty-lr round-top",
    "q": "right high tail-down bulge-left empty-ll round-top", "r": "left arm empty-lr round-top none", "s": "round-top round-bottom open-right open-left curved none",
    "t": "middle bar-middle cross round-bottom none", "u": "left right round-bottom open-top none", "v": "point-bottom slant-left slant-right open-top mirror straight none",
    "w": "slant-left slant-right open-top mirror straight wide none", "x": "cross slant-left slant-right mirror upside straight waist open-top open-bottom",
    "y": "open-top slant-left slant-right none straight empty-lr", "z": "bar-top bar-bottom slant-left corner-ur corner-ll straight none",
}  # fmt: skip
# fmt: skip
ALIKE = (
    "0Oo 0D 0Q 1lI 1i 1t 2Zz 3B 3E 3S 4A 4Y 4H 4q 5Ss 5J 6b 6G 7T 7Z 7F 8B 8S 9g 9q 9P Cc Kk Uu Vv Ww Xx "
    "Yy Pp Mm hn rT ij ft ae ce dq bp DO CG EF NH LI RP QO JU VY"
)

# n, m: names; a, b, c: parts of n; s: a part that both have; d: a part of m alone; e: a part of n alone
TEXTS = [
    "a picture shows {n}. it has {a} and {b}.", "a picture shows {n}. it has {a}, {b} and {c}.", "a picture shows {n}. it has {a}.", "a picture shows {a}. it has {b} and {c}.",
    "a picture shows {a} and {b}. it has {c}.", "a picture shows {a}. it shows {n}.", "a picture shows {a}, {b} and {c}. it shows {n}.", "{n} has {a} and {b}.", "{n} has {a}.",
    "{n} is drawn with {a} and {b}.", "{n}: {a}, {b}, {c}.", "what has {a} and {b} may be {n}.", "you know {n} by {a} and {b}.", "there is {a} in {n}.",
]  # fmt: skip
PAIRED = [
    "{n} looks like {m}.", "a picture shows {n}. it looks like {m}.", "{n} and {m} are alike: both have {s}.", "{n} looks like {m}, for both have {s}.",
    "{n} has {s}, as {m} has.", "{n} looks like {m}, but it has {e}.", "{m} has {d}, but {n} has {e}.",
]  # fmt: skip


def name(glyph: str) -> str:
    """What captions call a glyph."""
    return (
        f"the digit {DIGITS[int(glyph)]}"
        if glyph.isdigit()
        else f"the {'capital' if glyph.isupper() else 'small'} letter {glyph.lower()}"
    )


def names(glyph: str) -> list[str]:
    if glyph.isdigit():
        word = DIGITS[int(glyph)]
        return [name(glyph)] * 4 + [f"the number {word}", word, f"a {word}", f"the digit {glyph}"]
    kind = "capital" if glyph.isupper() else "small"
    return [name(glyph)] * 4 + [f"{kind} {glyph.lower()}", f"a {kind} {glyph.lower()}"]


def phrase(part: str, rng: random.Random) -> str:
    return choose(rng.choice(PARTS[part].split(";")), rng)


def phrases(glyph: str, count: int, rng: random.Random) -> list[str]:
    """Parts in shared words, and now and then a turn of phrase that only this glyph has (those of the micro
    CLIP's captions).
    """
    parts = rng.sample(SHAPES[glyph].split(), count)
    return [
        choose(rng.choice(FACTS[glyph].split(";")), rng) if rng.random() < 0.15 else phrase(part, rng)
        for part in parts
    ]


def sentence(rng: random.Random) -> str:
    """One sentence or two about one glyph, or about two that are alike."""
    if rng.random() < 0.25:
        pair = rng.sample(rng.choice(ALIKE.split()), 2)
        own, other = (SHAPES[glyph].split() for glyph in pair)
        shared, mine, theirs = (
            [p for p in own if p in other],
            [p for p in own if p not in other],
            [p for p in other if p not in own],
        )
        words = {"n": rng.choice(names(pair[0])), "m": rng.choice(names(pair[1]))}
        words |= {
            key: phrase(rng.choice(found or own), rng)
            for key, found in (("s", shared), ("e", mine), ("d", theirs))
        }
        usable = [
            text
            for text in PAIRED
            if not (
                ("{s}" in text and not shared)
                or ("{e}" in text and not mine)
                or ("{d}" in text and not theirs)
            )
        ]
        return rng.choice(usable).format(**words)
    glyph = rng.choice(GLYPHS) if rng.random() < 0.7 else rng.choice(string.digits)
    a, b, c = phrases(glyph, 3, rng)
    return rng.choice(TEXTS).format(n=rng.choice(names(glyph)), a=a, b=b, c=c)


def corpus(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(sentence(rng).split()).lower()


def describe(glyph: str, rng: random.Random) -> str:
    """A caption that describes and does not name."""
    return " and ".join(phrase(part, rng) for part in rng.sample(SHAPES[glyph].split(), 2))


if __name__ == "__main__":
    print("\n".join(corpus(20, 1)))
