"""Experiments and apprentices over an archive that the flows have written."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from flows import apprentice, archived, cli, experiment
from flows.exposure_logs import archive_log, topic_log
from flows.exposures import METRICS, Answer, Decided, Exposed, Log, Own, Span, read
from flows.learn import reward_rules
from flows.settings import Archive, Kafka, Settings
from flows.simulate import Population
from models.apprentice import Rule
from operators.archive_files import Place
from operators.codec import encode
from operators.kafka_sink import Writer
from operators.messages import Decision, Feedback
from operators.rewards import OUTCOMES
from tests.flows import world as w
from tests.flows.test_archived import archive, tables

HOUR_MS = 3_600_000
SPLIT = "{salt: pushflow, holdout: 0.4, arms: {random: 0.5}}"
SHORT = dict.fromkeys(OUTCOMES, 4 * 3_600)
ASKED = experiment.Asked(span_ms=4 * HOUR_MS, before_ms=8 * HOUR_MS, planned=150)


class Day:
    """What was decided for simulated users, with an apprentice beside, and the archive of it."""

    def __init__(self, directory: Path) -> None:
        self.population = Population(n_users=200, n_items=50, seed=5, start_ms=w.START_MS)
        self.items = self.population.items()
        self.events = self.population.advance(w.START_MS + 26 * HOUR_MS)
        self.steps = w.merged(
            w.polls(
                w.messages_of(self.population.profiles(), "users")
                + w.messages_of(self.events, "events"),
                500,
            )
        )
        text = w.CAMPAIGNS.read_text(encoding="utf-8")
        old = "{salt: pushflow, holdout: 0.05, arms: {random: 0.15}}"
        assert text.count(old) == 1
        self.campaigns = directory / "campaigns.yaml"
        self.campaigns.write_text(text.replace(old, SPLIT), encoding="utf-8")
        self.settings = self.settings_of(directory / "one", apprentice="softmax")
        self.decisions = self.decide(self.settings)
        self.feedback = self._answers()
        self._archive()

    def settings_of(self, directory: Path, **ranking: Any) -> Settings:
        return w.settings(
            directory / "state",
            campaigns_file=str(self.campaigns),
            archive={"url": str(directory / "archive")},
            rewards={"credit_seconds": SHORT},
            ranking=ranking,
        )

    def decide(self, of: Settings) -> list[Decision]:
        raw = w.run_decide(of, tables(of, self.items), self.steps)
        decisions = [msgspec.json.decode(value, type=Decision) for _, value in raw]
        return sorted(decisions, key=lambda decision: decision.decided_at)

    def _answers(self) -> list[Feedback]:
        for decision in self.decisions:
            self.population.respond(decision, decision.decided_at)
        found = self.population.advance_feedback(w.START_MS + 3 * w.DAY_MS)
        last = self.decisions[0]
        end = Feedback(
            feedback_id="last",
            decision_id=last.decision_id,
            user_id=last.user_id,
            type="accepted",
            time_ms=w.START_MS + 3 * w.DAY_MS,
        )
        unique = {feedback.feedback_id: feedback for feedback in [*found, end]}
        return sorted(unique.values(), key=lambda feedback: feedback.time_ms)

    def _archive(self) -> None:
        place = Place(self.settings.archive.url)
        for topic, rows in (
            (archived.EVENTS, [(e.time_ms, e) for e in self.events]),
            (archived.DECISIONS, [(d.decided_at, d) for d in self.decisions]),
            (archived.FEEDBACK, [(f.time_ms, f) for f in self.feedback]),
        ):
            archive(place, topic, [(ms, row.user_id, encode(row)) for ms, row in rows])


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    return Day(tmp_path_factory.mktemp("experiment"))


def day_ms(fields: Decision | Feedback) -> int:
    return fields.decided_at if isinstance(fields, Decision) else fields.time_ms


def test_an_arm_has_the_pushes_of_its_users_spans_and_what_came_of_them(day: Day) -> None:
    found = experiment.report(day.settings, ASKED)

    unreached = {"no_consent", "opted_out", "no_channel", "no_campaign"}
    first: dict[str, Decision] = {}
    for decision in day.decisions:
        if decision.reason_codes[0] not in unreached:
            first.setdefault(decision.user_id, decision)
    opened = {f.decision_id for f in day.feedback if f.type == "opened"}
    for arm in found.arms:
        own = {user for user, d in first.items() if d.learning.arm == arm.name}
        sends = [
            d
            for d in day.decisions
            if d.user_id in own
            and d.outcome == "send"
            and d.decided_at < first[d.user_id].decided_at + ASKED.span_ms
        ]
        assert arm.n_users == arm.n_over == len(own) > 30
        assert arm.totals["sends"] == len(sends)
        assert arm.totals["opens"] == sum(d.decision_id in opened for d in sends)
    assert [arm.name for arm in found.arms] == ["holdout", "random", "policy"]
    assert found.arms[0].totals["sends"] == 0 < found.arms[0].totals["events"]


def test_a_reward_a_user_is_what_learn_adds_up(day: Day) -> None:
    every = ASKED._replace(span_ms=30 * HOUR_MS)  # all pushes count
    found = experiment.report(day.settings, every)

    log = archived.push_log(day.settings, Place(day.settings.archive.url))
    assert sum(arm.n_over for arm in found.arms) > 100
    assert sum(arm.totals["sends"] for arm in found.arms) >= len(log.decision_ids) > 60
    total = sum(arm.totals["reward"] for arm in found.arms)
    assert total == pytest.approx(log.rewards.sum(), abs=1e-9)
    assert total != 0


def command(day: Day, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command as its users do; return its last line."""
    environment = {
        "PUSHFLOW_CAMPAIGNS_FILE": str(day.campaigns),
        "PUSHFLOW_ARCHIVE__URL": day.settings.archive.url,
        "PUSHFLOW_REWARDS__CREDIT_SECONDS": orjson.dumps(SHORT).decode(),
    }
    done = CliRunner().invoke(cli.app, ["experiment", *arguments], env=environment)
    assert done.exit_code == code, done.output
    found: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return found


def test_the_command_reports_differences_with_both_intervals_and_a_picture(
    day: Day, tmp_path: Path
) -> None:
    picture = tmp_path / "sequence.png"
    spans = ["--days", "0.17", "--before-days", "0.3", "--planned", "150"]
    found = command(day, "report", *spans, "--plot", str(picture))

    assert (found["verdict"], found["control"], found["learners"]) == (
        "reported",
        "random",
        "shared",
    )
    one = found["compared"]["policy"]["reward"]["adjusted"]
    assert 0 < one["half"] < one["anytime_half"]
    difference = (
        found["arms"]["policy"]["a_user"]["reward"] - found["arms"]["random"]["a_user"]["reward"]
    )
    assert found["compared"]["policy"]["reward"]["plain"]["difference"] == pytest.approx(
        difference, abs=2e-6
    )
    assert set(found["compared"]["holdout"]) == {"reward", "purchases", "events"}
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_said_where_the_holdout_was_not_logged(day: Day, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "archive"))
    kept = [d for d in day.decisions if d.outcome != "holdout"]
    archive(place, archived.DECISIONS, [(d.decided_at, d.user_id, encode(d)) for d in kept])
    url = {"archive": Archive(url=str(tmp_path / "archive"))}
    other = day.settings.model_copy(update=url)
    found = experiment.report(other, ASKED)

    assert found.split.is_wrong
    assert found.compared == {}
    assert any("mismatch" in reason for reason in found.refusals)
    assert experiment.values(found)["verdict"] == "refused"


def test_an_experiment_must_be_named_where_there_are_several(day: Day) -> None:
    campaigns = experiment.read_campaigns(day.settings)
    first = next(iter(campaigns))
    campaigns.apply(
        first.campaign_id,
        msgspec.structs.replace(
            first, experiment=msgspec.structs.replace(first.experiment, salt="2")
        ),
    )
    with pytest.raises(experiment.ExperimentError, match="2 experiments"):
        experiment.choose(campaigns, "")

    assert experiment.choose(campaigns, first.campaign_id)[1] == [first.campaign_id]
    with pytest.raises(experiment.ExperimentError, match="no campaign 'x'"):
        experiment.choose(campaigns, "x")


def test_topics_say_what_the_archive_says(day: Day, embedded_bootstrap: str) -> None:
    of = day.settings.model_copy(
        update={"kafka": Kafka(bootstrap_servers=embedded_bootstrap, topic_prefix="experiment.")}
    )
    writer = Writer(of.kafka.client())
    for topic, rows in (
        (archived.EVENTS, day.events[:300]),
        (archived.DECISIONS, day.decisions),
        (archived.FEEDBACK, day.feedback),
    ):
        writer.send(of.topics[topic], "rubbish", b"{")
        for row in rows:
            writer.send(of.topics[topic], row.user_id, encode(row))
    writer.flush()

    theirs, ours = topic_log(of), archive_log(day.settings)
    assert set(theirs.decisions()) == set(ours.decisions())
    assert set(theirs.answers()) == set(ours.answers())
    assert set(theirs.acts()) == {(e.user_id, e.type, e.time_ms) for e in day.events[:300]}


ARMS = {"u1": "holdout", "u2": "policy", "u3": "random"}


def decided(number: int, user_id: str, at_ms: int, **fields: Any) -> Decided:
    is_held = ARMS[user_id] == "holdout"
    values = {
        "decision_id": f"d{number}",
        "user_id": user_id,
        "time_ms": at_ms,
        "outcome": "holdout" if is_held else "send",
        "reason": "holdout" if is_held else "ok",
        "is_dry_run": False,
        "campaign_id": "c1",
        "arm": ARMS[user_id],
    }
    return Decided(**{**values, **fields})


def exposed(
    decisions: list[Decided],
    answers: list[Answer] | None = None,
    acts: list[tuple[str, str, int]] | None = None,
    **span: int,
) -> Exposed:
    """Read a log of one experiment of campaign c1, whose users have their arms by `ARMS`."""
    settings = Settings(redis={"url": ""}, rewards={"window_seconds": 1})  # type: ignore[arg-type]
    own = Own(
        ["holdout", "policy", "random"],
        {"c1": None},
        lambda user_id, _campaign_id: ARMS[user_id],
        reward_rules(settings),
    )
    times = {"since_ms": 0, "until_ms": 10**13, "span_ms": 100, "before_ms": 50, "answer_ms": 10}
    log = Log(lambda: decisions, lambda: answers or [], lambda: acts or [])
    return read(log, own, Span(**{**times, **span}))


def test_a_span_begins_at_the_first_decision_at_which_the_arm_matters() -> None:
    found = exposed(
        [
            decided(1, "u2", 1_000, outcome="suppress", reason="no_consent"),
            decided(2, "u2", 2_000, outcome="suppress", reason="min_gap"),
            decided(3, "u2", 2_050),
            decided(4, "u2", 2_100),  # the span is over
            decided(5, "u1", 1_500),
        ],
        acts=[
            ("u2", "view", 1_949),
            ("u2", "view", 1_950),
            ("u2", "view", 1_999),
            ("u2", "purchase", 2_000),
            ("u2", "view", 2_099),
            ("u2", "view", 2_100),
            ("u9", "view", 2_000),
        ],
    )

    assert found.first_ms.tolist() == [1_500, 2_000]
    assert found.arms.tolist() == [0, 1]
    assert found.before.tolist() == [0, 2]
    assert found.metrics["sends"].tolist() == [0, 1]
    assert found.metrics["events"].tolist() == [0, 2]
    assert found.metrics["purchases"].tolist() == [0, 1]
    assert found.is_over.tolist() == [True, False]  # 2,000 + 100 + 10 is behind the newest message
    assert found.faults == []


def test_an_answer_counts_once_and_in_its_time() -> None:
    answers = [
        Answer("d1", "opened", 1_010, None),
        Answer("d1", "opened", 1_020, None),
        Answer("d1", "dismissed", 1_000 + 4 * 3_600_000, None),  # within 12 hours
        Answer("d2", "opened", 1_000 + 13 * 3_600_000, None),  # no more
        Answer("d3", "expired", 1_100, None),
    ]
    found = exposed([decided(n, "u2", 1_000 + n) for n in (1, 2, 3)], answers)

    assert {name: found.metrics[name].tolist() for name in ("sends", "opens", "dismissals")} == {
        "sends": [3],
        "opens": [1],
        "dismissals": [1],
    }
    assert found.metrics["reward"].tolist() == [pytest.approx(1.0 - 0.3 - 0.05 + 0.0)]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"arm": ""}, "1 decisions without an arm of the experiment"),
        ({"arm": "random"}, "1 decisions in another arm than the split says that is in force"),
    ],
)
def test_exposure_that_is_not_complete_is_told(change: dict[str, str], fault: str) -> None:
    assert exposed([decided(1, "u2", 1_000, **change)]).faults == [fault]


def test_a_send_to_the_holdout_is_told() -> None:
    assert exposed([decided(1, "u1", 1_000, outcome="send")]).faults == ["1 sends to the holdout"]


def test_answers_to_decisions_that_are_not_there_are_told() -> None:
    day_ms = 86_400_000
    known = [Answer("d1", "opened", 1_000 + 2 * day_ms, None)]
    lost = [Answer("lost", "opened", 1_000 + 2 * day_ms, None)]
    early = [Answer("older", "opened", 1_000, None)]  # of before the log began

    assert exposed([decided(1, "u2", 1_000)], known + early).faults == []
    [fault] = exposed([decided(1, "u2", 1_000)], known + lost).faults
    assert fault.startswith("50.0% of the answers")


def test_arms_that_learn_apart_are_told_of_where_one_has_more_to_learn_from() -> None:
    rng = np.random.default_rng(0)
    arms = rng.choice(2, 1_000, p=[0.2, 0.8])
    nothing = np.zeros(1_000)
    found = Exposed(
        arms,
        np.arange(1_000),
        np.ones(1_000, np.bool_),
        nothing,
        {name: nothing for name in METRICS} | {"sends": np.ones(1_000)},
        [],
    )
    asked = ASKED._replace(control="policy")
    shares = {"other": 0.2, "policy": 0.8}
    apart = experiment.judge(shares, found, asked, is_separate=True)
    together = experiment.judge(shares, found, asked, is_separate=False)

    assert (apart.learners, together.learners, together.notes) == ("separated", "shared", [])
    [note] = apart.notes
    assert note.startswith("arm policy learned from")


def test_arms_that_learn_apart_teach_learners_of_their_own(day: Day, tmp_path: Path) -> None:
    raw = w.messages_of(day.decisions, "decisions") + w.messages_of(day.feedback, "feedback")
    times = [day_ms(row) for row in [*day.decisions, *day.feedback]]
    messages = [raw[n]._replace(timestamp_ms=times[n]) for n in np.argsort(times, kind="stable")]
    steps = w.merged(w.polls(messages, 500, clock_kinds=(Decision, Feedback)))
    shared, _ = w.run_learn(day.settings_of(tmp_path / "shared"), steps)
    of = day.settings_of(tmp_path / "apart")
    of.learning.separate_arms = True
    apart, _ = w.run_learn(of, steps)

    n_of = {row.shard: row.n_rewards for row in apart}
    assert {shard.partition("/")[2] for shard in n_of} == {"random", "policy"}
    assert {
        row.shard: n_of[f"{row.shard}/random"] + n_of[f"{row.shard}/policy"] for row in shared
    } == {row.shard: row.n_rewards for row in shared}

    made = tables(of, day.items)
    for row in apart:
        made.policies.apply(row.shard, row)
    made.apply_changes()
    known = {arm: made.policies.known(arm) for arm in ("random", "policy", "new")}
    assert {arm: one.posterior.n for arm, one in known.items()} == {
        "random": sum(n for shard, n in n_of.items() if shard.endswith("/random")),
        "policy": sum(n for shard, n in n_of.items() if shard.endswith("/policy")),
        "new": 0,
    }
    assert len({one.version for one in known.values()}) == 3


def test_an_apprentice_leaves_what_it_would_do_and_nothing_else(day: Day, tmp_path: Path) -> None:
    alone = day.decide(day.settings_of(tmp_path))

    without = [
        msgspec.structs.replace(d, learning=msgspec.structs.replace(d.learning, apprentice=None))
        for d in day.decisions
    ]
    assert [encode(d) for d in without] == [encode(d) for d in alone]
    asked = [d.learning for d in day.decisions if d.learning.apprentice is not None]
    assert len(asked) == sum(len(d.learning.action_set) > 1 for d in day.decisions) > 60
    for learning in asked:
        assert learning.apprentice is not None
        assert learning.apprentice.policy_id == "softmax"
        assert len(learning.apprentice.probabilities) == len(learning.action_set)
        assert sum(learning.apprentice.probabilities) == pytest.approx(1, abs=1e-12)


def test_an_apprentice_is_judged_by_its_log(day: Day) -> None:
    answered = [
        d
        for d in day.decisions
        if d.learning.arm == "policy"
        and len(d.learning.action_set) > 1
        and d.outcome in ("send", "suppress")
        and d.delivery.send_after == d.decided_at
    ]
    found = command(day, "apprentice", "--decisions", "100", code=1)
    assert (found["verdict"], found["reasons"]) == ("wait", [f"{len(answered)} decisions of 100"])

    rule = Rule(min_decisions=20, min_ess=20)
    judged = apprentice.watched(day.settings, rule, until_ms=archived.FOR_EVER_MS)
    # Before anything was learned both choose alike.
    assert (judged.apprentice, judged.served) == ("softmax", "squarecb")
    assert judged.n_decisions == len(answered)
    assert judged.verdict.difference == pytest.approx(0, abs=1e-12)
    assert judged.verdict.report is not None
    assert judged.verdict.report.policies[1].support.ess == pytest.approx(len(answered))


def test_an_apprentice_that_was_never_asked_says_how_to_ask_one(day: Day) -> None:
    with pytest.raises(experiment.ExperimentError, match="PUSHFLOW_RANKING__APPRENTICE"):
        apprentice.watched(day.settings, Rule(), "linucb", until_ms=archived.FOR_EVER_MS)


def size(*arguments: str, code: int = 0) -> dict[str, int]:
    done = CliRunner().invoke(cli.app, ["experiment", "size", *arguments])
    assert done.exit_code == code, done.output
    found: dict[str, int] = orjson.loads(done.stdout.splitlines()[-1]) if not code else {}
    return found


def test_the_users_that_a_difference_takes_follow_from_shares_and_correlation() -> None:
    rate = ("--mean", "0.05", "--lift", "0.1")
    even, uneven = size(*rate), size(*rate, "--treated", "0.1", "--control", "0.9")
    helped = size(*rate, "--correlation", "0.6")

    assert even["planned_look"] == 59_652  # 4 v (1.96 + 0.84)^2 / d^2 by hand
    assert uneven["planned_look"] == pytest.approx(even["planned_look"] / (4 * 0.1 * 0.9), abs=2)
    assert helped["any_look"] == pytest.approx(even["any_look"] * 0.64, abs=2)
    assert even["any_look"] > 1.5 * even["planned_look"]
    size("--mean", "2.0", "--lift", "0.1", code=1)  # not a rate, and no spread
    size("--mean", "0.5", "--lift", "0", code=1)
