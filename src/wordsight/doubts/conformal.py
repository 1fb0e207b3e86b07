"""Split-conformal prediction: the classes of an image that cannot be ruled out at a wanted error rate.

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005); the score 1 - p(right class) is
of Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels" (JASA 2019).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from wordsight.files import WordsightError

ROUNDING = 1e-9  # 0.1 times 10 may be a little less than 1


def lowest(chances: Float[np.ndarray, " m"], error: float, by: str = "images") -> float:
    """From which probability on a class is in the set, by the right classes' `chances` of m images, rising:
    the floor((m + 1) error)-th smallest of them. The right class of a further image like these is then in its
    set with probability 1 - error or more, on the mean over such images and images to calibrate by.

    Errors: WordsightError for no rate, or one that m images are too few for."""
    if not 0 < error < 1:
        raise WordsightError(f"error={error} is no error rate; give one between 0 and 1, as 0.1")
    place = math.floor((len(chances) + 1) * error + ROUNDING)
    if not place:
        least = math.ceil(1 / error - ROUNDING) - 1
        raise WordsightError(
            f"error={error:g} needs {least} {by} or more, and the run has {len(chances)}: every class would "
            f"be in every set; give error={_above(1 / (len(chances) + 1)):g} or more"
        )
    return float(chances[place - 1])


def among(chances: Float[np.ndarray, "*B C"], lowest: float) -> Bool[np.ndarray, "*B C"]:
    """Which classes are in the sets of images. A set may be empty: no class is as likely as the right ones of
    other images are."""
    return chances >= lowest


def _above(share: float) -> float:
    """A share in three decimals that is no smaller."""
    return math.ceil(1000 * share - ROUNDING) / 1000
