"""Packed state: the version that its bytes begin with, and the timers that can be read alone.

Reads   the bytes of one key's state.
Owns    what happens to the bytes of other releases, and the head of states that wait for time.

The first byte is the version of the layout. A release reads all versions up to its own, by a
table of readers, and writes its own: what is touched is migrated, what is not stays as it is for
as long as it lives. It reads none that is newer, and says so before anything is decided by it. So
an upgrade needs nothing, and a roll-back needs the state from before the upgrade.

States with timers go on with a head of fixed size, so that a restart reads 21 bytes a user and
decodes none:

    version 1 byte | soon, ms 8 bytes | later, ms 8 bytes | partition 4 bytes | body

Whole numbers are big-endian: as bytes they sort as they do by value (`operators.timers`).
"""

import struct
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")
"""The state of one key."""

_HEAD = struct.Struct(">BQQI")
HEAD_BYTES = _HEAD.size


class NewerStateError(ValueError):
    """The bytes of a newer release."""


class Armed(NamedTuple):
    """The armed timers of one state, event time in ms, 0: none; and the heap they are in."""

    soon_ms: int
    later_ms: int
    partition: int


class Versions(Generic[S]):
    """The layouts of one kind of state that this release reads.

    Parameters
    ----------
    kind
        What the state is of, for the error.
    readers
        Version, 1 to 255 -> what makes the state of all its bytes. The largest is the one that
        is written.

    Examples
    --------
    >>> plain = Versions("plain", {1: lambda packed: packed[1:].decode()})
    >>> plain.read(bytes([1]) + b"abc")
    'abc'
    >>> plain.read(bytes([2]) + b"abc")
    Traceback (most recent call last):
    operators.packed.NewerStateError: plain state of version 2: a newer pushflow wrote it, this ...
    """

    def __init__(self, kind: str, readers: Mapping[int, Callable[[bytes], S]]) -> None:
        self._kind = kind
        self._readers = readers
        self._newest = max(readers)

    def read(self, packed: bytes) -> S:
        """Return the state.

        Raises
        ------
        NewerStateError
            For a version that this release does not know.
        ValueError
            For bytes that are of no version, or not of their version's layout.
        """
        version = packed[0] if packed else 0
        reader = self._readers.get(version)
        if reader is not None:
            return reader(packed)
        if version < self._newest:
            raise ValueError(f"{self._kind} state of version {version}, which no pushflow wrote")
        raise NewerStateError(
            f"{self._kind} state of version {version}: a newer pushflow wrote it, this one reads "
            f"up to {self._newest}. Run the newer one, or go back to the state from before the "
            "upgrade: a copy of its directory, or what `pushflow state export` gave"
        )


def head(version: int, armed: Armed) -> bytes:
    """Return the first bytes of a state with timers.

    >>> packed = head(2, Armed(1_700_000_000_000, 0, 3)) + b"body"
    >>> armed_of(packed), packed[HEAD_BYTES:]
    (Armed(soon_ms=1700000000000, later_ms=0, partition=3), b'body')
    """
    return _HEAD.pack(version, *armed)


def armed_of(packed: bytes) -> Armed:
    """Return the timers of a state that begins with `head`."""
    return Armed._make(_HEAD.unpack_from(packed)[1:])
