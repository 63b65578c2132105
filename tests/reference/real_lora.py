"""Measure what adapters of one pair of models lack: real_lora.py BASE TUNED ADAPTER [ADAPTER ...].

In:  two model folders, and adapters of the first that were extracted from the two, by whatever program, with single files of weights.
Out: a line for each adapter: the relative error |D - BA| / |D| over the tensors that all of them have factors of, in f64, the ranks, and the bytes of the
adapter. The products are made by torch; nothing of aludel takes part.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def main() -> None:
    base, tuned, *adapters = map(Path, sys.argv[1:])
    factors = {adapter: load_file(adapter / "adapter_model.safetensors") for adapter in adapters}
    modules = set.intersection(*({name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")} for tensors in factors.values()))
    lacking, total = dict.fromkeys(adapters, 0.0), 0.0
    with safe_open(base / "model.safetensors", "pt") as a, safe_open(tuned / "model.safetensors", "pt") as b:
        for module in sorted(modules):
            name = module.removeprefix("base_model.model.") + ".weight"
            delta = b.get_tensor(name).double() - a.get_tensor(name).double()
            total += float((delta**2).sum())
            for adapter, tensors in factors.items():
                product = tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()
                config = json.loads((adapter / "adapter_config.json").read_text())
                left = delta - product * config["lora_alpha"] / config["r"]
                lacking[adapter] += float((left**2).sum())
    for adapter, tensors in factors.items():
        ranks = sorted({tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")})
        size = (adapter / "adapter_model.safetensors").stat().st_size
        print(f"{adapter}: error {(lacking[adapter] / total) ** 0.5:.6f} over {len(modules)} tensors, ranks {ranks}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
