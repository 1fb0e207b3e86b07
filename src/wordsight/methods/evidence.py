"""Evidence: maps that are solved, and how strong they are made by the likelihood of what was left out.

Shapes: n labelled images, C classes, D shared width, R rank, K outputs of a ridge map, J parts of a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

DOUBT = 1.0  # observations' worth of doubt that a part's weight moves from where it starts
STEPS = 100  # of L-BFGS, at most


class Spectrum(NamedTuple):
    """Centred inputs taken apart once, in float64 on the CPU: every penalty's map is cheap after it."""

    mean: Float[Tensor, " D"]
    turned: Float[Tensor, "n R"]  # left singular vectors of the centred inputs
    turn: Float[Tensor, "D R"]  # right singular vectors
    values: Float[Tensor, " R"]  # singular values

    @classmethod
    def of(cls, inputs: Float[Tensor, "n D"]) -> Spectrum:
        inputs = inputs.detach().cpu().double()
        mean = inputs.mean(0)
        X = inputs - mean
        small = len(X) <= X.shape[1]
        values, vectors = torch.linalg.eigh(X @ X.T if small else X.T @ X)
        kept = values > values.max().clamp_min(1e-12) * 1e-10
        roots, vectors = values[kept].sqrt(), vectors[:, kept]
        if small:
            return cls(mean, vectors, X.T @ vectors / roots, roots)
        return cls(mean, X @ vectors / roots, vectors, roots)

    @property
    def size(self) -> float:
        """Root mean square length of the centred inputs."""
        return float(self.values.square().sum() / max(1, len(self.turned))) ** 0.5 or 1.0


class Affine(NamedTuple):
    """inputs @ map + bias."""

    map: Float[Tensor, "D K"]
    bias: Float[Tensor, " K"]

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return inputs @ self.map + self.bias


def ridge(spectrum: Spectrum, targets: Float[Tensor, "n K"], penalty: float) -> Affine:
    """The M and b that make |X M + b - T|^2 + penalty * s |M|^2 smallest, s being the mean squared singular
    value."""
    T = targets.double().cpu()
    mean, squares = T.mean(0), spectrum.values.square()
    unit_of = squares.sum() / min(len(T), len(spectrum.mean))
    shrink = spectrum.values / (squares + penalty * unit_of)
    weights = (spectrum.turn * shrink) @ (spectrum.turned.T @ (T - mean))
    return Affine(weights.to(targets.dtype), (mean - spectrum.mean @ weights).to(targets.dtype))


def logistic(
    spectrum: Spectrum,
    labels: Int[Tensor, " n"],
    prior: Float[Tensor, "n C"],
    penalties: Sequence[float],
) -> list[Affine]:
    """For each penalty the V that makes the labels likeliest under softmax(prior + Z V), beside penalty/2
    |V|^2, Z being the centred inputs at root mean square length 1: logistic regression that starts from a
    prior's scores and moves only as far as images are not explained by it. By L-BFGS, at most STEPS steps
    from zero, or from the penalty before it: strong ones first are quickest."""
    from scipy.optimize import minimize

    found, size, (n, classes) = [], spectrum.size, prior.shape
    Z, rows = (spectrum.turned * spectrum.values / size).to(prior), torch.arange(n)
    V = np.zeros(Z.shape[1] * classes)

    def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        logs = torch.addmm(prior, Z, torch.from_numpy(flat).to(prior).view(-1, classes)).log_softmax(1)
        value = penalty / 2 * float(flat @ flat) - float(logs[rows, labels].double().sum())
        error = logs.exp_()
        error[rows, labels] -= 1
        return value / n, ((Z.T @ error).double().numpy().ravel() + penalty * flat) / n

    for penalty in penalties:
        if V.size:  # images that are all the same move nothing
            V = minimize(loss, V, penalty, "L-BFGS-B", jac=True, options={"maxiter": STEPS, "gtol": 1e-5}).x
        solved = (spectrum.turn / size) @ torch.from_numpy(V).view(-1, classes)
        found.append(Affine(solved.to(prior), -(spectrum.mean @ solved).to(prior)))
    return found


class Scored(NamedTuple):
    """Images with the parts of their scores, and the right classes."""

    parts: Float[Tensor, "J n C"]
    labels: Int[Tensor, " n"]


def weigh(scored: Sequence[Scored], start: Sequence[float], count: float) -> tuple[list[float], float]:
    """The weights a_j >= 0 under which softmax(sum_j a_j part_j) makes the labels likeliest, and that mean
    log-likelihood, less the doubt. The problem is convex: there is one answer.

    `count` is how many independent observations the labels are worth; against these stands the doubt that a
    weight moves from `start`, so that with few images little moves."""
    from scipy.optimize import minimize

    begin = np.asarray(start, np.float64)
    spread = np.maximum(begin, begin.max())
    total = sum(len(one.labels) for one in scored)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = 0.0, np.zeros(len(weights))
        for parts, labels in scored:
            logits = torch.einsum("j,jnc->nc", torch.tensor(weights, dtype=parts.dtype), parts)
            logs = logits.log_softmax(1)
            value -= float(logs.gather(1, labels[:, None]).sum())
            error = logs.exp()
            error[torch.arange(len(labels)), labels] -= 1
            slope += torch.einsum("nc,jnc->j", error, parts).double().numpy()
        moved = (weights - begin) / spread
        return (
            value / total + DOUBT / count * float(moved @ moved) / 2,
            slope / total + DOUBT / count * moved / spread,
        )

    bounds = [(0, None)] * len(begin)
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100})
    return found.x.tolist(), -float(found.fun)
