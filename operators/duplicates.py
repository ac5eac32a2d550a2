"""Duplicates: the ids that a user's state remembers, so that a message sent twice counts once.

Reads   ids of one user's messages.
Owns    how many are remembered. A duplicate that comes later than that is not known.
"""

from typing import Final

import xxhash

REMEMBERED: Final = 32  # ids a user, 8 bytes each: a producer's retries come within seconds


def is_repeat(seen: bytearray, message_id: str) -> bool:
    """Return whether an id is among those seen; remember it, and forget the oldest.

    >>> seen = bytearray()
    >>> [is_repeat(seen, name) for name in ("a", "b", "a")], len(seen)
    ([False, False, True], 16)
    """
    digest = xxhash.xxh3_64_digest(message_id.encode())
    if digest in seen:  # at any place, even or not: a false hit has one chance in 2^56
        return True
    seen += digest
    if len(seen) > 8 * REMEMBERED:
        del seen[:8]
    return False
