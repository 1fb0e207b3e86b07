"""Tasks: what is fitted and measured. Each has `fit`, `evaluate`, `check_settings` and `default_folder`, and
names the role it needs of a method.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from wordsight.config import METHODS, resolve
from wordsight.methods import Embedder


def task_of(method: str) -> ModuleType:
    """The task that fits a method: `retrieve` for one that learns from pairs, `classify` for one that learns
    from labels.
    """
    name = "retrieve" if issubclass(resolve(METHODS, method, "method"), Embedder) else "classify"
    return importlib.import_module(f"wordsight.tasks.{name}")
