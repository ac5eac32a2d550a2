"""Looking into a checkpoint of users' state: is it whole, and what does it hold.

Reads   directories that `operators.state` made.
Owns    what *whole* means without reading all of it.

Opened read-only, RocksDB itself finds tables that are missing or cut short. It does not find a
manifest that was cut short: it would open with fewer tables, as an older state. A checkpoint holds
just the tables that its manifest names, so one more beside them tells. A byte that changed in the
middle of a table shows when its block is read, by the block's checksum: `rows` reads all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocksdict import AccessType, Options, Rdict

from operators.lineage import CheckpointError


class CorruptionError(RuntimeError):
    """Bytes of a database are not what was written."""


def check(checkpoint: Path) -> None:
    """Raise `CheckpointError` unless the checkpoint is there and whole; a few milliseconds."""
    with _opened(checkpoint) as database:
        named = {(Path(f["name"]).name, f["size"]) for f in database.live_files()}
    found = {(file.name, file.stat().st_size) for file in checkpoint.glob("*.sst")}
    if named != found:
        odd = ", ".join(sorted(name for name, _ in named ^ found))
        raise CheckpointError(f"checkpoint {checkpoint} is torn: its manifest is not of {odd}")


def rows(checkpoint: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    """Yield all keys of a shard with their packed states, in order.

    Raises
    ------
    CheckpointError
        When something in it cannot be read.
    """
    prefix, end = key_range(shard)
    with _opened(checkpoint) as database:
        for key, value in scan(database, prefix, end):
            yield key[len(prefix) :].decode(), value


def key_range(shard: str) -> tuple[bytes, bytes]:
    """Return the first key that a shard may have, and the first after its last."""
    return f"{shard}|".encode(), f"{shard}}}".encode()  # "}" is the byte after "|"


def scan(database: Any, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of an open database from `begin` to before `end`.

    Raises
    ------
    CorruptionError
        When a block cannot be read. rocksdict's own iterator then ends as if there were no more.
    """
    last = begin
    for key, value in database.items(from_key=begin):
        if key >= end:
            return
        last = key
        yield key, value
    # Either that was the last row of all, or the next one cannot be read. Going there again
    # finds out, and costs one seek a scan.
    probe = database.iter()
    probe.seek(last)
    if probe.valid() and probe.key() == last:
        probe.next()
    try:
        probe.status()
    except Exception as error:  # rocksdict raises nothing narrower
        raise CorruptionError(str(error)) from error


def value(checkpoint: Path, shard: str, key: str) -> bytes | None:
    """Return a key's packed state, or None."""
    with _opened(checkpoint) as database:
        found: bytes | None = database.get(f"{shard}|{key}".encode())
        return found


@contextmanager
def _opened(checkpoint: Path) -> Iterator[Any]:
    if not checkpoint.is_dir():
        raise CheckpointError(f"checkpoint {checkpoint} is missing")
    options = Options(raw_mode=True)
    options.create_if_missing(False)
    database: Any = None
    try:
        database = Rdict(str(checkpoint), options, access_type=AccessType.read_only(False))
        yield database
    except CheckpointError:
        raise
    except Exception as error:  # rocksdict raises nothing narrower
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"checkpoint {checkpoint} is torn: {reason}") from error
    finally:
        if database is not None:
            database.close()
