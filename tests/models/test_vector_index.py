"""The index: nearly exact, and the same whatever came before and whatever the processor."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.byte_scan import ByteScan, rotation
from models.neighbours import to_grid
from models.vector_index import Hits, VectorIndex

DIM = 64
N = 3_000


def clustered(n: int, seed: int) -> np.ndarray:
    """Return vectors of length 1 on the grid, in groups as texts of one subject are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, DIM))
    return to_grid(_unit(centres[rng.integers(0, 40, n)] + 0.7 * rng.normal(size=(n, DIM))))


def spread(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    return to_grid(_unit(np.random.default_rng(seed).normal(size=(n, dim))))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Table:
    """Vectors and hashes by row, and an index over them."""

    def __init__(self, vectors: np.ndarray, **options: float):
        self.vectors = vectors.copy()
        self.hashes = np.random.default_rng(9).integers(0, 2**63, len(vectors))
        self.index = VectorIndex(
            vectors.shape[1],
            lambda rows: self.vectors[rows],
            lambda rows: self.hashes[rows],
            **options,
        )

    def exact(self, query: np.ndarray, rows: np.ndarray, limit: int) -> list[int]:
        scores = self.vectors[rows].astype(np.float64) @ query
        order = np.lexsort((self.hashes[rows], scores))[::-1]
        return rows[order][:limit].tolist()


def same(one: list[Hits], other: list[Hits]) -> bool:
    pairs = zip(one, other, strict=True)
    return all((a.rows == b.rows).all() and (a.scores == b.scores).all() for a, b in pairs)


def recall(table: Table, queries: np.ndarray, limit: int) -> float:
    every = np.arange(len(table.vectors))
    found = table.index.search(queries, limit)
    wanted = [set(table.exact(query, every, limit)) for query in queries]
    shares = [
        len(own & set(hits.rows.tolist())) / limit for own, hits in zip(wanted, found, strict=True)
    ]
    return float(np.mean(shares))


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "change", "remove"]), st.integers(0, 60)),
    max_size=60,
)


@given(OPERATIONS, st.integers(1, 70))
def test_small_tables_are_searched_exactly(operations, limit: int) -> None:
    table = Table(spread(61, 0))
    other, held = spread(61, 1), set()
    for kind, row in operations:
        if kind == "remove":
            table.index.remove(np.array([row]))
            held.discard(row)
            continue
        if kind == "change":
            table.vectors[row] = other[row]
        if kind == "put" or row in held:
            table.index.put(np.array([row]))
            held.add(row)
        elif kind == "change":
            table.vectors[row] = other[row]
    queries = spread(3, 2)
    rows = np.array(sorted(held), np.int64)
    found = table.index.search(queries, limit)
    assert len(table.index) == len(held)
    for query, hits in zip(queries, found, strict=True):
        assert hits.rows.tolist() == table.exact(query, rows, limit)
        assert (hits.scores == table.vectors[hits.rows] @ query).all()


@pytest.mark.parametrize("make", [spread, clustered])
@pytest.mark.parametrize("limit", [10, 100])
def test_a_scan_finds_nearly_all_of_the_best(make, limit: int) -> None:
    both = make(N + 50, 3)
    table = Table(both[:N])
    table.index.put(np.arange(N))
    assert recall(table, both[N:], limit) >= 0.999


@pytest.mark.parametrize("dim", [1, 2, 48, 80])
def test_any_number_of_columns_can_be_searched(dim: int) -> None:
    table = Table(spread(1_000, 4, dim))
    table.index.put(np.arange(1_000))
    [hits] = table.index.search(table.vectors[7:8], 1_000)
    assert hits.rows.tolist() == table.exact(table.vectors[7], np.arange(1_000), 1_000)


def test_shorter_vectors_are_found_as_well_where_their_length_is_told() -> None:
    both = spread(N + 50, 5)
    table = Table(to_grid(both[:N] * 0.25), length=0.25)
    table.index.put(np.arange(N))
    assert recall(table, both[N:], 100) >= 0.999


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_what_is_found_depends_on_what_is_held_alone(random) -> None:
    vectors, other = clustered(800, 6), clustered(800, 7)
    queries = clustered(6, 8)
    straight = Table(vectors)
    straight.index.put(np.arange(500))
    wanted = straight.index.search(queries, 30)

    winding = Table(vectors)
    order = list(range(800))
    random.shuffle(order)
    steps = sorted(random.sample(range(1, 800), 5))
    for part in np.split(np.array(order), steps):
        winding.vectors[part[::2]] = other[part[::2]]  # other vectors first
        winding.index.put(part)
        winding.index.search(queries[:1], 5)
        winding.vectors[part[::2]] = vectors[part[::2]]
        winding.index.put(part[::2])
    gone = [row for row in order if row >= 500]
    random.shuffle(gone)
    winding.index.remove(np.array(gone))
    assert same(winding.index.search(queries, 30), wanted)


def test_a_query_does_not_feel_the_others_of_its_batch() -> None:
    table = Table(clustered(N, 9))
    table.index.put(np.arange(N))
    queries = clustered(150, 10)
    alone = [table.index.search(query[None], 20)[0] for query in queries]
    assert same(table.index.search(queries, 20), alone)


def test_a_removed_row_is_gone_at_once_and_an_inserted_one_is_there() -> None:
    table = Table(spread(1_000, 11))
    table.index.put(np.arange(999))
    query = table.vectors[[500]]
    assert table.index.search(query, 1)[0].rows.tolist() == [500]
    table.index.remove(np.array([500, 999]))  # one that is not held, too
    assert 500 not in table.index.search(query, 100)[0].rows
    table.vectors[999] = table.vectors[500]
    table.index.put(np.array([999]))
    assert table.index.search(query, 1)[0].rows.tolist() == [999]
    assert table.index.holds(np.array([500, 999, 0, 5_000])).tolist() == [False, True, True, False]


def test_a_changed_vector_is_found_by_what_it_is_now() -> None:
    table = Table(spread(1_000, 12))
    table.index.put(np.arange(1_000))
    old, new = table.vectors[[3]].copy(), spread(1, 13)
    table.index.search(old, 1)
    table.vectors[3] = new[0]
    table.index.put(np.array([3]))
    assert table.index.search(new, 1)[0].rows.tolist() == [3]
    assert 3 not in table.index.search(old, 20)[0].rows


def test_many_equal_vectors_are_told_apart_by_their_hashes() -> None:
    vectors = spread(2_000, 14)
    vectors[500:1_500] = vectors[0]  # more than a scan proposes
    table = Table(vectors)
    table.index.put(np.random.default_rng(0).permutation(2_000))
    [hits] = table.index.search(vectors[:1], 20)
    assert hits.rows.tolist() == table.exact(vectors[0], np.arange(2_000), 20)


def test_it_grows_and_shrinks() -> None:
    table = Table(spread(2_000, 15))
    queries = spread(4, 16)
    for end in (100, 255, 256, 2_000):
        table.index.put(np.arange(end))
        assert [len(hits.rows) for hits in table.index.search(queries, 50)] == [50] * 4
    for start in (1_700, 1_745, 1_800, 1_990):
        table.index.remove(np.arange(start))
        rows = np.arange(start, 2_000)
        found = table.index.search(queries, 400)
        wanted = [table.exact(query, rows, 400) for query in queries]
        assert [hits.rows.tolist() for hits in found] == wanted


def test_it_follows_rows_that_moved() -> None:
    table = Table(clustered(1_000, 17))
    table.index.put(np.arange(500, 1_000))
    queries = clustered(5, 18)
    before = table.index.search(queries, 10)
    new_of_old = np.concatenate([np.zeros(500, np.int64), np.arange(1, 501)])
    table.vectors[1:501], table.hashes[1:501] = table.vectors[500:], table.hashes[500:]
    table.index.reorder(new_of_old)
    found = table.index.search(queries, 10)
    moved = [Hits(new_of_old[hits.rows], hits.scores) for hits in before]
    assert same(found, moved)
    table.index.remove(np.array([1]))
    assert not table.index.holds(np.array([1, 600])).any()


def test_a_query_of_zeros_and_an_empty_index_find_nothing() -> None:
    table = Table(spread(10, 19))
    assert len(table.index.search(table.vectors[:1], 5)[0].rows) == 0
    table.index.put(np.arange(10))
    nothing, something = table.index.search(np.stack([np.zeros(DIM), table.vectors[0]]), 5)
    assert (len(nothing.rows), len(something.rows)) == (0, 5)


def scanned(vectors: np.ndarray) -> ByteScan:
    scan = ByteScan(vectors.shape[1], 1.0)
    hashes = np.random.default_rng(22).integers(0, 2**63, len(vectors))
    scan.write(np.arange(len(vectors)), vectors, hashes)
    return scan


# Fewer and more than are multiplied at once, and blocks of 16 with a part of one.
@pytest.mark.parametrize("n_queries", [1, 2, 3, 9])
@pytest.mark.parametrize(("n", "wanted"), [(30, 7), (1_000, 1), (1_000, 999), (N, 150)])
def test_a_scan_proposes_the_largest_whole_products(n_queries: int, n: int, wanted: int) -> None:
    vectors, queries = clustered(N, 20)[:n], spread(n_queries, 21)
    found = scanned(vectors).propose(queries, n, wanted)
    turn = rotation(DIM).astype(np.float64)
    steps = np.rint(vectors @ turn * (127 / 5)).clip(-127, 127)
    turned = queries @ turn
    asked = np.rint(turned / np.abs(turned).max(axis=1, keepdims=True) * 127)
    for query, places in zip(asked, found, strict=True):
        products = steps @ query
        assert len(set(places.tolist())) == wanted
        assert sorted(products[places]) == sorted(products)[-wanted:]


def test_a_scan_is_right_where_the_part_looked_at_first_misleads() -> None:
    # Every 32nd block of 16 is looked at first: it alone has vectors like the query.
    vectors = spread(32 * 16 * 40, 23)
    query = vectors[:1].copy()
    blocks = vectors.reshape(-1, 16, DIM)
    blocks[::32] = query
    found = scanned(vectors).propose(query, len(vectors), 700)
    assert set(np.flatnonzero((vectors == query).all(axis=1)).tolist()) <= set(found[0].tolist())
    assert len(set(found[0].tolist())) == 700


DIGEST = """
from tests.models.test_vector_index import digest
print(digest())
"""


def digest() -> str:
    """Return what a scan proposes, in a few letters."""
    scan = scanned(clustered(20_000, 24))
    found = [scan.propose(spread(n, 25), 20_000, 120) for n in (1, 9)]
    parts = [np.sort(places, axis=1).tobytes() for places in found]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_processor_that_cannot_multiply_bytes_proposes_the_same() -> None:
    plain = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", DIGEST]
    done = subprocess.run(command, env=plain, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == digest()
