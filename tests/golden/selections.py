"""Recompute the methods that choose elements: nearswap, sce, arcee_fusion, ram, and DELLA's probabilities."""

import numpy as np


def nearswap(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    real = a.dtype.type
    share = np.clip(1 / np.maximum(np.abs(a - b), real(1e-6)) * real(t), real(0), real(1))
    return share * b + (1 - share) * a


def sce(deltas: list, density: float) -> np.ndarray:
    stack = np.stack(deltas)
    if density < 1:
        stack = stack * most_varied(stack, density)
    weights = (stack**2).reshape(len(deltas), -1).mean(axis=1)
    total = weights.sum()
    weights = weights / total if total >= 1e-6 else np.full(len(deltas), 1 / len(deltas))
    weights = weights.reshape((-1,) + (1,) * (stack.ndim - 1))
    agrees = np.sign(stack) == np.where(stack.sum(axis=0) >= 0, 1, -1)
    return (stack * weights * agrees).sum(axis=0) / np.maximum((weights * agrees).sum(axis=0), 1e-6)


def most_varied(stack: np.ndarray, density: float) -> np.ndarray:
    """The share of the elements that vary at all which varies most."""
    variance = stack.var(axis=0).reshape(-1)
    count = int(density * np.count_nonzero(variance))
    keep = np.zeros(variance.size, dtype=bool)
    keep[np.argsort(-variance, kind="stable")[:count]] = True
    return keep.reshape(stack.shape[1:])


def arcee_fusion(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Take b where importance stands out; order statistics are elements, not interpolated between them."""
    p, q = softmax(b) + 1e-8, softmax(a) + 1e-8
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    importance = np.abs(b - a) * divergence
    ordered = np.sort(importance.reshape(-1))
    low, middle, high = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return a + (b - a) * (importance >= middle + 1.5 * (high - low))


def ram(deltas: list, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    """The mean of what several have changed, and what one has changed, raised by how much it shares."""
    real = deltas[0].dtype.type
    changed = [np.abs(delta) > real(epsilon) for delta in deltas]
    count = sum(mask.astype(real) for mask in changed)
    total = 0
    for delta, mask in zip(deltas, changed):
        alone, shared = (mask & (count == 1)).sum(), (mask & (count > 1)).sum()
        raised = real(1 + r * min(shared / max(alone, 1), alpha))
        total = total + delta * mask * np.where(count == 1, raised, real(1))
    return total / np.maximum(count, 1)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def della(delta: np.ndarray, numbers: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """Which elements are kept: their chance grows with the rank of their magnitude in their row."""
    rows = np.abs(delta).astype(np.float32).reshape(-1, delta.shape[-1])
    columns = rows.shape[1]
    rank = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
    if columns > 1:
        chance = (density - epsilon) + 2 * epsilon * rank / (columns - 1)
    else:
        chance = np.full(rows.shape, density)
    return numbers.reshape(delta.shape) < chance.reshape(delta.shape).astype(np.float32)
