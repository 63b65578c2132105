"""Records what a merge of two models is in FP8, as compressed-tensors' formulas have it: `python generate.py` in this folder.

A row's scale is its largest magnitude / 448; the codes are the quotients, clamped and cast to torch's float8_e4m3fn, which rounds to
nearest with ties to even. Recorded with torch 2.15.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

here = Path(__file__).parent
a, b = (load_file(here.parent / "models" / name / "model.safetensors") for name in ("a", "b"))
expected = {}
for name, x in a.items():
    merged = x * 0.25 + b[name] * 0.75
    if name.endswith("_proj.weight"):
        scale = merged.abs().amax(dim=1, keepdim=True) / 448
        expected[name] = (merged / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        expected[f"{name}_scale"] = scale
    else:
        expected[name] = merged
save_file(expected, here / "expected.safetensors")
