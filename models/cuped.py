"""CUPED: what users did before an experiment, taken out of what they did in it.

Reads   outcomes and an activity measured before a user could have been treated.
Emits   the share of the activity that predicts the outcome, and moments that keep it apart.
Owns    sums by which an experiment is looked at after each user, at the cost of one look.

A user who was active before is active after, in every arm alike. That part of the variance says
nothing of the arms; taking it out leaves the difference where it is and narrows its interval by
the root of 1 - correlation^2. What is measured before cannot depend on the arm: one that is
measured after the first push would take out some of the effect itself.

Deng, Xu, Kohavi and Walker, "Improving the sensitivity of online controlled experiments by
utilizing pre-experiment data", WSDM 2013.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Moments(NamedTuple):
    """Sums over an arm's users after each look, shape (T,); y is the outcome, x the activity.

    Each of the central sums is 0 before there are users.
    """

    n: Floats
    y: Floats  # mean
    x: Floats  # mean
    yy: Floats  # sum of squared distances from the mean
    xx: Floats
    xy: Floats


def running(y: Floats, x: Floats, is_in: NDArray[np.bool_]) -> Moments:
    """Return an arm's moments after each of N users of all arms, in the order they are counted.

    Parameters
    ----------
    y, x
        Of all users, shape (N,).
    is_in
        Which of them are of the arm, shape (N,).

    Examples
    --------
    >>> y, x = np.array([1.0, 9.0, 3.0]), np.array([0.0, 9.0, 2.0])
    >>> moments = running(y, x, np.array([True, False, True]))
    >>> moments.n.tolist(), moments.y.tolist(), moments.xy.tolist()
    ([1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [0.0, 0.0, 2.0])
    """
    # Shifted by a typical value first: sums of squares lose their digits far from 0.
    dy, dx = (np.where(is_in, v - (v.mean() if len(v) else 0.0), 0.0) for v in (y, x))
    n = np.cumsum(is_in, dtype=np.float64)
    some = np.maximum(n, 1.0)
    sum_y, sum_x = np.cumsum(dy), np.cumsum(dx)
    return Moments(
        n=n,
        y=np.where(n > 0, sum_y / some + (y.mean() if len(y) else 0.0), 0.0),
        x=np.where(n > 0, sum_x / some + (x.mean() if len(x) else 0.0), 0.0),
        yy=np.maximum(np.cumsum(dy * dy) - sum_y * sum_y / some, 0.0),
        xx=np.maximum(np.cumsum(dx * dx) - sum_x * sum_x / some, 0.0),
        xy=np.cumsum(dy * dx) - sum_x * sum_y / some,
    )


def slope(*arms: Moments) -> Floats:
    """Return the outcome that a unit of activity predicts, within arms; shape (T,).

    Within arms, for between them it would hold what the arms do. 0 where all are alike.
    """
    xx = np.sum([arm.xx for arm in arms], axis=0)
    xy = np.sum([arm.xy for arm in arms], axis=0)
    found: Floats = np.divide(xy, xx, out=np.zeros_like(xx), where=xx > 0)
    return found


def adjusted(arm: Moments, theta: Floats, centre: Floats) -> tuple[Floats, Floats]:
    """Return an arm's mean at an activity of `centre`, and the mean's variance; shape (T,).

    With `theta` 0 they are the plain ones. The variance is infinite below two users.

    >>> moments = running(np.array([1.0, 3.0]), np.array([0.0, 2.0]), np.array([True, True]))
    >>> [float(part[-1]) for part in adjusted(moments, slope(moments), np.array([1.0, 1.0]))]
    [2.0, 0.0]
    """
    mean = arm.y - theta * (arm.x - centre)
    squares = np.maximum(arm.yy - 2 * theta * arm.xy + theta * theta * arm.xx, 0.0)
    enough = arm.n > 1
    variance = np.full_like(arm.n, np.inf)
    np.divide(squares, arm.n * (arm.n - 1), out=variance, where=enough)
    return mean, variance


def correlation(*arms: Moments) -> float:
    """Return the correlation of outcome and activity within arms, at the last look.

    >>> x = np.arange(4.0)
    >>> round(correlation(running(2 * x, x, np.ones(4, bool))), 6)
    1.0
    """
    xx, yy, xy = (
        float(np.sum([getattr(arm, name)[-1] for arm in arms])) for name in ("xx", "yy", "xy")
    )
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0
