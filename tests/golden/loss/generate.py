"""Records values and gradients of every objective with torch's autograd in f64, from the formulas as published.

    python generate.py    # writes objectives.json beside this file; needs torch

Student and teacher have stored columns that are padding, and vocabularies of different size. Gradients are of the sum over
the rows whose label is not -1. What is held fixed in a target is detached, and so its gradient is checked as well.
"""

import json
from pathlib import Path

import torch

ROWS = 5
IGNORED = -1


def forward_kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p, log_q):
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p, log_q, beta):
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


def skewed_forward_kl(log_p, log_q, skew):
    return forward_kl(log_p, (skew * log_p.exp() + (1 - skew) * log_q.exp()).log())


def skewed_reverse_kl(log_p, log_q, skew):
    return forward_kl(log_q, ((1 - skew) * log_p.exp() + skew * log_q.exp()).log())


def total_variation(log_p, log_q):
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def soft_cross_entropy(log_p, log_q):
    return -(log_p.exp() * log_q).sum(-1)


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
    "soft_cross_entropy": soft_cross_entropy,
}


def term_value(term, target, student, teacher, label_probability):
    """Value of each row, without weight."""
    tau = term["temperature"]
    kind, *numbers = target
    if kind == "interpolated":
        (t,) = numbers
        teacher = (1 - t) * student.detach() + t * teacher
    if term["divergence"] == "logits_mse":
        value = (((student - teacher) / tau) ** 2).mean(-1)
    else:
        log_p = torch.log_softmax(teacher / tau, -1)
        log_q = torch.log_softmax(student / tau, -1)
        if kind == "mixture":
            a, difficulty = numbers
            a = a * (1 - difficulty * (1 - label_probability))[:, None]
            log_p = (a * log_p.exp() + (1 - a) * log_q.detach().exp()).log()
        parameter = [term["parameter"]] if "parameter" in term else []
        value = DIVERGENCES[term["divergence"]](log_p, log_q, *parameter)
    return value * (tau * tau if term["scale_by_t2"] else 1.0)


def run(case, student, teacher, labels):
    student_valid, teacher_valid = case["student_valid"], case["teacher_valid"]
    common = min(student_valid, teacher_valid)
    leaf = student.clone().requires_grad_()
    keep = labels != IGNORED
    logits = leaf[keep][:, :student_valid]
    log_q = torch.log_softmax(logits, -1)
    picked = log_q.gather(-1, labels[keep][:, None])[:, 0]
    cross_entropy = -picked.sum()
    loss = case.get("label_weight", 0.0) * cross_entropy
    values = []
    for term in case["terms"]:
        rows = term_value(term, case["target"], logits[:, :common], teacher[keep][:, :common], picked.detach().exp())
        values.append(rows.sum().item())
        loss = loss + term["weight"] * rows.sum()
    loss.backward()
    return dict(case, values=values, cross_entropy=cross_entropy.item(), gradient=leaf.grad.flatten().tolist())


def term(divergence, weight=1.0, temperature=1.0, scale_by_t2=True, **more):
    return dict(divergence=divergence, weight=weight, temperature=temperature, scale_by_t2=scale_by_t2, **more)


def cases():
    teacher = ["teacher"]
    plain = dict(student_valid=21, teacher_valid=22)
    every = [
        term("forward_kl", temperature=2.0),
        term("reverse_kl", temperature=2.0),
        term("jensen_shannon", temperature=1.5, parameter=0.0625),
        term("jensen_shannon", temperature=1.5, parameter=0.75),
        term("skewed_forward_kl", temperature=0.5, parameter=0.125),
        term("skewed_reverse_kl", temperature=0.5, parameter=0.125),
        term("total_variation", temperature=1.0),
        term("soft_cross_entropy", temperature=3.0, scale_by_t2=False),
        term("logits_mse", temperature=2.0, scale_by_t2=False),
    ]
    for one in every:
        yield dict(plain, terms=[one], target=teacher)
        yield dict(plain, terms=[one], target=["interpolated", 0.375])
        if one["divergence"] != "logits_mse":
            yield dict(plain, terms=[one], target=["mixture", 0.75, 0.5])
    yield dict(plain, terms=[], target=teacher, label_weight=1.0)
    yield dict(student_valid=24, teacher_valid=17, terms=every, target=teacher, label_weight=0.25)
    yield dict(student_valid=20, teacher_valid=23, terms=every[:4], target=["interpolated", 0.875], label_weight=0.5)


def main():
    source = torch.Generator().manual_seed(20)
    # Values that f32 and a few decimals hold exactly.
    draw = lambda columns, scale: (torch.randn(ROWS, columns, generator=source) * scale * 64).round().double() / 64
    student, teacher = draw(24, 2.5), draw(23, 2.5)
    labels = torch.tensor([3, 16, IGNORED, 0, 9])
    record = dict(
        student=student.flatten().tolist(),
        teacher=teacher.flatten().tolist(),
        labels=labels.tolist(),
        cases=[run(case, student, teacher, labels) for case in cases()],
    )
    shorten = lambda x: float(f"{x:.9g}") if isinstance(x, float) else x
    for case in record["cases"]:
        case["gradient"] = [shorten(x) for x in case["gradient"]]
    Path(__file__).with_name("objectives.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
