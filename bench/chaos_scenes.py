"""The scenes of chaos: each plays, compares, and adds its rows to the report.

Owns    how often each thing is done, and how large the inputs are. `chaos_stream`, `chaos_toxic`
        and `chaos_recovery` do it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import chaos_toxic
from bench.chaos_input import Input
from bench.chaos_recovery import recover
from bench.chaos_redis import RedisServer
from bench.chaos_report import Report, Row
from bench.chaos_stage import small_disk
from bench.chaos_stream import ChaosError, Stream, compared, undisturbed
from flows.children import FlowProcess
from operators.hops import RawMessage
from operators.messages import PolicyShard
from tests.system.cluster import Nodes
from tests.system.harness import POLICY, Case, Stage, decided, in_time_order, wait
from tests.system.learned import (
    VALUES,
    answers,
    by_shard,
    counts,
    learned,
    learned_undisturbed,
    newest,
)
from tests.system.toxic import Feed

Scene = Callable[[Report, Nodes], None]

_DISK_MB: Final = 1_024  # 20,000 users take some 50 MB, and RocksDB's files come and go
_EVENTS_A_KILL: Final = 4_000  # of `learn`
_PATIENCE_S: Final = 120.0  # for a process to come back, on a machine that is busy
_TOLERANCE: Final = 1e-9  # of the posterior: sums in another order


def stream(report: Report, nodes: Nodes) -> None:
    """Kill workers, broker and Redis in random order; fill the disk; rescale."""
    few = report.is_short
    plan = {"kill_worker": 20, "kill_broker": 5, "stop_all": 3, "kill_redis": 1, "hang_redis": 1}
    if few:
        plan = {"kill_worker": 3, "kill_broker": 1, "stop_all": 1, "kill_redis": 1}
    sizes = (2, 1) if few else (2, 4, 1)
    source = Input(report.work, n_users=4_000 if few else 20_000, seed=report.seed)
    redis = RedisServer(report.work / "redis")
    try:
        with small_disk(report.work / "stream" / "state", _DISK_MB) as why_not:
            run = Stream(report, nodes, redis, source, "stream")
            try:
                disturb(report, run, plan)
                said = "" if why_not else fill_disk(report, run)
                rescale(report, run, sizes)
                ours = run.finish()
            finally:
                run.close()
            expected = undisturbed(report, nodes, source)
    finally:
        redis.kill()
    n_redis = sum(n for name, n in plan.items() if name.endswith("redis"))
    rows = {
        "workers": Row(f"{plan['kill_worker']} kill -9 of a worker", "stream", note=run.note),
        "broker": Row(f"{plan['kill_broker']} kill -9 of the broker", "stream"),
        "stops": Row(f"{plan['stop_all']} full stops, broker and worker", "stream"),
        "redis": Row(f"{n_redis} outages of Redis", "stream"),
        "disk": Row("the state's disk full", "stream", note=said),
        "scale": Row(f"1 -> {' -> '.join(map(str, sizes))} processes", "stream"),
    }
    rows["workers"].faults += run.faults
    rows["disk"].skipped = why_not
    for kind, row in rows.items():
        row.kills = run.kills[kind]
        report.add(compared(ours, expected, row))


def disturb(report: Report, run: Stream, plan: dict[str, int]) -> None:
    """Do all of a plan in random order."""
    names = [name for name, n in plan.items() for _ in range(n)]
    for number, name in enumerate(report.rng("order").permutation(names).tolist(), start=1):
        report.say(f"{number} of {len(names)}: {name}")
        getattr(run, name)()


def fill_disk(report: Report, run: Stream) -> str:
    """Fill the disk; return what to say of it."""
    report.say("filling the disk")
    said = run.fill_disk()
    return f"started again after: {said}" if said else "waited until there was room"


def rescale(report: Report, run: Stream, sizes: Sequence[int]) -> None:
    """Stop, and start with each number of processes."""
    for size in sizes:
        report.say(f"rescaling to {size}")
        run.rescale(size)


def learn(report: Report, nodes: Nodes) -> None:
    """Kill `learn` under load; what it knows in the end is what an undisturbed run learns."""
    n_kills = 1 if report.is_short else 6
    work = _folder(report, "learn")
    case = learn_case(report, n_events=_EVENTS_A_KILL * (n_kills + 1))
    messages = answers(case)
    truth = learned_undisturbed(messages, work / "undisturbed")
    report.say(f"learn: {len(messages):,} decisions and feedback, {n_kills} kills")
    stage = Stage(nodes.bootstrap, "learn.", work, values=VALUES)
    try:
        all_messages = in_time_order(messages, case.events)
        rows = learn_through_kills(report, stage, all_messages, n_kills, counts(truth))
    finally:
        stage.close()
    ours, theirs = learned([*newest(rows).values()]), learned(truth)
    parts = ((ours.mean, theirs.mean), (ours.covariance, theirs.covariance))
    error = max(float(np.abs(one - other).max()) for one, other in parts)
    row = Row(f"{n_kills} kill -9 of learn", "learn", kills=n_kills)
    row.expected, row.found = theirs.n, ours.n
    row.lost, row.twice = max(theirs.n - ours.n, 0), max(ours.n - theirs.n, 0)
    row.is_state_equal = error < _TOLERANCE
    row.note = f"rewards; the posterior differs by {error:.0e} at most"
    report.add(row)


def learn_case(report: Report, n_events: int) -> Case:
    """Return events, and the decisions that follow from them in this process."""
    source = Input(report.work, n_users=600, seed=report.seed)
    while len(source.events) < n_events:
        source.more()
    case = source.case._replace(events=source.events + source.closing())
    expected = decided(case.world, case.profiles, case.events, report.work / "learn" / "decide")
    return case._replace(expected=expected)


def learn_through_kills(
    report: Report,
    stage: Stage,
    messages: list[RawMessage],
    n_kills: int,
    expected: dict[str, int],
) -> list[PolicyShard]:
    """Kill `learn` while it learns; return the rows of the policy that it wrote."""
    rng = report.rng("learn")
    policy = stage.collect(POLICY, by_shard)
    feed = Feed(stage, messages, report.pace)
    try:
        for number in range(n_kills):
            [child] = stage.start("learn")
            n_rows = len(policy.rows)
            feed.let((number + 1) / (n_kills + 1))
            _must("a row of the policy", lambda n=n_rows: len(policy.rows) > n, child)  # type: ignore[misc]
            time.sleep(rng.uniform(0.0, 1.0))
            child.kill()
        [child] = stage.start("learn")
        feed.finish()
        wait("all rewards", lambda: counts(policy.rows) == expected, [child], _PATIENCE_S)
        child.stop()
    finally:
        feed.close()
    return policy.close()


def _must(what: str, is_so: Callable[[], bool], child: FlowProcess) -> None:
    if not wait(what, is_so, [child], _PATIENCE_S):
        raise ChaosError(f"waited {_PATIENCE_S:.0f} s for {what}; see {child.log}")


def three_nodes(report: Report, _nodes: Nodes) -> None:
    """Play a cluster of three nodes that goes wrong."""
    _add(report, chaos_toxic.three_nodes(_folder(report, "three"), report.seed, report.say))


def zombie(report: Report, _nodes: Nodes) -> None:
    """Play a process that is cut off, replaced, and comes back."""
    _add(report, chaos_toxic.zombie(_folder(report, "zombie"), report.seed, report.say))


def recovery(report: Report, nodes: Nodes) -> None:
    """Kill `decide` with a million users of state, and time what follows."""
    report.add(recover(_folder(report, "recovery"), nodes, report.say))


def _folder(report: Report, name: str) -> Path:
    folder = report.work / name
    folder.mkdir()
    return folder


def _add(report: Report, found: dict[str, Any]) -> None:
    row = Row(found["scene"], found["scene"], skipped=found.get("skipped", ""))
    if not row.skipped:
        row.kills, row.expected, row.found = (
            found[key] for key in ("kills", "expected", "decisions")
        )
        row.lost, row.twice, row.changed = (found[key] for key in ("lost", "twice", "other_bytes"))
        row.is_state_equal, row.faults = found["state_equal"], found["faults"]
        row.note = found["notes"]
    report.add(row)


SCENES: Final[dict[str, Scene]] = {
    "stream": stream,
    "learn": learn,
    "three_nodes": three_nodes,
    "zombie": zombie,
    "recovery": recovery,
}
SHORT: Final = ("stream", "learn")
