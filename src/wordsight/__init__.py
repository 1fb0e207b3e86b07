"""Wordsight adapts vision-language models through their language side."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# torch is imported with the first of these that is used, so that `import wordsight` and the command line's
# help stay fast
_EXPORTS = {
    "Classifier": "wordsight.estimator",
    "Assistant": "wordsight.assistant",
    "load": "wordsight.estimator",
    "load_backbone": "wordsight.backbones",
    "fit": "wordsight.fit",
    "evaluate": "wordsight.tasks",
    "predict": "wordsight.prediction",
    "search": "wordsight.search",
    "coverage": "wordsight.coverage",
    "Index": "wordsight.search",
    "export": "wordsight.export",
    "push": "wordsight.push",
    "export_graph": "wordsight.onnx.exporting",
    "RunSettings": "wordsight.config",
    "WordsightError": "wordsight.config",
    "write_sentences": "wordsight.sentences.writers",
    "engine": "wordsight.cluster",
}
__all__ = ["__version__", *_EXPORTS]


class _Package(ModuleType):
    """This package, in which an exported name is what is exported, though a module of that name lies below:
    importing wordsight.fit would put the module in place of the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'wordsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
