"""Check that every golden can be reached: recompute it from the formulas, in numpy, without mergekit or torch arithmetic.

In:  models/, cases/*/{recipe.yml, case.json, expected.safetensors}. Out: one line a case with the largest error, and exit
status 1 if a case misses its tier. Cases that need slices are skipped.
Exact cases are computed in f32, one rounding an operation, terms added in the order of the recipe; relative ones in f64, so that
their error is the reference's own rounding. This is a second reading of the mathematics, not a fast one.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

import averages
import directions
import granularity
import philox
import selections

ROOT = Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SPARSE = {"ties": "magnitude", "dare_linear": "random", "dare_ties": "random"}
SPARSE |= {"breadcrumbs": "band", "breadcrumbs_ties": "band", "della": "ranked", "della_linear": "ranked"}
CONSENSUS = {"ties", "dare_ties", "breadcrumbs_ties", "della"}
RESCALED = {"dare_linear", "dare_ties", "della", "della_linear"}


def main() -> None:
    missed = [name for name in sorted(path.parent.name for path in ROOT.glob("cases/*/case.json")) if not passes(name)]
    if missed:
        sys.exit(f"missed their tier: {', '.join(missed)}")


def passes(name: str) -> bool:
    folder = ROOT / "cases" / name
    case = json.loads((folder / "case.json").read_text())
    recipe = yaml.safe_load((folder / "recipe.yml").read_text())
    if "slices" in recipe:
        print(f"{name}: skipped, needs slices")
        return True
    real = np.float32 if case["tier"] == "exact" else np.float64
    merge = Merge(recipe, case.get("seed", 0), real)
    expected = load_file(folder / "expected.safetensors")
    if set(expected) != set(merge.tensor_names()):
        print(f"{name}: other tensors")
        return False
    errors = [compare(merge.output(tensor), values, case) for tensor, values in expected.items()]
    worst = max(errors)
    limit = case.get("tolerance", 0.0)
    print(f"{name}: {case['tier']}, largest error {worst:.2e}")
    return worst <= limit


def compare(got: torch.Tensor, expected: torch.Tensor, case: dict) -> float:
    """The tier's error: bits for exact, |difference| over max(|expected|, root mean square of the tensor) for relative."""
    if case["tier"] == "exact":
        as_bits = torch.int32 if expected.dtype == torch.float32 else torch.int16
        same = got.dtype == expected.dtype and torch.equal(got.view(as_bits), expected.view(as_bits))
        return 0.0 if same else float("inf")
    got, expected = got.double(), expected.double()
    scale = expected.abs().clamp(min=expected.square().mean().sqrt())
    return ((got - expected).abs() / scale.clamp(min=1e-30)).max().item()


class Merge:
    def __init__(self, recipe: dict, seed: int, real: type):
        self.recipe, self.seed, self.real = recipe, seed, real
        self.method, self.base = recipe["merge_method"], recipe.get("base_model")
        self.entries = list(recipe["models"])
        if self.base and all(entry["model"] != self.base for entry in self.entries):
            self.entries.append({"model": self.base})
        self.weights = {entry["model"]: load_file(ROOT / entry["model"] / "model.safetensors") for entry in self.entries}
        self.config = json.loads((ROOT / self.entries[0]["model"] / "config.json").read_text())
        self.layers = self.config["num_hidden_layers"]
        self.part = None

    def tensor_names(self) -> list[str]:
        return list(self.weights[self.entries[0]["model"]])

    def output(self, tensor: str) -> torch.Tensor:
        values = {model: weights[tensor].float().numpy().astype(self.real) for model, weights in self.weights.items()}
        whole = next(iter(values.values()))
        asked = self.parameter("granularity", tensor, "tensor")
        cut = granularity.parts(tensor, whole.shape, asked, self.config)
        if cut is None:
            result = self.merged(tensor, values)
        else:
            result = np.empty(whole.size, dtype=self.real)
            for self.part in cut:
                result[self.part] = self.merged(tensor, {m: v.reshape(-1)[self.part] for m, v in values.items()})
            self.part, result = None, result.reshape(whole.shape)
        dtype = DTYPES[self.recipe.get("out_dtype") or self.recipe["dtype"]]
        return torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32)).to(dtype)

    def merged(self, tensor: str, values: dict) -> np.ndarray:
        return getattr(self, self.method, self.task_vectors)(tensor, values)

    def parameter(self, name: str, tensor: str, default, entry: dict | None = None):
        for level in (entry or {}, self.recipe):
            setting = (level.get("parameters") or {}).get(name)
            if setting is not None and (value := evaluate(setting, tensor, self.position(tensor))) is not None:
                return value
        return default

    def position(self, tensor: str) -> float:
        if ".layers." not in tensor:
            return 0.0
        return int(tensor.split(".")[2]) / (self.layers - 1) if self.layers > 1 else 1.0

    def linear(self, tensor: str, values: dict) -> np.ndarray:
        pairs = [(self.real(self.parameter("weight", tensor, None, e)), values[e["model"]]) for e in self.entries]
        total = add([weight * value for weight, value in pairs])
        if self.parameter("normalize", tensor, True):
            total = total / add([weight for weight, _ in pairs])
        return total

    def slerp(self, tensor: str, values: dict) -> np.ndarray:
        t = self.parameter("t", tensor, None)
        start = values[self.base]
        [end] = [value for model, value in values.items() if model != self.base]
        cosine = (unit(start) * unit(end)).sum()
        if abs(cosine) > 0.9995:
            return (1 - t) * start + t * end
        angle = np.arccos(cosine)
        return np.sin((1 - t) * angle) / np.sin(angle) * start + np.sin(t * angle) / np.sin(angle) * end

    def model_stock(self, tensor: str, values: dict) -> np.ndarray:
        start = values[self.base]
        others = [value for model, value in values.items() if model != self.base]
        per_row = self.parameter("filter_wise", tensor, False) and start.ndim > 1
        rows = [(value - start).reshape(start.shape[0] if per_row else 1, -1) for value in others]
        cosines = [cosine(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        mean, count = sum(cosines) / len(cosines), len(rows)
        ratio = count * mean / (1 + (count - 1) * mean)
        ratio = ratio.reshape(-1, 1) if per_row else ratio[0]
        return ratio * (sum(others) / count) + (1 - ratio) * start

    def passthrough(self, tensor: str, values: dict) -> np.ndarray:
        [entry] = self.entries
        scale = self.parameter("scale", tensor, None, entry)
        return values[entry["model"]] if scale is None else values[entry["model"]] * self.real(scale)

    def others(self, values: dict) -> list:
        """The entries that are not the base, and their values: task vectors where there is a base."""
        start = values[self.base] if self.base else 0
        return [(e, values[e["model"]] - start) for e in self.entries if e["model"] != self.base]

    def start(self, values: dict):
        return values[self.base] if self.base else 0

    def nuslerp(self, tensor: str, values: dict) -> np.ndarray:
        (first, a), (second, b) = self.others(values)
        wa, wb = (self.parameter("weight", tensor, None, entry) for entry in (first, second))
        flatten, row_wise = self.parameter("nuslerp_flatten", tensor, True), self.parameter("nuslerp_row_wise", tensor, False)
        return self.start(values) + directions.nuslerp(a, b, wa, wb, flatten, row_wise)

    def multislerp(self, tensor: str, values: dict) -> np.ndarray:
        entries, xs = zip(*self.others(values))
        weights = [self.parameter("weight", tensor, None, entry) for entry in entries]
        normalize, eps = self.parameter("normalize_weights", tensor, True), self.parameter("eps", tensor, 1e-8)
        return self.start(values) + directions.multislerp(list(xs), weights, normalize, eps)

    def karcher(self, tensor: str, values: dict) -> np.ndarray:
        xs = [values[entry["model"]] for entry in self.entries]
        return directions.karcher(xs, self.parameter("max_iter", tensor, 10), self.parameter("tol", tensor, 1e-5))

    def nearswap(self, tensor: str, values: dict) -> np.ndarray:
        [other] = [value for model, value in values.items() if model != self.base]
        return selections.nearswap(values[self.base], other, self.parameter("t", tensor, None))

    def sce(self, tensor: str, values: dict) -> np.ndarray:
        deltas = [delta for _, delta in self.others(values)]
        return values[self.base] + selections.sce(deltas, self.parameter("select_topk", tensor, 1.0))

    def arcee_fusion(self, tensor: str, values: dict) -> np.ndarray:
        [other] = [value for model, value in values.items() if model != self.base]
        return selections.arcee_fusion(values[self.base], other)

    def ram(self, tensor: str, values: dict) -> np.ndarray:
        deltas = [delta for _, delta in self.others(values)]
        return values[self.base] + selections.ram(deltas, self.parameter("epsilon", tensor, 1e-5))

    def ramplus_tl(self, tensor: str, values: dict) -> np.ndarray:
        deltas = [delta for _, delta in self.others(values)]
        r, alpha = self.parameter("r", tensor, 0.1), self.parameter("alpha", tensor, 0.2)
        return values[self.base] + selections.ram(deltas, self.parameter("epsilon", tensor, 1e-5), r, alpha)

    def expo(self, tensor: str, values: dict) -> np.ndarray:
        [(entry, delta)] = self.others(values)
        return values[entry["model"]] + delta * self.real(self.parameter("alpha", tensor, None))

    def geometric_median(self, tensor: str, values: dict) -> np.ndarray:
        xs = [values[entry["model"]] for entry in self.entries]
        weights = [self.parameter("weight", tensor, 1.0, entry) for entry in self.entries]
        steps, smoothing = self.parameter("iterations", tensor, 32), self.parameter("smoothing", tensor, 1e-6)
        return directions.geometric_median(xs, weights, steps, smoothing)

    def statistics(self, parameter: str, tensor: str) -> list:
        """Each entry's statistics of a tensor; None where its file has none."""
        files = [load_file(ROOT / self.parameter(parameter, tensor, None, entry)) for entry in self.entries]
        return [file[tensor].double().numpy() if tensor in file else None for file in files]

    def fisher(self, tensor: str, values: dict) -> np.ndarray:
        xs = [values[entry["model"]] for entry in self.entries]
        weights = [self.parameter("weight", tensor, 1.0, entry) for entry in self.entries]
        return averages.fisher(xs, weights, self.statistics("fisher", tensor), self.parameter("fisher_floor", tensor, 1e-6))

    def regmean(self, tensor: str, values: dict) -> np.ndarray:
        xs = [values[entry["model"]] for entry in self.entries]
        weights = [self.parameter("weight", tensor, 1.0, entry) for entry in self.entries]
        alpha, ridge = self.parameter("alpha", tensor, 0.9), self.parameter("ridge", tensor, 1e-6)
        return averages.regmean(xs, weights, self.statistics("gram", tensor), alpha, ridge)

    def task_vectors(self, tensor: str, values: dict) -> np.ndarray:
        start, weights, weighted = values[self.base], [], []
        for index, entry in enumerate(self.entries):
            if entry["model"] != self.base:
                weights.append(self.real(self.parameter("weight", tensor, None, entry)))
                weighted.append(self.sparse(tensor, index, entry, values[entry["model"]] - start) * weights[-1])
        if self.method in CONSENSUS:
            votes = [np.sign(w) for w in weighted] if self.recipe.get("parameters", {}).get("consensus") else weighted
            sign = np.where(add(votes) >= 0, 1, -1)
            agree = [np.sign(w) == sign for w in weighted]
            mixed = add([w * yes for w, yes in zip(weighted, agree)])
            divisor = add([weight * yes for weight, yes in zip(weights, agree)])
        else:
            mixed, divisor = add(weighted), add(weights)
        if self.parameter("normalize", tensor, self.method in ("ties", "della")):
            mixed = mixed / np.where(divisor == 0, self.real(1), divisor)
        return start + mixed * self.real(self.parameter("lambda", tensor, 1.0))

    def sparse(self, tensor: str, index: int, entry: dict, delta: np.ndarray) -> np.ndarray:
        density = self.parameter("density", tensor, 1.0, entry)
        kind = SPARSE.get(self.method)
        if density >= 1 or kind is None:
            return delta
        if kind == "random":
            places = np.arange(delta.size) if self.part is None else self.part
            keep = philox.kept(self.seed, index, tensor, places.max() + 1, density)[places]
        elif kind == "ranked":
            numbers = philox.uniform(philox.stream_key(self.seed, index, tensor), delta.size)
            keep = selections.della(delta, numbers, density, self.parameter("epsilon", tensor, 0.15, entry))
        else:
            gamma = self.parameter("gamma", tensor, 0.01, entry) if kind == "band" else 0.0
            keep = band(np.abs(delta).astype(np.float32).reshape(-1), density, gamma)
        thin = delta * keep.reshape(delta.shape)
        if not self.parameter("rescale", tensor, self.method in RESCALED):
            return thin
        before, after = np.abs(delta).sum(), np.abs(thin).sum()
        return thin if min(before, after) < 1e-7 else thin * (before / after)


def evaluate(setting, tensor: str, position: float):
    if not isinstance(setting, list):
        return setting
    if not isinstance(setting[0], dict):
        place = position * (len(setting) - 1)
        low = int(place)
        high = min(low + 1, len(setting) - 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    for entry in setting:
        if entry.get("filter") in (None, "*") or entry["filter"] in tensor:
            return evaluate(entry["value"], tensor, position)
    return None


def add(terms: list):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def band(magnitudes: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Keep the largest `density` share below the `gamma` share on top; the lowest flat index first among equals."""
    count = magnitudes.size
    target, top = int(density * count), int(gamma * count)
    top = min(top, count - target)
    order = np.argsort(-magnitudes, kind="stable")
    keep = np.zeros(count, dtype=bool)
    keep[order[top : top + target]] = True
    return keep


def unit(values: np.ndarray) -> np.ndarray:
    norm = np.sqrt((values * values).sum())
    return values / norm if norm > 1e-8 else values


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.sqrt((a * a).sum(-1)) * np.sqrt((b * b).sum(-1))
    return np.clip((a * b).sum(-1) / np.maximum(norms, 1e-6), -1, 1)


if __name__ == "__main__":
    main()
