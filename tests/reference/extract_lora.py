"""Hold adapters that aludel extracts to peft and mergekit: extract_lora.py ALUDEL WORK [MERGEKIT_EXTRACT_LORA].

In:  ALUDEL, the built program; WORK, a folder for tiny models; mergekit-extract-lora, from wherever it is installed.
Out: for each of several pairs of models and settings: whether peft loads the adapter with no missing and no unexpected key, how far logits of
base and adapter lie from the fine-tuned model's, the error that aludel states, the best error of that rank (numpy, in f64), and
mergekit's on the same files. Ends with an error where keys do not fit, where the stated error is not the one measured, where it is more than a
hundredth above the best, or where an exact adapter does not give the fine-tuned model's logits.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

DECODER = dict(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)


def models(name: str):
    torch.manual_seed(5)
    make = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False)),
        "tied": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=False)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=64)),
    }[name]
    base, tuned = make(), make()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn_like(parameter) * 0.02
            if parameter.dim() == 2:
                low = torch.randn(parameter.shape[0], 4) @ torch.randn(4, parameter.shape[1]) * 0.02
                noise = low + 0.2 * noise
            parameter += noise
    return base.eval(), tuned.eval()


def best(base: dict, tuned: dict, extracted: list) -> float:
    """The least error over the tensors with factors, each of its rank."""
    lacking = total = 0.0
    for entry in extracted:
        delta = (tuned[entry["tensor"]].double() - base[entry["tensor"]].double()).numpy()
        values = np.linalg.svd(delta, compute_uv=False)
        lacking += (values[entry["rank"]:] ** 2).sum()
        total += (values**2).sum()
    return float(np.sqrt(lacking / total))


def measured(base: dict, tuned: dict, adapted: dict, extracted: list) -> float:
    lacking = total = 0.0
    for entry in extracted:
        name = entry["tensor"]
        lacking += float(((tuned[name].double() - adapted[name].double()) ** 2).sum())
        total += float(((tuned[name].double() - base[name].double()) ** 2).sum())
    return float(np.sqrt(lacking / total))


def load(folder: Path, adapter: Path | None = None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected|keys).*")
            model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 40, 7, 33, 33, 12, 5, 47, 0, 21, 18]])).logits


def compare(aludel: str, mergekit: str | None, work: Path, name: str, flags: list) -> bool:
    base, tuned = models(name)
    base.save_pretrained(work / name / "base")
    tuned.save_pretrained(work / name / "tuned")
    out = work / name / "-".join(["out", *flags]).replace("--", "")
    command = [aludel, "extract-lora", work / name / "tuned", work / name / "base", out, "--json", "--force", *flags]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    adapted = load(work / name / "base", out)
    expected = logits(tuned)
    apart = float((logits(adapted) - expected).norm() / expected.norm())
    changed = float((logits(base) - expected).norm() / expected.norm())
    merged = adapted.merge_and_unload().state_dict()
    weights = [model.state_dict() for model in (base, tuned)]
    optimum, got = best(*weights, report["extracted"]), measured(*weights, merged, report["extracted"])
    squares = [(entry["norm"], entry["error"]) for entry in report["extracted"]]
    stated = np.sqrt(sum((norm * error) ** 2 for norm, error in squares) / sum(norm**2 for norm, _ in squares))
    text = f"{name} {' '.join(flags)}: logits {apart:.2e} apart ({changed:.2e} without), error {stated:.4e} stated, {got:.4e} by peft, {optimum:.4e} at best"
    is_exact = optimum < 1e-5
    good = abs(stated - got) < 1e-5 + 1e-3 * got and got < 1.01 * optimum + 1e-5 and (apart < 1e-4 if is_exact else apart < changed)
    if mergekit and "--rank" in flags:
        theirs = work / name / "mergekit"
        rank = flags[flags.index("--rank") + 1]
        command = [mergekit, "--model", work / name / "tuned", "--base-model", work / name / "base", "--out-path", theirs, "--max-rank", rank]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        text += f"; mergekit {errors_of(theirs, weights, report['extracted'])}" if done.returncode == 0 else "; mergekit fails"
    print(text, "" if good else "  <- WRONG")
    return good


def errors_of(adapter: Path, weights: list, extracted: list) -> str:
    """The error of mergekit's factors over the same tensors, those that it has not counted as wholly lacking."""
    base, tuned = weights
    tensors = load_file(adapter / "adapter_model.safetensors")
    lacking = total = 0.0
    for entry in extracted:
        module = "base_model.model." + entry["tensor"].removesuffix(".weight")
        delta = tuned[entry["tensor"]].double() - base[entry["tensor"]].double()
        a, b = (tensors.get(f"{module}.lora_{side}.weight") for side in "AB")
        saved = tensors.get(f"{module}.weight")
        left = delta * 0 if saved is not None else delta - (b.double() @ a.double() if a is not None else 0)
        lacking, total = lacking + float((left**2).sum()), total + float((delta**2).sum())
    return f"{np.sqrt(lacking / total):.4e}"


def main() -> None:
    aludel, work, *rest = sys.argv[1:]
    mergekit = rest[0] if rest else None
    cases = [
        (name, flags)
        for name in ("gpt2", "llama", "tied", "qwen2")
        for flags in (["--rank", "8"], ["--rank", "64"], ["--rank", "64", "--embed-lora"], ["--error", "0.1"])
    ]
    done = [compare(aludel, mergekit, Path(work), name, flags) for name, flags in cases]
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
