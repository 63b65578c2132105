"""Records tiny seeded models of every family, with what transformers computes from them.

Needs transformers 5 and safetensors. Each folder is a model folder as `save_pretrained` writes it, and beside it
`expected.safetensors`: logits of two documents that do not see each other, the mean cross-entropy of all next tokens in it,
and its gradient for every parameter, under the names of the model folder. Without arguments all cases are recorded, else
those that are named.

    python generate.py [case ...]

`generate.py --old` runs under transformers 4 and records `config-4.json` in each folder: the same config in the spelling
of that version.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
SIZES = dict(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
DOCUMENTS = [[1, 40, 7, 33, 33, 12, 5, 47, 0, 21, 18], [1, 9, 26, 2, 14, 9, 30]]


def rope(kind, theta=10000.0, **values):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **values))


LONG = dict(
    short_factor=[1.0, 1.25],
    long_factor=[1.5, 4.0],
)
CASES = {
    "llama": ("Llama", {}),
    "llama-biases": (
        "Llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rms_norm_eps=1e-3,
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        ),
    ),
    "llama-linear": ("Llama", dict(head_dim=6, **rope("linear", 500.0, factor=2.5))),
    "llama-dynamic": ("Llama", dict(max_position_embeddings=8, head_dim=8, **rope("dynamic", 100.0, factor=3.0))),
    "llama-yarn": (
        "Llama",
        dict(head_dim=12, **rope("yarn", 200.0, factor=4.0, original_max_position_embeddings=8)),
    ),
    "mistral": ("Mistral", dict(sliding_window=5, head_dim=6)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=8, tie_word_embeddings=True, use_sliding_window=False)),
    "smollm3": ("SmolLM3", dict(num_hidden_layers=3, no_rope_layer_interval=2)),
    "phi3": (
        "Phi3",
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            original_max_position_embeddings=8,
            sliding_window=9,
            **rope("longrope", 10000.0, partial_rotary_factor=0.5, **LONG),
        ),
    ),
    "gemma": ("Gemma", dict(head_dim=8, num_key_value_heads=1)),
    "gemma2": (
        "Gemma2",
        dict(
            head_dim=8,
            sliding_window=4,
            query_pre_attn_scalar=12,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(
            num_hidden_layers=3,
            head_dim=8,
            sliding_window=4,
            query_pre_attn_scalar=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
            ),
        ),
    ),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        dict(
            attention_bias=True,
            embedding_multiplier=3.0,
            residual_multiplier=0.4,
            attention_multiplier=0.3,
            logits_scaling=2.0,
        ),
    ),
    "mixtral": (
        "Mixtral",
        dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, intermediate_size=12),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            num_hidden_layers=2,
            head_dim=8,
            num_experts=5,
            num_experts_per_tok=3,
            moe_intermediate_size=10,
            norm_topk_prob=False,
            mlp_only_layers=[1],
        ),
    ),
}


def config_of(transformers, family, keys):
    return getattr(transformers, family + "Config")(**{**SIZES, **keys})


def model_class(transformers, family):
    return getattr(transformers, family.replace("Text", "") + "ForCausalLM")


def record(name):
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(sum(map(ord, name)))
    torch.set_num_threads(1)
    family, keys = CASES[name]
    config = config_of(transformers, family, keys)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = model_class(transformers, family)(config).float()
    model.eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in key:
                parameter.add_(0.2 * noise)
            elif key.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in key or "lm_head" in key:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    logits = [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in DOCUMENTS]
    losses = [
        torch.nn.functional.cross_entropy(rows[:-1].float(), torch.tensor(ids[1:]), reduction="sum")
        for rows, ids in zip(logits, DOCUMENTS)
    ]
    loss = sum(losses) / sum(len(ids) - 1 for ids in DOCUMENTS)
    loss.backward()
    folder = HERE / name
    model.save_pretrained(folder)
    # Saved as weights are, so that gradients get the names and the layout of files.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    gradients = folder / "gradients"
    model.save_pretrained(gradients)
    expected = {f"gradient.{key}": value for key, value in load_file(gradients / "model.safetensors").items()}
    expected["logits"] = torch.cat(logits).detach().contiguous()
    expected["loss"] = loss.detach().reshape(1)
    save_file(expected, folder / "expected.safetensors")
    for file in gradients.iterdir():
        file.unlink()
    gradients.rmdir()
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(name, float(loss), sum(file.stat().st_size for file in folder.iterdir()))


def record_old(name):
    import transformers

    family, keys = CASES[name]
    keys = dict(keys)
    rope = keys.pop("rope_parameters", None)
    if rope and "rope_type" in rope:
        keys["rope_theta"] = rope.pop("rope_theta")
        part = rope.pop("partial_rotary_factor", None)
        if part is not None:
            keys["partial_rotary_factor"] = part
        if rope["rope_type"] == "longrope":
            rope["type"] = rope.pop("rope_type")
        keys["rope_scaling"] = rope
    elif rope:
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        keys["rope_theta"] = rope["full_attention"].pop("rope_theta")
        keys["rope_scaling"] = rope["full_attention"]
    config = config_of(transformers, family, keys)
    config.architectures = [model_class(transformers, family).__name__]
    config.torch_dtype = "float32"
    text = json.dumps(json.loads(config.to_json_string(use_diff=True)), indent=1)
    (HERE / name / "config-4.json").write_text(text + "\n")
    print(name)


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or list(CASES)
    for name in names:
        (record_old if "--old" in sys.argv else record)(name)
