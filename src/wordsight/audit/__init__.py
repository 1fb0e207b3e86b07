"""Audit: what is wrong with the data of a run, and which images to label next.

checked    labelled images, each with what a method says that has not seen it
errors     labels that are probably wrong            copies     images that stand twice
outliers   images unlike the others                  confusing  classes that words hardly tell apart
next_labels  images of a pool that would teach most  found      all of it, as plain values
page       the HTML file                             tables     CSV for `fit` and Label Studio

Nothing is changed: what is found is for a person to look at."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.audit.checked import Checked, open_checked
from wordsight.audit.confusing import Alike, confusing_pairs
from wordsight.audit.copies import Copy, find_copies
from wordsight.audit.errors import check_installed, wrong_labels
from wordsight.audit.found import Found, Proposal, grouped
from wordsight.audit.next_labels import choose_next, worth
from wordsight.audit.outliers import find_outliers
from wordsight.audit.page import as_html
from wordsight.audit.tables import write_tables
from wordsight.backbones import Backbone
from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.sources import read_pictures
from wordsight.data.splits import digests
from wordsight.files import write_file
from wordsight.runs import Run
from wordsight.tasks.classify import tell_skipped

NEXT = 100  # images that are proposed to label

__all__ = ["Found", "audit", "find"]

log = logging.getLogger("wordsight")


def audit(
    run: str | Path,
    *,
    pool: str | Path | None = None,
    out: str | Path | None = None,
    count: int = NEXT,
    data: str | None = None,
    backbone: str | Backbone | None = None,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Look over the labelled images of a run, and write index.html, audit.json and CSV into `out` (by default
    RUN/audit).

    `pool` is a folder or table of images without labels: `count` of them are proposed to label next. `data`
    and `backbone` name the run's where they have moved. `root` is the folder that Label Studio serves files
    from; by default the one that holds all images. Returns what audit.json holds. Errors: WordsightError for
    a run without classes or labelled images, a pool without images, a missing package."""
    check_installed()
    if count < 1:
        raise WordsightError(f"next={count} proposes no image; give 1 or more")
    opened = Run.open(run_folder(run))
    folder = Path(out).expanduser() if out else opened.folder / "audit"
    if folder.exists() and not folder.is_dir():
        raise WordsightError(f"out={str(out)!r} is a file; give the folder that the page goes into")
    if root is not None and not Path(root).expanduser().is_dir():
        raise WordsightError(
            f"root={str(root)!r} is no folder; give the one that Label Studio serves files from"
        )
    unlabelled = list(_pictures(pool)) if pool is not None else []
    found = find(open_checked(opened, data, backbone), unlabelled, count)
    folder.mkdir(parents=True, exist_ok=True)
    tables = write_tables(found, folder, None if pool is None else str(pool), root)
    answer = found.to_dict(folder) | {"html": str(folder / "index.html"), "json": str(folder / "audit.json")}
    answer |= {"csv": [str(path) for path in tables], "pool": None if pool is None else str(pool)}
    write_file(folder / "index.html", as_html(found, folder, None if pool is None else str(pool)))
    write_file(folder / "audit.json", json.dumps(answer, ensure_ascii=False, indent=1) + "\n")
    return answer


def find(checked: Checked, pool: Sequence[Picture] = (), count: int = NEXT) -> Found:
    """All that there is to say of labelled images, and of a pool of others."""
    rows = checked.judged
    doubts = [
        one._replace(row=int(rows[one.row]))
        for one in wrong_labels(checked.labels[rows], checked.chances[rows])
    ]
    unlabelled, vectors = _of_pool(checked, pool)
    labelled = [image.picture for image in checked.images]
    pairs = _copies(checked, [*labelled, *unlabelled], torch.cat([checked.vectors, vectors]))
    return Found(
        checked,
        doubts,
        grouped(pairs),
        pairs,
        unlabelled,
        find_outliers(checked.vectors, checked.labels),
        _confusing(checked),
        _proposals(checked, unlabelled, vectors, count),
    )


def _pictures(pool: str | Path) -> Sequence[Picture]:
    try:
        return list(read_pictures(pool))
    except WordsightError as error:
        raise WordsightError(f"pool={pool}: {error}") from error


def _of_pool(checked: Checked, pool: Sequence[Picture]) -> tuple[list[Picture], Float[Tensor, "N D"]]:
    """The images of a pool that are not among the labelled ones, each content once, with their vectors.
    Errors: WordsightError where there is none."""
    if not pool:
        return [], checked.vectors[:0]
    seen = set(digests([image.picture for image in checked.images]))
    own = []
    for picture, digest in zip(pool, digests(pool)):
        if digest is None or digest not in seen:
            own.append(picture)
            seen |= {digest} - {None}
    if not own:
        raise WordsightError(
            f"all {len(pool):,} images of the pool are labelled already; name a folder of others"
        )
    settings = checked.run.settings
    features = image_features(checked.backbone, own, flip=settings.flip, max_pixels=settings.max_pixels)
    tell_skipped(features, len(own))
    return [own[place] for place in features.kept], features.vectors[:, 0]


def _copies(checked: Checked, pictures: Sequence[Picture], vectors: Float[Tensor, "n D"]) -> list[Copy]:
    return find_copies(pictures, vectors, checked.run.settings.max_pixels)


def _confusing(checked: Checked) -> list[Alike]:
    """Nothing where the run knows no words."""
    if not checked.backbone.has_text or len(checked.names) < 3:
        return []
    texts, template = checked.fitted.texts, checked.run.facts.template
    return confusing_pairs(texts, checked.vectors, checked.labels, template)


def _proposals(
    checked: Checked, pool: Sequence[Picture], vectors: Float[Tensor, "N D"], count: int
) -> list[Proposal]:
    """What to label next, by what the run as it is makes of the pool."""
    if not len(pool):
        return []
    chances = checked.fitted.logits(vectors).double().softmax(1)
    rows = torch.from_numpy(checked.rows_of("train"))
    counts = torch.from_numpy(checked.labels)[rows].bincount(minlength=len(checked.names))
    weights = worth(chances, counts)
    picks = choose_next(vectors, count, weights=weights, labelled=checked.vectors[rows])
    best = chances.max(1)
    return [
        Proposal(
            pool[pick.row],
            pick,
            checked.names[int(best.indices[pick.row])],
            float(best.values[pick.row]),
        )
        for pick in picks
    ]
