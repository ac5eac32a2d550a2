"""How the student and the teacher are optimised: AdamW, and a learning rate that falls.

Owns    the shape of the schedule, how much slower learns what was known from the start, and that
        a seed says all.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

_SEEDED_RATE: Final = 0.05  # share of the learning rate for what was known from the start


def optimization(
    network: torch.nn.Module,
    seeded: Sequence[str],
    *,
    learning_rate: float,
    weight_decay: float,
    n_steps: int,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and its schedule over `n_steps`; parameters named in `seeded` learn slowly.

    Those hold what was known from the start.
    """
    named = list(network.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [own for name, own in named if name not in seeded]},
        {
            "params": [own for name, own in named if name in seeded],
            "lr": _SEEDED_RATE * learning_rate,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    warmup = max(1, n_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, warmup, n_steps)
    )
    return optimizer, schedule


def rate(step: int, warmup: int, total: int) -> float:
    """Return the share of the learning rate: a linear start, then half a cosine to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done)))


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and fix its threads for a while; give the caller's back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
