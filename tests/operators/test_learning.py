"""What events of one user say of items: each event once."""

from operators.attribution import Attribution
from operators.attribution_state import AttributionState, decode_state, encode_state, new_state
from operators.duplicates import REMEMBERED
from operators.hops import ItemSignal, ShardBatch
from operators.item_stats import InteractionTracker
from operators.learning import LearningUsers
from operators.messages import Event
from operators.rewards import RewardRules
from operators.shards import DictShard
from tests.conftest import T0_MS, event

DAY_MS = 86_400_000


def states() -> DictShard[AttributionState]:
    return DictShard("00", encode=encode_state, decode=decode_state, new=new_state)


def users(of: DictShard[AttributionState]) -> LearningUsers:
    rules = RewardRules(1.0, 0.5, 1.0, -0.3, -5.0, -0.05, window_ms=1_000)
    return LearningUsers(Attribution(of, rules), InteractionTracker(gap_ms=1_800_000))


def seen(number: int, time_ms: int = T0_MS) -> Event:
    return event(f"e{number}", item_id=f"i{number}", time_ms=time_ms)


def signals(subject: LearningUsers, *events: Event, until_ms: int = 0) -> list[str]:
    batch = ShardBatch("00", 0, until_ms, [(0, one) for one in events])
    return [o.item_id for o in subject.on_batch([batch]) if isinstance(o, ItemSignal)]


def test_an_event_said_twice_counts_once() -> None:
    assert signals(users(states()), seen(1), seen(1)) == ["i1"]


def test_an_event_said_again_after_a_restart_counts_once() -> None:
    kept = states()
    signals(users(kept), seen(1))
    resumed = DictShard(
        "00", encode=encode_state, decode=decode_state, new=new_state, state=kept.snapshot()
    )

    assert signals(users(resumed), seen(1)) == []


def test_the_last_events_are_remembered_and_no_more() -> None:
    kept = states()
    subject = users(kept)
    # Far apart, so that no item is beside another.
    many = [seen(n, T0_MS + n * DAY_MS) for n in range(REMEMBERED + 1)]
    signals(subject, *many)

    assert signals(subject, many[1], many[REMEMBERED]) == []
    assert signals(subject, many[0])[0] == "i0"
    assert len(kept.get("u1").seen) == 8 * REMEMBERED


def test_the_ids_of_an_idle_user_are_dropped_with_the_rest() -> None:
    kept = states()
    subject = users(kept)
    signals(subject, seen(1), until_ms=T0_MS + 30 * DAY_MS - 1)
    assert len(list(kept.scan())) == 1

    signals(subject, until_ms=T0_MS + 30 * DAY_MS)
    assert list(kept.scan()) == []


def buy(number: int, time_ms: int) -> Event:
    return event(f"p{number}", type="purchase", time_ms=time_ms)


def pauses(subject: LearningUsers, *events: Event, until_ms: int = 0) -> list[int]:
    batch = ShardBatch("00", 0, until_ms, [(0, one) for one in events])
    return [o.since_ms for o in subject.on_batch([batch]) if isinstance(o, ItemSignal)]


def test_a_purchase_says_how_long_after_the_last_one_it_came() -> None:
    kept = states()
    first = pauses(users(kept), buy(1, T0_MS), seen(1, T0_MS), buy(1, T0_MS))
    resumed = DictShard(
        "00", encode=encode_state, decode=decode_state, new=new_state, state=kept.snapshot()
    )

    assert first == [0, 0]
    assert pauses(users(resumed), buy(2, T0_MS + 9 * DAY_MS)) == [9 * DAY_MS]


def test_a_buyer_is_remembered_for_half_a_year() -> None:
    kept = states()
    subject = users(kept)
    signals(subject, buy(1, T0_MS), until_ms=T0_MS + 180 * DAY_MS - 1)
    assert kept.get("u1").bought == {"i1": T0_MS}

    signals(subject, until_ms=T0_MS + 180 * DAY_MS)
    assert list(kept.scan()) == []


def test_who_buys_at_last_is_kept_for_longer_than_the_timer_that_was_armed_before() -> None:
    kept = states()
    subject = users(kept)
    signals(subject, seen(1), buy(2, T0_MS + 1), until_ms=T0_MS + 31 * DAY_MS)

    assert kept.get("u1").bought == {"i1": T0_MS + 1}
