"""Item statistics: what goes together, how counts fade, and what bounds them."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.item_counts import INTEREST, ItemCounts
from operators.hops import ItemSignal
from operators.item_stats import (
    MAX_BOUGHT,
    InteractionTracker,
    ItemStatsShard,
    decode_state,
    encode_state,
    fan_out,
    new_state,
    since_bought,
)
from operators.messages import EventContext, ItemStats
from operators.shards import DictShard
from tests.conftest import T0_MS, event

DAY_MS = 86_400_000
GAP_MS = 1_800_000


def states() -> DictShard[ItemCounts]:
    return DictShard("00", encode=encode_state, decode=decode_state, new=new_state)


def signal(
    item_id: str = "a", kind: str = "view", time_ms: int = T0_MS, **fields: object
) -> ItemSignal:
    defaults = {"country": "", "value": 0.0, "together": ()}
    return ItemSignal(item_id, kind, time_ms, **{**defaults, **fields})


def stats_of(*signals: ItemSignal) -> ItemStats:
    shard = ItemStatsShard(states())
    for each in signals:
        shard.on_signal(each)
    [row] = [row for row in shard.dirty() if row.item_id == signals[0].item_id]
    return row


def see(recent: list[tuple[str, int]], item_id: str, time_ms: int, kind: str = "view"):
    found = InteractionTracker(GAP_MS).observe(
        recent, event(type=kind, item_id=item_id, time_ms=time_ms)
    )
    assert found is not None
    return found.together


def test_an_event_exactly_a_gap_later_is_of_the_same_session() -> None:
    recent: list[tuple[str, int]] = []
    see(recent, "a", T0_MS)
    assert see(recent, "b", T0_MS + GAP_MS) == ("a",)
    assert see(recent, "c", T0_MS + 2 * GAP_MS + 1) == ()


def test_a_long_session_without_a_pause_stays_one() -> None:
    recent: list[tuple[str, int]] = []
    for n in range(5):
        together = see(recent, f"i{n}", T0_MS + n * GAP_MS)
    assert together == ("i3", "i2", "i1", "i0")


def test_a_late_event_of_this_session_is_put_in_its_place() -> None:
    recent: list[tuple[str, int]] = []
    see(recent, "a", T0_MS)
    see(recent, "c", T0_MS + 1_000)
    assert see(recent, "b", T0_MS + 500) == ("c", "a")
    assert recent == [("a", T0_MS), ("b", T0_MS + 500), ("c", T0_MS + 1_000)]


def test_a_late_event_of_an_earlier_session_pairs_with_nothing_and_changes_nothing() -> None:
    recent: list[tuple[str, int]] = []
    see(recent, "a", T0_MS)
    assert see(recent, "b", T0_MS - GAP_MS - 1) == ()
    assert recent == [("a", T0_MS)]


def test_looking_again_counts_beside_what_came_since_but_buying_beside_all() -> None:
    recent: list[tuple[str, int]] = []
    for at, item_id in enumerate("abc"):
        see(recent, item_id, T0_MS + at)
    assert see(recent, "b", T0_MS + 10) == ("c",)
    assert see(recent, "b", T0_MS + 11) == ()
    assert see(recent, "b", T0_MS + 12, "purchase") == ("c", "a")


def test_the_recent_items_are_distinct_and_at_most_twenty() -> None:
    recent: list[tuple[str, int]] = []
    for n in range(100):
        together = see(recent, f"i{n % 25}", T0_MS + n)
    assert len(recent) == 20 == len({item_id for item_id, _ in recent})
    assert len(together) <= 20


@pytest.mark.parametrize("kind", ["search", "app_open", "cart_remove"])
def test_events_that_say_nothing_of_an_item_give_no_signal(kind: str) -> None:
    recent = [("a", T0_MS)]
    assert InteractionTracker(GAP_MS).observe(recent, event(type=kind, item_id="b")) is None
    assert recent == [("a", T0_MS)]


def test_an_event_without_an_item_gives_no_signal() -> None:
    assert InteractionTracker(GAP_MS).observe([], event(item_id=None)) is None


def test_a_refund_is_a_signal_that_goes_with_nothing() -> None:
    recent = [("a", T0_MS)]
    found = InteractionTracker(GAP_MS).observe(
        recent, event(type="refund", item_id="b", value=-4.0)
    )
    assert found == ItemSignal("b", "refund", T0_MS, "", -4.0, ())
    assert recent == [("a", T0_MS)]


def test_a_signal_carries_the_country_and_the_value() -> None:
    rating = event(type="rate", value=4.5, context=EventContext(country="DE"))
    found = InteractionTracker(GAP_MS).observe([], rating)
    assert found == ItemSignal("i1", "rate", T0_MS, "DE", 4.5, ())


def test_no_gap_or_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="gap_ms"):
        InteractionTracker(0)
    with pytest.raises(ValueError, match="max_recent"):
        InteractionTracker(1, max_recent=0)


def test_both_items_of_a_pair_learn_of_each_other_with_the_same_weight() -> None:
    shard = ItemStatsShard(states())
    for each in fan_out(signal("a", "cart", together=("b",))):
        shard.on_signal(each)
    a, b = shard.dirty()
    [(of_a, strength_a)], [(of_b, strength_b)] = a.neighbours, b.neighbours
    assert (of_a, of_b) == ("b", "a")
    # 3 / sqrt(3 + 5) for a, whose own cart counts as interest; 3 / sqrt(5) for b.
    assert strength_a == pytest.approx(3 / 8**0.5, abs=1e-5)
    assert strength_b == pytest.approx(3 / 5**0.5, abs=1e-5)
    assert (a.carts, b.carts, b.popularity_1d) == (1.0, 0.0, 0.0)


def test_counts_halve_in_a_week_and_popularity_in_a_day() -> None:
    row = stats_of(
        signal(kind="purchase", country="GB"), signal(kind="click", time_ms=T0_MS + 7 * DAY_MS)
    )
    assert row.as_of_ms == T0_MS + 7 * DAY_MS
    assert row.first_seen_ms == T0_MS
    assert (row.purchases, row.clicks) == (0.5, 1.0)
    assert row.popularity_1d == pytest.approx(1 + 5 / 128)
    assert row.by_country == {"GB": pytest.approx(5 / 128, abs=1e-6)}


def test_pushes_and_opens_are_counted_but_make_nothing_popular() -> None:
    row = stats_of(signal(kind="push"), signal(kind="push"), signal(kind="open"))
    assert (row.pushes, row.opens, row.popularity_1d) == (2.0, 1.0, 0.0)


def test_ratings_are_summed_and_an_absent_one_is_not_a_zero() -> None:
    row = stats_of(
        signal(kind="rate", value=4.0), signal(kind="rate", value=3.0), signal(kind="rate")
    )
    assert (row.rating_sum, row.rating_count) == (7.0, 2.0)


def test_a_refund_takes_a_purchase_back_but_never_below_nothing() -> None:
    bought, refund = signal(kind="purchase"), signal(kind="refund", time_ms=T0_MS + DAY_MS)
    row = stats_of(bought, refund, refund)
    assert (row.purchases, row.popularity_1d) == (0.0, 0.0)


SIGNALS = st.lists(
    st.builds(
        signal,
        kind=st.sampled_from([*INTEREST, "push", "open", "together"]),
        time_ms=st.integers(0, 300).map(lambda n: T0_MS + n * DAY_MS // 3),
        country=st.sampled_from(["", "GB", "DE"]),
        value=st.sampled_from([1.0, 3.0]),
        together=st.sampled_from([(), ("b",), ("c", "b")]),
    ),
    min_size=1,
    max_size=30,
)


@given(SIGNALS, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(signals, random) -> None:
    shuffled = list(signals)
    random.shuffle(shuffled)
    one, other = stats_of(*signals), stats_of(*shuffled)
    assert (one.as_of_ms, one.first_seen_ms) == (other.as_of_ms, other.first_seen_ms)
    assert one.popularity_1d == pytest.approx(other.popularity_1d, abs=2e-6)
    assert one.views == pytest.approx(other.views, abs=2e-4)
    assert dict(one.neighbours) == pytest.approx(dict(other.neighbours), abs=2e-5)
    assert one.by_country == pytest.approx(other.by_country, abs=2e-6)


@given(SIGNALS)
def test_counts_are_what_the_formula_says_across_rebasing(signals) -> None:
    row = stats_of(*signals)
    views = sum(
        2 ** ((s.time_ms - row.as_of_ms) / (7 * DAY_MS)) for s in signals if s.type == "view"
    )
    popularity = sum(
        INTEREST.get(s.type, 0) * 2 ** ((s.time_ms - row.as_of_ms) / DAY_MS) for s in signals
    )
    assert row.views == pytest.approx(views, abs=1e-4)
    assert row.popularity_1d == pytest.approx(popularity, abs=1e-6)


def test_events_decades_apart_neither_overflow_nor_divide_by_zero() -> None:
    first, last = 946_684_800_000, 4_102_444_800_000
    row = stats_of(
        signal(time_ms=last, together=("b",)),
        signal(time_ms=first, together=("c",)),
        signal(time_ms=last, country="GB"),
    )
    assert (row.views, row.popularity_1d, row.by_country) == (2.0, 2.0, {"GB": 1.0})
    assert [other for other, strength in row.neighbours if strength] == ["b"]


def test_pairs_are_bounded_and_the_strong_survive_a_flood_of_others() -> None:
    items = states()
    shard = ItemStatsShard(items)
    for n in range(1_000):
        shard.on_signal(signal(time_ms=T0_MS + n, together=(f"b{n % 3}", f"x{n:04d}")))
    [row] = shard.dirty()
    assert {other for other, _ in row.neighbours[:3]} == {"b0", "b1", "b2"}
    assert len(row.neighbours) == 100
    assert all(one >= other for (_, one), (_, other) in pairwise(row.neighbours))
    state = items.peek("a")
    assert state is not None
    assert len(state._pairs) <= 256
    assert len(encode_state(state)) < 4_096


def test_equal_neighbours_are_in_the_order_of_their_ids() -> None:
    row = stats_of(*(signal(together=(other,)) for other in ("c", "a1", "b")))
    assert [other for other, _ in row.neighbours] == ["a1", "b", "c"]


def test_what_came_longer_before_goes_less_with_an_item_on_both_sides() -> None:
    shard = ItemStatsShard(states())
    for each in fan_out(signal("a", "view", together=("b", "c"))):
        shard.on_signal(each)
    a, b, c = shard.dirty()
    assert a.neighbours == [("b", pytest.approx(1 / 6**0.5, abs=1e-4)), ("c", 0.36742)]
    assert b.neighbours[0][1] * 0.9 == pytest.approx(c.neighbours[0][1], abs=1e-4)


def test_pairs_of_version_1_are_worth_what_they_were() -> None:
    old, now = ItemCounts(), ItemCounts()
    old.add("view", T0_MS, beside=("b",))
    old.add("view", T0_MS + 28 * DAY_MS)
    now.add("view", T0_MS, beside=("b",))
    now.add("view", T0_MS + 28 * DAY_MS)
    read = ItemCounts.unpack(b"\x01" + old.pack()[1:])
    faded = 2.0 ** (-28 / 14 + 28 / 730)
    assert read.interest() == pytest.approx(now.interest() * faded)


def test_countries_are_bounded_and_the_largest_are_told() -> None:
    signals = [signal(country=f"C{n % 40:02d}", time_ms=T0_MS + n) for n in range(400)]
    row = stats_of(*signals, *[signal(country="GB", kind="purchase", time_ms=T0_MS + 500)] * 3)
    assert len(row.by_country) == 8
    assert next(iter(row.by_country)) == "GB"


@given(SIGNALS)
def test_a_state_survives_its_bytes(signals) -> None:
    state = ItemCounts()
    for each in signals:
        state.add(
            each.type, each.time_ms, value=each.value, country=each.country, beside=each.together
        )
    assert decode_state(encode_state(state)) == state


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        decode_state(b"\x07" + encode_state(ItemCounts())[1:])


def test_dirty_gives_each_changed_item_once_in_order() -> None:
    shard = ItemStatsShard(states())
    for item_id in "cabca":
        shard.on_signal(signal(item_id))
    assert [row.item_id for row in shard.dirty()] == ["a", "b", "c"]
    assert shard.dirty() == []


def test_after_a_resume_all_items_can_be_published_again() -> None:
    before = states()
    ItemStatsShard(before).on_signal(signal("a"))
    resumed = DictShard(
        "00", encode=encode_state, decode=decode_state, new=new_state, state=before.snapshot()
    )
    shard = ItemStatsShard(resumed)
    assert shard.dirty() == []
    shard.mark_all()
    assert [row.item_id for row in shard.dirty()] == ["a"]


def test_a_sweep_drops_idle_items_and_names_them() -> None:
    items = states()
    shard = ItemStatsShard(items)
    shard.on_signal(signal("old"))
    shard.on_signal(signal("new", time_ms=T0_MS + DAY_MS))
    assert shard.sweep(T0_MS + 1) == ["old"]
    assert [row.item_id for row in shard.dirty()] == ["new"]
    assert items.peek("old") is None


def test_statistics_keep_the_contract_of_their_topic() -> None:
    row = stats_of(*fan_out(signal("a", "purchase", country="GB", together=("b", "c"))))
    assert msgspec.json.decode(msgspec.json.encode(row), type=ItemStats) == row


def test_an_item_bought_again_tells_how_often_and_after_how_long() -> None:
    bought = [0, 0, 0, 10 * DAY_MS, 40 * DAY_MS, DAY_MS - 1]  # the last: of one order
    row = stats_of(*(signal("a", "purchase", since_ms=since_ms) for since_ms in bought))

    assert (row.first_buys, row.repeat_buys, row.repeat_days) == (3.0, 2.0, 20.0)


def test_repeats_fade_by_half_in_half_a_year_and_their_pause_does_not() -> None:
    row = stats_of(
        signal("a", "purchase"),
        signal("a", "purchase", since_ms=30 * DAY_MS),
        signal("a", "view", T0_MS + 180 * DAY_MS),
    )

    assert (row.first_buys, row.repeat_buys, row.repeat_days) == (0.5, 0.5, 30.0)


def test_an_item_never_bought_again_has_no_pause() -> None:
    row = stats_of(signal("a", "purchase"))

    assert (row.first_buys, row.repeat_buys, row.repeat_days) == (1.0, 0.0, 0.0)


def test_counts_of_version_1_go_on() -> None:
    old = ItemCounts()
    old.add("view", T0_MS)
    fields = msgspec.msgpack.decode(old.pack()[1:])[:10]  # without what version 2 added
    state = decode_state(b"\x01" + msgspec.msgpack.encode(fields))
    state.add("purchase", T0_MS)

    assert (state.counted()[0], state.repeats()) == (1.0, (1.0, 0.0, 0.0))
    assert encode_state(state)[0] == 2


def test_the_last_purchases_are_remembered_and_no_more() -> None:
    bought: dict[str, int] = {}
    for n in range(MAX_BOUGHT + 1):
        since_bought(bought, event(type="purchase", item_id=f"i{n}", time_ms=T0_MS))

    assert len(bought) == MAX_BOUGHT
    assert since_bought(bought, event(type="purchase", item_id="i0", time_ms=T0_MS + 5)) == 0
    assert since_bought(bought, event(type="purchase", item_id="i9", time_ms=T0_MS + 5)) == 5
