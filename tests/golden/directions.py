"""Recompute the methods that work on directions: nuslerp, multislerp, karcher, geometric_median.

In:  tensors as arrays of one real type and plain parameters. Out: the merged array. Written from the formulas (see
README.md), for check.py; nothing here reads files.
"""

import numpy as np

TINY = 1e-8


def length(x: np.ndarray, axis=None) -> np.ndarray:
    return np.sqrt((x * x).sum(axis=axis, keepdims=axis is not None))


def nuslerp(a: np.ndarray, b: np.ndarray, wa: float, wb: float, flatten: bool, row_wise: bool) -> np.ndarray:
    """Slerp whose share comes from two weights, over the whole tensor, its last or its first dimension."""
    t = wb / (wa + wb) if abs(wa + wb) >= 1e-6 else 0.5
    axis = None if flatten else 0 if row_wise else -1
    la, lb = length(a, axis), length(b, axis)
    cosine = (a / np.maximum(la, TINY) * (b / np.maximum(lb, TINY))).sum(axis=axis, keepdims=axis is not None)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    safe = np.where(sine == 0, 1, sine)
    return np.where(
        np.abs(sine) < 1e-6, (1 - t) * a + t * b, (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / safe
    )


def multislerp(xs: list, weights: list, normalize: bool, eps: float) -> np.ndarray:
    """One step of the spherical mean: from the renormalised weighted mean along the mean tangent, at the mean length."""
    if len(xs) == 1:
        return xs[0]
    w = np.array(weights, dtype=xs[0].dtype)
    w = w / w.sum() if normalize else w
    lengths = [length(x) for x in xs]
    units = [x / (l + eps) for x, l in zip(xs, lengths)]
    mean = sum(wi * u for wi, u in zip(w, units))
    size = length(mean)
    mean = mean / size if size >= eps else units[0]
    tangent = sum(wi * (u - (u * mean).sum() * mean) for wi, u in zip(w, units))
    angle = length(tangent)
    if angle >= eps:
        mean = mean * np.cos(angle) + tangent * (np.sin(angle) / angle)
    return mean * sum(wi * l for wi, l in zip(w, lengths))


def karcher(xs: list, max_iter: int, tol: float) -> np.ndarray:
    lengths = [length(x) for x in xs]
    kept = [(x / l, l) for x, l in zip(xs, lengths) if l > 0]
    if not kept:
        return xs[0] * 0
    units = [u for u, _ in kept]
    share = 1 / len(xs)
    mean = sum(share * u for u in units)
    size = length(mean)
    mean = mean / size if size >= tol else units[0]
    for _ in range(max_iter):
        tangent = 0
        for u in units:
            cosine = np.clip((mean * u).sum(), -1, 1)
            angle = np.arccos(cosine)
            if angle < tol:
                continue
            tangent = tangent + share * (angle / np.sin(angle)) * (u - cosine * mean)
        step = length(tangent) if not np.isscalar(tangent) else 0.0
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / length(mean)
    return mean * (sum(lengths) / len(lengths))


def geometric_median(xs: list, weights: list, steps: int, smoothing: float) -> np.ndarray:
    """Weiszfeld's iteration on the tensors themselves."""
    point = sum(w * x for w, x in zip(weights, xs)) / sum(weights)
    for _ in range(steps):
        pulls = [w / max(length(point - x), smoothing) for w, x in zip(weights, xs)]
        point = sum(pull * x for pull, x in zip(pulls, xs)) / sum(pulls)
    return point
