"""Hold aludel's decoder against transformers on a real model and real text: decoder.py COMPARE MODEL TEXT WORK [TOKENS].

In:  COMPARE, the built example (cargo build --release -p aludel-model --example compare); a model folder with a tokenizer;
a UTF-8 text file; a folder for what is exchanged. Two documents of TOKENS (default 192) and two thirds as many tokens
are taken from the text and packed.
Out: the losses, and how far logits and gradients are from those of transformers in float64: by norm, and at the worst
element relative to the tensor's root mean square; the same for transformers in float32, whose own rounding is larger than
what is asked for here. Ends with an error where aludel is more than 1e-4 by norm away.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    compare, model_folder, text, work = sys.argv[1:5]
    tokens = int(sys.argv[5]) if len(sys.argv) > 5 else 192
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer(Path(text).read_text()[: 40 * tokens])["input_ids"]
    documents = [ids[:tokens], ids[tokens : tokens + tokens * 2 // 3]]
    (work / "ids").write_text("\n".join(" ".join(map(str, document)) for document in documents) + "\n")
    print(subprocess.run([compare, model_folder, work / "ids", work / "out"], check=True, capture_output=True, text=True).stdout)

    expected = computed(model_folder, documents, torch.float64)
    others = computed(model_folder, documents, torch.float32)
    print("{} gradients, and how far they are from those in float64:".format(len(expected) - 1))
    failed = False
    for what in ["logits", "gradients"]:
        names = [name for name in expected if (name == "logits") == (what == "logits")]
        ours = {name: np.fromfile(work / "out" / name, dtype="<f4").astype(np.float64) for name in names}
        for who, values in [("aludel", ours), ("torch in float32", others)]:
            apart = {name: distances(values[name], expected[name]) for name in names}
            worst = [max(apart.values(), key=lambda both: both[kind])[kind] for kind in [0, 1]]
            print("{}, {}: {:.2e} by norm, {:.2e} at the worst element".format(what, who, *worst))
            failed = failed or (who == "aludel" and bool(worst[0] > 1e-4))
    sys.exit(failed)


def computed(model_folder, documents, dtype) -> dict:
    """Logits and gradients as flat arrays."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, attn_implementation="eager")
    begin = time.time()
    logits = [model(torch.tensor([document]), use_cache=False).logits[0] for document in documents]
    losses = [
        torch.nn.functional.cross_entropy(rows[:-1], torch.tensor(document[1:]), reduction="sum")
        for rows, document in zip(logits, documents)
    ]
    loss = sum(losses) / sum(len(document) - 1 for document in documents)
    loss.backward()
    print(f"{dtype}: loss {loss.item()} in {time.time() - begin:.3f} s")
    values = {name: parameter.grad for name, parameter in model.named_parameters()}
    values["logits"] = torch.cat(logits).detach()
    return {name: value.double().numpy().reshape(-1) for name, value in values.items()}


def distances(got, expected) -> tuple:
    apart = got - expected
    norm = np.linalg.norm(expected)
    return np.linalg.norm(apart) / norm, np.abs(apart).max() / (norm / len(expected) ** 0.5)


if __name__ == "__main__":
    main()
