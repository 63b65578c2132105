"""Runs the recipes of mergekit's examples and documentation on tiny models of many architectures.

Each recipe says what the example of that name says, with paths to models that this script makes with transformers; 40 layers where the examples'
ranges need them. Every output has to load in transformers with no missing, unexpected or mismatched key, in the type that the recipe asks for, and to
compute finite numbers. What cannot work on an architecture has to be refused with an explanation.

    python tests/reference/mergekit_examples.py --aludel target/release/aludel --work /tmp/examples

prints the table of docs/mergekit-examples.md. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers as tf
import yaml

LAYERS = 40
DECODER = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)


def vision_language():
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
                  projection_dim=16)
    text = dict(DECODER, num_hidden_layers=4)
    return tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**vision), text_config=tf.LlamaConfig(**text), image_token_index=63)


# Name, class, config, and whether the model is one stack of layers, so that `slices` mean something.
ARCHITECTURES = [
    ("Llama", tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**DECODER), True),
    ("Mistral", tf.MistralForCausalLM, lambda: tf.MistralConfig(**DECODER, head_dim=8), True),
    ("Qwen2", tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**DECODER), True),
    ("Qwen3", tf.Qwen3ForCausalLM, lambda: tf.Qwen3Config(**DECODER, head_dim=8), True),
    ("Gemma 3", tf.Gemma3ForCausalLM, lambda: tf.Gemma3TextConfig(**DECODER, head_dim=8), True),
    ("Phi-3", tf.Phi3ForCausalLM, lambda: tf.Phi3Config(**DECODER), True),
    ("Mixtral", tf.MixtralForCausalLM, lambda: tf.MixtralConfig(**DECODER, num_local_experts=2, head_dim=8), True),
    ("GPT-2", tf.GPT2LMHeadModel, lambda: tf.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=16, n_layer=LAYERS, n_head=2, bos_token_id=1, eos_token_id=2), True),
    ("BERT", tf.BertForMaskedLM, lambda: tf.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64), True),
    ("T5", tf.T5ForConditionalGeneration, lambda: tf.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=4, num_heads=2, decoder_start_token_id=0), False),
    ("Whisper", tf.WhisperForConditionalGeneration, lambda: tf.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=16, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=32, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1), False),
    ("LLaVA (vision-language)", tf.LlavaForConditionalGeneration, vision_language, False),
]


def entry(model, **parameters):
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


def gradient_slerp(key, value):
    filters = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    return {key: value, "merge_method": "slerp", "base_model": "a", "parameters": {"t": filters}, "dtype": "float16"}


def whole(model):
    return {"model": model, "layer_range": [0, LAYERS]}


def part(model, first, last):
    return {"sources": [{"model": model, "layer_range": [first, last]}]}


# Name, documents, and whether the recipe has slices.
RECIPES = [
    ("examples/arcee_fusion.yml", [{
        "models": [entry("a"), entry("b")], "merge_method": "arcee_fusion", "base_model": "a", "dtype": "bfloat16"}], False),
    ("examples/bio-merge.yml", [{
        "models": [entry("a", density=0.5, weight=0.5), entry("b", density=0.5, weight=0.5)],
        "merge_method": "ties", "base_model": "base", "parameters": {"normalize": False, "int8_mask": True},
        "dtype": "float16"}], False),
    ("examples/gradient-slerp.yml", [gradient_slerp("slices", [{"sources": [whole("a"), whole("b")]}])], True),
    ("examples/gradient-slerp.yml, as models", [gradient_slerp("models", [entry("a"), entry("b")])], False),
    ("examples/linear.yml", [{
        "models": [entry("a", weight=1.0), entry("b", weight=0.3), entry("c", weight=0.5)],
        "merge_method": "linear", "dtype": "float16"}], False),
    ("examples/orcamini-platy-44layer.yml", [{
        "slices": [part("a", 0, 24), part("b", 20, 40)], "merge_method": "passthrough", "dtype": "float16"}], True),
    ("examples/ties.yml", [{
        "models": [
            entry("a", density=[1, 0.7, 0.1], weight=1.0),
            entry("b", density=0.5, weight=[0, 0.3, 0.7, 1]),
            entry("c", density=0.33, weight=[{"filter": "mlp", "value": 0.5}, {"value": 0}]),
        ],
        "merge_method": "ties", "base_model": "base", "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "float16"}], False),
    ("docs/multimerge.md", [
        {"name": "first-merge", "merge_method": "linear", "models": [entry("base"), entry("a")], "parameters": {"weight": 0.5}},
        {"name": "second-merge", "merge_method": "slerp", "base_model": "first-merge", "models": [entry("b")],
         "parameters": {"t": 0.5}},
        {"merge_method": "dare_ties", "base_model": "base", "models": [
            entry("second-merge", density=0.6, weight=0.5), entry("c", density=0.8, weight=0.5)]},
    ], False),
]


def make(folder, architecture, config):
    """Four models that differ a little, as fine-tuned ones do."""
    for seed, name in enumerate(["base", "a", "b", "c"]):
        torch.manual_seed(0)
        model = architecture(config()).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if seed:
                    parameter.add_(torch.randn_like(parameter) * 0.01)
        model.save_pretrained(folder / name)


def with_paths(value, folder):
    if isinstance(value, dict):
        return {key: with_paths(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [with_paths(item, folder) for item in value]
    return str(folder / value) if value in ("base", "a", "b", "c") else value


def inputs(model):
    tokens = torch.tensor([[5, 6, 7, 8]])
    if isinstance(model, tf.WhisperForConditionalGeneration):
        return {"input_features": torch.randn(1, 8, 64), "decoder_input_ids": tokens}
    if isinstance(model, tf.T5ForConditionalGeneration):
        return {"input_ids": tokens, "decoder_input_ids": tokens}
    return {"input_ids": tokens}


def check(architecture, output, dtype):
    """What is wrong with a model, if anything."""
    model, found = architecture.from_pretrained(output, output_loading_info=True, dtype=torch.float32)
    faults = {key: sorted(map(str, value)) for key, value in found.items() if value}
    if faults:
        return f"loads with {faults}"
    config = json.loads((output / "config.json").read_text())
    declared = config.get("dtype", config.get("torch_dtype"))
    if dtype and declared != dtype:
        return f"declares {declared}"
    with torch.no_grad():
        logits = model.eval()(**inputs(model)).logits
    return None if torch.isfinite(logits).all() else "computes numbers that are not finite"


def run(aludel, folder, name, documents):
    recipe, output = folder / "recipe.yml", folder / "merged"
    shutil.rmtree(output, ignore_errors=True)
    recipe.write_text("---\n".join(yaml.safe_dump(with_paths(document, folder), sort_keys=False) for document in documents))
    done = subprocess.run([aludel, "merge", recipe, output, "--no-sync"], capture_output=True, text=True)
    return done, output


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--aludel", required=True)
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    rows, failures = [], 0
    for title, architecture, config, is_stack in ARCHITECTURES:
        folder = given.work / title.split()[0]
        make(folder, architecture, config)
        cells = []
        for name, documents, has_slices in RECIPES:
            done, output = run(given.aludel, folder, name, documents)
            if has_slices and not is_stack:
                is_right = done.returncode == 3 and "modules" in done.stderr
                cells.append("refused" if is_right else "FAILED")
                reason = done.stderr
            elif done.returncode != 0:
                cells.append("FAILED")
                reason = done.stderr
            else:
                reason = check(architecture, output, documents[-1].get("dtype"))
                cells.append("FAILED" if reason else "loads")
            if cells[-1] == "FAILED":
                failures += 1
                print(f"{title}, {name}: {reason}", file=sys.stderr)
        rows.append(f"| {title} | {' | '.join(cells)} |")
        shutil.rmtree(folder)
    names = [name.removeprefix("examples/") for name, _, _ in RECIPES]
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    print("\n".join(rows))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
