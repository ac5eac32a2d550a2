"""What a value function makes of a log: policies of send and hold side by side.

Reads   `models.value_data.Steps` and a value file.
Emits   the value of each policy with its interval, and a table of them.
Owns    which policies are compared.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from models.value import HOLD, SEND, ValueFunction
from models.value_data import Steps
from models.value_evaluation import evaluate


def judged(steps: Steps, path: Path, *, seed: int = 0) -> dict[str, list[float] | None]:
    """Return value, low and high of each policy by its name; None where the log says nothing."""
    value = ValueFunction.load(path)
    q = value.q(steps.states)
    policies = {
        "as logged": steps.probabilities,
        "where it pays": (q[:, SEND] > q[:, HOLD]).astype(np.float64),
        "always": np.ones(len(q)),
        "never": np.zeros(len(q)),
    }
    features = features_of(value, steps)
    found: dict[str, list[float] | None] = {}
    for name, sends in policies.items():
        try:
            found[name] = [round(x, 4) for x in evaluate(steps, sends, features, seed=seed)]
        except ValueError:
            found[name] = None
    return found


def features_of(value: ValueFunction, steps: Steps) -> NDArray[np.float64]:
    """Return what evaluation is linear in: the network's last hidden layer, and a constant."""
    hidden = value.hidden(steps.states)
    return np.column_stack([hidden, np.ones(len(hidden))])


def table(found: dict[str, list[float] | None]) -> Table:
    """Return the values for the terminal."""
    rows = Table("policy", "value a user", "95% interval", show_edge=False)
    for name, estimate in found.items():
        if estimate is None:
            rows.add_row(name, "-", "the log does not carry it")
        else:
            rows.add_row(name, f"{estimate[0]:.3f}", f"{estimate[1]:.3f} to {estimate[2]:.3f}")
    return rows
