"""An apprentice is promoted for what it would have earned, and for nothing else."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.apprentice import Rule, judge
from models.ope_interval import Resampling
from models.ope_log import BanditLog

N, K = 4_000, 4
FEW = Resampling(draws=150)
RULE = Rule(margin=0.02, planned=4_000)


def log(rng: np.random.Generator, n: int = N) -> tuple[BanditLog, NDArray[np.float64]]:
    """Decisions of a policy that prefers no arm much, and what each arm earns on average."""
    x = rng.normal(size=(n * K, 3))
    x[K - 1 :: K] = 0  # "none" earns nothing
    means = 0.1 * x[:, 0]
    shares = rng.dirichlet(np.full(K, 20.0), size=n)
    draws = (rng.random(n)[:, None] > shares.cumsum(axis=1)).sum(axis=1)
    offsets = K * np.arange(n + 1)
    chosen = offsets[:-1] + draws
    found = BanditLog(
        offsets=offsets,
        probabilities=shares.ravel(),
        chosen=chosen,
        rewards=np.clip(means[chosen] + 0.3 * rng.normal(size=n), -3, 3),
        groups=np.arange(n) // 2,
        reward_range=(-3.0, 3.0),
        rows=lambda at: x[K * at : K * (at + 1)],
        segments=[""] * n,
    )
    return found, means


def leaning(means: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """A policy that leans to the better arms, or from them."""
    worth = np.exp(by * means.reshape(-1, K))
    shares: NDArray[np.float64] = (worth / worth.sum(axis=1, keepdims=True)).ravel()
    return shares


def test_one_that_earns_more_is_promoted(rng: np.random.Generator) -> None:
    found, means = log(rng)
    verdict = judge(found, leaning(means, 5.0), RULE, FEW)

    assert verdict.outcome == "promote"
    assert verdict.low < verdict.difference < verdict.high
    truth = float((leaning(means, 5.0) - found.probabilities) @ means) / N
    assert verdict.low < truth < verdict.high
    assert truth > 0.02


def test_one_that_earns_less_is_rejected(rng: np.random.Generator) -> None:
    found, means = log(rng)
    verdict = judge(found, leaning(means, -8.0), RULE, FEW)

    assert verdict.outcome == "reject"
    assert verdict.high < -0.02


def test_one_that_does_the_same_is_let_pass_within_the_margin(rng: np.random.Generator) -> None:
    found, _means = log(rng)
    assert judge(found, found.probabilities, RULE, FEW).outcome == "promote"


def test_one_that_may_lose_more_than_the_margin_waits(rng: np.random.Generator) -> None:
    found, means = log(rng)
    verdict = judge(found, leaning(means, 0.0), RULE._replace(margin=1e-4), FEW)

    assert verdict.outcome == "wait"
    assert verdict.reasons[0].startswith("it may lose")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"min_decisions": N + 1}, "4000 decisions of 4001"), ({"min_ess": 1e9}, "effective")],
)
def test_a_log_that_says_too_little_makes_it_wait(
    rng: np.random.Generator, change: dict[str, float], reason: str
) -> None:
    found, means = log(rng)
    verdict = judge(found, leaning(means, 5.0), RULE._replace(**change), FEW)

    assert verdict.outcome == "wait"
    assert reason in verdict.reasons[0]


def test_looking_again_and_again_promotes_none_that_loses_too_much(
    rng: np.random.Generator,
) -> None:
    promoted = 0
    for _ in range(12):
        found, means = log(rng, 1_000)
        target = leaning(means, -1.0)
        lost = float((found.probabilities - target) @ means) / 1_000
        rule = Rule(margin=lost, min_decisions=250, min_ess=50, planned=1_000)
        for n in range(250, 1_001, 250):
            own = found._replace(
                offsets=found.offsets[: n + 1],
                probabilities=found.probabilities[: K * n],
                chosen=found.chosen[:n],
                rewards=found.rewards[:n],
                groups=found.groups[:n],
                segments=found.segments[:n],
            )
            if judge(own, target[: K * n], rule, FEW).outcome == "promote":
                promoted += 1
                break

    assert promoted <= 2  # 0.3 are due at most
