"""Sentences: natural language about classes. The contract, the template sets, and the way from class names to text vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EncodeText = Callable[[Sequence[str]], Tensor]  # texts -> unit vectors [N, D]; a backbone's encode_text, or a cached one


@dataclass(frozen=True)
class ClassTexts:
    """What words say about C classes, as text and as unit vectors. Every method is bound to one of these and can be bound anew."""

    names: tuple[str, ...]
    name_vectors: Float[Tensor, "C D"]  # the class name in the template
    sentences: tuple[tuple[str, ...], ...]  # per class; may be empty
    sentence_vectors: tuple[Float[Tensor, "n D"], ...]
    labelled: Bool[Tensor, "C"]  # which classes had labelled images when the method was fitted

    def means(self) -> Float[Tensor, "C D"]:
        """The unit mean of each class's sentences; the name's vector where it has none (CuPL)."""
        rows = [vectors.mean(0) if len(vectors) else name for vectors, name in zip(self.sentence_vectors, self.name_vectors)]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)
