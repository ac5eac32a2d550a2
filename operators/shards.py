"""Shards: the keyed state that pure classes see, and the names of its snapshots.

Owns    what a shard can do (`ShardView`), what Bytewax pickles in its place (`SnapshotRef`), and
        the shard in memory (`DictShard`).

A *shard* is the unit of state that moves between workers: some keys, each with a state that is
changed in place. Pure classes ask only for `get`, `peek`, `delete` and `scan`, so they run the
same on a dictionary here as on RocksDB in `operators.state`.
"""

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S")
"""The state of one key."""

S_co = TypeVar("S_co", covariant=True)
"""The state of one key, where it is only handed out."""


class SnapshotRef(NamedTuple):
    """The name of one shard's state: what Bytewax pickles in place of the state.

    `number` counts the checkpoints of `lineage` from 1.
    """

    shard: str
    lineage: str
    number: int


class ShardView(Protocol[S_co]):
    """What a pure class may do with the keys of its shard; see `operators.state.Shard`."""

    def get(self, key: str) -> S_co:
        """Return the state of `key` to be changed in place; create it if there is none."""

    def peek(self, key: str) -> S_co | None:
        """Return the state of `key`, to be read only, or None."""

    def delete(self, key: str) -> None:
        """Forget `key`."""

    def scan(self) -> Iterator[tuple[str, S_co]]:
        """Yield all keys in order with their states, to be read only."""


class DictShard(Generic[S]):
    """A shard in memory, for tests and examples: unbounded, and durable nowhere.

    Parameters
    ----------
    shard
        The shard's name.
    encode, decode, new
        As for `operators.state.StateStore`.
    state
        A value from `snapshot`, or empty.

    Examples
    --------
    >>> codec = dict(encode=lambda s: str(s[0]).encode(), decode=lambda b: [int(b)])
    >>> shard = DictShard("07", new=lambda key: [0], **codec)
    >>> shard.get("bob")[0] += 1
    >>> shard.get("ann")[0] += 3
    >>> list(shard.scan()), shard.peek("eve")
    ([('ann', [3]), ('bob', [1])], None)
    >>> saved = shard.snapshot()
    >>> shard.get("ann")[0] += 100
    >>> DictShard("07", new=lambda key: [0], **codec, state=saved).peek("ann")
    [3]
    """

    def __init__(
        self,
        shard: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        new: Callable[[str], S],
        state: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        self.name = shard
        self.is_settled = True
        self._encode, self._new = encode, new
        self._states = {key: decode(value) for key, value in state}
        self._stored = dict(state)  # as it came, of states that nobody has got since

    def touch(self) -> None:
        """Do nothing: there is no epoch to close."""

    def get(self, key: str) -> S:
        """Return the state of `key` to be changed in place; create it if there is none."""
        self._stored.pop(key, None)
        if key not in self._states:
            self._states[key] = self._new(key)
        return self._states[key]

    def peek(self, key: str) -> S | None:
        """Return the state of `key`, to be read only, or None."""
        return self._states.get(key)

    def delete(self, key: str) -> None:
        """Forget `key`; a later `get` starts anew."""
        self._stored.pop(key, None)
        self._states.pop(key, None)

    def scan(self) -> Iterator[tuple[str, S]]:
        """Yield all keys in order with their states; keys may be deleted on the way."""
        for key in sorted(self._states):  # by code point, which is UTF-8's order of bytes too
            if key in self._states:
                yield key, self._states[key]

    def scan_raw(self) -> Iterator[tuple[str, bytes]]:
        """Yield all keys in order with their states as `encode` gives them.

        Those that nobody has got are as they were stored, by an older release maybe.
        """
        stored = self._stored
        return (
            (key, stored[key] if key in stored else self._encode(state))
            for key, state in self.scan()
        )

    def snapshot(self) -> tuple[tuple[str, bytes], ...]:
        """Return the whole state, immutable, to be passed back as `state`."""
        return tuple(self.scan_raw())
