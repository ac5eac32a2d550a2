"""Lists of a whole batch as one array, and what of them the queries rule out.

Reads   lists of rows, one a query, and what each query refuses.
Emits   arrays with a line a query, filled up with row 0, and of those what may be proposed.

A call of NumPy costs more than what it does to a hundred rows, so what all queries need is done
for all of them at once. No line is looked at for another one's sake: a query's answer does not
depend on who shares the batch.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BLOCK: Final = 31 << 20  # bytes: just below the largest block that glibc learns from


def keep_freed_memory() -> None:
    """Let the process keep what a batch frees for the next one, 62 MB at most.

    glibc gives freed memory back to the system beyond twice the largest block that was ever freed
    whole, and a batch frees more than that. Each page that has to come back takes 2 µs, which is
    60 µs a trigger. Nothing is written here, so that no memory is taken; where there is no glibc
    it is without effect.
    """
    np.empty(_BLOCK, np.uint8)
