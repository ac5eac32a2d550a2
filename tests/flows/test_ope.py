"""`pushflow ope` on an archive that the real code wrote, and on Open Bandit files."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from flows import archived, ope_archive
from flows.cli import app
from flows.ope_open_bandit import N_ITEMS, target, thompson
from flows.settings import Settings
from flows.simulate import Population
from models.ope import LOGGED
from operators.archive_files import Place
from operators.archive_writer import Limits
from operators.codec import encode
from operators.eligibility import POLICY_NONE
from operators.messages import Decision, Feedback
from tests.flows import world as w
from tests.flows.test_archived import archive, tables

HOUR_MS = 3_600_000
LARGE_FILES = Limits(1 << 26, 3_600.0, 1 << 26)
OPEN_BANDIT = Path(__file__).parents[1] / "data" / "open-bandit"


class Kept(NamedTuple):
    """Decisions, what was answered, and the archive of both."""

    decisions: list[Decision]
    feedback: list[Feedback]
    url: str


def answers(decisions: list[Decision]) -> list[Feedback]:
    """Let pushes of every second item be opened, some of the others reach nobody."""
    found = []
    for decision in decisions:
        item = int("".join(filter(str.isdigit, decision.learning.action_set[0].item_id)) or 0)
        chosen = decision.learning.action_set[decision.learning.chosen].item_id
        number = int("".join(filter(str.isdigit, chosen)) or 0)
        if number % 2 and item % 5:
            continue
        found.append(
            Feedback(
                feedback_id=f"f-{decision.decision_id}",
                decision_id=decision.decision_id,
                user_id=decision.user_id,
                type="expired" if number % 2 else "opened",
                time_ms=decision.decided_at + HOUR_MS,
            )
        )
    last = Feedback(
        feedback_id="last",
        decision_id="-",
        user_id="u1",
        type="accepted",
        time_ms=w.START_MS + 9 * w.DAY_MS,
    )
    return [*sorted(found, key=lambda row: row.time_ms), last]


def write(url: str, decisions: list[Decision], feedback: list[Feedback]) -> Kept:
    place = Place(url)
    rows = [(d.decided_at, d.user_id, encode(d)) for d in decisions]
    archive(place, archived.DECISIONS, rows, LARGE_FILES)
    archive(
        place, archived.FEEDBACK, [(f.time_ms, f.user_id, encode(f)) for f in feedback], LARGE_FILES
    )
    return Kept(decisions, feedback, url)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    directory = tmp_path_factory.mktemp("kept")
    population = Population(n_users=160, n_items=60, seed=3, start_ms=w.START_MS)
    items, events = population.items(), population.advance(w.START_MS + 2 * w.DAY_MS)
    messages = w.messages_of(population.profiles(), "users") + w.messages_of(events, "events")
    of = w.settings(directory / "state")
    raw = w.run_decide(of, tables(of, items), w.merged(w.polls(messages, 200)))
    decisions = [msgspec.json.decode(value, type=Decision) for _, value in raw]
    decisions.sort(key=lambda decision: decision.decided_at)
    sent = [decision for decision in decisions if decision.outcome == "send"]
    return write(str(directory / "archive"), decisions, answers(sent))


@pytest.fixture
def of(tmp_path: Path) -> Settings:
    return w.settings(tmp_path)


def asked(decisions: list[Decision]) -> dict[str, Decision]:
    """What a policy decided and nothing put off."""
    return {
        d.decision_id: d
        for d in decisions
        if len(d.learning.action_set) > 1
        and d.outcome != "defer"
        and d.delivery.send_after == d.decided_at
    }


def test_what_is_judged_on_is_all_that_a_policy_decided(kept: Kept, of: Settings) -> None:
    found = archived.decided(of, Place(kept.url))
    wanted = asked(kept.decisions)
    outcomes = {decision.outcome for decision in wanted.values()}
    rewards = dict(zip(found.log.decision_ids, found.log.rewards, strict=True))
    held = [d for d, own in wanted.items() if own.reason_codes == [POLICY_NONE]]
    lost = [f.decision_id for f in kept.feedback if f.type == "expired"]

    assert set(found.log.decision_ids) == set(wanted)
    assert outcomes == {"send", "suppress"}
    assert len(held) > 3
    assert {rewards[decision_id] for decision_id in held} == {0.0}
    assert {rewards[decision_id] for decision_id in lost if decision_id in rewards} == {0.0}
    assert set(rewards.values()) == {0.0, -0.05, 1.0}
    assert found.labels["trigger_type"] == [wanted[i].trigger.type for i in found.log.decision_ids]


def test_what_a_push_that_was_sent_earned_is_what_training_reads(kept: Kept, of: Settings) -> None:
    place = Place(kept.url)
    log, pushes = archived.decided(of, place).log, archived.push_log(of, place)
    rewards = dict(zip(log.decision_ids, log.rewards, strict=True))
    sent = dict(zip(pushes.decision_ids, pushes.rewards, strict=True))

    assert len(sent) > 100
    assert {decision_id: rewards[decision_id] for decision_id in sent} == sent


def test_a_candidate_knows_nothing_of_what_it_is_judged_on(
    kept: Kept, of: Settings, tmp_path: Path
) -> None:
    candidates = [ope_archive.parse(text) for text in ("greedy", "logistic_ucb:width=0.1")]
    before = ope_archive.trial(of, Place(kept.url), candidates)
    later = [
        msgspec.structs.replace(f, type="opted_out") if f.time_ms >= before.from_ms else f
        for f in kept.feedback[:-1]
    ]
    other = write(str(tmp_path / "other"), kept.decisions, [*later, kept.feedback[-1]])
    after = ope_archive.trial(of, Place(other.url), candidates, from_ms=before.from_ms)

    assert before.n_learned > 30
    assert (before.log.rewards != after.log.rewards).any()
    for name, probabilities in before.targets.items():
        assert probabilities.tobytes() == after.targets[name].tobytes()
        assert np.ptp(probabilities) > 0.5  # and it has learned something


def run(arguments: list[str], **environment: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(app, ["ope", *arguments], env={"COLUMNS": "160", **environment})
    lines = result.stdout.splitlines()
    return result.exit_code, json.loads(lines[-1]) if lines else {}, result.stderr


def test_the_command_judges_policies_on_the_archive(kept: Kept, tmp_path: Path) -> None:
    picture = tmp_path / "intervals.png"
    code, found, told = run(
        [
            *("archive", kept.url, "--policy", "uniform", "--policy", "greedy:floor=0.02"),
            *("--by", "trigger", "--detect", "0.05", "--plot", str(picture)),
        ],
        PUSHFLOW_RUN_ID="test",
    )
    logged, uniform, greedy = found["policies"]
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}

    assert code == 0
    assert [logged["name"], uniform["name"], greedy["name"]] == [
        *(LOGGED, "uniform", "greedy:floor=0.02")
    ]
    # The tables knew nothing, so what logged was uniform too.
    mean = logged["estimates"]["ips"]
    assert uniform["support"]["ess"] == pytest.approx(found["n"])
    assert uniform["estimates"]["snips"]["value"] == pytest.approx(mean["value"])
    assert mean["low"] < mean["value"] < mean["high"]
    assert pairs["uniform", LOGGED]["verdict"] == "even"
    # A greedy policy agrees with it in a twentieth of the decisions: too few here.
    assert greedy["support"]["ess"] < 100
    assert pairs["greedy:floor=0.02", LOGGED]["verdict"] == "refused"
    assert pairs["greedy:floor=0.02", LOGGED]["needed"] > found["n"]
    assert "refused: greedy:floor=0.02:" in told
    assert picture.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "best"], "no policy 'best'; there are uniform"),
        (["--policy", "greedy:speed=1"], "no setting 'speed'"),
        (["--policy", "neural_linear"], "the archive does not keep"),
        (["--from", "2030-01-01"], "no decisions"),
    ],
)
def test_the_command_says_what_is_wrong(kept: Kept, arguments: list[str], message: str) -> None:
    code, _, told = run(["archive", kept.url, *arguments], PUSHFLOW_RUN_ID="test")

    assert code == 1
    assert message in told


def test_of_open_bandit_women_the_log_of_bts_says_nothing_about_random() -> None:
    arguments = ["--campaign", "women", "--behaviour", "bts", "--target", "random"]
    code, found, told = run(["open-bandit", str(OPEN_BANDIT), *arguments, "--draws", "200"])
    _, random = found["policies"]

    assert code == 0
    assert found["n"] == 10_000
    assert round(random["support"]["ess"]) == 2
    assert round(random["support"]["most_weight"]) == 21_739
    assert [pair["verdict"] for pair in found["pairs"]] == ["refused"]
    assert "2 effective decisions of 100 at least" in told


def test_open_bandit_is_read_from_the_wheel_of_obp_too(tmp_path: Path) -> None:
    wheel = tmp_path / "obp-0.4.1-py3-none-any.whl"
    rows = [f"{n},x,{n % 34},{1 + n % 3},{n % 2},{1 / 34},a{n % 2}" for n in range(600)]
    head = ",timestamp,item_id,position,click,propensity_score,user_feature_0"
    prior = {"men": {"alpha": [1.0 + n for n in range(34)], "beta": [40.0] * 34}}
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("obp/dataset/obd/random/men/men.csv", "\n".join([head, *rows]))
        file.writestr("obp/policy/conf/prior_bts.yaml", json.dumps(prior))
    code, found, _ = run(["open-bandit", str(wheel), "--campaign", "men", "--draws", "200"])
    logged, bts = found["policies"]

    assert code == 0
    assert logged["estimates"]["ips"]["value"] == 0.5
    assert bts["support"]["mean_weight"] == pytest.approx(1, abs=0.05)
    assert bts["support"]["ess"] < 400
    assert [segment["name"] for segment in found["segments"]] == ["place 1", "place 2", "place 3"]


def test_thompson_shows_each_item_as_often_as_it_is_likely_the_best() -> None:
    shares = thompson(np.array([3.0, 3.0, 3.0, 1.0]), np.array([1.0, 1.0, 1.0, 5.0]), seed=1)

    assert shares.sum(axis=1) == pytest.approx(1)
    assert shares[0, :3] == pytest.approx(1 / 3, abs=0.01)
    assert shares.sum(axis=0)[3] < 0.05


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    code, _, told = run(["open-bandit", str(tmp_path), "--campaign", "men"])

    assert code == 1
    assert "men.csv" in told
    with pytest.raises(ValueError, match=r"prior_bts\.yaml"):
        target(tmp_path, "bts", "men", None)  # type: ignore[arg-type]
    assert N_ITEMS["men"] == 34


def test_the_sample_size_grows_as_the_log_is_worth_less() -> None:
    arguments = ["--detect", "0.01", "--deviation", "0.3"]
    _, alike, _ = run(["sample-size", *arguments])
    _, other, _ = run(["sample-size", *arguments, "--ess-share", "0.1"])

    assert other["log"] == pytest.approx(10 * alike["log"], rel=1e-3)
    assert alike["experiment_per_arm"] == pytest.approx(2 * alike["log"], rel=1e-3)
