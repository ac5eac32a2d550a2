"""Who competes in `bench.regret`: ours, Vowpal Wabbit's, River's and MABWiser's, behind one call.

Owns    what each contestant is told of a moment, and how its settings become its options.

Ours  the product's own objects: `models.learner.RewardLearner` or `models.logistic`'s learner,
        `models.posterior.merge`, a policy of `models.policies`, `models.policy.sample`; a step is
        a second of event time. They see the rows of `Moment.rows`, one set of weights for all
        arms. The belief is taken anew every 10 rewards, as `learn` publishes now and then.
        "None", which every policy of ours has as its last arm, is not on offer here: its
        probability is shared among the arms in proportion, and where it has all, the best is taken.
VW    the same numbers, in two namespaces whose crosses it makes itself (-q ca), with its own
        constant: the same columns. It learns after every step, and is told the probability that
        it had given the chosen arm. Costs are -reward, or 1 - reward, as a setting.
River LinUCBDisjoint, MABWiser LinUCB and LinTS: weights for each arm apart, by the moment's
        numbers and a constant; where arms recover, also by the recency of all arms, 44 numbers.
        They can express the truth of the first two worlds. MABWiser learns every 50 steps, for
        one call costs it as much as 10 choices.
River ThompsonSampling and EpsilonGreedy: without context, for River has no others.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from river import bandit, proba, stats

from bench.regret_worlds import K, Moment
from models.drift import Watch
from models.learner import RewardLearner
from models.logistic import LogisticLearner
from models.policies import KINDS, LOGISTIC, make
from models.policy import sample
from models.posterior import merge

Settings = Mapping[str, Any]

_STEP_MS: Final = 1_000
_START_MS: Final = 1_700_000_000_000
_PUBLISH_STEPS: Final = 10
_EACH_OF_FIRST: Final = 100  # steps at first, each of which is published: there is little to know
_MABWISER_STEPS: Final = 50


class Contestant(Protocol):
    """Chooses at each step, and then hears what the chosen arm earned."""

    def choose(self, step: int, moment: Moment) -> int:
        """Return an arm, 0 to K - 1."""
        ...

    def learn(self, reward: float) -> None:
        """Learn the reward of the arm that was chosen last."""
        ...


class Uniform:
    """Any arm."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([4, seed])

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        return int(self._rng.integers(K))

    def learn(self, reward: float) -> None:
        """See `Contestant`."""


class Ours:
    """A policy of `models.policies`, its learner, and the watch for drift of its errors.

    Settings are `policy`, `half_life` in steps or 0, `prior`, `drift_keeps` as `operators.learning`
    has it, and those of the policy.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        own = dict(settings)
        self._name = own.pop("policy")
        self._half_life_ms = own.pop("half_life") * _STEP_MS
        self._prior = own.pop("prior")
        self._drift_keeps = own.pop("drift_keeps")
        self._settings = own
        self._seed = seed
        self._is_logistic = KINDS[self._name].learner == LOGISTIC
        self._learner: RewardLearner | LogisticLearner | None = None
        self._watch = Watch()
        self.n_alarms = self._step = 0

    def _start(self, moment: Moment) -> RewardLearner | LogisticLearner:
        dim = moment.rows().shape[1]
        names = [f"x{i}" for i in range(dim)]
        if self._is_logistic:
            return LogisticLearner(
                names, spec_hash="bench", prior=self._prior, half_life_ms=self._half_life_ms
            )
        return RewardLearner(names, spec_hash="bench", half_life_ms=self._half_life_ms)

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        if self._learner is None:
            self._learner = self._start(moment)
        if step % _PUBLISH_STEPS == 0 or step < _EACH_OF_FIRST:
            self._publish()
        seed = b"%d-%d" % (self._seed, step)
        rows = moment.rows()
        values, shares = (each[:-1] for each in self._policy.distribution(rows, seed))
        total = float(shares.sum())
        arm = sample(shares / total, seed) if total else int(values.argmax())
        self._step, self._row = step, rows[arm]
        return arm

    def _publish(self) -> None:
        assert self._learner is not None
        posterior = merge([self._learner.statistics()], self._prior)
        self._policy = make(self._name, posterior, **self._settings)

    def learn(self, reward: float) -> None:
        """See `Contestant`."""
        assert self._learner is not None
        if self._drift_keeps:
            self._watch_for_drift(self._learner, reward)
        self._learner.learn(self._row, reward, _START_MS + self._step * _STEP_MS)

    def _watch_for_drift(self, learner: RewardLearner | LogisticLearner, reward: float) -> None:
        """Do as `operators.learning` does, with one segment."""
        if self._watch.update(reward - learner.predict(self._row)):
            self._watch = Watch()
            if learner.weight > self._drift_keeps:
                learner.discount(self._drift_keeps / learner.weight)
            self.n_alarms += 1


class VowpalWabbit:
    """VW's contextual bandit with features of actions; `options` and `cost`: "-r" or "1-r"."""

    def __init__(self, settings: Settings, seed: int) -> None:
        from vowpalwabbit import Workspace  # noqa: PLC0415 - of the extra `bandits`

        self._vw = Workspace(f"--cb_explore_adf --quiet -q ca {settings['options']}")
        self._offset = 1.0 if settings["cost"] == "1-r" else 0.0
        self._seed = seed

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        lines = [f"shared |c {_numbers(moment.context)}"]
        lines += [f"|a {_numbers(arm)}" for arm in moment.arms]
        self._examples = self._vw.parse(lines)
        predicted = np.array(self._vw.predict(self._examples))
        arm = sample(predicted / predicted.sum(), b"%d-%d" % (self._seed, step))
        self._arm, self._share = arm, float(predicted[arm])
        return arm

    def learn(self, reward: float) -> None:
        """See `Contestant`."""
        label = f"0:{self._offset - reward:.4f}:{self._share:.6f}"
        self._examples[1 + self._arm].set_label_string(label)  # after the shared example
        self._vw.learn(self._examples)
        self._vw.finish_example(self._examples)


class RiverLinUCB:
    """River's `LinUCBDisjoint`."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._policy = bandit.LinUCBDisjoint(alpha=settings["alpha"], seed=seed)

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        self._context = {str(i): v for i, v in enumerate(_apart(moment).tolist())}
        self._arm = int(self._policy.pull(_ARMS, self._context))
        return self._arm

    def learn(self, reward: float) -> None:
        """See `Contestant`."""
        self._policy.update(self._arm, self._context, reward)


class RiverPlain:
    """River's policies without context."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        self._arm = int(self._policy.pull(_ARMS))
        return self._arm

    def learn(self, reward: float) -> None:
        """See `Contestant`."""
        self._policy.update(self._arm, reward)


class MabWiser:
    """MABWiser's contextual policies; each arm is tried once first, as it cannot start empty."""

    def __init__(self, name: str, alpha: float, seed: int) -> None:
        from mabwiser.mab import MAB, LearningPolicy  # noqa: PLC0415 - of the extra `bandits`

        self._mab = MAB(_ARMS, getattr(LearningPolicy, name)(alpha=alpha), seed=seed)
        self._seen: list[tuple[int, float, NDArray[np.float64]]] = []
        self._is_fit = False

    def choose(self, step: int, moment: Moment) -> int:
        """See `Contestant`."""
        self._context = _apart(moment)
        self._arm = int(self._mab.predict(self._context[None])) if self._is_fit else step % K
        return self._arm

    def learn(self, reward: float) -> None:
        """See `Contestant`."""
        self._seen.append((self._arm, reward, self._context))
        if len(self._seen) == (_MABWISER_STEPS if self._is_fit else K):
            arms, rewards, contexts = (np.array(column) for column in zip(*self._seen, strict=True))
            (self._mab.partial_fit if self._is_fit else self._mab.fit)(arms, rewards, contexts)
            self._is_fit = True
            self._seen.clear()


Make = Callable[[Settings, int], Contestant]


def _river_thompson(settings: Settings, seed: int) -> Contestant:
    belief = proba.Beta() if settings["is_click"] else proba.Gaussian()
    return RiverPlain(bandit.ThompsonSampling(reward_obj=belief, seed=seed))


def _river_epsilon(settings: Settings, seed: int) -> Contestant:
    return RiverPlain(
        bandit.EpsilonGreedy(epsilon=settings["epsilon"], reward_obj=stats.Mean(), seed=seed)
    )


FAMILIES: Final[dict[str, Make]] = {
    "uniform": lambda settings, seed: Uniform(seed),
    "ours": Ours,
    "vw": VowpalWabbit,
    "river linucb": RiverLinUCB,
    "river thompson": _river_thompson,
    "river epsilon": _river_epsilon,
    "mabwiser linucb": lambda settings, seed: MabWiser("LinUCB", settings["alpha"], seed),
    "mabwiser lints": lambda settings, seed: MabWiser("LinTS", settings["alpha"], seed),
}

_ARMS: Final = list(range(K))


def _apart(moment: Moment) -> NDArray[np.float64]:
    """Return what a contestant with weights for each arm sees: a constant, the moment, recency."""
    return np.concatenate([[1.0], moment.context, moment.recency.ravel()])


def _numbers(values: NDArray[np.float64]) -> str:
    return " ".join(f"x{i}:{value:.4f}" for i, value in enumerate(values.tolist()))
