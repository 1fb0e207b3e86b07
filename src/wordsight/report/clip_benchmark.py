"""CLIP_benchmark's own files: one JSON an evaluation, and the CSV that its `build` makes of them, so that
runs stand beside those of its users.

Shares in place of percent, null where a figure does not exist (its own JSON has NaN, which is none)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wordsight.files import csv_text, plain_name
from wordsight.report.reading import mapping, number
from wordsight.report.rows import Row
from wordsight.report.zero_shot import Judged, judged, names_of

LANGUAGE = "en"
FIRST = ("dataset", "model", "pretrained", "model_fullname", "task", "language")  # columns of the CSV
# in CLIP_benchmark images are retrieved by a text; recall@k there is the share of queries with a hit
CAPTIONED = {  # Karpathy's files, and its names of them
    "dataset_coco-json": "mscoco_captions",
    "dataset_flickr30k-json": "flickr30k",
    "dataset_flickr8k-json": "flickr8k",
}
RECALLS = {"image_retrieval": "text_to_image", "text_retrieval": "image_to_text"}


def results(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """{file name: content} of zero-shot classification and retrieval. `model` is the backbone and
    `pretrained` the row, so that one template and an ensemble are never one."""
    names = names_of({row.data for row in rows})
    found = [result(one.row, one.name, "zeroshot_classification", metrics_of(one)) for one in judged(rows)]
    for row in rows:
        events = row.runs[0].events("retrieval")
        if events:
            found.append(result(row, names[row.data], "zeroshot_retrieval", recalls_of(events[-1])))
    return {file_name(one): one for one in found}


def result(row: Row, name: str, task: str, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        "dataset": CAPTIONED.get(name) or name.removeprefix("wds_"),
        "model": plain_name(row.backbone),
        "pretrained": row.label,
        "task": task,
        "metrics": dict(metrics),
        "language": LANGUAGE,
    }


def metrics_of(one: Judged) -> dict[str, float | None]:
    if one.several:
        return {"mean_average_precision": share(one.top1)}
    recall = one.figure("mean_class_recall")
    return {"acc1": share(one.top1), "acc5": share(one.top5), "mean_per_class_recall": share(recall)}


def recalls_of(event: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        f"{name}_{key}": share(number(value, 100))
        for name, way in RECALLS.items()
        for key, value in mapping(event.get(way)).items()
    }


def share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def file_name(one: Mapping[str, Any]) -> str:
    """{dataset}_{pretrained}_{model}_{language}_{task}.json."""
    parts = (one["dataset"].replace("/", "_"), one["pretrained"], one["model"], one["language"], one["task"])
    return "_".join(part if part == one["task"] else plain_name(part) for part in parts) + ".json"


def as_json(one: Mapping[str, Any]) -> str:
    return json.dumps(one, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def as_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `clip_benchmark build`; an empty cell where a figure does not exist."""
    lines = [
        one["metrics"] | one | {"model_fullname": f"{one['model']} {one['pretrained']}"} for one in found
    ]
    metrics = sorted({name for one in found for name in one["metrics"]})
    columns = (*FIRST, *metrics)
    return csv_text(columns, [[line.get(column) for column in columns] for line in lines])
