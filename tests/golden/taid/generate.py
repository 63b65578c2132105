"""Records the schedule of TAID over 200 steps, written from the paper's algorithm (Shing et al. 2025).

    python generate.py    # writes schedule.json beside this file; needs nothing but Python

The losses are made up: falling, with noise, a jump, a stretch that does not move and one that grows.
"""

import json
import math
import random
from pathlib import Path


def losses(steps, seed):
    source = random.Random(seed)
    for step in range(steps):
        if step == 60:
            yield 9.5
        elif 100 <= step < 120:
            yield 1.25
        elif 150 <= step < 160:
            yield 1.0 + 0.3 * (step - 150)
        else:
            yield 3.5 * math.exp(-step / 70) + 0.8 + 0.15 * source.gauss(0.0, 1.0)


def schedule(values, t_start, t_end, alpha, beta, total):
    t, momentum, previous = t_start, 0.0, None
    for done, loss in enumerate(values, start=1):
        if previous is not None:
            relative_change = (previous - loss) / (previous + 1e-15)
            momentum = beta * momentum + (1.0 - beta) * relative_change
            step_size = alpha * (1.0 / (1.0 + math.exp(-momentum))) * (1.0 - t)
            lower_bound = t_start + (t_end - t_start) * done / total
            t = min(t_end, max(lower_bound, t + step_size))
        previous = loss
        yield t


def main():
    cases = []
    for name, settings, total in [
        ("defaults", dict(t_start=0.4, t_end=1.0, alpha=5e-4, beta=0.99), 200),
        ("the linear part is slow", dict(t_start=0.1, t_end=0.9, alpha=2e-2, beta=0.9), 4000),
        ("the end is reached early", dict(t_start=0.2, t_end=0.6, alpha=5e-2, beta=0.5), 250),
    ]:
        values = list(losses(200, seed=len(cases)))
        cases.append(
            dict(name=name, settings=settings, total=total, losses=values, t=list(schedule(values, total=total, **settings)))
        )
    path = Path(__file__).with_name("schedule.json")
    path.write_text(json.dumps(cases, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
