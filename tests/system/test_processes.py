"""`decide` as a cluster: whatever the number of processes, the same decisions, each once.

A cluster on one host is supervised; on many hosts each process is started by what is there.
"""

import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from flows.children import FlowProcess, kafka_variables
from tests.system.harness import (
    DECISIONS,
    PACE,
    POLICY,
    Case,
    Collector,
    Stage,
    Verdict,
    by_id,
    judge,
    stop,
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


@pytest.fixture
def stage(one_stage: Stage) -> Stage:
    """One broker: what is tested here lies on our side of it."""
    return one_stage


_STOP_S = 120.0  # more than `Stage.supervise` gives its processes


def all_there(decisions: Collector, case: Case, children: list[FlowProcess]) -> None:
    """Wait for as many decisions as are expected."""
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), children)


def more_than(decisions: Collector, n: int, child: FlowProcess) -> None:
    """Wait for a new decision."""
    assert wait("a new decision", lambda: len(decisions.rows) > n, [child])


def right(case: Case) -> Verdict:
    """Return the verdict on an output that no kill and no start changed."""
    return Verdict(len(case.expected), lost=0, twice=0, unknown=0, other_bytes=0)


def is_gone(pid: int) -> bool:
    """Say whether a process has ended, be it that nobody has waited for it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_two_processes_decide_what_one_does(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)

    child = stage.supervise("decide", 2)
    stage.send(case.events)
    all_there(decisions, case, [child])
    said = child.last_words(1_000_000)  # SIGUSR1 has each process write its threads' stacks

    assert all(f"[{process}] Current thread" in said for process in (0, 1))
    assert child.stop(_STOP_S) == 0
    assert judge(decisions.close(), case.expected) == right(case)


def test_from_one_process_to_two_to_four_and_back_changes_no_byte(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    sizes = (1, 2, 4, 1)
    cuts = [len(case.events) * part // len(sizes) for part in range(len(sizes) + 1)]

    codes = []
    for size, (first, last) in zip(sizes, pairwise(cuts), strict=True):
        n_rows = len(decisions.rows)
        child = stage.supervise("decide", size)
        stage.send(case.events[first:last], PACE)
        more_than(decisions, n_rows, child)
        if last == len(case.events):
            all_there(decisions, case, [child])
        codes.append(child.stop(_STOP_S))

    assert codes == [0, 0, 0, 0]
    assert judge(decisions.close(), case.expected) == right(case)


def test_a_killed_process_is_started_again_with_its_peer(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    child = stage.supervise("decide", 2)
    stage.send(case.events[:half], PACE)
    more_than(decisions, 0, child)
    first = child.cluster
    os.kill(first[1], signal.SIGKILL)
    stage.send(case.events[half:], PACE)
    child.wait_ready(90, times=2)
    all_there(decisions, case, [child])

    assert set(first).isdisjoint(child.cluster)
    assert all(map(is_gone, first))
    assert child.stop(_STOP_S) == 0
    assert judge(decisions.close(), case.expected) == right(case)


def test_a_killed_supervisor_takes_its_processes_along(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    first = stage.supervise("decide", 2)
    stage.send(case.events[:half], PACE)
    more_than(decisions, 0, first)
    pids = first.cluster
    first.kill()
    second = stage.supervise("decide", 2)  # at once: a host's own supervisor does not wait
    stage.send(case.events[half:], PACE)
    all_there(decisions, case, [second])

    assert wait("their end", lambda: all(map(is_gone, pids)))
    assert second.stop(_STOP_S) == 0
    assert judge(decisions.close(), case.expected) == right(case)


def test_a_stopped_cluster_leaves_nothing_to_replay(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    first = stage.supervise("decide", 2)
    stage.send(case.events[:half])
    wait("the first decisions", lambda: len(decisions.rows) > 50, [first])
    pids = first.cluster
    code = first.stop(_STOP_S)
    are_gone = all(map(is_gone, pids))
    n_before = len(decisions.rows)
    second = stage.supervise("decide", 2)
    stage.send(case.events[half:])
    all_there(decisions, case, [second])
    skipped = [total(second, "pushflow_sink_skipped_total", process=i) for i in range(2)]

    assert (code, second.stop(_STOP_S)) == (0, 0)
    assert are_gone
    assert n_before < len(case.expected)
    assert skipped == [0, 0]
    assert judge(decisions.close(), case.expected) == right(case)


def test_a_cluster_without_topics_says_how_to_mend_it_and_ends(
    stage: Stage, tmp_path: Path
) -> None:
    nowhere = {"PUSHFLOW_KAFKA__TOPIC_PREFIX": "nowhere."}
    child = FlowProcess("decide", kafka_variables(stage.client) | nowhere, tmp_path, processes=2)

    assert wait("the end", lambda: child.code is not None)
    assert child.code == 78
    assert "pushflow topics create" in child.log.read_text()


def test_a_process_that_is_asked_to_stop_alone_has_all_stop(case: Case, stage: Stage) -> None:
    stage.fill_tables(case)
    child = stage.supervise("decide", 2)
    pids = child.cluster
    os.kill(pids[1], signal.SIGTERM)

    assert wait("the end", lambda: child.code is not None)
    assert child.code == 0
    assert all(map(is_gone, pids))


def test_three_processes_of_learn_learn_what_one_does(
    case: Case, stage: Stage, tmp_path: Path
) -> None:
    messages = answers(case)
    expected = learned_undisturbed(messages, tmp_path / "undisturbed")
    policy = stage.collect(POLICY, by_shard)
    half = len(messages) // 2

    child = stage.supervise("learn", 3, **VALUES)
    stage.send(messages[:half], PACE)
    assert wait("a row", lambda: len(policy.rows) > 0, [child])
    os.kill(child.cluster[2], signal.SIGKILL)
    stage.send(messages[half:], PACE)
    child.wait_ready(90, times=2)
    wait("all rewards", lambda: counts(policy.rows) == counts(expected), [child])

    assert child.stop(_STOP_S) == 0
    found, truth = learned([*newest(policy.close()).values()]), learned(expected)
    assert found.n == truth.n > 300
    assert np.abs(found.mean - truth.mean).max() < 1e-9
    assert np.abs(found.covariance - truth.covariance).max() < 1e-9


def test_a_killed_process_without_a_supervisor_takes_its_peer_along(
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
    assert judge(decisions.close(), case.expected) == right(case)
