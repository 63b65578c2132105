"""Sends tiny random models through llama.cpp's converter and back through aludel, one per architecture and setting.

Needs: torch, transformers, a llama.cpp source tree (its convert_hf_to_gguf.py and gguf-py), an aludel program.
Not run in CI:

    python tests/reference/gguf_architectures.py --llama-cpp ../llama.cpp --aludel target/release/aludel [NAME ...]

Per model: transformers makes it with random weights, llama.cpp's converter writes it as a GGUF of f32, `aludel convert`
makes a folder of that, and transformers loads both: the names of all weights must be equal, and the largest difference
of weights and of logits is printed. The vocabulary is left out, which aludel warns about. Exits with 1 when logits
differ by more than 1e-5 or anything fails.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
    rope_theta=500000.0,
)
LONG = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    long_factor=[1.0, 1.5, 2.5, 4.25],
    short_factor=[1.0, 1.05, 1.1, 1.2],
    original_max_position_embeddings=256,
)


def configs() -> dict:
    wide = {**SIZES, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    linear = dict(rope_type="linear", factor=4.0, rope_theta=10000.0)
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=1e6)
    granite = dict(attention_multiplier=0.3, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0)
    gemma = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
    return {
        "llama": hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
        "llama-head-width": hf.LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
        "llama-llama3": hf.LlamaConfig(**wide, rope_parameters=LLAMA3),
        "llama-linear": hf.LlamaConfig(**SIZES, rope_parameters=linear),
        "mistral": hf.MistralConfig(**SIZES, sliding_window=None),
        "qwen2": hf.Qwen2Config(**SIZES),
        "qwen2-yarn": hf.Qwen2Config(**SIZES, rope_parameters=yarn),
        "qwen3": hf.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
        "phi3": hf.Phi3Config(**SIZES, original_max_position_embeddings=256),
        "phi3-long": hf.Phi3Config(
            **{**SIZES, "max_position_embeddings": 1024}, original_max_position_embeddings=256, rope_parameters=LONG
        ),
        "gemma": hf.GemmaConfig(**SIZES, head_dim=16),
        "gemma2": hf.Gemma2Config(**SIZES, **gemma),
        "gemma3": hf.Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, **gemma),
        "granite": hf.GraniteConfig(**SIZES, **granite),
        "olmo2": hf.Olmo2Config(**SIZES),
        "starcoder2": hf.Starcoder2Config(**SIZES, sliding_window=None, use_bias=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--aludel", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    converter = load_converter(options.llama_cpp)
    failed = 0
    with tempfile.TemporaryDirectory() as home:
        for name, config in configs().items():
            if not options.names or name in options.names:
                failed += not agrees(name, config, Path(home) / name, converter, options.aludel)
    raise SystemExit(1 if failed else 0)


def load_converter(tree: Path):
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    import convert_hf_to_gguf

    return convert_hf_to_gguf


def without_vocabulary(kind: type) -> None:
    """The models have no tokenizer to convert."""
    kind.set_vocab = lambda self: None
    for inner in kind.__subclasses__():
        without_vocabulary(inner)


def write_gguf(converter, model: Path, file: Path) -> None:
    converter.ModelBase.load_all_models() if hasattr(converter.ModelBase, "load_all_models") else None
    import conversion.llama, conversion.mistral, conversion.qwen, conversion.phi  # noqa: E401
    import conversion.gemma, conversion.granite, conversion.olmo, conversion.starcoder  # noqa: E401
    from conversion.base import TextModel

    without_vocabulary(TextModel)
    logging.disable(logging.WARNING)
    arguments, sys.argv = sys.argv, ["convert", str(model), "--outfile", str(file), "--outtype", "f32"]
    try:
        converter.main()
    finally:
        sys.argv = arguments


def random_model(config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms that are not all ones and logits that are not all alike show what is lost.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(8)
    return model


def agrees(name: str, config, home: Path, converter, aludel: Path) -> bool:
    model, file, out = home / "model", home / "model.gguf", home / "out"
    random_model(config).save_pretrained(model)
    # The converter asks these files which tokenizer it is about to leave out.
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    vocabulary = {str(id): id for id in range(config.vocab_size)}
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    write_gguf(converter, model, file)
    ran = subprocess.run([aludel, "convert", file, out, "--dtype", "f32"], capture_output=True, text=True)
    if ran.returncode:
        print(f"{name}: aludel failed: {ran.stderr.strip()}")
        return False
    load = lambda folder: hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return compare(name, load(model), load(out))


def compare(name: str, theirs, ours) -> bool:
    left, right = theirs.state_dict(), ours.state_dict()
    if left.keys() != right.keys():
        print(f"{name}: these weights are in one only: {sorted(left.keys() ^ right.keys())}")
        return False
    weights = max((left[key] - right[key]).abs().max().item() for key in left)
    ids = torch.randint(3, 64, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = (theirs(ids).logits - ours(ids).logits).abs().max().item()
    print(f"{name}: weights differ by at most {weights:g}, logits by {logits:g}")
    return logits <= 1e-5


if __name__ == "__main__":
    main()
