"""Records what peft makes of tiny seeded models and adapters.

Writes, beside this script:
  models/<model>/            llama, tied (llama with one matrix for embedding and head), qwen2 (with biases), gpt2
  adapters/<case>/           adapters as peft saves them
  merged/<case>.safetensors  the tensors that `merge_and_unload` changes or adds, in float32
  weighted/<case>/           what `add_weighted_adapter` makes of two adapters, as peft saves it
  cases.json                 which model each adapter is for, and the arguments of each combination

Run with peft 0.21, transformers 5 and torch 2.15: python generate.py
"""

import json
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
DECODER = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)


def models():
    torch.manual_seed(7)
    yield "llama", LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False))
    yield "tied", LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True))
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=False))
    gpt2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    yield "gpt2", GPT2LMHeadModel(gpt2)


CASES = {
    "plain": ("llama", dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])),
    "patterns": ("llama", dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj"], use_rslora=True,
        rank_pattern={"q_proj": 2, "layers.1.self_attn.k_proj": 3},
        alpha_pattern={"model.layers.0.mlp.gate_proj": 3, "o_proj": 5},
    )),
    "dora": ("llama", dict(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"], use_dora=True)),
    "embedding": ("llama", dict(r=2, lora_alpha=3, target_modules=["embed_tokens", "lm_head", "v_proj"])),
    "saved": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])),
    "tied-embedding": ("tied", dict(r=2, lora_alpha=3, target_modules=["embed_tokens"])),
    "tied-head": ("tied", dict(r=2, lora_alpha=3, target_modules=["lm_head"])),
    "bias-all": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"], bias="all")),
    "bias-lora-only": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"], bias="lora_only")),
    "lora-bias": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_bias=True)),
    "conv1d": ("gpt2", dict(r=3, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "conv1d-dora": ("gpt2", dict(
        r=3, lora_alpha=4, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True, use_dora=True,
    )),
    "second": ("llama", dict(r=4, lora_alpha=2, target_modules=["q_proj", "v_proj", "up_proj"])),
    "third": ("llama", dict(r=2, lora_alpha=5, target_modules=["q_proj", "down_proj", "embed_tokens"])),
}

WEIGHTED = {
    "linear": (["plain", "second"], dict(weights=[0.7, 0.4], combination_type="linear")),
    "linear-negative": (["plain", "second"], dict(weights=[0.7, -0.4], combination_type="linear")),
    "cat": (["plain", "second", "third"], dict(weights=[0.7, -0.4, 1.5], combination_type="cat")),
    "svd": (["plain", "second", "third"], dict(weights=[0.7, 0.4, 1.0], combination_type="svd", svd_rank=5)),
    "svd-default": (["plain", "third"], dict(weights=[1.0, 0.5], combination_type="svd")),
    "ties": (["plain", "second"], dict(weights=[0.7, 0.4], combination_type="ties", density=0.5)),
    "ties-frequency": (["plain", "second"], dict(
        weights=[0.7, 0.4], combination_type="ties", density=0.6, majority_sign_method="frequency",
    )),
    "magnitude_prune": (["plain", "second"], dict(weights=[0.7, 0.4], combination_type="magnitude_prune", density=0.4)),
}


def randomised(model, generator):
    for name, parameter in model.named_parameters():
        adapts = "lora_" in name or parameter.requires_grad
        if adapts and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        elif "magnitude" in name:
            parameter.data = parameter.data * (1 + 0.1 * torch.randn(parameter.shape, generator=generator))


def load(name):
    classes = {"llama": LlamaForCausalLM, "tied": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "gpt2": GPT2LMHeadModel}
    return classes[name].from_pretrained(HERE / "models" / name, dtype=torch.float32)


def record_case(case, model_name, arguments, generator):
    model = get_peft_model(load(model_name), LoraConfig(**arguments, init_lora_weights=False, task_type="CAUSAL_LM"))
    randomised(model, generator)
    folder = HERE / "adapters" / case
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"models/{model_name}"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # From disk, so that what was not saved is not in the expectation.
    merged = PeftModel.from_pretrained(load(model_name), folder).merge_and_unload()
    base = load_file(HERE / "models" / model_name / "model.safetensors")
    changed = {
        name: value.contiguous().clone() for name, value in merged.state_dict().items()
        if name not in base or not torch.equal(base[name], value)
    }
    is_tied = "lm_head.weight" not in base
    if is_tied and torch.equal(changed.get("lm_head.weight", base_embedding(base)), embedding(merged)):
        changed.pop("lm_head.weight", None)
    save_file(changed, HERE / "merged" / f"{case}.safetensors")


def base_embedding(base):
    return next(value for name, value in base.items() if name.endswith(("embed_tokens.weight", "wte.weight")))


def embedding(model):
    return model.get_input_embeddings().weight.data


def record_weighted(case, names, arguments):
    model = PeftModel.from_pretrained(load("llama"), HERE / "adapters" / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(HERE / "adapters" / name, adapter_name=name)
    model.add_weighted_adapter(names, adapter_name="merged", **arguments)
    model.save_pretrained(HERE / "weighted", selected_adapters=["merged"], save_embedding_layers=False)
    target = HERE / "weighted" / case
    (HERE / "weighted" / "merged").rename(target)
    (HERE / "weighted" / "README.md").unlink(missing_ok=True)
    config = json.loads((target / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "models/llama"
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    warnings.filterwarnings("ignore")
    for folder in ["models", "adapters", "merged", "weighted"]:
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for folder in ["merged", "weighted"]:
        (HERE / folder).mkdir()
    for name, model in models():
        model.save_pretrained(HERE / "models" / name)
        (HERE / "models" / name / "generation_config.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(11)
    for case, (model, arguments) in CASES.items():
        record_case(case, model, arguments, generator)
    for case, (names, arguments) in WEIGHTED.items():
        record_weighted(case, names, arguments)
    cases = {
        "merged": {case: model for case, (model, _) in CASES.items()},
        "weighted": {case: {"adapters": names, **arguments} for case, (names, arguments) in WEIGHTED.items()},
    }
    (HERE / "cases.json").write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
