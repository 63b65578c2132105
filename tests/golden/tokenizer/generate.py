"""Tokenizes texts with transformers by variants of the tokenizer of examples/models/base, and writes cases.json.

    python generate.py            (transformers 5)

A variant replaces keys of tokenizer.json and of tokenizer_config.json. `starts` are bytes of UTF-8.
"""

import json
import pathlib
import shutil
import tempfile

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
BASE = HERE / "../../../examples/models/base"
TEXTS = [
    "",
    "a",
    "The alchemist heats the aludel.",
    "  two spaces,\n\n\ttabs  and trailing ",
    "Größe 日本語 🦀 e\u0301",
    "before<|endoftext|>after <|endoftext|>",
    "x" * 40,
]


def template(before, after):
    return {
        "type": "TemplateProcessing",
        "single": before + [{"Sequence": {"id": "A", "type_id": 0}}] + after,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }


END = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
VARIANTS = {
    "as it is": ({}, {}),
    "a post-processor that adds": ({"post_processor": template([END], [END, END])}, {}),
    "the post-processor goes before flags": ({"post_processor": template([END], [])}, {"add_bos_token": False}),
    "flags alone add nothing": ({}, {"add_bos_token": True}),
    "a normalizer that makes text longer": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Prepend", "prepend": "##"}]}}, {}),
    "truncation is ignored": ({"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}}, {}),
}

cases = []
for name, (changes, config) in VARIANTS.items():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(BASE / file, folder / file)
        for file, patch in (("tokenizer.json", changes), ("tokenizer_config.json", config)):
            path = folder / file
            path.write_text(json.dumps(json.loads(path.read_text()) | patch))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        results = []
        for text in TEXTS:
            plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            results.append({
                "text": text,
                "ids": tokenizer(text)["input_ids"],
                "plain": plain["input_ids"],
                "starts": [len(text[:start].encode()) for start, _ in plain["offset_mapping"]],
                "decoded": tokenizer.decode(plain["input_ids"], skip_special_tokens=True),
            })
        cases.append({"name": name, "tokenizer": changes, "config": config, "results": results})
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
(HERE / "cases.json").write_text(f"[\n{lines}\n]\n")
