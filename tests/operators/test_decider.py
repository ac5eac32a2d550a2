"""One decision a trigger; nothing is sent past what a push may not do."""

from typing import Any

import numpy as np
import orjson
import pytest

from models.arms import ARM, design, policy_context
from models.features import N_CONTEXT
from models.learner import RewardLearner
from models.policy import SquareCB, sample
from models.posterior import pack_lower, pack_vector
from operators.campaigns import CampaignTable
from operators.codec import encode
from operators.decider import Decider
from operators.emitted import Emitted
from operators.fatigue import PushState, decode_state, encode_state, new_state
from operators.hops import Candidate, Engagement, Forget, History, Ranked, Standing, Trigger
from operators.learning import LearnerShard
from operators.messages import (
    Campaign,
    CampaignRewards,
    Caps,
    Consent,
    Decision,
    Experiment,
    Item,
    PolicyShard,
    QuietHours,
    Template,
    UserProfile,
)
from operators.policy_table import PolicyTable
from operators.shards import DictShard
from tests.conftest import T0_MS

HOUR_MS = 3_600_000
EVERYBODY = Experiment(holdout=0.0, arms={})


def campaign(**fields: Any) -> Campaign:
    defaults = {
        "campaign_id": "c1",
        "trigger": "intent",
        "templates": {"en": Template(title="Hello", body="{item_title} for {price}")},
        "quiet_hours": None,
        "experiment": EVERYBODY,
        "caps": Caps(per_day=2, per_week=10, min_gap_seconds=3_600, same_item_days=7),
    }
    return Campaign(**{**defaults, **fields})


def trigger(event_id: str = "e1", at_ms: int = 0, **fields: Any) -> Trigger:
    values: dict[str, Any] = {
        "type": "intent",
        "event_id": event_id,
        "user_id": "u1",
        "shard": "00",
        "time_ms": T0_MS + at_ms,
        "context": [0.0] * N_CONTEXT,
        "history": History([], [], []),
        "cart": [],
        "bought": [],
        "category": "",
        "platform": "ios",
        "profile": UserProfile(user_id="u1", consent=Consent(push=True)),
        "engagement": Engagement(0.0, 0.0, 0, False),
    }
    return Trigger(**{**values, **fields})


def ranked(of: Trigger, campaign_id: str = "c1", n: int = 3) -> Ranked:
    candidates = [Candidate(f"i{k}", "trend", 0.01) for k in range(n)]
    arms = np.round(np.random.default_rng(1).random((n, len(ARM)), np.float32), 4)
    arms[:, [ARM.index("times_pushed"), ARM.index("push_recency")]] = 0
    return Ranked(of, campaign_id, candidates, np.arange(n, 0, -1, dtype=np.float32), arms, "m1")


class World:
    """A decider of one shard with its tables, sure that every arm is worth sending."""

    def __init__(self, *campaigns: Campaign, n_items: int = 3, gamma: float = 1e9) -> None:
        self.campaigns = CampaignTable()
        for row in campaigns or (campaign(),):
            self.campaigns.apply(row.campaign_id, row)
        self.items = {f"i{k}": Item(item_id=f"i{k}", title=f"Item {k}") for k in range(n_items)}
        self.policies = PolicyTable(gamma=gamma, floor=0.0, prior_precision=1.0)
        self.pushes: DictShard[PushState] = DictShard(
            "00", encode=encode_state, decode=decode_state, new=new_state
        )
        self.subject = Decider(
            self.pushes,
            campaigns=self.campaigns,
            policies=self.policies,
            item_of=self.items.get,
            window_ms=4 * HOUR_MS,
        )
        self.teach(0.5)

    def decide(self, *entries: Ranked | Forget) -> list[tuple[str, str]]:
        return [(d.outcome, d.reason_codes[0]) for d in self.subject.on_batch(list(entries))]

    def teach(self, reward: float) -> None:
        """Let the policy know that every arm earns `reward`."""
        learner = RewardLearner()
        rng = np.random.default_rng(0)
        for _ in range(200):
            context = policy_context([0.0] * N_CONTEXT, "intent", 1e9, 0, 0)
            arms = rng.random((1, len(ARM)))
            learner.learn(design(context, arms)[0], reward)
        statistics = learner.statistics()
        row = LearnerShard().row()
        self.policies.apply(
            "p0",
            PolicyShard(
                shard="p0",
                policy_id="linear",
                feature_spec=row.feature_spec,
                version=200,
                n_rewards=200,
                dim=row.dim,
                time_ms=T0_MS,
                precision=pack_lower(statistics.precision),
                moment=pack_vector(statistics.moment),
            ),
        )
        self.policies.refresh()


def test_a_trigger_gets_one_decision_with_all_that_a_gateway_needs() -> None:
    [decision] = World().subject.on_batch([ranked(trigger())])

    assert decision.outcome == "send"
    assert decision.content is not None
    assert decision.content.body.startswith(f"Item {decision.content.item_id[1]}")
    assert decision.delivery.expires_at > decision.decided_at == T0_MS
    assert decision.learning.reward_deadline == T0_MS + 4 * HOUR_MS


def test_the_id_follows_from_the_trigger_alone() -> None:
    first, second = World(), World()
    second.teach(0.9)

    [a] = first.subject.on_batch([ranked(trigger())])
    [b] = second.subject.on_batch([ranked(trigger(), n=2)])
    [c] = second.subject.on_batch([ranked(trigger("e2"))])

    assert a.decision_id == b.decision_id != c.decision_id


def test_the_log_reproduces_every_probability() -> None:
    world = World(gamma=10.0)
    [decision] = world.subject.on_batch([ranked(trigger())])

    logged = orjson.loads(encode(decision))["learning"]
    x = design(logged["context"], [a["features"] for a in logged["action_set"][:-1]])
    policy = world.policies.policy("policy")
    assert isinstance(policy, SquareCB)
    _, probabilities = policy.distribution(x)
    assert probabilities.tolist() == [a["probability"] for a in logged["action_set"]]
    assert sample(probabilities, decision.decision_id.encode()) == logged["chosen"]
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert logged["propensity"] == logged["action_set"][logged["chosen"]]["probability"]


def test_the_explanation_adds_up_to_the_arms_value() -> None:
    world = World()
    world.subject._top = 1_000
    [decision] = world.subject.on_batch([ranked(trigger())])

    learning = decision.learning
    x = design(learning.context, [learning.action_set[learning.chosen].features])
    total = sum(part.contribution for part in decision.explanation)
    assert total == pytest.approx(float(x[0] @ world.policies.mean), abs=1e-4)


def test_a_policy_that_expects_less_than_nothing_sends_nothing() -> None:
    world = World(campaign(caps=Caps(per_day=99, per_week=99, min_gap_seconds=0)))
    world.teach(-5.0)

    outcomes = world.decide(*(ranked(trigger(f"e{n}", n)) for n in range(50)))
    assert outcomes == [("suppress", "policy_none")] * 50


def test_the_random_arm_is_uniform_over_arms_and_none() -> None:
    world = World(campaign(experiment=Experiment(holdout=0.0, arms={"random": 1.0})))
    [decision] = world.subject.on_batch([ranked(trigger())])

    assert decision.learning.policy_id == "uniform"
    assert [a.probability for a in decision.learning.action_set] == [0.25] * 4


@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"profile": None}, "suppress", "no_consent"),
        ({"profile": UserProfile(user_id="u1")}, "suppress", "no_consent"),
        ({"engagement": Engagement(0.0, 0.0, 0, True)}, "suppress", "opted_out"),
    ],
)
def test_no_push_past_consent(fields: dict[str, Any], outcome: str, reason: str) -> None:
    [decision] = World().subject.on_batch([ranked(trigger(**fields))])

    assert (decision.outcome, decision.reason_codes[0]) == (outcome, reason)
    assert decision.content is None
    assert [a.item_id for a in decision.learning.action_set] == ["none"]


def test_a_trigger_without_a_campaign_is_decided_too() -> None:
    assert World().decide(ranked(trigger(), campaign_id="")) == [("suppress", "no_campaign")]
    assert World().decide(ranked(trigger(), campaign_id="gone")) == [("suppress", "no_campaign")]


def test_the_holdout_is_never_sent_to() -> None:
    world = World(campaign(experiment=Experiment(holdout=1.0)))

    assert world.decide(ranked(trigger())) == [("holdout", "holdout")]


def test_two_triggers_in_one_batch_count_for_each_other() -> None:
    world = World()

    assert world.decide(ranked(trigger()), ranked(trigger("e2", 1))) == [
        ("send", "ok"),
        ("suppress", "min_gap"),
    ]


def test_the_daily_cap_holds() -> None:
    world = World()
    at = [0, 2 * HOUR_MS, 4 * HOUR_MS, 25 * HOUR_MS]

    outcomes = world.decide(*(ranked(trigger(f"e{ms}", ms), n=3) for ms in at))
    assert outcomes[2] == ("suppress", "cap_day")
    assert outcomes[3] == ("send", "ok")


def test_quiet_hours_defer_and_the_deferred_push_counts_when_it_is_planned_for() -> None:
    world = World(campaign(quiet_hours=QuietHours(start="22:00", end="08:00"), ttl_seconds=86_400))
    morning_ms = int(9.8 * HOUR_MS)  # T0 is 22:13 UTC; 22:13 + 9:48 is 08:01

    assert world.decide(ranked(trigger())) == [("defer", "quiet_hours")]
    assert world.decide(ranked(trigger("e2", morning_ms))) == [("suppress", "min_gap")]


def test_the_same_item_is_not_pushed_again_within_its_days() -> None:
    world = World(n_items=1)

    assert world.decide(ranked(trigger(), n=1), ranked(trigger("e2", 2 * HOUR_MS), n=1)) == [
        ("send", "ok"),
        ("suppress", "no_candidates"),
    ]


def test_an_item_that_went_between_ranking_and_deciding_is_not_sent() -> None:
    world = World()
    world.items.clear()

    assert world.decide(ranked(trigger())) == [("suppress", "no_candidates")]


def test_a_forgotten_user_has_no_sends_left() -> None:
    world = World()
    world.decide(ranked(trigger()))

    assert world.decide(Forget("u1", "00"), ranked(trigger("e2", 1))) == [("send", "ok")]
    assert len(list(world.pushes.scan())) == 1


def again(first: World, *answers: Decision) -> World:
    """A world as after a crash: nothing of `first` but the decisions that were written."""
    world = World(gamma=20.0)
    world.teach(-5.0)  # by now the policy would send nothing
    world.subject._emitted = Emitted([encode(answer) for answer in answers])
    return world


def test_what_was_written_before_a_crash_stands_and_counts_as_sent() -> None:
    first = World()
    [sent] = first.subject.on_batch([ranked(trigger())])
    world = again(first, sent)

    [found] = world.subject.on_batch([ranked(trigger())])

    assert (sent.outcome, found) == ("send", Standing(sent))
    assert list(world.pushes.scan()) == list(first.pushes.scan())


def test_a_deferred_push_counts_from_its_planned_time_after_a_crash_too() -> None:
    quiet = campaign(quiet_hours=QuietHours(start="22:00", end="08:00"), ttl_seconds=86_400)
    first = World(quiet)
    [deferred] = first.subject.on_batch([ranked(trigger())])
    world = again(first, deferred)
    world.subject.on_batch([ranked(trigger())])

    assert deferred.outcome == "defer"
    assert list(world.pushes.scan()) == list(first.pushes.scan())


def test_what_was_not_sent_before_a_crash_counts_for_nothing() -> None:
    first = World()
    first.teach(-5.0)
    [suppressed] = first.subject.on_batch([ranked(trigger())])
    world = again(first, suppressed)
    world.teach(0.5)

    assert world.subject.on_batch([ranked(trigger())]) == [Standing(suppressed)]
    assert list(world.pushes.scan()) == []


def test_another_campaign_makes_no_second_decision_of_a_trigger() -> None:
    first = World()
    [sent] = first.subject.on_batch([ranked(trigger())])
    world = again(first, sent)

    assert world.subject.on_batch([ranked(trigger(), campaign_id="c2")]) == [Standing(sent)]


def test_an_apprentice_is_asked_at_a_share_of_triggers_and_changes_nothing_else() -> None:
    entries = [ranked(trigger(f"e{n}", user_id=f"u{n}")) for n in range(300)]
    alone, watched = World(), World()
    watched.policies = PolicyTable(
        prior_precision=1.0, gamma=1e9, floor=0.0, temperature=1.0, apprentice="softmax"
    )
    watched.subject._policies = watched.policies
    watched.subject._apprentice_share = 0.3
    watched.teach(0.5)
    plain, found = (
        [encode(d) for d in w.subject.on_batch(list(entries))] for w in (alone, watched)
    )

    learned = [orjson.loads(value)["learning"]["apprentice"] for value in found]
    asked = [one for one in learned if one is not None]
    assert 60 < len(asked) < 120  # 4 standard deviations around 90
    for one in asked:
        assert one["policy_id"] == "softmax"
        assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-12)
        assert 0 < one["value"] < 0.6
    for value, other in zip(found, plain, strict=True):
        row = orjson.loads(value)
        row["learning"]["apprentice"] = None
        assert row == orjson.loads(other)


def test_batches_change_no_byte() -> None:
    entries = [ranked(trigger(f"e{n}", n * HOUR_MS)) for n in range(10)]
    whole, single = World(gamma=20.0), World(gamma=20.0)

    together = [encode(d) for d in whole.subject.on_batch(list(entries))]
    apart = [encode(d) for entry in entries for d in single.subject.on_batch([entry])]
    assert together == apart


def test_a_decision_says_what_its_campaign_earns_and_waits_as_long_as_it_says() -> None:
    own = CampaignRewards(opened=0.5, window_seconds=3_600)
    [decision] = World(campaign(rewards=own)).subject.on_batch([ranked(trigger())])
    [plain] = World().subject.on_batch([ranked(trigger())])

    assert decision.learning.rewards == own
    assert decision.learning.reward_deadline == decision.delivery.send_after + HOUR_MS
    assert plain.learning.rewards is None
    assert plain.learning.reward_deadline == plain.delivery.send_after + 4 * HOUR_MS
