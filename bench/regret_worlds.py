"""Worlds whose truth is known, for `bench.regret`: what each arm earns on average, at every step.

Owns    four worlds of 20 arms, and what regret means in them.

Each step has a moment, some numbers that all arms share, and each arm has some numbers of its own.
What is known of an arm then is (1, the arm's numbers) x (1, the moment's): a constant, both alone,
and their crosses. The truth is made of these columns, so whoever learns one set of weights for all
arms can find it, and in the first two worlds, where arms do not change, so can whoever learns each
arm by itself from the moment.

`logistic`    3 numbers of the moment, 3 of an arm: 16 columns. A reward is 1 with probability
              sigmoid(columns x truth), else 0. Half way the truth turns by a right angle.
`sparse`      7 and 4 numbers: 40 columns, of which 5 tell arms apart. A reward is linear in them,
              between about 0 and 1, with Gaussian noise.
`recovering`  As the first without its turn; and an arm appeals less after it was chosen: its
              log-odds are lower by a drop that fades with the steps since. Size and pace of the
              drop are the world's. Contestants see exp(-steps since / 8) and the same of 32 as two
              more numbers of the arm, of the form of the product's `push_recency`: 24 columns.
`uneven`      The same, but each arm drops by an amount and recovers at a pace of its own, which
              no column tells.

A world is all of its seed: two contestants with the same seed meet the same moments, and the same
arm chosen at the same step in the same state earns the same.

References
----------
Pike-Burke & Grunewalder, "Recovering bandits", NeurIPS 2019.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

K: Final = 20
RECENCY_STEPS: Final = np.array([8.0, 32.0])  # the paces of the columns that are seen
_NEVER: Final = -1_000_000  # the step at which an arm was last chosen that never was
_DECIMALS: Final = 4  # of all that is seen: text and arrays hold the same numbers
_MEAN_LOGIT: Final = -1.0
_LOGIT_NORM: Final = 1.5  # of the weights that tell arms apart
_N_TELLING: Final = 5  # weights of the sparse world
_SHARE: Final = 0.12  # size of each of them
_NOISE: Final = 0.25  # standard deviation of the sparse world's rewards
_STEADY: Final = np.empty((0, 0))


class Moment(NamedTuple):
    """What is seen at a step: the moment's numbers (C,), each arm's (K, A).

    `recency` is what of `arms` changes, where arms recover, shape (K, 2), for those who take no
    numbers of arms.
    """

    context: Floats
    arms: Floats
    recency: Floats = _STEADY

    def rows(self) -> Floats:
        """Return the columns of each arm, (1, arm) x (1, context), shape (K, (1 + A) (1 + C)).

        >>> Moment(np.array([2.0]), np.array([[3.0], [5.0]])).rows().tolist()
        [[1.0, 2.0, 3.0, 6.0], [1.0, 2.0, 5.0, 10.0]]
        """
        shared, own = _with_one(self.context), _with_one(self.arms)  # (1 + C,), (K, 1 + A)
        return (own[:, :, None] * shared).reshape(len(own), -1)


class World:
    """Moments, and what arms earn that stay as they are.

    Parameters
    ----------
    contexts
        The moments' numbers, shape (T, C).
    arms
        The arms' own, shape (K, A).
    means
        What each arm earns on average, shape (T, K).
    luck
        One number a step, shape (T,): the noise, or for clicks what the mean must be above.
    """

    def __init__(
        self, contexts: Floats, arms: Floats, means: Floats, luck: Floats, *, is_click: bool
    ) -> None:
        self._contexts, self._arms, self._means, self._luck = contexts, arms, means, luck
        self._is_click = is_click
        self.n_steps = len(contexts)

    def moment(self, step: int) -> Moment:
        """Return what is seen."""
        return Moment(self._contexts[step], self._arms)

    def means(self, step: int) -> Floats:
        """Return what each arm earns on average now, shape (K,)."""
        means: Floats = self._means[step]
        return means

    def best_means(self) -> Floats:
        """Return what the best arm of each step earns on average, shape (T,)."""
        best: Floats = self._means.max(axis=1)
        return best

    def play(self, step: int, arm: int) -> float:
        """Return the reward of an arm."""
        mean, luck = float(self.means(step)[arm]), float(self._luck[step])
        return float(luck < mean) if self._is_click else mean + luck


class RecoveringWorld(World):
    """A world whose arms appeal less for a while after they were chosen; it keeps who was when.

    Parameters
    ----------
    contexts, arms, luck
        As for `World`.
    logits
        Of a click on an arm that has recovered, shape (T, K).
    drop, pace
        What the log-odds are lower by at once, and the steps in which it fades by a factor of e;
        each of one number or of shape (K,).
    """

    def __init__(
        self,
        contexts: Floats,
        arms: Floats,
        logits: Floats,
        luck: Floats,
        *,
        drop: float | Floats,
        pace: float | Floats,
    ) -> None:
        super().__init__(contexts, arms, logits, luck, is_click=True)
        self._drop, self._pace = drop, pace
        self._chosen = np.full(len(arms), _NEVER)

    def moment(self, step: int) -> Moment:
        """Return what is seen, each arm's recency with it."""
        since = (self._chosen - step)[:, None] / RECENCY_STEPS
        recency = np.exp(since).round(_DECIMALS)  # (K, 2)
        arms = np.concatenate([self._arms, recency], axis=1)  # (K, A + 2)
        return Moment(self._contexts[step], arms, recency)

    def means(self, step: int) -> Floats:
        """Return what each arm earns on average now, shape (K,)."""
        drops = self._drop * np.exp((self._chosen - step) / self._pace)  # (K,)
        return _sigmoid(self._means[step] - drops)

    def best_means(self) -> Floats:
        """Return what is earned by always choosing the arm that is best now, shape (T,).

        On its own path: where arms recover, who chooses makes what comes. So nobody who looks no
        further than the moment does better on average, but who looks ahead may.
        """
        fresh = RecoveringWorld(
            self._contexts, self._arms, self._means, self._luck, drop=self._drop, pace=self._pace
        )
        best = np.empty(self.n_steps)
        for step in range(self.n_steps):
            means = fresh.means(step)
            arm = int(means.argmax())
            best[step] = means[arm]
            fresh.play(step, arm)
        return best

    def play(self, step: int, arm: int) -> float:
        """Return the reward of an arm, which is the most recent from now on."""
        reward = super().play(step, arm)
        self._chosen[arm] = step
        return reward


def logistic(seed: int, n_steps: int) -> World:
    """Return the world `logistic`."""
    rng = np.random.default_rng([1, seed])
    contexts, arms = _normals(rng, n_steps, 3), _normals(rng, K, 3)
    before = _truth(rng, 3, 3)
    after = _turned(rng, before)
    logits = _products(contexts, arms, before)
    logits[n_steps // 2 :] = _products(contexts[n_steps // 2 :], arms, after)
    return World(contexts, arms, _sigmoid(logits), rng.random(n_steps), is_click=True)


def sparse(seed: int, n_steps: int) -> World:
    """Return the world `sparse`."""
    rng = np.random.default_rng([2, seed])
    contexts = rng.uniform(-1, 1, (n_steps, 7)).round(_DECIMALS)
    arms = rng.uniform(-1, 1, (K, 4)).round(_DECIMALS)
    telling = np.zeros(4 * 8)
    places = rng.permutation(len(telling))[:_N_TELLING]
    telling[places] = _SHARE * rng.choice([-1.0, 1.0], _N_TELLING)
    truth = np.concatenate([[0.5], np.zeros(7), telling]).reshape(5, 8)
    means = _products(contexts, arms, truth)
    return World(contexts, arms, means, rng.normal(0.0, _NOISE, n_steps), is_click=False)


def recovering(seed: int, n_steps: int) -> World:
    """Return the world `recovering`."""
    return _recovering(np.random.default_rng([3, seed]), n_steps, n_paces=1)


def uneven(seed: int, n_steps: int) -> World:
    """Return the world `uneven`."""
    return _recovering(np.random.default_rng([5, seed]), n_steps, n_paces=K)


def _recovering(rng: np.random.Generator, n_steps: int, *, n_paces: int) -> World:
    contexts, arms = _normals(rng, n_steps, 3), _normals(rng, K, 3)
    logits = _products(contexts, arms, _truth(rng, 3, 3))
    drop, pace = rng.uniform(2.0, 4.0, n_paces), rng.uniform(5.0, 40.0, n_paces)
    return RecoveringWorld(contexts, arms, logits, rng.random(n_steps), drop=drop, pace=pace)


WORLDS: Final[dict[str, Callable[[int, int], World]]] = {
    "logistic": logistic,
    "sparse": sparse,
    "recovering": recovering,
    "uneven": uneven,
}


def _normals(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    # Within [-3, 3], as the product's columns are.
    return rng.normal(size=(rows, columns)).clip(-3, 3).round(_DECIMALS)


def _truth(rng: np.random.Generator, n_context: int, n_arm: int) -> Floats:
    """Return weights of the columns, shape (1 + A, 1 + C); none of the moment alone."""
    truth = np.zeros((1 + n_arm, 1 + n_context))
    truth[0, 0] = _MEAN_LOGIT
    telling = rng.normal(size=(n_arm, 1 + n_context))
    truth[1:] = telling * _LOGIT_NORM / np.linalg.norm(telling)
    return truth


def _turned(rng: np.random.Generator, truth: Floats) -> Floats:
    """Return weights of the same size at a right angle, the constant kept."""
    old = truth[1:]
    other = rng.normal(size=old.shape)
    other -= (other * old).sum() / (old * old).sum() * old
    turned = truth.copy()
    turned[1:] = other * np.linalg.norm(old) / np.linalg.norm(other)
    return turned


def _products(contexts: Floats, arms: Floats, truth: Floats) -> Floats:
    """Return the columns' products with the truth, shape (T, K)."""
    products: Floats = _with_one(contexts) @ truth.T @ _with_one(arms).T
    return products


def _with_one(numbers: Floats) -> Floats:
    """Put a 1 before the last axis."""
    return np.concatenate([np.ones((*numbers.shape[:-1], 1)), numbers], axis=-1)


def _sigmoid(logits: Floats) -> Floats:
    p: Floats = 1.0 / (1.0 + np.exp(-logits))
    return p
