"""Record what the tables of models become that get the tokenizer of another, in f64 by numpy and scikit-learn.

In:  models/<name> of tests/golden/vocabulary, whose tokenizers are byte-level, of sentencepiece's kind and of BERT's; models/wide here, which this
makes with a tokenizer of the first kind and rows of twelve elements. Out: for each case cases/<case>.json (what is asked for, the tokens in the
order of their ids, which of them the model knows) and cases/<case>.safetensors (the tables, rounded once to the type of the model's).

Which text a token stands for is found by the tokenizers library, which decodes it between two others; least squares are solved by singular values, and matching pursuit is
scikit-learn's. Run as `python generate.py`, with numpy, scikit-learn, safetensors, torch and tokenizers.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import orthogonal_mp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent
VOCABULARY = ROOT.parent / "vocabulary" / "models"
TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
WIDE = 12


def make_wide():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<begin>", "<end>"]
    text = "the sun and the moon rose over the mist of the hills and the rain ran down to the river on the morning tide"
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=70, special_tokens=special, initial_alphabet=[], show_progress=False))
    folder = ROOT / "models" / "wide"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<begin>", "eos_token": "<end>"}, indent=1) + "\n")
    config = {"model_type": "llama", "vocab_size": 70, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True, "hidden_size": WIDE}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    random = np.random.Generator(np.random.PCG64(zlib.crc32(b"wide")))
    values = torch.from_numpy(random.standard_normal((70, WIDE)).astype(np.float32))
    save_file({TABLES[0]: values}, folder / "model.safetensors", metadata={"format": "pt"})


def folder_of(name):
    return ROOT / "models" / name if name == "wide" else VOCABULARY / name


class Model:
    def __init__(self, name):
        folder = folder_of(name)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        self.roles = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if key in settings}
        self.vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        self.file = json.loads((folder / "tokenizer.json").read_text())

    def text(self, token):
        """The text of a token: what decoding it after another adds."""
        if token in self.added:
            return token
        if self.file["model"]["type"] == "WordPiece":
            return token.removeprefix("##") if token.startswith("##") else " " + token
        if (self.file["decoder"] or {})["type"] == "ByteLevel":
            return decoders.ByteLevel().decode([token])
        return token.replace("\u2581", " ")

    def table(self, name):
        """f64; a head that is not there is the embedding."""
        return self.tensors.get(name, self.tensors[TABLES[0]]).to(torch.float64).numpy()


def known(model, donor):
    """For tokens of the donor by id, those of the model that are the same."""
    texts = {model.text(token): id for token, id in model.vocabulary.items() if token not in model.added}
    roles = {content: role for role, content in donor.roles.items()}
    same = {}
    for token, id in donor.vocabulary.items():
        if token in donor.added:
            own = model.vocabulary.get(token) if token in model.added else None
            if own is None and token in roles and roles[token] in model.roles:
                own = model.vocabulary[model.roles[roles[token]]]
        else:
            own = texts.get(donor.text(token))
        if own is not None:
            same[id] = own
    return same


def matching(target, points, k):
    return np.arange(len(points)), orthogonal_mp(points.T, target, n_nonzero_coefs=k)


def nearest(target, points, k, cosine=False, scheme="distance_proportional"):
    if cosine:
        near = points @ target / (np.linalg.norm(points, axis=1) * np.linalg.norm(target))
        order = np.argsort(-near, kind="stable")[:k]
        weights = near[order]
    else:
        apart = np.linalg.norm(points - target, axis=1)
        order = np.argsort(apart, kind="stable")[:k]
        weights = 1 / np.maximum(apart[order], 1e-6)
    chosen = points[order]
    if scheme == "least_squares":
        return order, np.linalg.lstsq(chosen.T, target, rcond=None)[0]
    if scheme == "barycentric":
        others = np.linalg.lstsq((chosen[1:] - chosen[0]).T, target - chosen[0], rcond=None)[0]
        return order, np.concatenate([[1 - others.sum()], others])
    return order, weights / max(weights.sum(), 1e-6)


def pieces(model, text, weights, is_head):
    encoding = model.tokenizer.encode(text, add_special_tokens=False)
    # A tokenizer leaves out what it has no piece for; what remains is not the token.
    ids = encoding.ids if "".join(map(model.text, encoding.tokens)) == text else []
    count = len(ids)
    if not count:
        return np.zeros(1, dtype=int), np.zeros(1)
    ranks = np.arange(1, count + 1)
    factors = {
        "mean": np.full(count, 1 / count),
        "sum": np.ones(count),
        "weighted_mean": (ranks[::-1] if is_head else ranks) / ranks.sum(),
        "first_last": np.eye(count)[0 if is_head else -1],
    }[weights]
    return np.array(ids), factors


def fill(case, name, model, donor, same, id, token):
    own = model.table(name)
    method = case["approximation_method"]
    if method == "zero":
        return np.zeros(own.shape[1])
    if method == "mean":
        return own.mean(axis=0)
    if method == "subword":
        rows, factors = pieces(model, donor.text(token), case.get("subword_method", "mean"), name == TABLES[1])
        return factors @ own[rows]
    shared = sorted(same)
    points, target = donor.table(name)[shared], donor.table(name)[id]
    how = matching if method == "omp" else nearest
    settings = {key: case[given] for key, given in (("cosine", "cosine_similarity"), ("scheme", "weight_scheme")) if given in case}
    rows, factors = how(target, points, case["k"], **settings)
    return factors @ own[[same[shared[row]] for row in rows]]


def omp(model, donor, k, **others):
    return {"model": model, "donor": donor, "approximation_method": "omp", "k": k, **others}


def near(model, donor, k, **others):
    return {"model": model, "donor": donor, "approximation_method": "common_interpolation", "k": k, **others}


def plain(model, donor, method, **others):
    return {"model": model, "donor": donor, "approximation_method": method, **others}


CASES = {
    "omp": omp("a", "b", 4),
    "omp-other-width": omp("a", "wide", 5),
    "omp-narrower": omp("wide", "c", 3),
    "omp-tied": omp("a-tied", "b", 6),
    "omp-unigram": omp("a", "b-unigram", 3),
    "omp-of-unigram": omp("a-unigram", "b", 3),
    "omp-wordpiece": omp("a-wordpiece", "b-wordpiece", 3),
    "omp-bf16": omp("a-bf16", "b-bf16", 4),
    "omp-scaled": omp("a", "c", 4, new_vocab_scale=0.5),
    "nearest": near("a", "b", 4),
    "nearest-cosine": near("a", "wide", 4, cosine_similarity=True),
    "nearest-barycentric": near("a", "c", 5, weight_scheme="barycentric"),
    "nearest-least-squares": near("a", "c", 5, weight_scheme="least_squares"),
    "nearest-bf16": near("a-bf16", "b", 3),
    "subword": plain("a", "c", "subword"),
    "subword-sum": plain("a", "c", "subword", subword_method="sum"),
    "subword-weighted": plain("a", "c", "subword", subword_method="weighted_mean"),
    "subword-first-last": plain("a", "c", "subword", subword_method="first_last"),
    "mean": plain("a", "b-unigram", "mean"),
    "zero": plain("b-tied", "a", "zero"),
}


def record(name, case):
    model, donor = Model(case["model"]), Model(case["donor"])
    same = known(model, donor)
    tokens = sorted(donor.vocabulary, key=donor.vocabulary.get)
    assert list(donor.vocabulary[token] for token in tokens) == list(range(len(tokens)))
    tables = {}
    for table in TABLES:
        if table not in model.tensors:
            continue
        own = model.table(table)
        scale = case.get("new_vocab_scale", 1)
        new = lambda id: scale * fill(case, table, model, donor, same, id, tokens[id])
        rows = [own[same[id]] if id in same else new(id) for id in range(len(tokens))]
        tables[table] = torch.from_numpy(np.array(rows)).to(torch.float32).to(model.tensors[table].dtype)
    save_file(tables, ROOT / "cases" / f"{name}.safetensors", metadata={"format": "pt"})
    ids = {key: donor.config.get(key) for key in ("bos_token_id", "eos_token_id")}
    expected = {"asked": case, "tokens": tokens, "same": sorted(same.items()), "ids": ids}
    (ROOT / "cases" / f"{name}.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    print(f"{name}: {len(tokens)} tokens, {len(same)} known")


def main():
    make_wide()
    (ROOT / "cases").mkdir(exist_ok=True)
    for name, case in CASES.items():
        record(name, case)


if __name__ == "__main__":
    main()
