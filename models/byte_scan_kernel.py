"""The scan of bytes for vectors that are near some queries, compiled.

Reads   vectors as bytes, 16 to a block, and queries as signed bytes.
Emits   for each query the places of the largest products.
Owns    how a block is multiplied: the one thing here that is written in the compiler's own terms,
        for a loop over bytes it does not see through. All else are plain loops.

A block's bytes lie four columns of one vector beside those of the next, as x86's `vpdpbusd` reads
them (VNNI: 64 products of bytes, added up by fours). Where a processor has it not, the same sums
are made of products of 16 bits, which every processor has: half to a third as fast, and equal,
for whole numbers are.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from models.compiled import compiled

Ints = NDArray[np.int64]
Width = tuple[int, ...]
Whole = int | np.integer[Any]
# By block of 16 vectors: by fours of columns, by vector, by column; shape (N / 16, W / 4, 16, 4).
Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]

LANES: Final = 16  # vectors of a block
MOST: Final = 127  # steps of a column to either side
QUAD: Final = 4  # columns whose products are added up in one step
# Queries that a block is multiplied with while it lies in registers, told to the compiler by the
# length of a tuple: it makes one scan for few, and one for many.
FEW: Final = (0,) * 2
MANY: Final = (0,) * 8
_CHUNK: Final = 256  # blocks that all queries pass over in turn: they stay in the cache
_SAMPLED: Final = 32  # of so many blocks one is looked at first, and as many at least
_DEVIATIONS: Final = 3  # of chance: so that seldom too few reach what the sample says
_LEAST: Final = -(1 << 31)
_NEVER: Final = (1 << 31) - 1
_ROOM: Final = 4  # times as many as are wanted are held before they are sorted out
_HASH_BITS: Final = 32

_WORDS: Final = ir.VectorType(ir.IntType(32), LANES)
_HALVES: Final = ir.VectorType(ir.IntType(16), 2 * LANES)
_PRODUCTS: Final = ir.VectorType(ir.IntType(32), 2 * LANES)


_ARGUMENTS: Final = ("width", "codes", "block", "queries", "first", "least", "products", "lanes")


def _multiplied(
    _: Any,
    width: Any,
    codes: Any,
    block: Any,
    queries: Any,
    first: Any,
    least: Any,
    products: Any,
    lanes: Any,
) -> tuple[Any, Callable[..., Any]]:
    """Multiply one block with some queries; return by bits in which of them it is of use.

    Compiled code calls it with a tuple as long as they are many, codes, the block's number,
    queries, shape (Q, W / 4, 4), the first of those meant, `least` by query, and where products
    and the bits of lanes go, shape (as many, LANES) and (as many,), all C-contiguous. Where one of
    a query's products is not below its `least`, its bit is 1, and they and their lanes are written.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word, long = (ir.IntType(bits) for bits in (8, 32, 64))

        def times(value: Any, by: int) -> Any:
            return builder.mul(value, ir.Constant(long, by))

        def place(array: str, pointee: Any, at: Any) -> Any:
            start = builder.bitcast(arrays[array].data, byte.as_pointer())
            return builder.bitcast(builder.gep(start, [at]), pointee.as_pointer())

        given = dict(zip(_ARGUMENTS, args, strict=True))
        kinds = dict(zip(_ARGUMENTS, signature.args, strict=True))
        arrays = {
            name: context.make_array(kinds[name])(context, builder, given[name])
            for name in ("codes", "queries", "least", "products", "lanes")
        }
        n_quads = builder.extract_value(arrays["codes"].shape, 1)
        start = times(builder.mul(given["block"], n_quads), LANES * QUAD)
        own = [builder.add(given["first"], ir.Constant(long, n)) for n in range(width.count)]
        rows = [times(builder.mul(query, n_quads), QUAD) for query in own]
        sums = [cgutils.alloca_once(builder, _WORDS) for _ in own]
        for total in sums:
            builder.store(ir.Constant(_WORDS, [0] * LANES), total)
        has_vnni = "+avx512vnni" in context.codegen().magic_tuple()[2].split(",")
        added = _added_by_vnni if has_vnni else _added
        with cgutils.for_range(builder, n_quads) as loop:
            at = builder.add(start, times(loop.index, LANES * QUAD))
            quads = builder.load(place("codes", _WORDS, at), align=1)
            for row, total in zip(rows, sums, strict=True):
                at = builder.add(row, times(loop.index, QUAD))
                quad = _spread(builder, builder.load(place("queries", word, at), align=1))
                builder.store(added(builder, builder.load(total), quads, quad), total)
        found = cgutils.alloca_once(builder, long)
        builder.store(ir.Constant(long, 0), found)
        for n, (query, total) in enumerate(zip(own, sums, strict=True)):
            bound = _spread(builder, builder.load(place("least", word, times(query, 4))))
            reached = builder.icmp_signed(">=", builder.load(total), bound)
            bits = builder.bitcast(reached, ir.IntType(LANES))
            with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, bits)):
                to = place("products", _WORDS, ir.Constant(long, 4 * LANES * n))
                builder.store(builder.load(total), to, align=4)
                builder.store(
                    builder.zext(bits, long), place("lanes", long, ir.Constant(long, 8 * n))
                )
                builder.store(builder.or_(builder.load(found), ir.Constant(long, 1 << n)), found)
        return builder.load(found)

    return types.int64(width, codes, block, queries, first, least, products, lanes), code


def _spread(builder: Any, word: Any) -> Any:
    """Return a vector with a word in each place."""
    nothing = ir.Constant(_WORDS, ir.Undefined)
    first = builder.insert_element(nothing, word, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * LANES))


def _added_by_vnni(builder: Any, sums: Any, quads: Any, query: Any) -> Any:
    """Return sums with four products each added, of unsigned bytes with signed ones."""
    kind = ir.FunctionType(_WORDS, [_WORDS] * 3)
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [sums, quads, query])


def _added(builder: Any, sums: Any, quads: Any, query: Any) -> Any:
    """Return what `_added_by_vnni` does: even columns and odd ones as 16 bits, products by twos."""
    eight = ir.Constant(_HALVES, [8] * 2 * LANES)
    bytes_, signed = builder.bitcast(quads, _HALVES), builder.bitcast(query, _HALVES)
    even = builder.and_(bytes_, ir.Constant(_HALVES, [255] * 2 * LANES))
    even_signed = builder.ashr(builder.shl(signed, eight), eight)
    odd, odd_signed = builder.lshr(bytes_, eight), builder.ashr(signed, eight)
    for own, asked in (even, even_signed), (odd, odd_signed):
        products = builder.mul(builder.sext(own, _PRODUCTS), builder.sext(asked, _PRODUCTS))
        for first in 0, 1:
            chosen = ir.Constant(_WORDS, list(range(first, 2 * LANES, 2)))
            part = builder.shuffle_vector(products, ir.Constant(_PRODUCTS, ir.Undefined), chosen)
            sums = builder.add(sums, part)
    return sums


def _lowest_bit(_: Any, number: Any) -> tuple[Any, Callable[..., Any]]:
    """Return for compiled code the place of the lowest bit of a number that is not 0."""

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), code


_multiply: Final[Any] = intrinsic(_multiplied)
_lowest: Final[Any] = intrinsic(_lowest_bit)


@compiled()
def _put(heap: NDArray[np.int32], n: Whole, value: np.int32) -> Whole:
    """Put a value into a heap of the largest, the least of them first; return how many it holds."""
    size = len(heap)
    if n < size:
        at = n
        while at and heap[(at - 1) >> 1] > value:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = value
        return n + 1
    if value <= heap[0]:
        return n
    at = 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= value:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = value
    return n


@compiled()
def _select(keys: Ints, places: NDArray[np.int32], n: Whole, wanted: Whole) -> np.int64:
    """Bring the largest of n keys to the front, in any order; return the least of those.

    Hoare's selection by Lomuto's partition, which has no branch; as `models.neighbours` sorts, for
    a compiled function calls those of its own file alone. The places follow their keys.
    """
    low, high = np.int64(0), np.int64(n)
    while high - low > 1:
        last = high - 1
        pivot, its_place = keys[(low + last) >> 1], places[(low + last) >> 1]
        keys[(low + last) >> 1], places[(low + last) >> 1] = keys[last], places[last]
        middle = low
        for at in range(low, last):
            key, place = keys[at], places[at]
            keys[at], places[at] = keys[middle], places[middle]
            keys[middle], places[middle] = key, place
            middle += key > pivot
        keys[last], places[last] = keys[middle], places[middle]
        keys[middle], places[middle] = pivot, its_place
        if wanted <= middle:
            high = middle
        else:
            low = middle + 1
        if wanted == middle or wanted == middle + 1:
            break
    least = keys[0]
    for at in range(wanted):
        least = min(least, keys[at])
    return np.int64(least)


@compiled()
def _sample(
    width: Width,
    codes: Codes,
    n_blocks: Whole,
    stride: Whole,
    rank: Whole,
    queries: NDArray[np.int8],
    least: NDArray[np.int32],
) -> None:
    """Write as `least` of each query its product of a rank among those of one block in `stride`."""
    products, lanes = np.empty((len(width), LANES), np.int32), np.empty(len(width), np.int64)
    sizes = np.empty(len(width), np.int64)
    heaps = np.empty((len(width), rank), np.int32)
    for first in range(0, len(queries), len(width)):
        sizes[:] = 0
        for block in range(0, n_blocks, stride):
            found = _multiply(width, codes, block, queries, first, least, products, lanes)
            for query in range(len(width)):
                if not found >> query & 1:
                    continue
                n = sizes[query]
                for lane in range(LANES):
                    n = _put(heaps[query], n, products[query, lane])
                sizes[query] = n
                if n == rank:
                    least[first + query] = heaps[query, 0]


@compiled()
def _scan(
    width: Width,
    codes: Codes,
    n: Whole,
    hashes: NDArray[np.uint32],
    queries: NDArray[np.int8],
    wanted: Whole,
    least: NDArray[np.int32],
    keys: Ints,
    places: NDArray[np.int32],
    counts: Ints,
) -> None:
    """Write keys and places of the products of at least `least`, the largest at least `wanted`."""
    n_blocks, room = (n + LANES - 1) // LANES, keys.shape[1]
    products, lanes = np.empty((len(width), LANES), np.int32), np.empty(len(width), np.int64)
    for start in range(0, n_blocks, _CHUNK):
        for first in range(0, len(queries), len(width)):
            for block in range(start, min(start + _CHUNK, n_blocks)):
                found = _multiply(width, codes, block, queries, first, least, products, lanes)
                if not found:
                    continue
                for query in range(len(width)):
                    if not found >> query & 1:
                        continue
                    b = first + query
                    if counts[b] + LANES > room:
                        least[b] = _select(keys[b], places[b], counts[b], wanted) >> _HASH_BITS
                        counts[b] = wanted
                    left, at = lanes[query], counts[b]
                    while left:
                        lane = _lowest(left)
                        left &= left - 1
                        place = block * LANES + lane
                        product = np.int64(products[query, lane])
                        keys[b, at] = product << _HASH_BITS | np.int64(hashes[place])
                        places[b, at] = place
                        at += place < n
                    counts[b] = at


@compiled()
def _in_bytes(queries: Floats, rotation: Floats, asked: NDArray[np.int8]) -> None:
    """Write turned queries, each as steps of its largest column."""
    turned = np.empty(rotation.shape[1], np.float32)
    for b in range(len(queries)):
        turned[:] = 0
        for column in range(len(rotation)):
            own = queries[b, column]
            for at in range(len(turned)):
                turned[at] += own * rotation[column, at]  # exact, for it lies on a grid
        largest = np.abs(turned).max()
        for at in range(len(turned)):
            step = np.rint(turned[at] / largest * np.float32(MOST))
            asked[b, at // QUAD, at % QUAD] = np.int8(step)


@compiled(
    *(
        f"int32[:, ::1](UniTuple(int64, {len(width)}), uint8[:, :, :, ::1], int64, uint32[::1], "
        "float32[:, ::1], float32[:, ::1], int64)"
        for width in (FEW, MANY)
    )
)
def best_places(
    width: Width,
    codes: Codes,
    n: int,
    hashes: NDArray[np.uint32],
    queries: Floats,
    rotation: Floats,
    wanted: int,
) -> NDArray[np.int32]:
    """Return the places of each query's `wanted` largest products, in any order, shape (Q, wanted).

    Of equal products the larger hash is meant; of equal hashes, either.

    Parameters
    ----------
    width
        `FEW` or `MANY`: queries that are multiplied at once.
    codes, n, hashes
        Vectors, the first n of them, and by place.
    queries, rotation
        Shape (Q, D), none of zeros, and (D, W).
    wanted
        Below n.
    """
    n_queries = len(queries)
    n_rows = (n_queries + len(width) - 1) // len(width) * len(width)
    asked = np.zeros((n_rows, rotation.shape[1] // QUAD, QUAD), np.int8)
    _in_bytes(queries, rotation, asked)
    keys = np.empty((n_rows, _ROOM * wanted + LANES), np.int64)
    places = np.empty((n_rows, _ROOM * wanted + LANES), np.int32)
    least, counts = np.empty(n_rows, np.int32), np.zeros(n_rows, np.int64)
    least[:n_queries], least[n_queries:] = _LEAST, _NEVER
    # What some more reach than are wanted, by a part of the blocks: few others are held then.
    stride = min(_SAMPLED, max(1, n // LANES // _SAMPLED))
    n_sampled = n // LANES // stride * LANES
    share = n_sampled * (wanted / n)
    rank = np.int64(share + _DEVIATIONS * (np.sqrt(share) + 1))
    if rank < n_sampled:
        _sample(width, codes, n // LANES, stride, rank, asked, least)
        _scan(width, codes, n, hashes, asked, wanted, least, keys, places, counts)
    is_short = False
    for b in range(n_queries):
        if counts[b] < wanted:
            is_short, least[b], counts[b] = True, _LEAST, 0
        else:
            least[b] = _NEVER
    if is_short:
        _scan(width, codes, n, hashes, asked, wanted, least, keys, places, counts)
    best = np.empty((n_queries, wanted), np.int32)
    for b in range(n_queries):
        if counts[b] > wanted:
            _select(keys[b], places[b], counts[b], wanted)
        best[b] = places[b, :wanted]
    return best
