"""Time merges of models that lie in a GPU's memory, by torch, an operation at a time: the reference of `resident-gpu`.

In:  a method (linear or ties), weights, and the folder of each model; the base first for ties.
Out: one JSON object on standard output: seconds of each merge of all tensors.
Every operation is a kernel of its own, and what lies between two of them goes through the device's memory. The thresholds of ties, for a density of
0.5, are found before anything is timed, as they stay what they are while weights change. With --compile torch.compile makes kernels of the whole instead.
"""

import argparse
import json
import pathlib
import time

import torch
from safetensors.torch import load_file


def load(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file, "cuda").items()}


def linear(models, weights, _):
    total = weights[0] * models[0].float()
    for weight, model in zip(weights[1:], models[1:]):
        total = total + weight * model.float()
    return total.bfloat16()


def ties(models, weights, thresholds):
    base = models[0].float()
    kept = []
    for model, weight, threshold in zip(models[1:], weights, thresholds):
        change = model.float() - base
        kept.append(weight * torch.where(change.abs() >= threshold, change, 0.0))
    sign = torch.sign(sum(kept[1:], kept[0]))
    total, share = torch.zeros_like(base), torch.zeros_like(base)
    for change, weight in zip(kept, weights):
        agrees = (torch.sign(change) == sign) & (change != 0)
        total = total + torch.where(agrees, change, 0.0)
        share = share + torch.where(agrees, weight, 0.0)
    return (base + torch.where(share > 0, total / share, 0.0)).bfloat16()


def threshold(model, base):
    magnitudes = (model.float() - base.float()).abs().flatten()
    return torch.sort(magnitudes).values[magnitudes.numel() // 2].item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=("linear", "ties"))
    parser.add_argument("--weights", type=lambda text: [float(word) for word in text.split(",")], required=True)
    parser.add_argument("--merges", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    models = [load(folder) for folder in arguments.folders]
    merge = {"linear": linear, "ties": ties}[arguments.method]
    if arguments.compile:
        merge = torch.compile(merge, dynamic=False)
    is_ties = arguments.method == "ties"
    thresholds = {
        name: [threshold(model[name], models[0][name]) for model in models[1:]] if is_ties else None
        for name in models[0]
    }
    seconds = []
    merged = {}
    for _ in range(arguments.merges):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for name in models[0]:
            merged[name] = merge([model[name] for model in models], arguments.weights, thresholds[name])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"step_seconds": seconds, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
