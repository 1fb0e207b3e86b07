"""Published: what papers print of the same method and data. For orientation: other towers, other images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wordsight.files import read_json
from wordsight.metrics import harmonic_mean

PUBLISHED = Path(__file__).parents[1] / "data" / "published.json"


@cache
def tables() -> dict[str, Any]:
    """data/published.json: what papers print, each table with its source."""
    return read_json(PUBLISHED, "published figures")


def published(
    method: str, trained: str, tested: str, shots: int, measured: Sequence[str]
) -> dict[str, dict[str, float]]:
    """{table: {part: figure}} that papers print for the same method, data, shots and parts; on their
    backbones, so not to be compared with ours.
    """
    found = {}
    for name, table in tables()["tables"].items():
        figures = table["methods"].get(method, {}).get("figures", {})
        place = place_in(table, trained, tested)
        if place is not None and shots in (0, table["shots"]) and figures.keys() <= set(measured) and figures:
            values = {part: column[place] for part, column in figures.items()}
            found[name] = values | (
                {"H": harmonic_mean(values["base"], values["new"])} if "new" in values else {}
            )
    return found


def place_in(table: Mapping[str, Any], trained: str, tested: str) -> int | None:
    """Which column of a table is about this data, by the name of its folder."""
    own, name = table.get("trained_on"), dataset_of(tested)
    fits = trained != tested and dataset_of(trained) == own if own else trained == tested
    return table["datasets"].index(name) if fits and name in table["datasets"] else None


def dataset_of(data: str) -> str | None:
    """The field's name of a dataset, from a path or a hub name; None where it is none of the field's."""
    folder = re.sub(r"[^a-z0-9]", "", Path(data.removeprefix("hf:")).stem.lower())
    return next((name for name, folders in tables()["folders"].items() if folder in folders), None)


def orientation(tables_used: Sequence[str]) -> list[str]:
    """One line for each table that figures were shown of: what it is, and from where."""
    return [
        f"{tables()['tables'][name]['says']} ({tables()['tables'][name]['source']})"
        for name in dict.fromkeys(tables_used)
    ]
