"""Records what transformers writes as config.json of a model whose embedding has been resized.

Writes, beside this script:
  configs.json   pairs of configs: as a checkpoint has it, and where the number of tokens is after `resize_token_embeddings(96)`

Run with transformers 5 and torch 2.15: python configs.py
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

HERE = Path(__file__).parent
TEXT = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)


def configs():
    for text in ({}, {"vocab_size": 90}):
        yield {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **TEXT, **text}
        for top in ({}, {"vocab_size": 90}):
            yield {
                "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 5,
                "text_config": {"model_type": "llama", **TEXT, **text},
                "vision_config": {"model_type": "clip_vision_model", **VISION}, **top,
            }


def resized(config: dict) -> dict:
    classes = {"llama": LlamaForCausalLM, "llava": LlavaForConditionalGeneration}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = classes[config["model_type"]](AutoConfig.from_pretrained(folder))
        model.resize_token_embeddings(96)
        model.config.save_pretrained(folder)
        written = json.loads((Path(folder) / "config.json").read_text())
    text = written.get("text_config")
    return {"vocab_size": written.get("vocab_size"), "text_config": text and text.get("vocab_size")}


def main():
    pairs = [{"config": config, "resized": resized(config)} for config in configs()]
    (HERE / "configs.json").write_text(json.dumps(pairs, indent=2) + "\n")


if __name__ == "__main__":
    main()
