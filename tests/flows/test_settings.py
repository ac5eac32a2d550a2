"""Settings of the merge, and what the learner makes of its weights."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows.settings import Candidates, SourceDepths, SourceWeights
from flows.tables import Tables
from models.arms import DESIGN, SOURCES, D
from models.merging import MAX_DEPTH, MAX_RRF, MIN_RRF, RRF
from operators.candidates import COPY_COSINE, DEPTHS, MAX_PER_CATEGORY, WEIGHTS
from operators.hops import Reward
from operators.learning import LearnerShard
from operators.messages import Item, ItemStats, PolicyShard
from tests.conftest import T0_MS
from tests.flows import world as w
from tests.operators.test_decider import trigger

TREND = DESIGN.index("source_trend")


def test_the_weights_in_the_settings_are_those_of_every_source() -> None:
    assert SourceWeights().model_dump() == WEIGHTS
    assert (*WEIGHTS, "explore") == SOURCES
    merge = Candidates()
    assert (merge.max_per_category, merge.copy_cosine) == (MAX_PER_CATEGORY, COPY_COSINE)
    assert (merge.rrf, SourceDepths().model_dump()) == (RRF, DEPTHS)


def test_one_weight_is_set_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PUSHFLOW_CANDIDATES__WEIGHTS__TREND", "0")
    assert w.settings(tmp_path).candidates.weights.model_dump() == {**WEIGHTS, "trend": 0.0}
    monkeypatch.delenv("PUSHFLOW_CANDIDATES__WEIGHTS__TREND")
    monkeypatch.setenv("PUSHFLOW_CANDIDATES__WEIGHTS", '{"tower": 3}')
    assert w.settings(tmp_path).candidates.weights.model_dump() == {**WEIGHTS, "tower": 3.0}


@pytest.mark.parametrize("weights", [{"trends": 1.0}, {"trend": -1.0}, {"trend": 11.0}])
def test_a_weight_of_no_source_or_beyond_the_bounds_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Candidates(weights=weights)  # type: ignore[arg-type] # pydantic converts it


@pytest.mark.parametrize("rrf", [MIN_RRF - 1, MAX_RRF + 1])
def test_a_constant_beyond_the_bounds_of_the_merge_is_refused(rrf: int) -> None:
    assert Candidates(rrf=MIN_RRF).rrf < Candidates(rrf=MAX_RRF).rrf
    with pytest.raises(ValidationError):
        Candidates(rrf=rrf)


@pytest.mark.parametrize("depths", [{"trend": 0}, {"tower": MAX_DEPTH + 1}, {"intent": 10}])
def test_a_depth_of_no_list_or_beyond_the_bounds_is_refused(depths: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Candidates(depths=depths)  # type: ignore[arg-type] # pydantic converts it


def test_depths_and_the_constant_reach_the_candidates(tmp_path: Path) -> None:
    weights = {**dict.fromkeys(WEIGHTS, 0.0), "trend": 1.0}
    settings = w.settings(
        tmp_path, candidates={"weights": weights, "depths": {"trend": 2}, "rrf": 200}
    )
    made = Tables(settings, clock=lambda: 0.0)
    for item_id in "abc":
        made.catalogue.apply(item_id, Item(item_id=item_id, title=f"title {item_id}"))
    made.catalogue.refresh()
    [found] = made.generator.find([trigger()])
    by_place = [1 / 201, 1 / 202, 0.005 / 201]  # the third is filling
    assert found.scores == pytest.approx(by_place, abs=1e-8)


def policy_row(worth: float) -> PolicyShard:
    """Return what a learner knows whose candidates of the trend earned so much more."""
    shard, rng = LearnerShard(), np.random.default_rng(0)
    for n in range(3_000):
        x = np.zeros(D)
        x[0], x[TREND] = 1.0, n % 2
        reward = worth * x[TREND] + float(rng.normal(0, 0.01))
        shard.on_batch([Reward("p0", f"d{n}", x, reward, False, T0_MS + n)])
    return shard.row()


def tables(directory: Path, *, learned: bool) -> Tables:
    """Return tables of a shop where the trend and another source each favour an item."""
    made = Tables(w.settings(directory, candidates={"learned": learned}), clock=lambda: 0.0)
    for item_id in "abc":
        made.catalogue.apply(item_id, Item(item_id=item_id, title=f"title {item_id}"))
    for item_id, popularity, neighbours in (("a", 1.0, [("b", 1.0)]), ("c", 9.0, [])):
        made.catalogue.apply_stats(stats(item_id, popularity, neighbours))
    made.apply_changes()
    return made


def stats(item_id: str, popularity: float, neighbours: list[tuple[str, float]]) -> ItemStats:
    names = ("views", "clicks", "carts", "purchases", "favorites", "pushes", "opens")
    counts = dict.fromkeys((*names, "rating_sum", "rating_count"), 0.0)
    return ItemStats(
        item_id=item_id,
        as_of_ms=T0_MS,
        popularity_1d=popularity,
        first_seen_ms=T0_MS,
        by_country={},
        neighbours=neighbours,
        **counts,
    )


def trend_score(made: Tables) -> float:
    """Return the fused score of an item that the trend alone proposes."""
    [score] = [c.score for c in made.generator.generate(trigger()) if c.item_id == "c"]
    return score


def test_what_the_learner_found_reaches_the_merge_with_the_policy(tmp_path: Path) -> None:
    made = tables(tmp_path, learned=True)
    before = trend_score(made)
    made.policies.apply("p0", policy_row(0.5))
    assert trend_score(made) == before
    made.apply_changes()
    assert trend_score(made) == pytest.approx(before * 2, rel=1e-4)
    made.policies.apply("p0", policy_row(-0.5))
    made.apply_changes()
    assert trend_score(made) == pytest.approx(before / 2, rel=1e-4)
    made.policies.apply("p0", None)
    made.apply_changes()
    assert trend_score(made) == before


def test_where_the_settings_say_so_the_weights_stand(tmp_path: Path) -> None:
    made = tables(tmp_path, learned=False)
    before = trend_score(made)
    made.policies.apply("p0", policy_row(0.5))
    made.apply_changes()
    assert trend_score(made) == before
