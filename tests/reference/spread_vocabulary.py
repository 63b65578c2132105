"""Makes a model of a larger vocabulary that says the same: its tokens stand at even distances among more ids.

    python spread_vocabulary.py MODEL_FOLDER OUT COLUMNS

Token i of n becomes token i * COLUMNS // n, in the weights, the tokenizer and the configuration. The rows of all other ids are zeros, and so are their logits: beside those of
SmolLM2-135M-Instruct, whose log-sum-exps are 29 on average, they have 0.2 % of the probability, nearly all of it where the model is least sure. Not run by CI; needs torch and
safetensors.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def spread_rows(matrix, places, columns):
    wide = torch.zeros(columns, matrix.shape[1], dtype=matrix.dtype)
    wide[places] = matrix
    return wide


def spread_tokenizer(tokenizer, place):
    """Every number in it that is an id."""
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: place(number) for token, number in vocabulary.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = place(token["id"])
    post = tokenizer.get("post_processor") or {}
    for part in [post, *post.get("processors", [])]:
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [place(number) for number in token["ids"]]
    return tokenizer


def spread_ids(settings, place):
    """The numbers of special tokens in a configuration."""
    for key, value in settings.items():
        if key.endswith("_token_id") and isinstance(value, int):
            settings[key] = place(value)
    return settings


def main(folder, out, columns):
    folder, out, columns = Path(folder), Path(out), int(columns)
    weights = {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}
    tokens = len(weights[MATRICES[0]])
    place = lambda number: number * columns // tokens
    places = torch.tensor([place(number) for number in range(tokens)])
    weights |= {name: spread_rows(weights[name], places, columns) for name in MATRICES if name in weights}
    out.mkdir(parents=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    for name, change in [
        ("config.json", lambda config: spread_ids(config, place) | {"vocab_size": columns}),
        ("generation_config.json", lambda config: spread_ids(config, place)),
        ("tokenizer.json", lambda tokenizer: spread_tokenizer(tokenizer, place)),
        ("tokenizer_config.json", lambda config: {k: v for k, v in config.items() if k != "added_tokens_decoder"}),
    ]:
        if (folder / name).exists():
            changed = change(json.loads((folder / name).read_text()))
            (out / name).write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n")
    if (folder / "chat_template.jinja").exists():
        shutil.copy(folder / "chat_template.jinja", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
