"""Write tiny mixtures of experts, and the order of experts that scipy finds for each pair.

In:  the table of families. Out: models/<family>-{a,b,c}/{config.json, model.safetensors} and orders.json. `a` and `c` are drawn from generators of
their own; `b` is `a` with noise and its experts in another order. Orders are those of `b` and `c` as `a` has them: for each place the expert
that takes it, by scipy.optimize.linear_sum_assignment over squared distances in f64 of everything that moves with an expert. Where routers
choose groups first, groups are assigned to groups by the best that each pair can do. Needs transformers 5 and scipy.
"""

import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

ROOT = Path(__file__).resolve().parent
EXPERTS = 8
COMMON = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
MOE = {"moe_intermediate_size": 8, "num_experts": EXPERTS}
FAMILIES = {
    "mixtral": (tf.MixtralConfig, torch.bfloat16, {"intermediate_size": 8, "num_local_experts": EXPERTS}),
    "qwen2": (tf.Qwen2MoeConfig, torch.float16, {**MOE, "shared_expert_intermediate_size": 12}),
    "qwen3": (tf.Qwen3MoeConfig, torch.float32, {**MOE, "head_dim": 8}),
    # The layout that transformers 5 computes with: one tensor for all experts.
    "stacked": (tf.Qwen3MoeConfig, torch.float32, {**MOE, "head_dim": 8}),
    "deepseek": (
        tf.DeepseekV3Config,
        torch.bfloat16,
        {
            "moe_intermediate_size": 8,
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "num_key_value_heads": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "q_lora_rank": None,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 4,
        },
    ),
    "gpt-oss": (tf.GptOssConfig, torch.bfloat16, {"intermediate_size": 8, "num_local_experts": EXPERTS, "head_dim": 8}),
}


def main() -> None:
    shutil.rmtree(ROOT / "models", ignore_errors=True)
    orders = {}
    for family in FAMILIES:
        models = {name: drawn(family, name) for name in "ac"}
        generator = torch.Generator().manual_seed(zlib.crc32(f"{family}-b".encode()))
        models["b"] = permuted(with_noise(models["a"], generator), generator, groups(family))
        shutil.copytree(ROOT / "models" / f"{family}-a", ROOT / "models" / f"{family}-b")
        for name, tensors in models.items():
            save_file(tensors, ROOT / "models" / f"{family}-{name}" / "model.safetensors", metadata={"format": "pt"})
        for name in "bc":
            orders[f"{family}-{name}"] = {
                block: order(models["a"], models[name], block, groups(family)) for block in blocks(models["a"])
            }
    lines = (f"  {json.dumps(model)}: {json.dumps(of_model)}" for model, of_model in orders.items())
    (ROOT / "orders.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def groups(family: str) -> int:
    return FAMILIES[family][2].get("n_group", 1)


def drawn(family: str, name: str) -> dict[str, torch.Tensor]:
    config, dtype, settings = FAMILIES[family]
    config = config(**{**COMMON, **settings, "dtype": dtype})
    folder = ROOT / "models" / f"{family}-{name}"
    tf.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    for file in folder.glob("generation_config.json"):
        file.unlink()
    # Both names of the number of experts: mergekit's transformers knows the earlier one.
    written = json.loads((folder / "config.json").read_text())
    if "num_local_experts" in written and family in ("qwen2", "qwen3", "stacked"):
        written["num_experts"] = written["num_local_experts"]
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    generator = torch.Generator().manual_seed(zlib.crc32(f"{family}-{name}".encode()))
    tensors = {}
    for tensor, value in sorted(load_file(folder / "model.safetensors").items()):
        values = torch.randn(value.shape, generator=generator) * 0.2
        tensors[tensor] = (values + ("norm" in tensor)).to(value.dtype)
    return stacked(tensors) if family == "stacked" else tensors


def stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as `gate_up_proj` [experts, 2 wide, hidden] and `down_proj` [experts, hidden, wide]."""
    out = {name: value for name, value in tensors.items() if ".experts." not in name}
    for block in blocks(tensors):
        part = lambda expert, name: tensors[f"{block}.experts.{expert}.{name}.weight"]  # noqa: E731
        both = [torch.cat([part(e, "gate_proj"), part(e, "up_proj")]) for e in range(EXPERTS)]
        out[f"{block}.experts.gate_up_proj"] = torch.stack(both)
        out[f"{block}.experts.down_proj"] = torch.stack([part(e, "down_proj") for e in range(EXPERTS)])
    return out


def with_noise(tensors: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    noise = lambda value: torch.randn(value.shape, generator=generator) * 0.05  # noqa: E731
    return {name: (value.float() + noise(value)).to(value.dtype) for name, value in tensors.items()}


def permuted(tensors: dict[str, torch.Tensor], generator: torch.Generator, groups: int) -> dict[str, torch.Tensor]:
    """The experts of every layer in an order drawn at random, groups kept together."""
    for block in blocks(tensors):
        size = EXPERTS // groups
        of_groups = torch.randperm(groups, generator=generator).tolist()
        drawn = [g * size + e for g in of_groups for e in torch.randperm(size, generator=generator).tolist()]
        tensors = reordered(tensors, block, drawn)
    return tensors


def reordered(tensors: dict[str, torch.Tensor], block: str, order: list[int]) -> dict[str, torch.Tensor]:
    """The experts of one layer in another order: for each place the expert that takes it."""
    out = dict(tensors)
    for name in moving(tensors, block):
        apart = re.fullmatch(rf"({re.escape(block)}\.experts\.)(\d+)(\..*)", name)
        if apart:
            before, place, after = apart.groups()
            out[name] = tensors[f"{before}{order[int(place)]}{after}"]
        else:
            out[name] = tensors[name][order].clone()
    return out


def blocks(tensors: dict[str, torch.Tensor]) -> list[str]:
    return list(dict.fromkeys(name.split(".experts.")[0] for name in sorted(tensors) if ".experts." in name))


def moving(tensors: dict[str, torch.Tensor], block: str) -> list[str]:
    """What belongs to the experts of a layer one by one."""
    beside = (f"{block}.gate.", f"{block}.router.", f"{block}.experts.")
    return [name for name in sorted(tensors) if name.startswith(beside)]


def rows(tensors: dict[str, torch.Tensor], block: str) -> np.ndarray:
    """A row of everything that moves for each expert."""
    parts: list[list[np.ndarray]] = [[] for _ in range(EXPERTS)]
    for name in moving(tensors, block):
        apart = re.fullmatch(rf"{re.escape(block)}\.experts\.(\d+)\..*", name)
        value = tensors[name].double().numpy()
        if apart:
            parts[int(apart.group(1))].append(value.reshape(-1))
        else:
            for expert in range(EXPERTS):
                parts[expert].append(value[expert].reshape(-1))
    return np.stack([np.concatenate(part) for part in parts])


def order(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], block: str, groups: int) -> list[int]:
    a_rows, b_rows = rows(a, block), rows(b, block)
    distance = ((a_rows[:, None, :] - b_rows[None, :, :]) ** 2).sum(-1)
    size = EXPERTS // groups
    cut = lambda g, h: distance[g * size : (g + 1) * size, h * size : (h + 1) * size]  # noqa: E731
    within = [[linear_sum_assignment(cut(g, h)) for h in range(groups)] for g in range(groups)]
    totals = np.array([[cut(g, h)[within[g][h]].sum() for h in range(groups)] for g in range(groups)])
    of_groups = linear_sum_assignment(totals)[1]
    return [int(of_groups[g] * size + e) for g in range(groups) for e in within[g][of_groups[g]][1]]


if __name__ == "__main__":
    main()
