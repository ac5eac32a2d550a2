"""The registry of policies: by name, from a posterior and settings; and their rules, by name.

Reads   a posterior, of the learner that `learner_of` names.
Owns    which names there are, what each does in a sentence, and which learner each needs.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import DESIGN
from models.log_odds import Scale
from models.policy import AuditedPolicy, Greedy, Judged, Knobs, SquareCB, Uniform
from models.posterior import Posterior
from models.posterior_policies import DRAWS, Popularity, Softmax, Thompson, UpperBound

LINEAR: Final = "linear"
LOGISTIC: Final = "logistic"
NEURAL: Final = "neural"  # linear, with the student's columns beside `models.arms.DESIGN`


class PolicySettings(NamedTuple):
    """What policies can be set by; each reads its own."""

    floor: float = 0.002  # least probability of an arm
    gamma: float = 2_000.0  # squarecb
    growth: float = 0.5  # squarecb
    epsilon: float = 0.1  # epsilon_greedy
    temperature: float = 0.02  # softmax, reward units
    width: float = 0.3  # linucb, thompson, neural_linear and logistic ones, standard deviations
    draws: int = DRAWS  # thompson, neural_linear, logistic_thompson
    threshold: float = Scale().threshold  # logistic ones: log-odds of what doing nothing earns
    popularity: int = DESIGN.index("popularity")  # popularity: its column


Make = Callable[[Posterior, PolicySettings], AuditedPolicy]
Rule = Callable[[Judged, Knobs, bytes], NDArray[np.float64]]


class Kind(NamedTuple):
    """One policy of the registry."""

    meaning: str
    learner: str
    make: Make
    rule: Rule


def _upper(name: str, *, is_logistic: bool = False) -> Make:
    return lambda posterior, own: UpperBound(
        posterior,
        width=own.width,
        floor=own.floor,
        threshold=own.threshold if is_logistic else 0.0,
        policy_id=name,
    )


def _thompson(name: str, *, is_logistic: bool = False) -> Make:
    return lambda posterior, own: Thompson(
        posterior,
        width=own.width,
        draws=own.draws,
        floor=own.floor,
        threshold=own.threshold if is_logistic else 0.0,
        policy_id=name,
    )


KINDS: Final[Mapping[str, Kind]] = {
    "uniform": Kind("every arm alike", LINEAR, lambda posterior, own: Uniform(), Uniform.shares),
    "popularity": Kind(
        "the most popular arm",
        LINEAR,
        lambda posterior, own: Popularity(column=own.popularity, floor=own.floor),
        Popularity.shares,
    ),
    "greedy": Kind(
        "the arm of the highest value",
        LINEAR,
        lambda posterior, own: Greedy(posterior, epsilon=0.0, floor=own.floor),
        Greedy.shares,
    ),
    "epsilon_greedy": Kind(
        "the same, and any arm alike for the share epsilon",
        LINEAR,
        lambda posterior, own: Greedy(posterior, epsilon=own.epsilon, floor=own.floor),
        Greedy.shares,
    ),
    "softmax": Kind(
        "in proportion to exp(value / temperature)",
        LINEAR,
        lambda posterior, own: Softmax(posterior, temperature=own.temperature, floor=own.floor),
        Softmax.shares,
    ),
    "squarecb": Kind(
        "the less, the further an arm's value is behind the best",
        LINEAR,
        lambda posterior, own: SquareCB(
            posterior, gamma=own.gamma, growth=own.growth, floor=own.floor
        ),
        SquareCB.shares,
    ),
    "linucb": Kind(
        "the arm whose value may be highest, within width deviations",
        LINEAR,
        _upper("linucb"),
        UpperBound.shares,
    ),
    "thompson": Kind(
        "the probability that an arm is best, by draws of what is known",
        LINEAR,
        _thompson("thompson"),
        Thompson.shares,
    ),
    "logistic_ucb": Kind(
        "linucb on log-odds",
        LOGISTIC,
        _upper("logistic_ucb", is_logistic=True),
        UpperBound.shares,
    ),
    "logistic_thompson": Kind(
        "thompson on log-odds",
        LOGISTIC,
        _thompson("logistic_thompson", is_logistic=True),
        Thompson.shares,
    ),
    "neural_linear": Kind(
        "thompson, with columns of the student's vectors",
        NEURAL,
        _thompson("neural_linear"),
        Thompson.shares,
    ),
}


def make(name: str, posterior: Posterior, **settings: float) -> AuditedPolicy:
    """Return a policy by its name.

    Parameters
    ----------
    name
        One of `KINDS`.
    posterior
        Of `models.posterior.merge`, from shards of the learner `KINDS[name].learner`.
    settings
        Of `PolicySettings`; those of other policies are not read.

    Raises
    ------
    KeyError
        If there is no such policy.
    TypeError
        If there is no such setting.
    ValueError
        If a setting is out of its bounds.

    Examples
    --------
    >>> belief = Posterior(np.array([1.0]), np.eye(1), n=1_000)
    >>> policy = make("softmax", belief, temperature=0.1, gamma=5.0)
    >>> policy.policy_id, dict(policy.knobs)
    ('softmax', {'temperature': 0.1, 'floor': 0.002})
    """
    return KINDS[name].make(posterior, PolicySettings(**settings))  # type: ignore[arg-type]


def recompute(policy_id: str, judged: Judged, knobs: Knobs, seed: bytes) -> NDArray[np.float64]:
    """Return the probabilities again that a policy made of what it logged.

    Raises
    ------
    KeyError
        If there is no such policy, or a setting of it was not logged.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> judged = Judged(np.array([0.2, -0.1, 0.0]))
    >>> recompute("greedy", judged, {"epsilon": 0.3, "floor": 0.0}, b"").round(4).tolist()
    [0.8, 0.1, 0.1]
    """
    return KINDS[policy_id].rule(judged, knobs, seed)
