"""Labelling: a folder is labelled on a page, and a method learns from every label (docs/label.md).

kept      the labels, in a CSV that `fit` reads      learner   a method fitted to them, and how right it is
session   one folder: what is asked next             routes, app   the same over HTTP"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from wordsight.backbones import Backbone, load_backbone
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.data.account import Account
from wordsight.data.labels import check_distinct
from wordsight.data.sources import read_pictures
from wordsight.extras import needed
from wordsight.fit import DEFAULT_SENTENCES
from wordsight.labelling.kept import Kept
from wordsight.labelling.session import Session
from wordsight.names import class_list
from wordsight.reader import read
from wordsight.sentences.self_written import sentences_for
from wordsight.serve.settings import Settings

LABELS = "labels.csv"  # in the folder, unless another file is named

log = logging.getLogger("wordsight")


def label(
    folder: str | Path,
    classes: str | list[str] | None = None,
    *,
    out: str | Path | None = None,
    unlabelled: str | Path | None = None,
    settings: RunSettings | None = None,
    server: Settings | None = None,
) -> None:
    """Serve the labelling page of a folder until Ctrl-C or SIGTERM.

    `classes` may be left out where the CSV `out` (by default FOLDER/labels.csv) names two or more. `settings`
    are of `fit`, whose data is the folder; `unlabelled` is a folder of further images that the method may
    learn from. Errors: WordsightError for a folder without images, or fewer than two classes."""
    with needed("serve", "label"):
        from wordsight.labelling.app import make_app
        from wordsight.serve import run_until_told
    session = open_session(folder, classes, out)
    own = settings or settings_of(folder)
    more = list(read_pictures(unlabelled)) if unlabelled is not None else []

    def begin() -> None:
        backbone = load_backbone(own.backbone, device=own.device, dtype=own.dtype)
        session.open(backbone, own, words_of(own, session, backbone), more)

    run_until_told(functools.partial(make_app, session, begin), server or Settings())


def open_session(
    folder: str | Path, classes: str | list[str] | None, out: str | Path | None = None
) -> Session:
    """The images of a folder and the labels that stand in its CSV."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise WordsightError(f"{str(folder)!r} is no folder; give the folder of the images to label")
    account = Account()
    pictures = list(read_pictures(root, account))
    account.tell()
    path = Path(out).expanduser() if out is not None else root / LABELS
    kept = Kept(path)
    names = class_list(classes) if classes else []
    session = Session(root, pictures, kept, names)
    check_distinct(session.names, "the list of classes")
    if len(session.names) < 2:
        raise WordsightError(
            f"there are {len(session.names)} classes to choose among; name at least 2: --classes a,b,c, or "
            f"--classes @FILE with one name a line"
        )
    return session


def settings_of(folder: str | Path, *words: str) -> RunSettings:
    """What `fit` would take for this folder, with further `key=value` words."""
    given = read(RunSettings, {"data": str(folder)}, *words)
    if not given.needs_labels or given.method not in METHODS:
        raise WordsightError(f"method={given.method} does not learn from labels; leave it out, or give aape")
    if resolve(METHODS, given.method, "method").fits:
        raise WordsightError(f"method={given.method} is not fitted to labels of images; leave it out")
    return given


def words_of(settings: RunSettings, session: Session, backbone: Backbone) -> dict[str, tuple[str, ...]]:
    """The sentences about the classes: those that are named, or the template set that stands in."""
    source = settings.sentences
    if source is None and settings.needs_sentences:
        source = DEFAULT_SENTENCES
    return dict(sentences_for(source, tuple(session.names), settings.aliases, backbone))
