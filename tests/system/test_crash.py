"""Killed at any moment, `decide` decides each trigger once, and `learn` learns each reward once."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.children import FlowProcess
from operators.hops import RawMessage
from tests.system.harness import (
    DECISIONS,
    N_PARTITIONS,
    PACE,
    POLICY,
    Case,
    Stage,
    Verdict,
    by_id,
    judge,
    moments,
    total,
    wait,
)
from tests.system.learned import (
    VALUES,
    answers,
    by_shard,
    counts,
    learned,
    learned_undisturbed,
    newest,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SKIPPED = "pushflow_sink_skipped_total"
_LAG = "pushflow_source_lag"
_LAG_SECONDS = 1.0  # between two updates of it
_IGNORED = "pushflow_feedback_ignored_total"


def run_through_kills(
    stage: Stage,
    flow: str,
    messages: list[RawMessage],
    kills: list[int],
    rows: list[Any],
    *,
    n_settling: int = 0,
) -> tuple[FlowProcess, int]:
    """Send all messages at a steady pace, killing the flow after each number of them.

    Each time the flow is let live until it has written a new row. Returns the child that lives
    in the end, and how many records the sinks skipped before. The last `n_settling` messages wait
    until all before them is read: with the day that they let pass, a decision that another topic
    brings behind them comes too late.
    """
    n_skipped = 0
    values = VALUES if flow == "learn" else {}
    for start, kill_at in zip([0, *kills], kills, strict=False):
        [child] = stage.start(flow, **values)
        n_rows = len(rows)
        stage.send(messages[start:kill_at], PACE)
        assert wait("a new row", lambda n=n_rows: len(rows) > n, [child])  # type: ignore[misc]
        n_skipped += int(total(child, _SKIPPED))
        child.kill()
    [child] = stage.start(flow, **values)
    end = len(messages) - n_settling
    stage.send(messages[kills[-1] : end], PACE)
    if n_settling:
        time.sleep(2 * _LAG_SECONDS)  # until the gauge is of what was sent
        wait("all before", lambda: not total(child, _LAG), [child])
        stage.send(messages[end:], PACE)
    return child, n_skipped


def test_five_kills_of_decide_lose_nothing_and_change_no_byte(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    kills = moments(1, len(case.events), 5)

    child, n_skipped = run_through_kills(stage, "decide", case.events, kills, decisions.rows)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [child])

    assert child.stop() == 0
    found = decisions.close()
    times = Counter(identity for identity, _ in found)
    twice = [(n, i) for n, (i, _) in enumerate(found) if times[i] > 1]  # in the order of reading
    assert judge(found, case.expected) == Verdict(len(case.expected), 0, 0, 0, 0), (
        f"twice: {twice}\n{stage.told()}"
    )
    assert n_skipped > 0  # a kill left decisions behind that no snapshot knew of


def test_a_graceful_stop_leaves_nothing_to_replay(case: Case, one_stage: Stage) -> None:
    one_stage.fill_tables(case)
    decisions = one_stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    [first] = one_stage.start("decide")
    one_stage.send(case.events[:half])
    wait("the first decisions", lambda: len(decisions.rows) > 50, [first])
    first_code = first.stop()
    n_before = len(decisions.rows)
    [second] = one_stage.start("decide")
    one_stage.send(case.events[half:])
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [second])
    skipped = {n for (name, _), n in second.samples().items() if name == _SKIPPED}

    assert (first_code, second.stop()) == (0, 0)
    assert n_before < len(case.expected)
    assert skipped == {0}
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)


def test_three_kills_of_learn_learn_each_reward_once(
    case: Case, one_stage: Stage, tmp_path: Path
) -> None:
    messages = answers(case)
    expected = learned_undisturbed(messages, tmp_path / "undisturbed")
    policy = one_stage.collect(POLICY, by_shard)
    kills = moments(2, len(messages), 3)

    child, _ = run_through_kills(
        one_stage, "learn", messages, kills, policy.rows, n_settling=N_PARTITIONS
    )
    all_learned: Callable[[], bool] = lambda: counts(policy.rows) == counts(expected)  # noqa: E731
    if not wait("all rewards", all_learned, [child]):
        # A decision that is read when its window is over is "stale": no reward, and no loss.
        ignored = {key: n for key, n in child.samples().items() if key[0] == _IGNORED}
        print("learned", counts(policy.rows), "of", counts(expected), ignored, one_stage.told())

    assert child.stop() == 0
    found, truth = learned(list(newest(policy.close()).values())), learned(expected)
    assert found.n == truth.n > 300
    assert np.abs(found.mean - truth.mean).max() < 1e-9
    assert np.abs(found.covariance - truth.covariance).max() < 1e-9
