"""Candidates: who is proposed, in which order, and who never is."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.arm_features import INPUT, arm_columns
from models.arm_inputs import arm_inputs
from models.arms import N_ARM, SOURCES
from models.explore_source import ExploreSource
from models.features import EVENT_CODE
from models.item_counts import hour_block
from models.neighbour_source import NeighbourSource
from models.neighbours import hash_of, to_grid
from models.sources import ContentSource, TrendSource, UnfinishedSource
from models.taste import pack_vectors
from models.text import encode_texts
from operators.candidates import (
    WEIGHTS,
    CandidateGenerator,
    Found,
    candidates_of,
    make_query,
    weighed_sources,
)
from operators.catalogue import Catalogue
from operators.hops import Candidate, Engagement, History, Trigger
from operators.item_stats import (
    InteractionTracker,
    ItemStatsShard,
    decode_state,
    encode_state,
    fan_out,
    new_state,
)
from operators.messages import Item, ItemStats, Picks, UserProfile
from operators.shards import DictShard
from tests.conftest import T0_MS, event

DAY_MS = 86_400_000
Seen = list[tuple[str, str, int]]  # item_id, event type, seconds before the trigger


def trigger(seen: Seen = (), **fields: object) -> Trigger:
    """Return an intent trigger at T0_MS; `seen` has the newest last."""
    country = fields.pop("country", "")
    history = History(
        [item_id for item_id, _, _ in seen],
        [EVENT_CODE[kind] for _, kind, _ in seen],
        [T0_MS // 1_000 - ago for _, _, ago in seen],
    )
    defaults = {
        "type": "intent",
        "event_id": "e1",
        "user_id": "u1",
        "shard": "00",
        "time_ms": T0_MS,
        "context": [],
        "history": history,
        "cart": [],
        "bought": [],
        "category": "",
        "platform": "",
        "profile": UserProfile(user_id="u1", country=country) if country else None,
        "engagement": Engagement(0.0, 0.0, 0, False),
    }
    return Trigger(**{**defaults, **fields})


def stats(item_id: str, **fields: object) -> ItemStats:
    names = ("views", "clicks", "carts", "purchases", "favorites", "pushes", "opens")
    counts = dict.fromkeys((*names, "rating_sum", "rating_count"), 0.0)
    rest = {"as_of_ms": T0_MS, "popularity_1d": 1.0, "first_seen_ms": T0_MS - DAY_MS}
    empty = {"by_country": {}, "neighbours": []}
    return ItemStats(item_id=item_id, **{**counts, **rest, **empty, **fields})


def loaded(items: dict[str, dict[str, object]], *rows: ItemStats) -> Catalogue:
    catalogue = Catalogue()
    for item_id, fields in items.items():
        catalogue.apply(item_id, Item(item_id=item_id, **{"title": f"title{item_id}", **fields}))
    for row in rows:
        catalogue.apply_stats(row)
    catalogue.refresh()
    return catalogue


def plain(*item_ids: str) -> dict[str, dict[str, object]]:
    return {item_id: {} for item_id in item_ids}


def ids(candidates: list[Candidate]) -> list[str]:
    return [candidate.item_id for candidate in candidates]


def by(source: object, moment: Trigger, catalogue: Catalogue) -> list[str]:
    [rows] = source.propose([make_query(moment, catalogue)])
    return [catalogue.item_ids[row] for row in rows.tolist()]


def test_items_that_others_had_together_are_proposed_in_both_directions() -> None:
    tracker = InteractionTracker(gap_ms=1_800_000)
    shard = ItemStatsShard(DictShard("00", encode=encode_state, decode=decode_state, new=new_state))
    for user in range(5):
        recent: list[tuple[str, int]] = []
        for at, item_id in enumerate(("tent", "stove")):
            seen = event(user_id=f"u{user}", item_id=item_id, time_ms=T0_MS - 10_000 + at)
            for signal in fan_out(tracker.observe(recent, seen)):
                shard.on_signal(signal)
    catalogue = loaded(plain("lamp", "stove", "tent"), *shard.dirty())
    generator = CandidateGenerator(catalogue)
    after_tent = generator.generate(trigger([("tent", "view", 60)]))
    after_stove = generator.generate(trigger([("stove", "view", 60)]))
    assert [c[:2] for c in after_tent if c.item_id == "stove"] == [("stove", "neighbour")]
    assert [c[:2] for c in after_stove if c.item_id == "tent"] == [("tent", "neighbour")]


def test_neighbours_of_recent_items_weigh_more_than_those_of_old_ones() -> None:
    rows = [stats("a", neighbours=[("x", 1.0)]), stats("b", neighbours=[("y", 1.0)])]
    catalogue = loaded(plain("a", "b", "x", "y"), *rows)
    a_then_b = trigger([("a", "view", 900), ("b", "view", 60)])
    b_then_a = trigger([("b", "view", 900), ("a", "view", 60)])
    assert by(NeighbourSource(), a_then_b, catalogue) == ["y", "x"]
    assert by(NeighbourSource(), b_then_a, catalogue) == ["x", "y"]


def test_neighbours_of_what_was_put_back_are_not_proposed() -> None:
    catalogue = loaded(plain("a", "x"), stats("a", neighbours=[("x", 1.0)]))
    assert by(NeighbourSource(), trigger([("a", "cart_remove", 60)]), catalogue) == []


def test_an_unknown_items_neighbours_help_but_it_is_never_proposed_itself() -> None:
    rows = [stats("ghost", popularity_1d=99.0, neighbours=[("x", 1.0)])]
    catalogue = loaded(plain("x", "y"), *rows)
    assert by(NeighbourSource(), trigger([("ghost", "view", 60)]), catalogue) == ["x"]
    assert ids(CandidateGenerator(catalogue).generate(trigger())) == ["x", "y"]


def test_content_proposes_alike_words_but_no_copy() -> None:
    titles = {
        "a": "red garden lamp",
        "b": "red garden lamp",
        "c": "blue garden lamp",
        "d": "blue garden lamp",
        "e": "chocolate cake",
    }
    catalogue = loaded({item_id: {"title": title} for item_id, title in titles.items()})
    assert by(ContentSource(), trigger([("a", "view", 60)]), catalogue) == ["c"]


def test_trend_is_fair_to_counts_of_different_times() -> None:
    catalogue = loaded(
        plain("long-ago", "yesterday", "now"),
        stats("long-ago", popularity_1d=1_000.0, views=1_000.0, as_of_ms=T0_MS - 90 * DAY_MS),
        stats("yesterday", popularity_1d=3.0, views=2.0, as_of_ms=T0_MS - DAY_MS),
        stats("now", popularity_1d=2.0, views=2.0),
    )
    assert by(TrendSource(), trigger(), catalogue) == ["now", "yesterday", "long-ago"]


def test_trend_knows_the_country_and_the_category() -> None:
    items = {x: {"categories": ["shoes" if x == "s" else "hats"]} for x in "absz"}
    catalogue = loaded(
        items,
        stats("a", popularity_1d=9.0, views=9.0, by_country={"DE": 9.0}),
        stats("b", popularity_1d=8.0, views=8.0, by_country={"FR": 8.0}),
        stats("s", popularity_1d=7.0, views=7.0, by_country={"GB": 7.0}),
        stats("z", popularity_1d=6.0, views=6.0, by_country={"GB": 1.0}),
    )
    assert by(TrendSource(), trigger(), catalogue)[0] == "a"
    assert by(TrendSource(), trigger(country="FR"), catalogue)[0] == "b"
    assert by(TrendSource(), trigger(category="shoes"), catalogue)[0] == "s"


def test_trend_knows_the_hour_of_the_day() -> None:
    now, later = hour_block(T0_MS), (hour_block(T0_MS) + 3) % 6
    at_now = [9.0 if block == now else 0.0 for block in range(6)]
    at_later = [9.0 if block == later else 0.0 for block in range(6)]
    catalogue = loaded(
        plain("coffee", "tea", "wine"),
        stats("coffee", by_hour=at_now),
        stats("tea"),
        stats("wine", by_hour=at_later),
    )
    half_a_day = 12 * 3_600_000
    assert by(TrendSource(), trigger(), catalogue)[0] == "coffee"
    assert by(TrendSource(), trigger(time_ms=T0_MS + half_a_day), catalogue)[0] == "wine"


def test_trend_follows_new_statistics_after_a_refresh() -> None:
    catalogue = loaded(plain("a", "b"), stats("a", popularity_1d=5.0), stats("b"))
    source = TrendSource()
    assert by(source, trigger(), catalogue) == ["a", "b"]
    catalogue.apply_stats(stats("b", popularity_1d=50.0, views=50.0))
    catalogue.refresh()
    assert by(source, trigger(), catalogue) == ["b", "a"]


def test_unfinished_ranks_by_interest_and_forgets_what_was_bought_or_put_back() -> None:
    catalogue = loaded(plain("bought", "carted", "put-back", "seen", "stale"))
    seen = [
        ("stale", "cart", 15 * 86_400),
        ("bought", "cart", 900),
        ("bought", "purchase", 800),
        ("put-back", "cart", 700),
        ("put-back", "cart_remove", 600),
        ("carted", "cart", 500),
        ("seen", "view", 60),
    ]
    assert by(UnfinishedSource(), trigger(seen), catalogue) == ["carted", "seen"]


def test_interest_halves_in_a_day() -> None:
    catalogue = loaded(plain("a", "b"))
    clicked_long_ago = [("a", "click", 2 * 86_400), ("b", "view", 60)]
    assert by(UnfinishedSource(), trigger(clicked_long_ago), catalogue) == ["b", "a"]


def test_for_a_cart_left_its_items_come_first_the_newest_of_them_leading() -> None:
    items = plain(*"abcdefxyz")
    rows = [stats(x, popularity_1d=90.0, neighbours=[("x", 9.0), ("y", 8.0)]) for x in "abz"]
    catalogue = loaded(items, *rows)
    seen = [("z", "view", 50), ("z", "view", 40), ("z", "favorite", 30), ("a", "cart", 20)]
    left = trigger(seen, type="cart_left", cart=["b", "a"])
    found = CandidateGenerator(catalogue).generate(left)
    assert [c[:2] for c in found[:3]] == [
        ("a", "unfinished"),
        ("b", "unfinished"),
        ("z", "unfinished"),
    ]


def test_what_was_seen_is_proposed_as_unfinished_alone() -> None:
    rows = [stats(x, popularity_1d=50.0, neighbours=[("a", 1.0), ("b", 1.0)]) for x in "abc"]
    catalogue = loaded({x: {"title": f"lamp {x}"} for x in "abc"}, *rows)
    seen = [("a", "view", 90), ("b", "view", 60)]
    found = CandidateGenerator(catalogue).generate(trigger(seen))
    assert {c.item_id: c.source for c in found if c.item_id in "ab"} == dict.fromkeys(
        "ab", "unfinished"
    )


def test_a_cold_user_of_a_cold_shop_gets_the_newest_items() -> None:
    born = {"old": 9, "new": 1, "mid": 5}
    catalogue = loaded({x: {"created_ms": T0_MS - days * DAY_MS} for x, days in born.items()})
    found = CandidateGenerator(catalogue).generate(trigger())
    assert ids(found) == ["new", "mid", "old"]
    assert {c.source for c in found} == {"trend"}


def test_sources_that_find_too_little_are_filled_up_with_the_trend() -> None:
    catalogue = loaded(plain(*(f"i{n:03d}" for n in range(300))), stats("i007", popularity_1d=5.0))
    found = CandidateGenerator(catalogue, weights={"neighbour": 1.0}).generate(trigger())
    assert len(found) == 100
    assert found[0][:2] == ("i007", "trend")
    assert {c.source for c in found} == {"trend"}
    assert all(one.score > other.score > 0 for one, other in pairwise(found))


def test_an_empty_catalogue_gives_no_candidates() -> None:
    assert CandidateGenerator(loaded({})).generate(trigger([("a", "view", 60)])) == []


def test_equal_candidates_are_in_the_order_of_their_ids_hashes() -> None:
    rows = [stats(x, neighbours=[("p", 1.0), ("n", 1.0), ("m", 1.0)]) for x in "a"]
    catalogue = loaded(plain("p", "a", "n", "m"), *rows)
    generator = CandidateGenerator(catalogue, weights={"neighbour": 1.0})
    found = ids(generator.generate(trigger([("a", "view", 60)])))
    assert found == sorted("mnp", key=hash_of, reverse=True)


def test_a_candidate_names_the_source_that_contributes_most() -> None:
    rows = [stats("a", neighbours=[("b", 1.0)], popularity_1d=0.5), stats("b", popularity_1d=9.0)]
    catalogue = loaded(plain("a", "b"), *rows)
    saw_a = trigger([("a", "view", 60)])
    for weights, source in (
        ({"neighbour": 1.0, "trend": 0.5}, "neighbour"),
        ({"neighbour": 0.5, "trend": 1.0}, "trend"),
    ):
        [found] = CandidateGenerator(catalogue, weights=weights).generate(saw_a)
        assert (found.item_id, found.source) == ("b", source)
        assert found.score == pytest.approx(1.5 / 61, abs=1e-8)


def test_the_limit_holds_and_keeps_the_best() -> None:
    catalogue = loaded(plain(*(f"i{n:03d}" for n in range(200))), stats("i050", popularity_1d=5.0))
    full = CandidateGenerator(catalogue).generate(trigger())
    short = CandidateGenerator(catalogue, limit=7).generate(trigger())
    assert (len(full), short) == (100, full[:7])


def test_every_source_has_a_column_in_the_policy() -> None:
    sources = [source.name for source in weighed_sources()]
    assert (*sources, ExploreSource.name) == SOURCES
    assert set(sources) == set(WEIGHTS)


def test_a_changed_item_comes_first_where_that_is_why_we_ask() -> None:
    rows = [stats(x, popularity_1d=90.0, neighbours=[("x", 9.0), ("y", 8.0)]) for x in "abz"]
    catalogue = loaded(plain(*"abcxyz"), *rows)
    seen = [("a", "view", 900), ("b", "cart", 60)]
    for kind in ("price_dropped", "back_in_stock"):
        told = trigger(seen, type=kind, about=["a"])
        [first, *rest] = CandidateGenerator(catalogue).generate(told)
        assert first[:2] == ("a", "changed")
        assert "b" in ids(rest)


def test_a_campaign_puts_its_items_and_categories_forward() -> None:
    kinds = {"a": "hats", "b": "hats", "c": "tea", "d": "tea"}
    catalogue = loaded({item_id: {"categories": [kind]} for item_id, kind in kinds.items()})
    picks = Picks(item_ids=["d", "nowhere"], categories=["hats", "nothing"])
    generator = CandidateGenerator(catalogue, weights={"campaign": 1.0})
    [found] = generator.find([trigger()], [picks])
    named = candidates_of(catalogue, found.rows, found.sources, found.scores)
    assert {c.item_id: c.source for c in named} == {
        "d": "campaign",
        "a": "campaign",
        "b": "campaign",
        "c": "trend",
    }
    assert named[0].item_id == "d"


def test_a_purchase_that_is_due_comes_back_and_no_other() -> None:
    again = {"first_buys": 100.0, "repeat_buys": 50.0, "repeat_days": 20.0}
    catalogue = loaded(plain("a", "b", "c", "d"), stats("a", **again), stats("b", **again))
    days_ago = [T0_MS // 1_000 - days * 86_400 for days in (21, 3)]
    moment = trigger(bought=["a", "b", "d"], bought_s=[*days_ago, 0])
    found = CandidateGenerator(catalogue).generate(moment)
    assert [c[:2] for c in found] == [("a", "repeat"), ("c", "trend")]


def test_what_was_written_finds_items_and_names_the_source() -> None:
    titles = {"a": "red garden lamp", "b": "chocolate cake", "c": "tent for four"}
    catalogue = loaded({item_id: {"title": title} for item_id, title in titles.items()})
    [searched] = pack_vectors(to_grid(encode_texts(["garden lamp"])))
    [liked] = pack_vectors(to_grid(encode_texts(["chocolate"])))
    found = CandidateGenerator(catalogue).generate(trigger(intent=searched, taste=liked))
    assert [c[:2] for c in found] == [("a", "intent"), ("b", "intent"), ("c", "trend")]


def test_what_a_user_has_blocked_is_proposed_by_no_source() -> None:
    again = {"first_buys": 100.0, "repeat_buys": 50.0, "repeat_days": 20.0}
    rows = [stats(x, neighbours=[("b", 1.0), ("d", 1.0)], popularity_1d=9.0) for x in "abcd"]
    rows.append(stats("e", **again))
    kinds = {"a": "x", "b": "x", "c": "hats", "d": "hats", "e": "x", "f": "x"}
    catalogue = loaded({x: {"categories": [kind]} for x, kind in kinds.items()}, *rows)
    profile = UserProfile(user_id="u1", blocked_items=["b", "e"], blocked_categories=["hats"])
    moment = trigger(
        [("a", "view", 60), ("b", "cart", 50), ("c", "view", 40)],
        cart=["b"],
        bought=["e"],
        bought_s=[T0_MS // 1_000 - 20 * 86_400],
        about=["c", "b"],
        type="price_dropped",
        profile=profile,
    )
    picks = Picks(item_ids=["b", "d"], categories=["hats"])
    for share in (0.0, 0.5):
        [found] = CandidateGenerator(catalogue, explore_share=share).find([moment], [picks])
        assert sorted(catalogue.item_ids[row] for row in found.rows) == ["a", "f"]


def test_new_items_get_their_share_of_the_places() -> None:
    old = {"created_ms": T0_MS - 90 * DAY_MS}
    new = {"created_ms": T0_MS - DAY_MS}
    items = {f"i{n:03d}": new if n >= 250 else old for n in range(300)}
    rows = [stats(f"i{n:03d}", popularity_1d=300.0 - n) for n in range(300)]
    catalogue = loaded(items, *rows)
    generator = CandidateGenerator(catalogue, explore_share=0.05)
    explored = []
    for n in range(20):
        found = generator.generate(trigger(event_id=f"e{n}"))
        drawn = [c.item_id for c in found if c.source == "explore"]
        assert len(found) == 100
        assert len(drawn) == 5
        assert all(int(item_id[1:]) >= 250 for item_id in drawn)
        assert [c.source for c in found[-5:]] == ["explore"] * 5
        explored += drawn
    assert len(set(explored)) > 20
    again = generator.generate(trigger(event_id="e0"))
    assert again == generator.generate(trigger(event_id="e0", type="idle"))


def test_what_the_learner_found_moves_the_weights_within_bounds() -> None:
    rows = [stats("a", neighbours=[("b", 1.0)], popularity_1d=0.5), stats("c", popularity_1d=9.0)]
    catalogue = loaded(plain("a", "b", "c"), *rows)
    saw_a = trigger([("a", "view", 60)])
    generator = CandidateGenerator(catalogue, weights={"neighbour": 1.0, "trend": 1.5})
    assert ids(generator.generate(saw_a))[0] == "b"  # both speak for it, the trend from behind
    generator.weigh({"neighbour": 0.5, "trend": 2.0})
    after = generator.generate(saw_a)
    assert after[0].score == pytest.approx(0.5 / 61 + 3.0 / 62, abs=1e-6)
    generator.weigh({})
    assert generator.generate(saw_a) == CandidateGenerator(
        catalogue, weights={"neighbour": 1.0, "trend": 1.5}
    ).generate(saw_a)


@pytest.mark.parametrize("name", SOURCES[:-1])
def test_a_source_of_weight_zero_is_not_asked(name: str) -> None:
    weights = {**WEIGHTS, name: 0.0}
    catalogue = shop_of(1)
    [liked] = pack_vectors(to_grid(encode_texts(["word1 word2"])))
    moment = trigger(
        [("i06", "view", 60), ("i15", "cart", 30)], about=["i06"], intent=liked, cart=["i15"]
    )
    found = CandidateGenerator(catalogue, weights=weights, limit=20).generate(moment)
    assert name not in {c.source for c in found}
    assert len(found) == 20


# A shop in which all that may keep an item away happens.
N_ITEMS = 60
ITEMS = [f"i{n:02d}" for n in range(N_ITEMS)]


def shop(seed: int, order: list[int], *, late: int = 0) -> Catalogue:
    """Return a shop of a seed, its messages applied in an order, `late` of them in a second load.

    By n modulo 10: 0 is sold out, 1 is removed, 2 opens later, 3 is closed, 4 has no item message.
    """
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 30, (N_ITEMS, 3))
    counts = rng.integers(0, 4, N_ITEMS)  # few values: many ties
    others = rng.integers(0, N_ITEMS, (N_ITEMS, 6))
    catalogue = Catalogue()
    for place, n in enumerate(order):
        if place == len(order) - late:
            catalogue.refresh()
        if n % 10 != 4:
            catalogue.apply(ITEMS[n], shop_item(n, words[n].tolist()))
        if n % 10 == 1:
            catalogue.apply(ITEMS[n], None)
        neighbours = [(ITEMS[o], 1.0 / (1 + at // 2)) for at, o in enumerate(others[n].tolist())]
        catalogue.apply_stats(
            stats(
                ITEMS[n],
                views=float(counts[n]),
                popularity_1d=float(counts[n]),
                by_country={"GB": float(counts[n] % 2 + 1)},
                neighbours=neighbours,
            )
        )
    catalogue.refresh()
    return catalogue


@cache
def shop_of(seed: int) -> Catalogue:
    return shop(seed, list(range(N_ITEMS)))


def shop_item(n: int, words: list[int]) -> Item:
    return Item(
        item_id=ITEMS[n],
        title=" ".join(f"word{w}" for w in words),
        categories=[f"c{n % 4}"],
        is_available=n % 10 != 0,
        available_from_ms=T0_MS + 1 if n % 10 == 2 else None,
        available_until_ms=T0_MS if n % 10 == 3 else None,
    )


TRIGGERS = st.builds(
    lambda seen, cart, bought, kind, category, about, wrote: trigger(
        sorted(seen, key=lambda s: -s[2]),
        cart=cart,
        bought=bought,
        type=kind,
        category=category,
        country="GB",
        event_id=f"e{len(seen)}",
        about=about,
        intent=pack_vectors(to_grid(encode_texts([wrote])))[0] if wrote else b"",
    ),
    st.lists(
        st.tuples(
            st.sampled_from([*ITEMS, "unknown"]),
            st.sampled_from(["view", "click", "cart", "cart_remove", "favorite", "purchase"]),
            st.integers(0, 20 * 86_400),
        ),
        max_size=50,
    ),
    st.lists(st.sampled_from(ITEMS), max_size=5, unique=True),
    st.lists(st.sampled_from(ITEMS), max_size=10, unique=True),
    st.sampled_from(["intent", "cart_left", "session_ended", "idle", "price_dropped"]),
    st.sampled_from(["", "c1", "nowhere"]),
    st.lists(st.sampled_from([*ITEMS, "unknown"]), max_size=2),
    st.sampled_from(["", "word1 word2 word3"]),
)


LIMITS = {"limit": 15, "max_per_category": 0.3, "copy_cosine": 0.7, "explore_share": 0.2}


@given(TRIGGERS, st.integers(0, 3))
def test_no_candidate_is_unavailable_bought_or_seen_without_being_unfinished(moment, seed) -> None:
    catalogue = shop_of(seed)
    found = CandidateGenerator(catalogue, limit=30).generate(moment)
    assert len(set(ids(found))) == len(found) <= 30
    assert all(int(c.item_id[1:]) % 10 >= 5 for c in found)
    assert not set(ids(found)) & set(moment.bought)
    seen = {*moment.history.item_ids, *moment.cart}
    told = {c.source for c in found if c.item_id in seen}
    assert told <= {"unfinished", "changed"}
    assert all(c.item_id in moment.about for c in found if c.source == "changed")
    assert found == sorted(found, key=lambda c: (-c.score, -hash_of(c.item_id)))
    is_new = [n for n in range(N_ITEMS) if ITEMS[n] not in {*seen, *moment.bought}]
    texts = {int(catalogue.text_key[catalogue.row(ITEMS[n])]) for n in is_new if n % 10 >= 5}
    assert len(found) >= min(len(texts), 30)


@given(TRIGGERS, st.integers(0, 3), st.permutations(range(N_ITEMS)), st.integers(0, N_ITEMS - 1))
def test_candidates_do_not_depend_on_the_order_of_messages(moment, seed, order, late) -> None:
    one = CandidateGenerator(shop_of(seed), **LIMITS).generate(moment)
    other = CandidateGenerator(shop(seed, order, late=late), **LIMITS).generate(moment)
    assert one == other


@given(st.lists(TRIGGERS, min_size=1, max_size=6))
def test_candidates_do_not_depend_on_who_shares_the_batch(moments) -> None:
    generator = CandidateGenerator(shop_of(1), **LIMITS)
    together = generator.find(moments)
    alone = [generator.find([moment])[0] for moment in moments]
    for one, other in zip(together, alone, strict=True):
        assert [column.tolist() for column in one[1:]] == [column.tolist() for column in other[1:]]


def test_batches_of_any_size_find_the_same_to_the_byte() -> None:
    rng = np.random.default_rng(0)
    moments = [
        trigger(
            [(ITEMS[at], "view", 900 - at) for at in rng.permutation(N_ITEMS)[: n % 51].tolist()],
            bought=[ITEMS[n % N_ITEMS]] * (n % 2),
            event_id=f"e{n}",
            profile=UserProfile(user_id="u1", country="GB", blocked_items=ITEMS[: n % 3]),
        )
        for n in range(130)
    ]
    generator = CandidateGenerator(shop_of(2), **LIMITS)
    together = [column.tobytes() for one in generator.find(moments) for column in one[1:]]
    for size in (1, 2, 32, 53):
        parts = [moments[at : at + size] for at in range(0, len(moments), size)]
        found = [one for part in parts for one in generator.find(part)]
        assert [column.tobytes() for one in found for column in one[1:]] == together


@given(st.lists(TRIGGERS, min_size=1, max_size=6))
def test_an_arms_features_do_not_depend_on_who_shares_the_batch(moments) -> None:
    catalogue = shop_of(1)
    generator = CandidateGenerator(catalogue, limit=5)
    found = generator.find(moments)
    together = features(found)
    alone = [features([one]) for one in found]
    assert together.tobytes() == np.concatenate(alone).tobytes()


def features(found: list[Found]) -> np.ndarray:
    """Return the arm features of several triggers' candidates."""
    inputs = arm_inputs([one.query for one in found], [one.rows for one in found])
    inputs[INPUT["scores"]] = inputs[INPUT["fused"]] = np.concatenate([x.scores for x in found])
    bounds = np.cumsum([0, *(len(one.rows) for one in found)])
    return arm_columns(inputs, np.concatenate([one.sources for one in found]), bounds)


def inputs_of(moment: Trigger, item_ids: str, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Return one trigger's arm inputs of some items."""
    rows = np.array(catalogue.rows_of(item_ids), np.int64)
    found = arm_inputs([make_query(moment, catalogue)], [rows])
    return {name: found[row] for name, row in INPUT.items()}


def test_arm_inputs_are_decayed_to_the_trigger() -> None:
    row = stats(
        "a",
        as_of_ms=T0_MS - 7 * DAY_MS,
        first_seen_ms=T0_MS - 10 * DAY_MS,
        views=8.0,
        clicks=4.0,
        purchases=2.0,
        pushes=6.0,
        opens=3.0,
        favorites=2.0,
        popularity_1d=128.0,
    )
    items = {"a": {"price": 9.5}, "b": {"created_ms": T0_MS - 3 * DAY_MS}, "c": {}}
    catalogue = loaded(items, row)
    inputs = inputs_of(trigger(), "abc", catalogue)
    assert {name: values.tolist()[0] for name, values in inputs.items()} == {
        "scores": 0.0,
        "fused": 0.0,
        "popularity": 1.0,
        "views": 4.0,
        "clicks": 2.0,
        "purchases": 1.0,
        "pushes": 3.0,
        "opens": 1.5,
        "favorites": 1.0,
        "age_days": 10.0,
        "price": 9.5,
        "category_affinity": 0.0,
        "intent_cosine": 0.0,
        "taste_cosine": 0.0,
    }
    assert inputs["age_days"].tolist() == [10.0, 3.0, 0.0]


def test_category_affinity_is_the_share_of_the_history_in_the_items_category() -> None:
    kinds = {"a": "shoes", "b": "shoes", "c": "hats", "x": "shoes", "y": "hats", "z": "tea"}
    items = {item_id: {"categories": [kind]} for item_id, kind in kinds.items()}
    catalogue = loaded({**items, "n": {}, "m": {}})
    seen = [("n", "view", 9), ("c", "view", 8), ("b", "view", 7), ("a", "view", 6)]
    affinity = inputs_of(trigger(seen), "xyzm", catalogue)["category_affinity"]
    assert affinity[:2] == pytest.approx([2 / 3, 1 / 3], abs=0.02)  # the newer weigh a bit more
    assert affinity[:2].sum() == 1.0
    assert affinity[2:].tolist() == [0.0, 0.0]


def test_arm_inputs_are_what_the_policy_takes() -> None:
    catalogue = shop_of(0)
    moment = trigger([("i06", "view", 60)])
    [found] = CandidateGenerator(catalogue).find([moment])
    rows = features([found])
    assert rows.shape == (len(found.rows), N_ARM)
    assert np.isfinite(rows).all()
