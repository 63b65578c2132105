"""Fine-tune a causal language model on one text: finetune.py BASE TEXT OUT [options].

In:  a transformers model folder with a tokenizer, and a UTF-8 text file.
Out: OUT, a model folder in bfloat16 with the tokenizer; one line a step on stdout.
Windows are drawn from the whole text by a seeded generator, so two runs with the same arguments see the same windows.
Does not evaluate: perplexity.py does.
"""

import argparse
import math
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    tokens = text_tokens(tokenizer, args.text)
    train(model, tokens, args)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def text_tokens(tokenizer, path: str) -> torch.Tensor:
    with open(path, encoding="utf-8") as file:
        return torch.tensor(tokenizer(file.read(), add_special_tokens=False, verbose=False)["input_ids"])


def train(model, tokens: torch.Tensor, args: argparse.Namespace) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, args.steps))
    generator = torch.Generator().manual_seed(args.seed)
    started = time.time()
    for step in range(args.steps):
        starts = torch.randint(0, len(tokens) - args.window, (args.batch,), generator=generator)
        batch = torch.stack([tokens[start : start + args.window] for start in starts.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"step {step + 1}/{args.steps} loss {loss.item():.4f} seconds {time.time() - started:.0f}", flush=True)


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to a tenth of the rate."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


if __name__ == "__main__":
    main()
