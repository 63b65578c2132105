"""Records what `aludel statistics` is to collect, by hooks and autograd in transformers.

Needs transformers 5 and safetensors. Written are

- `../decoder/<case>/grams.safetensors` for some of the tiny models: `x^T x` of what goes into every linear layer, summed over the
  two documents of `../decoder/generate.py`, under the name of its weight in a model folder;
- `gram.safetensors` and `fisher.safetensors`: of some tensors of examples/models/scripture over `text.jsonl`, in pieces of at
  most 40 tokens: the mean of `x x^T`, and the sum over pieces of squared gradients of the log-likelihood, divided by
  the number of predicted tokens.

    python generate.py
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
DECODER = HERE.parent / "decoder"
MODEL = HERE.parents[2] / "examples" / "models" / "scripture"
CASES = ["llama-biases", "phi3", "gemma2", "olmo2", "mixtral"]
WINDOW = 40
GRAMS = ["layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.3.self_attn.o_proj", "layers.2.mlp.up_proj"]
FISHERS = ["layers.0.self_attn.k_proj", "layers.3.mlp.down_proj", "layers.1.input_layernorm", "embed_tokens", "norm"]


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def watch(model, grams):
    """Adds to `grams` what goes into linear layers, under their weights' names."""

    def add(name, x):
        x = x.detach().reshape(-1, x.shape[-1]).double()
        grams[name] = grams.get(name, 0) + x.T @ x

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: add(f"{name}.weight", x[0]))
        if type(module).__name__ == "MixtralSparseMoeBlock":
            module.register_forward_pre_hook(lambda module, x, name=name: add_experts(name, module, x[0], add))


def add_experts(name, block, x, add):
    """What goes into the experts of a mixture, from the definition: the two of the largest router logits."""
    x = x.detach().reshape(-1, x.shape[-1])
    chosen = (x @ block.gate.weight.T).topk(2, dim=-1).indices
    folder = name.replace(".mlp", ".block_sparse_moe")
    add(f"{folder}.gate.weight", x)
    for expert in range(block.experts.gate_up_proj.shape[0]):
        rows = x[(chosen == expert).any(dim=-1)]
        gate, up = (rows @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        for weight in ("w1", "w3"):
            add(f"{folder}.experts.{expert}.{weight}.weight", rows)
        add(f"{folder}.experts.{expert}.w2.weight", torch.nn.functional.silu(gate) * up)


def record_tiny(case):
    sys.path.insert(0, str(DECODER))
    from generate import DOCUMENTS

    model, grams = load(DECODER / case), {}
    watch(model, grams)
    with torch.no_grad():
        for ids in DOCUMENTS:
            model(torch.tensor([ids]), use_cache=False)
    if model.config.tie_word_embeddings:
        grams.pop("lm_head.weight")
    save_file({name: gram.float().contiguous() for name, gram in grams.items()}, DECODER / case / "grams.safetensors")
    print(case, len(grams))


def pieces(tokenizer):
    """Inputs and labels: every token of a document, and the end-of-text token, predicted once."""
    for line in (HERE / "text.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"]).input_ids
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
        for start in range(0, len(ids) - 1, WINDOW):
            end = min(start + WINDOW, len(ids) - 1)
            yield torch.tensor([ids[start:end]]), torch.tensor(ids[start + 1 : end + 1])


def record_real():
    model, grams, squares, tokens = load(MODEL), {}, {}, 0
    watch(model, grams)
    for inputs, labels in pieces(transformers.AutoTokenizer.from_pretrained(MODEL)):
        model.zero_grad()
        logits = model(inputs, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            squares[name] = squares.get(name, 0) + parameter.grad.double() ** 2
        tokens += len(labels)
    names = [f"model.{name}.weight" for name in GRAMS]
    save_file({name: (grams[name] / tokens).float().contiguous() for name in names}, HERE / "gram.safetensors")
    names = [f"model.{name}.weight" for name in FISHERS]
    save_file({name: (squares[name] / tokens).float().contiguous() for name in names}, HERE / "fisher.safetensors")
    print(tokens, "tokens")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES:
        record_tiny(name)
    record_real()
