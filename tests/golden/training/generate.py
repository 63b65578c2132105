"""Trains a tiny student for ten steps with torch, once for each objective, and writes what aludel is held to.

    pip install torch transformers
    python tests/golden/training/generate.py

Writes two seeded models (`teacher`, `student`) and `losses.json`: the documents (three for each step, six in turn), and for each run its settings and the loss,
the learning rate and the norm of the gradient of every step, and some of the final weights; and what transformers generates
and scores with the models. Made with torch 2.15 and
transformers 5.24 on a CPU, in f32.

The schedule, AdamW and the clipping are transformers' and torch's own; the objectives are written here from their papers.
"""

import json
import math
import pathlib
import random

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

HERE = pathlib.Path(__file__).parent
STEPS, WARMUP, MICRO_BATCHES = 10, 2, 3
RATE, DECAY, BETAS, EPSILON, CLIP = 2e-2, 0.1, (0.9, 0.98), 1e-8, 1.0
IGNORED = -100


def model(layers, tied, seed, deviation):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        initializer_range=deviation, bos_token_id=None, eos_token_id=None,
    )
    model = LlamaForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model


def documents():
    """Ids and, for each, whether it is learned: the first few tokens of each document are not."""
    source = random.Random(1)
    documents = []
    for _ in range(2 * MICRO_BATCHES):
        length = source.randint(6, 24)
        prompt = source.randint(0, length // 2)
        ids = [source.randrange(64) for _ in range(length)]
        documents.append({"ids": ids, "learned": [place >= prompt for place in range(length)]})
    return documents


def rows(student, teacher, document):
    """Logits of both at the rows whose next token is learned, and those tokens."""
    ids = torch.tensor([document["ids"]])
    labels = torch.tensor([i if l else IGNORED for i, l in zip(document["ids"], document["learned"])])[1:]
    keep = labels != IGNORED
    z = student(ids).logits[0, :-1][keep]
    with torch.no_grad():
        y = teacher(ids).logits[0, :-1][keep]
    return z, y, labels[keep]


def forward_kl(z, y, temperature):
    p, log_p = F.softmax(y / temperature, -1), F.log_softmax(y / temperature, -1)
    return (p * (log_p - F.log_softmax(z / temperature, -1))).sum() * temperature**2


def jsd(z, y, beta):
    log_p, log_q = F.log_softmax(y, -1), F.log_softmax(z, -1)
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).log()
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum()


def taid(z, y, t):
    target = F.softmax((1 - t) * z.detach() + t * y, -1)
    return -(target * F.log_softmax(z, -1)).sum()


class Taid:
    """The paper's schedule."""

    def __init__(self):
        self.t, self.momentum, self.previous = 0.4, 0.0, None

    def update(self, loss, step):
        if self.previous is not None:
            self.momentum = 0.99 * self.momentum + 0.01 * (self.previous - loss) / (self.previous + 1e-15)
            linear = 0.4 + 0.6 * step / STEPS
            pull = 1 / (1 + math.exp(-self.momentum))
            self.t = min(1.0, max(linear, self.t + 5e-4 * pull * (1 - self.t)))
        self.previous = loss


def train(objective):
    student, teacher = (LlamaForCausalLM.from_pretrained(HERE / name).float() for name in ("student", "teacher"))
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    state, steps, data = Taid(), [], documents()
    for step in range(STEPS):
        micro = data[step % 2 * MICRO_BATCHES :][:MICRO_BATCHES]
        tokens = sum(sum(document["learned"][1:]) for document in micro)
        loss = 0.0
        for document in micro:
            z, y, labels = rows(student, teacher, document)
            part = {
                "cross_entropy": lambda: F.cross_entropy(z, labels, reduction="sum"),
                "forward_kl": lambda: forward_kl(z, y, 2.0),
                "jsd": lambda: jsd(z, y, 0.3),
                "taid": lambda: taid(z, y, state.t),
            }[objective]() / tokens
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP).item()
        steps.append({"loss": loss, "learning_rate": schedule.get_last_lr()[0], "gradient_norm": norm, "t": state.t})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        state.update(loss, step + 1)
    final = {name: tensor.flatten()[:4].tolist() for name, tensor in student.state_dict().items()
             if name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight")}
    return {"steps": steps, "final": final}


def generate():
    """Greedy continuations by transformers, and the log-likelihood of a long document in strided windows."""
    teacher, student = (LlamaForCausalLM.from_pretrained(HERE / name).float().eval() for name in ("teacher", "student"))
    prompt = [5, 17, 3, 60, 8]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        text = teacher.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    source = random.Random(2)
    document = [source.randrange(64) for _ in range(50)]
    window, stride, done, nll, correct, agreed, kl = 16, 6, 1, 0.0, 0, 0, 0.0
    for start in range(0, len(document), stride):
        end = min(start + window, len(document))
        ids = torch.tensor([document[start:end]])
        with torch.no_grad():
            z, y = (F.log_softmax(m(ids).logits[0, done - start - 1 : end - start - 1].double(), -1) for m in (student, teacher))
        labels = torch.tensor(document[done:end])
        nll -= z.gather(1, labels[:, None]).sum().item()
        correct += (z.argmax(-1) == labels).sum().item()
        agreed += (z.argmax(-1) == y.argmax(-1)).sum().item()
        kl += (y.exp() * (y - z)).sum().item()
        done = end
        if end == len(document):
            break
    return {"prompt": prompt, "tokens": text[0, len(prompt) :].tolist(), "document": document, "window": window, "stride": stride,
            "cross_entropy": nll / 49, "correct": correct, "agreement": agreed, "kl": kl / 49}


if __name__ == "__main__":
    model(3, False, 1, 0.35).save_pretrained(HERE / "teacher")
    model(2, True, 2, 0.1).save_pretrained(HERE / "student")
    runs = {objective: train(objective) for objective in ("cross_entropy", "forward_kl", "jsd", "taid")}
    settings = {"steps": STEPS, "warmup": WARMUP, "micro_batches": MICRO_BATCHES, "learning_rate": RATE,
                "weight_decay": DECAY, "betas": BETAS, "epsilon": EPSILON, "clip": CLIP}
    text = json.dumps({"settings": settings, "documents": documents(), "runs": runs, "text": generate()})
    (HERE / "losses.json").write_text(text + "\n")
    for file in HERE.glob("*/model.safetensors"):
        file.chmod(0o644)
