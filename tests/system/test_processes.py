"""`decide` as a cluster: whatever the number of processes, the same decisions, each once."""

import pytest

from flows.children import FlowProcess
from tests.system.harness import (
    DECISIONS,
    PACE,
    Case,
    Collector,
    Stage,
    Verdict,
    by_id,
    judge,
    stop,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]


def all_there(decisions: Collector, case: Case, children: list[FlowProcess]) -> None:
    """Wait for as many decisions as are expected."""
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), children)


def test_two_processes_decide_what_one_does(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)

    children = stage.start("decide", size=2)
    stage.send(case.events)
    all_there(decisions, case, children)

    assert stop(children) == [0, 0]
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)


def test_from_one_process_to_two_and_back_loses_nothing(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    third = len(case.events) // 3

    codes = []
    for start, size in ((0, 1), (third, 2), (2 * third, 1)):
        n_rows = len(decisions.rows)
        children = stage.start("decide", size=size)
        last = start + third if start < 2 * third else len(case.events)
        stage.send(case.events[start:last], PACE)
        wait("a new decision", lambda n=n_rows: len(decisions.rows) > n, children)  # type: ignore[misc]
        if last == len(case.events):
            all_there(decisions, case, children)
        codes += stop(children)

    assert codes == [0, 0, 0, 0]
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)


def test_a_killed_process_takes_its_peer_along_and_nothing_is_lost(
    case: Case, stage: Stage
) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    victim, peer = stage.start("decide", size=2)
    stage.send(case.events[:half], PACE)
    wait("a decision", lambda: len(decisions.rows) > 0, [victim, peer])
    victim.kill()
    is_alone = wait("the peer's end", lambda: peer.code is not None, timeout_s=20)
    children = stage.start("decide", size=2)
    stage.send(case.events[half:])
    all_there(decisions, case, children)

    assert is_alone
    assert peer.code != 0
    assert stop(children) == [0, 0]
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
