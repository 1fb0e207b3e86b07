"""Tasks: what is measured of a run. Each only measures, keeps its figures in the run folder and returns
them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data.pairs import open_pairs
from wordsight.data.questions import is_questions, open_questions
from wordsight.data.splits import Which
from wordsight.fitted import is_captioner, is_embedder, is_run, open_generator
from wordsight.runs import Run


def evaluate(
    run: Run | str | Path,
    *,
    data: str | None = None,
    classes: Which | None = None,
    label: str | None = None,
    backbone: Backbone | str | None = None,
    lm: str | None = None,
    scorer: str | None = None,
    shots: int | None = None,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """Figures of a run on test images, kept in its metrics.jsonl: of its own data, or of other `data`.

    A run over classes gives accuracy (classify), one that learned from pairs recall@k on captions and
    zero-shot accuracy on labels (retrieve), one that captions CIDEr-D, BLEU-4 and CLIPScore (caption), the
    last by the backbone `scorer` or its own; on `data` with questions VQA accuracy (answer), behind `shots`
    examples of its training part, drawn by `seed`. No image is counted that the run was fitted to, however
    the data
    is named: how many were left out for that is logged. `backbone` names it where it has moved, and `lm` the
    LM of a run that writes. Errors: WordsightError."""
    if not isinstance(run, Run) and not is_run(run):
        return [_of_model(str(run), data, shots or 0, seed)]
    run = run if isinstance(run, Run) else Run.open(run)
    name = _task(run, data)
    task = importlib.import_module(f"wordsight.tasks.{name}")
    more: dict[str, Any] = {}
    if name == "answer":
        more = {"shots": shots or 0, "seed": seed}
    elif shots is not None:
        raise WordsightError(
            f"shots={shots} are questions that are shown before others, but what is measured has none; "
            f"leave it out, or give data= with questions"
        )
    if scorer is not None:
        if name != "caption":
            raise WordsightError(
                f"scorer={scorer} scores captions, but {run.folder} writes none; leave it out"
            )
        more = {"scorer": scorer}
    if lm is not None:
        if name not in ("caption", "answer"):
            raise WordsightError(f"lm={lm} is what writes, but {run.folder} writes nothing; leave it out")
        more["lm"] = lm
    return task.evaluate(run, data=data, classes=classes, label=label, backbone=backbone, **more)


def _of_model(name: str, data: str | None, shots: int, seed: int) -> dict[str, Any]:
    """Figures of a model that is no run, which has no folder to keep them in: of captions or of answers."""
    from wordsight.tasks import answer, caption

    if data is None:
        raise WordsightError(f"{name!r} is a model and no run; say what to measure it on: data=...")
    if is_questions(data):
        questions = open_questions(data)
        questions.account.tell()
        questions.check_shots(shots)
        return answer.measured(open_generator(name), questions, shots=shots, seed=seed)[0]
    pairs = open_pairs(data, "test")
    pairs = pairs if len(pairs) else open_pairs(data)
    pairs.account.tell()
    return {"event": "captions", "data": data, **caption.measured(open_generator(name), pairs)[0]}


def _task(run: Run, data: str | None) -> str:
    """What is measured. Errors: WordsightError for questions to a run that cannot answer."""
    if data is not None and is_questions(data):
        if not is_captioner(run):
            raise WordsightError(
                f"data={data!r} holds questions, and {run.folder} is a {run.settings.method}, which answers "
                f"none; give a run of limber"
            )
        return "answer"
    return "caption" if is_captioner(run) else "retrieve" if is_embedder(run) else "classify"
