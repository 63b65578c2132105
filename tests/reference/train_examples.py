"""Train the three small models of examples/models: train_examples.py TEXTS OUT.

In:  TEXTS, the folder that fetch_texts.sh fills. Out: OUT/{base, technical, scripture}, Llama folders in bfloat16, each with the
same byte-level BPE tokenizer, that transformers loads: the base saw both texts, the two others went on from it with one text each.
Every draw is seeded. Does not evaluate: perplexity.py does.
"""

import copy
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = ("technical", "scripture")
END = "<|endoftext|>"
VOCABULARY = 512
WINDOW = 256
BATCH = 8
TOKENIZER_SAMPLE = 2_000_000
BASE_STEPS, BASE_RATE = 2400, 3e-3
TUNED_STEPS, TUNED_RATE = 400, 4e-4


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    texts = {name: (source / f"{name}-train.txt").read_text(encoding="utf-8") for name in TEXTS}
    tokenizer = trained_tokenizer(texts)
    tokens = {name: torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for name, text in texts.items()}
    base = LlamaForCausalLM(config())
    print(f"{sum(parameter.numel() for parameter in base.parameters())} parameters", flush=True)
    train(base, list(tokens.values()), BASE_STEPS, BASE_RATE, "base")
    save(base, tokenizer, out / "base")
    for name in TEXTS:
        tuned = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        train(tuned, [tokens[name]], TUNED_STEPS, TUNED_RATE, name)
        save(tuned, tokenizer, out / name)


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def trained_tokenizer(texts: dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text[:TOKENIZER_SAMPLE] for text in texts.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=512)


def train(model: LlamaForCausalLM, sources: list[torch.Tensor], steps: int, rate: float, name: str) -> None:
    """Draw the windows of a batch from the sources in turn."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    generator = torch.Generator().manual_seed(1)
    started = time.time()
    for step in range(steps):
        batch = torch.stack([window(sources[row % len(sources)], generator) for row in range(BATCH)])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            print(f"{name}: step {step + 1}/{steps} loss {loss.item():.4f} seconds {time.time() - started:.0f}", flush=True)


def window(tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    start = torch.randint(0, len(tokens) - WINDOW, (1,), generator=generator).item()
    return tokens[start : start + WINDOW]


def rate_factor(step: int, steps: int) -> float:
    warm_up = steps // 20
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
