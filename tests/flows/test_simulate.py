from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from flows.loop import Plan, rubbish
from flows.simulate import START_MS, Population
from operators.codec import PartitionDecoder, encode
from operators.hops import RawMessage
from operators.messages import Content, Decision, Event, Feedback, Item, UserProfile
from tests.conftest import decision

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def push(world: Population, number: int, user: int, item: int, now_ms: int) -> Decision:
    """Return a decision to send an item to a user now."""
    base = decision(f"d{number}", world.people.ids[user], decided_at=now_ms)
    assert base.content is not None
    return msgspec.structs.replace(
        base,
        content=msgspec.structs.replace(base.content, item_id=world.shop.ids[item]),
        delivery=msgspec.structs.replace(
            base.delivery, send_after=now_ms, expires_at=now_ms + 4 * HOUR_MS
        ),
    )


def test_same_seed_gives_the_same_events_however_often_time_is_advanced() -> None:
    at_once, in_steps = Population(200, 60, seed=4), Population(200, 60, seed=4)

    whole = at_once.advance(START_MS + DAY_MS)
    parts = [in_steps.advance(START_MS + t) for t in range(0, DAY_MS + 1, 57_600)]

    assert [event for part in parts for event in part] == whole[: sum(map(len, parts))]
    assert len(whole) > 1_000


def test_other_seeds_give_other_events() -> None:
    one, two = (Population(50, 60, seed=seed).advance(START_MS + DAY_MS) for seed in (1, 2))

    assert [event.time_ms for event in one] != [event.time_ms for event in two]


def test_every_message_of_the_simulation_passes_the_wire_checks() -> None:
    world = Population(100, 60, seed=1)
    messages = [*world.items(), *world.profiles(), *world.advance(START_MS + DAY_MS)]

    again = [msgspec.json.decode(encode(message), type=type(message)) for message in messages]

    assert again == messages


def test_no_simulated_event_is_a_dead_letter_or_late() -> None:
    events = Population(300, 60, seed=2).advance(START_MS + DAY_MS)
    decoder = PartitionDecoder(0, {"e": Event}, n_shards=1, lateness_ms=10_000)
    messages = [RawMessage("e", 0, i, None, encode(e), e.time_ms) for i, e in enumerate(events)]

    batch = decoder.decode(messages)

    assert batch.dead == []
    fresh, seen = [], set()
    for watermark_ms, entry in batch.shards[0].entries:
        assert isinstance(entry, Event)
        if entry.event_id not in seen:  # a duplicate may well be late
            fresh.append(entry.time_ms - watermark_ms)
        seen.add(entry.event_id)
    assert min(fresh) >= 0


def test_some_events_come_twice_and_some_out_of_order() -> None:
    events = Population(1_000, 100, seed=3).advance(START_MS + DAY_MS)

    n_twice = sum(n - 1 for n in Counter(event.event_id for event in events).values())
    n_back = sum(b.time_ms < a.time_ms for a, b in pairwise(events))

    assert 0.005 < n_twice / len(events) < 0.02
    assert 0.01 < n_back / len(events) < 0.05


def test_a_person_is_awake_at_their_own_hours() -> None:
    world = Population(1_000, 100, seed=5)
    zones = {profile.user_id: profile.timezone for profile in world.profiles()}
    hours: dict[str, Counter[int]] = {"Asia/Shanghai": Counter(), "America/New_York": Counter()}
    for event in world.advance(START_MS + 2 * DAY_MS):
        if zones[event.user_id] in hours:
            hours[zones[event.user_id]][event.time_ms // HOUR_MS % 24] += 1

    night_in_shanghai = [19, 20]  # UTC: 3 and 4 in the morning there
    shanghai, new_york = (
        sum(count[hour] for hour in night_in_shanghai) / count.total() for count in hours.values()
    )
    assert shanghai < 0.03 < new_york


def test_titles_come_in_english_and_chinese_and_name_what_the_item_is() -> None:
    item = Population(10, 60, seed=1).shop.message(1)

    assert item.categories == ["coffee"]
    assert item.tags[1] in item.title.lower()
    assert any("\u4e00" <= letter <= "\u9fff" for letter in item.locales["zh"].title)


def test_history_ends_where_the_run_begins_and_repeats_nothing() -> None:
    world = Population(200, 60, seed=6)

    past = world.history(2)
    future = world.advance(START_MS + HOUR_MS)

    times = [event.time_ms for event in past]
    assert times == sorted(times)
    assert START_MS - 2 * DAY_MS <= times[0] < times[-1] < START_MS
    assert len({event.event_id for event in past}) == len(past)
    assert not {event.event_id for event in past} & {event.event_id for event in future}


def test_history_after_the_run_began_is_refused() -> None:
    world = Population(10, 20, seed=1)
    world.advance(START_MS + 1)

    with pytest.raises(RuntimeError, match="before the first advance"):
        world.history(1)


def test_items_appear_once_each_when_their_time_comes() -> None:
    world = Population(10, 500, seed=1)

    here = world.items()
    later = [item for t in range(0, 4 * DAY_MS, HOUR_MS) for item in world.new_items(START_MS + t)]

    assert len(later) > 5
    assert sorted(item.item_id for item in [*here, *later]) == sorted(world.shop.ids)
    assert all(item.created_ms is not None and item.created_ms > START_MS for item in later)


def test_a_push_is_delivered_and_what_follows_comes_in_time_order() -> None:
    world = Population(300, 60, seed=1)
    for number in range(300):
        world.respond(push(world, number, number, number % 60, START_MS), START_MS)

    early = world.advance_feedback(START_MS + HOUR_MS)
    late = world.advance_feedback(START_MS + 2 * DAY_MS)

    times = [feedback.time_ms for feedback in [*early, *late]]
    assert times == sorted(times)
    kinds = Counter(feedback.type for feedback in [*early, *late])
    assert kinds["delivered"] == 300
    assert kinds["opened"] > 0
    assert kinds["dismissed"] > 0
    assert world.advance_feedback(START_MS + 9 * DAY_MS) == []


def test_only_real_sends_reach_a_user() -> None:
    world = Population(10, 20, seed=1)
    real = push(world, 1, 0, 0, START_MS)
    dry = msgspec.structs.replace(real.delivery, dry_run=True)

    held = world.respond(msgspec.structs.replace(real, outcome="holdout"), START_MS)
    dried = world.respond(msgspec.structs.replace(real, delivery=dry), START_MS)

    assert held == dried == []


def test_a_push_that_came_too_late_expires() -> None:
    world = Population(10, 20, seed=1)

    feedback = world.respond(push(world, 1, 0, 0, START_MS), START_MS + 5 * HOUR_MS)

    assert [one.type for one in feedback] == ["expired"]


def test_what_becomes_of_a_push_does_not_hang_on_the_order_of_arrival() -> None:
    def outcomes(order: list[int]) -> list[Feedback]:
        world = Population(100, 60, seed=1)
        for number in order:
            world.respond(push(world, number, number, 3, START_MS), START_MS)
        return world.advance_feedback(START_MS + DAY_MS)

    assert outcomes(list(range(100))) == outcomes(list(reversed(range(100))))


def test_fatigue_and_repeats_lower_the_chance_of_an_open() -> None:
    world = Population(10, 60, seed=1)
    user, first, other = world.people.ids[0], world.shop.ids[0], world.shop.ids[1]
    world.people.focus[0] = -1  # an open would stir interest, and hide what is tested
    before = [world.open_probability(user, item, START_MS) for item in (first, other)]
    number = 0
    while True:  # a push that is not opened
        feedback = world.respond(push(world, number, 0, 0, START_MS), START_MS)
        if all(one.type != "opened" for one in feedback):
            break
        number += 1

    after = [world.open_probability(user, item, START_MS) for item in (first, other)]

    assert after[1] < before[1]
    assert after[0] / before[0] < after[1] / before[1]
    rested = world.open_probability(user, other, START_MS + 20 * DAY_MS)
    assert rested == pytest.approx(before[1], rel=0.3)


def test_users_who_opted_out_open_nothing_any_more() -> None:
    world = Population(5, 60, seed=1)
    kinds: list[str] = []
    for number in range(400):  # nobody bears eighty pushes at once
        now_ms = START_MS + number * 60_000
        kinds += [f.type for f in world.respond(push(world, number, number % 5, 7, now_ms), now_ms)]

    assert kinds.count("opted_out") == 5
    after = [world.open_probability(user, "item-00007", START_MS) for user in world.people.ids]
    assert after == [0.0] * 5


def test_an_open_brings_the_user_to_the_item() -> None:
    world = Population(200, 60, seed=1)
    for number in range(200):
        world.respond(push(world, number, number, 5, START_MS), START_MS)
    opened = {f.user_id for f in world.advance_feedback(START_MS + DAY_MS) if f.type == "opened"}

    events = world.advance(START_MS + DAY_MS)

    views = {e.user_id for e in events if e.event_id.endswith("-view")}
    assert opened
    assert views == opened


def test_a_good_choice_is_opened_far_more_often_than_a_random_one() -> None:
    world = Population(300, 500, seed=1)
    world.history(2)
    noon_ms = START_MS + 12 * HOUR_MS
    world.advance(noon_ms)
    likes = world.people.taste @ world.shop.vectors.T  # (U, N)
    best, mean = [], []
    for user in range(300):
        top = np.argsort(-likes[user])[:20].tolist()
        chances = [
            world.open_probability(world.people.ids[user], world.shop.ids[item], noon_ms)
            for item in top
        ]
        best.append(max(chances))
        mean.append(sum(chances) / len(chances))

    assert 0.06 < sum(mean) / 300 < 0.20
    assert sum(best) / 300 > 2 * sum(mean) / 300


def test_every_kind_of_rubbish_is_a_dead_letter() -> None:
    rng = np.random.default_rng(1)
    decoder = PartitionDecoder(0, {"e": Event}, n_shards=1)
    values = [rubbish(rng, START_MS, number) for number in range(10)]

    batch = decoder.decode(
        [RawMessage("e", 0, i, b"user-000000", value, START_MS) for i, value in enumerate(values)]
    )

    assert batch.n_entries == 0
    assert len(batch.dead) == 10
    assert {letter.reason for letter in batch.dead} == {
        "bad_json",
        "bad_field",
        "unknown_type",
        "missing_item",
        "ahead_of_time",
    }


def test_event_time_runs_no_faster_than_the_events_can_be_carried() -> None:
    assert Plan(2_000, 90.0, 1, None).speed == pytest.approx(2_880)
    assert Plan(200_000, 90.0, 1, None).speed < 100


def test_profiles_and_items_are_of_the_wire_types() -> None:
    world = Population(100, 24, seed=1)

    assert {type(item) for item in world.items()} == {Item}
    assert {type(profile) for profile in world.profiles()} == {UserProfile}
    assert {p.locale[:2] for p in world.profiles()} == {"en", "zh"}
    assert 0.8 < sum(p.consent.push for p in world.profiles()) / 100 < 1.0


def test_content_of_an_unknown_item_is_passed_over() -> None:
    world = Population(10, 20, seed=1)
    strange = push(world, 1, 0, 0, START_MS)
    assert isinstance(strange.content, Content)
    content = msgspec.structs.replace(strange.content, item_id="item-of-nobody")

    assert world.respond(msgspec.structs.replace(strange, content=content), START_MS) == []
