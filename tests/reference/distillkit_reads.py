"""Reads what `aludel cache convert CACHE rows.parquet --to distillkit --run run.yml` writes, by DistillKit's own code.

    git clone https://github.com/arcee-ai/DistillKit && git -C DistillKit checkout a61c2e7d25c2e990d45832e12bd8542bdee9c810
    PYTHONPATH=DistillKit python distillkit_reads.py rows.parquet VOCABULARY

Every row goes through its `LogprobCompressor` and its sparse KL, as its trainer calls them, against made-up logits; both have to be finite,
and labels of -100 have to leave a position out. Needs torch, pydantic, pyarrow.
"""

import sys

import pyarrow.parquet
import torch
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.lossfuncs.kl import sparse_kl_div
from distillkit.missing_probability import MissingProbabilityHandling


def main(path, vocabulary):
    rows = pyarrow.parquet.read_table(path).to_pylist()
    k = len(rows[0]["token_ids"][0])
    config = DistributionQuantizationConfig(d=vocabulary, k=k, exact_k=k, residual_bins=[])
    compressor = LogprobCompressor(config=config)
    generator = torch.Generator().manual_seed(0)
    tokens, kept = 0, 0.0
    for row in rows:
        batch = {name: torch.tensor([values]) for name, values in row.items()}
        ids, values = compressor.decompress_to_sparse(batch)
        length = len(row["input_ids"])
        assert ids.shape == values.shape == (1, length, k), (ids.shape, values.shape, length)
        assert (values[..., 1:] <= values[..., :-1]).all(), "the likeliest comes first"
        assert 0 <= ids.min() and ids.max() < vocabulary
        mask = (batch["labels"] >= 0).unsqueeze(-1)
        sums = values.exp().sum(-1)
        assert (sums <= 1.001).all()
        logits = torch.randn(1, length, vocabulary, generator=generator)
        for missing in MissingProbabilityHandling:
            loss = sparse_kl_div(logits, ids, values, mask=mask, missing=missing)
            assert torch.isfinite(loss), (missing, loss)
        nothing = sparse_kl_div(logits, ids, values, mask=torch.zeros_like(mask))
        assert nothing == 0
        tokens += int(mask.sum())
        kept += float((sums * mask[..., 0]).sum())
    print(f"{len(rows)} rows, {tokens} tokens, k {k}, mean probability of the tokens {kept / tokens:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
