"""Holds a top_k cache beside DistillKit's own encoder at its recommended setting: bytes a token and KL to the full distribution, on the same tokens.

    git clone https://github.com/arcee-ai/DistillKit && git -C DistillKit checkout a61c2e7d25c2e990d45832e12bd8542bdee9c810
    aludel cache capture run.yml CACHE && aludel cache convert CACHE rows.parquet --run run.yml
    PYTHONPATH=DistillKit python distillkit_encoder.py MODEL_FOLDER rows.parquet

The model's logits of every row go through DistillKit's `LogprobCompressor` and back, and the stored rows are taken as the cache gives them. For both, KL is

    full    KL(full, stored), all other tokens sharing what is left evenly. DistillKit's `densify` does it for its own rows (its
            `symmetric_uniform`), made a distribution again by its own `renormalize`.
    tail    KL over the stored tokens and one outcome for all others, as both tools train with what is left.

Prints one line of JSON. Not run by CI; needs torch, transformers, pydantic and pyarrow.
"""

import json
import sys

import pyarrow.parquet
import torch
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.compression.densify import densify
from distillkit.missing_probability import MissingProbabilityHandling
from transformers import AutoModelForCausalLM

LEAST = 1e-8  # what DistillKit's loss takes for no probability


def recommended(vocabulary):
    return DistributionQuantizationConfig(
        d=vocabulary, k=128, exact_k=16, exact_dtype="bfloat16", polynomial_terms=[0, 1, 2, 3, 4, "sqrt"],
        term_dtype="float32", residual_bins=[], delta_encoding=False, error_diffusion=False,
    )


def divergence(p_log, q_log):
    return (p_log.exp() * (p_log - q_log)).nan_to_num().sum(-1)


def tail(known_p, left_p, known_q, left_q):
    """KL over some tokens and what is left of both distributions."""
    left_p, left_q = left_p.clamp(min=LEAST), left_q.clamp(min=LEAST)
    return divergence(known_p, known_q) + left_p * (left_p.log() - left_q.log())


def main(folder, path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = model.config.vocab_size
    compressor = LogprobCompressor(recommended(vocabulary))
    sums, tokens, widths = {}, 0, set()
    for row in pyarrow.parquet.read_table(path).to_pylist():
        with torch.inference_mode():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        learned = [at - 1 for at, label in enumerate(row["labels"]) if label != -100]
        assert len(learned) == len(row["token_ids"])
        for at, ids, log_probs, tails in zip(learned, row["token_ids"], row["log_probs"], row["tails"]):
            full = torch.log_softmax(logits[at].double(), -1)
            packed = compressor.compress(torch.log_softmax(logits[at], -1)[None, None])
            widths.add(sum(part.shape[-1] for part in packed.values()))
            their_ids, their_values = compressor.decompress_to_sparse(packed)
            their_ids, theirs = their_ids[0, 0], their_values[0, 0].double()
            uniform = MissingProbabilityHandling.SYMMETRIC_UNIFORM
            dense = densify(their_ids, theirs, vocabulary, missing=uniform, renormalize=True)
            ids, ours = torch.tensor(ids), torch.tensor(log_probs, dtype=torch.float64)
            left = torch.tensor(tails[0], dtype=torch.float64)
            even = torch.full_like(full, (left / (vocabulary - len(ids))).log())
            even[ids] = ours
            for name, value in {
                "theirs_full": divergence(full, dense),
                "theirs_tail": tail(full[their_ids], 1 - full[their_ids].exp().sum(), theirs, 1 - theirs.exp().sum()),
                "ours_full": divergence(full, even),
                "ours_tail": tail(full[ids], 1 - full[ids].exp().sum(), ours, left),
            }.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            tokens += 1
    (width,) = widths
    figures = {name: round(value / tokens, 6) for name, value in sums.items()}
    print(json.dumps({"tokens": tokens, "vocabulary": vocabulary, "theirs_bytes": width, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
