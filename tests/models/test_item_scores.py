"""Scores of candidates, to the bit."""

import numpy as np
import pytest

from models.item_scores import scores_of

ROWS = np.random.default_rng(1).integers(0, 200, (9, 40))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_products_are_added_up_column_by_column(dtype: type[np.floating], width: int) -> None:
    rng = np.random.default_rng(width)
    table = rng.normal(size=(200, width)).astype(dtype)
    table[:, 0] *= np.exp2(rng.integers(-23, 4, 200))  # some are subnormal
    users = rng.normal(size=(9, width)).astype(np.float32)
    products = table[ROWS].astype(np.float32) * users[:, None]
    expected = np.where(ROWS > 0, np.add.accumulate(products, axis=2)[..., -1], -np.inf)
    assert scores_of(table, users, ROWS).tolist() == expected.tolist()


def test_a_score_does_not_depend_on_those_beside_it() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 64)).astype(np.float16)
    users = rng.normal(size=(9, 64)).astype(np.float32)
    together = scores_of(table, users, ROWS)
    for b, row in enumerate(ROWS):
        alone = scores_of(table, users[b : b + 1], row[None, 5:9].copy())
        assert alone.tobytes() == together[b, 5:9].tobytes()
