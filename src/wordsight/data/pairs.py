"""Pairs: images with captions, from captions and from labels whose class names become captions. Several
sources may be mixed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wordsight.config import WordsightError
from wordsight.data import Pairs, Picture
from wordsight.data.account import Account, few
from wordsight.data.columns import NO_CAPTION
from wordsight.data.rows import Table
from wordsight.data.sources import read
from wordsight.data.splits import digests
from wordsight.files import nfc
from wordsight.sentences import fill, read_sentences

BETWEEN = "::"  # stands between sources that are mixed, as in open_clip


@dataclass(frozen=True)
class Words:
    """How class names become captions: the name in `template`, then what `sentences`, a JSON file or a
    template set, has for it. As CLAMP turns ImageNet-21k's labels into captions.
    """

    template: str = "a photo of a {}."
    sentences: str | None = None
    aliases: str | None = None

    def captions_of(self, names: Sequence[str], where: str, account: Account) -> list[tuple[str, ...]]:
        """Captions of each class; those that find no sentences are remarked."""
        # sentences of a name that two classes share are wrong for one of them
        once = tuple(name for name, count in Counter(names).items() if count == 1)
        written = read_sentences(self.sentences, once, self.aliases, partly=True)
        without = [name for name in dict.fromkeys(names) if not written.get(name)]
        if self.sentences is not None and without:
            account.remark(
                f"{len(without)} of {len(names)} classes of {where} find no sentences of their own in "
                f"{self.sentences} and go by name: {few(without)}"
            )
        return [(fill(self.template, name), *written.get(name, ())) for name in names]


def fingerprint(pairs: Pairs) -> str:
    """What a resumed run must find again: in another order, too, its batches would be others."""
    digest = hashlib.blake2b(digest_size=8)
    for picture, content, captions in zip(pairs.pictures, digests(pairs.pictures), pairs.captions):
        digest.update(ascii((nfc(picture.name), content, tuple(captions))).encode())
    count = sum(map(len, pairs.captions))
    return f"{len(pairs)} images with {count} captions, fingerprint {digest.hexdigest()}"


def sources_of(spec: str) -> list[str]:
    return [source for source in spec.split(BETWEEN) if source.strip()]


def open_pairs(
    spec: str,
    part: str = "train",
    *,
    template: str = "a photo of a {}.",
    sentences: str | None = None,
    aliases: str | None = None,
    label: str | None = None,
) -> Pairs:
    """The pairs of one part of every source in `spec`, in order.

    A source with captions gives these. A labelled one gives each image its class name in `template` and what
    `sentences` has for the class. `label` names the label column.

    Errors: WordsightError for whatever `open_dataset` refuses (equal class names aside), and where no pair is
    found."""
    words, account = Words(template, sentences, aliases), Account("row")
    rows = [row for source in sources_of(spec) for row in captioned_rows(source, part, words, account, label)]
    if not rows and part == "train":
        told = "".join(f"; {note}" for note in account.notes())
        raise WordsightError(f"data={spec!r} holds no image-caption pair to train on{told}")
    return Pairs(spec, [picture for picture, _ in rows], [texts for _, texts in rows], account)


def captioned_rows(
    source: str, part: str, words: Words, account: Account, label: str | None = None
) -> list[tuple[Picture, tuple[str, ...]]]:
    """The images of one source's part with their captions. `account` receives what the source held, in all of
    its parts.
    """
    table = read(source.strip(), "captions", label)
    names = list(table.names.values())
    texts = dict(zip(table.names, words.captions_of(names, source, table.account))) if names else {}
    rows = [
        (row, row.captions or (() if row.label is None else texts.get(row.label, ()))) for row in table.rows
    ]
    for row, captions in rows:
        if captions:
            table.account.kept += 1
        else:
            table.account.leave(NO_CAPTION, row.picture.name)
    table.account.check()
    chosen = _part(table, part, source)
    if part == "train" and rows and not any(row.part == chosen for row, _ in rows):
        table.account.remark(f"{source} marks no image as train (a COCO file is of the part in its name)")
    account.add(table.account)
    return [(row.picture, captions) for row, captions in rows if captions and row.part == chosen]


def _part(table: Table, part: str, source: str) -> str:
    """The part to take: the test part is trained on where a labelled source has no other."""
    labelled = [row for row in table.rows if row.label is not None]
    if not labelled or any(row.part != "test" for row in labelled):
        return part
    table.account.remark(f"{source} marks every image as test; they are trained on, since data= names it")
    return {"train": "test", "test": ""}.get(part, part)


def distinct_texts(captions: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The distinct captions of images, and which of them each image has."""
    distinct = list(dict.fromkeys(text for texts in captions for text in texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    return distinct, [[row_of[text] for text in texts] for texts in captions]
