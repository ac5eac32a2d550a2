"""Looking into the state of a flow: what is in it, one user's, all of it, is it whole.

Reads   the newest recovery store, the checkpoints that it names, and Kafka for lags if asked.
Emits   plain values for `flows.state_commands` to print.
Owns    how each store's states are unpacked, and shown as JSON.

All of it works on links of its own (`operators.savepoints.hold`), so the flow may run meanwhile.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from flows.decide import STORES
from flows.settings import Settings
from operators import (
    attribution_state,
    checkpoints,
    fatigue,
    interest,
    item_contents,
    item_stats,
    recovery,
    user_state,
)
from operators.codec import shard_of
from operators.incarnations import all_stores, checkpoints_of, number_of
from operators.lineage import CheckpointError, owner_of
from operators.savepoints import Held, hold
from operators.shards import SnapshotRef

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "users": user_state.decode_state,
    "pushes": fatigue.decode_state,
    "attribution": attribution_state.decode_state,
    "items": item_stats.decode_state,
    "contents": item_contents.decode_state,
    "interest": interest.decode_state,
}
_OF_USERS = {"users", "pushes", "attribution"}  # stores whose keys are user ids


class Row(NamedTuple):
    """One key's state, packed."""

    store: str
    shard: str
    key: str
    packed: bytes


def inspect(settings: Settings, flow: str) -> dict[str, Any]:
    """Return what is in a flow's state; reads all of it, about a second for a million keys."""
    home = _home(settings, flow)
    with hold(home, STORES[flow]) as held:
        return {
            "flow": flow,
            "epoch": held.epoch,
            "owner": owner_of(home / "owner"),
            "starts": [_start(store) for store in all_stores(home)],
            "stores": _stores(held, flow),
            "sources": _sources(held),
            "sinks": _sinks(held),
        }


def _start(store: Path) -> dict[str, Any]:
    held = recovery.load(store)
    return {
        "run_id": store.name,
        "number": number_of(store),
        "epoch": held.epoch,
        "oldest_epoch": held.oldest_epoch,
    }


def _stores(held: Held, flow: str) -> dict[str, Any]:
    found = {
        store: {"shards": 0, "keys": 0, "packed_bytes": 0, "disk_bytes": 0}
        for store in STORES[flow].values()
    }
    for refs in checkpoints_of(held.home, held.snapshots, STORES[flow]).values():
        for step, _ref in refs:
            found[STORES[flow][step]]["shards"] += 1
    for row in rows(held, flow):
        found[row.store]["keys"] += 1
        found[row.store]["packed_bytes"] += len(row.packed)
    for store, values in found.items():
        files = {f.stat().st_ino: f.stat() for f in (held.home / "shards" / store).rglob("*.sst")}
        values["disk_bytes"] = sum(status.st_size for status in files.values())
    return found


def _sources(held: Held) -> dict[str, dict[str, int]]:
    """Return the next offset by topic and partition."""
    offsets: dict[str, dict[str, int]] = {}
    for step, parts in held.snapshots.items():
        if _is_source(step):
            for part, (positions, _decoder) in parts.items():
                for topic, offset, *_ in positions:
                    offsets.setdefault(topic, {})[part] = offset
    return offsets


def _is_source(step: str) -> bool:
    return step.endswith("source")  # "decide.source", "catalog.events_source"


def _sinks(held: Held) -> dict[str, dict[str, Any]]:
    """Return what each sink's snapshot says, by step and partition: the next offset."""
    stateful = set().union(*STORES.values()) | {"learn.learner"}
    return {
        step: dict(parts)
        for step, parts in held.snapshots.items()
        if step not in stateful and not _is_source(step)
    }


def lags(settings: Settings, offsets: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return how far each offset is behind its partition's end."""
    from operators.kafka_client import consumer_settings, open_consumer, watermarks  # noqa: PLC0415

    with open_consumer(consumer_settings(settings.kafka.client())) as consumer:
        return {
            topic: {
                part: watermarks(consumer, topic, int(part))[1] - offset
                for part, offset in parts.items()
            }
            for topic, parts in offsets.items()
        }


def user(settings: Settings, flow: str, user_id: str) -> dict[str, Any]:
    """Return a user's states by store; a store that does not know the user is left out."""
    shard = shard_of(user_id, settings.state.shards)
    found: dict[str, Any] = {}
    with hold(_home(settings, flow), STORES[flow]) as held:
        for path, refs in checkpoints_of(held.home, held.snapshots, STORES[flow]).items():
            for step, ref in refs:
                store = STORES[flow][step]
                if store in _OF_USERS and ref.shard == shard:
                    packed = checkpoints.value(path, shard, user_id)
                    if packed is not None:
                        found[store] = as_json(DECODERS[store](packed))
    return found


def rows(held: Held, flow: str) -> Iterator[Row]:
    """Yield all states, by store, shard and key."""
    found = checkpoints_of(held.home, held.snapshots, STORES[flow])
    named = [(STORES[flow][step], ref, path) for path, refs in found.items() for step, ref in refs]
    for store, ref, path in sorted(named):
        for key, packed in checkpoints.rows(path, ref.shard):
            yield Row(store, ref.shard, key, packed)


def dump(settings: Settings, flow: str, file: Path) -> int:
    """Write all states as JSON lines {store, shard, key, state}; return how many."""
    n_rows = 0
    with hold(_home(settings, flow), STORES[flow]) as held, file.open("wb") as out:
        for store, shard, key, packed in rows(held, flow):
            state = as_json(DECODERS[store](packed))
            line = {"store": store, "shard": shard, "key": key, "state": state}
            out.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            n_rows += 1
    return n_rows


def verify(settings: Settings, flow: str) -> dict[str, Any]:
    """Read every byte and unpack every state; return counts, and what is wrong."""
    counts = dict.fromkeys(STORES[flow].values(), 0)
    wrong: list[str] = []
    epoch = 0
    try:
        with hold(_home(settings, flow), STORES[flow]) as held:
            epoch = held.epoch
            found = checkpoints_of(held.home, held.snapshots, STORES[flow])
            for path, refs in found.items():
                wrong += _wrong_checkpoint(path, refs, STORES[flow], counts)
    except CheckpointError as error:
        wrong.append(str(error))
    return {"flow": flow, "epoch": epoch, "keys": counts, "wrong": wrong}


def _wrong_checkpoint(
    path: Path, refs: list[tuple[str, SnapshotRef]], stores: dict[str, str], counts: dict[str, int]
) -> Iterator[str]:
    try:
        checkpoints.check(path)
        for step, ref in refs:
            store = stores[step]
            for key, packed in checkpoints.rows(path, ref.shard):
                counts[store] += 1
                if reason := _wrong_state(store, packed):
                    yield f"{store}, shard {ref.shard}, key {key}: {reason}"
    except CheckpointError as error:
        yield str(error)


def _wrong_state(store: str, packed: bytes) -> str:
    try:
        DECODERS[store](packed)
    except Exception as error:  # whatever a decoder makes of bytes that are not its own
        return f"{type(error).__name__}: {error}"
    return ""


def as_json(state: Any) -> Any:
    """Return a state as values that JSON has, fields by name."""
    return orjson.loads(orjson.dumps(state, default=_plain, option=orjson.OPT_NON_STR_KEYS))


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {field: getattr(value, field) for field in value.__struct_fields__}
    if hasattr(value, "tolist"):  # arrays, NumPy's and Python's
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__slots__"):
        return {field: getattr(value, field) for field in value.__slots__}
    if hasattr(value, "__dict__"):
        return vars(value)
    return list(value)


def _home(settings: Settings, flow: str) -> Path:
    return settings.state.directory / flow
