"""Logistic regression of a few features, by Newton's method; maths on numpy, no torch, no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 100

PENALTY = 1.0
"""Half the squared norm of the weights, times this, is added to the loss: they stay finite where a line separates."""


def fit_logistic(negative: Floats, positive: Floats) -> Floats:
    """Return the intercept and the weights `[1 + F]` that tell `positive` from `negative` rows, `[n, F]` each.

    Both classes count alike, however many rows each has. Newton's steps are damped: the loss falls with every one.
    """
    rows = np.concatenate([negative, positive])
    design = np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
    target = np.concatenate([np.zeros(len(negative)), np.ones(len(positive))])
    total = len(rows)
    weight = np.where(target == 1, total / (2 * max(1, len(positive))), total / (2 * max(1, len(negative))))
    penalty = np.full(design.shape[1], PENALTY)
    penalty[0] = 1e-9

    def loss(beta: Floats) -> float:
        margin = np.where(target == 1, 1, -1) * (design @ beta)
        return float((weight * np.logaddexp(0, -margin)).sum() + (penalty * beta**2).sum() / 2)

    beta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        gradient = design.T @ (weight * (probability - target)) + penalty * beta
        curvature = (design * (weight * probability * (1 - probability))[:, None]).T @ design + np.diag(penalty)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(beta - size * step) > loss(beta) and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if float(np.abs(size * step).max()) < 1e-8:
            break
    return beta
