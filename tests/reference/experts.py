"""Loads mixtures of experts that aludel builds in transformers, and computes with them.

Every golden recipe of tests/golden/experts (but DeepSeek's, whose code is on a hub) is built, and every recipe of mergekit's documentation of
mergekit-moe, unchanged but for the models. The outputs have to load with no missing, unexpected or mismatched key; the logits of the golden ones
have to be those of what mergekit-moe built.

    python tests/reference/experts.py --aludel target/release/aludel --work /tmp/experts

Needs torch and transformers 5.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers as tf

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "experts"
DOCUMENTED = {
    "sparse upcycling": """
base_model: models/llama-a
gate_mode: random
dtype: bfloat16
experts:
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
  - source_model: models/llama-a
# and then train the sucker!
""",
    "clown car": r"""
base_model: models/mistral-a
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: models/mistral-a
    positive_prompts:
      - "the sun rose over\nthe sea"
      - "the ship"
  - source_model: models/mistral-b
    positive_prompts:
      - "on the morning tide"
  - source_model: models/mistral-c
    positive_prompts:
      - "a storm"
      - "over the mountain"
      - "broke"
""",
    "shared expert": """
base_model: models/qwen2-a
gate_mode: hidden # one of "hidden", "cheap_embed", or "random"
dtype: bfloat16 # output dtype (float32, float16, or bfloat16)
experts:
  - source_model: models/qwen2-b
    positive_prompts:
      - "the ship"
  - source_model: models/qwen2-c
    positive_prompts:
      - "the sea"
shared_experts:
  - source_model: models/qwen2-a
    positive_prompts: # required by Qwen MoE for "hidden" gate mode, otherwise not allowed
      - "the sun"
    # (optional, but recommended:)
    residual_scale: 0.1 # downweight output from shared expert to prevent overcooking the model
""",
}
TOKENS = torch.tensor([[0, 7, 21, 33, 5, 40]])


def computed(folder):
    """The model's logits, and what is wrong with its weights."""
    model, found = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    faults = {key: sorted(map(str, value)) for key, value in found.items() if value}
    with torch.no_grad():
        return model.eval()(TOKENS).logits[0], faults


def built(aludel, recipe, output):
    """What was said where it could not be built."""
    done = subprocess.run([aludel, "moe", recipe, output, "-q", "-f", "--no-sync"], cwd=GOLDEN, capture_output=True, text=True)
    return done.stderr if done.returncode else None


def check_documented(aludel, name, work):
    (work / "recipe.yml").write_text(DOCUMENTED[name])
    output = work / name.replace(" ", "-")
    refusal = built(aludel, work / "recipe.yml", output)
    if refusal:
        return refusal
    logits, faults = computed(output)
    if faults:
        return f"loads with {faults}"
    return None if torch.isfinite(logits).all() else "computes numbers that are not finite"


def check(aludel, case, work):
    recipe, output, reference = GOLDEN / "cases" / case / "recipe.yml", work / case, work / f"{case}-mergekit"
    refusal = built(aludel, recipe, output)
    if refusal:
        return refusal
    shutil.rmtree(reference, ignore_errors=True)
    reference.mkdir()
    shutil.copy(recipe.parent / "expected.safetensors", reference / "model.safetensors")
    shutil.copy(recipe.parent / "config.json", reference)
    (got, faults), (expected, _) = computed(output), computed(reference)
    if faults:
        return f"loads with {faults}"
    difference = (got - expected).abs().max() / expected.abs().max()
    return None if difference < 1e-3 else f"its logits differ by {difference}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--aludel", required=True, type=pathlib.Path)
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    failures = 0
    for case in json.loads((GOLDEN / "cases.json").read_text()):
        if case == "deepseek":
            continue
        reason = check(given.aludel.resolve(), case, given.work.resolve())
        failures += reason is not None
        print(f"{case}: {reason or 'as mergekit'}")
    for name in DOCUMENTED:
        reason = check_documented(given.aludel.resolve(), name, given.work.resolve())
        failures += reason is not None
        print(f"{name}: {reason or 'loads'}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
