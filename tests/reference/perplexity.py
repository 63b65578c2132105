"""Held-out perplexity of model folders on texts: perplexity.py --text FILE [--text FILE ...] MODEL [MODEL ...].

In:  model folders that transformers loads, each with its tokenizer, and UTF-8 text files.
Out: one row a model, one column a text, as a Markdown table on stdout.
The text is cut into windows of equal length that lie evenly over it and do not depend on the model's weights; weights are
read as stored and computed in float32. Perplexity is exp(mean negative log-likelihood) over all predicted tokens.
Does not slide the window: the first token of each window is given, not predicted.
"""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main() -> None:
    args = arguments()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    print("| model | " + " | ".join(Path(text).stem for text in args.text) + " |")
    print("|---" * (len(args.text) + 1) + "|")
    for folder in args.models:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        values = [perplexity(model, windows(tokenizer, text, args), args.batch) for text in args.text]
        print(f"| {Path(folder).name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def windows(tokenizer, path: str, args: argparse.Namespace) -> torch.Tensor:
    text = Path(path).read_text(encoding="utf-8")
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = min(args.windows, len(tokens) // args.window)
    stride = (len(tokens) - args.window) // max(1, count - 1)
    return torch.tensor([tokens[i * stride : i * stride + args.window] for i in range(count)])


@torch.no_grad()
def perplexity(model, batches: torch.Tensor, batch: int) -> float:
    total, predicted = 0.0, 0
    for start in range(0, len(batches), batch):
        chosen = batches[start : start + batch]
        logits = model(input_ids=chosen).logits[:, :-1].float()
        targets = chosen[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        total, predicted = total + loss.item(), predicted + targets.numel()
    return math.exp(total / predicted)


if __name__ == "__main__":
    main()
