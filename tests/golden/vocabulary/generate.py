"""Record merges of models with different tokenizers: what mergekit 0.1.4 writes for them, weights and tokenizers.

In:  nothing but the tables below. Out: models/<name>/, tiny Llamas with tokenizers of their own, drawn from seeded generators; for
each case cases/<case>/recipe.yml, expected.safetensors, and expected.json: the output's tokens in the order of their ids, its
`vocab_size`, and the ids that its tokenizer, loaded anew, gives the texts. Run as `python generate.py [CASE ...]`.

Two things are put in the place of mergekit's own. Tokens are united in the order of the models in the recipe and of their ids
there, not in that of hash tables. A row that is `zero` is zeros; mergekit reads the word and then fails.
"""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.tokenizer.config import ZeroEmbedding
from mergekit.tokenizer.embed import PermutedEmbeddings
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent
MERGEKIT = "0.1.4"
HIDDEN, WIDE = 8, 6

FIRST = "the sun rose over the sea and the ship sailed on the morning tide"
SECOND = "the moon set behind the hills of mist and the river was still"
THIRD = "a storm over the mountain broke and the rain ran down the stones"
TEXTS = [
    FIRST,
    SECOND,
    THIRD,
    "<s>the moon</s>",
    "over <extra> the <|im|> sea<pad>",
    "<zero><copied> and <by-id>",
    "ship",
    "",
    "the  still Sun",
]


def bpe(text: str, size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=[], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def unigram(text: str, size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def wordpiece(text: str, size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<unk>", *special], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


ENDS = ["<s>", "</s>"]
KINDS = {"bpe": bpe, "unigram": unigram, "wordpiece": wordpiece}
# Kind, text, tokens, special tokens in the vocabulary; then further keys of `write_model`.
MODELS = {
    "a": ("bpe", FIRST, 40, ENDS, {}),
    "b": ("bpe", SECOND, 36, [*ENDS, "<pad>"], {"added": True}),
    "c": ("bpe", THIRD, 44, ENDS, {}),
    "a-tied": ("bpe", FIRST, 40, ENDS, {"tied": True}),
    "b-tied": ("bpe", SECOND, 36, [*ENDS, "<pad>"], {"added": True, "tied": True, "dtype": "bfloat16"}),
    "a-padded": ("bpe", FIRST, 40, ENDS, {"rows": 48}),
    "a-beyond": ("bpe", FIRST, 40, ENDS, {"late": True, "rows": 40}),
    "a-bf16": ("bpe", FIRST, 40, ENDS, {"dtype": "bfloat16"}),
    "b-bf16": ("bpe", SECOND, 36, [*ENDS, "<pad>"], {"added": True, "dtype": "bfloat16"}),
    "a-unigram": ("unigram", FIRST, 34, ENDS, {}),
    "b-unigram": ("unigram", SECOND, 34, ENDS, {"added": True}),
    "a-wordpiece": ("wordpiece", FIRST, 40, ENDS, {}),
    "b-wordpiece": ("wordpiece", SECOND, 40, ENDS, {"added": True}),
}


def write_model(name, kind, text, size, special, *, added=False, late=False, rows=None, tied=False, dtype="float32") -> None:
    folder = ROOT / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    if "<pad>" in special:
        named["pad_token"] = "<pad>"
    if kind != "bpe":
        named["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](text, size, special), **named)
    if added:
        tokenizer.add_tokens(["<extra>"])
        image = AddedToken("<|im|>", lstrip=True, special=True)
        tokenizer.add_special_tokens({"additional_special_tokens": [image]})
    if late:
        tokenizer.add_tokens(["<late>"])
    tokenizer.save_pretrained(folder)
    rows = rows or len(tokenizer.get_vocab())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vocab_size": rows,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    shapes = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (WIDE, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (HIDDEN, WIDE)}
        shapes |= {f"{prefix}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (rows, HIDDEN)
    draw = {tensor: random.standard_normal(shape).astype(np.float32) for tensor, shape in shapes.items()}
    tensors = {tensor: torch.from_numpy(values).to(getattr(torch, dtype)) for tensor, values in draw.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def listed(method: str, names: list[str], base: str | None = None, **parameters: object) -> dict:
    entry = lambda name, weight: {"model": f"models/{name}", "parameters": {"weight": weight} | parameters}
    weights = [0.75, 0.5, 0.25]
    recipe = {"merge_method": method, "models": [entry(*pair) for pair in zip(names, weights)], "dtype": "float32"}
    return recipe | ({"base_model": f"models/{base}"} if base else {})


def named(*names: str) -> list[dict]:
    return [{"model": f"models/{name}"} for name in names]


def token(model: str, **which: object) -> dict:
    return {"kind": "model_token", "model": f"models/{model}", **which}


def runs(names: list[str], *starts: int) -> list[dict]:
    """Slices of one layer of each model. A slice without a model that has a token is more than mergekit can do."""
    entry = lambda name, start, weight: {
        "model": f"models/{name}",
        "layer_range": [start, start + 1],
        "parameters": {"weight": weight},
    }
    return [{"sources": [entry(name, start, 0.25 + start) for name in names]} for start in starts]


UNION = {"tokenizer_source": "union"}
# What each row has: a source of its own, zeros, another token's by text or by number, a forced one.
TOKENS = {
    "<pad>": {"source": "models/b"},
    "<zero>": {"source": {"kind": "zero"}},
    "<copied>": {"source": token("b", token="<|im|>")},
    "<by-id>": {"source": token("a", token_id=7)},
    "<extra>": {"source": token("a", token="</s>"), "force": True},
}
# The tolerance, relative to the larger of an element and the tensor's root mean square; 0 is exact.
CASES = {
    "union-base": (0, listed("task_arithmetic", ["b", "c"], "a") | UNION),
    "union": (0, listed("linear", ["a", "b"]) | UNION),
    "union-other-order": (0, listed("linear", ["b", "a"]) | UNION),
    "union-three": (1e-6, listed("linear", ["a", "b", "c"]) | UNION),
    "union-ties": (0, listed("ties", ["b", "c"], "a", density=0.5) | UNION),
    "union-slerp": (1e-6, listed("slerp", ["a", "b"], "a") | UNION | {"models": named("a", "b"), "parameters": {"t": 0.3}}),
    "union-bf16": (0, listed("linear", ["a-bf16", "b-bf16"]) | UNION | {"out_dtype": "bfloat16"}),
    "union-tied": (0, listed("linear", ["a-tied", "b-tied"]) | UNION),
    "union-one-tied": (0, listed("linear", ["a", "b-tied"]) | UNION),
    "union-f16": (0, listed("linear", ["a", "b"]) | UNION | {"out_dtype": "float16"}),
    "union-unigram": (0, listed("linear", ["a-unigram", "b-unigram"]) | UNION),
    "union-wordpiece": (0, listed("linear", ["a-wordpiece", "b-wordpiece"]) | UNION),
    "union-of-kinds": (0, listed("linear", ["a", "b-unigram"]) | UNION),
    "union-padding": (1e-6, listed("linear", ["a", "b"]) | {"tokenizer": {"source": "union", "pad_to_multiple_of": 32}}),
    "union-slices": (0, {"merge_method": "linear", "slices": runs(["a", "b"], 1, 0, 1), "dtype": "float32"} | UNION),
    "base": (0, listed("task_arithmetic", ["b", "c"], "a") | {"tokenizer_source": "base"}),
    "base-first": (0, listed("linear", ["a", "b"]) | {"tokenizer_source": "base"}),
    "base-padded": (0, listed("linear", ["a-padded", "b"]) | {"tokenizer_source": "base"}),
    "base-beyond": (0, listed("linear", ["a-beyond", "b"]) | {"tokenizer_source": "base"}),
    "base-padding": (1e-6, listed("linear", ["a", "b"]) | {"tokenizer": {"source": "base", "pad_to_multiple_of": 16}}),
    "model": (0, listed("linear", ["a", "b"]) | {"tokenizer_source": "models/b"}),
    "model-base": (0, listed("task_arithmetic", ["b", "c"], "a") | {"tokenizer": {"source": "models/c"}}),
    "tokens": (0, listed("linear", ["a", "b"]) | {"tokenizer": {"source": "union", "tokens": TOKENS}}),
    "tokens-base": (0, listed("task_arithmetic", ["b", "c"], "a") | {"tokenizer": {"source": "union", "tokens": TOKENS}}),
    "tokens-padding": (
        1e-6,
        listed("linear", ["a", "b"]) | {"tokenizer": {"source": "models/a", "tokens": TOKENS, "pad_to_multiple_of": 64}},
    ),
}


def put_in_order(recipe: dict) -> None:
    """Let tokens and models come in an order that the recipe and the files give."""
    unordered = PreTrainedTokenizerFast.get_vocab
    by_id = lambda self: dict(sorted(unordered(self).items(), key=lambda entry: entry[1]))
    PreTrainedTokenizerFast.get_vocab = by_id
    sources = [source for part in recipe.get("slices", []) for source in part["sources"]]
    names = [recipe["base_model"]] if "base_model" in recipe else []
    names += [entry["model"] for entry in recipe.get("models", []) + sources]
    names = list(dict.fromkeys(names))
    unsorted = MergeConfiguration.referenced_models
    place = lambda model: names.index(str(model.model.path))
    MergeConfiguration.referenced_models = lambda self: sorted(unsorted(self), key=place)


def let_rows_be_zero() -> None:
    compute = PermutedEmbeddings.compute_default_embedding

    def compute_or_zero(self, info, tensors, permutations, token, token_id, config):
        if isinstance(config.source, ZeroEmbedding):
            return torch.zeros_like(next(iter(tensors.values()))[0])
        return compute(self, info, tensors, permutations, token, token_id, config)

    PermutedEmbeddings.compute_default_embedding = compute_or_zero


def record(name: str) -> None:
    torch.set_num_threads(1)
    tolerance, recipe = CASES[name]
    folder = ROOT / "cases" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    put_in_order(recipe)
    let_rows_be_zero()
    options = MergeOptions(write_model_card=False, quiet=True)
    with tempfile.TemporaryDirectory() as out:
        run_merge(MergeConfiguration.model_validate(recipe), out, options)
        tensors = {}
        for shard in sorted(Path(out).glob("*.safetensors")):
            with safe_open(shard, framework="pt") as file:
                tensors |= {tensor: file.get_tensor(tensor) for tensor in file.keys()}
        config = json.loads((Path(out) / "config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(out)
        vocabulary = tokenizer.get_vocab()
        expected = {
            "tier": "relative" if tolerance else "exact",
            "tolerance": tolerance,
            "vocab_size": config["vocab_size"],
            "tokens": sorted(vocabulary, key=vocabulary.get),
            "ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
            "texts": TEXTS,
        }
        assert list(vocabulary.values()) == list(range(len(vocabulary))), "ids leave gaps"
    save_file(tensors, folder / "expected.safetensors", metadata={"format": "pt"})
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {len(tensors)} tensors, {len(vocabulary)} tokens, {config['vocab_size']} rows")


def main() -> None:
    if version("mergekit") != MERGEKIT:
        raise SystemExit(f"these goldens are made with mergekit {MERGEKIT}, not {version('mergekit')}")
    os.chdir(ROOT)
    names = sys.argv[1:]
    if not names:
        for name, (kind, text, size, special, rest) in MODELS.items():
            write_model(name, kind, text, size, special, **rest)
    for name in names or CASES:
        process = multiprocessing.get_context("fork").Process(target=record, args=(name,))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"case {name} failed")


if __name__ == "__main__":
    main()
