"""Records values and gradients of the distance of sorted probabilities with torch's autograd in f64, through torch's sort.

    python sorted.py    # writes sorted.json beside this file; needs torch

Universal logit distillation, as published (Boizard et al. 2024): both distributions sorted from the greatest down, the shorter filled up
with zeros, the sum of the absolute differences. Teacher and student have vocabularies of different size, each larger once.
"""

import json
from pathlib import Path

import torch


def sorted_distance(student, teacher, temperature):
    p = torch.softmax(teacher / temperature, -1).sort(descending=True).values
    q = torch.softmax(student / temperature, -1).sort(descending=True).values
    width = max(len(p), len(q))
    pad = lambda x: torch.nn.functional.pad(x, (0, width - len(x)))
    return (pad(p) - pad(q)).abs().sum()


def run(student, teacher, temperature, label, label_weight):
    leaf = student.clone().requires_grad_()
    value = sorted_distance(leaf, teacher, temperature)
    loss = 2.0 * value - label_weight * torch.log_softmax(leaf, -1)[label]
    loss.backward()
    return dict(
        student=student.tolist(),
        teacher=teacher.tolist(),
        temperature=temperature,
        label=label,
        label_weight=label_weight,
        value=value.item(),
        gradient=[float(f"{x:.9g}") for x in leaf.grad.tolist()],
    )


def main():
    source = torch.Generator().manual_seed(21)
    # Values that f32 and a few decimals hold exactly.
    draw = lambda columns: (torch.randn(columns, generator=source) * 2.5 * 64).round().double() / 64
    cases = [
        run(draw(columns), draw(others), temperature, label, label_weight)
        for columns, others in [(24, 24), (17, 29), (31, 12)]
        for temperature, label, label_weight in [(1.0, 3, 0.0), (2.0, 11, 0.25)]
    ]
    Path(__file__).with_name("sorted.json").write_text(json.dumps(dict(cases=cases)) + "\n")


if __name__ == "__main__":
    main()
