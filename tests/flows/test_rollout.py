"""A model's way from a file to all users, and back: the card, the evidence, the commands."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import torch
from typer.testing import CliRunner

from flows import cli, doctor, rollout
from flows.learn import reward_rules
from flows.settings import Kafka, Settings
from flows.tables import Tables
from flows.topics import specs
from flows.trial_evidence import Evidence
from models.checkpoint import write_model
from models.export import export_student
from models.rollout import MIN_CALLS, is_in_share
from models.student import Student, StudentConfig
from operators.codec import encode
from operators.kafka_admin import create_topics
from operators.kafka_sink import Writer
from operators.messages import (
    Action,
    Decision,
    Feedback,
    FeedbackType,
    Item,
    ModelCard,
    ModelRef,
    ModelTrial,
    Trial,
    TrialReport,
)
from tests.conftest import T0_MS, decision
from tests.flows import world as w

torch.set_num_threads(1)  # shared cores
NOW_MS = 1_800_000_000_000
ONE, OTHER, THIRD = (
    ModelRef(version=v, path=f"/m/{v}.pfm", checksum=f"c{v}", feature_spec="s") for v in "123"
)
BEGINS = {"push.decisions.v1": [3], "push.feedback.v1": [4]}
WAIT_S = 60.0


def card(trial: ModelTrial | None = None, previous: ModelRef | None = None) -> ModelCard:
    served = rollout.served(None, ONE)
    return msgspec.structs.replace(served, trial=trial, previous=previous)


def test_a_model_goes_from_shadow_to_canary_to_all_and_back() -> None:
    shadow = rollout.on_trial(card(), OTHER, "shadow", 0.2, {})
    canary = rollout.promoted(shadow, 0.1, BEGINS)
    served = rollout.promoted(canary, 0.1, {})
    back = rollout.rolled_back(served)

    assert [c.version for c in (shadow, canary, served, back)] == ["1", "1", "2", "1"]
    assert shadow.trial is not None
    assert (shadow.trial.version, shadow.trial.stage, shadow.trial.share) == ("2", "shadow", 0.2)
    assert canary.trial is not None
    assert (canary.trial.version, canary.trial.stage, canary.trial.share) == ("2", "canary", 0.1)
    assert canary.trial.begins == BEGINS
    assert (served.trial, served.previous, served.is_forced) == (None, ONE, False)
    assert (back.trial, back.previous, back.is_forced) == (None, OTHER, True)


def test_a_rollback_of_a_trial_leaves_what_is_served() -> None:
    trial = rollout.on_trial(card(previous=THIRD), OTHER, "canary", 0.2, {})

    assert rollout.rolled_back(trial) == card(previous=THIRD)


def test_a_model_published_again_does_not_forget_the_one_before() -> None:
    again = rollout.served(rollout.served(card(), OTHER), OTHER)

    assert again.previous == ONE


@pytest.mark.parametrize(
    "step",
    [
        lambda: rollout.on_trial(None, OTHER, "shadow", 0.1, {}),
        lambda: rollout.on_trial(card(), ONE, "shadow", 0.1, {}),
        lambda: rollout.promoted(card(), 0.1, {}),
        lambda: rollout.promoted(None, 0.1, {}),
        lambda: rollout.rolled_back(card()),
        lambda: rollout.rolled_back(None),
    ],
)
def test_a_step_that_does_not_fit_says_so(step: Callable[[], object]) -> None:
    with pytest.raises(rollout.RolloutError):
        step()


def report(process: str = "0", age_s: float = 1, **fields: Any) -> TrialReport:
    values = {"time_ms": NOW_MS - int(age_s * 1_000), "served": "1", "trial": "2"}
    return TrialReport(process=process, **{**values, **fields})


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], {"processes": "wait"}),
        ([report(age_s=600)], {"processes": "wait"}),
        ([report("0"), report("1", trial="")], {"processes": "wait"}),
        ([report("0"), report("1", age_s=600, trial="")], {"processes": "pass"}),
        ([report("0"), report("1", refusals={"2": "checksum"})], {"processes": "fail"}),
        (
            [report(n_calls=MIN_CALLS, served_p99=0.002, trial_p99=0.004)],
            {"processes": "pass", "latency": "pass"},
        ),
        (
            [report(n_calls=MIN_CALLS, served_p99=0.002, trial_p99=0.010)],
            {"processes": "pass", "latency": "fail"},
        ),
        ([report(n_calls=3, served_p99=0.002, trial_p99=0.010)], {"processes": "pass"}),
    ],
)
def test_a_model_must_be_taken_up_and_fast_in_every_process_that_runs(
    reports: list[TrialReport], expected: dict[str, str]
) -> None:
    now = rollout.Standing(rollout.on_trial(card(), OTHER, "shadow", 0.1, {}), reports)
    checks = rollout.judge_reports(now, 3.0, NOW_MS)

    assert {check.name: check.state for check in checks} == expected


def trial(stage: str, share: float = 0.5) -> ModelTrial:
    values = {"version": "2", "path": "", "checksum": "", "feature_spec": ""}
    return ModelTrial(stage=stage, share=share, **values)  # type: ignore[arg-type] # a parameter


def pushed(decision_id: str, user_id: str = "u1", **learning: Any) -> Decision:
    """A push of the first of two items: the served model puts it first, the other last."""
    arms = [Action("i1", "trend", 1.0, 0.6, []), Action("i2", "trend", 0.0, 0.2, [])]
    values = {
        "action_set": [*arms, Action("none", "", 0.0, 0.2, [])],
        "trial": Trial("2", "shadow", [0.5, 0.9]),
        **learning,
    }
    base = decision(decision_id, user_id)
    return decision(decision_id, user_id, learning=msgspec.structs.replace(base.learning, **values))


def told(decision_id: str, type_: FeedbackType, after_ms: int = 1_000) -> Feedback:
    return Feedback(
        feedback_id=f"f-{decision_id}-{type_}",
        decision_id=decision_id,
        user_id="u1",
        type=type_,
        time_ms=T0_MS + after_ms,
    )


def evidence(of: ModelTrial, decisions: list[Decision], feedback: list[Feedback]) -> Evidence:
    found = Evidence(of, reward_rules(Settings()))
    for one in decisions:
        found.on_decision(encode(one))
    # The window of all has closed.
    for other in [*feedback, told("last", "delivered", 86_400_000)]:
        found.on_feedback(encode(other))
    return found


def test_the_shadow_tells_what_became_of_each_push_and_how_both_models_saw_it() -> None:
    decisions = [pushed(f"d{n}") for n in range(4)]
    feedback = [told("d0", "opened"), told("d0", "converted"), told("d2", "token_invalid")]
    found = evidence(trial("shadow"), decisions, [*feedback, told("d3", "opted_out")]).shadowed()

    assert found.pushes.rewards.tolist() == [2.0, -0.05, -5.0]  # d2 reached nobody
    assert found.pushes.is_positive.tolist() == [True, False, False]
    assert found.pushes.scores.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(found.scores, -1.0)
    np.testing.assert_allclose(found.correlations, -1.0)
    # Softmax of 1 and -1 is 0.8808; the policy gave the item 0.6 of the 0.8 that is not "none".
    np.testing.assert_allclose(found.served_weights, 0.8808 / 0.75, atol=1e-4)
    np.testing.assert_allclose(found.weights, 0.1192 / 0.75, atol=1e-4)


def test_pushes_that_wait_for_an_answer_do_not_count_yet() -> None:
    late = pushed("d1", reward_deadline=T0_MS + 2 * 86_400_000)

    assert len(evidence(trial("shadow"), [pushed("d0"), late], []).shadowed().weights) == 1


def test_decisions_that_the_trial_has_nothing_to_do_with_do_not_count() -> None:
    other = [
        pushed("d1", trial=None),
        pushed("d2", trial=Trial("7", "shadow", [0.5, 0.9])),
        pushed("d3", chosen=2),
        msgspec.structs.replace(pushed("d4"), outcome="defer"),
    ]

    assert len(evidence(trial("shadow"), other, []).shadowed().weights) == 0


def test_the_canary_and_the_rest_are_kept_apart_and_the_misplaced_left_out() -> None:
    users = [f"u{n}" for n in range(40)]
    ours = [user for user in users if is_in_share(user, "2", 0.5)]
    theirs = [user for user in users if user not in ours]
    decisions = [pushed(f"a-{user}", user, model_version="1", trial=None) for user in users]
    decisions += [
        pushed(f"b-{user}", user, model_version="2", trial=Trial("2", "canary", []))
        for user in ours
    ]
    silent = pushed("none", theirs[0], chosen=2, model_version="1", trial=None)
    served, canary = evidence(trial("canary"), [*decisions, silent], []).split()

    assert (len(served.users), len(canary.users)) == (len(theirs) + 1, len(ours))
    assert canary.rewards.tolist() == [-0.05] * len(ours)
    assert served.rewards[-1] == 0.0
    assert np.isnan(served.scores[-1])


class Shop:
    """Topics of its own, tables that follow them, and the commands on them."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        prefix = f"{uuid.uuid4().hex}."
        kafka = Kafka(bootstrap_servers=bootstrap, topic_prefix=prefix)
        # Two models of one size may differ by much on a busy machine.
        models = {"max_slowdown": 1e9}
        self.settings = Settings(kafka=kafka, campaigns_file=str(w.CAMPAIGNS), models=models)  # type: ignore[arg-type] # pydantic converts it
        create_topics(kafka.client(), specs(self.settings))
        writer = Writer(kafka.client())
        for n in range(20):
            item = Item(item_id=f"i{n}", title=f"thing {n}")
            writer.send(kafka.topic("push.items.v1"), item.item_id, encode(item))
        writer.flush()
        self._folder = folder
        self.environment = {
            "PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "PUSHFLOW_KAFKA__TOPIC_PREFIX": prefix,
            "PUSHFLOW_MODELS__MIN_PUSHES": "100",
        }
        self.tables = Tables(self.settings, time.monotonic)
        self.tables.follow(self.settings, process="7")

    def file(self, seed: int) -> str:
        path = self._folder / f"{seed}.pfm"
        torch.manual_seed(seed)
        student = Student(StudentConfig(width=16, layers=1, heads=2), 1).eval()
        torch.nn.init.normal_(student.ids.weight)
        write_model(path, export_student(student, ["i0"], {}))
        return str(path)

    def call(self, *words: str, code: int = 0) -> dict[str, Any]:
        done = CliRunner().invoke(cli.app, ["models", *words], env=self.environment)
        assert done.exit_code == code, (done.output, done.stderr, done.exception)
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = orjson.loads(lines[-1]) if lines else {}
        return found

    def answer(self, decisions: list[Decision]) -> None:
        """Write decisions, and let a day pass after them."""
        writer = Writer(self.settings.kafka.client())
        for one in decisions:
            writer.send(self.settings.topics["push.decisions.v1"], one.user_id, encode(one))
        last = told("last", "delivered", 86_400_000)
        writer.send(self.settings.topics["push.feedback.v1"], "u1", encode(last))
        writer.flush()

    def until(self, is_so: Callable[[], bool]) -> bool:
        end = time.monotonic() + WAIT_S
        while not is_so() and time.monotonic() < end:
            self.tables.refresh()
            time.sleep(0.005)
        return is_so()

    @property
    def versions(self) -> tuple[str, str]:
        models = self.tables.models
        return models.version, models.trial.version if models.trial is not None else ""

    def reported(self, is_it: Callable[[TrialReport], bool]) -> TrialReport:
        found: list[TrialReport] = []

        def is_there() -> bool:
            found[:] = filter(is_it, rollout.read(self.settings).reports)
            return bool(found)

        assert self.until(is_there)
        return found[0]


@pytest.fixture
def shop(embedded_bootstrap: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(embedded_bootstrap, tmp_path)
    yield shop
    shop.tables.close()


def test_commands_take_a_model_through_its_stages_and_back(shop: Shop) -> None:
    models = shop.tables.models
    one = shop.call("publish", shop.file(1), "--stage", "served")["served"]
    assert shop.until(lambda: shop.versions == (one, ""))

    found = shop.call("publish", shop.file(2), "--share", "0.3")
    other = found["trial"]["version"]
    assert found["trial"] == {"version": other, "stage": "shadow", "share": 0.3}
    assert shop.until(lambda: shop.versions == (one, other))
    assert (models.stage, models.share) == ("shadow", 0.3)

    held = shop.call("promote", code=1)
    assert held["outcome"] == "wait"
    assert [c["name"] for c in held["checks"] if c["state"] == "wait"] == ["pushes"]
    assert shop.call("promote", "--force", "--share", "0.2")["trial"]["stage"] == "canary"
    assert shop.until(lambda: (models.stage, models.share) == ("canary", 0.2))

    assert shop.call("promote", "--force") == {"served": other, "trial": None}
    assert shop.until(lambda: shop.versions == (other, ""))
    assert shop.call("rollback")["served"] == one
    assert shop.until(lambda: shop.versions == (one, ""))


def test_the_guard_lets_a_model_on_by_what_came_of_its_pushes(shop: Shop) -> None:
    one = shop.call("publish", shop.file(1), "--stage", "served")["served"]
    assert shop.until(lambda: shop.versions == (one, ""))
    other = shop.call("publish", shop.file(2), "--share", "1")["trial"]["version"]
    shop.reported(lambda report: report.trial == other)
    users = [f"u{n}" for n in range(400)]
    scored = Trial(other, "shadow", [0.9, 0.5])
    shop.answer([pushed(f"s-{user}", user, model_version=one, trial=scored) for user in users])
    found = shop.call("promote", "--share", "0.5")
    assert found["trial"] == {"version": other, "stage": "canary", "share": 0.5}

    # What the shadow has seen does not count for the canary.
    assert shop.call("promote", code=1)["outcome"] == "wait"
    canary = {"model_version": other, "trial": Trial(other, "canary", [])}
    rest = {"model_version": one, "trial": None}
    shop.answer(
        [
            pushed(f"c-{user}", user, **(canary if is_in_share(user, other, 0.5) else rest))
            for user in users
        ]
    )
    assert shop.call("promote", "--dry-run")["outcome"] == "promote"
    assert shop.call("watch") == {"served": other, "trial": None}
    assert shop.until(lambda: shop.versions == (other, ""))


def test_a_model_that_no_process_can_open_is_reported_and_not_promoted(shop: Shop) -> None:
    one = shop.call("publish", shop.file(1), "--stage", "served")["served"]
    assert shop.until(lambda: shop.versions == (one, ""))
    path = shop.file(2)
    ref = rollout.ref_of(Path(path))
    Path(path).write_bytes(b"not what it was")
    now = rollout.read(shop.settings).card
    rollout.write(shop.settings, rollout.on_trial(now, ref, "canary", 1.0, {}))

    assert shop.until(lambda: bool(shop.tables.models.refusals))
    said = shop.reported(lambda report: bool(report.refusals))
    assert (said.process, said.served, said.trial) == ("7", one, "")
    assert "checksum" in said.refusals[ref.version]
    assert shop.call("promote", "--dry-run")["outcome"] == "rollback"
    shop.call("watch", "--every", "0.1", code=1)
    card = rollout.read(shop.settings).card
    assert card is not None
    assert (card.version, card.trial) == (one, None)


def test_the_list_shows_the_card_and_what_processes_say(shop: Shop) -> None:
    assert shop.call("list")["card"] is None
    one = shop.call("publish", shop.file(1), "--stage", "served")["served"]
    assert shop.until(lambda: shop.versions == (one, ""))
    shop.reported(lambda report: report.served == one)

    found = shop.call("list")
    assert found["card"]["version"] == one
    assert [(r["process"], r["served"]) for r in found["reports"]] == [("7", one)]


def test_the_doctor_opens_the_model_on_trial_too(shop: Shop) -> None:
    shop.call("publish", shop.file(1), "--stage", "served")
    trial = shop.call("publish", shop.file(2), "--stage", "canary")["trial"]["version"]
    [healthy] = [f for f in doctor.diagnose(shop.settings) if f.check == "model"]
    Path(shop.file(2)).unlink()
    [broken] = [f for f in doctor.diagnose(shop.settings) if f.check == "model"]

    assert (healthy.status, broken.status) == ("ok", "warn")
    assert f"in canary {trial}" in healthy.detail
    assert "pushflow models rollback" in broken.mend


def test_a_command_that_cannot_be_done_says_so_and_changes_nothing(shop: Shop) -> None:
    shop.call("promote", code=1)
    shop.call("rollback", code=1)
    shop.call("publish", "/nowhere.pfm", code=1)
    shop.call("publish", shop.file(1), code=1)  # beside nothing

    assert rollout.read(shop.settings).card is None
