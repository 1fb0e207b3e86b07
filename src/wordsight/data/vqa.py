"""vqa: questions in the layout of VQA (visualqa.org), which VQA v2 and OK-VQA share: one JSON of questions
and one of annotations for each part, with image numbers of COCO.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.account import Account, few
from wordsight.data.labels import part_of
from wordsight.data.rows import is_file, read_file, shown
from wordsight.files import read_json

ENDS, ANNOTATED = "questions.json", "annotations.json"  # v2_OpenEnded_mscoco_val2014_questions.json
MISSING = "whose image is missing"
FOLDERS = ("{subtype}", "images/{subtype}", "images", "")  # where images may lie, beside the JSON files
NAMES = ("COCO_{subtype}_{image:012d}.jpg", "{image:012d}.jpg", "{image}.jpg", "{image}.png")


class Found(NamedTuple):
    """One question as the files have it."""

    picture: Picture
    text: str
    answers: tuple[str, ...]  # none where a part has no annotations, as VQA's test parts
    kind: str  # its answer_type: yes/no, number or other
    part: str


def is_vqa(path: Path) -> bool:
    """Whether a file, or one in a folder, is a list of VQA's questions by its name."""
    if path.is_dir():
        return any(path.glob(f"*{ENDS}"))
    return path.name.endswith(ENDS) and is_file(str(path))


def read(path: Path, account: Account) -> Iterator[Found]:
    """The questions of a file, or of all of a folder, whose images are there.

    Errors: WordsightError where a file is not of this layout, an annotation is of another question, and where
    more than half of the images are missing."""
    files = sorted(path.glob(f"*{ENDS}")) if path.is_dir() else [path]
    for file in files:
        yield from _read_part(file, account)
    missing = account.left_out.get(MISSING)
    if missing is not None and missing.count * 2 > account.seen:
        raise WordsightError(
            f"the images of {missing.count} of {account.seen} questions of {str(path)!r} are missing: "
            f"{few(missing.names, total=missing.count)}; expected them beside the files, as in "
            f"val2014/COCO_val2014_000000262148.jpg"
        )


def _read_part(file: Path, account: Account) -> Iterator[Found]:
    whole = _mapping(file)
    questions = _listed(whole, "questions", ("image_id", "question", "question_id"), file)
    subtype = _subtype(whole, file)
    annotations = _annotations(file, subtype)
    pictures: dict[int, Picture | str] = {}
    for entry in questions:
        account.seen += 1
        image = entry["image_id"]
        picture = pictures.get(image)
        if picture is None:
            picture = pictures[image] = _picture(file.parent, subtype, image)
        if isinstance(picture, str):
            account.leave(MISSING, picture)
            continue
        said = annotations.get(entry["question_id"], {})
        if said and said["image_id"] != image:
            raise WordsightError(
                f"question {entry['question_id']} of {str(file)!r} is about image {image}, but its "
                f"annotation about {said['image_id']}; the two files do not belong together"
            )
        answers = tuple(str(one["answer"]) for one in said.get("answers", ()))
        part = part_of(subtype.split("20")[0].split("-")[0]) or "train"
        yield Found(picture, str(entry["question"]), answers, str(said.get("answer_type", "")), part)


def _annotations(file: Path, subtype: str) -> dict[int, Mapping[str, Any]]:
    """What is annotated, by question: of the file beside it whose data_subtype is the same; nothing where
    there is none, as of a test part.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for other in sorted(file.parent.glob(f"*{ANNOTATED}")):
        whole = _mapping(other)
        if _subtype(whole, other) == subtype:
            for entry in _listed(whole, "annotations", ("image_id", "answers", "question_id"), other):
                if not _are_answers(entry["answers"]):
                    raise WordsightError(
                        f"answers of question {entry['question_id']} of {str(other)!r} are no list of "
                        f'{{"answer": "..."}}'
                    )
                found[entry["question_id"]] = entry
    return found


def _are_answers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("answer"), str | int | float) for one in value
    )


def _mapping(file: Path) -> dict[str, Any]:
    whole = read_json(file, "VQA file")
    if not isinstance(whole, dict):
        raise WordsightError(
            f"{str(file)!r} holds a {type(whole).__name__}; VQA's files hold an object with data_subtype and "
            f"questions, or annotations"
        )
    return whole


def _listed(
    whole: Mapping[str, Any], key: str, wanted: tuple[str, ...], file: Path
) -> list[Mapping[str, Any]]:
    """The entries under `key`, each with the keys that are wanted and whole numbers as its ids."""
    entries = whole.get(key)
    if not isinstance(entries, list):
        raise WordsightError(f"{str(file)!r} has no list {key!r}; its keys are {few(whole)}")
    for entry in entries:
        ids = isinstance(entry, dict) and all(
            type(entry.get(name)) is int for name in wanted if name.endswith("id")
        )
        if not ids or any(name not in entry for name in wanted):
            raise WordsightError(
                f"an entry of {key!r} in {str(file)!r} is {entry!r:.100}; expected {', '.join(wanted)}, with "
                f"whole numbers as ids"
            )
    return entries


def _subtype(whole: Mapping[str, Any], file: Path) -> str:
    """train2014, val2014, test2015 or test-dev2015, as the file says itself."""
    subtype = whole.get("data_subtype")
    if not isinstance(subtype, str) or not subtype or os.sep in subtype:
        raise WordsightError(
            f"{str(file)!r} has data_subtype={subtype!r}; VQA's files name their images' part there, as in "
            f"val2014"
        )
    return subtype


def _picture(folder: Path, subtype: str, image: int) -> Picture | str:
    """The image of a number, or, where it is not there, what it would be called."""
    images = subtype.replace("test-dev", "test")  # whose images are those of the whole test part
    forms = [
        os.path.join(place, name).format(subtype=images, image=image) for place in FOLDERS for name in NAMES
    ]
    for form in forms:
        path = os.path.join(folder, form)
        if is_file(path):
            return Picture(shown(form), partial(read_file, path))
    return forms[0]
