from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.arms import N_ARM, N_POLICY_CONTEXT, design
from operators.attribution import Attribution, Output
from operators.attribution_state import (
    AttributionState,
    decode_state,
    encode_state,
    new_state,
)
from operators.hops import ItemSignal, Reward
from operators.messages import (
    Action,
    Decision,
    Delivery,
    Feedback,
    FeedbackType,
    Learning,
    Outcome,
    TriggerRef,
)
from operators.rewards import RewardRules
from operators.shards import DictShard

T0 = 1_700_000_000_000
WINDOW = 1_000
FORGOTTEN = T0 + 3 * WINDOW  # deadline + 2 windows
WORTH = {"opened": 1.0, "converted": 2.0, "dismissed": -0.3, "opted_out": -5.0}
RULES = RewardRules(**WORTH, clicked=0.5, no_response=-0.05, window_ms=WINDOW)


def shard() -> DictShard[AttributionState]:
    return DictShard("07", encode=encode_state, decode=decode_state, new=new_state)


def attribution(
    states: DictShard[AttributionState], rules: RewardRules = RULES, **changes: Any
) -> Attribution:
    return Attribution(states, rules, **({"idle_after_ms": 10 * WINDOW} | changes))


def decision(
    decision_id: str = "d1",
    *,
    outcome: Outcome = "send",
    at: int = T0,
    item_id: str = "i1",
    chosen: int = 0,
    dry_run: bool = False,
    n_features: int = N_ARM,
    feature: float = 0.5,
    feature_spec: str = "spec",
) -> Decision:
    context = [0.25] * N_POLICY_CONTEXT
    action = Action(item_id, "trend", 0.5, 0.5, [feature] * n_features)
    none = Action("none", "", 0.0, 0.5, [])
    return Decision(
        decision_id=decision_id,
        trigger=TriggerRef("idle", "e1"),
        user_id="u1",
        decided_at=at,
        outcome=outcome,
        reason_codes=[],
        delivery=Delivery(
            channel="any",
            send_after=at,
            expires_at=at + WINDOW,
            priority="normal",
            collapse_key="c",
            dry_run=dry_run,
        ),
        content=None,
        learning=Learning(
            policy_id="squarecb",
            policy_version="0-0",
            model_version="",
            feature_spec=feature_spec,
            campaign_id="c1",
            arm="policy",
            context=context,
            action_set=[action, none],
            chosen=chosen,
            propensity=0.5,
            is_exploration=False,
            reward_deadline=at + WINDOW,
        ),
        explanation=[],
    )


def feedback(
    kind: FeedbackType, at: int = T0 + 10, decision_id: str = "d1", feedback_id: str = ""
) -> Feedback:
    return Feedback(
        feedback_id=feedback_id or f"{decision_id}-{kind}",
        decision_id=decision_id,
        user_id="u1",
        type=kind,
        time_ms=at,
    )


def rewards(out: Iterable[Output]) -> list[tuple[float, bool]]:
    return [(round(o.reward, 9), o.is_correction) for o in out if isinstance(o, Reward)]


def signals(out: Iterable[Output]) -> list[tuple[str, str, int]]:
    return [(o.item_id, o.type, o.time_ms) for o in out if isinstance(o, ItemSignal)]


def test_an_open_is_learned_at_once_and_the_closing_window_adds_nothing():
    join = attribution(shard())
    out = join.on_decision(decision(), 2, T0)
    out += join.on_feedback(feedback("delivered"), 2, T0)
    out += join.on_feedback(feedback("opened", T0 + 20), 2, T0)
    assert rewards(out) == [(1.0, False)]
    assert signals(out) == [("i1", "push", T0), ("i1", "open", T0 + 20)]
    assert join.advance(2, T0 + WINDOW) == []


def test_a_reward_carries_the_row_of_the_chosen_arm_and_the_shard_of_its_partition():
    join = attribution(shard())
    join.on_decision(decision(), 3, T0)
    reward = join.on_feedback(feedback("opened"), 3, T0)[0]
    assert isinstance(reward, Reward)
    assert reward.shard == "p3"
    expected = design([0.25] * N_POLICY_CONTEXT, [[0.5] * N_ARM])[0]
    assert reward.x.tobytes() == expected.tobytes()


def test_silence_costs_and_a_late_open_corrects_it():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    assert join.advance(0, T0 + WINDOW - 1) == []
    silence = join.advance(0, T0 + WINDOW)
    assert rewards(silence) == [(-0.05, False)]
    assert isinstance(silence[0], Reward) and silence[0].time_ms == T0 + WINDOW
    late = join.on_feedback(feedback("opened", T0 + 2 * WINDOW), 0, T0 + 2 * WINDOW)
    assert rewards(late) == [(1.05, True)]


def test_each_further_outcome_adds_its_worth():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    out = join.on_feedback(feedback("opened"), 0, T0)
    out += join.on_feedback(feedback("converted", T0 + 30), 0, T0)
    out += join.on_feedback(feedback("opted_out", T0 + 2 * WINDOW), 0, T0 + 2 * WINDOW)
    assert rewards(out) == [(1.0, False), (2.0, True), (-5.0, True)]


@pytest.mark.parametrize("again", [feedback("opened"), feedback("opened", feedback_id="other")])
def test_feedback_said_twice_counts_once(again: Feedback):
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    join.on_feedback(feedback("opened"), 0, T0)
    assert join.on_feedback(again, 0, T0) == []
    assert join.counts == {"duplicate": 1}


def test_one_feedback_id_counts_once_whatever_its_type():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    join.on_feedback(feedback("opened", feedback_id="f"), 0, T0)
    assert join.on_feedback(feedback("converted", feedback_id="f"), 0, T0) == []


def test_a_decision_read_twice_is_one_push():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    assert join.on_decision(decision(), 0, T0) == []
    assert rewards(join.advance(0, T0 + WINDOW)) == [(-0.05, False)]


@pytest.mark.parametrize(
    "unsent",
    [
        decision(outcome="defer"),
        decision(outcome="suppress"),
        decision(outcome="holdout"),
        decision(chosen=1),  # none
        decision(dry_run=True),
    ],
)
def test_what_was_not_sent_earns_nothing(unsent: Decision):
    states = shard()
    join = attribution(states)
    assert join.on_decision(unsent, 0, T0) == []
    assert join.advance(0, FORGOTTEN) == []
    assert list(states.scan()) == []


@pytest.mark.parametrize(
    "foreign", [decision(n_features=N_ARM - 1), decision(feature=1e9), decision(chosen=2)]
)
def test_a_decision_with_other_columns_is_counted_and_not_learned(foreign: Decision):
    join = attribution(shard())
    assert join.on_decision(foreign, 0, T0) == []
    assert join.counts == {"mismatched": 1}


def test_a_decision_of_another_feature_spec_is_counted_and_not_learned():
    join = attribution(shard(), feature_spec="ours")
    assert join.on_decision(decision(feature_spec="theirs"), 0, T0) == []
    assert join.counts == {"mismatched": 1}
    assert signals(join.on_decision(decision("d2", feature_spec="ours"), 0, T0))


def test_feedback_before_its_decision_waits_for_it():
    join = attribution(shard())
    assert join.on_feedback(feedback("converted", T0 + 30), 0, T0) == []
    assert join.on_feedback(feedback("opened", T0 + 20), 0, T0) == []
    out = join.on_decision(decision(), 0, T0)
    assert rewards(out) == [(1.0, False), (2.0, True)]
    assert signals(out) == [("i1", "push", T0), ("i1", "open", T0 + 20)]


def test_feedback_without_a_decision_is_an_orphan_after_one_window():
    states = shard()
    join = attribution(states)
    join.on_feedback(feedback("opened", T0), 0, T0)
    join.advance(0, T0 + WINDOW - 1)
    assert join.counts == {}
    join.advance(0, T0 + WINDOW)
    assert join.counts == {"orphan": 1}
    assert list(states.scan()) == []


def test_waiting_feedback_is_given_up_after_a_restart_too():
    states = shard()
    attribution(states).on_feedback(feedback("opened", T0), 2, T0)
    join = attribution(states)
    join.advance(2, T0 + WINDOW)
    assert join.counts == {"orphan": 1}
    assert list(states.scan()) == []


def test_a_window_closed_before_a_restart_does_not_cost_twice():
    states = shard()
    first = attribution(states)
    first.on_decision(decision(), 0, T0)
    first.advance(0, T0 + WINDOW)
    join = attribution(states)
    assert join.advance(0, FORGOTTEN - 1) == []
    assert rewards(join.on_feedback(feedback("opened"), 0, FORGOTTEN - 1)) == [(1.05, True)]
    join.advance(0, FORGOTTEN)
    assert list(states.scan()) == []


def test_early_feedback_is_bounded_and_the_oldest_goes_first():
    states = shard()
    join = attribution(states)
    for i in range(join.MAX_EARLY + 1):
        join.on_feedback(feedback("opened", decision_id=f"d{i}"), 0, T0)
    assert join.counts == {"orphan": 1}
    assert rewards(join.on_decision(decision("d0"), 0, T0)) == []
    assert rewards(join.on_decision(decision("d1"), 0, T0)) == [(1.0, False)]


def test_a_push_is_forgotten_after_its_corrections_and_leaves_no_state():
    states = shard()
    join = attribution(states)
    join.on_decision(decision(), 0, T0)
    join.advance(0, FORGOTTEN - 1)
    assert rewards(join.on_feedback(feedback("opened"), 0, FORGOTTEN - 1)) == [(1.05, True)]
    join.advance(0, FORGOTTEN)
    assert list(states.scan()) == []
    assert join.on_feedback(feedback("converted", T0), 0, FORGOTTEN) == []
    assert join.counts == {"orphan": 1}


def test_feedback_dated_after_the_last_correction_is_an_orphan():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    assert join.on_feedback(feedback("opened", FORGOTTEN), 0, T0) == []
    assert join.counts == {"orphan": 1}


def test_a_decision_older_than_all_corrections_is_stale():
    join = attribution(shard())
    assert join.on_decision(decision(), 0, FORGOTTEN) == []
    assert join.counts == {"stale": 1}


def test_a_push_that_never_arrived_teaches_nothing():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    assert join.on_feedback(feedback("token_invalid"), 0, T0) == []
    assert join.advance(0, T0 + WINDOW) == []


def test_news_that_a_push_never_arrived_takes_back_the_cost_of_silence():
    join = attribution(shard())
    join.on_decision(decision(), 0, T0)
    join.advance(0, T0 + WINDOW)
    late = join.on_feedback(feedback("expired", T0 + WINDOW), 0, T0 + WINDOW)
    assert rewards(late) == [(0.05, True)]


def test_a_user_with_too_many_pushes_has_the_oldest_settled():
    states = shard()
    join = attribution(states)
    for i in range(join.MAX_PENDING):
        join.on_decision(decision(f"d{i}", at=T0 + i), 0, T0)
    assert rewards(join.on_decision(decision("last", at=T0 + 99), 0, T0)) == [(-0.05, False)]
    assert len(states.get("u1").pending) == join.MAX_PENDING
    assert "d0" not in states.get("u1").pending
    assert join.counts == {"crowded_out": 1}


def test_a_timer_moves_with_the_watermark_of_its_own_partition():
    join = attribution(shard())
    join.on_decision(decision(), 1, T0)
    assert join.advance(0, FORGOTTEN) == []
    assert rewards(join.advance(1, T0 + WINDOW)) == [(-0.05, False)]


def test_an_idle_user_loses_recent_items_and_a_busy_one_keeps_them():
    states = shard()
    join = attribution(states)
    join.interaction("u1", 0, T0).recent.append(("i1", T0))
    join.interaction("u1", 0, T0 + WINDOW).recent.append(("i2", T0 + WINDOW))
    join.advance(0, T0 + 10 * WINDOW)
    assert len(states.get("u1").recent) == 2
    join.advance(0, T0 + 11 * WINDOW)
    assert list(states.scan()) == []


def test_an_idle_user_is_still_noticed_after_a_restart():
    states = shard()
    attribution(states).interaction("u1", 3, T0).recent.append(("i1", T0))
    join = attribution(states)
    join.advance(3, T0 + 10 * WINDOW - 1)
    assert len(list(states.scan())) == 1
    join.advance(3, T0 + 10 * WINDOW)
    assert list(states.scan()) == []


def test_a_forgotten_user_leaves_neither_state_nor_timer():
    states = shard()
    join = attribution(states)
    join.on_decision(decision(), 0, T0)
    join.interaction("u1", 0, T0)
    join.forget("u1")
    assert list(states.scan()) == []
    assert join.advance(0, T0 + 100 * WINDOW) == []
    assert len(join._timers) == 0


def test_a_user_whose_partition_changed_is_settled_by_the_new_ones_watermark():
    states = shard()
    join = attribution(states)
    join.on_decision(decision("d1"), 0, T0)
    join.on_decision(decision("d2"), 5, T0)
    assert join.advance(0, FORGOTTEN) == []
    learned = join.advance(5, T0 + WINDOW)
    assert [o.shard for o in learned if isinstance(o, Reward)] == ["p5", "p5"]


def test_two_timers_a_user_are_armed_however_many_pushes_wait():
    join = attribution(shard())
    for n in range(20):
        join.interaction("u1", 0, T0 + n)
        join.on_decision(decision(f"d{n}", at=T0 + n), 0, T0)
    assert len(join._timers) == 2


OUTCOMES: tuple[FeedbackType, ...] = (
    "opened",
    "converted",
    "dismissed",
    "opted_out",
    "expired",
    "delivered",
)


@st.composite
def disturbed_stories(draw: st.DrawFn) -> tuple[set[FeedbackType], list[Decision | Feedback | int]]:
    """A push and its outcomes, repeated and in any order, the watermark moving in between."""
    kinds = draw(st.sets(st.sampled_from(OUTCOMES)))
    messages: list[Decision | Feedback | int] = [decision()]
    messages += [feedback(kind, T0 + 10) for kind in sorted(kinds)]
    messages += draw(st.lists(st.sampled_from(messages), max_size=4))
    messages += draw(st.lists(st.integers(T0, T0 + WINDOW + 9), max_size=3))
    return kinds, draw(st.permutations(messages))


def version_1(states: DictShard[AttributionState]) -> DictShard[AttributionState]:
    """Return the states as version 1 left them: without a head, and with its seven fields."""
    rows = []
    for key, state in states.scan():
        fields = msgspec.structs.astuple(state)[:7]
        rows.append((key, b"\x01" + msgspec.msgpack.encode(fields)))
    return DictShard("07", encode=encode_state, decode=decode_state, new=new_state, state=(*rows,))


def play(
    story: list[Decision | Feedback | int], restart_at: int = -1, *, upgrades: bool = False
) -> tuple[list[Output], bytes, Attribution]:
    """Return all that comes out, the bytes of all that is kept, and the join itself."""
    states = shard()
    join = attribution(states)
    out: list[Output] = []
    watermark = T0
    for i, message in enumerate(story):
        if i == restart_at:
            again = DictShard(
                "07",
                encode=encode_state,
                decode=decode_state,
                new=new_state,
                state=states.snapshot(),
            )
            states = version_1(states) if upgrades else again
            join = attribution(states)
        if isinstance(message, int):
            watermark = max(watermark, message)
        out += join.advance(0, watermark)
        if isinstance(message, Decision):
            out += join.on_decision(message, 0, watermark)
        elif isinstance(message, Feedback):
            out += join.on_feedback(message, 0, watermark)
    out += join.advance(0, T0 + 2 * WINDOW)
    found = (state for _, state in states.scan())
    if upgrades:  # a state of version 1 has no armed timers until it is touched
        found = (msgspec.structs.replace(state, soon_ms=0, later_ms=0) for state in found)
    kept = b"".join(map(encode_state, found))
    return out, kept, join


@given(disturbed_stories())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_rewards_add_up_to_the_worth_whatever_order_and_repetition(
    story: tuple[set[FeedbackType], list[Decision | Feedback | int]],
):
    kinds, messages = story
    outcomes = sum(WORTH.get(kind, 0.0) for kind in kinds)
    silence = 0.0 if "expired" in kinds else -0.05
    expected = outcomes if kinds & set(WORTH) else silence
    out, _, join = play(messages)
    learned = [o for o in out if isinstance(o, Reward)]
    assert sum(o.reward for o in learned) == pytest.approx(expected, abs=1e-12)
    assert [o.is_correction for o in learned] == [i > 0 for i in range(len(learned))]
    opens = int("opened" in kinds)
    assert sorted(o.type for o in out if isinstance(o, ItemSignal)) == ["open"] * opens + ["push"]
    # Nothing is left for ever.
    assert join.advance(0, FORGOTTEN) == []
    assert len(join._timers) == 0


@given(disturbed_stories(), st.integers(0, 9), st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_restart_or_an_upgrade_anywhere_changes_neither_rewards_nor_state(
    story: tuple[set[FeedbackType], list[Decision | Feedback | int]],
    restart_at: int,
    upgrades: bool,
):
    whole, kept, _ = play(story[1], upgrades=upgrades)
    resumed, kept_again, join = play(story[1], restart_at, upgrades=upgrades)
    assert kept == kept_again
    join.advance(0, FORGOTTEN)
    assert list(join._states.scan()) == []
    assert [_plain(o) for o in whole] == [_plain(o) for o in resumed]


def _plain(output: Output) -> tuple[object, ...]:
    return tuple(v.tobytes() if isinstance(v, np.ndarray) else v for v in output)
