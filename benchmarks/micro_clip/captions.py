"""Captions of glyphs: what each one is called and how its strokes run, in sentences assembled anew each time.

[a|b] stands for either wording. A fact is a noun phrase; an account is a whole sentence about the way the pen
goes."""

from __future__ import annotations

import random
import re

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# glyph -> noun phrases that describe it, separated by semicolons
FACTS = {
    "0": "a [single|] closed [loop|ring|oval] [around|with] an empty [middle|centre|hole];an [upright|tall] "
    "oval [outline|ring] with nothing [inside|in the middle];"
    "a [large|big|round] hole in the [middle|centre];[no|neither] corners, bars or loose ends;an egg "
    "shaped ring;a curve that [meets|returns to] its own start;"
    "ink all around and an empty centre;a hollow ellipse, [higher|taller] than wide;[smooth|curved] left "
    "and right sides that [meet|join] at the top and at the bottom;"
    "a wide [hole|opening|space] in the [center|middle] and ink at the [edge|rim|border];"
    "the outline of [an egg|a standing ellipse];"
    "left and right sides that [bend|curve] and join above and below;"
    "an [inside|interior] that stays [blank|empty|hollow];"
    "a big [loop|ring] that is neither open nor crossed;"
    "one [continuous|unbroken] stroke around a [single|] space, without a tail",
    "1": "a single [straight|upright|vertical] [stroke|stem|line];a [small|short|slanted] flag at the top "
    "[left|];a [narrow|thin] column of ink;no loop and no [curve|bowl];"
    "a short [base|foot] under a straight stem;a [vertical|plain] stick from top to bottom;almost no "
    "width;a tall thin bar in the [middle|centre];"
    "ink in the middle columns only and empty sides;"
    "the [thinnest|narrowest] shape of all;"
    "nothing [but|more than] a straight [stick|line|post];"
    "[both|the left and right] sides [blank|empty];"
    "a plain stem that [encloses|holds] no space;"
    "a [tiny|short] tick at the upper left of an upright stroke;"
    "a [single|] bar that stands straight or leans a little to the right",
    "2": "a curve [open to the left|like a hook] at the top;a [flat|horizontal] [base|bar|line] along the "
    "bottom;a [diagonal|slanted] stroke down to the lower left;"
    "a [rounded|round] top and a flat [bottom|base];a swan neck over a flat line;a sharp corner at the "
    "lower left;an arch that [slopes|sweeps] down to the left and ends in a [horizontal|flat] foot;"
    "a hook above and a straight baseline below;a bottom stroke running to the right;"
    "a [curved|bent] neck above a level [floor|line|base];"
    "an arch above, a diagonal in the [middle|centre] and a level line below;"
    "a top that is round and a bottom that is straight;"
    "an end that [rests|lies] on the baseline;"
    "a curve, then a diagonal, then a [horizontal|flat] foot;"
    "an upper part that curves right and a base that runs right",
    "3": "two [curves|bowls|bumps|bulges] open to the left, [stacked|one above the other];two half circles "
    "[stacked|facing left];a [point|notch|cusp] in the middle of the [left|right] side where the "
    "curves meet;"
    "an [open|empty] left side and two bulges on the right;two rounded bumps to the right;an upper and a "
    "lower arc, both open on the left;no closed loop and a short middle [bar|tongue];two bellies on the "
    "right side;"
    "a pair of [bulges|half circles|arcs] on the right;"
    "bumps on the right and no stem on the left;"
    "arcs that leave [gaps|openings] on the left;"
    "a [small|] notch where the [upper|top] arc [meets|touches] the lower;"
    "an upper bowl and a lower bowl, both [open|unclosed];"
    "a [double|twin] bulge with a point between",
    "4": "a [vertical|straight] stem crossed by a [horizontal|level] bar;an open [angle|top|corner] at the "
    "upper left;a [triangle|closed triangle] left of an upright stem;"
    "a [crossing|crossbar] right of the middle;a slanted stroke, a [crossbar|horizontal bar] and a "
    "vertical [stem|line];a [leg|stem] that drops below the crossbar;"
    "[straight|only straight] strokes that cross;a cup on the left joined to a long stem on the "
    "right;empty lower left and a stem to the bottom;"
    "an [angle|arm] on the left [joined to|touching] a long stem on the right;"
    "a bar that crosses the stem and a stem that [continues|goes on] to the bottom;"
    "[a top open like a cup|an open top] and a leg that [drops|hangs] from the crossbar;"
    "a stem alone reaching the bottom;"
    "a level bar, a leaning left arm and a long right stem;"
    "a crossing and no [round|curved] part",
    "5": "a [flat|straight] bar [along|at] the top;a short stem down the upper left;a [bowl|belly|curve] "
    "open to the left [at|in] the bottom;a flat top and a round [bottom|belly];"
    "a corner at the upper left and a bulge at the lower right;a horizontal top [line|stroke] over a round "
    "belly;an open lower left and a hook at the bottom;"
    "a bar, a short neck and a large round curve;a cap at the top right;"
    "a cap [above|over] a bowl open on the left;"
    "an [angular|square] upper left and a [rounded|curved] lower right;"
    "a top line that is [horizontal|level] and a big curve below;"
    "straight strokes with a corner in the upper half and a [curve|bulge] in the lower half;"
    "a stem from the left end of the bar that swings into a bowl;"
    "a curve that faces left under a short neck and a bar",
    "6": "a closed loop at the bottom;a [long|tall] curved stroke down the left side into a [closed|lower] "
    "loop;a [round|closed] [belly|bowl|ring] below and an open top;"
    "a tail that rises above a ring;a hole in the lower half;a [curved|slanted] stem over a closed lower "
    "bowl;empty upper right;a curl that closes at the bottom;"
    "one loop low down, with a stroke reaching [up|upward];"
    "a [single|] loop that [sits|lies|rests] low, at the bottom;"
    "a closed lower part and [just|only] a [line|stroke] in the upper part;"
    "a blank upper right [corner|];"
    "a [circle|ring] at the base of a tall curved stem;"
    "a stroke that [reaches|goes] up from a low ring;"
    "a line that bends down the left side and curls [inward|] into a [small|] circle;"
    "an open top and a closed [bottom|bowl]",
    "7": "a [horizontal|flat] bar [along|across] the top;a [diagonal|slanted] [stroke|leg] falling to the "
    "lower left;a sharp [corner|angle] at the upper right;"
    "a flat top and a single leg;no base, no bowl and no loop;a long slanted stem, sometimes crossed in "
    "the middle;a straight top line and a line that drops down from its right end;"
    "empty lower right and empty lower left corners;a short bar through the middle of a leaning stem;"
    "a [roof|level top] over a long leaning [stem|leg];"
    "a level line on top, then a diagonal to the bottom left;"
    "a bar that bends at its right end into a slanting line;"
    "a [blank|empty] lower right [corner|];"
    "a stem that hangs from a flat bar;"
    "a [straight|level] top edge and a line dropping to the left;"
    "an angle at the upper right of straight lines",
    "8": "two closed [loops|rings|circles] [stacked|one on the other|one above the other];a "
    "[crossing|waist|pinch] in the middle;two [holes|rings], an upper and a lower;"
    "a small ring on top of a larger ring;a narrow waist between two [round|closed] loops;a stroke that "
    "crosses itself in the [middle|centre];the shape of [an hourglass|a snowman];"
    "a double loop;closed curves above and below the centre;a closed upper half and a closed lower half;"
    "[a pair of|two] rings that touch at a narrow waist;"
    "a [small|] circle on top of a [bigger|larger] circle;"
    "a hole above and a hole below;"
    "two openings, one over the other;"
    "both halves closed, with a [pinch|crossing] between;"
    "an upper ring and a lower ring, curved everywhere;"
    "two [enclosed|closed] spaces and no loose end",
    "9": "a closed loop at the top;a [tail|stem|stroke] [falling|hanging] from the right of the loop;a "
    "[round|closed] [head|bowl|ring] above and a [tail|stem] below;"
    "a hole in the upper half;an open bottom under a closed ring;a ring on top of a "
    "[straight|curved|hooked] stem;empty lower left;a loop high up with a stroke reaching [down|downward];"
    "a closed upper [circle|bowl] and a long leg on the right;"
    "a [single|] loop that [sits|lies|stays] high, near the top;"
    "a closed upper part and [just|only] a [line|stroke] in the lower part;"
    "a blank lower left [corner|];"
    "a [circle|ring] at the top of a long stem;"
    "a stroke that [reaches|goes] down from a high ring;"
    "a tail [hanging|that hangs] down from a [small|round] circle, sometimes ending in a hook;"
    "a closed top and an open [bottom|base]",
    "A": "two slanted strokes that meet at the top;a crossbar between two legs;a peak, a bar and two feet",
    "B": "a straight stem on the left and two closed bowls on the right;two closed bumps on an upright "
    "back;a flat left side with two holes",
    "C": "a single curve open to the right;a round arc with a gap on the right;no bar and no corner, an arc "
    "like a cup on its side",
    "D": "a straight left stem and a single large bowl;a flat left side, a round right side and one hole;a "
    "half disc on an upright back",
    "E": "an upright stem with three horizontal bars to the right;three arms on the left stem;a comb with "
    "three teeth",
    "F": "an upright stem with two bars at the top and middle;two arms and no base;a stem with arms to the "
    "right and an empty lower right",
    "G": "a round arc open to the right with a bar inside;a curve like a cup with a short shelf;an arc that "
    "ends in an inner spur",
    "H": "two upright stems joined by a crossbar;two parallel posts and a bar in between;a ladder with one "
    "rung",
    "I": "an upright stroke with serifs at both ends;a straight post;a column with a cap and a base",
    "J": "a stem that hooks to the left at the bottom;a fish hook;a straight stroke ending in a curve to "
    "the lower left",
    "K": "an upright stem with two slanted arms;an arm going up and a leg going down from a stem;a post and "
    "an angle pointing at it",
    "L": "an upright stem with a flat base to the right;a single corner at the lower left;a post and a "
    "foot, the upper right empty",
    "M": "two upright stems with a valley between them;two peaks;four straight strokes in a zigzag",
    "N": "two upright stems joined by a diagonal;a slanted stroke between two posts;a zigzag of three "
    "strokes",
    "O": "a wide round ring;a circle as wide as it is tall;a full round letter ring",
    "P": "an upright stem with a closed bowl at the upper right;a flag on a post;a straight left stem with "
    "a loop high on the right",
    "Q": "a round ring with a short tail at the lower right;a circle crossed by a stroke at the bottom;a "
    "ring with a slash",
    "R": "a stem, a closed upper bowl and a slanted leg;a loop at the upper right over a kicked out leg;a "
    "bowl above a diagonal leg",
    "S": "a double bend, first left, then right;a snake;two opposite curves without a corner",
    "T": "a flat bar on top of a centred stem;a post under a roof;a bar over the middle of an upright",
    "U": "two upright strokes joined by a round bottom;a cup open at the top;a horseshoe",
    "V": "two slanted strokes that meet at the bottom;a single point at the bottom;a valley open at the top",
    "W": "four slanted strokes with two points at the bottom;two valleys side by side;a double point below",
    "X": "two diagonals that cross in the middle;a cross of slanted strokes;four arms from a centre",
    "Y": "two arms that meet over a single stem;a fork;an open angle on top of a post",
    "Z": "two horizontal bars joined by a diagonal;a zigzag with a flat top and a flat base;sharp corners "
    "at the upper right and lower left",
    "a": "a closed bowl at the lower left with a stem on the right;a small hood over a bowl;a low ring "
    "leaning on a short stem",
    "b": "a tall stem on the left and a closed bowl at the lower right;a post with a round belly to the "
    "right;a straight back and a low ring on its right",
    "c": "a small arc open to the right;a low curve with a gap on the right;a small cup on its side",
    "d": "a tall stem on the right and a closed bowl at the lower left;a post with a ring to its left;a low "
    "ring before a tall back",
    "e": "a bar across a curve open at the lower right;a closed upper half and an open lower right;a level "
    "bar inside a round arc",
    "f": "a stem hooked to the right at the top with a crossbar;a cane with a bar;a bent top and a bar "
    "across",
    "g": "a closed bowl above a tail that hooks to the left below;a ring with a descending loop;two stacked "
    "rings with an ear",
    "h": "a tall left stem and an arch open at the bottom;a chair;a post with a hump to the right",
    "i": "a short stem under a dot;a dot over a stroke;a stick with a separate point above",
    "j": "a dotted stem that hooks to the left below the line;a dot over a hook;a fish hook with a point "
    "above",
    "k": "a tall stem with a small angle on the right;a post with two short slanted arms;a long back and a "
    "small arrow head",
    "l": "a tall plain stem;a long upright line;a bare post with hardly any foot",
    "m": "three short stems joined by two arches;two humps side by side;a double arch",
    "n": "two short stems joined by an arch;a single hump;an arch open at the bottom",
    "o": "a small round ring;a low circle;a little round ring on the line",
    "p": "a stem going below the line with a bowl at the upper right;a low post with a ring on its right;a "
    "long leg and a bowl to its right",
    "q": "a closed bowl at the upper left of a descending stem;a ring to the left of a long leg;a bowl and "
    "a straight tail on its right",
    "r": "a short stem with a small arm at the upper right;a stub with a drooping branch;a post with a "
    "little hook",
    "s": "a small double bend;a little snake;two small opposite curves",
    "t": "a stem crossed near the top, curved at the foot;a small cross with a bent foot;a crossbar high on "
    "a short stem",
    "u": "a small cup open at the top with a stem on the right;two short strokes joined below;a low round "
    "valley",
    "v": "a small point at the bottom;two short slanted strokes that meet below;a small valley",
    "w": "two small valleys;four short slanted strokes;a low double point",
    "x": "two short diagonals that cross;a small cross of slanted strokes;a little crossing in the middle",
    "y": "two arms that meet, one going on below the line;a fork with a slanted tail to the lower left;a "
    "small valley with a long tail",
    "z": "two short bars joined by a diagonal;a small zigzag;a little flat top and flat base with a slanted "
    "stroke between",
}

# digit -> how the pen goes, separated by semicolons
ACCOUNTS = {
    "0": "the pen goes all the way [round|around] and closes where it [began|started];it is a ring and "
    "nothing else;the [stroke|line] never crosses itself and encloses a single space",
    "1": "the pen goes straight down [once|] and stops;it is just a [line|stick];the ink stays in the "
    "middle from top to bottom",
    "2": "the pen curves over the top, [slides|runs] down to the left and ends with a line to the right;it "
    "starts with a hook and finishes with a flat base;the curve turns into a straight line at the "
    "bottom",
    "3": "the pen makes a bump to the right, comes back to the middle and makes another;it curves right "
    "twice, one arc under the other;both curves leave the left side open",
    "4": "the pen goes down, then across, and a [second|separate] stroke cuts [down|] through;two lines "
    "cross on the right and the top is open;a bar crosses the stem below the middle",
    "5": "the pen goes down from the left end of the top bar and swings round to the right;it begins with a "
    "flat top and finishes with a belly;the bar points right and the bowl bulges right",
    "6": "the pen comes down [in a curve|on the left] and curls into a ring at the bottom;it starts at the "
    "top and ends in a loop below;the lower part is closed and the upper part is open",
    "7": "the pen goes right along the top, turns sharply and falls to the lower left;it is a bar and a "
    "slanting leg;after the corner the line runs straight down to the left",
    "8": "the pen draws an s and comes back up, crossing in the middle;it closes two rings, one over the "
    "other;the line crosses itself and encloses two spaces",
    "9": "the pen closes a ring at the top and then drops down;it starts with a loop and ends in a tail "
    "below;the upper part is closed and the lower part is open",
}

NAMED = [
    "a photo of a {}.", "a photo of the {}.", "a photo of a {}", "a picture of a {}.", "an image of the {}.", "a drawing of a {}.", "a handwritten {}.",
    "the {}", "{}", "this is a {}.", "a scan of a {} written by hand.", "a small picture of the {}.", "someone wrote a {}.", "a blurry photo of a {}.",
    "a bright {} on a dark ground.", "it reads {}.",
]  # fmt: skip
PLAIN = [
    "{f}", "{f}.", "{f}, {g}.", "{f} and {g}.", "it has {f}.", "it has {f} and {g}.", "a [handwritten|written|] [character|sign|figure|shape] with {f}.",
    "a shape with {f} and {g}.", "there is {f} and {g}.", "you can see {f}.", "written by hand it shows {f}, often with {g}.",
    "look for {f}; {g} helps too.", "{f}, with {g} and {h}.", "{f}; {g}; {h}.", "the figure usually has {f}.",
    "in handwriting it is drawn as {f} with {g}.", "what marks it is {f}, together with {g}.",
]  # fmt: skip
MIXED = [
    "a photo of a {n}, {s}",
    "the {n}: {s}",
    "a {n} has {f} and {g}.",
    "a {n} is drawn with {f}.",
    "a handwritten {n} with {f}.",
    "{s} this is the {n}.",
]
SYNONYMS = {
    "stroke": "line mark stroke", "loop": "ring circle loop bowl", "ring": "loop circle ring", "stem": "post upright line stroke stem", "bar": "line stroke bar",
    "middle": "centre waist middle", "top": "upper end top", "bottom": "base foot bottom lower part", "slanted": "diagonal leaning sloping slanting slanted", "round": "rounded curved circular round",
    "flat": "horizontal level straight flat", "horizontal": "flat level horizontal", "closed": "complete full closed", "hole": "opening gap hole", "empty": "blank open empty hollow", "blank": "empty blank", "small": "little tiny short small", "long": "tall long", "above": "over above", "below": "under underneath below", "centre": "center middle centre", "falling": "descending dropping falling coming", "upper": "top higher upper", "lower": "bottom lower",
    "crossed": "cut struck crossed", "curve": "arc bend curve", "tail": "leg stem tail", "belly": "bowl bulge belly", "figure": "digit numeral symbol figure",
}  # fmt: skip
FILLERS = [
    "usually", "often", "mostly", "sometimes", "clearly", "simply", "roughly", "about", "slightly", "rather", "here", "then", "when", "people",
    "writers", "draw", "quickly", "tall", "small", "large", "very", "first", "its", "own",
]  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def choose(text: str, rng: random.Random) -> str:
    """[a|b] becomes a or b."""
    return re.sub(r"\[([^\]]*)\]", lambda match: rng.choice(match[1].split("|")), text)


def names(glyph: str) -> list[str]:
    """What a glyph is called after "a photo of a"."""
    if glyph.isdigit():
        word = DIGITS[int(glyph)]
        return [
            word,
            word,
            word,
            f"digit {word}",
            f"digit {glyph}",
            f"number {word}",
            f"numeral {glyph}",
            f"handwritten digit {word}",
        ]
    case = "capital" if glyph.isupper() else "small"
    return [f"letter {glyph}", f"{case} letter {glyph}", f"{case} {glyph}"]


def begin(text: str, rng: random.Random) -> str:
    """Half of the texts begin with a capital letter."""
    return text[:1].upper() + text[1:] if rng.random() < 0.5 else text


def named(glyph: str, rng: random.Random) -> str:
    """A caption that only names the glyph."""
    return begin(rng.choice(NAMED).format(rng.choice(names(glyph))), rng)


def described(glyph: str, rng: random.Random) -> str:
    """A caption that only describes the glyph; its wording is loosened so that other people's sentences are
    met half way.
    """
    return begin(_loosen(choose(_sentence(glyph, rng), rng), rng), rng)


def mixed(glyph: str, rng: random.Random) -> str:
    """A caption that names the glyph and describes it."""
    facts = dict(zip("fgh", rng.sample(FACTS[glyph].split(";"), 3)))
    return begin(
        choose(rng.choice(MIXED).format(n=rng.choice(names(glyph)), s=_sentence(glyph, rng), **facts), rng),
        rng,
    )


def _sentence(glyph: str, rng: random.Random) -> str:
    if glyph in ACCOUNTS and rng.random() < 0.3:
        account = rng.choice(ACCOUNTS[glyph].split(";")) + "."
        return account if rng.random() < 0.6 else f"{account} {rng.choice(FACTS[glyph].split(';'))}."
    return rng.choice(PLAIN).format(**dict(zip("fgh", rng.sample(FACTS[glyph].split(";"), 3))))


def _loosen(text: str, rng: random.Random) -> str:
    """Synonyms, dropped words, fillers and a rare unknown word."""
    words = []
    for word in text.split():
        chance = rng.random()
        if chance < 0.06:
            continue
        core = word.strip(".,;:")
        words.append(
            word.replace(core, rng.choice(SYNONYMS[core].split()))
            if core in SYNONYMS and chance < 0.4
            else word
        )
        if chance > 0.96:
            words.append(
                rng.choice(FILLERS)
                if rng.random() < 0.7
                else "".join(rng.choices(LETTERS, k=rng.randint(2, 8)))
            )
    return " ".join(words)
