"""What training reads of the archive is what serving saw."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from bytewax.testing import TestingSink, TestingSource, run_main

from flows import archived, decide
from flows.settings import Settings
from flows.simulate import Population
from flows.tables import Tables
from flows.training import from_events
from models.arms import D, design
from models.features import HISTORY
from models.posterior import unpack_vector
from models.push_log import PushLog
from operators.archive_files import Place
from operators.archive_writer import ArchiveWriter, Limits, standing
from operators.codec import encode
from operators.hops import History, RawMessage, Trigger
from operators.messages import CampaignRewards, Decision, Event, Feedback, Item
from operators.users import ShardOutput
from tests.flows import world as w

HOUR_MS = 3_600_000
END_MS = w.START_MS + 9 * w.DAY_MS  # all windows have closed


SMALL_FILES = Limits(20_000, 60.0, 1 << 20)


def archive(
    place: Place,
    topic: str,
    rows: list[tuple[int, str, bytes | None]],
    limits: Limits = SMALL_FILES,
) -> None:
    """Write (time, key, value) as the messages of a topic of two partitions."""
    for partition in range(2):
        own = [row for row in rows if w.partition_of(row[1], 2) == partition]
        files = place.files(topic, partition)
        writer = ArchiveWriter(
            place,
            topic,
            partition,
            files,
            standing(place, files),
            topic_id=lambda: None,
            limits=limits,
            monotonic=lambda: 0.0,
            wall_ms=lambda: 0,
        )
        writer.add(
            [
                RawMessage(topic, partition, 2 * offset, key.encode(), value, time_ms)
                for offset, (time_ms, key, value) in enumerate(own)
            ]
        )
        writer.cut()


def tables(of: Settings, items: list[Item]) -> Tables:
    """Return tables that know the items and no more."""
    made = Tables(of, clock=lambda: 0.0)
    for item in items:
        made.catalogue.apply(item.item_id, item)
    made.apply_changes()
    return made


class Day(NamedTuple):
    """What happened, was decided and answered, and the archive of it all."""

    messages: list[RawMessage]
    items: list[Item]
    decisions: list[Decision]
    feedback: list[Feedback]
    place: Place


def answers(decisions: list[Decision]) -> list[Feedback]:
    """Let every third push be opened, every second convert too late, some never arrive."""
    kinds = [("opened", 3, HOUR_MS), ("converted", 2, 5 * HOUR_MS), ("expired", 5, 1_000)]
    rows = [
        Feedback(
            feedback_id=f"{kind}-{number}",
            decision_id=decision.decision_id,
            user_id=decision.user_id,
            type=kind,  # type: ignore[arg-type]
            time_ms=decision.decided_at + after_ms,
        )
        for number, decision in enumerate(decisions)
        for kind, every, after_ms in kinds
        if number % every == 0
    ]
    rows += [
        Feedback(
            feedback_id=f"last-{u}", decision_id="-", user_id=u, type="accepted", time_ms=END_MS
        )
        for u in ("u1", "u2")
    ]
    return sorted(rows, key=lambda row: row.time_ms)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    directory = tmp_path_factory.mktemp("day")
    population = Population(n_users=60, n_items=80, seed=3, start_ms=w.START_MS)
    items, events = population.items(), population.advance(w.START_MS + 2 * w.DAY_MS)
    messages = w.messages_of(population.profiles(), "users") + w.messages_of(events, "events")
    of = w.settings(directory / "state")
    raw = w.run_decide(of, tables(of, items), w.merged(w.polls(messages, 200)))
    decisions = [msgspec.json.decode(value, type=Decision) for _, value in raw]
    decisions.sort(key=lambda decision: decision.decided_at)
    feedback = answers([d for d in decisions if d.outcome == "send"])
    place = Place(str(directory / "archive"))
    archive(place, archived.EVENTS, [(e.time_ms, e.user_id, encode(e)) for e in events])
    archive(place, archived.ITEMS, [(0, i.item_id, encode(i)) for i in items])
    archive(place, archived.DECISIONS, [(d.decided_at, d.user_id, encode(d)) for d in decisions])
    archive(place, archived.FEEDBACK, [(f.time_ms, f.user_id, encode(f)) for f in feedback])
    return Day(messages, items, decisions, feedback, place)


@pytest.fixture(scope="module")
def log(day: Day) -> PushLog:
    return archived.push_log(w.settings(Path("unused")), day.place)


def test_a_history_as_of_a_trigger_is_the_one_that_was_served(day: Day, tmp_path: Path) -> None:
    outputs: list[ShardOutput] = []
    of = w.settings(tmp_path)
    polls = w.merged(w.polls(day.messages, 1)[:1])[:800]
    ends = decide.Ends(TestingSource(polls), TestingSink([]), features=outputs.extend)
    run_main(decide.build(of, tables(of, day.items), ends))
    fired = [t for output in outputs for t in output.triggers if isinstance(t, Trigger)]
    known = {item.item_id for item in day.items}
    by_event = [t for t in fired if t.type == "intent" and set(t.history.item_ids) <= known]

    found = []
    for trigger in by_event[:32:4]:
        events = list(archived.events(day.place, trigger.time_ms + 1))
        items = archived.items(day.place)
        histories, item_ids, _ = from_events(events, items, decide.rules(of))
        user = histories.user_ids.index(trigger.user_id)
        own = slice(
            max(histories.offsets[user], histories.offsets[user + 1] - HISTORY),
            histories.offsets[user + 1],
        )
        assert histories.contexts is not None
        rows = [item_ids[row - 1] for row in histories.rows[own]]
        served = History(rows, histories.types[own].tolist(), histories.time_s[own].tolist())
        context = histories.contexts[own][-1].tobytes()
        found.append((served, context) == (trigger.history, np.float32(trigger.context).tobytes()))

    assert len(found) == 8
    assert all(found)


def test_the_features_are_the_very_numbers_that_the_policy_saw(day: Day, log: PushLog) -> None:
    by_id = {decision.decision_id: decision.learning for decision in day.decisions}
    found = []
    for n, decision_id in enumerate(log.decision_ids):
        logged = by_id[decision_id]
        arms = slice(log.offsets[n], log.offsets[n + 1])
        features = [a.features for a in logged.action_set if a.features]
        own = design(log.contexts[n], log.features[arms][: len(features)])
        found.append(own.tobytes() == design(logged.context, features).tobytes())
        found.append(log.item_ids[arms] == [a.item_id for a in logged.action_set])
        found.append(log.chosen[n] - log.offsets[n] == logged.chosen)

    assert len(found) > 60
    assert all(found)


def test_rewards_are_those_that_learn_learns(day: Day, log: PushLog, tmp_path: Path) -> None:
    times = [d.decided_at for d in day.decisions] + [f.time_ms for f in day.feedback]
    raw = w.messages_of(day.decisions, "decisions") + w.messages_of(day.feedback, "feedback")
    messages = [raw[n]._replace(timestamp_ms=times[n]) for n in np.argsort(times, kind="stable")]
    options = {"clock_kinds": (Decision, Feedback)}
    policy, _ = w.run_learn(w.settings(tmp_path), w.merged(w.polls(messages, 500, **options)))
    learned = np.sum([unpack_vector(row.moment, D) for row in policy], axis=0)

    x = np.array(
        [
            design(context, log.features[[arm]])[0]
            for context, arm in zip(log.contexts, log.chosen, strict=True)
        ]
    )
    assert x.T @ log.rewards == pytest.approx(learned, abs=1e-9)
    assert set(np.round(log.rewards, 2)) >= {1.0, -0.05, 2.0}


def test_a_push_counts_once_its_window_has_closed_and_with_what_was_known_then(
    day: Day, log: PushLog
) -> None:
    deadline = {d.decision_id: d.learning.reward_deadline for d in day.decisions}
    times = [d.decided_at for d in day.decisions if d.outcome == "send"]
    times += [f.time_ms for f in day.feedback]
    undelivered = {f.decision_id for f in day.feedback if f.type == "expired"}
    late = [
        f
        for f in day.feedback
        if f.type == "converted"
        and f.decision_id not in undelivered
        and any(deadline[f.decision_id] <= time_ms < f.time_ms for time_ms in times)
    ]
    until_ms = late[len(late) // 2].time_ms

    early = archived.push_log(w.settings(Path("unused")), day.place, until_ms)

    as_of_ms = max(time_ms for time_ms in times if time_ms < until_ms)
    closed = {i for i in log.decision_ids if deadline[i] <= as_of_ms}
    found = set(early.decision_ids)
    assert found <= closed < set(log.decision_ids)
    assert closed - found <= undelivered
    later = dict(zip(log.decision_ids, log.rewards, strict=True))
    then = dict(zip(early.decision_ids, early.rewards, strict=True))
    differ = {i for i in found if later[i] != then[i]}
    assert differ
    assert differ <= {f.decision_id for f in late}


def test_a_push_earned_what_its_campaign_said_when_it_was_decided(
    day: Day, log: PushLog, tmp_path: Path
) -> None:
    own = CampaignRewards(no_response=-0.2)
    rows = []
    for number, one in enumerate(day.decisions):
        learning = msgspec.structs.replace(one.learning, rewards=own if number % 2 else None)
        rows.append(msgspec.structs.replace(one, learning=learning))
    place = Place(str(tmp_path))
    archive(place, archived.DECISIONS, [(d.decided_at, d.user_id, encode(d)) for d in rows])
    archive(place, archived.FEEDBACK, [(f.time_ms, f.user_id, encode(f)) for f in day.feedback])
    found = archived.push_log(w.settings(Path("unused")), place)

    says = {d.decision_id: d.learning.rewards is own for d in rows}
    plain = dict(zip(log.decision_ids, log.rewards.tolist(), strict=True))
    expected = {one: -0.2 if says[one] and r == -0.05 else r for one, r in plain.items()}
    assert set(expected.values()) >= {-0.2, -0.05, 1.0}
    assert dict(zip(found.decision_ids, found.rewards.tolist(), strict=True)) == expected


def test_an_item_is_what_it_was_then(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    before, after = (Item(item_id="i1", title=title) for title in ("Lamp", "Desk lamp"))
    rows = [(1_000, "i1", encode(before)), (2_000, "i1", encode(after)), (3_000, "i1", None)]
    archive(place, archived.ITEMS, rows)

    assert list(archived.items(place, 2_000)) == [before]
    assert list(archived.items(place, 3_000)) == [after]
    assert list(archived.items(place)) == []


def test_an_archive_without_pushes_gives_an_empty_log(tmp_path: Path) -> None:
    log = archived.push_log(w.settings(tmp_path), Place(str(tmp_path / "none")))

    assert len(log.decision_ids) == len(log.rewards) == 0
    assert log.offsets.tolist() == [0]


def test_what_decide_refused_is_not_trained_on(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    good = Event(event_id="e1", user_id="u1", type="app_open", time_ms=w.START_MS)
    ahead = Event(event_id="e2", user_id="u1", type="app_open", time_ms=w.START_MS + w.DAY_MS)
    rows = [(w.START_MS, "u1", encode(good)), (w.START_MS, "u1", encode(ahead))]
    archive(place, archived.EVENTS, [*rows, (w.START_MS, "u1", b"{")])

    assert list(archived.events(place)) == [good]
