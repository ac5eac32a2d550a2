"""Exactness: no order of rows, shape or split may change a value."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.features import TEXT_DIM
from models.neighbours import best_of_each, best_rows, mean_direction, to_grid
from tests.models.moments import in_steps


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return to_grid(np.random.default_rng(seed).normal(size=(n, TEXT_DIM)))


def test_dot_products_on_the_grid_are_exact() -> None:
    rows = vectors(500)
    whole = np.rint(rows.astype(np.float64) * 2_048).astype(np.int64)
    for query in range(20):
        wanted = (whole * whole[query]).sum(axis=1) / 2.0**22
        assert (rows @ rows[query] == wanted).all()


@given(st.integers(1, 300), st.integers(0, 299))
def test_a_dot_product_is_the_same_in_any_block(size: int, start: int) -> None:
    rows, query = vectors(300), vectors(1, seed=1)[0]
    block = rows[start : start + size]
    assert (block @ query == (rows @ query)[start : start + size]).all()


def test_the_grid_moves_a_column_by_less_than_a_four_thousandth() -> None:
    raw = np.random.default_rng(2).normal(size=(100, TEXT_DIM))
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(to_grid(raw) - raw).max() <= 2**-12


@given(st.permutations(range(30)))
def test_a_mean_direction_does_not_depend_on_the_order(order: list[int]) -> None:
    rows, weights = vectors(30), np.random.default_rng(3).integers(1, 65_536, 30)
    both = np.zeros((2, TEXT_DIM), np.float32)
    for own, places in zip(both, (np.arange(30), np.array(order)), strict=True):
        assert mean_direction(in_steps(rows), places, weights[places], own)
    assert (both[0] == both[1]).all()
    wanted = to_grid((weights @ rows)[None] / np.linalg.norm(weights @ rows))
    assert (both[0] == wanted).all()


def test_vectors_that_cancel_have_no_direction() -> None:
    rows = vectors(1)
    steps, direction = in_steps(np.stack([rows[0], -rows[0]])), np.ones(TEXT_DIM, np.float32)
    for places in (np.arange(2), np.arange(0)):
        assert not mean_direction(steps, places, np.array([5, 5])[places], direction)
        assert not direction.any()


HASHES = st.integers(0, 2**63 - 1)


@given(
    st.lists(st.tuples(st.integers(0, 3), HASHES), max_size=700, unique_by=lambda pair: pair[1]),
    st.integers(1, 800),
)
def test_the_best_rows_are_those_of_a_full_sort(pairs: list[tuple[int, int]], limit: int) -> None:
    n = len(pairs)
    values = np.array([value for value, _ in pairs], np.int64)
    hashes = np.array([number for _, number in pairs], np.int64)
    found = best_rows(values, np.arange(n), hashes, limit)
    assert found.tolist() == sorted(range(n), key=lambda r: pairs[r], reverse=True)[:limit]


# Hashes that tie in their first bits, which are all that a key has room for; short lines, which are
# only inserted, and long ones.
@given(
    st.lists(
        st.tuples(st.integers(-3, 3) | st.integers(-(2**23), 2**23), st.integers(0, 2**63 - 1)),
        min_size=2,
        max_size=80,
        unique=True,
    ),
    st.integers(0, 3),
    st.sampled_from([0, 30, 60]),
    st.integers(1, 80),
)
def test_each_line_is_ordered_as_a_full_sort_would(
    pairs, n_lines: int, n_bits: int, limit: int
) -> None:
    lines = [pairs, *(pairs[::-1] for _ in range(n_lines))]
    values = np.array([[value for value, _ in own] for own in lines], np.int64)
    hashes = np.array([[number >> n_bits << n_bits for _, number in own] for own in lines])
    scores = (values / 2.0**22).astype(np.float32)
    limit = min(limit, len(pairs))
    found = best_of_each(scores, hashes, limit)
    for own, value, number in zip(found, values, hashes, strict=True):
        keys = list(zip(value.tolist(), number.tolist(), strict=True))
        assert [keys[place] for place in own] == sorted(keys, reverse=True)[:limit]
        assert len(set(own.tolist())) == limit


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 1_000]))
def test_many_equal_scores_are_ordered_by_their_hashes(seed: int, n_values: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, n_values, (2, 300)) / 1_024).astype(np.float32)
    hashes = rng.integers(0, 2**63, (2, 300))
    wanted = [np.lexsort((own, score))[::-1] for own, score in zip(hashes, scores, strict=True)]
    assert best_of_each(scores, hashes, 300).tolist() == np.array(wanted).tolist()
