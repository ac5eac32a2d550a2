"""Killed at any moment, `decide` decides each trigger once, and `learn` learns each reward once."""

import pytest

from tests.system.harness import (
    DECISIONS,
    PACE,
    Case,
    Stage,
    Verdict,
    by_id,
    judge,
    moments,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

_SKIPPED = "pushflow_sink_skipped_total"


def test_five_kills_of_decide_lose_nothing_and_change_no_byte(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    sent = n_at_kill = n_skipped = 0
    for kill_at in moments(1, len(case.events), 5):
        [child] = stage.start("decide")
        stage.send(case.events[sent:kill_at], PACE)
        sent = kill_at
        wait("progress", lambda n=n_at_kill: len(decisions.rows) > n, [child])
        n_skipped += int(total(child, _SKIPPED))
        child.kill()
        n_at_kill = len(decisions.rows)
        print("killed at", sent, n_at_kill, n_skipped)
    [child] = stage.start("decide")
    stage.send(case.events[sent:], PACE)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [child])
    n_skipped += int(total(child, _SKIPPED))

    assert child.stop() == 0
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert n_skipped > 0  # some kill left decisions beyond the last snapshot
