"""Time training and distillation steps of torch on a GPU, beside the example `device` of aludel-distill, whose shapes these are.

In:  `step DOCUMENTS LENGTH`; `distil DOCUMENTS LENGTH TEACHER` with a teacher of `3b` or `8b` (needs liger-kernel), or `trl` in its place (needs trl); any number
     of them, one after another.
Out: a line for each: the median of six steps after three that are not counted, tokens a second, and the most memory that torch had.
Weights, gradients and moments are bf16; attention is torch's fused one, AdamW fused. A distillation step is the teacher's forward pass, and the student's
step by Liger's chunked Jensen-Shannon loss over the hidden states of both, or by the loss of TRL's GKDTrainer over the logits of both, as its
`compute_loss` has them.
"""

import gc
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "student": (16, 2048, 32, 8, 8192),
    "3b": (28, 3072, 24, 8, 8192),
    "8b": (32, 4096, 32, 8, 14336),
}


def llama(name: str) -> LlamaForCausalLM:
    layers, hidden, heads, key_heads, inner = SHAPES[name]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(config)


def measure(title: str, tokens: int, step) -> None:
    seconds = []
    for count in range(9):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if count >= 3:
            seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() * 1e-9
    print(f"torch {title}: {1e3 * middle:.1f} ms, {tokens / middle:.0f} tokens/s, {peak:.2f} GB at the most", flush=True)


def run(kind: str, documents: int, length: int, teacher_name: str | None) -> None:
    torch.cuda.reset_peak_memory_stats()
    student = llama("student").train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, 128000, (documents, length), device="cuda")
    if teacher_name is None:

        def step() -> None:
            student(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        measure(f"step of {documents} x {length}", documents * length, step)
        return
    teacher = llama(teacher_name).eval().requires_grad_(False)
    if kind == "trl":
        from trl.experimental.gkd.gkd_trainer import GKDTrainer

        def step() -> None:
            with torch.no_grad():
                taught = teacher(input_ids=ids).logits
            logits = student(input_ids=ids).logits
            GKDTrainer.generalized_jsd_loss(logits[:, :-1], taught[:, :-1], ids[:, 1:], beta=0.5).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        measure(f"step of TRL of {documents} x {length} by {teacher_name}", documents * length, step)
        return
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss_of = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    labels = ids.flatten()

    def step() -> None:
        with torch.no_grad():
            taught = teacher.model(input_ids=ids).last_hidden_state.flatten(0, 1)
        hidden = student.model(input_ids=ids).last_hidden_state.flatten(0, 1)
        loss_of(hidden, student.lm_head.weight, taught, teacher.lm_head.weight, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    measure(f"distil of {documents} x {length} by {teacher_name}", documents * length, step)


def main() -> None:
    words = sys.argv[1:]
    while words:
        kind, documents, length = words[0], int(words[1]), int(words[2])
        teacher = None if kind == "step" else words[3]
        words = words[3 if kind == "step" else 4 :]
        try:
            run(kind, documents, length, teacher)
        except torch.OutOfMemoryError:
            print(f"torch {kind} of {documents} x {length} by {teacher}: out of memory", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
