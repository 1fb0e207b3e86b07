"""Losses: pure functions of tensors. They know no model, device or rank.

Shapes: B images, D shared width. Every vector given here is a unit vector unless it says otherwise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, logsigmoid

from wordsight.config import WordsightError

MAX_SCALE = 100.0  # CLIP's bound on the learned scale


def embedding_distillation(said: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Squared distance between what the generator says and the aggregated prompt, summed over D, mean over B.

    AAPE, eq. 2. As in the paper. `said` is not a unit vector; `target` is a constant (the paper leaves open
    whether gradient passes: here it does not)."""
    return (said - target.detach()).square().sum(-1).mean()


def clip_reward(
    image: Float[Tensor, "B D"], prompt: Float[Tensor, "B D"], scale: float = 2.5
) -> Float[Tensor, ""]:
    """CLIP-S(x, p) = scale * max(cos(x, p), 0), mean over B: high when the prompt fits the image. Maximised,
    so a loss subtracts it.

    AAPE, section 3.1; scale 2.5 is CLIPScore's, which the paper leaves open.
    """
    return scale * cosine_similarity(image, prompt, dim=-1).clamp_min(0).mean()


def pull(cosines: Float[Tensor, "*R"]) -> Float[Tensor, ""]:
    """1 - cos between adapted and original class weights, mean over all: KgCoOp's way to keep what the text
    tower knew (Yao et al. 2023, eq. 6).

    Differs from KgCoOp: it squares the distance of the two unit vectors, which is twice this.
    """
    return (1 - cosines).mean()


def info_nce(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Each image picks its text among the batch's, and each text its image: the sum of both cross entropies.

    CLAMP, eqs. 6-8. As in the paper; CLIP takes their mean. The scale is exp(log_scale), at most 100. Texts
    of the batch that are equal need no care: where their vectors are equal, counting each as right for the
    other (UniCL) is the same loss."""
    logits = clamped_scale(log_scale) * image @ text.T
    pairs = torch.arange(len(logits), device=logits.device)
    return cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)


def pairwise_sigmoid(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Each pair is a yes-or-no question of its own: do this image and this text belong together? Summed over
    pairs, divided by B.

    SigLIP (Zhai et al. 2023), algorithm 1; they start at log_scale = log 10 and bias = -10.
    """
    logits = clamped_scale(log_scale) * image @ text.T + bias
    belongs = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -logsigmoid(belongs * logits).sum() / len(logits)


def similarity_distillation(
    student: Float[Tensor, "B B"], teacher: Float[Tensor, "B B"], tau_d: float = 100.0
) -> Float[Tensor, ""]:
    """The student's similarities between the batch's images (rows) and texts (columns) become the teacher's,
    row by row and column by column.

    CLAMP, eq. 9, after DIME-FM: KL(teacher || student) of the softmax over each row, mean over rows, plus the
    same over columns, of cosines times tau_d. As in the paper; it does not give tau_d's value: 100 is CLIP's
    scale, a guess. `teacher` is a constant. Its vectors may have another width: only similarities meet."""
    if student.shape != teacher.shape:
        raise WordsightError(
            f"the student compares {tuple(student.shape)} images and texts, the teacher "
            f"{tuple(teacher.shape)}; both must see one batch"
        )
    total = student.new_zeros(())
    for axis in (1, 0):
        ours, theirs = (
            log_softmax(tau_d * student, axis),
            log_softmax(tau_d * teacher.detach().to(student.dtype), axis),
        )
        total = total + kl_div(ours, theirs, reduction="sum", log_target=True) / student.shape[1 - axis]
    return total


def clamped_scale(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """exp(log_scale), clamped as CLIP does: never above 100, and from there free to fall. CLIP clamps the
    parameter after each step; this needs no step.
    """
    return _AtMost.apply(log_scale, math.log(MAX_SCALE)).exp()


class _AtMost(torch.autograd.Function):
    """min(x, bound); beyond the bound only gradients that lower x pass, where clamp would pass none and leave
    x stuck.
    """

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x >= bound)
        return x.clamp(max=bound)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (beyond,) = ctx.saved_tensors
        return torch.where(beyond & (gradient < 0), 0, gradient), None
