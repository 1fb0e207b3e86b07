"""Losses: pure functions of tensors. They know no model, device or rank.

Shapes: B images, D shared width. Every vector given here is a unit vector unless it says otherwise.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity


def embedding_distillation(said: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Squared distance between what the generator says and the aggregated prompt, summed over D, mean over B.

    AAPE, eq. 2. As in the paper. `said` is not a unit vector; `target` is a constant (the paper leaves open whether gradient passes: here it does not).
    """
    return (said - target.detach()).square().sum(-1).mean()


def clip_reward(image: Float[Tensor, "B D"], prompt: Float[Tensor, "B D"], scale: float = 2.5) -> Float[Tensor, ""]:
    """CLIP-S(x, p) = scale * max(cos(x, p), 0), mean over B: high when the prompt fits the image. Maximised, so a loss subtracts it.

    AAPE, section 3.1; scale 2.5 is CLIPScore's, which the paper leaves open.
    """
    return scale * cosine_similarity(image, prompt, dim=-1).clamp_min(0).mean()


def pull(cosines: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """1 - cos between adapted and original class weights, mean over all: KgCoOp's way to keep what the text tower knew (Yao et al. 2023, eq. 6).

    Differs from KgCoOp: it squares the distance of the two unit vectors, which is twice this.
    """
    return (1 - cosines).mean()
