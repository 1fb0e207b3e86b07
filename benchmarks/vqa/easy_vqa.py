"""The package easy-vqa (MIT; colored shapes, questions by its author's templates) as a table of questions.

    pip install easy-vqa
    python benchmarks/vqa/easy_vqa.py easy.csv            # or: --data FOLDER_WITH_train_AND_test

The package has 4,000 + 1,000 images and 38,575 + 9,673 questions; the table takes 1,000 of the test part and
600 of the training part, in an order by chance, the same every time. Plain Python."""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

MOST = {"train": 600, "test": 1000}
SHAPES = ("circle", "rectangle", "triangle")
HEADER = ("path", "question", "answer", "kind", "split")


def package() -> Path:
    """The data of the installed package, which is not imported."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise SystemExit("easy-vqa is not installed: pip install easy-vqa, or give --data")
    return Path(found.origin).parent / "data"


def kind_of(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"


def rows(data: Path, part: str) -> list[tuple[str, ...]]:
    """Rows of one part: the first by an order of hashes."""
    asked = json.loads((data / part / "questions.json").read_text(encoding="utf-8"))
    entries = [(f"{part}/images/{image}.png", question, answer) for question, answer, image in asked]
    entries.sort(key=lambda entry: hashlib.sha256(repr(entry).encode()).hexdigest())
    return [(*entry, kind_of(entry[2]), part) for entry in entries[: MOST[part]]]


def write(data: Path, out: Path) -> list[tuple[str, ...]]:
    """Write the table; paths in it begin at its own folder."""
    found = [row for part in MOST for row in rows(data, part)]
    out.parent.mkdir(parents=True, exist_ok=True)
    part_file = out.with_suffix(".part")
    with open(part_file, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        table.writerows((os.path.relpath(data / path, out.parent), *rest) for path, *rest in found)
    part_file.replace(out)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="the table to write")
    parser.add_argument("--data", type=Path, help="the package's data folder, where it is not installed")
    options = parser.parse_args()
    found = write(options.data or package(), options.out)
    for part in MOST:
        print(part, Counter(kind for *_, kind, split in found if split == part))
