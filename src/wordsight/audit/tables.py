"""Tables: what an audit found as CSV: one for `fit`, one for Label Studio.

labels.csv has the run's labelled images: correct labels, delete rows, and `wordsight fit data=labels.csv`
reads it. label-studio.csv is what a person should look at, with label-studio.xml as the project's labelling
setup; Label Studio's own export of it as CSV is read by `fit`, too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from wordsight.audit.found import DIGITS, Found
from wordsight.config import WordsightError
from wordsight.data.tables import SERVED
from wordsight.files import csv_text, write_file
from wordsight.report.images import file_of

LABELS, STUDIO, SETUP = "labels.csv", "label-studio.csv", "label-studio.xml"
HEADER = ("path", "label", "split", "suggested", "score", "found")
STUDIO_HEADER = ("image", "path", "given", "suggested", "score", "found", "split")


def write_tables(found: Found, folder: Path, pool: str | None, root: str | Path | None) -> list[Path]:
    """The files that were written: none where the images are no files of their own, as in a tar."""
    data = found.checked.run.settings.data
    files = [file_of(data, image.picture) for image in found.checked.images]
    proposed = [file_of(pool or "", one.picture) for one in found.proposals]
    if None in files:
        return []
    own, others = [file for file in files if file], [file for file in proposed if file]
    served = _root(root, [*own, *others])
    write_file(folder / LABELS, csv_text(HEADER, _labels(found, own)))
    rows = [*_doubtful(found, own, served), *_proposed(found, proposed, served)]
    write_file(folder / STUDIO, csv_text(STUDIO_HEADER, rows))
    write_file(folder / SETUP, setup(found.checked.names))
    return [folder / name for name in (LABELS, STUDIO, SETUP)]


def _root(root: str | Path | None, files: Sequence[Path]) -> Path:
    """The folder that Label Studio serves. Errors: WordsightError where an image lies outside it."""
    if root is None:
        return Path(os.path.commonpath([file.parent for file in files]))
    place = Path(root).expanduser().absolute()
    outside = next((file for file in files if not file.is_relative_to(place)), None)
    if outside is not None:
        raise WordsightError(f"root={root} does not hold {outside}; give a folder above all images")
    return place


def _labels(found: Found, files: Sequence[Path]) -> list[list[str]]:
    reasons, doubts = found.reasons(), {one.row: one for one in found.doubts}
    names = found.checked.names
    rows = []
    for row, (image, file) in enumerate(zip(found.checked.images, files)):
        doubt = doubts.get(row)
        suggested = names[doubt.suggested] if doubt else ""
        score = f"{doubt.score:.{DIGITS}f}" if doubt else ""
        said = "; ".join(reasons.get(row, ()))
        rows.append([str(file), names[image.label], image.part, suggested, score, said])
    return rows


def _doubtful(found: Found, files: Sequence[Path], root: Path) -> list[list[str]]:
    """Labelled images of which something was found, the doubtful labels first."""
    table = _labels(found, files)
    order = dict.fromkeys([one.row for one in found.doubts])
    order |= dict.fromkeys(row for row in sorted(found.reasons()) if row < len(files))
    return [
        [_address(files[row], root), path, label, suggested, score, said, split]
        for row, (path, label, split, suggested, score, said) in ((row, table[row]) for row in order)
    ]


def _proposed(found: Found, files: Sequence[Path | None], root: Path) -> list[list[str]]:
    return [
        [
            _address(file, root),
            str(file),
            "",
            one.predicted,
            f"{one.chance:.{DIGITS}f}",
            "label next",
            "train",
        ]
        for one, file in zip(found.proposals, files)
        if file is not None
    ]


def _address(file: Path, root: Path) -> str:
    return SERVED + quote(os.fsencode(file.relative_to(root)))


def setup(class_names: Sequence[str]) -> str:
    """Label Studio's setup of a project that imports label-studio.csv: one choice an image."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in class_names)
    return f"""<View>
  <Header value="$found"/>
  <Image name="image" value="$image" zoom="true"/>
  <Text name="words" value="given: $given; suggested: $suggested"/>
  <Choices name="choice" toName="image" choice="single-radio" showInline="true">
{choices}
  </Choices>
</View>
"""
