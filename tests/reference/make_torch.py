"""Makes the fixtures of files that torch wrote and of FP8 checkpoints, with the values that torch reads from them.

Needs: torch, safetensors. Run from the repository's root:

    python tests/reference/make_torch.py crates/aludel-checkpoint/tests/fixtures

Writes
- torch/zip.bin, torch/legacy.bin, torch/protocol4.pt: one state dict in each format of torch.save; torch/trainer.pt: the same
  under `state_dict`, with a trainer's other things; torch/sharded/: a folder with an index; torch/expected.safetensors: the values;
- torch/evil.bin: a pickle that would make a file named `was_run` if it were run; torch/compressed.bin: a deflated archive;
- fp8/<kind>/: model folders with FP8 weights and scales for blocks, rows or tensors; fp8/<kind>.safetensors: their values in f32.
"""

import json
import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file


class Evil:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


def state_dict() -> OrderedDict:
    generator = torch.Generator().manual_seed(7)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    embedding = random(10, 6)
    cube = random(3, 4, 5)
    state = OrderedDict()
    state["model.embed_tokens.weight"] = embedding
    state["lm_head.weight"] = embedding  # One storage, twice.
    state["model.layers.0.transposed.weight"] = random(6, 4).t()
    state["model.layers.0.half.weight"] = random(4, 6).half()
    state["model.layers.0.bfloat.weight"] = random(4, 6).bfloat16()
    state["model.layers.0.cut.weight"] = random(8, 9)[2:6, 1:7].bfloat16().as_strided((4, 3), (6, 2), 1)
    state["model.layers.0.rows.weight"] = random(8, 6)[3:5]  # In order, in the middle of its storage.
    state["model.layers.0.permuted.weight"] = cube.half().permute(2, 0, 1)
    state["model.layers.0.parameter.weight"] = torch.nn.Parameter(random(3))
    state["model.layers.0.positions"] = torch.arange(5)
    state["model.layers.0.scale"] = torch.tensor(0.25)
    state["model.layers.0.empty"] = torch.zeros(0, 3)
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def torch_files(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = state_dict()
    torch.save(state, folder / "zip.bin")
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(state, folder / "protocol4.pt", pickle_protocol=4)
    trainer = {"epoch": 3, "loss": 0.5, "done": None, "shape": torch.Size([1, 2]), "state_dict": state}
    torch.save(trainer, folder / "trainer.pt")
    sharded(folder / "sharded", state)
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    save_file(plain, folder / "expected.safetensors")
    torch.save({"weight": torch.ones(2), "evil": Evil()}, folder / "evil.bin")
    with zipfile.ZipFile(folder / "zip.bin") as source, zipfile.ZipFile(folder / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


def sharded(folder: Path, state: OrderedDict) -> None:
    folder.mkdir(exist_ok=True)
    names = list(state)
    parts = [names[:5], names[5:]]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(OrderedDict((name, state[name]) for name in part), folder / file)
        weight_map.update((name, file) for name in part)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1) + "\n")


def quantised(weight: torch.Tensor, scale: torch.Tensor, spread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The FP8 weight, and what it stands for in f32. `spread` is the scale of every element."""
    stored = (weight / spread).to(torch.float8_e4m3fn)
    return stored, stored.float() * spread


def blocks(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    scale = torch.zeros(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = part.abs().max() / 448
    spread = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return scale, spread


def fp8_models(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(8)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    group = lambda **more: {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", **more}}}
    configs = {
        "block": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 32], "activation_scheme": "dynamic"},
        "channel": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": group(strategy="channel")},
        "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        "tensor": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": group(strategy="tensor")},
    }
    for kind, quantisation in configs.items():
        stored, expected = {}, {}
        for name, shape in [("q_proj", (40, 70)), ("o_proj", (33, 16))]:
            weight = random(*shape)
            if kind == "block":
                scale, spread = blocks(weight, (16, 32))
            elif kind in ("channel", "fbgemm"):
                scale = weight.abs().amax(1, keepdim=True) / 448
                if kind == "channel":
                    scale = scale.bfloat16()
                spread = scale.float().expand(weight.shape)
            else:
                scale = (weight.abs().max() / 448).reshape([] if name == "q_proj" else [1])
                spread = scale.expand(weight.shape)
            full = f"model.layers.0.self_attn.{name}.weight"
            suffix = "_scale_inv" if kind == "block" else "_scale"
            stored[full], expected[full] = quantised(weight, scale, spread)
            stored[full + suffix] = scale
            if kind == "tensor":
                stored[full.replace("weight", "input_scale")] = torch.tensor([0.5])
        stored["model.norm.weight"] = random(70).bfloat16()
        expected["model.norm.weight"] = stored["model.norm.weight"].float()
        model = folder / kind
        model.mkdir(exist_ok=True)
        save_file(stored, model / "model.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / f"{kind}.safetensors")
        config = {"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 1, "quantization_config": quantisation}
        (model / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    root = Path(sys.argv[1])
    torch_files(root / "torch")
    fp8_models(root / "fp8")


if __name__ == "__main__":
    main()
