"""What a user wrote finds items, in the space of the items' content."""

import numpy as np

from models.intent_source import IntentSource
from models.neighbours import to_grid
from models.text import encode_texts
from operators.catalogue import Catalogue
from operators.messages import Item
from tests.models.moments import ids_by, query, rows_of

TITLES = {
    "lamp": "red garden lamp",
    "lantern": "blue garden lamp",
    "cake": "chocolate cake",
    "tart": "lemon cake",
    "tent": "tent for four",
}


def shop() -> Catalogue:
    catalogue = Catalogue()
    for item_id, title in TITLES.items():
        catalogue.apply(item_id, Item(item_id=item_id, title=title))
    catalogue.refresh()
    return catalogue


def wrote(text: str) -> np.ndarray:
    return to_grid(encode_texts([text]))[0]


def test_a_search_finds_what_it_asks_for_and_leaves_out_the_rest() -> None:
    asked = query(shop(), intent=wrote("garden lamp"))
    assert sorted(ids_by(IntentSource(), asked)) == ["lamp", "lantern"]
    assert ids_by(IntentSource(), query(shop(), intent=wrote("red garden lamp")))[0] == "lamp"


def test_the_intent_of_the_session_comes_before_the_taste_of_the_user() -> None:
    items = shop()
    both = query(items, intent=wrote("chocolate cake"), taste=wrote("garden lamp"))
    found = ids_by(IntentSource(), both)
    assert found[0] == "cake"
    assert set(found[-2:]) == {"lamp", "lantern"}
    taste = ids_by(IntentSource(), query(items, taste=wrote("garden lamp")))
    assert sorted(taste) == ["lamp", "lantern"]


def test_no_row_comes_twice_and_half_as_many_are_of_the_taste() -> None:
    items = shop()
    same = query(items, intent=wrote("garden lamp"), taste=wrote("garden lamp"))
    assert len(ids_by(IntentSource(), same)) == 2
    asked = query(items, intent=wrote("cake"), taste=wrote("garden lamp"))
    assert len(ids_by(IntentSource(limit=2), asked)) == 3


def test_what_was_seen_is_no_answer() -> None:
    items = shop()
    asked = query(items, intent=wrote("garden lamp"), seen=rows_of(items, "lamp"))
    assert ids_by(IntentSource(), asked) == ["lantern"]


def test_who_wrote_nothing_gets_nothing_whoever_shares_the_batch() -> None:
    items = shop()
    one = query(items, intent=wrote("cake"))
    two = query(items, taste=wrote("garden lamp"))
    found = IntentSource().propose([query(items), one, two, query(items)])
    alone = [IntentSource().propose([asked])[0].tolist() for asked in (one, two)]
    assert [rows.tolist() for rows in found] == [[], *alone, []]
    assert [rows.tolist() for rows in IntentSource().propose([query(items)])] == [[]]
