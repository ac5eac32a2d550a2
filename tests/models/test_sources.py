"""Sources of one batch: no query feels the others beside it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.item_rows import ItemRows
from models.neighbour_source import NeighbourSource
from models.retrieval_kernels import WEIGHT_UNIT
from models.sources import ContentSource, Query, TrendSource
from models.text import encode_texts
from tests.models.moments import items_of, query

N = 30


def shop() -> ItemRows:
    rng = np.random.default_rng(0)
    items = items_of([f"i{n}" for n in range(N)], trend=rng.integers(0, 5, N))
    for row in range(1, N + 1):
        items.neighbours.put(row, rng.integers(1, N + 1, row % 7), rng.random(row % 7))
        words = encode_texts([f"word{row % 5} word{row % 3} of{row}"])
        items.text_vectors[row] = np.rint(words[0] * 2_048)
    items.content.put(np.arange(1, N + 1))
    return items


SHOP = shop()


def asked(recent: list[int], n_bought: int) -> Query:
    rows = np.array(recent, np.int64)
    weights = np.array([WEIGHT_UNIT - 9 * place for place in range(len(recent))], np.int64)
    return query(SHOP, recent=rows, weights=weights, closed=rows[:n_bought], seen=rows)


QUERIES = st.builds(asked, st.lists(st.integers(1, N), max_size=8, unique=True), st.integers(0, 3))


@settings(max_examples=60)
@given(st.lists(QUERIES, min_size=1, max_size=6))
def test_a_source_answers_each_query_of_a_batch_as_alone(queries: list[Query]) -> None:
    for source in (NeighbourSource(), ContentSource(), TrendSource()):
        together = source.propose(queries)
        alone = [source.propose([one])[0] for one in queries]
        assert [rows.tolist() for rows in together] == [rows.tolist() for rows in alone]
