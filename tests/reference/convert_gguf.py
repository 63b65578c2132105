"""Turn a GGUF file into a model folder with transformers itself: convert_gguf.py FILE OUT.

In:  a GGUF file of a decoder that transformers can read. Out: OUT, a model folder in bfloat16 with the tokenizer.
This is the reference that `aludel convert` is held against; it shares no code with it.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, out = Path(sys.argv[1]), sys.argv[2]
    decoded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers 5.24 saves no model that it has read from GGUF, though its weights are plain numbers by now.
    model = AutoModelForCausalLM.from_config(decoded.config, dtype=torch.float32)
    model.load_state_dict(decoded.state_dict())
    model.config.__dict__.pop("quantization_config", None)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
