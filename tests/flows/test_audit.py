"""Logs are made by the decider itself, with rows of real learners, and then spoiled by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from msgspec import structs
from typer.testing import CliRunner

from flows.audit import Audit, Posteriors, named_rows
from flows.audit_report import Estimate, as_json, estimate, run, verdict
from flows.audit_sources import (
    DECISIONS,
    FEEDBACK,
    LOGGED,
    POLICY,
    Archive,
    Directory,
    Recorder,
    Topics,
    read,
)
from flows.cli import app
from flows.settings import Settings
from models.arms import ARM, DESIGN, N_NEURAL, design, policy_context
from models.features import N_CONTEXT
from models.learners import LearnerKind
from models.log_odds import Scale
from models.policies import KINDS, NEURAL
from models.policy import sample
from operators.archive_columns import Columns
from operators.archive_files import Place
from operators.archive_names import ArchiveFile
from operators.campaigns import CampaignTable
from operators.codec import encode
from operators.decider import Decider
from operators.embedded import EmbeddedBroker
from operators.fatigue import PushState, decode_state, encode_state, new_state
from operators.hops import Candidate, Engagement, History, Ranked, RawMessage, Reward, Trigger
from operators.kafka_admin import touch_topics
from operators.kafka_sink import Writer
from operators.learning import LearnerShard
from operators.messages import (
    Campaign,
    Caps,
    Consent,
    Decision,
    Experiment,
    Feedback,
    Item,
    PolicyShard,
    Template,
    UserProfile,
)
from operators.policy_table import PolicyTable
from operators.shards import DictShard
from tests.conftest import T0_MS

HOUR_MS = 3_600_000
_SCORE = DESIGN.index("score_z")
CAMPAIGN = Campaign(
    campaign_id="c1",
    trigger="intent",
    templates={"en": Template(title="Hello", body="{item_title}")},
    quiet_hours=None,
    experiment=Experiment(holdout=0.0, arms={"random": 0.2}),
    caps=Caps(per_day=99, per_week=999, min_gap_seconds=0, same_item_days=0),
)
ITEMS = {f"i{k}": Item(item_id=f"i{k}", title=f"Item {k}") for k in range(6)}


def ranked(n: int, arms: np.ndarray) -> Ranked:
    user_id = f"u{n % 200}"
    trigger = Trigger(
        type="intent",
        event_id=f"e{n}",
        user_id=user_id,
        shard="00",
        time_ms=T0_MS + n * 60_000,
        context=[0.0] * N_CONTEXT,
        history=History([], [], []),
        cart=[],
        bought=[],
        category="",
        platform="ios",
        profile=UserProfile(user_id=user_id, consent=Consent(push=True)),
        engagement=Engagement(0.0, 0.0, 0, False),
    )
    candidates = [Candidate(f"i{k}", "trend", 0.01) for k in range(len(arms))]
    scores = np.arange(len(arms), 0, -1, dtype=np.float32)
    return Ranked(trigger, "c1", candidates, scores, arms, "m1")


class World:
    """A decider that learns as it goes: its log, and the rows that its policies came from."""

    def __init__(self, policy: str, n: int, **settings: float) -> None:
        kind = LearnerKind.of(policy, scale=Scale(-0.05, 1.0))
        self.rows: list[PolicyShard] = []
        self.decisions: list[Decision] = []
        rng = np.random.default_rng(3)
        campaigns = CampaignTable()
        campaigns.apply("c1", CAMPAIGN)
        threshold = kind.scale.threshold if kind.name == "logistic" else 0.0
        own = {"threshold": threshold} if threshold else {}
        policies = PolicyTable(prior_precision=1.0, policy=policy, **own, **settings)
        pushes: DictShard[PushState] = DictShard(
            "00", encode=encode_state, decode=decode_state, new=new_state
        )
        decider = Decider(
            pushes, campaigns=campaigns, policies=policies, item_of=ITEMS.get, window_ms=HOUR_MS
        )
        shards = {name: LearnerShard(kind=kind) for name in ("p0", "p1")}
        width = len(ARM) + (N_NEURAL if kind.name == NEURAL else 0)
        for k in range(n):
            arms = rng.normal(size=(6, width)).round(4).astype(np.float32)
            self.decisions += decider.on_batch([ranked(k, arms)])
            if k % 25 == 0:
                context = policy_context([0.0] * N_CONTEXT, "intent", 9.0, 0, 0)
                name = f"p{k // 25 % 2}"
                x = design(context, arms)
                batch = [
                    Reward(name, "d", row, float(row[_SCORE] > 0), False, T0_MS + k) for row in x
                ]
                shards[name].on_batch(batch)
                row = shards[name].row()
                self.rows.append(row)
                policies.apply(name, row)
                policies.refresh()

    def write(self, directory: Path, *, opened_every: int = 3) -> None:
        directory.mkdir(exist_ok=True)
        sends = [d for d in self.decisions if d.outcome == "send"]
        feedback = [
            Feedback(
                feedback_id=f"f{k}",
                decision_id=d.decision_id,
                user_id=d.user_id,
                type="opened",
                time_ms=d.decided_at + 1_000,
            )
            for k, d in enumerate(sends[::opened_every])
        ]
        for topic, rows in ((DECISIONS, self.decisions), (FEEDBACK, feedback), (POLICY, self.rows)):
            lines = b"".join(encode(row) + b"\n" for row in rows)
            (directory / f"{topic}.jsonl").write_bytes(lines)


def audited(decisions: list[Decision], rows: list[PolicyShard]) -> Audit:
    audit = Audit(Posteriors(rows, named_rows(decisions), prior_precision=1.0))
    for decision in decisions:
        audit.add(decision)
    return audit


@pytest.mark.parametrize("policy", sorted(KINDS))
def test_every_policys_log_is_recomputed_from_what_was_logged_and_from_its_posteriors(policy: str):
    world = World(policy, 120, draws=32)
    through_json = [structs.replace(d) for d in world.decisions]
    audit = audited(through_json, world.rows)
    assert audit.is_clean, audit.examples
    assert audit.n_decisions == audit.n_asked == audit.n_recomputed == 120
    assert audit.n_from_posterior == 120
    assert audit.policies["uniform"] >= 10  # the random arm's
    assert audit.largest_sum_error < 1e-12


def test_where_rows_are_compacted_away_the_logged_values_still_tell():
    world = World("squarecb", 120)
    audit = audited(world.decisions, world.rows[-1:])
    assert audit.is_clean
    assert audit.n_recomputed == 120
    assert audit.n_from_posterior == 1  # the first, made before there was a row


Spoil = Callable[[Decision], Decision]


def spoiled(**fields: object) -> Spoil:
    return lambda d: structs.replace(d, learning=structs.replace(d.learning, **fields))


def _judged(**fields: object) -> Spoil:
    return lambda d: structs.replace(
        d,
        learning=structs.replace(d.learning, judged=structs.replace(d.learning.judged, **fields)),
    )


def _moved_probability(d: Decision) -> Decision:
    """Move probability between two arms that were not chosen: sum and propensity stay."""
    first, second = [k for k in range(7) if k != d.learning.chosen][:2]
    actions = list(d.learning.action_set)
    for k, by in ((first, 1e-6), (second, -1e-6)):
        actions[k] = structs.replace(actions[k], probability=actions[k].probability + by)
    return spoiled(action_set=actions)(d)


def _other_value(d: Decision) -> Decision:
    values = [value + 1e-6 for value in d.learning.judged.values[:-1]]
    return _judged(values=[*values, 0.0])(d)


def _other_id(d: Decision) -> Decision:
    """Give it an id that draws another arm."""
    shares = np.array([action.probability for action in d.learning.action_set])
    ids = (f"other-{n}" for n in range(10_000))
    other = next(one for one in ids if sample(shares, one.encode()) != d.learning.chosen)
    return structs.replace(d, decision_id=other)


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (_moved_probability, {"probability"}),
        (_other_value, {"probability", "values"}),
        (spoiled(propensity=0.5), {"propensity"}),
        (spoiled(policy_id="oracle"), {"unknown"}),
        (spoiled(policy_id="thompson"), {"unknown"}),
        (spoiled(judged=None), {"unlogged"}),
        (spoiled(policy_version="7-00000000"), {"posterior"}),
        (_judged(knobs={"gamma": 1.0, "floor": 0.002}), {"probability"}),
        (_judged(knobs={"gamma": 2_000.0, "floor": 0.1}), {"floor", "probability"}),
        (_other_id, {"draw"}),
        (
            lambda d: spoiled(is_exploration=not d.learning.is_exploration)(d),
            {"exploration"},
        ),
    ],
)
def test_a_record_that_does_not_agree_is_named(spoil: Spoil, kinds: set[str]):
    world = World("squarecb", 60)
    at = next(
        k
        for k, d in enumerate(world.decisions)
        if k > 30 and d.learning.policy_id == "squarecb" and d.learning.chosen == 0
    )
    world.decisions[at] = spoil(world.decisions[at])
    audit = audited(world.decisions, world.rows)
    assert not audit.is_clean
    assert sum(audit.faults.values()) <= len(kinds)
    assert set(audit.faults) <= kinds
    assert {fault.decision_id for fault in audit.examples} == {world.decisions[at].decision_id}


def test_a_decision_that_no_policy_was_asked_for_has_nothing_to_audit():
    world = World("squarecb", 1)
    unasked = structs.replace(
        world.decisions[0].learning,
        policy_id="rule",
        action_set=world.decisions[0].learning.action_set[-1:],
        chosen=0,
        judged=None,
    )
    audit = audited([structs.replace(world.decisions[0], learning=unasked)], [])
    assert audit.is_clean
    assert (audit.n_decisions, audit.n_asked) == (1, 0)


def test_a_directory_is_audited_with_the_policys_own_estimate(tmp_path: Path):
    world = World("softmax", 200, temperature=0.3)
    world.write(tmp_path)
    report = run(Settings(), Directory(tmp_path))
    assert report.is_clean, verdict(report)
    assert report.audit.n_recomputed == 200
    # Its weights are 1, so the estimate is the mean; draws are judged by the uniform policy's.
    assert report.weighted.mean == pytest.approx(report.plain.mean, abs=1e-12)
    assert report.plain.n > 150
    assert as_json(report)["own_ips"]["n"] == report.plain.n
    assert orjson.dumps(as_json(report))


def test_draws_that_ignore_the_propensities_are_noticed(tmp_path: Path):
    """Each record agrees with itself; only all together can tell that arm 0 is taken too often."""
    skewed = World("softmax", 300, temperature=0.1)
    skewed.decisions = [d for d in skewed.decisions if not d.learning.is_exploration]
    skewed.write(tmp_path)
    report = run(Settings(), Directory(tmp_path))
    assert report.audit.is_clean
    assert not report.are_draws_fair
    assert "more or less often" in verdict(report)[0]


def test_an_estimate_of_nothing_holds_nothing():
    assert not estimate(np.zeros(0)).holds(0.0)
    assert Estimate(10, 0.5, 0.1).holds(0.6)
    assert not Estimate(10, 0.5, 0.1).holds(0.61)


def test_an_archive_is_read_by_its_raw_messages():
    world = World("squarecb", 40)
    place = Place("memory://audit-test")
    messages = [
        RawMessage(DECISIONS, 0, n, d.user_id.encode(), encode(d), T0_MS)
        for n, d in enumerate(world.decisions)
    ]
    [made] = Columns(DECISIONS, 0).tables(messages)
    place.write(ArchiveFile(DECISIONS, 0, 0, 0, 39, "2026-03-02T00"), made.table)
    log = Archive("memory://audit-test")
    assert list(read(log, DECISIONS)) == world.decisions
    assert list(read(log, POLICY)) == []


def test_a_log_written_as_it_comes_has_what_the_topics_had(tmp_path: Path):
    world = World("squarecb", 60)
    with EmbeddedBroker() as broker:
        touch_topics(broker.client, list(LOGGED))
        recorder = Recorder(broker.client, tmp_path)
        writer = Writer(broker.client)
        for topic, rows in ((DECISIONS, world.decisions), (POLICY, world.rows)):
            for row in rows:
                writer.send(topic, "one key, one partition", encode(row))
        writer.flush()
        recorder.close()
        servers = broker.client["bootstrap.servers"]
        settings = Settings(kafka={"bootstrap_servers": servers})
        in_topics = list(read(Topics(settings), DECISIONS))
    assert in_topics == list(read(Directory(tmp_path), DECISIONS)) == world.decisions
    assert list(read(Directory(tmp_path), POLICY)) == world.rows
    assert list(read(Directory(tmp_path), FEEDBACK)) == []


def test_the_command_says_that_all_agrees_and_names_what_does_not(tmp_path: Path):
    world = World("squarecb", 60)
    world.write(tmp_path)
    runner = CliRunner()
    good = runner.invoke(app, ["audit", "--log", str(tmp_path)])
    assert good.exit_code == 0, good.output
    told = orjson.loads(good.stdout.splitlines()[-1])
    assert (told["recomputed"], told["from_posterior"], told["is_clean"]) == (60, 60, True)

    path = tmp_path / f"{DECISIONS}.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"propensity":0.', b'"propensity":0.9', 1))
    bad = runner.invoke(app, ["audit", "--log", str(path), "--json"])
    assert bad.exit_code == 1
    told = orjson.loads(bad.stdout.splitlines()[-1])
    assert told["faults"] == {"propensity": 1}
    # The decisions' file alone has no rows of the learner; the first was before all of them.
    assert told["from_posterior"] == 1


def test_the_command_refuses_what_is_no_log(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"user_id": 3}\n')
    runner = CliRunner()
    assert runner.invoke(app, ["audit", "--log", str(path)]).exit_code == 1
    path.write_text("")
    empty = runner.invoke(app, ["audit", "--log", str(path)])
    assert empty.exit_code == 1
    assert runner.invoke(app, ["audit", "--log", str(tmp_path / "none")]).exit_code == 1
