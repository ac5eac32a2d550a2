"""CUPED takes out what was there before, and leaves the difference where it is."""

import numpy as np
import pytest

from models.cuped import adjusted, correlation, running, slope

N = 20_000


@pytest.mark.parametrize("planted", [0.0, 0.5, 0.9])
def test_the_variance_falls_by_the_square_of_the_planted_correlation(
    rng: np.random.Generator, planted: float
) -> None:
    x = rng.normal(size=N)
    y = 3.0 + planted * x + np.sqrt(1 - planted**2) * rng.normal(size=N)
    arm = running(y, x, np.ones(N, np.bool_))
    zero = np.zeros(N)
    (_, plain), (_, better) = (adjusted(arm, theta, arm.x) for theta in (zero, slope(arm)))

    assert correlation(arm) == pytest.approx(planted, abs=0.02)
    assert better[-1] / plain[-1] == pytest.approx(1 - planted**2, abs=0.02)


def test_running_moments_are_those_of_the_users_so_far(rng: np.random.Generator) -> None:
    x, y = rng.gamma(1.0, size=(2, 300)) + 1e6  # far from 0, where sums of squares lose digits
    is_in = rng.random(300) < 0.4
    arm = running(y, x, is_in)
    for at in (50, 150, 299):
        own = np.flatnonzero(is_in[: at + 1])
        assert arm.n[at] == len(own)
        assert arm.y[at] == pytest.approx(y[own].mean(), rel=1e-12)
        assert arm.yy[at] == pytest.approx(y[own].var() * len(own), rel=1e-6)
        assert arm.xy[at] == pytest.approx(np.cov(x[own], y[own])[0, 1] * (len(own) - 1), rel=1e-6)


def test_nobody_in_an_arm_is_no_error() -> None:
    arm = running(np.ones(3), np.ones(3), np.zeros(3, np.bool_))
    mean, variance = adjusted(arm, slope(arm), np.zeros(3))

    assert mean.tolist() == [0.0] * 3
    assert np.isinf(variance).all()
    assert running(np.zeros(0), np.zeros(0), np.zeros(0, np.bool_)).n.tolist() == []
