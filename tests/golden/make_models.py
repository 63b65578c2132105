"""Write the tiny model folders of the goldens: models/<name>/{config.json, model.safetensors}, and statistics/ of some.

In:  nothing but the table at the end. Out: Llama folders of a few KB with weights drawn from a generator seeded by the family
and model name. No tokenizer: the goldens are about tensors. Overwrites what is there, byte for byte the same.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MODELS = Path(__file__).parent / "models"
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The sizes of one family of models; families cannot be merged with one another."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    tied: bool = False
    head_dim: int | None = None
    shared_heads: int | None = None

    def tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, wide = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            queries, keys = self.heads * self.width(), (self.shared_heads or self.heads) * self.width()
            for name, outputs in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (outputs, hidden)
                if self.shared_heads:
                    shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (outputs,)
            shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, queries)
            shapes[f"{prefix}.mlp.gate_proj.weight"] = (wide, hidden)
            shapes[f"{prefix}.mlp.up_proj.weight"] = (wide, hidden)
            shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, wide)
            shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, hidden)
        return shapes

    def width(self) -> int:
        return self.head_dim or self.hidden // self.heads

    def config(self, dtype: torch.dtype) -> dict:
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 64,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.shared_heads or self.heads,
            **({"head_dim": self.head_dim, "attention_bias": True} if self.head_dim else {}),
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": self.tied,
            "torch_dtype": DTYPE_NAMES[dtype],
            "vocab_size": self.vocabulary,
        }


SMALL = Shape(layers=3, hidden=8, intermediate=12, heads=2, vocabulary=16)
TIED = Shape(layers=3, hidden=8, intermediate=12, heads=2, vocabulary=16, tied=True)
ODD = Shape(layers=2, hidden=7, intermediate=13, heads=1, vocabulary=41)
ONE = Shape(layers=1, hidden=1, intermediate=3, heads=1, vocabulary=5)
GROUPED = Shape(layers=1, hidden=6, intermediate=5, heads=4, vocabulary=9, head_dim=3, shared_heads=2)
WIDE = Shape(layers=1, hidden=8, intermediate=12, heads=2, vocabulary=401, tied=True)


def generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def base(shape: Shape, name: str) -> Weights:
    """Matrices around 0 with spread 0.05, norms around 1."""
    random = generator(name)
    weights = {}
    for tensor, size in shape.tensors().items():
        centre, spread = (1.0, 0.1) if "norm" in tensor else (0.0, 0.05)
        weights[tensor] = (centre + spread * random.standard_normal(size)).astype(np.float32)
    return weights


def tuned(start: Weights, name: str, spread: float) -> Weights:
    """The start plus noise: a stand-in for a fine-tune."""
    random = generator(name)
    return {
        tensor: (values + spread * random.standard_normal(values.shape)).astype(np.float32)
        for tensor, values in start.items()
    }


def coarse(start: Weights) -> Weights:
    """Round to multiples of 1/256, so that adding and subtracting multiples of 1/64 is exact."""
    return {tensor: (np.round(values * 256) / 256).astype(np.float32) for tensor, values in start.items()}


def equal_steps(start: Weights, name: str) -> Weights:
    """Add a step of three possible magnitudes and either sign: most magnitudes at any threshold are equal."""
    random = generator(name)
    return {
        tensor: values
        + (random.choice([1, 2, 3], values.shape) * random.choice([-1, 1], values.shape) / 64).astype(np.float32)
        for tensor, values in start.items()
    }


def with_zeros(start: Weights, *parts: str) -> Weights:
    return {
        tensor: np.zeros_like(values) if any(part in tensor for part in parts) else values
        for tensor, values in start.items()
    }


def every_fourth(values: np.ndarray) -> np.ndarray:
    return np.arange(values.size).reshape(values.shape) % 4 == 0


def write(name: str, shape: Shape, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(dtype), indent=2) + "\n")
    tensors = {tensor: torch.from_numpy(values).to(dtype).contiguous() for tensor, values in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fisher(weights: Weights, name: str) -> Weights:
    """Squares over several orders of magnitude, and some elements of which nothing is known."""
    random = generator(name)
    return {
        tensor: (np.exp(3 * random.standard_normal(values.shape)) * (random.random(values.shape) > 0.1)).astype(np.float32)
        for tensor, values in weights.items()
    }


def gram(weights: Weights, name: str) -> Weights:
    """X^T X of more inputs than there are columns, one column of which is always 0, for every linear layer."""
    random = generator(name)
    grams = {}
    for tensor, values in weights.items():
        if "proj" in tensor:
            inputs = random.standard_normal((3 * values.shape[1], values.shape[1])) + 0.5
            inputs[:, 0] = 0 if "down_proj" in tensor else inputs[:, 0]
            grams[tensor] = (inputs.T @ inputs).astype(np.float32)
    return grams


def write_statistics(name: str, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
    folder = MODELS.parent / "statistics"
    folder.mkdir(exist_ok=True)
    tensors = {tensor: torch.from_numpy(values).to(dtype).contiguous() for tensor, values in weights.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})


def main() -> None:
    start = base(SMALL, "base")
    a, b, c = (tuned(start, name, 0.02) for name in ("a", "b", "c"))
    for name, weights in [("base", start), ("a", a), ("b", b), ("c", c)]:
        write(name, SMALL, weights)
        write(f"{name}-bf16", SMALL, weights, torch.bfloat16)
        write(f"{name}-f16", SMALL, weights, torch.float16)
    for name in ("d", "e", "f", "g"):
        write(name, SMALL, tuned(start, name, 0.02))
    write("base-copy", SMALL, start)
    for name in ("a-near", "a-near-2"):
        write(name, SMALL, tuned(a, name, 1e-4))
    write("part", SMALL, {tensor: np.where(every_fourth(a[tensor]), b[tensor], a[tensor]) for tensor in a})
    write("a-zeros", SMALL, with_zeros(a, "k_proj", "layers.1.input_layernorm"))
    steps = coarse(start)
    write("equal-base", SMALL, steps)
    for name in ("equal-a", "equal-b"):
        write(name, SMALL, equal_steps(steps, name))
    grouped = base(GROUPED, "grouped-base")
    write("grouped-base", GROUPED, grouped)
    for name in ("grouped-a", "grouped-b", "grouped-c"):
        write(name, GROUPED, tuned(grouped, name, 0.02))
    for name, weights in [("a", a), ("b", b), ("c", c)]:
        write_statistics(f"fisher-{name}", fisher(weights, f"fisher-{name}"))
        write_statistics(f"gram-{name}", gram(weights, f"gram-{name}"))
    matrices = {tensor: values for tensor, values in a.items() if "norm" not in tensor}
    write_statistics("fisher-a-matrices", fisher(matrices, "fisher-a"), torch.bfloat16)
    write_statistics("fisher-b-matrices", fisher({tensor: b[tensor] for tensor in matrices}, "fisher-b"))
    write_family("tied", TIED, 0.02)
    write_family("odd", ODD, 0.02)
    write_family("one", ONE, 0.02)
    write_family("wide", WIDE, 0.02)


def write_family(family: str, shape: Shape, spread: float) -> None:
    """A base and two fine-tunes that go half of their way together, so that their task vectors have a positive cosine."""
    start = base(shape, f"{family}-base")
    first = tuned(start, f"{family}-a", spread)
    write(f"{family}-base", shape, start)
    write(f"{family}-a", shape, first)
    write(f"{family}-b", shape, tuned(first, f"{family}-b", spread))


if __name__ == "__main__":
    main()
