"""A toxic cluster, for `make chaos`: nodes that go, and a process that comes back from the dead.

Reads   `tests.system.toxic`, which plays the scenes; the tests play them shorter.
Emits   a dictionary for each scene: decisions and state beside those of a run in peace.

The undisturbed run comes first, on the same cluster, from topics of its own. Half of all events
come during the outage or the cut.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench import chaos_state
from bench.chaos_input import TRIGGERS, Input
from bench.chaos_stream import run_to_end
from tests.system import toxic
from tests.system.cluster import Island, Nodes
from tests.system.harness import DECISIONS, Case, Stage, by_id

Say = Callable[[str], None]
Play = Callable[[Stage, Case], toxic.Scene]

_PACE: Final = 2_000  # events a second
_N_USERS: Final = 4_000


def three_nodes(work: Path, seed: int, say: Say, *, outage_s: float = 20.0) -> dict[str, Any]:
    """Play: of three nodes one killed, leaders moved, two stopped for `outage_s`."""
    nodes = Nodes(work / "kafka", 3)

    def play(stage: Stage, case: Case) -> toxic.Scene:
        return toxic.three_nodes(stage, nodes, case, pace=_PACE, outage_s=outage_s, say=say)

    try:
        scene, found = _beside_peace(nodes, work, _case(work, seed, outage_s), play, say)
    finally:
        nodes.close()
    return {
        "scene": "3 nodes: one killed, leaders moved, two stopped",
        **found,
        "faults": [f"decide ended with {code}" for code in scene.codes if code],
        "notes": f"{scene.n_moved} leaders moved, {outage_s:.0f} s without min.insync.replicas",
    }


def zombie(work: Path, seed: int, say: Say, *, cut_s: float = 20.0) -> dict[str, Any]:
    """Play: a process cut off from the broker for `cut_s`, replaced meanwhile, then back."""
    name = "a process cut off, replaced, and back"
    try:
        island = Island()
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        return {"scene": name, "skipped": f"no network namespace: {why.strip()}"}

    def play(stage: Stage, case: Case) -> toxic.Scene:
        how = toxic.unplugged(stage, island)
        return toxic.zombie(stage, case, how, pace=_PACE, cut_s=cut_s, say=say)

    try:
        nodes = Nodes(work / "kafka", host=island.host)
        try:
            scene, found = _beside_peace(nodes, work, _case(work, seed, cut_s), play, say)
        finally:
            nodes.close()
    finally:
        island.close()
    faults = [f"decide ended with {code}" for code in scene.codes[1:] if code]
    if not toxic.is_fenced(scene):
        faults.append(f"the zombie ended with {scene.codes[0]}: {scene.last_words[-200:]}")
    notes = f"cut off for {cut_s:.0f} s; told that another has taken over, it ended"
    return {"scene": name, **found, "faults": faults, "notes": notes}


def _case(work: Path, seed: int, cut_s: float) -> Case:
    """Return an input of which half is as long as the cut."""
    source = Input(work.parent, n_users=_N_USERS, seed=seed)
    while len(source.events) < 2 * _PACE * cut_s:
        source.more()
    source.closing()
    return source.case._replace(events=source.events)


def _beside_peace(
    nodes: Nodes, work: Path, case: Case, play: Play, say: Say
) -> tuple[toxic.Scene, dict[str, Any]]:
    """Play a scene; return it, and what it left beside what an undisturbed run leaves."""
    with _stage(nodes, work / "peace") as peace:
        case, expected_state = _in_peace(peace, case, say)
    with _stage(nodes, work / "toxic") as stage:
        scene = play(stage, case)
        run_to_end(stage)
        state = chaos_state.of_decide(stage.state)
    verdict = scene.verdict
    return scene, {
        "kills": scene.kills,
        "expected": len(case.expected),
        "decisions": verdict.n,
        "lost": verdict.lost,
        "twice": verdict.twice,
        "other_bytes": verdict.unknown + verdict.other_bytes,
        "state_equal": len(state) > 0 and not chaos_state.differences(state, expected_state),
    }


def _in_peace(stage: Stage, case: Case, say: Say) -> tuple[Case, dict[chaos_state.Key, bytes]]:
    """Decide undisturbed; return the case with its decisions, and the state."""
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    stage.send(case.events)
    run_to_end(stage)
    expected = dict(decisions.close())
    say(f"in peace {len(case.events):,} events give {len(expected):,} decisions")
    return case._replace(expected=expected), chaos_state.of_decide(stage.state)


@contextmanager
def _stage(nodes: Nodes, work: Path) -> Iterator[Stage]:
    """Hold topics and children of one run."""
    work.mkdir()
    prefix, copies = f"{work.name}.", min(3, len(nodes.all))
    stage = Stage(nodes.bootstrap, prefix, work, replication=copies, values=TRIGGERS)
    try:
        yield stage
    finally:
        stage.close()
