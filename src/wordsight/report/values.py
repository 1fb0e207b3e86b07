"""Values: what a file holds, as a value of the right kind, or None."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

LARGEST = 2.0**53  # of a count: beyond it a float is no longer exact


def number(value: Any, most: float = LARGEST, least: float = 0.0) -> float | None:
    """A finite number within bounds; a truth value is none, and neither is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        return None
    return float(value)


def whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and number(value) is not None else None


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def numbers(value: Any, count: int, most: float = 100.0, least: float = 0.0) -> tuple[float, ...] | None:
    """So many numbers in a list."""
    found = [number(one, most, least) for one in value] if isinstance(value, list) else []
    whole = tuple(one for one in found if one is not None)
    return whole if len(whole) == len(found) == count else None


def texts(value: Any) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def counts(value: Any, most: float = LARGEST) -> Int[np.ndarray, " n"] | None:
    """Whole numbers in a list."""
    fits = isinstance(value, list) and all(type(one) is int and 0 <= one <= most for one in value)
    return np.array(value, np.int64) if fits else None


def parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
