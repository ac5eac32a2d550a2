"""Timers of a shard: who is due when, in event time, a heap for each source partition.

Reads   due times as they are armed; the heads of packed states at the start.
Owns    the order in which timers fire: by due time, then by user_id.

An entry is one `bytes`: the due time in 8 bytes, big-endian, then the user_id in UTF-8. Bytes
compare as (due, user_id) would, take 64 to 80 bytes of memory where the tuple takes 165, and are
nothing to the garbage collector; and an entry is the start of a packed state beside its key, so
that a restart makes one without a number or a string in between.

Entries are not searched for. One that is no longer in the user's state has been overtaken, and
whoever takes it drops it: the state says what is armed.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from operators.packed import Armed, head

NEVER_MS: Final = 1 << 62  # later than any watermark
_DUE_BYTES: Final = 8
_NONE: Final = bytes(_DUE_BYTES)
_SOON, _LATER, _PARTITION = slice(1, 9), slice(9, 17), slice(17, 21)  # of `operators.packed.head`


class PartitionTimers:
    """The timers of one partition.

    Attributes
    ----------
    first_ms
        When the first is due; `NEVER_MS` without any.

    Examples
    --------
    >>> timers = PartitionTimers()
    >>> timers.put(2_000, "ann"); timers.put(1_000, "eve"); timers.put(1_000, "bob")
    >>> timers.first_ms, timers.pop(), timers.pop(), timers.pop(), timers.first_ms == NEVER_MS
    (1000, (1000, 'bob'), (1000, 'eve'), (2000, 'ann'), True)
    """

    __slots__ = ("_heap", "first_ms")

    def __init__(self, heap: list[bytes] | None = None) -> None:
        self.first_ms = NEVER_MS
        self._heap = heap or []
        heapify(self._heap)
        self._look()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, due_ms: int, user_id: str) -> None:
        """Arm a timer."""
        heappush(self._heap, due_ms.to_bytes(_DUE_BYTES, "big") + user_id.encode())
        self.first_ms = min(self.first_ms, due_ms)

    def pop(self) -> tuple[int, str]:
        """Return the first timer's due time and user; IndexError without any."""
        entry = heappop(self._heap)
        due_ms = self.first_ms
        self._look()
        return due_ms, entry[_DUE_BYTES:].decode()

    def drop(self, user_id: str) -> None:
        """Take all timers of a user out: O(timers)."""
        tail = user_id.encode()
        self._heap = [entry for entry in self._heap if entry[_DUE_BYTES:] != tail]
        heapify(self._heap)
        self._look()

    def _look(self) -> None:
        heap = self._heap
        self.first_ms = int.from_bytes(heap[0][:_DUE_BYTES], "big") if heap else NEVER_MS


def load_timers(
    rows: Iterable[tuple[str, bytes]], version: int, older: Callable[[bytes], Armed]
) -> dict[int, PartitionTimers]:
    """Return the timers of all states of a shard, by partition.

    Parameters
    ----------
    rows
        user_id and packed state.
    version
        Of the states that begin with `operators.packed.head`.
    older
        Reads the timers of any other version, or raises.
    """
    heaps: dict[bytes, list[bytes]] = {}
    for user_id, packed in rows:
        if packed[0] != version:
            packed = head(version, older(packed))  # noqa: PLW2901 # in its place
        soon, later, partition = packed[_SOON], packed[_LATER], packed[_PARTITION]
        heap = heaps.get(partition)
        if heap is None:
            heap = heaps[partition] = []
        key = user_id.encode()
        if soon != _NONE:
            heap.append(soon + key)
        if later != _NONE:
            heap.append(later + key)
    return {int.from_bytes(of, "big"): PartitionTimers(heap) for of, heap in heaps.items()}
