"""Runs the recipes for tokenizers of mergekit's README and tests on tiny Llamas, beside mergekit where that is at hand.

Each case has the keys that the text of that name has, apart from paths, in a linear merge of models that this script makes: one without added
tokens, one with ChatML's, one with Llama 3's, one whose tokenizer has more tokens than its embedding has rows. Every output has to load in
transformers with no missing, unexpected or mismatched key and a row for each of its tokens. Rows are compared with those of mergekit's output
token by token, as mergekit's ids differ from run to run; all other tensors as they are.

    python tests/reference/mergekit_tokenizers.py --aludel target/release/aludel --mergekit mergekit-yaml --work /tmp/tokenizers

prints the table of docs/mergekit-examples.md. Needs torch and transformers: with --mergekit the version 4 that mergekit has, as it cannot read
tokenizers that version 5 has written; without it any.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers as tf
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

os.environ["HF_HUB_OFFLINE"] = "1"
CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# The tokens that are added to 64 of all models, and the rows of the embedding.
MODELS = {
    "base": ([], 64),
    "chatml": (CHATML, 66),
    "llama3": ([*LLAMA3, "<|special|>", "<|original_token|>"], 69),
    "padded": ([f"<UNUSED_{index}>" for index in range(4)], 64),
}
TEXTS = ["_tok_5_tok_6", "<s>_tok_7</s>", "<|im_start|>_tok_8<|im_end|>", "_tok_9<|eot_id|>"]
CHAT = [{"role": "user", "content": "_tok_5"}, {"role": "assistant", "content": "_tok_6"}]
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "llama3": "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}",
}


def token(model, **which):
    return {"kind": "model_token", "model": model, **which}


HANDLING = {
    "<|im_start|>": {"source": "chatml"},
    "<|special|>": {"source": "llama3", "force": True},
    "<|renamed_token|>": {"source": token("llama3", token="<|original_token|>")},
}
BOTH_FORMATS = {name: {"source": "chatml"} for name in CHATML} | {name: {"source": "llama3", "force": True} for name in LLAMA3}
ALL = ["base", "chatml", "llama3"]
TESTED = ["base", "padded", "chatml"]
# Name, models, keys, and what is to be: "same" as mergekit, "more" than mergekit, which fails, or "refused".
CASES = [
    ("README, Modern Configuration", ALL, {
        "tokenizer": {"source": "union", "tokens": {"<|im_end|>": {"source": "chatml", "force": False}}, "pad_to_multiple_of": None}}, "same"),
    ("README, Tokenizer Source: `union`", ALL, {"tokenizer": {"source": "union"}}, "same"),
    ("README, Tokenizer Source: `base`", ALL, {"tokenizer": {"source": "base"}}, "same"),
    ("README, Tokenizer Source: a path", ALL, {"tokenizer": {"source": "llama3"}}, "same"),
    ("README of 0.1.4, Token Embedding Handling", ALL, {"tokenizer": {"source": "union", "tokens": HANDLING}}, "same"),
    ("README, Token Embedding Handling", ALL, {
        "tokenizer": {"source": "union", "tokens": HANDLING | {"<|unused|>": {"source": {"kind": "zero"}}}}}, "more"),
    ("README, Token Embedding Handling, `token_id`", ALL, {
        "tokenizer": {"source": "union", "tokens": HANDLING | {"<|renamed_token|>": {"source": token("llama3", token_id=68)}}}}, "same"),
    ("README, Practical Example", ALL, {"tokenizer": {"source": "union", "tokens": BOTH_FORMATS}}, "same"),
    ("README, Legacy Configuration", ALL, {"tokenizer_source": "union"}, "same"),
    ("README, Chat Template: `auto`", ALL, {"tokenizer_source": "union", "chat_template": "auto"}, "same"),
    ("README, Chat Template: `chatml`", ALL, {"tokenizer_source": "union", "chat_template": "chatml"}, "same"),
    ("README, Chat Template: Jinja", ALL, {
        "tokenizer_source": "union", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "same"),
    ("docs/evolve.md, `tokenizer_source: null`", ["base", "base"], {"tokenizer_source": None}, "same"),
    ("tests, legacy_mode", TESTED, {}, "refused"),
    ("tests, source_base", TESTED, {"tokenizer_source": "base"}, "same"),
    ("tests, source_union", TESTED, {"tokenizer_source": "union"}, "same"),
    ("tests, source_model", TESTED, {"tokenizer_source": "chatml"}, "same"),
    ("tests, slerp_union", ["base", "chatml"], {"tokenizer_source": "union", "merge_method": "slerp", "parameters": {"t": 0.5}}, "same"),
    ("tests, force_token", ["base", "chatml"], {"tokenizer": {"source": "union", "tokens": {
        "_tok_10": {"source": "chatml", "force": True}, "_tok_11": {"source": "base", "force": True}}}}, "same"),
    ("tests, model_token_id", ["base", "chatml"], {"tokenizer": {"source": "base", "tokens": {
        "_tok_20": {"source": token("chatml", token_id=64), "force": True},
        "_tok_21": {"source": token("base", token="<s>"), "force": True}}}}, "same"),
    ("tests, pad_to_multiple_of", ["chatml"], {"tokenizer": {"source": "base", "pad_to_multiple_of": 16}}, "same"),
]


def make(folder, name):
    added, rows = MODELS[name]
    tokens = ["<unk>", "<s>", "</s>"] + [f"_tok_{index}" for index in range(3, 64)]
    words = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<unk>", "<s>", "</s>", *added])
    tokenizer.chat_template = TEMPLATES.get(name)
    torch.manual_seed(sorted(MODELS).index(name))
    config = tf.LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )
    tf.LlamaForCausalLM(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


def with_paths(value, folder):
    if isinstance(value, dict):
        return {key: item if key == "chat_template" else with_paths(item, folder) for key, item in value.items()}
    return str(folder / value) if isinstance(value, str) and value in MODELS and value != "base" else value


def recipe(names, keys, folder):
    # mergekit's test gives slerp a weight too, which slerp has no use for; aludel refuses it.
    parameters = {} if keys.get("merge_method") == "slerp" else {"parameters": {"weight": 1.0}}
    entry = lambda name: {"model": str(folder / name), **parameters}
    document = {"merge_method": "linear", "base_model": str(folder / names[0]), "models": [entry(name) for name in names], "dtype": "float32"}
    # `base` as a source is a word of the recipe's; as a model of a token it is a path.
    keys = with_paths(keys, folder)
    for settings in (keys.get("tokenizer") or {}).get("tokens", {}).values():
        for holder, key in ((settings, "source"), (settings["source"], "model")):
            if isinstance(holder, dict) and holder.get(key) == "base":
                holder[key] = str(folder / "base")
    return document | keys


def weights(output):
    tensors = {}
    for shard in sorted(output.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def loaded(output):
    """The tokenizer, and what is wrong with the model, if anything."""
    tokenizer = tf.AutoTokenizer.from_pretrained(output)
    model, found = tf.LlamaForCausalLM.from_pretrained(output, output_loading_info=True)
    faults = {key: sorted(map(str, value)) for key, value in found.items() if value}
    if faults:
        return tokenizer, f"loads with {faults}"
    rows = model.get_input_embeddings().weight.shape[0]
    if rows != model.config.vocab_size or rows <= max(tokenizer.get_vocab().values()):
        return tokenizer, f"has {rows} rows, vocab_size {model.config.vocab_size}"
    tokens = tokenizer("".join(TEXTS), add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        finite = torch.isfinite(model(tokens).logits).all()
    return tokenizer, None if finite else "computes numbers that are not finite"


def difference(own, its):
    """What differs between two outputs, if anything."""
    (tokenizer, output), (other, reference) = own, its
    vocabulary, expected = tokenizer.get_vocab(), other.get_vocab()
    if set(vocabulary) != set(expected):
        return f"other tokens: {sorted(set(vocabulary) ^ set(expected))}"
    for text in TEXTS:
        if tokenizer.tokenize(text) != other.tokenize(text):
            return f"{text!r} is cut otherwise"
    if (tokenizer.chat_template is None) != (other.chat_template is None):
        return "one has no chat template"
    for prompt in (False, True) if tokenizer.chat_template else ():
        rendered = [each.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt) for each in (tokenizer, other)]
        if rendered[0] != rendered[1]:
            return f"a chat is written {rendered[0]!r}, not {rendered[1]!r}"
    found, wanted = weights(output), weights(reference)
    if set(found) != set(wanted):
        return f"other tensors: {sorted(set(found) ^ set(wanted))}"
    for name, values in wanted.items():
        mine = found[name]
        if mine.shape != values.shape:
            return f"{name} is {list(mine.shape)}, not {list(values.shape)}"
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            order = [vocabulary[token] for token in sorted(vocabulary)] + list(range(len(vocabulary), len(mine)))
            its_order = [expected[token] for token in sorted(vocabulary)] + list(range(len(vocabulary), len(mine)))
            mine, values = mine[order], values[its_order]
        if not torch.allclose(mine, values, rtol=1e-5, atol=1e-6):
            return f"{name} differs by {(mine - values).abs().max():.2e}"
    return None


def run(program, document, output):
    shutil.rmtree(output, ignore_errors=True)
    path = output.parent / "recipe.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return subprocess.run([*program, path, output], capture_output=True, text=True)


def last_line(text):
    return (text.strip().splitlines() or [""])[-1]


def check(given, names, keys, wanted):
    document = recipe(names, keys, given.work)
    output, reference = given.work / "aludel", given.work / "mergekit"
    done = run([given.aludel, "merge"], document, output)
    if wanted == "refused":
        refused = done.returncode == 3 and "tokenizer_source" in done.stderr
        return ("refused, with the remedy", "cuts embeddings to the rows in common") if refused else ("FAILED", last_line(done.stderr))
    if done.returncode:
        return "FAILED", last_line(done.stderr)
    tokenizer, fault = loaded(output)
    if fault:
        return "FAILED", fault
    size = f"loads, {len(tokenizer)} tokens, {tokenizer.vocab_size and weights(output)['model.embed_tokens.weight'].shape[0]} rows"
    if given.mergekit is None:
        return size, "not run"
    done = run([given.mergekit], document, reference)
    if done.returncode:
        return (size if wanted == "more" else "FAILED", f"fails: `{last_line(done.stderr)}`")
    if wanted == "more":
        return "FAILED", "mergekit was expected to fail"
    fault = difference((tokenizer, output), (tf.AutoTokenizer.from_pretrained(reference), reference))
    return ("FAILED", fault) if fault else (size, "the same")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--aludel", required=True)
    arguments.add_argument("--mergekit", help="the program `mergekit-yaml`; without it nothing is compared")
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    for name in MODELS:
        make(given.work, name)
    failures = 0
    print("| recipe | aludel | mergekit 0.1.4 |\n|---|---|---|")
    for name, names, keys, wanted in CASES:
        own, its = check(given, names, keys, wanted)
        failures += own == "FAILED"
        print(f"| {name} | {own} | {its} |")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
