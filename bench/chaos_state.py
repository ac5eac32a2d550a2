"""The users' state that a stopped `decide` leaves behind, key by key, to be compared byte for byte.

Reads   the checkpoints that Bytewax's recovery store names, as the next start would.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocksdict import AccessType, Options, Rdict

from operators.recovery import resume_snapshots

Key = tuple[str, str, str]  # step id, shard, the key within the shard
STEPS = {"decide.users": "users", "decide.decide": "pushes"}  # step id -> its store


def of_decide(state: Path) -> dict[Key, bytes]:
    """Return all users and all sends of a state directory that no process has open."""
    home = state / "decide"
    _epoch, snapshots = resume_snapshots(_recovery_store(home / "bytewax"))
    found: dict[Key, bytes] = {}
    for step, store in STEPS.items():
        for ref in snapshots.get(step, {}).values():
            checkpoint = home / "shards" / store / ref.lineage / str(ref.number)
            for key, value in _rows(checkpoint, ref.shard):
                found[step, ref.shard, key] = value
    return found


def _recovery_store(home: Path) -> Path:
    """Return the store of the last start."""
    files = sorted(home.rglob("part-*.sqlite3"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no recovery store in {home}")
    return files[-1].parent


def _rows(checkpoint: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    database: Any = Rdict(
        str(checkpoint), Options(raw_mode=True), access_type=AccessType.read_only(False)
    )
    prefix = f"{shard}|".encode()
    for key, value in database.items(from_key=prefix):
        if not key.startswith(prefix):
            break
        yield key[len(prefix) :].decode(), value
    database.close()


def differences(found: dict[Key, bytes], expected: dict[Key, bytes]) -> list[Key]:
    """Return the keys whose state is not the same, in order."""
    keys = found.keys() | expected.keys()
    return sorted(key for key in keys if found.get(key) != expected.get(key))
