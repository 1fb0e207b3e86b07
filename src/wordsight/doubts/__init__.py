"""Doubts: what a run does not know, and knows that it does not: classes that it cannot rule out at a wanted
error rate, and images unlike all that it was fitted to.

What both need lies in the run's doubts.safetensors. Shapes: B images, C classes, D width, n labelled images,
m images that the run was not fitted to. NumPy alone, so that an exported graph has the same without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from wordsight.doubts import conformal, unlike
from wordsight.files import WordsightError, read_tensors, write_tensors

FILE = "doubts.safetensors"
BY = "by"  # in its metadata: which images the chances are of
VALIDATION, FOLDS, GIVEN = "validation images", "left-out training images", "images that were given"


@dataclass(frozen=True)
class Doubts:
    """Of one run and the classes that it was fitted to; empty where nothing is known."""

    # the probability of the right class, of each image that it was not fitted to, in rising order
    chances: Float[np.ndarray, " m"] | None = None
    by: str = ""  # of which images
    means: Float[np.ndarray, "C D"] | None = None  # of each class's training vectors
    distances: Float[np.ndarray, " n"] | None = None  # of training images, each as if it were new, rising

    @classmethod
    def read(cls, folder: Path) -> Doubts:
        """What a run's folder keeps; empty where it keeps nothing. Errors: WordsightError where it is
        damaged."""
        path = folder / FILE
        if not path.is_file():
            return NONE
        tensors, metadata = read_tensors(path, "doubts of the run", sealed=True)
        found = {name: tensor.numpy() for name, tensor in tensors.items()}
        if set(found) - {"chances", "means", "distances"} or ("means" in found) != ("distances" in found):
            raise WordsightError(f"{path} holds {', '.join(sorted(found))}; fit again into another out=")
        return cls(found.get("chances"), metadata.get(BY, ""), found.get("means"), found.get("distances"))

    def write(self, folder: Path) -> None:
        """Keep it in a run's folder in place of what stood there; no file where there is nothing to keep."""
        import torch

        (folder / FILE).unlink(missing_ok=True)
        named = {"chances": self.chances, "means": self.means, "distances": self.distances}
        known = {name: torch.from_numpy(array) for name, array in named.items() if array is not None}
        if known:
            write_tensors(folder / FILE, known, {BY: self.by})

    def calibrated(self, chances: Float[np.ndarray, " m"] | None, by: str) -> Doubts:
        """With the probabilities of the right class of images that the run was not fitted to, if any."""
        if chances is None:
            return self
        return replace(self, chances=np.sort(chances.astype(np.float64)), by=by)

    def over(self, own: Sequence[str], names: Sequence[str]) -> Doubts:
        """What of it holds among the classes `names` of a run fitted to the classes `own`: nothing, where
        they are others."""
        return self if set(own) == set(names) else NONE

    # -- what is decided --

    def lowest(self, error: float) -> float:
        """From which probability on a class is in the set of an image, so that at most a share `error` of
        images lacks its right class there (conformal.lowest). Errors: WordsightError where nothing tells."""
        if self.chances is None:
            raise WordsightError(
                "error= needs images that the run neither was fitted to nor chose by, and it keeps nothing "
                "of such; give fit folds=5, or, for a method that does not choose by validation images, data "
                "that has some (a val/ folder, or val in a column split); "
                "in Python, calibrate(images, labels)"
            )
        return conformal.lowest(self.chances, error, self.by)

    @property
    def least_error(self) -> float | None:
        """The lowest error rate that can be asked for; None where nothing tells."""
        return None if self.chances is None else 1 / (len(self.chances) + 1)

    @property
    def far(self) -> float:
        """The squared distance from which on an image is unlike all training images; infinite where none is
        known."""
        return np.inf if self.distances is None else unlike.far(self.distances)

    def unlike(self, images: Float[np.ndarray, "B D"]) -> Bool[np.ndarray, " B"] | None:
        """Whether images are unlike all training images; None where nothing is kept of these."""
        return None if self.means is None else unlike.distances(images, self.means) > self.far


NONE = Doubts()
