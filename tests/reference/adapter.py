"""Load an adapter that aludel wrote with peft and compare logits: adapter.py COMPARE MODEL WORK TARGETS.

In:  COMPARE, the built example (cargo build --release -p aludel-model --example compare); a model folder; a folder for what
is exchanged; names of linear layers, parted by commas.
Out: how far the logits of the model with its adapter are from those that peft computes of the same files, and from those of
the model without. Ends with an error where peft reports keys that it misses or does not expect, or the former is large.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    compare, model_folder, work, targets = sys.argv[1:]
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    ids = [[1, 40, 7, 33, 33, 12, 5, 47, 0, 21, 18]]
    (work / "ids").write_text(" ".join(map(str, ids[0])) + "\n")
    subprocess.run([compare, model_folder, work / "ids", work / "out", targets], check=True)
    got = np.fromfile(work / "out" / "logits", dtype="<f4")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        without = model(torch.tensor(ids)).logits.numpy().reshape(-1)
        warnings.filterwarnings("error", message=".*keys.*")
        adapted = PeftModel.from_pretrained(model, work / "out" / "adapter")
        expected = adapted(torch.tensor(ids)).logits.numpy().reshape(-1)
    apart = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    changed = np.linalg.norm(without - expected) / np.linalg.norm(expected)
    print(f"{apart:.2e} from peft; the adapter changes the logits by {changed:.2e}")
    sys.exit(not bool(apart < 1e-5 < changed))


if __name__ == "__main__":
    main()
