"""Hold FP8 outputs against compressed-tensors and transformers: fp8.py ALUDEL MODEL WORK [TEXT].

In:  ALUDEL, the built program; a model folder with a tokenizer, whose type is float32 or bfloat16; a folder for what is written.
     Needs the packages compressed-tensors and transformers.
Out: how many codes and scales of `aludel convert --dtype fp8` are those of compressed-tensors' own functions on the same weights; the
     relative error of the weights; and the loss over TEXT that transformers has of the FP8 folder, as it loads it, and of the model.
     Ends with an error where a code or a scale differs, or the losses differ by more than 2 %.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The tides are caused by the moon, whose pull on the near side of the earth is greater than on its far side. " * 4


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def loss(folder: Path, text: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"][:, :512]
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def main() -> None:
    aludel, model, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    text = Path(sys.argv[4]).read_text() if len(sys.argv) > 4 else TEXT
    out = work / "fp8"
    subprocess.run([aludel, "convert", model, out, "--dtype", "fp8", "--force"], check=True)
    plain, coded = tensors(model), tensors(out)
    said = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]["weights"]
    arguments = QuantizationArgs(**said)
    codes = scales = differ = 0
    error = size = 0.0
    for name, code in coded.items():
        if code.dtype != torch.float8_e4m3fn:
            continue
        weight = plain[name].float()
        most = weight.abs().amax(dim=1, keepdim=True)
        scale, zero = calculate_qparams(-most, most, arguments)
        expected = quantize(weight, scale.float(), zero, arguments, dtype=torch.float8_e4m3fn)
        differ += (expected.view(torch.uint8) != code.view(torch.uint8)).sum().item()
        differ += (scale.float() != coded[f"{name}_scale"]).sum().item()
        codes, scales = codes + code.numel(), scales + scale.numel()
        error += (code.float() * coded[f"{name}_scale"] - weight).square().sum().item()
        size += weight.square().sum().item()
    print(f"{codes} codes and {scales} scales, of which {differ} differ from those of compressed-tensors")
    print(f"relative error of the weights: {(error / size) ** 0.5:.5f}")
    before, after = loss(model, text), loss(out, text)
    print(f"loss in transformers: {before:.4f} of the model, {after:.4f} of the FP8 folder")
    sys.exit(differ != 0 or abs(after - before) > 0.02 * before)


if __name__ == "__main__":
    main()
