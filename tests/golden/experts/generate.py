"""Records mixtures of experts: what mergekit-moe 0.1.4 builds of tiny dense models.

In:  nothing but the tables below. Out: models/<name>/, seeded models of four families with one tokenizer; for each case
cases/<case>/recipe.yml, expected.safetensors and config.json as mergekit writes them; cases.json: how close gates have to come, and the
logits that transformers computes of the output. Run as `python generate.py [CASE ...]`.

One thing is put in the place of mergekit's own: it loads the base model in bfloat16 to compute hidden states, here it is float32. Factors are
powers of two, as mergekit multiplies in the type that weights are stored in; of Mixtral's experts it forgets them, so that no case has any.
"""

import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers as tf
import yaml
from mergekit.moe import router
from mergekit.moe.config import MoEMergeConfig
from mergekit.options import MergeOptions
from mergekit.scripts.moe import build
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
MERGEKIT = "0.1.4"
TEXT = "the sun rose over the sea and the ship sailed on the morning tide while a storm over the mountain broke"
SHAPE = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
)

FAMILIES = {
    "llama": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**SHAPE, rope_theta=5000.0)),
    "mistral": (tf.MistralForCausalLM, lambda: tf.MistralConfig(**SHAPE, sliding_window=None, head_dim=8)),
    "qwen2": (tf.Qwen2ForCausalLM, lambda: tf.Qwen2Config(**{**SHAPE, "tie_word_embeddings": True})),
    "qwen3": (tf.Qwen3ForCausalLM, lambda: tf.Qwen3Config(**SHAPE, head_dim=8)),
}

POSITIVE = {"a": ["the sun rose"], "b": ["a storm", "the mountain"], "c": ["ship sailed on"]}


def expert(family, name, **more):
    return {"source_model": f"models/{family}-{name}", "positive_prompts": POSITIVE[name], **more}


def recipe(family, names, **more):
    experts = [expert(family, name) for name in names]
    return {"base_model": f"models/{family}-a", "gate_mode": "cheap_embed", "experts": experts, **more}


CASES = {
    "mixtral": recipe("llama", "abc", dtype="bfloat16"),
    "mixtral-negative": {
        "base_model": "models/llama-a", "gate_mode": "cheap_embed", "dtype": "float32", "experts_per_token": 1,
        "experts": [
            expert("llama", "b", negative_prompts=["the sea", "morning"]),
            expert("llama", "c", negative_prompts=["tide"]),
        ],
    },
    "mixtral-hidden": recipe("mistral", "ab", gate_mode="hidden", dtype="float32"),
    "mixtral-hidden-average": recipe("llama", "ac", gate_mode="hidden_avg", dtype="float32"),
    "qwen": recipe(
        "qwen2", "bc", dtype="float16",
        shared_experts=[{"source_model": "models/qwen2-c", "positive_prompts": ["and the"], "residual_scale": 0.25}],
    ),
    "qwen-of-llama": recipe(
        "llama", "bc", dtype="float32", architecture="qwen",
        shared_experts=[{"source_model": "models/llama-b", "positive_prompts": ["and the"], "negative_prompts": ["over"]}],
    ),
    "qwen3": recipe("qwen3", "abc", gate_mode="hidden_last", dtype="float32", experts_per_token=3),
    "deepseek": recipe("llama", "abc", dtype="float32", architecture="deepseek", shared_experts=[{"source_model": "models/llama-c"}]),
}

# Gates that are sums of embeddings differ in the order of sums; hidden states by a whole forward pass.
TOLERANCES = {"hidden": 2e-5, "cheap_embed": 1e-6}


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=SHAPE["vocab_size"], special_tokens=special, show_progress=False))
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def make_models():
    shutil.rmtree(HERE / "models", ignore_errors=True)
    for family, (architecture, config) in FAMILIES.items():
        for seed, name in enumerate("abc"):
            torch.manual_seed(100 * len(family) + seed)
            model = architecture(config())
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn_like(parameter)
                    parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 and parameter.mean() == 1 else 0.2 * noise)
            folder = HERE / "models" / f"{family}-{name}"
            model.to(torch.bfloat16).save_pretrained(folder)
            (folder / "generation_config.json").unlink()
        tokenizer().save_pretrained(HERE / "models" / f"{family}-a")


def in_float32(load):
    def loaded(*arguments, **keys):
        return load(*arguments, **{**keys, "torch_dtype": torch.float32, "device_map": None})

    return loaded


def logits(folder):
    """Of the output; DeepSeek's needs code from the hub."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([[0, 7, 21, 33, 5, 40]])).logits[0, -1, :8].tolist()


def record(case):
    folder = HERE / "cases" / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "recipe.yml").write_text(yaml.safe_dump(CASES[case], sort_keys=False))
    with tempfile.TemporaryDirectory() as output:
        build(MoEMergeConfig.model_validate(CASES[case]), output, MergeOptions(), device="cpu")
        tensors = {}
        for file in Path(output).glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / "expected.safetensors")
        shutil.copy(Path(output) / "config.json", folder / "config.json")
        kind = CASES[case]["gate_mode"].split("_")[0]
        entry = {"tolerance": TOLERANCES["hidden" if kind == "hidden" else "cheap_embed"]}
        if case != "deepseek":
            entry["logits"] = logits(output)
        return entry


def main():
    assert version("mergekit") == MERGEKIT, f"recorded with mergekit {MERGEKIT}"
    os.chdir(HERE)
    router.AutoModelForCausalLM.from_pretrained = in_float32(tf.AutoModelForCausalLM.from_pretrained)
    chosen = sys.argv[1:]
    if not chosen:
        make_models()
    file = HERE / "cases.json"
    known = json.loads(file.read_text()) if chosen else {}
    for case in chosen or CASES:
        known[case] = record(case)
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
