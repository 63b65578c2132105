"""Gives models the tokenizers of others with aludel and with mergekit-tokensurgeon 0.1.4, and compares the two row by row.

In: the programs. Out: a line for each case: how far apart rows are at the most, relative to the table's root mean square, and how many differ by more than 1e-5; exit status 1 where rows differ
that should not, or where an output does not load in transformers with all its keys and a row for each token.

    python tests/reference/tokensurgeon.py --aludel target/release/aludel --mergekit mergekit-tokensurgeon --work /tmp/tokensurgeon

Needs torch and transformers, of any version. The models are those of tests/golden/vocabulary.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers as tf
from safetensors.torch import load_file

os.environ["HF_HUB_OFFLINE"] = "1"
MODELS = pathlib.Path(__file__).resolve().parents[1] / "golden" / "vocabulary" / "models"
TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
NEAREST = ["-a", "common_interpolation", "--k", "4"]
# Model, donor, flags, and why rows differ, if they do.
CASES = [
    ("a", "b", ["--k", "4"], None),
    ("a", "b", ["-a", "omp", "--k", "1"], None),
    ("b", "c", ["-a", "omp", "--k", "5"], None),
    ("a-tied", "b", ["--k", "4"], None),
    ("a-bf16", "b-bf16", ["--k", "4"], None),
    ("a", "b", NEAREST, None),
    ("a", "b", [*NEAREST, "--cosine-similarity"], None),
    ("a", "b", [*NEAREST, "--weight-scheme", "barycentric"], None),
    ("a", "b", [*NEAREST, "--weight-scheme", "least_squares"], None),
    ("a", "b", ["-a", "subword"], "pieces of a text that the tokenizer reads only in part"),
    ("a", "b", ["-a", "mean"], None),
    ("a", "b", ["-a", "zero"], None),
    ("a", "b", ["-a", "zero", "--prefix-match", "yes"], None),
]


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def loads(folder):
    model, found = tf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    faults = {key: names for key, names in found.items() if names}
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    return not faults and rows == model.config.vocab_size == len(tokenizer)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--aludel", required=True)
    arguments.add_argument("--mergekit", required=True)
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tf.logging.set_verbosity_error()
    failures = 0
    for model, donor, flags, reason in CASES:
        folders = [given.work / "aludel", given.work / "mergekit"]
        for program, folder in zip([[given.aludel, "tokensurgeon"], [given.mergekit]], folders):
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([*program, MODELS / model, MODELS / donor, folder, *flags], check=True, capture_output=True)
        own, its = map(tensors, folders)
        most, count, all_rows = 0.0, 0, 0
        for name in TABLES:
            if name in its:
                apart = (own[name].float() - its[name].float()).abs().amax(dim=1) / its[name].float().square().mean().sqrt()
                bound = 1e-2 if its[name].dtype == torch.bfloat16 else 1e-5
                most, count, all_rows = max(most, apart.max().item()), count + int((apart > bound).sum()), all_rows + len(apart)
        others = all(torch.equal(own[name], values) for name, values in its.items() if name not in TABLES)
        is_right = set(own) == set(its) and others and (count == 0 or reason is not None) and loads(folders[0])
        failures += not is_right
        why = f" ({reason})" if count and reason else ""
        print(f"{model} {donor} {' '.join(flags)}: {most:.1e}, {count} of {all_rows} rows differ{why}: {'right' if is_right else 'WRONG'}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
