"""Pairs: images with captions, from tables of captions and from labelled images whose class names become
captions. Several sources may be mixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wordsight.config import WordsightError
from wordsight.data import Dataset, Pairs, Picture
from wordsight.data.account import Account
from wordsight.data.sources import LABEL_COLUMNS, _read_table, has_captions, read_labelled, read_pairs
from wordsight.sentences import fill, read_sentences

BETWEEN = "::"  # stands between sources that are mixed, as in open_clip
TABLE = "captions.csv"  # in a folder, beside images/


def sources_of(spec: str) -> list[str]:
    return [source for source in spec.split(BETWEEN) if source.strip()]


def caption_table(source: str) -> Path | None:
    """The table of captions that a source is or holds; None where it is a labelled dataset."""
    path = Path(source).expanduser()
    inside = path / TABLE
    return inside if inside.is_file() else path if has_captions(path) else None


def open_pairs(
    spec: str,
    part: str = "train",
    *,
    template: str = "a photo of a {}.",
    sentences: str | None = None,
    aliases: str | None = None,
) -> Pairs:
    """The pairs of one part of every source in `spec`, in order.

    A source with a caption column gives its captions. A labelled one gives each image its class name in
    `template` and, where `sentences` (a JSON file or a template set) has some for the class, those; classes
    without are counted in `notes`. As CLAMP turns ImageNet-21k's labels into captions.

    Errors: WordsightError for whatever `open_dataset` refuses (equal class names aside), and where no pair is
    found."""
    pictures: list[Picture] = []
    captions: list[tuple[str, ...]] = []
    notes: list[str] = []
    for source in sources_of(spec):
        rows = source_rows(source, part, template=template, sentences=sentences, aliases=aliases, notes=notes)
        pictures += [picture for picture, _ in rows]
        captions += [texts for _, texts in rows]
    if not pictures and part == "train":
        raise WordsightError(
            f"data={spec!r} holds no image-caption pair to train on" + "".join(f"; {note}" for note in notes)
        )
    return Pairs(spec, pictures, captions, Account(remarks=notes))


def source_rows(
    source: str, part: str, *, template: str, sentences: str | None, aliases: str | None, notes: list[str]
) -> list[tuple[Picture, tuple[str, ...]]]:
    """The images of one source's part with their captions; `notes` receives what was left out."""
    table = caption_table(source)
    if table is None and _has_no_words(Path(source).expanduser()):
        table = Path(source).expanduser()  # reading it as captions says which column is missing
    if table is not None:
        return [
            (picture, tuple(texts)) for picture, texts, where in read_pairs(table, notes) if where == part
        ]
    return _labelled(read_labelled(source), part, template, sentences, aliases, notes)


def class_captions(
    names: Sequence[str],
    where: str,
    template: str,
    sentences: str | None,
    aliases: str | None,
    notes: list[str],
) -> list[tuple[str, ...]]:
    """Captions of each class: its name in the template, then the sentences it finds. `notes` receives the
    classes that find none.
    """
    once = tuple(
        name for name, count in Counter(names).items() if count == 1
    )  # sentences of a name that two classes share are wrong for one of them
    written = read_sentences(sentences, once, aliases, partly=True)
    without = [name for name in dict.fromkeys(names) if not written.get(name)]
    if sentences is not None and without:
        listed = ", ".join(without[:5])
        notes.append(
            f"{len(without)} of {len(names)} classes of {where} find no sentences of their own in "
            f"{sentences} and go by name: {listed}"
        )
    return [(fill(template, name), *written.get(name, ())) for name in names]


def _has_no_words(path: Path) -> bool:
    """Whether a file is a table with neither captions nor labels."""
    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
        return False
    return not any(
        name.lower().startswith("caption") or name.lower() in LABEL_COLUMNS
        for name in _read_table(path).columns
    )


def _labelled(
    dataset: Dataset, part: str, template: str, sentences: str | None, aliases: str | None, notes: list[str]
) -> list:
    split = getattr(dataset, part)
    if not len(dataset.train) and dataset.val is None:
        notes.append(f"{dataset.name} marks every image as test; they are trained on, since data= names it")
        split = dataset.test if part == "train" else None
    texts = class_captions(dataset.class_names, dataset.name, template, sentences, aliases, notes)
    notes += dataset.notes
    return (
        []
        if split is None
        else [(picture, texts[label]) for picture, label in zip(split.pictures, split.labels.tolist())]
    )
