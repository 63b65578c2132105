"""Writes the same rows as Parquet and as JSON lines, with pyarrow.

    python generate.py            (pyarrow 20 or later)
"""

import json
import pathlib

import pyarrow
import pyarrow.parquet

HERE = pathlib.Path(__file__).parent
CHAT = [
    {"messages": [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "🦀 12 €"}], "text": None},
    {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "text": None},
    {"messages": None, "text": "plain\n"},
] * 5
TEXTS = [{"text": f"row {row} " + "word " * (row % 7)} for row in range(40)]
PAIRS = [{"prompt": f"{row} + 1 =", "completion": f" {row + 1}"} for row in range(9)]

for name, rows, options in (
    ("chat", CHAT, {"compression": "zstd", "row_group_size": 4}),
    ("texts", TEXTS, {"compression": "snappy", "row_group_size": 16}),
    ("pairs", PAIRS, {"compression": "lz4", "use_dictionary": False}),
    ("empty", [], {}),
):
    schema = pyarrow.schema([("text", pyarrow.string())]) if not rows else None
    columns = [row | {"id": number, "score": number / 2} for number, row in enumerate(rows)]
    table = pyarrow.Table.from_pylist(columns, schema=schema)
    pyarrow.parquet.write_table(table, HERE / f"{name}.parquet", **options)
    lines = [json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) for row in rows]
    (HERE / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
