"""Experiments: what an arm does beside another, and whether the arms may be compared.

Reads   users in the order in which their time was over: arm, outcome, activity before.
Emits   differences with intervals, one planned look and any look; the check of the split.
Owns    how a comparison is made: difference of means of users, activity before taken out.

The unit is the user: users were split, and a user's pushes bear on each other. A user counts once
their time in the experiment is over, all in the same span from their own first exposure; so what
is looked at is a row of independent draws, as a confidence sequence wants it, and no arm is ahead
because its users came earlier.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cuped import Moments, adjusted, correlation, running, slope
from models.sequential import Boundary, normal_quantile, split_evidence, tuned, users_needed

Floats = NDArray[np.float64]

# Users of each arm before a look says something: the sequence rests on the central limit.
LEAST_USERS: Final = 30
# Below it the split is called wrong: so rare that it is worth to look for the fault first
# (Fabijan et al., "Diagnosing sample ratio mismatch", KDD 2019).
SPLIT_ALPHA: Final = 0.001


class Split(NamedTuple):
    """Whether users are split by the shares that were set."""

    counts: list[int]
    expected: list[float]
    p_value: float  # of one planned look, chi-square
    anytime_p_value: float  # of the worst look

    @property
    def is_wrong(self) -> bool:
        """Whether the arms are to be taken for not comparable."""
        return min(self.p_value, self.anytime_p_value) < SPLIT_ALPHA


class Look(NamedTuple):
    """A difference, treated less control, and how far it can be trusted."""

    difference: float
    error: float  # standard
    half: float  # of the interval of one planned look
    anytime_half: float  # of the interval that holds at every look
    anytime_p_value: float
    lift: float | None  # relative to the control's mean; None where that is not clear of 0
    lift_half: float | None
    lift_anytime_half: float | None


class Sequence(NamedTuple):
    """A comparison after each user, shape (T,), from the first look at which it says something."""

    users: NDArray[np.int64]  # of both arms
    at: NDArray[np.int64]  # place of the newest user in what was given
    differences: Floats
    halves: Floats
    anytime_halves: Floats


class Compared(NamedTuple):
    """Two arms beside each other; None where an arm has too few users."""

    look: Look | None
    adjusted: Look | None  # with the activity before taken out
    correlation: float  # of outcome and activity before, within arms
    sequence: Sequence  # of `adjusted`


def compare(
    outcomes: Floats,
    activities: Floats,
    is_treated: NDArray[np.bool_],
    is_control: NDArray[np.bool_],
    *,
    alpha: float = 0.05,
    planned: float = 10_000.0,
) -> Compared:
    """Compare two arms by an outcome.

    Parameters
    ----------
    outcomes, activities
        Of all users in the order in which their time was over, shape (N,). An activity is of
        before the user's first exposure.
    is_treated, is_control
        Who is in which arm, shape (N,); users of neither are passed over.
    alpha
        1 less the confidence of the intervals.
    planned
        Users of both arms at which the sequence is narrowest; set before the data are seen.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, is_treated = rng.normal(size=4_000), rng.random(4_000) < 0.5
    >>> y = x + rng.normal(size=4_000) + 0.2 * is_treated
    >>> found = compare(y, x, is_treated, ~is_treated)
    >>> found.adjusted.half < found.look.half, round(found.correlation, 1)
    (True, 0.7)
    """
    is_one = is_treated | is_control
    at = np.flatnonzero(is_one)
    y, x = outcomes[is_one], activities[is_one]
    arms = running(y, x, is_treated[is_one]), running(y, x, is_control[is_one])
    enough = np.flatnonzero(np.minimum(arms[0].n, arms[1].n) >= LEAST_USERS)
    if not len(enough):
        nothing = np.zeros(0)
        return Compared(None, None, 0.0, Sequence(at[:0], at[:0], nothing, nothing, nothing))
    boundary, first = tuned(planned, alpha), enough[0]
    theta = slope(*arms)
    plain = _Comparison(*arms, np.zeros_like(theta), boundary)
    better = _Comparison(*arms, theta, boundary)
    sequence = Sequence(
        users=np.arange(first, len(y)) + 1,
        at=at[first:],
        differences=better.differences[first:],
        halves=normal_quantile(1 - alpha / 2) * better.errors[first:],
        anytime_halves=better.anytime_halves[first:],
    )
    return Compared(plain.look(first), better.look(first), correlation(*arms), sequence)


class _Comparison:
    """Differences of two arms' means after each user; arrays of shape (T,)."""

    def __init__(
        self, treated: Moments, control: Moments, theta: Floats, boundary: Boundary
    ) -> None:
        self._users = treated.n + control.n
        centre = (treated.n * treated.x + control.n * control.x) / self._users
        self._treated = adjusted(treated, theta, centre)
        self._control = adjusted(control, theta, centre)
        self._boundary = boundary
        self.differences = self._treated[0] - self._control[0]
        self.errors: Floats = np.sqrt(self._treated[1] + self._control[1])
        self.anytime_halves = self.errors * boundary.errors(self._users)

    def look(self, first: int) -> Look:
        """Return how it stands at the last user; looks before `first` say nothing."""
        difference, error = float(self.differences[-1]), float(self.errors[-1])
        z = normal_quantile(1 - self._boundary.alpha / 2)
        wide = float(self._boundary.errors(self._users[-1:])[0])
        scores = np.divide(
            self.differences,
            self.errors,
            out=np.zeros_like(self.errors),
            where=(self.errors > 0) & np.isfinite(self.errors),
        )[first:]
        p_values = self._boundary.p_values(scores, self._users[first:])
        lift, lift_error = self._lift()
        halves = (None, None) if lift_error is None else (z * lift_error, wide * lift_error)
        return Look(difference, error, z * error, wide * error, float(p_values[-1]), lift, *halves)

    def _lift(self) -> tuple[float | None, float | None]:
        """Return the relative difference and its standard error, by the delta method."""
        (mean, variance), (base, base_variance) = (
            (float(part[0][-1]), float(part[1][-1])) for part in (self._treated, self._control)
        )
        if base <= 0 or base < 3 * math.sqrt(base_variance):
            return None, None
        relative = variance / base**2 + mean**2 * base_variance / base**4
        return mean / base - 1, math.sqrt(relative)


class Sizes(NamedTuple):
    """Users of all arms that it takes."""

    planned_look: int  # to find it by one look, when they are all in
    any_look: int  # to find it by a sequence that is narrowest there


def users_to_find(
    effect: float,
    spread: float,
    shares: tuple[float, float],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Sizes:
    """Return the users after which a difference between two arms is found.

    Parameters
    ----------
    effect
        Difference of the means of users, > 0.
    spread
        Standard deviation of users within an arm, once the activity before is taken out.
    shares
        Of all users that are in each of the two arms.
    alpha, power
        1 less the confidence, and how likely the difference is found.

    Examples
    --------
    >>> users_to_find(0.005, 0.218, (0.5, 0.5))  # a rate of 5% that rises by a tenth
    Sizes(planned_look=59682, any_look=114...)
    """
    both = spread * math.sqrt(sum(1 / share for share in shares))
    reach = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    planned = (reach * both / effect) ** 2
    return Sizes(math.ceil(planned), math.ceil(users_needed(effect, both, alpha, power)))


def check_split(arms: NDArray[np.int64], shares: Floats) -> Split:
    """Hold the users of each arm to the shares that were set (sample ratio mismatch).

    Parameters
    ----------
    arms
        Each user's, as an index into `shares`, in the order of first exposure; shape (N,).
    shares
        Summing to 1, shape (A,). Of arms with a share of 0 no user may be.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> shares = np.array([0.1, 0.9])
    >>> check_split(rng.choice(2, 10_000, p=shares), shares).is_wrong
    False
    >>> check_split(rng.choice(2, 10_000, p=[0.12, 0.88]), shares).is_wrong
    True
    """
    counts = np.bincount(arms, minlength=len(shares)).astype(np.float64)
    expected = shares * len(arms)
    is_set = shares > 0
    p_value = anytime = 1.0
    if counts[~is_set].any():
        p_value = anytime = 0.0
    elif len(arms) and is_set.sum() > 1:
        gaps = (counts - expected)[is_set] ** 2 / expected[is_set]
        p_value = chi_square_tail(float(gaps.sum()), int(is_set.sum()) - 1)
        # A look after each hundredth of the users: more find no more.
        looks = np.unique(np.linspace(1, len(arms), min(len(arms), 100)).astype(np.int64))
        seen = np.array([np.bincount(arms[:n], minlength=len(shares)) for n in looks.tolist()])
        evidence = split_evidence(seen[:, is_set], shares[is_set])
        anytime = math.exp(-max(float(evidence.max()), 0.0))
    return Split(counts.astype(int).tolist(), expected.tolist(), p_value, anytime)


def chi_square_tail(value: float, degrees: int) -> float:
    """Return the probability that a chi-square of `degrees` >= 1 exceeds a value.

    >>> [round(chi_square_tail(x, k), 4) for x, k in ((3.841, 1), (5.991, 2), (7.815, 3))]
    [0.05, 0.05, 0.05]
    """
    # Abramowitz and Stegun 26.4.4 and 26.4.5: sums in closed form for whole degrees.
    half = value / 2
    if degrees % 2:
        tail, term = math.erfc(math.sqrt(half)), math.exp(-half) * math.sqrt(half / math.pi) * 2
        first = 3
    else:
        tail, term = math.exp(-half), math.exp(-half) * half
        first = 4
    for k in range(first, degrees + 1, 2):
        tail += term
        term *= value / k
    return tail
