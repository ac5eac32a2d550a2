"""A small state as one release left it on disk, with the messages to go on from it.

    git worktree add /tmp/release TAG && cp tests/golden_state.py /tmp/release/tests/
    cd /tmp/release && python -m tests.golden_state PATH/OF/CHECKOUT/tests/data/state-v1.tar.gz

Run at the release whose bytes are wanted: both flows read the first half of their messages with
recovery on, and stop. `tests/flows/test_old_state.py` goes on from there with the code of today.
The archive carries all that this takes (messages, items, statistics, campaigns), so that nothing
in it follows later changes of the simulation.

Owns    what is in the archive. `PARTS` says which states a release keeps, and in which directory.
"""

import argparse
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from bytewax.testing import TestingSink, TestingSource

from flows import learn
from flows.settings import Settings
from flows.simulate import Population
from flows.tables import Tables
from operators import attribution_state, fatigue, item_stats, user_state
from operators.hops import RawMessage
from operators.messages import Decision, Feedback, Item, ItemStats
from operators.shards import SnapshotRef
from operators.state import StateStore
from tests.flows import world as w

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
PARTS: dict[str, dict[str, Any]] = {
    "decide": {"users": user_state, "pushes": fatigue},
    "learn": {"attribution": attribution_state, "items": item_stats},
}
POLL = 20  # messages a poll
LEARN_CLOCK = {"clock_kinds": (Decision, Feedback)}


def settings(root: Path, run_id: str) -> Settings:
    """Return the settings of a run on the state in `root`."""
    return w.settings(root / "state", run_id=run_id, campaigns_file=str(root / "campaigns.yaml"))


def read(root: Path, name: str, kind: Any) -> Any:
    """Return one file of the archive."""
    return msgspec.msgpack.decode((root / name).read_bytes(), type=kind)


def tables(root: Path, of: Settings) -> Tables:
    """Return the tables as they stood, without a model."""
    found = Tables(of, clock=lambda: 0.0)
    for item in read(root, "items", list[Item]):
        found.catalogue.apply(item.item_id, item)
    for row in read(root, "stats", list[ItemStats]):
        found.catalogue.apply_stats(row)
    found.apply_changes()
    return found


def polls(root: Path, flow: str) -> list[Any]:
    """Return all messages of a flow, decoded, in polls."""
    options = LEARN_CLOCK if flow == "learn" else {}
    return w.merged(w.polls(read(root, flow, list[RawMessage]), POLL, **options))


def run(root: Path, flow: str, run_id: str, steps: list[Any]) -> list[Any]:
    """Run a flow on from where the state in `root` stands; return what it wrote."""
    of, recovery = settings(root, run_id), root / f"recovery-{flow}"
    if flow == "decide":
        return w.run_decide(of, tables(root, of), steps, recovery=recovery)
    policy: list[tuple[str, Any]] = []
    stats: list[tuple[str, Any]] = []
    ends = learn.Ends(TestingSource(steps), TestingSink(policy), TestingSink(stats))
    w.run_with_recovery(learn.build(of, ends), recovery)
    newest = dict(policy + stats)  # of each key
    return [(key, record.value) for key, record in sorted(newest.items())]


def states(
    root: Path, flow: str, run_id: str, *, is_packed: bool = False
) -> dict[str, dict[str, Any]]:
    """Return what a run of one worker left in its last checkpoint, by part and key.

    `is_packed` gives the bytes as they stand on disk.
    """
    found: dict[str, dict[str, Any]] = {}
    for part, codec in PARTS[flow].items():
        home = root / "state" / flow / "shards"
        lineage = home / part / f"{run_id}-0"
        newest = max(int(path.name) for path in lineage.iterdir() if path.name.isdigit())
        shards = {line.split()[1] for line in (lineage / "shards").read_text().splitlines()}
        store: StateStore[Any] = StateStore(
            home,
            part,
            encode=codec.encode_state,
            decode=bytes if is_packed else codec.decode_state,
            new=codec.new_state,
            run_id=f"reader-of-{run_id}",
            n_workers=1,
        )
        refs = [SnapshotRef(shard, lineage.name, newest) for shard in sorted(shards)]
        opened = [store.open_shard(ref.shard, ref) for ref in refs]
        found[part] = {key: state for shard in opened for key, state in shard.scan()}
        store.close()
    return found


def _write(root: Path, name: str, value: Any) -> None:
    (root / name).write_bytes(msgspec.msgpack.encode(value))


def _inputs(root: Path) -> None:
    """Make the messages of both flows: what users did, were sent, and answered."""
    population = Population(n_users=14, n_items=12, seed=5, start_ms=START_MS)
    events = population.advance(START_MS + 20 * HOUR_MS)
    shutil.copy(w.CAMPAIGNS, root / "campaigns.yaml")
    first = w.settings(root / "first")
    _write(root, "items", population.items())
    _, stats = w.run_learn(first, w.merged(w.polls(w.messages_of(events, "events"), 500)))
    _write(root, "stats", stats)
    messages = w.messages_of(population.profiles(), "users") + w.messages_of(events, "events")
    _write(root, "decide", messages)
    written = w.run_decide(first, tables(root, first), polls(root, "decide"))
    decisions = [msgspec.json.decode(value, type=Decision) for _, value in written]
    feedback = _feedback(population, decisions)
    told = sorted(
        [(e.time_ms, 0, e) for e in events]
        + [(d.decided_at, 1, d) for d in decisions if d.outcome == "send"]
        # Every other feedback comes before its decision, and waits for it.
        + [(f.time_ms - n % 2 * 5 * HOUR_MS, 2, f) for n, f in enumerate(feedback)],
        key=lambda row: row[:2],
    )
    topics = ("events", "decisions", "feedback")
    _write(
        root,
        "learn",
        [w.messages_of([row], topics[kind])[0] for _, kind, row in told],
    )


def _feedback(population: Population, decisions: list[Decision]) -> list[Feedback]:
    out: list[Feedback] = []
    for one in sorted(decisions, key=lambda d: d.decided_at):
        out += population.respond(one, one.decided_at)
    out += population.advance_feedback(START_MS + 40 * HOUR_MS)
    return sorted({f.feedback_id: f for f in out}.values(), key=lambda f: f.time_ms)


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden_state")
    parser.add_argument("archive", type=Path)
    path = parser.parse_args().archive
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _inputs(root)
        for flow in ("decide", "learn"):
            steps = polls(root, flow)
            written = run(root, flow, "golden", steps[: len(steps) // 2])
            print(f"{flow}: {len(steps)} polls, {len(written)} rows written by the first half")
        shutil.rmtree(root / "first")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz", compresslevel=9) as archive:
            for file in sorted(root.iterdir()):
                archive.add(file, file.name, filter=_unowned)
    print(f"{path}: {path.stat().st_size / 1024:.1f} KB")


def _unowned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    # `live` is never resumed from, and half of the size.
    return None if "/live" in entry.name else entry


if __name__ == "__main__":
    main()
