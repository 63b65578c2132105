"""Record the goldens: run mergekit 0.1.4 on every case and keep the tensors that it writes.

In:  cases/<case>/recipe.yml, whose model paths are relative to this folder, and cases/<case>/case.json.
Out: cases/<case>/expected.safetensors. Each case runs in a process of its own, on one thread.
Run as `python generate.py [CASE ...]`; make_models.py writes the models first. Needs mergekit 0.1.4.

With `granularity`, mergekit merges models whose tensors are cut into the parts that it names, each a tensor of its own, and the parts of the
result are put together again.

Three things are put in the place of mergekit's own, because it leaves them open; README.md says more:
- random masks come from philox.py;
- sorting is stable, so that equal magnitudes keep the order of their flat index;
- `consensus: count` in a recipe reaches mergekit's own count mask, which its recipes cannot name.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections import deque
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml
from mergekit import sparsify
from mergekit.architecture import auto
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import REGISTERED_MERGE_METHODS
from mergekit.merge_methods import generalized_task_arithmetic as task_vectors
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import check
import granularity
import philox

ROOT = Path(__file__).resolve().parent
MERGEKIT = "0.1.4"
MEGABYTE = 1_000_000


def main() -> None:
    if version("mergekit") != MERGEKIT:
        raise SystemExit(f"these goldens are made with mergekit {MERGEKIT}, not {version('mergekit')}")
    philox.check()
    os.chdir(ROOT)
    names = sys.argv[1:] or sorted(path.parent.name for path in ROOT.glob("cases/*/recipe.yml"))
    for name in names:
        record_in_own_process(name)
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{len(names)} cases recorded; the folder holds {total / MEGABYTE:.2f} MB")


def record_in_own_process(name: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=record, args=(name,))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"case {name} failed")


def record(name: str) -> None:
    torch.set_num_threads(1)
    folder = ROOT / "cases" / name
    recipe = yaml.safe_load((folder / "recipe.yml").read_text())
    case = json.loads((folder / "case.json").read_text())
    if case.get("source") == "formulas":
        record_from_formulas(folder, recipe, case)
        return
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    with tempfile.TemporaryDirectory() as scratch:
        out, cuts = Path(scratch) / "out", Cuts(recipe, Path(scratch))
        inject(recipe, case.get("seed", 0), cuts)
        recipe.get("parameters", {}).pop("consensus", None)
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
        tensors = cuts.joined(written_tensors(out))
    save_file(tensors, folder / "expected.safetensors", metadata={"format": "pt"})
    print(f"{name}: {len(tensors)} tensors")


def record_from_formulas(folder: Path, recipe: dict, case: dict) -> None:
    """What mergekit has no method for is computed by check.py, from the papers' formulas."""
    real = np.float32 if case["tier"] == "exact" else np.float64
    merge = check.Merge(recipe, case.get("seed", 0), real)
    tensors = {tensor: merge.output(tensor) for tensor in merge.tensor_names()}
    save_file(tensors, folder / "expected.safetensors", metadata={"format": "pt"})
    print(f"{folder.name}: {len(tensors)} tensors, from the formulas")


def written_tensors(out: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for shard in sorted(out.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


class Cuts:
    """Cuts the models of a recipe that has a granularity, and has the recipe name what was cut; else does nothing."""

    def __init__(self, recipe: dict, scratch: Path):
        self.parts: dict[str, tuple[str, np.ndarray]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        asked = recipe.get("parameters", {}).pop("granularity", None)
        if asked is None:
            return
        # transformers, which mergekit asks for tied weights, has no class of such models; they have none.
        auto.get_transformers_info = lambda model, options: ([], [], [])
        models = {recipe["base_model"]: None} | {entry["model"]: None for entry in recipe["models"]}
        for model in models:
            models[model] = self.cut(Path(model), asked, scratch / Path(model).name)
        recipe["base_model"] = models[recipe["base_model"]]
        for entry in recipe["models"]:
            entry["model"] = models[entry["model"]]

    def cut(self, model: Path, asked, to: Path) -> str:
        config, tensors = json.loads((model / "config.json").read_text()), {}
        for name, tensor in load_file(model / "model.safetensors").items():
            granular = check.evaluate(asked, name, 0.0) or "tensor"
            places = granularity.parts(name, tuple(tensor.shape), granular, config)
            self.shapes[name] = tuple(tensor.shape)
            for number, part in enumerate(places or [np.arange(tensor.numel())]):
                key = f"{name}.part{number}" if places else name
                self.parts[key] = (name, part)
                tensors[key] = tensor.reshape(-1)[torch.from_numpy(part)]
        to.mkdir()
        # No architecture that mergekit knows: it then takes whatever tensors the models have in common.
        config |= {"architectures": ["CutForCausalLM"]}
        (to / "config.json").write_text(json.dumps(config))
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
        return str(to)

    def joined(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.parts:
            return tensors
        whole = {}
        for key, (name, places) in self.parts.items():
            size = int(np.prod(self.shapes[name]))
            whole.setdefault(name, torch.empty(size, dtype=tensors[key].dtype))[torch.from_numpy(places)] = tensors[key]
        return {name: values.reshape(self.shapes[name]) for name, values in whole.items()}


def inject(recipe: dict, seed: int, cuts: Cuts) -> None:
    inject_stable_sorting()
    inject_masks(listed_models(recipe), seed, cuts)
    if recipe.get("parameters", {}).get("consensus") == "count":
        inject_count_consensus(recipe["merge_method"])


def listed_models(recipe: dict) -> list[str]:
    """The models by whose position masks are keyed. Slices are taken to list the same models in the same order."""
    sources = [source for part in recipe.get("slices", []) for source in part["sources"]]
    return list(dict.fromkeys(entry["model"] for entry in recipe.get("models", []) + sources))


def inject_stable_sorting() -> None:
    argsort, sort = torch.argsort, torch.sort
    torch.argsort = lambda values, dim=-1, descending=False: argsort(
        values, dim=dim, descending=descending, stable=True
    )
    torch.sort = lambda values, dim=-1, descending=False: sort(values, dim=dim, descending=descending, stable=True)


def inject_masks(models: list[str], seed: int, cuts: Cuts) -> None:
    """Let `torch.bernoulli` know whose task vector it is drawing for, and draw aludel's mask for it."""
    collect, thin = task_vectors.get_task_vectors, task_vectors.sparsify
    pending: deque[tuple[int, str]] = deque()
    current: list[tuple[int, str]] = []

    def collect_and_note(weight_info, *args, **kwargs):
        vectors, start = collect(weight_info, *args, **kwargs)
        pending.clear()
        pending.extend((models.index(str(vector["model"])), weight_info.name) for vector in vectors)
        return vectors, start

    def thin_the_next(*args, **kwargs):
        current[:] = [pending.popleft()]
        return thin(*args, **kwargs)

    def bernoulli(density: torch.Tensor) -> torch.Tensor:
        [(model_index, tensor)] = current
        whole, places = cuts.parts.get(tensor, (tensor, np.arange(density.numel())))
        numbers = philox.uniform(philox.stream_key(seed, model_index, whole), places.max() + 1)[places]
        mask = numbers < density.reshape(-1).numpy()
        return torch.from_numpy(mask).reshape(density.shape).to(density.dtype)

    task_vectors.get_task_vectors = collect_and_note
    task_vectors.sparsify = thin_the_next
    sparsify.torch.bernoulli = bernoulli


def inject_count_consensus(method: str) -> None:
    update = {"consensus_method": task_vectors.ConsensusMethod.count}
    REGISTERED_MERGE_METHODS[method] = REGISTERED_MERGE_METHODS[method].model_copy(update=update)


if __name__ == "__main__":
    main()
