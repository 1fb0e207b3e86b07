"""caption_lists: images with captions in the layouts of COCO, NoCaps and Flickr: files that list
captions beside folders of images.

| file | layout | |---|---| | dataset_coco.json, dataset_flickr30k.json, ... | Karpathy's: images with
sentences and a split each | | captions_train2014.json, nocaps_val_4500_captions.json | COCO's
annotations: images, and captions by image number | | Flickr8k.token.txt, results_20130124.token |
Flickr's: `name.jpg#0`, a tab, the caption; lists of parts beside it | | results.csv, captions.txt | the
same as tables: `image_name| comment_number| comment`, or `image,caption` |"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, few
from wordsight.data.columns import numbered_rows
from wordsight.data.labels import captions_of, lines_of, part_of
from wordsight.data.rows import Row, Table, is_file, read_file, shown
from wordsight.files import read_json, read_text

MISSING = "whose image is missing"
NO_PART = "that no list of a part names"
TEXTS = (".token", ".txt")
# 1000268201_693b08cb0e.jpg#0     A child ...
NAMED = re.compile(r"(?P<image>[^\t#]+)#(?:enc)?\d+\t(?P<caption>.*)")
BARRED = re.compile(r"image_name *\| *comment_number *\| *comment")
HEADER = "image,caption"
PARTS = {"train": "train", "dev": "val", "val": "val", "test": "test"}  # in names of lists of images
RESTVAL = "restval"  # of Karpathy's COCO: validation images that everybody trains on
DEEP = 2  # how far below the file images are looked for


class Listed(NamedTuple):
    """One image as a file has it."""

    name: str  # perhaps with its folder, as val2014/COCO_val2014_000000391895.jpg
    captions: tuple[str, ...]
    part: str


def is_caption_list(path: Path) -> bool:
    """Whether a file lists captions in one of these layouts, by its name and how it begins."""
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv", *TEXTS) or not is_file(str(path)):
        return False
    with open(path, "rb") as file:
        start = file.read(2000).decode(errors="replace").lstrip("\ufeff")
    if suffix == ".json":
        return start.lstrip().startswith("{") and "questions" not in path.name
    if suffix == ".csv":
        return bool(BARRED.match(start))
    return bool(NAMED.match(start) or BARRED.match(start)) or start.split("\n")[0].strip() == HEADER


def read(path: Path, spec: str) -> Table:
    """The images of a file with their captions.

    Errors: WordsightError where it is in none of these layouts, or more than half of the images are
    missing."""
    account, folders = Account("image"), _Folders(path.parent)
    rows = []
    for one in listed(path):
        account.seen += 1
        place = folders.find(one.name)
        if not one.part:
            account.leave(NO_PART, shown(one.name))
        elif place is None:
            account.leave(MISSING, shown(one.name))
        else:
            picture = Picture(shown(one.name), partial(read_file, place))
            rows.append(Row(picture, None, one.captions, one.part))
    missing = account.left_out.get(MISSING)
    if missing is not None and missing.count * 2 > account.seen:
        raise WordsightError(
            f"the files of {missing.count:,} of {account.seen:,} images of {spec!r} are missing: "
            f"{few(missing.names, total=missing.count)}; expected them beside it, or in folders there such "
            f"as images/ or val2014/"
        )
    return Table(rows, account)


def listed(path: Path) -> Iterable[Listed]:
    """The images that a file lists; none of them is looked for. Errors: as `read`, missing images aside."""
    if path.suffix.lower() == ".json":
        return _of_json(path)
    text = read_text(path, "captions")
    start = text.split("\n", 1)[0].strip()
    table = BARRED.match(start) or start == HEADER
    return _grouped(_of_table(text, path) if table else _of_lines(text, path), _parts_beside(path))


# -- JSON --


def _of_json(path: Path) -> list[Listed]:
    whole = read_json(path, "captions")
    images = whole.get("images") if isinstance(whole, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise WordsightError(
            f"{str(path)!r} has no list of images; expected Karpathy's layout (images with sentences and "
            f"split) or COCO's (images and annotations)"
        )
    if "annotations" in whole:
        return _of_coco(whole, path)
    return [_of_karpathy(image, path) for image in images]


def _of_karpathy(image: Mapping[str, Any], path: Path) -> Listed:
    name, split, said = image.get("filename"), image.get("split"), image.get("sentences")
    raw = (
        [one.get("raw") if isinstance(one, dict) else None for one in said]
        if isinstance(said, list)
        else [None]
    )
    part = "train" if split == RESTVAL else part_of(str(split))
    if not isinstance(name, str) or part is None or not all(isinstance(text, str) for text in raw):
        raise WordsightError(
            f"an image of {str(path)!r} is {image!r:.100}; expected filename, split (train, restval, val, "
            f"test) and sentences, each with raw"
        )
    return Listed(os.path.join(str(image.get("filepath") or ""), name), captions_of(raw, str(path)), part)


def _of_coco(whole: Mapping[str, Any], path: Path) -> list[Listed]:
    """COCO's file is of one part, which its name tells: what is not for training is tested on, since nothing
    else of it can be.
    """
    said: dict[Any, list[str]] = {}
    for one in whole["annotations"]:
        if (
            not isinstance(one, dict)
            or {"image_id", "caption"} - one.keys()
            or not isinstance(one["caption"], str | None)
        ):
            raise WordsightError(
                f"an annotation of {str(path)!r} is {one!r:.100}; expected image_id and caption"
            )
        said.setdefault(one["image_id"], []).append(one["caption"] or "")
    part = "train" if "train" in path.name else "test"
    known = {image.get("id") for image in whole["images"]}
    if odd := [image for image in said if image not in known]:
        raise WordsightError(
            f"{str(path)!r} has captions of images that it does not list: image_id {few(map(repr, odd))} "
            f"(numbers and texts are not the same)"
        )
    found = []
    for image in whole["images"]:
        if not isinstance(image.get("file_name"), str) or "id" not in image:
            raise WordsightError(f"an image of {str(path)!r} is {image!r:.100}; expected id and file_name")
        texts = captions_of(said.get(image["id"], []), str(path))
        found.append(Listed(image["file_name"], texts, part))
    return found


# -- texts and tables of Flickr --


def _of_lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines_of(text), 1):
        found = NAMED.fullmatch(line)
        if found:
            yield found["image"].strip(), found["caption"]
        elif line.strip():
            raise WordsightError(
                f"line {number} of {str(path)!r} is {line!r:.80}; expected name.jpg#0, a tab and a caption"
            )


def _of_table(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """Image and caption of each row; the barred table has one row of 158,915 without its last bar, whose
    number stands before the caption.
    """
    header, _, body = text.partition("\n")
    if header.strip() == HEADER:
        try:
            rows = [*numbered_rows(io.StringIO(body, newline=""), ",")]
        except csv.Error as error:
            raise WordsightError(f"{str(path)!r} is not readable as CSV: {error}") from error
        for number, row in rows:
            if len(row) == 1:
                raise WordsightError(
                    f"line {number + 1} of {str(path)!r} is {row[0]!r:.80}; expected an image, a comma and a "
                    f"caption"
                )
            if row:  # a caption with commas that nobody quoted goes on behind them
                yield row[0].strip(), ",".join(row[1:])
        return
    for line in lines_of(body):
        image, _, rest = line.partition("|")
        if image.strip():
            yield image.strip(), re.sub(r"^\s*\d+\s*\|?\s*", "", rest)


def _grouped(pairs: Iterable[tuple[str, str]], parts: Mapping[str, str]) -> list[Listed]:
    """One entry an image, in order; without a part where there are lists of parts and none names it."""
    said: dict[str, list[str]] = {}
    for image, caption in pairs:
        said.setdefault(image, []).append(caption)
    other = "" if parts else "train"
    return [
        Listed(image, captions_of(texts, image), parts.get(Path(image).stem, other))
        for image, texts in said.items()
    ]


def _parts_beside(path: Path) -> dict[str, str]:
    """The part of each image that a list beside the file names (Flickr_8k.trainImages.txt, or train.txt)."""
    found: dict[str, str] = {}
    for other in sorted(path.parent.glob("*.txt")):
        name = re.fullmatch(r"(?:Flickr_8k\.)?(train|dev|val|test)(?:Images)?\.txt", other.name)
        if name and other != path:
            lines = read_text(other, "list of images").split()
            found |= {Path(line).stem: PARTS[name[1]] for line in lines}
    return found


# -- images --


class _Folders:
    """Where images lie: beside a file, or in folders there."""

    def __init__(self, root: Path):
        self.root, below = root, [root]
        for _ in range(DEEP):
            below += [path for top in below for path in sorted(top.iterdir()) if _is_new(path, below)]
        self.places = {path: _names(path) for path in below}

    def find(self, name: str) -> str | None:
        """The path of an image: in the folder that its name tells, or else in the first that has it."""
        base = os.path.basename(name)
        holding = [os.path.join(place, base) for place, names in self.places.items() if base in names]
        told = [path for path in holding if path.endswith(os.path.join(os.sep, name))]
        return next(iter(told or holding), None)


def _is_new(path: Path, known: Sequence[Path]) -> bool:
    return path not in known and path.is_dir() and not path.name.startswith(".")


def _names(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
