"""The users' state that a stopped `decide` leaves behind, key by key, to be compared byte for byte.

Reads   the checkpoints that Bytewax's recovery store names, as the next start would.
"""

from pathlib import Path

from flows.decide import STORES
from operators import checkpoints
from operators.incarnations import checkpoints_of, newest
from operators.recovery import resume_snapshots

Key = tuple[str, str, str]  # step id, shard, the key within the shard


def of_decide(state: Path) -> dict[Key, bytes]:
    """Return all users and all sends of a state directory that no process has open."""
    home, stores = state / "decide", STORES["decide"]
    store = newest(home)
    if store is None:
        raise FileNotFoundError(f"no recovery store in {home}")
    _epoch, snapshots = resume_snapshots(store)
    return {
        (step, ref.shard, key): value
        for checkpoint, refs in checkpoints_of(home, snapshots, stores).items()
        for step, ref in refs
        for key, value in checkpoints.rows(checkpoint, ref.shard)
    }


def differences(found: dict[Key, bytes], expected: dict[Key, bytes]) -> list[Key]:
    """Return the keys whose state is not the same, in order."""
    keys = found.keys() | expected.keys()
    return sorted(key for key in keys if found.get(key) != expected.get(key))
