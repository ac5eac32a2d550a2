"""`pushflow evaluate candidates`: from files to a report, on made-up data and on real ones."""

import json
import random
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows import candidate_student
from flows.candidate_cases import Learner, cases_of
from flows.candidate_period import Merging, Period
from flows.candidate_report import environment
from flows.candidate_trial import Data, Plan, Split, Tell, mergings_of, run
from flows.cli import app
from flows.evaluate import read
from flows.recorded import retail
from flows.settings import Settings
from models.baselines import make, matrix_of
from models.serving import StudentScorer
from operators.messages import Event, Item
from tests.conftest import T0_MS, event

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TASTES = ("garden spade rake", "kitchen pan spoon", "office pen paper")


def shop() -> list[Item]:
    """Return 40 items of each of three tastes, the taste in their words."""
    return [
        Item(item_id=f"t{taste}n{n:02d}", title=f"{words} n{n}", created_ms=T0_MS)
        for taste, words in enumerate(TASTES)
        for n in range(40)
    ]


def days(n_days: int = 30, n_users: int = 45) -> list[Event]:
    """Return what users bought: each day a basket of three new things of their own taste."""
    rng = random.Random(0)
    left = {user: rng.sample(range(40), 40) for user in range(n_users)}
    bought = []
    for day in range(n_days):
        for user in rng.sample(range(n_users), 15):
            time_ms = T0_MS + day * DAY_MS + user * 60_000
            for place in range(min(3, len(left[user]))):
                bought.append(
                    event(
                        event_id=f"e{day}u{user}n{place}",
                        user_id=f"u{user}",
                        type="purchase",
                        item_id=f"t{user % 3}n{left[user].pop():02d}",
                        time_ms=time_ms,
                        props={"basket": f"b{day}"},
                    )
                )
    return bought


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write the shop as JSON lines; return the options that name the files."""
    folder = tmp_path_factory.mktemp("evaluate")
    events, items = folder / "events.jsonl", folder / "items.jsonl"
    events.write_bytes(b"\n".join(msgspec.json.encode(one) for one in reversed(days())))
    items.write_bytes(b"\n".join(msgspec.json.encode(one) for one in shop()))
    return ["--events", str(events), "--items", str(items)]


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", "candidates", *arguments])


@pytest.fixture(scope="module")
def report(files: list[str]) -> dict[str, object]:
    """Return the report on the shop, a fifth of its items hidden for the cold."""
    result = evaluate(*files, "--budget", "3", "--hold-out", "0.2", "--no-student", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def mean(report: dict[str, object], method: str, name: str = "recall@10") -> float:
    return report["methods"][method][name]["mean"]


def test_json_prints_one_object_with_every_method(report: dict[str, object]) -> None:
    names = ["random", "popularity", "item-CF", "ALS", "neighbour", "content", "trend", "repeat"]
    assert list(report["methods"]) == [*names, "merged"]
    assert report["counts"]["test"]["cases"] > 50


def test_who_knows_tastes_finds_more_than_who_does_not(report: dict[str, object]) -> None:
    for method in ("merged", "neighbour", "content", "ALS", "item-CF"):
        assert mean(report, method) > 1.2 * mean(report, "popularity")
        assert mean(report, method) > 1.5 * mean(report, "random")


def test_hidden_items_are_found_by_their_content_and_not_by_what_is_learned(
    report: dict[str, object],
) -> None:
    hidden = report["with_hidden_items"]
    assert hidden["neighbour"]["cold"]["mean"] == 0.0
    assert hidden["content"]["cold_to_warm"] > 0.6
    assert report["counts"]["cold"]["new_cold"] > 20


def test_an_interval_holds_its_mean_and_a_lead_has_one(report: dict[str, object]) -> None:
    recall = report["methods"]["merged"]["recall@10"]
    assert recall["low"] <= recall["mean"] <= recall["high"]
    lead = report["lead_of_merged"]["random"]
    assert lead["low"] <= lead["mean"] <= lead["high"]


def test_the_same_files_and_seed_give_the_same_report(
    files: list[str], report: dict[str, object]
) -> None:
    again = evaluate(*files, "--budget", "3", "--hold-out", "0.2", "--no-student", "--json")
    assert json.loads(again.stdout) == report


def test_a_table_a_plot_and_the_object_as_the_last_line(files: list[str], tmp_path: Path) -> None:
    plot = tmp_path / "report.png"
    options = ["--budget", "3", "--hold-out", "0", "--plot", str(plot), "--tune"]
    result = evaluate(*files, *options)
    assert result.exit_code == 0, result.output
    assert "recall of new items" in result.stdout
    found = json.loads(result.stdout.splitlines()[-1])
    tuned = found["methods"]["merged, tuned"]
    assert tuned["settings_tried"] == found["methods"]["ALS"]["settings_tried"] == 3
    assert found["lead_of_tuned"].keys() == found["methods"].keys() - {"merged, tuned"}
    assert found["with_hidden_items"] == {}
    assert plot.read_bytes().startswith(b"\x89PNG")
    # The student learned whose taste is whose.
    assert mean(found, "tower") > 1.2 * mean(found, "popularity")


def test_what_was_tuned_is_what_decide_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, merging = mergings_of(5, seed=0)
    for one in shlex.split(environment(merging)):
        monkeypatch.setenv(*one.split("=", 1))
    chosen = Settings().candidates
    assert Merging(chosen.weights.model_dump(), chosen.depths.model_dump(), chosen.rrf) == merging
    assert merging != Merging()


def test_a_student_knows_nothing_of_its_period_nor_of_hidden_items() -> None:
    told: list[list[Event]] = []

    def train(
        events: Sequence[Event], items: Sequence[Item], seed: int, tell: Tell
    ) -> StudentScorer:
        told.append(list(events))
        return candidate_student.train(events, items, seed, tell)

    bought = days(12)
    split = Split(T0_MS + 8 * DAY_MS, T0_MS + 10 * DAY_MS, T0_MS + 12 * DAY_MS)
    plan = Plan(budget=1, hold_out=0.3, seed=0, tune=False)
    result = run(Data(shop(), [], bought), split, plan, lambda _: None, train)
    assert [max(event.time_ms for event in events) for events in told] == [
        max(event.time_ms for event in bought if event.time_ms < end_ms)
        for end_ms in (split.validation_ms, split.test_ms, split.test_ms)
    ]
    shown = [{event.item_id for event in events} for events in told]
    assert len(shown[2]) < 0.9 * len(shown[1])
    [tower] = [row for row in result.cold if row.name == "tower"]
    assert tower.worth.warm.value > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of"),
        (["--events", "nowhere.jsonl"], "give one of"),
        (["--events", "nowhere.jsonl", "--items", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["--retail", "nowhere.csv"], "no file nowhere.csv"),
        (["--movielens", "."], "no ratings.csv"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: list[str], said: str) -> None:
    result = evaluate(*arguments)
    assert result.exit_code == 1
    assert said in result.output


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        (["--validation", "2030-01-01"], "dates must be in order"),
        (["--test", "2023-12-14", "--until", "2030-01-01"], "cases"),
    ],
)
def test_dates_that_leave_nothing_to_ask_for_are_said(
    files: list[str], dates: list[str], said: str
) -> None:
    result = evaluate(*files, *dates)
    assert result.exit_code == 1
    assert said in result.output


def test_a_case_knows_nothing_of_its_own_basket() -> None:
    bought = days()
    cases = cases_of(bought, shop(), [], T0_MS)
    assert len(cases) > 100
    assert all(not set(case.wanted) & set(case.trigger.history.item_ids) for case in cases)
    assert all(max(case.trigger.history.time_s) * 1_000 < case.trigger.time_ms for case in cases)


def test_a_stretch_ends_after_a_pause_or_twenty_events() -> None:
    seen = [
        event(event_id=f"e{n}", user_id="u", item_id=f"i{n}", time_ms=T0_MS + n * 1_000)
        for n in range(50)
    ]
    later = event(event_id="e", user_id="u", item_id="i99", time_ms=T0_MS + HOUR_MS)
    cases = cases_of([*seen, later], [], [], T0_MS)
    assert [len(case.wanted) for case in cases] == [20, 10, 1]
    assert [case.n_before for case in cases] == [20, 40, 50]


def test_the_merge_holds_its_own_on_real_invoices(shared_data: Path) -> None:
    """Wide margins: a subsample of one month, and settings that were good for July."""
    recording = retail(shared_data / "online-retail" / "online_retail.csv.gz")
    data = read(recording, "2011-08-10")
    split_ms = 1_312_156_800_000  # 2011-08-01
    cases = cases_of(data.events, data.items, data.users, split_ms)
    learner = Learner(data.items)
    learner.learn(one for one in data.events if split_ms - 120 * DAY_MS <= one.time_ms < split_ms)
    period = Period(learner.catalogue(split_ms), cases, data.events, split_ms)

    als = make("ALS", ALS, seed=0)
    als.fit(matrix_of(period.known, period.catalogue.n_rows, als.half_life))
    merged = period.recall(period.of_merge(Merging()))
    of_als = period.recall(period.of_baseline(als, is_all=False))
    assert np.nanmean(merged) > 0.9 * np.nanmean(of_als)


ALS = {"factors": 64.0, "regularization": 50.0, "alpha": 5.0, "half_life": 365.0}
