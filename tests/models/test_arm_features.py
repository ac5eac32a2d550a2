"""An arm's own columns, against the plain NumPy form and one by one."""

import math
from itertools import pairwise

import numpy as np
import pytest

from models.arm_features import INPUTS, arm_columns, arm_features
from models.arms import (
    ARM,
    CLICK_PRIOR,
    FAVORITE_PRIOR,
    FRESH_DAYS,
    LIMIT,
    N_ARM,
    OPEN_PRIOR,
    PURCHASE_PRIOR,
    RATE_CAP,
    SOURCE_COLUMNS,
    SOURCES,
)

COLUMNS = (
    "fused",
    "popularity",
    "views",
    "clicks",
    "purchases",
    "pushes",
    "opens",
    "favorites",
    "age_days",
    "price",
    "category_affinity",
)


def column(name: str, **changes: object) -> list[float]:
    """Return one column for two arms that differ in `changes` alone."""
    plain: dict[str, object] = {key: [1.0, 1.0] for key in COLUMNS}
    plain |= {"scores": [0.0, 0.0], "sources": [-1, -1]}
    out = arm_features(**(plain | changes))  # type: ignore[arg-type]
    return [round(v, 4) for v in out[:, ARM.index(name)].tolist()]


def test_scores_are_compared_within_the_set():
    assert column("score_z", scores=[5.0, 7.0]) == [-1.0, 1.0]
    assert column("score_rank", scores=[5.0, 7.0]) == [0.6309, 1.0]
    assert column("score_z", scores=[5.0, 5.0]) == [0.0, 0.0]


def test_a_score_that_is_not_finite_counts_as_the_worst():
    assert column("score_z", scores=[-math.inf, 7.0]) == [0.0, 0.0]
    assert column("score_z", scores=[math.nan, math.nan]) == [0.0, 0.0]


def test_a_rate_is_told_against_its_prior_and_capped():
    assert column("open_rate", pushes=[0.0, 80.0], opens=[0.0, 28.0]) == [0.0, 2.0]
    assert column("click_rate", views=[0.0, 1e6], clicks=[0.0, 1e6]) == [0.0, 5.0]


def test_what_was_written_is_told_by_cosine_and_nothing_written_by_zero():
    assert column("intent_cosine") == column("taste_cosine") == [0.0, 0.0]
    assert column("intent_cosine", intent_cosine=[0.5, -0.25]) == [0.5, -0.25]
    assert column("taste_cosine", taste_cosine=[0.5, -0.25]) == [0.5, -0.25]


def test_no_column_leaves_its_bounds():
    huge = {name: [1e100, -1e100] for name in COLUMNS}
    out = arm_features(scores=[1e30, -1e30], sources=[2, -1], **huge)
    assert np.abs(out).max() <= LIMIT


def test_sources_have_a_column_each_and_an_unknown_one_has_none():
    out = arm_features(
        scores=[0.0] * 11,
        sources=[*range(10), -1],
        **{name: [0.0] * 11 for name in COLUMNS},
    )
    assert len(SOURCES) == 10
    assert out[:, SOURCE_COLUMNS].tolist() == np.eye(11, 10).tolist()
    assert ARM[SOURCE_COLUMNS] == tuple(f"source_{name}" for name in SOURCES)


def plain(inputs: dict[str, np.ndarray], sources: np.ndarray) -> np.ndarray:
    """Return one set's columns by whole arrays."""
    popularity, price = np.log1p(np.array([inputs["popularity"], inputs["price"]]))
    own = {"score_z": z(inputs["scores"]), "fused_z": z(inputs["fused"]), "price": price / 5}
    own |= {"popularity": z(popularity), "freshness": np.exp(-inputs["age_days"] / FRESH_DAYS)}
    own |= {name: inputs[name] for name in INPUTS[-3:]}
    ranks = np.argsort(np.argsort(-inputs["scores"], kind="stable"))
    own["score_rank"] = 1 / np.log2(2 + np.arange(1_000))[ranks]
    own["click_rate"] = lift(inputs["clicks"], inputs["views"], *CLICK_PRIOR)
    own["purchase_rate"] = lift(inputs["purchases"], inputs["views"], *PURCHASE_PRIOR)
    own["open_rate"] = lift(inputs["opens"], inputs["pushes"], *OPEN_PRIOR)
    own["favorite_rate"] = lift(inputs["favorites"], inputs["views"], *FAVORITE_PRIOR)
    own |= {f"source_{name}": sources == code for code, name in enumerate(SOURCES)}
    columns = [own.get(name, np.zeros(len(sources))) for name in ARM]
    return np.array(columns, np.float64).T.clip(-LIMIT, LIMIT).round(4).astype(np.float32)


def z(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    spread = np.sqrt((centred * centred).mean())
    return centred / spread if spread > 1e-6 else np.zeros(len(values))


def lift(hits: np.ndarray, tries: np.ndarray, mean: float, weight: float) -> np.ndarray:
    return ((hits + mean * weight) / (tries + weight) / mean - 1).clip(-1, RATE_CAP)


@pytest.mark.parametrize("seed", range(20))
def test_sets_of_any_sizes_have_the_bytes_of_whole_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [1, 7, 8, 20, 100, *rng.integers(1, 129, 10)]
    bounds = np.cumsum([0, *sizes])
    inputs = rng.exponential(3.0, (len(INPUTS), bounds[-1]))
    inputs[0] = rng.normal(size=bounds[-1]).round(1)  # some are equal
    sources = rng.integers(-1, len(SOURCES), bounds[-1])
    columns = arm_columns(inputs, sources, bounds)
    for start, end in pairwise(bounds):
        own = dict(zip(INPUTS, inputs[:, start:end], strict=True))
        assert columns[start:end].tobytes() == plain(own, sources[start:end]).tobytes()


def test_sets_of_one_size_may_be_stacked() -> None:
    rng = np.random.default_rng(0)
    inputs = {name: rng.exponential(3.0, (2, 3, 20)) for name in INPUTS}
    sources = rng.integers(0, len(SOURCES), (2, 3, 20))
    stacked = arm_features(sources=sources, **inputs)
    assert stacked.shape == (2, 3, 20, N_ARM)
    one = arm_features(sources=sources[1, 2], **{n: own[1, 2] for n, own in inputs.items()})
    assert stacked[1, 2].tobytes() == one.tobytes()
    none = arm_features(sources=sources[..., :0], **{n: v[..., :0] for n, v in inputs.items()})
    assert none.shape == (2, 3, 0, N_ARM)
