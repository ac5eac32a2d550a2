"""The merge of several sources' proposals, apart from the sources."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arms import DESIGN, SOURCES
from models.features import TEXT_DIM
from models.item_rows import ItemRows
from models.merging import (
    MAX_DEPTH,
    MAX_RRF,
    MAX_WEIGHT,
    MIN_RRF,
    RRF,
    Merged,
    Merger,
    learned_factors,
)
from models.neighbours import to_grid
from tests.models.moments import NONE, in_steps, items_of, query, rows_of

IDS = [f"i{n:02d}" for n in range(40)]
SHOP = items_of(IDS)


def merged(
    proposals: dict[str, list[str]],
    weights: dict[str, float] | None = None,
    *,
    items: ItemRows = SHOP,
    lead: str = "",
    **limits: Any,
) -> Merged:
    """Return the merge of one query's proposals, given by source as ids."""
    usual = dict.fromkeys(proposals, 1.0)
    merger = Merger(list(proposals), {**usual, **(weights or {})}, **limits)
    lists = [[rows_of(items, *ids)] for ids in proposals.values()]
    [found] = merger.merge([query(items, lead=lead)], lists)
    return found


def ids(found: Merged, items: ItemRows = SHOP) -> list[str]:
    return [items.item_ids[row] for row in found.rows.tolist()]


def names(found: Merged) -> list[str]:
    return [SOURCES[place] for place in found.sources.tolist()]


def test_reciprocal_ranks_add_up_by_weight() -> None:
    found = merged(
        {"content": ["i01", "i02"], "trend": ["i02", "i03"]}, {"content": 2.0, "trend": 1.0}
    )
    assert ids(found) == ["i02", "i01", "i03"]
    assert found.scores == pytest.approx([2 / 62 + 1 / 61, 2 / 61, 1 / 62], abs=1e-8)


LISTS = st.lists(st.sampled_from(IDS), max_size=25, unique=True)


@settings(deadline=None)
@given(st.lists(st.lists(LISTS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_batch_is_merged_as_its_ranks_add_up_one_by_one(batch: list[list[list[str]]]) -> None:
    weights = {"content": 1.0, "trend": 0.5, "tower": 0.25}
    merger = Merger(list(weights), weights, limit=20)
    proposed = [[rows_of(SHOP, *lists[at]) for lists in batch] for at in range(3)]
    found = merger.merge([query(SHOP)] * len(batch), proposed)
    for one, lists in zip(found, batch, strict=True):
        said = Counter()
        for weight, own in zip(weights.values(), lists, strict=True):
            for rank, item_id in enumerate(own):
                said[item_id] += round(2**28 * weight / (RRF + 1 + rank))
        keys = {i: (value, SHOP.id_hash[SHOP.row(i)]) for i, value in said.items()}
        assert ids(one) == sorted(keys, key=lambda i: keys[i], reverse=True)[:20]
        assert (one.scores * 2**28).tolist() == [said[item_id] for item_id in ids(one)]


def test_the_larger_k_the_more_it_counts_that_sources_agree() -> None:
    first, twice = ["i00", *IDS[1:30]], [*IDS[31:40], "i20"]
    proposals = {"content": first, "trend": twice}
    weights = {"content": 1.0, "trend": 0.2}
    assert ids(merged(proposals, weights, rrf=60))[0] == "i00"
    assert ids(merged(proposals, weights, rrf=1_000))[0] == "i20"


@pytest.mark.parametrize("rrf", [MIN_RRF, MAX_RRF])
def test_the_last_row_of_the_longest_list_counts_more_than_filling(rrf: int) -> None:
    names = [f"i{n:03d}" for n in range(MAX_DEPTH + 1)]
    items = items_of(names)
    own, fill = rows_of(items, *names[:-1]), rows_of(items, names[-1])
    merger = Merger(["content", "tower"], {"content": 0.03, "tower": 0.03}, rrf=rrf)
    [agreed] = merger.merge([query(items)], [[own], [own[-1:]]])
    assert agreed.rows[0] == own[-1]
    last = agreed.scores[0] - 0.03 / (rrf + 1)
    [short] = merger.merge([query(items)], [[own[:1]], [NONE]], [fill])
    assert short.rows.tolist() == [own[0], fill[0]]
    assert 0 < short.scores[1] < last


def test_scores_stay_below_what_is_sorted_whatever_the_settings() -> None:
    names = list(SOURCES[:9])
    merger = Merger(names, dict.fromkeys(names, MAX_WEIGHT), rrf=MIN_RRF)
    [found] = merger.merge([query(SHOP, lead="changed")], [[rows_of(SHOP, "i01")]] * 9)
    assert found.scores[0] * 2**28 < 2**32


def test_a_row_names_the_source_that_says_most_and_of_equals_the_first() -> None:
    found = merged({"content": ["i01", "i02"], "trend": ["i01", "i03"], "tower": ["i02"]})
    said = dict(zip(ids(found), names(found), strict=True))
    assert said == {"i01": "content", "i02": "tower", "i03": "trend"}


def test_a_source_of_no_weight_says_nothing_more() -> None:
    merger = Merger(["content", "trend"], {"content": 1.0, "trend": 1.0})
    lists = [[rows_of(SHOP, "i01", "i02")], [rows_of(SHOP, "i02")]]
    asked = [query(SHOP)]
    assert ids(merger.merge(asked, lists)[0])[0] == "i02"
    merger.weigh({"content": 1.0})
    assert ids(merger.merge(asked, lists)[0])[0] == "i01"


def test_the_leading_source_comes_before_all_that_the_others_agree_on() -> None:
    others = dict.fromkeys(("content", "trend", "tower"), IDS[:5])
    own = IDS[10:40]
    found = merged({"changed": own, **others}, {"trend": 3.0, "changed": 0.1}, lead="changed")
    assert ids(found)[:30] == own
    assert ids(merged({"changed": own, **others}))[:5] == IDS[:5]


def test_the_same_words_and_nearly_the_same_content_are_proposed_once() -> None:
    items = items_of(IDS[:5])
    items.text_key[items.row("i03")] = items.text_key[items.row("i01")]
    for item_id, column, value in (("i00", 0, 1.0), ("i02", 0, 0.99), ("i04", 0, 0.9)):
        items.text_vectors[items.row(item_id), column] = round(value * 2048)
    everything = {"content": IDS[:5]}
    assert ids(merged(everything, items=items), items) == ["i00", "i01", "i02", "i04"]
    near = merged(everything, items=items, copy_cosine=0.95)
    assert ids(near, items) == ["i00", "i01", "i04"]
    assert ids(merged({"content": IDS[4::-1]}, items=items), items) == ["i04", "i03", "i02", "i00"]


def test_a_copy_of_a_copy_that_was_dropped_stays() -> None:
    items = items_of(IDS[:3])
    for item_id, angle in (("i00", 0.0), ("i01", 0.25), ("i02", 0.5)):
        row = items.row(item_id)
        items.text_vectors[row, :2] = np.rint([2048 * np.cos(angle), 2048 * np.sin(angle)])
    found = merged({"content": IDS[:3]}, items=items, copy_cosine=0.96)  # cos .25 = .969
    assert ids(found, items) == ["i00", "i02"]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 0.98, 1.0]))
def test_near_copies_are_those_of_all_products(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    # Around few centres, so that cosines lie on both sides of what is a copy.
    centres = rng.normal(size=(4, TEXT_DIM))
    spreads = rng.choice([0.02, 0.2, 0.6], (120, 1))
    drawn = centres[rng.integers(0, 4, 120)] + spreads * rng.normal(size=(120, TEXT_DIM))
    vectors = to_grid(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    items = items_of([f"n{n:03d}" for n in range(120)], text_vectors=in_steps(vectors))
    kept: list[int] = []
    for n, vector in enumerate(vectors):
        better = vectors[[one for one in kept if one < 64]]  # the best 64 alone are compared with
        if not (better @ vector >= np.float32(least)).any():
            kept.append(n)
    proposed = {"content": list(items.item_ids)[1:]}
    found = ids(merged(proposed, items=items, copy_cosine=least, limit=100), items)
    assert found == [f"n{n:03d}" for n in kept][:100]


def test_copies_make_room_for_others_within_the_limit() -> None:
    items = items_of(IDS[:6])
    items.text_key[[items.row(i) for i in IDS[:3]]] = 7
    assert ids(merged({"content": IDS[:6]}, items=items, limit=3), items) == ["i00", "i03", "i04"]


def test_a_category_takes_no_more_than_its_share_while_there_are_others() -> None:
    items = items_of(IDS[:10], category=[1, 1, 1, 1, 2, 1, 2, 0, 0, 0])
    share = merged({"content": IDS[:10]}, items=items, limit=6, max_per_category=0.5)
    assert ids(share, items) == ["i00", "i01", "i02", "i04", "i06", "i07"]
    whole = merged({"content": IDS[:10]}, items=items, limit=6)
    assert ids(whole, items) == IDS[:6]


def test_a_list_without_others_is_filled_up_in_its_order() -> None:
    items = items_of(IDS[:8], category=[1, 1, 1, 1, 1, 2, 1, 1])
    found = merged({"content": IDS[:8]}, items=items, limit=6, max_per_category=0.3)
    assert ids(found, items) == ["i00", "i01", "i02", "i03", "i04", "i05"]
    assert (np.diff(found.scores) < 0).all()


def test_items_without_a_category_have_no_share_to_exceed() -> None:
    found = merged({"content": IDS[:10]}, limit=6, max_per_category=0.2)
    assert ids(found) == IDS[:6]


def test_nobody_proposing_anything_is_an_empty_list() -> None:
    found = merged({"content": [], "trend": []})
    assert [len(column) for column in found] == [0, 0, 0]
    merger = Merger([], {})
    assert [len(one.rows) for one in merger.merge([query(SHOP)] * 2, [])] == [0, 0]


def test_a_querys_candidates_do_not_depend_on_who_shares_the_batch() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(0, 30, (3, 20))
    lists = [[rows_of(SHOP, *rng.permutation(IDS)[:n]) for n in own] for own in sizes.tolist()]
    merger = Merger(SOURCES[:3], dict(zip(SOURCES, (1.0, 0.5, 0.7), strict=False)), limit=12)
    together = merger.merge([query(SHOP)] * 20, lists)
    alone = [merger.merge([query(SHOP)], [[own[b]] for own in lists])[0] for b in range(20)]
    assert [one.rows.tolist() for one in together] == [one.rows.tolist() for one in alone]
    assert [one.scores.tolist() for one in together] == [one.scores.tolist() for one in alone]
    assert [one.sources.tolist() for one in together] == [one.sources.tolist() for one in alone]


def test_filling_comes_behind_what_was_proposed_and_adds_nothing_to_it() -> None:
    merger = Merger(["content", "tower"], {"content": 1.0, "tower": 1.0}, limit=5)
    asked = [query(SHOP), query(SHOP)]
    lists = [[rows_of(SHOP, "i06", "i05"), NONE], [NONE, rows_of(SHOP, "i01")]]
    plain = merger.merge(asked, lists)
    full = merger.merge(asked, lists, [rows_of(SHOP, "i05", "i07", "i08"), rows_of(SHOP, "i02")])
    assert [ids(one) for one in full] == [["i06", "i05", "i07", "i08"], ["i01", "i02"]]
    assert [names(one)[-1] for one in full] == ["trend", "trend"]
    for one, before in zip(full, plain, strict=True):
        assert one.scores[: len(before.scores)].tolist() == before.scores.tolist()
        assert (np.diff(one.scores) < 0).all()


def test_a_copy_does_not_come_back_as_filling() -> None:
    items = items_of(IDS[:3])
    items.text_key[[1, 2, 3]] = 7, 7, 9
    merger = Merger(["content"], {"content": 1.0})
    everything = rows_of(items, *IDS[:3])
    [found] = merger.merge([query(items)], [[everything[:2]]], [everything])
    assert ids(found, items) == ["i00", "i02"]


def test_explored_rows_take_the_last_places() -> None:
    merger = Merger(["content"], {"content": 1.0}, limit=5)
    [found] = merger.merge([query(SHOP)], [[rows_of(SHOP, *IDS[:5])]])
    more = rows_of(SHOP, "i01", "i20", "i21", "i22")
    short = Merged(found.rows[:2], found.sources[:2], found.scores[:2])
    given = [more, NONE, rows_of(SHOP, "i20")]
    mixed, as_it_was, longer = merger.exploring(SHOP, [found, found, short], given, [2, 2, 2])
    assert ids(mixed) == ["i00", "i01", "i02", "i20", "i21"]
    assert names(mixed)[3:] == ["explore", "explore"]
    assert (np.diff(mixed.scores) < 0).all()
    assert ids(as_it_was) == IDS[:5]
    assert ids(longer) == ["i00", "i01", "i20"]


def test_factors_stay_within_a_half_and_two_and_grow_with_the_rewards_seen() -> None:
    mean = np.random.default_rng(0).normal(size=len(DESIGN)) * 5
    factors = learned_factors(mean, 1_000_000)
    assert list(factors) == list(SOURCES)
    assert all(0.5 <= factor <= 2.0 for factor in factors.values())
    assert set(learned_factors(mean, 0).values()) == {1.0}
    mean[DESIGN.index("source_tower")] = 0.05
    seen = [learned_factors(mean, n)["tower"] for n in (0, 100, 1_000, 1_000_000)]
    assert seen == sorted(set(seen))
