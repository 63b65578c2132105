"""Time training steps of torch and transformers, as the reference of the distillation benchmarks.

In:  a folder with config.json (weights optional: random without them), tokens of a step, number of steps, and optionally a teacher's folder.
Out: one JSON object on standard output: seconds of each step, and the process's peak memory in bytes.
A step is forward, loss, backward, gradient clipping and AdamW in float32. Without a teacher the loss is cross-entropy; with one it is the
forward KL of the teacher's distribution at temperature 1, from logits. Nothing is written.
"""

import argparse
import json
import resource
import time

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("--teacher")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    student = load(arguments.student).train()
    if arguments.checkpointing:
        student.gradient_checkpointing_enable()
    teacher = load(arguments.teacher).eval() if arguments.teacher else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.1)
    seconds = []
    for _ in range(arguments.steps):
        ids = torch.randint(0, student.config.vocab_size, (1, arguments.tokens))
        start = time.perf_counter()
        step(student, teacher, optimizer, ids)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_seconds": seconds, "peak_bytes": peak, "torch": torch.__version__}))


def load(folder: str) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except OSError:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    return model


def step(student, teacher, optimizer, ids) -> None:
    logits = student(input_ids=ids).logits[0, :-1]
    if teacher is None:
        loss = cross_entropy(logits, ids[0, 1:])
    else:
        with torch.no_grad():
            target = log_softmax(teacher(input_ids=ids).logits[0, :-1], dim=-1)
        loss = kl_div(log_softmax(logits, dim=-1), target, log_target=True, reduction="batchmean")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


if __name__ == "__main__":
    main()
