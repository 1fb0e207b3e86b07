"""Tasks: what is measured of a run. Each only measures, keeps its figures in the run folder and returns
them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data.splits import Which
from wordsight.fitted import is_captioner, is_embedder
from wordsight.runs import Run


def evaluate(
    run: Run | str | Path,
    *,
    data: str | None = None,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | str | None = None,
    scorer: str | None = None,
) -> list[dict[str, Any]]:
    """Figures of a run on test images, kept in its metrics.jsonl: of its own data, or of other `data`.

    A run over classes gives accuracy (classify), one that learned from pairs recall@k on captions and
    zero-shot accuracy on labels (retrieve), one that captions CIDEr-D, BLEU-4 and CLIPScore (caption), the
    last by the backbone `scorer` or its own. No image is counted that the run was fitted to, however the data
    is named: how many were left out for that is logged. `backbone` names it where it has moved. Errors:
    WordsightError."""
    run = run if isinstance(run, Run) else Run.open(run)
    name = "caption" if is_captioner(run) else "retrieve" if is_embedder(run) else "classify"
    task, more = importlib.import_module(f"wordsight.tasks.{name}"), {}
    if scorer is not None:
        if name != "caption":
            raise WordsightError(
                f"scorer={scorer} scores captions, but {run.folder} writes none; leave it out"
            )
        more = {"scorer": scorer}
    return task.evaluate(run, data=data, classes=classes, label=label, backbone=backbone, **more)
