"""Metadata: what stands in front of a model card, in huggingface_hub's own terms, so that the hub finds,
lists and compares the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from wordsight.config import METHODS, resolve
from wordsight.early import HUB_NAME
from wordsight.methods import Captioner, Classifier, Embedder
from wordsight.model_card.names import last_part
from wordsight.model_card.results import Figure
from wordsight.runs import Run

if TYPE_CHECKING:
    from wordsight.model_card import Part

TASKS = {
    Captioner: "image-to-text",
    Embedder: "zero-shot-image-classification",
    Classifier: "image-classification",
}


def kind_of(run: Run) -> type:
    """Which of the three a run is."""
    kind = resolve(METHODS, run.settings.method, "method")
    return next((one for one in (Captioner, Embedder) if issubclass(kind, one)), Classifier)


def front(run: Run, name: str, parts: Sequence[Part], found: Sequence[Figure], licence: str | None) -> str:
    """The YAML between its lines of dashes."""
    task = TASKS[kind_of(run)]
    bases = [part.source for part in parts if re.fullmatch(HUB_NAME, part.source)]
    data = last_part(run.settings.data.removeprefix("hf:"))
    kept = {
        "library_name": "wordsight",
        "pipeline_tag": task,
        "tags": ["wordsight", run.settings.method, *(["few-shot"] if task == TASKS[Classifier] else [])],
        "base_model": bases or None,
        "datasets": [data] if re.fullmatch(HUB_NAME, data) else None,
        "metrics": sorted({one.metric for one in found}) or None,
        **_licence(parts, licence),
    }
    results = [_result(one, task, run.settings.shots) for one in found]
    named = {"model_name": name, "eval_results": results} if results else {}
    return f"---\n{ModelCardData(**kept, **named).to_yaml()}\n---\n"


def _licence(parts: Sequence[Part], given: str | None) -> dict[str, str]:
    """One identifier where it is given or all parts state the same; else that each part has its own."""
    stated = {part.identifier for part in parts}
    if given or (len(stated) == 1 and "" not in stated):
        return {"license": given or stated.pop()}
    return {"license": "other", "license_name": "see-parts", "license_link": "README.md"}


def _result(one: Figure, task: str, shots: int | None) -> EvalResult:
    drawn = f", {shots} labelled images a class" if shots and one.metric == "accuracy" else ""
    return EvalResult(
        task_type=task,
        dataset_type=one.data,
        dataset_name=one.data,
        dataset_config=one.part or None,
        dataset_split="test",
        metric_type=one.metric,
        metric_name=f"{one.name}{drawn}",
        metric_value=round(one.value, 2),
    )
