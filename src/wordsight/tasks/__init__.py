"""Tasks: what is measured of a run. Each only measures, keeps its figures in the run folder and returns
them.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wordsight.backbones import Backbone, load_backbone
from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data.pairs import open_pairs
from wordsight.data.questions import is_questions, open_questions
from wordsight.data.splits import Which
from wordsight.early import EVENTS, is_run
from wordsight.fitted import is_captioner, is_embedder, open_generator
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
    """Figures of a run on test images: of its own data, or of other `data`. They are kept in its
    metrics.jsonl, but for one of the hub (hf:org/name).

    A run over classes gives accuracy (classify), one that learned from pairs recall@k on captions and
    zero-shot accuracy on labels (retrieve), one that captions CIDEr-D, BLEU-4 and CLIPScore (caption), the
    last by the backbone `scorer` or its own; on `data` with questions VQA accuracy (answer), behind `shots`
    examples of its training part, drawn by `seed`. `classes` is a part of the run's own, base, new or all,
    `label` the label column of a table. No image is counted that the run was fitted to, however the data is
    named: how many were left out for that is logged. `backbone` names it where it has moved, and `lm` the LM
    of a run that writes. In the run's place may stand an image-text-to-text model, of captions or questions.

    Gives the events that metrics.jsonl keeps, one a part or source. Errors: WordsightError."""
    data = None if data is None else str(data)
    with _opened(run) as there:
        if there is None:
            given = {"classes": classes, "label": label, "backbone": backbone, "lm": lm}
            return [_of_model(str(run), data, given, shots=shots, seed=seed, scorer=scorer)]
        name = _task(there, data)
        more = _asked(name, str(there.folder), shots, seed, scorer, lm)
        task = importlib.import_module(f"wordsight.tasks.{name}")
        found = task.evaluate(there, data=data, classes=classes, label=label, backbone=backbone, **more)
        if data is not None and not found:
            raise WordsightError(f"nothing in data={data!r} is what {run} is measured on; see above")
        return found


@contextlib.contextmanager
def _opened(run: Run | str | Path) -> Iterator[Run | None]:
    """The run, or None for a model. Of the hub's, links in a passing folder: what is measured is written
    beside them, and not into the hub's cache."""
    if isinstance(run, Run):
        yield run
    elif not is_run(folder := run_folder(run)):
        yield None
    elif not str(run).startswith("hf:"):
        yield Run.open(folder)
    else:
        with tempfile.TemporaryDirectory() as links:
            for path in folder.iterdir():
                here = Path(links) / path.name
                if path.name == EVENTS:  # which is added to, through a link as well
                    shutil.copyfile(path, here)
                else:
                    here.symlink_to(path.resolve())
            yield Run.open(links)


def _asked(
    task: str, name: str, shots: int | None, seed: int, scorer: str | None, lm: str | None = None
) -> dict[str, Any]:
    """What this task takes beside what all take. Errors: WordsightError for what it does not take."""
    more: dict[str, Any] = {}
    if task == "answer":
        more = {"shots": shots or 0, "seed": seed}
    elif shots is not None:
        raise WordsightError(
            f"shots={shots} are questions that are shown before others, but what is measured has none; "
            f"leave it out, or give data= with questions"
        )
    if scorer is not None:
        if task != "caption":
            raise WordsightError(
                f"scorer={scorer} scores captions, but {name} writes none here; leave it out"
            )
        more = {"scorer": scorer}
    if lm is not None:
        if task not in ("caption", "answer"):
            raise WordsightError(f"lm={lm} is what writes, but {name} writes nothing; leave it out")
        more["lm"] = lm
    return more


def _of_model(
    name: str,
    data: str | None,
    given: Mapping[str, Any],
    *,
    shots: int | None,
    seed: int,
    scorer: str | None,
) -> dict[str, Any]:
    """Figures of a model that is no run, which has no folder to keep them in: of captions or of answers.
    Errors: WordsightError for what is `given` of a run alone."""
    from wordsight.tasks import answer, caption

    if data is None:
        raise WordsightError(f"{name!r} is a model and no run; say what to measure it on: data=...")
    if told := [f"{key}={value}" for key, value in given.items() if value is not None]:
        raise WordsightError(f"{told[0]} is of runs, and {name!r} is a model; leave it out")
    more = _asked("answer" if is_questions(data) else "caption", name, shots, seed, scorer)
    if is_questions(data):
        questions = open_questions(data)
        questions.account.tell()
        questions.check_shots(more["shots"])
        return answer.measured(open_generator(name), questions, **more)[0]
    pairs = open_pairs(data, "test")
    pairs = pairs if len(pairs) else open_pairs(data)
    pairs.account.tell()
    by = None if scorer is None else load_backbone(scorer)
    return {"event": "captions", "data": data, **caption.measured(open_generator(name), pairs, by)[0]}


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
