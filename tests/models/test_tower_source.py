"""The student's own choice, of all items."""

import numpy as np

from models.tower_source import TowerSource
from operators.catalogue import Catalogue
from operators.messages import Item
from tests.models.moments import ids_by, query, rows_of

VECTORS = {"a": (3.0, 0.0), "b": (0.0, 1.0), "c": (1.0, 0.5), "d": (-2.0, 0.0)}


def shop(*, has_student: bool = True) -> Catalogue:
    catalogue = Catalogue()
    for item_id in VECTORS:
        catalogue.apply(item_id, Item(item_id=item_id, title=f"title {item_id}"))
    catalogue.refresh()
    if has_student:
        catalogue.set_embedder(lambda ids, _: np.array([VECTORS[i] for i in ids], np.float32))
    return catalogue


def user(*columns: float) -> np.ndarray:
    return np.array(columns, np.float32)


def test_items_come_by_their_products_with_the_user() -> None:
    items = shop()
    assert ids_by(TowerSource(), query(items, user_vector=user(5.0, 0.1))) == ["a", "c", "b", "d"]
    assert ids_by(TowerSource(), query(items, user_vector=user(-0.1, 2.0))) == ["b", "c", "d", "a"]


def test_the_length_of_an_items_vector_counts_as_it_does_in_its_score() -> None:
    asked = query(shop(), user_vector=user(1.0, 1.0))
    assert ids_by(TowerSource(limit=2), asked) == ["a", "c"]


def test_what_was_seen_is_left_out_before_the_limit() -> None:
    items = shop()
    asked = query(items, user_vector=user(1.0, 0.1), seen=rows_of(items, "a"))
    assert ids_by(TowerSource(limit=1), asked) == ["c"]


def test_who_has_met_much_is_searched_for_again() -> None:
    items = Catalogue()
    ids = [f"i{n}" for n in range(200)]
    for item_id in ids:
        items.apply(item_id, Item(item_id=item_id, title=f"title {item_id}"))
    items.refresh()
    items.set_embedder(
        lambda own, _: np.array([(1 - int(i[1:]) / 200, 0) for i in own], np.float32)
    )
    much = query(items, user_vector=user(1.0, 0.0), seen=rows_of(items, *ids[:150]))
    few = query(items, user_vector=user(1.0, 0.0), seen=rows_of(items, *ids[:1]))
    found = TowerSource(limit=10).propose([few, much])
    named = [[items.item_ids[row] for row in rows] for rows in found]
    assert named == [ids[1:11], ids[150:160]]


def test_without_a_student_there_is_nothing() -> None:
    assert ids_by(TowerSource(), query(shop(has_student=False))) == []
    items = shop()
    mixed = [query(items), query(items, user_vector=user(1.0, 0.0)), query(items)]
    assert [len(rows) for rows in TowerSource().propose(mixed)] == [0, 4, 0]
