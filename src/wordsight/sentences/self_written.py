"""Self-written: `sentences=self`, sentences about its classes by the LM inside a backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from wordsight.backbones import Backbone
from wordsight.files import cache_folder, nfc, read_json, write_file
from wordsight.sentences import read_sentences
from wordsight.sentences.local import writer_of
from wordsight.sentences.questions import read_questions
from wordsight.sentences.writers import header_of, write_sentences
from wordsight.settings import WriterSettings

SELF = "self"  # sentences=self: the backbone's own LM writes them
SELF_FILE = "sentences-self.json"  # in the run folder: each of them with its question and seed


def sentences_for(
    source: str | Path | Mapping[str, Sequence[str]] | None,
    class_names: Sequence[str],
    aliases: str | Path | Mapping[str, str] | None,
    backbone: Backbone,
) -> dict[str, tuple[str, ...]]:
    """Each class's sentences: from `source` (read_sentences), those that the backbone brings where there is
    no source, or with `self` written by the backbone's LM with its adapters off. Another process that has
    the same LM write is waited for.
    """
    if source is None and backbone.sentences is not None:
        return {name: backbone.sentences.get(name, ()) for name in class_names}
    if source != SELF:
        return read_sentences(source, class_names, aliases)
    settings, path = _own(backbone)
    written = write_sentences(class_names, settings, path, tower=writer_of(backbone), wait=True)
    return read_sentences(written, class_names, aliases)


def keep_record(backbone: Backbone, class_names: Sequence[str], folder: Path) -> None:
    """Write sentences-self.json: of all that the LM has written so, what is about these classes."""
    _, path = _own(backbone)
    record = read_json(path, "sentence file")
    for part in ("sentences", "empty"):
        record[part] = {name: record[part][name] for name in map(nfc, class_names) if name in record[part]}
    write_file(folder / SELF_FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _own(backbone: Backbone) -> tuple[WriterSettings, Path]:
    """Who writes, and where it is kept between runs: a place that no other LM, question or seed shares. A
    class is written about once.
    """
    tower = writer_of(backbone)
    settings = WriterSettings(tower.plain.name_or_path or backbone.name, local=True)
    asked = header_of(settings, read_questions(settings.questions))
    decides = ascii((asked, tower.origin, tower.trunk.dtype, tower.tokenizer.chat_template))
    digest = hashlib.blake2b(decides.encode(), digest_size=12).hexdigest()
    return settings, cache_folder() / "sentences" / f"{digest}.json"
