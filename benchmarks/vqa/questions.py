"""Questions about Flickr8k's photos, made from what five people wrote of each: no person asked them.

    python benchmarks/vqa/questions.py ../shared/data/flickr8k questions.csv

Three templates, filled where captions agree:
- yes/no: "Is there a dog in the picture?" Yes: at least two captions name one. No: none names it, or anything
  that may be one. Of each object as many yes as no.
- count: "How many dogs are there?" At least two captions give the number, and none another.
- color: "What color is the dog?" A caption gives the color, and none another.

Of each kind the commonest answer is at most half of the answers, in each part by itself, and about so of each
object: no word of the question tells the answer with much more than even odds. What captions leave out is not
known: a "no" is what nobody found worth naming. Plain Python, no package; the same table every time."""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

AGREED = 2  # captions, of five, that name what is there or how many
MOST = {"train": 200, "test": 480}  # questions of each kind
NUMBERS = ("two", "three", "four", "five", "six")
COLORS = ("black", "white", "brown", "red", "blue", "green", "yellow", "orange", "pink", "purple", "gray")
SPELLED = {"grey": "gray", "tan": "brown"}
# singular, plural
COUNTED = {
    "dog": "dogs",
    "man": "men",
    "woman": "women",
    "boy": "boys",
    "girl": "girls",
    "child": "children",
    "person": "people",
    "horse": "horses",
    "player": "players",
    "kid": "kids",
}
COLORED = (  # noqa: SIM905
    "dog shirt jacket ball dress hat car horse coat bike pants shorts helmet swimsuit sweater suit collar "
    "toy top vest uniform jersey boat kayak motorcycle frisbee snowsuit hoodie raft bird cap"
).split()
PEOPLE = (
    "person people someone somebody adult adults couple crowd group team family friends player players rider "
    "riders cyclist cyclists biker bikers skateboarder skier snowboarder surfer climber hiker hikers runner "
    "racer worker workers guy guys he his him she her"
)
YOUNG = "child children kid kids toddler toddlers baby babies infant teenager teenagers teen youth youths"
# what names an object, and what may be one, so that its absence is not known
NAMED = {
    "dog": ("dog dogs puppy puppies", "animal animals poodle retriever hound greyhound terrier collie lab"),
    "man": ("man men", f"male males father gentleman {PEOPLE}"),
    "woman": ("woman women lady ladies", f"female females mother girl girls {PEOPLE}"),
    "boy": ("boy boys", f"male males son brother brothers {YOUNG} {PEOPLE}"),
    "girl": ("girl girls", f"female females daughter sister sisters woman women lady {YOUNG} {PEOPLE}"),
    "ball": ("ball balls", "football soccer basketball baseball volleyball tennis golf toy toys rugby"),
    "bicycle": ("bicycle bicycles bike bikes", "biker bikers cyclist cyclists biking cycling motorcycle"),
    "motorcycle": ("motorcycle motorcycles motorbike dirtbike", "bike bikes biker bikers motocross racer"),
    "horse": ("horse horses", "rodeo bronco pony animal animals jockey"),
    "car": ("car cars", "vehicle vehicles truck traffic van taxi racing race street road parking"),
    "skateboard": ("skateboard skateboards", "skateboarder skateboarding skater skateboarders board ramp"),
    "snow": ("snow snowy", "ski skier skiing skis snowboard snowboarder ice winter sled sledding white"),
    "bird": ("bird birds", "duck ducks seagull seagulls pigeon pigeons goose geese animal animals"),
    "bench": ("bench benches", "seat sitting sits seats sit"),
    "beach": ("beach beaches", "sand shore ocean sea coast waves water"),
    "swing": ("swing swings", "swinging playground"),
    "boat": ("boat boats", "kayak canoe raft ship water sail sailboat ocean lake"),
}
NAMES = {name: (set(own.split()), set(near.split())) for name, (own, near) in NAMED.items()}
UNSURE = {"another", "other", "others", "both", "each", "several", "group", "many", "some", "pair"}


class Made(NamedTuple):
    """A question about one photo. `about` is the object, among whose questions answers are balanced too."""

    path: str
    question: str
    answer: str
    kind: str
    about: str

    @property
    def place(self) -> str:
        """Where it stands in an order that nobody chose."""
        return hashlib.sha256(f"{self.path} {self.question}".encode()).hexdigest()


def words(caption: str) -> list[str]:
    found: list[str] = re.findall(r"[a-z]+", caption.lower())
    return [SPELLED.get(word, word) for word in found]


def yes_no(path: str, captions: Sequence[Sequence[str]]) -> Iterator[Made]:
    said = [set(caption) for caption in captions]
    for name, (own, near) in NAMES.items():
        naming = sum(not own.isdisjoint(caption) for caption in said)
        perhaps = naming or any(not near.isdisjoint(caption) for caption in said)
        if naming >= AGREED or not perhaps:
            what = "snow" if name == "snow" else f"a {name}"
            answer = "yes" if naming else "no"
            yield Made(path, f"Is there {what} in the picture?", answer, "yes/no", name)


def counts(path: str, captions: Sequence[Sequence[str]]) -> Iterator[Made]:
    for one, more in COUNTED.items():
        given = [number for caption in captions if (number := counted(caption, one, more))]
        found = Counter(number for number in given if number != "?")
        if "?" not in given and len(found) == 1 and found.total() >= AGREED:
            yield Made(path, f"How many {more} are there?", next(iter(found)), "count", one)


def counted(caption: Sequence[str], one: str, more: str) -> str | None:
    """How many a caption tells of: a number word, `?` where it is not sure, None where it names none."""
    if more in caption:
        before = caption[max(0, caption.index(more) - 2) : caption.index(more)]
        return next((word for word in before if word in NUMBERS), "?")
    if one not in caption:
        return None
    return "?" if caption.count(one) > 1 or UNSURE & set(caption) or set(NUMBERS) & set(caption) else "one"


def colors(path: str, captions: Sequence[Sequence[str]]) -> Iterator[Made]:
    for thing in COLORED:
        found = Counter(color for caption in captions for color in colored(caption, thing))
        if len(found) == 1:
            verb = "are" if thing in ("pants", "shorts") else "is"
            yield Made(path, f"What color {verb} the {thing}?", next(iter(found)), "color", thing)


def colored(caption: Sequence[str], thing: str) -> set[str]:
    """The colors that stand before a thing, up to two words before it and further where they are joined."""
    places = [place for place, word in enumerate(caption) if word == thing]
    return {word for place in places for word in caption[max(0, place - 3) : place] if word in COLORS}


# -- balance --


def halved(made: Sequence[Made], most: int | None = None) -> list[Made]:
    """So many of the commonest answer that it is half of all at most; `most` together, by chance."""
    kept = sorted(made, key=lambda one: one.place)
    common = Counter(one.answer for one in kept).most_common(1)[0][0] if kept else ""
    first = [one for one in kept if one.answer == common]
    others = [one for one in kept if one.answer != common]
    first = first[: len(others)]
    whole = len(first) + len(others)
    most = whole if most is None else min(most, whole)
    share = len(first) * most // max(1, whole)
    return first[:share] + others[: most - share]


def balanced(made: Sequence[Made], most: int) -> list[Made]:
    """Of each object and of each kind the commonest answer is half at most."""
    by_kind: dict[str, dict[str, list[Made]]] = defaultdict(lambda: defaultdict(list))
    for one in made:
        by_kind[one.kind][one.about].append(one)
    found = []
    for kind, by_object in by_kind.items():
        kept = [one for some in by_object.values() for one in halved(some)]
        if kind == "yes/no":  # of each object as many of either
            kept = [one for some in by_object.values() for one in even(some, most // len(by_object))]
        found += halved(kept, most)
    return found


def even(made: Sequence[Made], most: int) -> list[Made]:
    """As many yes as no, `most` together at most, by chance."""
    kept = sorted(made, key=lambda one: one.place)
    sides = [[one for one in kept if one.answer == answer] for answer in ("yes", "no")]
    each = min(most // 2, *map(len, sides))
    return [one for side in sides for one in side[:each]]


def questions(captions_csv: Path, most: Mapping[str, int]) -> dict[str, list[Made]]:
    """Questions of these parts, so many of each kind at most."""
    made: dict[str, list[Made]] = {part: [] for part in most}
    with open(captions_csv, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] in made:
                captions = [words(row[key]) for key in row if key.startswith("caption")]
                for maker in (yes_no, counts, colors):
                    made[row["split"]] += maker(row["path"], captions)
    return {part: balanced(rows, most[part]) for part, rows in made.items()}


def write(data: Path, out: Path, most: Mapping[str, int] = MOST) -> dict[str, list[Made]]:
    """Write the table; paths in it begin at its own folder."""
    made = questions(data / "captions.csv", most)
    out.parent.mkdir(parents=True, exist_ok=True)
    part_file = out.with_suffix(".part")
    with open(part_file, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "question", "answer", "kind", "split"])
        for part, rows in made.items():
            for one in sorted(rows, key=lambda row: (row.path, row.question)):
                path = os.path.relpath(data / one.path, out.parent)
                table.writerow([path, one.question, one.answer, one.kind, part])
    part_file.replace(out)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of captions.csv and images/")
    parser.add_argument("out", type=Path, help="the table to write")
    options = parser.parse_args()
    for part, rows in write(options.data, options.out).items():
        for kind in dict.fromkeys(one.kind for one in rows):
            answers = Counter(one.answer for one in rows if one.kind == kind)
            shares = ", ".join(f"{answer} {count}" for answer, count in answers.most_common(5))
            images = len({one.path for one in rows if one.kind == kind})
            print(f"{part} {kind}: {answers.total()} questions about {images} photos ({shares})")
