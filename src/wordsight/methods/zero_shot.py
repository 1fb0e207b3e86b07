"""Zero-shot: no labels, words alone. Cosine between the image and each class's text."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from wordsight.methods import Classifier
from wordsight.sentences import ClassTexts


class ZeroShot(Classifier):
    """The class name in one template (CLIP, Radford et al. 2021, section 3.1). As in the paper, with a single
    template.
    """

    needs_labels = False
    class_vectors: Tensor

    def set_classes(self, texts: ClassTexts) -> None:
        self.register_buffer("class_vectors", texts.name_vectors, persistent=False)

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self.logit_scale * images @ self.class_vectors.T


class SentenceMean(ZeroShot):
    """The mean of each class's sentences (CuPL, Pratt et al. 2023; template ensembles in CLIP). A class
    without sentences keeps its name.
    """

    needs_sentences = True
    keeps_words = True

    @classmethod
    def own_words(cls, own: Any = None) -> str:
        return "sentences"
