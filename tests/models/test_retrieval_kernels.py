"""The compiled loops find what plain Python finds, and leave their scratch as it was."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.item_rows import ItemRows
from models.retrieval_kernels import fused, unlike
from models.sources import Query
from tests.models.moments import NOW_MS, items_of, query

IDS = [f"i{n}" for n in range(12)]
ROWS = st.lists(st.integers(1, len(IDS)), unique=True)


def array(rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def shop() -> ItemRows:
    """Return items of which some are closed for good, not yet open, or over."""
    return items_of(
        IDS,
        is_servable=[n % 5 != 4 for n in range(12)],
        from_ms=[NOW_MS + 1 if n == 2 else 0 for n in range(12)],
        until_ms=[NOW_MS if n == 3 else NOW_MS + 1 if n == 7 else 0 for n in range(12)],
        category=[n % 4 for n in range(12)],
        text_key=[n // 2 for n in range(12)],
    )


SHOP = shop()


def asked(seen: list[int], blocked: list[int], categories: list[int]) -> Query:
    return query(SHOP, seen=seen, blocked=blocked, blocked_categories=array(categories))


@given(ROWS, ROWS, ROWS, st.lists(st.integers(1, 3), unique=True), st.integers(0, 12))
def test_what_is_allowed_is_what_no_rule_refuses(rows, seen, blocked, categories, limit) -> None:
    one = asked(seen, blocked, categories)
    for _ in range(2):
        wanted = array(rows)[~one.is_seen(array(rows))][:limit]
        assert one.unseen(array(rows), limit).tolist() == wanted.tolist()
        assert not SHOP.mark.any()


@given(ROWS, ROWS, ROWS, st.integers(0, 12))
def test_what_says_the_same_as_a_recent_or_a_better_one_goes(rows, seen, recent, limit) -> None:
    one, kept = asked(seen, [], []), []
    known = set(SHOP.text_key[array(recent)].tolist())
    for row in one.unseen(array(rows), len(rows)).tolist():
        if SHOP.text_key[row] not in known:
            known.add(SHOP.text_key[row])
            kept.append(row)
    found = unlike(one.rules(one.seen), array(rows), array(recent), SHOP.text_key, limit)
    assert found.tolist() == kept[:limit]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99))), st.integers(1, 12))
def test_what_is_said_is_added_up_by_row(said: list[tuple[int, int]], limit: int) -> None:
    rows, ends = array([row for row, _ in said]), np.arange(1, len(said) + 1)  # a source each
    says = np.reshape(array([value << 4 | 3 for _, value in said]), (-1, 1))
    sums = {row: sum(value for r, value in said if r == row) for row, _ in said}
    hashes = SHOP.id_hash
    wanted = sorted(sums, key=lambda row: (sums[row], hashes[row]), reverse=True)[:limit]
    for _ in range(2):
        found, total, most = fused(rows, ends, says, 4, hashes, SHOP.slots, limit).tolist()
        assert found == wanted
        assert total == [sums[row] for row in wanted]
        assert most == [max(v for r, v in said if r == row) << 4 | 3 for row in wanted]
        assert not SHOP.slots.any()
