"""Intent and taste: what a user wrote, summed into one direction, in 128 bytes.

Reads   vectors of texts on the grid of `models.neighbours`, packed.
Emits   their weighted sums, and the direction of a sum, packed the same way.
Owns    how a vector is packed: int16, little-endian, in steps of 2^-11; b"" is zeros.

A sum goes on for as long as its user writes; only its direction is ever searched for, so it is
made where one is needed, and a text costs two products and an addition. All steps are taken
column by column or in whole numbers: the same to the last bit, whatever NumPy is built on.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.features import TEXT_DIM
from models.neighbours import GRID

# Texts in a sum, by weight: what is written now is at least 1/15 of what is known. A column then
# stays below 15 * 2^11 steps, which an int16 holds.
MAX_WEIGHT: Final = 15.0
_PACKED: Final = np.dtype("<i2")


def pack_vectors(vectors: NDArray[np.float32]) -> list[bytes]:
    """Return vectors on the grid, shape (N, TEXT_DIM), packed; zeros as b"".

    >>> rows = np.zeros((2, TEXT_DIM), np.float32)
    >>> rows[0, 1] = -0.5
    >>> first, second = pack_vectors(rows)
    >>> len(first), float(unpack_vector(first)[1]), second
    (128, -0.5, b'')
    """
    steps = np.rint(vectors * np.float32(GRID)).astype(_PACKED)
    has_any = steps.any(axis=1).tolist()
    return [row.tobytes() if some else b"" for row, some in zip(steps, has_any, strict=True)]


def unpack_vector(packed: bytes) -> NDArray[np.float32]:
    """Return a packed vector, float32, shape (TEXT_DIM,), on the grid; zeros for b"".

    Raises
    ------
    ValueError
        For bytes of another length.
    """
    if not packed:
        return np.zeros(TEXT_DIM, np.float32)
    return _steps(packed).astype(np.float32) / np.float32(GRID)


def add_text(
    total: bytes, weight: float, text: bytes, text_weight: float = 1.0, *, fade: float = 1.0
) -> tuple[bytes, float]:
    """Return `fade * total + text_weight * text`, and the weight that is then in it.

    Parameters
    ----------
    total, text
        Packed; a text is at most 1 long.
    weight
        Of all texts in the total, 0 to `MAX_WEIGHT`.
    text_weight
        0 to 1.
    fade
        What is left of the total, 0 to 1.

    Notes
    -----
    Beyond `MAX_WEIGHT` all is scaled down to it. About 4 µs.

    Examples
    --------
    >>> rows = np.zeros((2, TEXT_DIM), np.float32)
    >>> rows[0, 0] = rows[1, 1] = 1.0
    >>> red, lamp = pack_vectors(rows)
    >>> both, weight = add_text(red, 1.0, lamp, fade=0.5)
    >>> unpack_vector(both)[:2].tolist(), weight
    ([0.5, 1.0], 1.5)
    >>> add_text(b"", 0.0, lamp) == (lamp, 1.0), add_text(red, 3.0, b"") == (red, 3.0)
    (True, True)
    """
    if not text:
        return total, weight
    together = weight * fade + text_weight
    scale = min(MAX_WEIGHT / together, 1.0) if together else 0.0
    steps = _steps(text) * (text_weight * scale)
    if total:
        steps += _steps(total) * (fade * scale)
    return np.rint(steps).astype(_PACKED).tobytes(), min(together, MAX_WEIGHT)


def direction_of(total: bytes) -> bytes:
    """Return a sum's direction, packed, of length 1; b"" where the texts cancel out.

    >>> rows = np.zeros((1, TEXT_DIM), np.float32)
    >>> rows[0, :2] = 0.3, -0.4
    >>> unpack_vector(direction_of(pack_vectors(rows)[0]))[:2].tolist()
    [0.59..., -0.80...]
    """
    if not total:
        return b""
    steps = _steps(total).astype(np.int64)
    norm = math.sqrt(int(steps @ steps))
    if norm < 1.0:
        return b""
    unit: bytes = np.rint(steps * (GRID / norm)).astype(_PACKED).tobytes()
    return unit


def _steps(packed: bytes) -> NDArray[np.int16]:
    steps = np.frombuffer(packed, _PACKED)
    if len(steps) != TEXT_DIM:
        raise ValueError(f"a vector of {len(steps)} columns, expected {TEXT_DIM}")
    return steps
