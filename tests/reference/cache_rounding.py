"""Compares what rounding costs in a top_k cache with DistillKit's encoder at its recommended setting, on real logits.

    python tests/reference/cache_rounding.py MODEL_FOLDER TEXT_FILE [TOKENS]

For the 128 likeliest tokens of every row, with all other tokens sharing what is left evenly, prints KL(full, stored) for exact values, for the levels
of docs/teacher-cache.md, and for 16 values in bfloat16 with a least-squares fit of six terms (1, x to x^4, sqrt x) through the other 112.
Not run by CI; needs torch and transformers.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

K, RESOLUTION = 128, 352.0


def log_probabilities(folder, text, tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor(tokenizer(text)["input_ids"][:tokens])[None]
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits[0].double(), -1).numpy()


def levels(x):
    edge = 2 * np.log(4 / RESOLUTION)
    level = np.where(x >= edge, RESOLUTION * (1 - np.exp(x / 2)), RESOLUTION - 4 + 2 * (edge - x)).round()
    beyond = level - (RESOLUTION - 4)
    return np.where(beyond <= 0, 2 * np.log1p(-np.minimum(level, RESOLUTION - 1) / RESOLUTION), edge - beyond / 2)


def bfloat16(x):
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def main():
    folder, text = sys.argv[1], open(sys.argv[2]).read()
    full = log_probabilities(folder, text, int(sys.argv[3]) if len(sys.argv) > 3 else 1024)
    known = -np.sort(-full, axis=1)[:, :K]
    p = np.exp(known)
    tail = np.maximum(1 - p.sum(1), 1e-12)
    tail_entropy = (np.exp(full) * full).sum(1) - (p * known).sum(1)

    def kl(stored, stored_tail):
        log_sum = np.log(np.exp(stored).sum(1) + stored_tail)
        of_known = (p * (known - stored + log_sum[:, None])).sum(1)
        of_tail = tail_entropy - tail * (np.log(stored_tail / (full.shape[1] - K)) - log_sum)
        return (of_known + of_tail).mean()

    print(f"exact values      {kl(known, tail):.6f}")
    print(f"levels            {kl(levels(known), np.exp(levels(np.log(tail)))):.6f}")
    x = np.arange(K - 16) / (K - 16)
    terms = np.stack([x**0, x, x**2, x**3, x**4, np.sqrt(x)], 1)
    fitted = known.copy()
    fitted[:, :16] = bfloat16(known[:, :16])
    fitted[:, 16:] = (terms @ np.linalg.lstsq(terms, known[:, 16:].T, rcond=None)[0]).T
    print(f"DistillKit's fit  {kl(fitted, np.maximum(1 - np.exp(fitted).sum(1), 1e-4)):.6f}")


main()
