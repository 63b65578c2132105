"""Recompute the averages that read statistics: fisher and regmean.

In:  tensors, weights and each model's statistics of the tensor (None where there are none). Out: the merged array. Written
from the papers' formulas, for check.py.
"""

import numpy as np


def average(xs: list, weights: list) -> np.ndarray:
    return sum(w * x for w, x in zip(weights, xs)) / sum(weights)


def fisher(xs: list, weights: list, information: list, floor: float) -> np.ndarray:
    if information[0] is None:
        return average(xs, weights)
    least = floor * np.mean(information)
    shares = [w * np.maximum(f, least) for w, f in zip(weights, information)]
    return sum(share * x for share, x in zip(shares, xs)) / sum(shares)


def regmean(xs: list, weights: list, grams: list, alpha: float, ridge: float) -> np.ndarray:
    """W with rows of outputs: the least squares fit of all models' outputs, kept near the average by a ridge."""
    if grams[0] is None:
        return average(xs, weights)
    size = grams[0].shape[0]
    scaled = [w * (alpha * g + (1 - alpha) * np.diag(np.diag(g))) for w, g in zip(weights, grams)]
    mean = np.mean([np.trace(g) for g in scaled]) / size
    small = ridge * mean if mean > 0 else 1.0
    scaled = [g + small * w / sum(weights) * len(weights) * np.eye(size) for w, g in zip(weights, scaled)]
    return np.linalg.solve(sum(scaled), sum(g @ x.T for g, x in zip(scaled, xs))).T
