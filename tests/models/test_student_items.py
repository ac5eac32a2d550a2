"""A student's table beside the catalogue is what the catalogue is, however it came to be so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import sources
from models.checkpoint import write_model
from models.export import export_student
from models.linear_weights import ItemWeights
from models.serving import StudentScorer
from models.sources import Query, TrendSource
from models.student import Student, StudentConfig
from models.student_items import StudentItems
from models.tower_source import TowerSource
from models.trend import blend
from operators.catalogue import Catalogue
from operators.messages import Item
from tests.models.moments import ids_by, query, rows_of

torch.set_num_threads(1)  # shared cores
N_ITEMS = 50
_HALVING = np.array([65_536, 32_768, 16_384])  # of recency


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> StudentScorer:
    path = tmp_path_factory.mktemp("student") / "s.pfm"
    torch.manual_seed(1)
    made = Student(StudentConfig(width=16, layers=1, heads=2), 5).eval()
    torch.nn.init.normal_(made.ids.weight, std=1.0)
    write_model(path, export_student(made, [f"i{n}" for n in range(5)], {}))
    return StudentScorer(path)


def shop(n_items: int = N_ITEMS) -> Catalogue:
    catalogue = Catalogue(max_rows=400)
    for n in range(n_items):
        catalogue.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n} of kind {n % 7}"))
    catalogue.refresh()
    return catalogue


def check(items: StudentItems, catalogue: Catalogue, scorer: StudentScorer) -> None:
    """Hold the table and the index to those of a student that comes only now."""
    fresh = StudentItems(catalogue, scorer)
    assert fresh.follow()
    assert items.table.tobytes() == fresh.table.tobytes()
    rows = np.arange(catalogue.n_rows)
    assert items.tower.holds(rows).tolist() == fresh.tower.holds(rows).tolist()
    queries = fresh.tower.vectors(rows[1:4])
    for own, other in zip(*(s.tower.search(queries, 20) for s in (items, fresh)), strict=True):
        assert own.rows.tolist() == other.rows.tolist()
        assert own.scores.tobytes() == other.scores.tobytes()


def test_it_is_the_table_and_the_index_that_the_catalogue_makes_itself(
    scorer: StudentScorer,
) -> None:
    catalogue = shop()
    catalogue.set_embedder(scorer.embed_items, scorer.item_length)
    items = StudentItems(catalogue, scorer)
    items.follow()

    assert items.table.tobytes() == catalogue.item_table.tobytes()
    queries = items.tower.vectors(np.array([1, 7, 30]))
    found = zip(items.tower.search(queries, 9), catalogue.tower.search(queries, 9), strict=True)
    assert all(own.rows.tolist() == other.rows.tolist() for own, other in found)


def test_it_follows_new_items_other_words_and_what_can_be_had(scorer: StudentScorer) -> None:
    catalogue = shop()
    items = StudentItems(catalogue, scorer)
    items.follow()
    row = catalogue.row("i7")
    before = items.table[row].tobytes()
    catalogue.apply("new", Item(item_id="new", title="never seen"))
    catalogue.apply("i7", Item(item_id="i7", title="other words"))
    catalogue.apply("i8", Item(item_id="i8", title="thing 8 of kind 1", is_available=False))
    catalogue.apply("i9", None)
    catalogue.refresh()
    items.follow()

    assert items.table[row].tobytes() != before
    is_held = items.tower.holds(np.array(catalogue.rows_of(["new", "i7", "i8", "i9"])))
    assert is_held.tolist() == [True, True, False, False]
    check(items, catalogue, scorer)


def test_it_follows_rows_that_move(scorer: StudentScorer) -> None:
    catalogue = shop(300)
    items = StudentItems(catalogue, scorer)
    items.follow()
    for n in range(0, 300, 2):
        catalogue.apply(f"i{n}", None)
    for n in range(300, 420):  # more than there is room for: empty rows give way
        catalogue.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n}"))
    catalogue.refresh()
    for n in range(420, 450):
        catalogue.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n}"))
    row = catalogue.row("i299")
    assert row != 300
    items.follow()
    check(items, catalogue, scorer)
    catalogue.refresh()
    items.follow()
    check(items, catalogue, scorer)


def test_slices_make_the_same_table_while_the_catalogue_changes(scorer: StudentScorer) -> None:
    catalogue = shop()
    items = StudentItems(catalogue, scorer)
    assert not items.follow(20)
    catalogue.apply("i3", Item(item_id="i3", title="other words"))
    catalogue.apply("new", Item(item_id="new", title="never seen"))
    catalogue.refresh()
    assert not items.follow(20)
    assert items.follow(20)
    check(items, catalogue, scorer)


def test_a_view_shares_all_but_the_index(scorer: StudentScorer) -> None:
    catalogue = shop()
    items = StudentItems(catalogue, scorer)
    items.follow()
    view = items.view()

    assert view.tower is items.tower
    assert view.content is catalogue.content
    assert catalogue.tower is not items.tower


def test_weights_retrieve_in_the_networks_place(tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = Student(StudentConfig(width=16, layers=1, heads=2), 300).eval()
    torch.nn.init.zeros_(made.ids.weight)
    # i7 says 4 of i1 and 1 of i2, and i4 says 2 of i2 and of i9, in units of 2^-15.
    starts = np.repeat([0, 2, 4], [5, 3, 293])
    weights = ItemWeights(starts, np.int32([2, 9, 1, 2]), np.uint16([2, 2, 4, 1]) * 1_000)
    ids = [f"i{n}" for n in range(300)]
    write_model(tmp_path / "s.pfm", export_student(made, ids, {}, weights))
    scorer = StudentScorer(tmp_path / "s.pfm")
    assert scorer.item_ids == ["i1", "i2", "i4", "i7", "i9"]  # the others are of no use
    catalogue = shop(300)
    items = StudentItems(catalogue, scorer)
    items.follow()
    assert len(items.tower) == 0  # nothing searches it

    def asked(*recent: str) -> list[Query]:
        rows = rows_of(catalogue, *recent)
        one = query(catalogue, recent=rows, weights=_HALVING[: len(rows)], seen=rows)
        return items.asked(np.ones((1, 16), np.float32), [one])

    assert ids_by(TowerSource(9), *asked("i7", "i4")) == ["i1", "i2", "i9"]
    assert ids_by(TowerSource(9), *asked("i4", "i7", "i9")) == ["i2", "i1"]
    assert ids_by(TowerSource(1), *asked("i4", "i7")) == ["i2"]
    assert ids_by(TowerSource(9), *asked("i0", "i3")) == []
    several = [*asked("i4"), *asked("i0"), *asked(), *asked("i7", "i4")]
    assert [len(rows) for rows in TowerSource(9).propose(several)] == [2, 0, 0, 3]
    alone = [TowerSource(9).propose([one])[0].tolist() for one in several]
    assert [rows.tolist() for rows in TowerSource(9).propose(several)] == alone

    for n in range(0, 300, 2):
        catalogue.apply(f"i{n}", None)
    for n in range(300, 420):
        catalogue.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n}"))
    catalogue.refresh()
    items.follow()
    check(items, catalogue, scorer)
    assert ids_by(TowerSource(9), *asked("i7")) == ["i1"]
    assert ids_by(TowerSource(9), *asked("i419")) == []


def test_lists_are_made_once_for_all_views(
    scorer: StudentScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, items = shop(), []
    made = StudentItems(catalogue, scorer)
    made.follow()
    monkeypatch.setattr(sources, "blend", lambda *given: items.append(given) or blend(*given))
    trend = TrendSource()
    for _ in range(3):
        assert len(trend.propose([query(made.view())])[0])
    assert len(items) == 1
