"""Records captures as DistillKit packs them, and what DistillKit unpacks from them.

    git clone https://github.com/arcee-ai/DistillKit && git -C DistillKit checkout a61c2e7d25c2e990d45832e12bd8542bdee9c810
    PYTHONPATH=DistillKit python generate.py    # with torch, pydantic, pyarrow and yaml; recorded with torch 2.15 and pyarrow 26

Packing and unpacking are DistillKit's own `LogprobCompressor`. The columns and their types are those of its `sample_common.py`; the files
are written here, as that module needs a whole training stack to be imported. Values are unpacked in f64 where DistillKit lets the caller
choose, so that what is compared is the layout and not the rounding of its output.
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
import yaml
from distillkit.compression import (
    DistributionQuantizationConfig,
    LegacyLogitCompressionConfig,
    LogprobCompressor,
)
from distillkit.compression.bitpack import unpack_from_bytes
from distillkit.compression.monotonic_logprobs import decompress_monotonic_logprobs

HERE = Path(__file__).parent

PACKED = {
    "recommended": dict(
        d=512, k=32, exact_k=8, exact_dtype="bfloat16", polynomial_terms=[0, 1, 2, 3, 4, "sqrt"],
        term_dtype="float32", residual_bins=[], delta_encoding=False, error_diffusion=False,
    ),
    "deltas": dict(
        d=500, k=20, exact_k=3, exact_dtype="float16", polynomial_terms=[0, 1], term_dtype="float32",
        residual_bins=[
            dict(scale_dtype="float16", element_bits=5, num_elements=7),
            dict(scale_dtype="bfloat16", element_bits=1, num_elements=4),
            dict(scale_dtype="float32", element_bits=12, num_elements=3),
        ],
        delta_encoding=True, error_diffusion=True,
    ),
    "normalized": dict(
        d=257, k=9, exact_k=2, exact_dtype="float64", polynomial_terms=[1, 0, "exp"], term_dtype="float64",
        residual_bins=[], delta_encoding=False, normalize_t=True,
    ),
    "bins": dict(
        d=512, k=11, exact_k=0, exact_dtype="float32", polynomial_terms=None,
        residual_bins=[
            dict(scale_dtype="float32", element_bits=9, num_elements=3),
            dict(scale_dtype="float64", element_bits=33, num_elements=8),
        ],
        delta_encoding=False,
    ),
}
FITTED = {
    "fitted": dict(k=12, exact_k=4, polynomial_degree=3, vocab_size=500, with_sqrt_term=True),
    "fitted-logits": dict(k=10, exact_k=2, polynomial_degree=2, vocab_size=512, invert_polynomial=False),
}


def logits(rows, columns, seed):
    """Peaked rows, the first more than the last."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
    return noise * torch.linspace(4.0, 1.5, rows)[:, None]


def texts(columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, columns, (length,), generator=generator) for length in (4, 3, 6)]


def lists(kind, depth):
    for _ in range(depth):
        kind = pyarrow.list_(kind)
    return kind


def write(name, columns, schema, config, expected):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    # Two files, as the sampler begins a new one after so many rows.
    for file, (start, end) in enumerate([(0, 2), (2, 3)]):
        part = {key: values[start:end] for key, values in columns.items()}
        arrays = [pyarrow.array(part[field.name], type=field.type) for field in schema]
        table = pyarrow.Table.from_arrays(arrays, schema=schema)
        pyarrow.parquet.write_table(table, folder / f"data_{file}.parquet")
    if config is not None:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def packed(name, settings, seed):
    config = DistributionQuantizationConfig(**settings)
    compressor = LogprobCompressor(config=config)
    columns = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    expected = []
    for at, ids in enumerate(texts(config.d, seed)):
        # The last token says nothing: the sampler has as many positions as there are next tokens.
        log_p = torch.log_softmax(logits(len(ids) - 1, config.d, seed + at), dim=-1)[None]
        row = compressor.compress(log_p)
        values = decompress_monotonic_logprobs(row["compressed_logprobs"], config, out_dtype=torch.float64)
        indices = unpack_from_bytes(row["bytepacked_indices"], compressor.vocab_index_bits, config.k)
        columns["input_ids"].append(ids.tolist())
        columns["compressed_logprobs"].append(row["compressed_logprobs"][0].tolist())
        columns["bytepacked_indices"].append(row["bytepacked_indices"][0].tolist())
        expected.append({"input_ids": ids.tolist(), "ids": indices[0].tolist(), "values": values[0].tolist()})
    schema = pyarrow.schema([
        ("input_ids", lists(pyarrow.uint64(), 1)),
        ("compressed_logprobs", lists(pyarrow.uint8(), 2)),
        ("bytepacked_indices", lists(pyarrow.uint8(), 2)),
    ])
    write(name, columns, schema, config.model_dump(mode="json"), expected)


def fitted(name, settings, seed):
    config = LegacyLogitCompressionConfig(**settings)
    compressor = LogprobCompressor(legacy_config=config)
    columns = {"input_ids": [], "packed_indices": [], "exact_values": [], "coeffs": []}
    expected = []
    for at, ids in enumerate(texts(config.vocab_size, seed)):
        rows = logits(len(ids), config.vocab_size, seed + at)[None]
        if name == "fitted-logits":
            indices, exact, factors = compressor.legacy_compressor.compress(rows)
        else:
            values, tokens = torch.topk(torch.log_softmax(rows, dim=-1), config.k, dim=-1)
            indices, exact, factors = compressor.legacy_compressor.compress_from_sparse(tokens, values)
        exact, factors = exact.float(), factors.float()
        tokens, values = compressor.legacy_compressor.decompress_to_sparse(indices, exact, factors)
        columns["input_ids"].append(ids.tolist())
        columns["packed_indices"].append(indices[0].tolist())
        columns["exact_values"].append(exact[0].tolist())
        columns["coeffs"].append(factors[0].tolist())
        expected.append({"input_ids": ids.tolist(), "ids": tokens[0].tolist(), "values": values[0].tolist()})
    schema = pyarrow.schema([
        ("input_ids", lists(pyarrow.uint64(), 1)),
        ("packed_indices", lists(pyarrow.uint64(), 2)),
        ("exact_values", lists(pyarrow.float32(), 2)),
        ("coeffs", lists(pyarrow.float32(), 2)),
    ])
    write(name, columns, schema, config.model_dump(mode="json"), expected)


def plain(seed):
    columns = {"input_ids": [], "token_ids": [], "top_values": []}
    expected = []
    for at, ids in enumerate(texts(512, seed)):
        values, tokens = torch.topk(torch.log_softmax(logits(len(ids), 512, seed + at), dim=-1), 7, dim=-1)
        columns["input_ids"].append(ids.tolist())
        columns["token_ids"].append(tokens.tolist())
        columns["top_values"].append(values.tolist())
        expected.append({"input_ids": ids.tolist(), "ids": tokens.tolist(), "values": values.tolist()})
    schema = pyarrow.schema([
        ("input_ids", lists(pyarrow.uint64(), 1)),
        ("token_ids", lists(pyarrow.uint64(), 2)),
        ("top_values", lists(pyarrow.float32(), 2)),
    ])
    write("plain", columns, schema, None, expected)


if __name__ == "__main__":
    for seed, (name, settings) in enumerate(PACKED.items()):
        packed(name, settings, 100 * seed + 1)
    for seed, (name, settings) in enumerate(FITTED.items()):
        fitted(name, settings, 100 * seed + 1001)
    plain(2001)
