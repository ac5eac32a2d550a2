"""Lists of a batch as one array: each line as its query alone would have it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import are_closed, are_refused, are_seen, firsts, padded
from models.item_rows import ItemRows
from models.sources import Query
from tests.models.moments import NOW_MS, items_of, query

N = 40
LISTS = st.lists(st.lists(st.integers(1, N), max_size=6), min_size=1, max_size=5)
SOME = st.lists(st.integers(0, N), max_size=6, unique=True)


def shop() -> ItemRows:
    rng = np.random.default_rng(0)
    return items_of(
        [f"i{n}" for n in range(N)],
        is_servable=rng.random(N) < 0.8,
        category=rng.integers(0, 4, N),
        from_ms=rng.integers(0, 2, N) * (NOW_MS + 500),
        until_ms=rng.integers(0, 2, N) * (NOW_MS + 1_500),
    )


SHOP = shop()


def asked(seen: list[int], n_closed: int, blocked: list[int], code: int, later_ms: int) -> Query:
    rows = np.array(seen, np.int64)
    return query(
        SHOP,
        time_ms=NOW_MS + later_ms,
        seen=rows,
        closed=rows[:n_closed],
        blocked=np.array(blocked, np.int64),
        blocked_categories=np.array([code] if code else [], np.int64),
    )


QUERIES = st.builds(
    asked,
    SOME,
    st.integers(0, 6),
    st.just([]) | SOME,
    st.integers(0, 3),
    st.sampled_from([0, 1_000, 2_000]),
)


@given(LISTS)
def test_lines_hold_the_lists_and_nothing_else(lists: list[list[int]]) -> None:
    lines, is_own = padded([np.array(own, np.int64) for own in lists])
    assert [own[held].tolist() for own, held in zip(lines, is_own, strict=True)] == lists
    assert not lines[~is_own].any()
    assert lines.shape == (len(lists), max(map(len, lists)))


def test_the_first_wanted_are_taken_of_each_line() -> None:
    lines = np.arange(12).reshape(3, 4)
    is_wanted = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], np.bool_)
    assert [own.tolist() for own in firsts(lines, is_wanted, 3)] == [[0, 1, 2], [5, 7], []]


# More queries than are told apart in one pass, some of them the same user's.
@settings(max_examples=25, deadline=None)
@given(st.lists(QUERIES, min_size=1, max_size=8), st.sampled_from([1, 20]), st.integers(0, 2**32))
def test_a_line_is_ruled_out_as_its_query_says(few: list[Query], times: int, seed: int) -> None:
    queries = few * times
    lines = np.random.default_rng(seed).integers(0, N + 1, (len(queries), 15))
    refused, closed = are_refused(queries, lines), are_closed(queries, lines)
    seen = are_seen(queries, lines)
    for b, one in enumerate(queries):
        assert (refused[b] == one.is_refused(lines[b])).all()
        assert (closed[b] == one.is_closed(lines[b])).all()
        assert (seen[b] == one.is_seen(lines[b])).all()
