"""What pushes earn by settings and campaign, for how long, and what delays do to the estimate."""

from collections.abc import Iterable
from heapq import heappop, heappush

import msgspec
import numpy as np
import pytest

from models.arms import N_ARM, N_POLICY_CONTEXT
from models.learner import RewardLearner
from models.posterior import merge
from operators.attribution import Attribution, Output
from operators.attribution_state import (
    NO_USER,
    AttributionState,
    decode_state,
    encode_state,
    new_state,
)
from operators.hops import Reward
from operators.messages import Action, CampaignRewards, Channel, Decision, Feedback, FeedbackType
from operators.rewards import RewardRules
from operators.shards import DictShard
from tests.conftest import T0_MS, decision

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
WINDOW_MS = 4 * HOUR_MS
RULES = RewardRules(
    opened=1.0,
    clicked=0.5,
    converted=1.0,
    dismissed=-0.3,
    opted_out=-5.0,
    no_response=-0.05,
    window_ms=WINDOW_MS,
    credit_ms={"opened": 6 * HOUR_MS, "opted_out": 3 * DAY_MS},
    conversion_value=0.1,
    conversion_max=4.0,
)


def shard(state: tuple[tuple[str, bytes], ...] = ()) -> DictShard[AttributionState]:
    return DictShard("00", encode=encode_state, decode=decode_state, new=new_state, state=state)


def sent(
    decision_id: str = "d1",
    user_id: str = "u1",
    at_ms: int = T0_MS,
    own: CampaignRewards | None = None,
    channel: Channel = "any",
) -> Decision:
    plain = decision(decision_id, user_id, decided_at=at_ms)
    window_ms = RULES.window_of(own)
    learning = msgspec.structs.replace(
        plain.learning,
        context=[0.0] * N_POLICY_CONTEXT,
        action_set=[Action("i1", "trend", 0.0, 1.0, [0.0] * N_ARM)],
        chosen=0,
        reward_deadline=at_ms + window_ms,
        rewards=own,
    )
    delivery = msgspec.structs.replace(plain.delivery, send_after=at_ms, channel=channel)
    return msgspec.structs.replace(plain, learning=learning, delivery=delivery)


def said(
    kind: FeedbackType, at_ms: int, decision_id: str = "d1", user_id: str = "u1", value: float = 0.0
) -> Feedback:
    return Feedback(
        feedback_id=f"{decision_id}-{kind}",
        decision_id=decision_id,
        user_id=user_id,
        type=kind,
        time_ms=at_ms,
        value=value,
    )


def earned(out: Iterable[Output]) -> list[float]:
    return [round(one.reward, 9) for one in out if isinstance(one, Reward)]


def answered(push: Decision, *answers: Feedback) -> list[float]:
    join = Attribution(shard(), RULES)
    out = join.on_decision(push, 0, T0_MS)
    for answer in answers:
        out += join.advance(0, answer.time_ms)
        out += join.on_feedback(answer, 0, answer.time_ms)
    return earned(out)


def test_a_click_earns_beside_the_open() -> None:
    assert answered(sent(), said("opened", T0_MS + 5), said("clicked", T0_MS + 9)) == [1.0, 0.5]


@pytest.mark.parametrize(("value", "worth"), [(0.0, 1.0), (12.0, 2.2), (1e6, 4.0), (-30.0, 1.0)])
def test_a_conversion_earns_by_its_value_up_to_a_most(value: float, worth: float) -> None:
    assert answered(sent(), said("converted", T0_MS + 5, value=value)) == [worth]


def test_a_campaign_says_what_its_pushes_earn_and_how_long_it_waits() -> None:
    own = CampaignRewards(opened=0.2, no_response=-0.5, window_seconds=60)
    late = said("opened", T0_MS + 90_000)
    assert answered(sent(own=own), late) == [-0.5, 0.7]


def test_an_opt_out_days_after_takes_back_what_the_open_earned() -> None:
    opened, late = said("opened", T0_MS + 5), said("opted_out", T0_MS + 3 * DAY_MS - 1)
    assert answered(sent(), opened, late) == [1.0, -5.0]


@pytest.mark.parametrize(
    ("kind", "credit_ms"),
    [("opened", 6 * HOUR_MS), ("dismissed", 12 * HOUR_MS), ("opted_out", 3 * DAY_MS)],
)
def test_an_outcome_counts_until_the_credit_of_its_type_ends(
    kind: FeedbackType, credit_ms: int
) -> None:
    assert len(answered(sent(), said(kind, T0_MS + credit_ms - 1))) == 2
    assert answered(sent(), said(kind, T0_MS + credit_ms)) == [-0.05]


def test_a_push_is_kept_as_long_as_any_outcome_counts() -> None:
    states = shard()
    join = Attribution(states, RULES)
    join.on_decision(sent(), 0, T0_MS)
    join.advance(0, T0_MS + 3 * DAY_MS - 1)
    assert [user for user, _ in states.scan()] == ["u1"]
    join.advance(0, T0_MS + 3 * DAY_MS)
    assert list(states.scan()) == []


def test_rewards_say_whose_they_are_and_when_their_push_was_decided() -> None:
    join = Attribution(shard(), RULES)
    join.on_decision(sent(), 0, T0_MS)
    [reward] = [one for one in join.advance(0, T0_MS + WINDOW_MS) if isinstance(one, Reward)]
    push = sent()
    expected = (push.decided_at, push.learning.campaign_id, push.trigger.type)
    assert (reward.decided_ms, reward.campaign_id, reward.trigger) == expected


class Stream:
    """Pushes of which a share is opened, each after its delay; what a learner makes of them."""

    share = 0.3
    delays_ms: tuple[tuple[Channel, int], ...] = (("fcm", 10 * MINUTE_MS), ("apns", HOUR_MS))

    def __init__(self, *, estimates_delays: bool, n: int = 2_400) -> None:
        rng = np.random.default_rng(7)
        self.states = shard()
        self.estimates_delays = estimates_delays
        self.join = Attribution(self.states, RULES, estimates_delays=estimates_delays)
        self.queue: list[tuple[int, int, Decision | Feedback]] = []
        for i in range(n):
            at_ms = T0_MS + i * MINUTE_MS // 2
            channel, mean_ms = self.delays_ms[i % 2]
            push = sent(f"d{i}", f"u{i}", at_ms, channel=channel)
            heappush(self.queue, (at_ms, 2 * i, push))
            if rng.random() < self.share:
                due_ms = at_ms + 1 + int(min(rng.exponential(mean_ms), 5 * HOUR_MS))
                answer = said("opened", due_ms, f"d{i}", f"u{i}")
                heappush(self.queue, (due_ms, 2 * i + 1, answer))

    def play(self, until_ms: int) -> list[Output]:
        out: list[Output] = []
        while self.queue and self.queue[0][0] < until_ms:
            time_ms, _, entry = heappop(self.queue)
            out += self.join.advance(0, time_ms)
            if isinstance(entry, Decision):
                out += self.join.on_decision(entry, 0, time_ms)
            else:
                out += self.join.on_feedback(entry, 0, time_ms)
        return [*out, *self.join.advance(0, until_ms)]

    def restart(self) -> None:
        self.states = shard(self.states.snapshot())
        self.join = Attribution(self.states, RULES, estimates_delays=self.estimates_delays)


def mean_value(*, estimates_delays: bool) -> float:
    """Return the value of a push as it is believed while the stream flows, over all its hours."""
    stream = Stream(estimates_delays=estimates_delays)
    learner = RewardLearner(half_life_ms=2 * HOUR_MS)
    found = []
    for hour in range(8, 17):
        for one in stream.play(T0_MS + hour * HOUR_MS):
            if isinstance(one, Reward):
                learn = learner.correct if one.is_correction else learner.learn
                learn(one.x, one.reward, one.decided_ms)
                row = one.x
        found.append(float(row @ merge([learner.statistics()], prior=1e-3).mean))
    return float(np.mean(found))


def test_young_pushes_do_not_bias_the_value_where_delays_are_estimated() -> None:
    truth = Stream.share * RULES.opened + (1 - Stream.share) * RULES.no_response
    # The mean of 9 beliefs, each of some 300 pushes: 0.02 is 2.5 standard errors.
    assert mean_value(estimates_delays=True) == pytest.approx(truth, abs=0.02)
    assert mean_value(estimates_delays=False) > truth + 0.15


def test_the_delays_of_each_channel_are_known_and_survive_a_restart() -> None:
    stream = Stream(estimates_delays=True)
    before = stream.play(T0_MS + 9 * HOUR_MS)
    delays = stream.states.get(NO_USER).delays
    stream.restart()
    assert stream.states.get(NO_USER).delays == delays
    means = {channel: total / n for channel, (n, total) in delays.items()}
    assert means["fcm"] == pytest.approx(10 * MINUTE_MS, rel=0.3)
    assert means["apns"] == pytest.approx(HOUR_MS, rel=0.3)

    unbroken = Stream(estimates_delays=True)
    after = stream.play(T0_MS + 12 * HOUR_MS)
    assert earned(before + after) == earned(unbroken.play(T0_MS + 12 * HOUR_MS))


def test_what_is_learned_of_a_push_adds_up_to_its_worth_however_early_silence_counts() -> None:
    stream = Stream(estimates_delays=True, n=1_200)
    opened = {entry.decision_id for _, _, entry in stream.queue if isinstance(entry, Feedback)}
    sums: dict[str, float] = {}
    for one in stream.play(T0_MS + 30 * HOUR_MS):
        if isinstance(one, Reward):
            sums[one.decision_id] = sums.get(one.decision_id, 0.0) + one.reward
    expected = {f"d{i}": 1.0 if f"d{i}" in opened else -0.05 for i in range(1_200)}
    assert sums == pytest.approx(expected, abs=1e-9)
