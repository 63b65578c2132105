"""Record what mergekit 0.1.4 makes of mixtures whose experts are in one order.

In:  models/, orders.json (make_models.py writes both) and cases/<case>/recipe.yml, whose model paths are relative to this folder. Out:
cases/<case>/expected.safetensors. mergekit knows no `align_experts`: where a recipe has it, the experts of every model but the reference are put in
the order that scipy found before mergekit sees them. mergekit has definitions of Mixtral and Qwen3-MoE; the layers of others it learns from names with one
number, so that it is given `experts_3` for `experts.3` there. Run as `python generate.py [CASE ...]`. Needs mergekit 0.1.4.
"""

import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent
MERGEKIT = "0.1.4"
DEFINED = ("mixtral", "qwen3")


def main() -> None:
    if version("mergekit") != MERGEKIT:
        raise SystemExit(f"these goldens are made with mergekit {MERGEKIT}, not {version('mergekit')}")
    torch.set_num_threads(1)
    sort = torch.argsort
    torch.argsort = lambda values, dim=-1, descending=False: sort(values, dim=dim, descending=descending, stable=True)
    for name in sys.argv[1:] or sorted(path.parent.name for path in ROOT.glob("cases/*/recipe.yml")):
        record(ROOT / "cases" / name)


def record(folder: Path) -> None:
    recipe = yaml.safe_load((folder / "recipe.yml").read_text())
    orders = json.loads((ROOT / "orders.json").read_text()) if recipe.pop("align_experts", False) else {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        shutil.copytree(ROOT / "models", work / "models")
        for model in sorted(path.name for path in (work / "models").iterdir()):
            file = work / "models" / model / "model.safetensors"
            tensors = load_file(file)
            for block, order in orders.get(model, {}).items():
                tensors = reordered(tensors, block, order)
            if not folder.name.startswith(DEFINED):
                tensors = {name.replace(".experts.", ".experts_"): value for name, value in tensors.items()}
                config = json.loads((file.parent / "config.json").read_text())
                (file.parent / "config.json").write_text(json.dumps({**config, "architectures": ["Learnt"]}))
            save_file(tensors, file, metadata={"format": "pt"})
        os.chdir(work)
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, allow_crimes=True)
        run_merge(MergeConfiguration.model_validate(recipe), "out", options)
        written = {}
        for shard in sorted(Path("out").glob("*.safetensors")):
            with safe_open(shard, framework="pt") as file:
                written.update({name: file.get_tensor(name) for name in file.keys()})
        os.chdir(ROOT)
    written = {name.replace(".experts_", ".experts."): value for name, value in written.items()}
    save_file(written, folder / "expected.safetensors", metadata={"format": "pt"})
    print(f"{folder.name}: {len(written)} tensors")


def reordered(tensors: dict[str, torch.Tensor], block: str, order: list[int]) -> dict[str, torch.Tensor]:
    """The experts of one layer in another order: for each place the expert that takes it."""
    out = dict(tensors)
    for name, value in tensors.items():
        rest = name.removeprefix(f"{block}.")
        kind, number, *part = [*rest.split("."), "", ""]
        if rest == name or kind not in ("experts", "gate", "router"):
            continue
        if number.isdigit():
            from_name = ".".join([block, kind, str(order[int(number)]), *[p for p in part if p]])
            out[name] = tensors[from_name]
        else:
            out[name] = value[order].clone()
    return out


if __name__ == "__main__":
    main()
