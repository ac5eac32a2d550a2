"""Who is told of a changed item: those who showed interest before it, each once."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.hops import Forget, Interest, ItemUpdate
from operators.interest import (
    InterestShard,
    ItemInterest,
    decode_state,
    encode_state,
    interest_of,
    new_state,
)
from operators.messages import Item, UserSignal
from operators.shards import DictShard
from tests.conftest import T0_MS, event

DAY_MS = 86_400_000


def states() -> DictShard[ItemInterest]:
    return DictShard("i00", encode=encode_state, decode=decode_state, new=new_state)


def shard(items: DictShard[ItemInterest] | None = None, **options: object) -> InterestShard:
    return InterestShard(states() if items is None else items, **options)  # type: ignore[arg-type]


def shows(
    user_id: str, after_ms: int = 0, item_id: str = "i", *, is_over: bool = False
) -> Interest:
    return Interest(item_id, user_id, T0_MS + after_ms, is_over)


def update(version: int, after_ms: int, item_id: str = "i", **fields: object) -> ItemUpdate:
    item = Item(item_id=item_id, title="Lamp", **fields)  # type: ignore[arg-type]
    return ItemUpdate(item_id, item, version, T0_MS + after_ms)


def told(signals: Sequence[UserSignal]) -> list[tuple[str, str]]:
    return [(signal.user_id, signal.type) for signal in signals]


def test_a_lower_price_is_told_to_those_interested_the_newest_first() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 5), shows("bob", 7), shows("cat", 5)])
    signals = subject.on_batch([update(1, 10, price=19.0)])

    assert told(signals) == [(user, "price_dropped") for user in ("bob", "ann", "cat")]
    first = signals[0]
    assert (first.item_id, first.price, first.old_price) == ("i", 19.0, 20.0)
    assert (first.time_ms, first.since_ms) == (T0_MS + 10, T0_MS + 7)
    assert len({signal.signal_id for signal in signals}) == 3


@pytest.mark.parametrize("price", [19.01, 20.0, 25.0, 0.0, -3.0])
def test_another_price_is_told_to_nobody(price: float) -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 5)])

    assert subject.on_batch([update(1, 10, price=price)]) == []


def test_many_small_steps_add_up_and_are_told_once() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1)])
    steps = [subject.on_batch([update(n, 10 * n, price=20.0 - n / 2)]) for n in range(1, 5)]

    assert [len(signals) for signals in steps] == [0, 1, 0, 1]
    assert (steps[3][0].old_price, steps[3][0].price) == (19.0, 18.0)


def test_what_can_be_had_again_is_told_and_its_lower_price_not_as_well() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1)])
    gone = subject.on_batch([update(1, 10, price=15.0, is_available=False)])
    back = subject.on_batch([update(2, 20, price=15.0), update(3, 30, price=15.0)])

    assert (gone, told(back)) == ([], [("ann", "back_in_stock")])


def test_a_removed_item_that_comes_back_is_back_in_stock() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1)])
    subject.on_batch([ItemUpdate("i", None, 1, T0_MS + 10)])

    assert told(subject.on_batch([update(2, 20)])) == [("ann", "back_in_stock")]


@pytest.mark.parametrize(
    "window", [{"available_from_ms": T0_MS + 11}, {"available_until_ms": T0_MS + 10}]
)
def test_an_item_outside_its_time_cannot_be_had(window: dict[str, int]) -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1)])
    outside = subject.on_batch([update(1, 10, price=10.0, **window)])

    assert outside == []
    assert told(subject.on_batch([update(2, 20, price=10.0)])) == [("ann", "back_in_stock")]


def test_a_new_item_is_no_news_to_those_who_saw_it_elsewhere() -> None:
    assert shard().on_batch([shows("ann"), update(0, 10, price=5.0)]) == []


def test_settings_turn_both_off() -> None:
    subject = shard(price_drop=0.0, tells_of_stock=False)
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1)])
    dropped = subject.on_batch([update(1, 10, price=1.0)])
    back = subject.on_batch([update(2, 20, is_available=False), update(3, 30)])

    assert (dropped, back) == ([], [])


def test_who_bought_it_or_came_after_or_long_before_is_not_told() -> None:
    subject = shard()
    entries = [
        update(0, 0, price=20.0),
        shows("bought", 5),
        shows("bought", 6, is_over=True),
        shows("again", 5),
        shows("again", 6, is_over=True),
        shows("again", 7),
        shows("long ago", -30 * DAY_MS),
        shows("just in time", -30 * DAY_MS + 100),
        shows("after", 101),
    ]
    subject.on_batch(entries)

    assert told(subject.on_batch([update(1, 100, price=10.0)])) == [
        ("again", "price_dropped"),
        ("just in time", "price_dropped"),
    ]


def test_a_late_purchase_does_not_end_a_newer_interest() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 5), shows("ann", 4, is_over=True)])

    assert told(subject.on_batch([update(1, 10, price=10.0)])) == [("ann", "price_dropped")]


def test_only_the_newest_users_are_kept_and_told() -> None:
    items = states()
    subject = shard(items, max_users=4)
    subject.on_batch([update(0, 0, price=20.0), *(shows(f"u{n:02d}", n) for n in range(20))])
    signals = subject.on_batch([update(1, 100, price=10.0)])

    assert [user for user, _ in told(signals)] == ["u19", "u18", "u17", "u16"]
    assert len(items.get("i").users) <= 5


def test_an_erased_user_is_in_no_byte_of_the_state() -> None:
    items = states()
    subject = shard(items)
    entries = [shows(user, 0, item) for item in ("i", "j", "k") for user in ("ann", "erased-user")]
    subject.on_batch([update(0, 0, price=20.0), *entries])
    before = b"".join(packed for _, packed in items.scan_raw())
    subject.on_batch([Forget("erased-user", "i00"), Forget("unknown", "i00")])
    after = b"".join(packed for _, packed in items.scan_raw())

    assert before.count(b"erased-user") == 3
    assert (after.count(b"erased-user"), after.count(b"ann")) == (0, 3)


def test_interest_after_an_erasure_counts_and_before_it_not() -> None:
    subject = shard()
    subject.on_batch([update(0, 0, price=20.0), shows("ann", 1), shows("bob", 1)])
    signals = subject.on_batch(
        [Forget("ann", "i00"), Forget("bob", "i00"), shows("bob", 5), update(1, 10, price=10.0)]
    )

    assert told(signals) == [("bob", "price_dropped")]


def test_a_topic_read_again_from_its_start_tells_nothing_twice() -> None:
    subject = shard()
    history = [update(0, 0, price=20.0), update(1, 10, price=10.0), update(2, 20, price=15.0)]
    subject.on_batch([history[0], shows("ann", 1), *history[1:]])

    assert subject.on_batch(history) == []
    anew = [update(0, 30, price=15.0), update(1, 40, price=9.0)]  # a topic made anew
    assert told(subject.on_batch(anew)) == [("ann", "price_dropped")]


def test_what_is_too_old_goes_and_what_can_be_had_stays_without_users() -> None:
    items = states()
    subject = shard(items)
    subject.on_batch([update(0, 0, "there", price=20.0), shows("ann", 1, "there")])
    subject.on_batch([shows("ann", 1, "never listed"), update(0, 0, "gone", is_available=False)])
    subject.on_batch([shows("bob", 31 * DAY_MS + 2, "new")])

    assert sorted(key for key, _ in items.scan()) == ["new", "there"]
    assert items.get("there") == ItemInterest(price=20.0, is_there=True, version=0, time_ms=T0_MS)


def test_events_of_no_interest_say_nothing() -> None:
    kinds = ["click", "rate", "comment", "share"]
    found = [interest_of(event(type=kind)) for kind in kinds]

    assert found == [None] * 4
    assert interest_of(event(type="search", item_id=None, text="lamp")) is None
    over = interest_of(event(type="cart_remove"))
    assert over is not None
    assert over.is_over


ENTRIES = st.lists(
    st.one_of(
        st.builds(
            shows,
            st.sampled_from("abcd"),
            st.integers(0, 400),
            st.sampled_from("ij"),
            is_over=st.booleans(),
        ),
        st.builds(
            lambda item_id, price, is_there: (item_id, price, is_there),
            st.sampled_from("ij"),
            st.sampled_from([10.0, 9.8, 9.0, 5.0]),
            st.booleans(),
        ),
        st.builds(Forget, st.sampled_from("abcd"), st.just("i00")),
    ),
    max_size=40,
)


@given(ENTRIES, st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_batches_and_restarts_tell_the_same_and_nobody_of_one_change_twice(
    entries: list[object], sizes: list[int]
) -> None:
    numbered = [
        update(n, n, entry[0], price=entry[1], is_available=entry[2])
        if type(entry) is tuple
        else entry
        for n, entry in enumerate(entries)
    ]
    whole, cut = states(), states()
    expected = shard(whole).on_batch(numbered)  # type: ignore[arg-type]
    found: list[UserSignal] = []
    at = 0
    while at < len(numbered):
        size = sizes[at % len(sizes)]
        cut = DictShard(
            "i00", encode=encode_state, decode=decode_state, new=new_state, state=cut.snapshot()
        )
        found += shard(cut).on_batch(numbered[at : at + size])  # type: ignore[arg-type]
        at += size

    assert found == expected
    assert list(cut.scan_raw()) == list(whole.scan_raw())
    assert len({signal.signal_id for signal in found}) == len(found)


@given(
    st.builds(
        ItemInterest,
        st.dictionaries(st.text(max_size=8), st.integers(0, 2**50)),
        st.floats(0, 1e9),
        st.sampled_from([None, True, False]),
        st.integers(-1, 2**40),
        st.integers(0, 2**50),
    )
)
def test_a_state_comes_back_as_it_was(state: ItemInterest) -> None:
    assert decode_state(encode_state(state)) == state
    assert msgspec.structs.asdict(new_state("i"))["version"] == -1
