"""Linear probe: logistic regression on image features, the field's baseline that uses no words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.methods import Classifier, FitData, Space
from wordsight.sentences import ClassTexts


@dataclass(frozen=True)
class LinearProbeSettings:
    # lambda of the L2 penalty lambda/2 |W|^2 beside the summed loss; scikit-learn's C is 1/lambda
    strength: float = 0.1
    max_iter: int = 1000  # steps of L-BFGS at most

    def __post_init__(self) -> None:
        if self.strength <= 0 or self.max_iter < 1:
            raise WordsightError(
                f"settings.strength={self.strength} must be above 0, and settings.max_iter={self.max_iter} "
                f"1 or more"
            )


class LinearProbe(Classifier):
    """scikit-learn's L-BFGS logistic regression on unit features (CLIP, section 3.2).

    Differs from the paper: the penalty is a setting instead of a sweep over a validation set, since few-shot
    sets have none to spare. It can score only classes that had labels."""

    Settings = LinearProbeSettings
    needs_words = False
    weight: Tensor
    bias: Tensor
    rows: Tensor

    def __init__(self, class_names: tuple[str, ...], space: Backbone | Space, settings: LinearProbeSettings):
        super().__init__(class_names, space, settings)
        self.register_buffer("weight", torch.zeros(len(class_names), self.dim))
        self.register_buffer("bias", torch.zeros(len(class_names)))

    def setup(self, data: FitData) -> tuple[Float[Tensor, "n V D"], Int[Tensor, " n"]]:
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The number of unique classes is greater than 50%"
            )  # true of one shot, and no mistake here
            probe = LogisticRegression(C=1 / self.settings.strength, max_iter=self.settings.max_iter).fit(
                data.centre.cpu().numpy(), data.labels.cpu().numpy()
            )
        weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
        if len(self.class_names) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        return super().setup(data)

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
