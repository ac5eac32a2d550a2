"""Loops compiled to machine code, for what is called so often that NumPy's calls are what costs.

Owns    how functions are compiled, and when: as their file is imported, for the types that are
        written above them, and kept on disk for the next process.

A call of NumPy takes 1 to 5 µs whatever it does, and a trigger's candidates are a few hundred
rows that pass through a hundred such calls. Written as plain loops over one query they are easier
to read, and Numba makes them 3 to 20 times as fast.

What is kept is known by the file that a function stands in. So a compiled function calls compiled
functions of its own file alone, but for `fetch`, which changes no result, and takes numbers of
other files as arguments: changes there would not be noticed.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

_TOLD_FROM_S: Final = 1.0
_LINE: Final = 64  # bytes that memory gives at once
_log = logging.getLogger(__name__)


def compiled(*signatures: str) -> Callable[[_Function], _Function]:
    """Return what compiles a function for the types of signatures, as Numba writes them.

    Without a signature for the types of its first call: for functions that others of the same
    file call. Arrays that must not be written to are another type, and refused with a TypeError.

    Compiling takes a second or so a function, once: the code lies beside the source, or below the
    user's cache directory where that cannot be written to. Where neither can, each process compiles
    for itself. Other threads wait, for to give way to them takes longer than most loops do. No sum
    is put in another order.

    Examples
    --------
    >>> @compiled("int64(int64[::1])")
    ... def largest(values):
    ...     best = values[0]
    ...     for value in values:
    ...         best = max(best, value)
    ...     return best
    >>> import numpy as np
    >>> largest(np.array([3, 8, 5]))
    8
    """
    given = (list(signatures),) if signatures else ()

    def compile_it(function: _Function) -> _Function:
        began = time.monotonic()
        try:
            made: _Function = njit(*given, cache=True, error_model="numpy")(function)
        except RuntimeError:  # there is nowhere to keep it
            made = njit(*given, error_model="numpy")(function)
        if time.monotonic() - began > _TOLD_FROM_S:
            _log.info(
                "compiled %s.%s in %.1f s", function.__module__, function.__qualname__,
                time.monotonic() - began,
            )  # fmt: skip
        return made

    return compile_it


def _fetch(_: Any, array: Any, index: Any) -> tuple[Any, Callable[..., Any]]:
    """Have one element, or one row, of a C-contiguous array fetched, for compiled code.

    What lies scattered over a large array takes 0.1 µs each to come from memory, and a loop that
    branches on it waits for one after the other. Asked for beforehand, ten come in that time. It
    changes no result.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, args[0])
        byte, long = ir.IntType(8).as_pointer(), ir.IntType(64)
        size = builder.extract_value(made.strides, 0)
        start = builder.gep(
            builder.bitcast(made.data, byte), [builder.mul(size, builder.sext(args[1], long))]
        )
        kind = ir.FunctionType(ir.VoidType(), [byte, *[ir.IntType(32)] * 3])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, soon, of_data = (ir.Constant(ir.IntType(32), flag) for flag in (0, 3, 1))
        with cgutils.for_range_slice(
            builder, ir.Constant(long, 0), size, ir.Constant(long, _LINE)
        ) as (at, _count):
            builder.call(prefetch, [builder.gep(start, [at]), to_read, soon, of_data])
        return context.get_dummy_value()

    return types.void(array, types.int64), code


fetch: Final[Any] = intrinsic(_fetch)
