"""Loads merges of mixtures of experts in transformers, and holds what reordering does to what models compute.

Every golden recipe of tests/golden/alignment is merged: the output has to load with no missing, unexpected or mismatched key, and with finite logits.
For each family `b` is merged with weight 1 and `a` with weight 0 under `align_experts`, which is `b` with its experts in another order: its logits
have to be those of `b`.

    python tests/reference/merged_experts.py --aludel target/release/aludel --work /tmp/merged

Needs torch and transformers 5.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers as tf

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "alignment"
TOKENS = torch.tensor([[0, 7, 21, 30, 5, 11]])
TOLERANCE = 1e-5


def computed(folder):
    """The model's logits in f32, and what is wrong with its weights."""
    model, info = tf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, experts_implementation="eager"
    )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    with torch.no_grad():
        return model.eval()(TOKENS).logits, wrong


def merged(aludel, recipe, work):
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    (work / "recipe.yml").write_text(recipe.replace(": models/", f": {GOLDEN}/models/"))
    subprocess.run([aludel, "merge", work / "recipe.yml", out, "-q"], check=True)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aludel", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    failures = 0
    for case in sorted(GOLDEN.glob("cases/*")):
        logits, wrong = computed(merged(given.aludel, (case / "recipe.yml").read_text(), given.work))
        is_right = not wrong and bool(logits.isfinite().all())
        failures += not is_right
        print(f"{case.name}: {'loads' if is_right else wrong or 'logits that are not finite'}")
    for folder in sorted(GOLDEN.glob("models/*-b")):
        family = folder.name[:-2]
        recipe = (
            "merge_method: linear\nalign_experts: true\nmodels:\n"
            f"  - model: models/{family}-a\n    parameters: {{weight: 0}}\n"
            f"  - model: models/{family}-b\n    parameters: {{weight: 1}}\n"
        )
        difference = (computed(merged(given.aludel, recipe, given.work))[0] - computed(folder)[0]).abs().max()
        failures += bool(difference > TOLERANCE)
        print(f"{family}-b with its experts reordered: logits differ by {difference:.1e} at the most")
    sys.exit(f"{failures} failures" if failures else 0)


if __name__ == "__main__":
    main()
