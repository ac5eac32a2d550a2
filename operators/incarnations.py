"""Incarnations: each start of a cluster takes over the state, and what is torn is left behind.

Reads   the recovery store of the start before, and the checkpoints that it names.
Emits   a recovery store of this start's own, that resumes from an epoch that is whole.
Owns    how the state changes hands, so that a crash at any moment leaves one that can be taken.

    <home>/owner                       run id of the one that may write: `operators.lineage` looks
    <home>/bytewax/<run id>/           the recovery store of one start, and its number in `number`
    <home>/bytewax/.<run id>/          one that is being copied; means nothing after a crash
    <home>/bytewax/part-*.sqlite3      of the first release, which had one store for all starts
    <home>/shards/<store>/<lineage>/   checkpoints

A start names itself owner, copies the newest store, and renames the copy into place. From then on
the older store takes no part: a run that was cut off and goes on writes to its own store and, as
it is no longer the owner, touches no checkpoint. The newest is the one of the highest number, and
never the one that was written to last. Two are kept: the newest, and what it was copied from.

Before the rename the checkpoints that a resume would ask for are looked at. Is one torn or
missing, the copy is rewound to the newest epoch whose checkpoints are all whole, as far as epochs
are still held (see `retain` of `operators.state`): sources read again from there, and sinks know
what they wrote since.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from operators import checkpoints, recovery
from operators.lineage import (
    CheckpointError,
    Fenced,
    check_format,
    owner_of,
    sync_directory,
    write_atomic,
)
from operators.recovery import Snapshots
from operators.shards import SnapshotRef

log = logging.getLogger("pushflow")

_NUMBER: Final = "number"
_HELD: Final = ".held-"  # begins the name of links that a tool made, and had no time to remove
_LEFTOVER: Final = "."  # begins the name of a copy that is not whole


def take_over(
    home: Path,
    run_id: str,
    stores: Mapping[str, str],
    make: Callable[[Path], None],
    *,
    fault: Callable[[str], None] = lambda _: None,
) -> Path:
    """Make the state ours; return the recovery store to resume from.

    Parameters
    ----------
    home
        Directory of the flow's state.
    run_id
        Of this start of the cluster; a second call with the same one changes nothing.
    stores
        Directory in `home/shards` by the id of the step whose state it holds.
    make
        Makes an empty recovery store in an empty directory, where there is none to copy.
    fault
        Called with the name of each point that a crash test aims at.

    Raises
    ------
    CheckpointError
        When no epoch that is still held is whole, or a newer pushflow wrote the state.
    Fenced
        When another start took over at the same time.
    """
    place = home / "bytewax"
    target = place / run_id
    if target.is_dir():
        return target
    place.mkdir(parents=True, exist_ok=True)
    (home / "shards").mkdir(exist_ok=True)
    check_format(home / "shards")
    write_atomic(home / "owner", f"{run_id}\n")
    fault("owned")
    for leftover in [*place.glob(f"{_LEFTOVER}*"), *home.glob(f"{_HELD}*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    before = newest(home)
    try:
        fresh = _copied(place / f"{_LEFTOVER}{run_id}", before, home, stores, make)
        fault("copied")
        fresh.rename(target)
    except OSError:  # another start may have cleared our copy away
        _check_owner(home, run_id)
        raise
    sync_directory(place)
    fault("placed")
    _check_owner(home, run_id)
    _remove_all_but(place, {target, before})
    return target


def _copied(
    fresh: Path,
    before: Path | None,
    home: Path,
    stores: Mapping[str, str],
    make: Callable[[Path], None],
) -> Path:
    """Make the recovery store of a start, and return it."""
    if before is None:
        fresh.mkdir()
        make(fresh)
    else:
        recovery.copy(before, fresh)
        _rewind_to_whole(home, fresh, stores)
    write_atomic(fresh / _NUMBER, f"{(number_of(before) if before else 0) + 1}\n")
    return fresh


def _check_owner(home: Path, run_id: str) -> None:
    if (owner := owner_of(home / "owner")) != run_id:
        raise Fenced(f"{owner} has taken over the state in {home} just after {run_id} did")


def newest(home: Path) -> Path | None:
    """Return the recovery store that the next start would copy, or None."""
    place = home / "bytewax"
    owner = owner_of(home / "owner")
    stores = [file.parent for file in place.glob(f"[!.]*/{_NUMBER}")]
    if stores:
        return max(stores, key=lambda store: (number_of(store), store.name == owner))
    return place if any(place.glob("part-*.sqlite3")) else None


def is_empty(home: Path) -> bool:
    """Tell whether no start ever kept anything here."""
    begun = {home / "owner", home / "shards" / "FORMAT"}  # a start that went no further
    return not any(path.is_file() and path not in begun for path in home.rglob("*"))


def all_stores(home: Path) -> list[Path]:
    """Return the recovery stores that are there, oldest first."""
    place = home / "bytewax"
    first = [place] if any(place.glob("part-*.sqlite3")) else []
    return first + sorted((f.parent for f in place.glob(f"[!.]*/{_NUMBER}")), key=number_of)


def checkpoints_of(
    home: Path, snapshots: Snapshots, stores: Mapping[str, str]
) -> dict[Path, list[tuple[str, SnapshotRef]]]:
    """Return where the checkpoints that `snapshots` names lie, and what is in each.

    The values are (step id, reference), for each shard that a checkpoint is named for.
    """
    found: dict[Path, list[tuple[str, SnapshotRef]]] = {}
    for step, values in snapshots.items():
        for ref in values.values():
            if isinstance(ref, SnapshotRef):
                path = home / "shards" / stores[step] / ref.lineage / str(ref.number)
                found.setdefault(path, []).append((step, ref))
    return found


def _rewind_to_whole(home: Path, store: Path, stores: Mapping[str, str]) -> None:
    held = recovery.load(store)
    torn: dict[Path, CheckpointError | None] = {}
    reasons: list[str] = []
    for epoch in range(held.epoch, held.oldest_epoch - 1, -1):
        reason = next(_torn(checkpoints_of(home, held.before(epoch), stores), torn), None)
        if reason is None:
            if reasons:
                recovery.rewind(store, epoch)
                log.warning(
                    "%s. Going back from epoch %d to epoch %d, which is whole: what was read "
                    "since is read again, and what was written since is not written again",
                    *(reasons[0], held.epoch, epoch),
                )
            return
        reasons.append(reason)
    raise CheckpointError(
        f"{'; '.join(dict.fromkeys(reasons))}; and no other epoch is held. To mend: move {home} "
        "away, then put a savepoint in its place (pushflow state import), or replay the topics "
        "from the start"
    )


def _torn(paths: Mapping[Path, object], known: dict[Path, CheckpointError | None]) -> Iterator[str]:
    """Yield what is wrong with each checkpoint that is not whole."""
    for path in paths:
        if path not in known:
            known[path] = None
            try:
                checkpoints.check(path)
            except CheckpointError as error:
                known[path] = error
        if known[path] is not None:
            yield str(known[path])


def number_of(store: Path) -> int:
    """Return the place of a recovery store in the row of starts, from 1; 0: the first release."""
    try:
        return int((store / _NUMBER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0


def _remove_all_but(place: Path, keep: set[Path | None]) -> None:
    for store in place.iterdir():
        if store.is_dir() and store not in keep:
            # First its number, that half of it is never taken for whole.
            (store / _NUMBER).unlink(missing_ok=True)
            shutil.rmtree(store)
    if place not in keep:
        for file in place.glob("part-*.sqlite3*"):
            file.unlink()
