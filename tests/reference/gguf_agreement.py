"""Compares a model folder that aludel made from a GGUF file with what other programs make of the same file.

Needs: gguf, torch, transformers. Not run in CI: it is made for real models.

    aludel convert model.gguf out --dtype f32
    python tests/reference/gguf_agreement.py model.gguf out [--llama-tokenize PATH]

- Weights: every tensor against transformers' own GGUF loading, in f32.
- Logits: the same two models on a text, in f32.
- Tokens: the folder's tokenizer against transformers' own GGUF tokenizer, and with --llama-tokenize against llama.cpp's,
  on some hundred kilobytes of prose, code, digits, white space and scripts, in pieces. The text is made from Python's
  standard library and a seed, so the numbers can be had again.

Exits with 1 when weights or logits differ at all or tokens differ from llama.cpp's. Differences from transformers' GGUF
tokenizer are counted and shown only: it knows neither how a file wants digits split nor its chat tokens.
"""

import argparse
import ast
import difflib
import inspect
import random
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "0123456789",
    "  \t\n\r",
    "äöüßéèñçøåæœ",
    "абвгдежзиклмно",
    "αβγδεζηθικλ",
    "水銀硫黄錬金術师傅",
    "あいうえおカキクケコ",
    "가나다라마바사",
    "אבגדהוז",
    "ابتثجحخ",
    "कखगघङािी",
    "🜍🧪👩‍🔬🏳️‍🌈",
    ".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+`~",
    "e\u0301a\u0308o\u0302\u200b\u00a0\u2028",
    "٠١٢३४५Ⅷ½²₃",
]


def texts() -> list[str]:
    """Pieces of at most a few kilobytes, about 150 kB in all."""
    sources = [inspect.getsource(module) for module in (argparse, difflib, ast)]
    pieces = [source[start : start + 4000] for source in sources for start in range(0, len(source), 4000)]
    chance = random.Random(20240229)
    for _ in range(200):
        words = []
        for _ in range(chance.randrange(5, 60)):
            alphabet = chance.choice(ALPHABETS)
            words.append("".join(chance.choice(alphabet) for _ in range(chance.randrange(1, 9))))
            words.append(chance.choice(["", " ", " ", "  ", "\n", "\n\n  ", " \t"]))
        pieces.append("".join(words))
    pieces += [f"{' ' * spaces}{number}" for spaces in range(5) for number in (7, 42, 2024, 3.14159, 10**12)]
    pieces += ["\n 1", "a\n\n 22 b", "x = 1 if y else  2", "they've  IT'S\n'll", "", " ", "\n"]
    return pieces


def compare_tokens(name: str, pieces: list[str], ours: list[list[int]], theirs: list[list[int]]) -> int:
    differing = [index for index, (left, right) in enumerate(zip(ours, theirs, strict=True)) if left != right]
    tokens = sum(len(ids) for ids in ours)
    print(f"tokens vs {name}: {len(differing)} of {len(pieces)} texts differ ({tokens} tokens)")
    for index in differing[:3]:
        at = next((i for i, (a, b) in enumerate(zip(ours[index], theirs[index])) if a != b), 0)
        print(f"  text {index}: ours {ours[index][at : at + 6]} theirs {theirs[index][at : at + 6]} in {pieces[index][:60]!r}")
    return len(differing)


def llama_tokens(program: Path, model: Path, pieces: list[str]) -> list[list[int]]:
    ids = []
    with tempfile.TemporaryDirectory() as folder:
        for piece in pieces:
            file = Path(folder) / "text"
            file.write_bytes(piece.encode())
            command = [program, "-m", model, "-f", file, "--ids", "--no-bos", "--no-parse-special", "--no-escape", "--log-disable"]
            out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            ids.append(ast.literal_eval(out.strip().splitlines()[-1]) if piece else [])
    return ids


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-tokenize", type=Path)
    options = parser.parse_args()
    failed = compare_models(options) + compare_tokenizers(options)
    raise SystemExit(1 if failed else 0)


def compare_models(options) -> int:
    ours = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(
        options.gguf.parent, gguf_file=options.gguf.name, dtype=torch.float32
    ).eval()
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    worst = max((left[name] - right[name]).abs().max().item() for name in left)
    values = sum(tensor.numel() for tensor in left.values())
    print(f"weights: {len(left)} tensors, {values} values, largest difference {worst:g}")
    ids = AutoTokenizer.from_pretrained(options.folder)(inspect.getsource(difflib), return_tensors="pt").input_ids[:, :512]
    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).abs().max().item()
    print(f"logits: {ids.shape[1]} positions, largest difference {difference:g}")
    return int(worst > 0 or difference > 0)


def compare_tokenizers(options) -> int:
    pieces = texts()
    print(f"text: {len(pieces)} texts, {sum(len(piece.encode()) for piece in pieces)} bytes")
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    encode = lambda tokenizer: [tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces]
    ours = encode(tokenizer)
    lossy = sum(tokenizer.decode(ids) != piece for ids, piece in zip(ours, pieces))
    print(f"round trip: {lossy} of {len(pieces)} texts do not decode to themselves")
    theirs = AutoTokenizer.from_pretrained(options.gguf.parent, gguf_file=options.gguf.name)
    compare_tokens("transformers' GGUF tokenizer", pieces, ours, encode(theirs))
    # What remains when that tokenizer splits text as the folder's does: whether vocabulary and merges are the same.
    split = tokenizer.backend_tokenizer.pre_tokenizer
    theirs.backend_tokenizer.pre_tokenizer = split
    compare_tokens("the same, splitting text as the folder's does", pieces, ours, encode(theirs))
    if options.llama_tokenize is None:
        return 0
    return compare_tokens("llama.cpp", pieces, ours, llama_tokens(options.llama_tokenize, options.gguf, pieces))


if __name__ == "__main__":
    main()
