"""What `obp` 0.4.1 makes of one log: the figures that our estimators are held to.

    pip install --target DIR obp==0.4.1
    PYTHONPATH=DIR python -m tests.models.obp_figures > tests/data/obp.json

`obp` needs pandas, scikit-learn and seaborn, which nothing else here does; so its figures are kept
and it is no dependency.
"""

import json
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

N, K = 300, 5
TAU: Final = 1.5  # of switch_dr
STRENGTH: Final = 3.0  # of dros
VERSION: Final = "0.4.1"


class Case(NamedTuple):
    """One log as obp has it, arms padded."""

    logging: NDArray[np.float64]  # (N, K)
    target: NDArray[np.float64]  # (N, K)
    expected: NDArray[np.float64]  # (N, K), a reward model's
    actions: NDArray[np.int64]  # (N,)
    rewards: NDArray[np.float64]  # (N,)


def case() -> Case:
    """Return the log; NumPy promises that this generator's stream stays as it is."""
    rng = np.random.RandomState(7)
    logging = 0.02 + rng.rand(N, K) ** 3
    logging /= logging.sum(axis=1, keepdims=True)
    target = 0.01 + rng.rand(N, K) ** 3
    target /= target.sum(axis=1, keepdims=True)
    rates = rng.rand(N, K)
    expected = np.clip(rates + rng.uniform(-0.3, 0.3, (N, K)), 0, 1)
    actions = (logging.cumsum(axis=1) < rng.rand(N, 1)).sum(axis=1)
    rewards = (rng.rand(N) < rates[np.arange(N), actions]).astype(np.float64)
    return Case(logging, target, expected, actions, rewards)


def figures(own: Case) -> dict[str, float]:
    """Return obp's estimates by our names."""
    import obp.ope as obp

    estimators = {
        "dm": obp.DirectMethod(),
        "ips": obp.InverseProbabilityWeighting(),
        "snips": obp.SelfNormalizedInverseProbabilityWeighting(),
        "dr": obp.DoublyRobust(),
        "sndr": obp.SelfNormalizedDoublyRobust(),
        "switch_dr": obp.SwitchDoublyRobust(tau=TAU),
        "dros": obp.DoublyRobustWithShrinkage(lambda_=STRENGTH),
    }
    log: dict[str, Any] = {
        "reward": own.rewards,
        "action": own.actions,
        "position": np.zeros(N, int),
        "pscore": own.logging[np.arange(N), own.actions],
        "action_dist": own.target[:, :, None],
        "estimated_rewards_by_reg_model": own.expected[:, :, None],
    }
    return {name: float(one.estimate_policy_value(**log)) for name, one in estimators.items()}


if __name__ == "__main__":
    print(json.dumps({"obp": VERSION, "figures": figures(case())}, indent=1))
