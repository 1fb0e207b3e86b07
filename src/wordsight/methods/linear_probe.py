"""Linear probe: logistic regression on image features, the field's baseline that uses no words."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.methods import Classifier, FitData, Space
from wordsight.sentences import ClassTexts
from wordsight.settings import LinearProbeSettings

SWEEP = tuple(10.0**power for power in range(-4, 3))  # penalties tried on validation images
UNSWEPT = 0.1  # the penalty where there are none


class LinearProbe(Classifier):
    """scikit-learn's L-BFGS logistic regression on unit features (CLIP, section 3.2).

    The penalty is swept over powers of ten on validation images. Differs from the paper: the sweep is not
    refined around its best, and where there are no validation images the penalty is 0.1. It can score only
    classes that had labels."""

    Settings = LinearProbeSettings
    needs_words = False
    needs_val = True
    weight: Tensor
    bias: Tensor
    rows: Tensor

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: LinearProbeSettings):
        super().__init__(class_names, space, settings)
        self.register_buffer("weight", torch.zeros(len(class_names), self.dim))
        self.register_buffer("bias", torch.zeros(len(class_names)))

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        strength = self.settings.strength
        if strength is None and data.val is not None and len(data.val.labels):
            images, labels = data.val.images.cpu(), data.val.labels.cpu()
            tried = [(one, *self.solve(data, one)) for one in SWEEP]
            right = [
                float(((images @ weight.T.float() + bias.float()).argmax(1) == labels).float().mean())
                for _, weight, bias in tried
            ]
            best = max(right)  # of equal ones the middle, as a few images decide little
            equal = [place for place, found in enumerate(right) if found == best]
            _, weight, bias = tried[equal[len(equal) // 2]]
        else:
            weight, bias = self.solve(data, strength or UNSWEPT)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        return super().setup(data)

    def solve(self, data: FitData, strength: float) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """Weight and bias at a penalty."""
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The number of unique classes is greater than 50%"
            )  # true of one shot, and no mistake here
            probe = LogisticRegression(C=1 / strength, max_iter=self.settings.max_iter).fit(
                data.centre.cpu().numpy(), data.labels.cpu().numpy()
            )
        weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
        if len(self.class_names) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        return weight, bias

    def set_classes(self, texts: ClassTexts) -> None:
        unknown = [name for name in texts.names if name not in self.class_names]
        if unknown:
            raise WordsightError(
                f"linear_probe has seen no images of {', '.join(unknown[:10])}; it scores only "
                f"{', '.join(self.class_names[:10])}"
            )
        self.register_buffer(
            "rows", torch.tensor([self.class_names.index(name) for name in texts.names]), persistent=False
        )

    def logits(self, images: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return images @ self.weight[self.rows].T + self.bias[self.rows]
