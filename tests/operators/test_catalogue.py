"""The catalogue: rows, their order, what is encoded when, and what bounds it."""

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features import TEXT_DIM
from models.neighbours import to_grid
from models.text import encode_texts
from models.vector_index import VectorIndex
from operators.catalogue import Catalogue
from operators.messages import Item, ItemStats, LocalText
from tests.conftest import T0_MS


def item(item_id: str, title: str = "", **fields: object) -> Item:
    return Item(item_id=item_id, title=title or f"title of {item_id}", **fields)


def stats(item_id: str, **fields: object) -> ItemStats:
    counts = dict.fromkeys(
        ("views", "clicks", "carts", "purchases", "favorites", "pushes", "opens"), 0.0
    )
    rest = {"rating_sum": 0.0, "rating_count": 0.0, "popularity_1d": 1.0, "first_seen_ms": T0_MS}
    empty = {"as_of_ms": T0_MS, "by_country": {}, "neighbours": []}
    return ItemStats(item_id=item_id, **{**counts, **rest, **empty, **fields})


def loaded(*items: Item, **options: object) -> Catalogue:
    catalogue = Catalogue(**options)
    for each in items:
        catalogue.apply(each.item_id, each)
    catalogue.refresh()
    return catalogue


def neighbours(catalogue: Catalogue, item_id: str) -> list[str]:
    rows = catalogue.neighbours.get(catalogue.row(item_id))[0]
    return [catalogue.item_ids[row] for row in rows.tolist() if row]


def words_of(catalogue: Catalogue, n_rows: int) -> NDArray[np.float32]:
    return catalogue.text_vectors[:n_rows] / np.float32(2_048)


def servable(catalogue: Catalogue) -> set[str]:
    rows = np.flatnonzero(catalogue.is_servable[: catalogue.n_rows]).tolist()
    return {catalogue.item_ids[row] for row in rows}


class Recorder:
    """An encoder that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        self.asked += texts
        return encode_texts(texts)


def embed(ids: list[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    assert "" not in ids
    lengths = np.array([[len(item_id)] for item_id in ids], np.float32)
    return np.hstack([vectors[:, :3], lengths]).astype(np.float32)


def test_later_items_are_appended_in_the_order_of_arrival() -> None:
    catalogue = loaded(item("b"), item("a"))
    catalogue.apply("d", item("d"))
    catalogue.apply_stats(stats("c", neighbours=[("b", 2.0), ("e", 1.0)]))
    catalogue.refresh()
    assert list(catalogue.item_ids) == ["", "b", "a", "d", "c", "e"]
    assert len(set(catalogue.id_hash[1:6].tolist())) == 5


def test_an_item_is_hidden_until_the_refresh_that_encodes_it() -> None:
    catalogue = loaded(item("a"))
    catalogue.apply("b", item("b"))
    assert (catalogue.row("b"), servable(catalogue), "b" in catalogue) == (0, {"a"}, False)
    catalogue.refresh()
    assert (catalogue.row("b"), servable(catalogue), "b" in catalogue) == (2, {"a", "b"}, True)


def test_only_changed_texts_are_encoded() -> None:
    encode = Recorder()
    catalogue = loaded(item("a", "red lamp"), encode=encode)
    catalogue.apply("a", item("a", "red lamp", price=5.0))
    catalogue.refresh()
    catalogue.apply("a", item("a", "blue lamp", price=5.0))
    catalogue.refresh()
    assert encode.asked == ["red lamp", "blue lamp"]
    assert catalogue.price[1] == 5.0


def test_the_text_vector_is_that_of_title_categories_tags_and_description() -> None:
    catalogue = loaded(
        item("a", "lamp", description="for reading", categories=["home"], tags=["red"])
    )
    [wanted] = encode_texts(["lamp home red for reading"])
    assert np.abs(words_of(catalogue, 2)[1] - wanted).max() <= 2**-12


def test_a_removed_item_is_not_servable_and_may_come_back_without_encoding() -> None:
    encode = Recorder()
    catalogue = loaded(item("a"), encode=encode)
    catalogue.apply("a", None)
    assert (servable(catalogue), len(catalogue)) == (set(), 0)
    catalogue.apply("a", item("a"))
    assert (servable(catalogue), len(catalogue), len(encode.asked)) == ({"a"}, 1, 1)


def test_an_item_removed_before_the_refresh_is_found_when_it_comes_back() -> None:
    catalogue = Catalogue()
    catalogue.apply("a", item("a"))
    catalogue.apply("a", None)
    catalogue.refresh()
    assert (servable(catalogue), len(catalogue.content)) == (set(), 0)
    catalogue.apply("a", item("a"))
    catalogue.refresh()
    assert (servable(catalogue), len(catalogue.content)) == ({"a"}, 1)


def test_removing_an_unknown_item_does_nothing() -> None:
    catalogue = loaded(item("a"))
    catalogue.apply("zz", None)
    assert (len(catalogue), catalogue.n_rows) == (1, 2)


def test_an_unavailable_item_stays_so_through_a_change_of_its_text() -> None:
    catalogue = loaded(item("a"))
    catalogue.apply("a", item("a", "new words", is_available=False))
    assert servable(catalogue) == set()
    catalogue.refresh()
    assert servable(catalogue) == set()


def test_statistics_may_come_before_the_item() -> None:
    catalogue = Catalogue()
    catalogue.apply_stats(stats("a", views=7.0, neighbours=[("b", 1.0)]))
    catalogue.refresh()
    assert (servable(catalogue), len(catalogue), "a" in catalogue) == (set(), 0, False)
    catalogue.apply("a", item("a"))
    catalogue.refresh()
    assert servable(catalogue) == {"a"}
    assert catalogue.views[catalogue.row("a")] == 7.0
    assert neighbours(catalogue, "a") == ["b"]


def test_newer_statistics_replace_the_older_ones_whole() -> None:
    catalogue = loaded(item("a"))
    many = [(f"n{n:02d}", 1.0) for n in range(60)]
    catalogue.apply_stats(stats("a", neighbours=many, by_country={"GB": 1.0, "DE": 1.0}))
    catalogue.apply_stats(stats("a", neighbours=many[:2], by_country={"FR": 1.0}))
    catalogue.refresh()
    assert neighbours(catalogue, "a") == ["n00", "n01"]
    assert np.count_nonzero(catalogue.country[catalogue.row("a")]) == 1


def test_a_window_holds_from_its_start_until_before_its_end() -> None:
    window = {"available_from_ms": T0_MS, "available_until_ms": T0_MS + 10}
    catalogue = loaded(item("a", **window), item("b"))
    rows = np.arange(catalogue.n_rows)
    is_open = [catalogue.is_open(rows, T0_MS + at).tolist() for at in (-1, 0, 9, 10)]
    assert is_open == [[False, at, True] for at in (False, True, True, False)]


def test_the_main_category_is_the_first() -> None:
    catalogue = loaded(item("a", categories=["shoes", "red"]), item("b"))
    assert [catalogue.category_of(x) for x in ("a", "b", "unknown")] == ["shoes", "", ""]


def test_an_item_called_none_is_never_taken_for_an_item() -> None:
    catalogue = loaded(item("none"), item("a"))
    assert (servable(catalogue), len(catalogue)) == ({"a"}, 1)


def test_the_item_table_follows_the_rows() -> None:
    catalogue = loaded(item("a"), item("bb"))
    assert catalogue.item_table.shape == (1, 0)
    catalogue.set_embedder(embed)
    catalogue.apply("ccc", item("ccc"))
    catalogue.apply("a", item("a", "other words"))
    assert catalogue.item_table[:, 3].tolist() == [0, 1, 2]
    catalogue.refresh()
    table = catalogue.item_table
    assert table.dtype == np.float16
    assert table.flags.c_contiguous
    assert table[:, 3].tolist() == [0, 1, 2, 3]
    assert (table[:, :3] == words_of(catalogue, 4)[:, :3].astype(np.float16)).all()


def test_another_model_embeds_everything_anew() -> None:
    catalogue = loaded(item("a"), item("b"))
    catalogue.set_embedder(embed)
    catalogue.set_embedder(lambda ids, vectors: np.ones((len(ids), 2), np.float32))
    assert catalogue.item_table.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_model_set_before_the_items_come_sees_them() -> None:
    catalogue = Catalogue()
    catalogue.set_embedder(embed)
    for item_id in ("ccc", "a", "bb"):
        catalogue.apply(item_id, item(item_id))
    catalogue.refresh()
    assert list(catalogue.item_ids) == ["", "ccc", "a", "bb"]
    assert catalogue.item_table[:, 3].tolist() == [0, 3, 1, 2]


def test_a_refresh_without_changes_is_told_and_keeps_the_version() -> None:
    catalogue = loaded(item("a"))
    version = catalogue.version
    assert (catalogue.refresh(), catalogue.version) == (False, version)
    catalogue.apply_stats(stats("a"))
    assert (catalogue.refresh(), catalogue.version) == (True, version + 1)


def test_ids_beyond_the_bound_are_refused_and_counted() -> None:
    catalogue = loaded(*(item(f"i{n}") for n in range(5)), max_rows=4)
    assert (len(catalogue), catalogue.n_rows, catalogue.n_refused) == (3, 4, 2)
    catalogue.apply_stats(stats("i0", neighbours=[("i1", 2.0), ("x", 1.0)]))
    assert neighbours(catalogue, "i0") == ["i1"]


def test_a_full_table_takes_new_items_again_once_others_are_removed() -> None:
    catalogue = loaded(*(item(f"i{n}") for n in range(3)), max_rows=4)
    catalogue.apply("i0", None)
    catalogue.apply("i1", None)
    catalogue.refresh()
    catalogue.apply("i9", item("i9"))
    catalogue.refresh()
    assert servable(catalogue) == {"i2", "i9"}


def test_rows_without_an_item_are_bounded_and_the_others_keep_all_they_have() -> None:
    catalogue = Catalogue()
    catalogue.set_embedder(embed)
    for n in range(6_000):
        item_id = f"i{n:04d}"
        catalogue.apply(item_id, item(item_id, price=float(n)))
        after = [(f"i{n + step:04d}", 2.0 - step) for step in (0, 1)]
        catalogue.apply_stats(stats(item_id, as_of_ms=T0_MS + n, neighbours=after))
        if n >= 100:
            catalogue.apply(f"i{n - 100:04d}", None)
        if n % 50 == 0:
            catalogue.refresh()
            assert catalogue.n_rows <= 1 + 2 * (100 + 1_024) + 51
    catalogue.refresh()
    assert servable(catalogue) == {f"i{n:04d}" for n in range(5_900, 6_000)}
    row = catalogue.row("i5950")
    assert catalogue.price[row] == 5_950.0
    assert neighbours(catalogue, "i5950") == ["i5950", "i5951"]
    assert catalogue.item_table.shape == (catalogue.n_rows, 4)
    assert (catalogue.item_table[:, :3] == words_of(catalogue, catalogue.n_rows)[:, :3]).all()
    assert catalogue.row("i0001") == 0
    assert catalogue.item("i5950") == item("i5950", price=5_950.0)
    assert held(catalogue, catalogue.content) == servable(catalogue)
    assert held(catalogue, catalogue.tower) == servable(catalogue)
    assert nearest(catalogue, "title of i5950", 1) == ["i5950"]


def nearest(catalogue: Catalogue, words: str, limit: int = 3) -> list[str]:
    [hits] = catalogue.content.search(to_grid(encode_texts([words])), limit)
    return [catalogue.item_ids[row] for row in hits.rows.tolist()]


def held(catalogue: Catalogue, index: VectorIndex) -> set[str]:
    rows = np.arange(catalogue.n_rows)
    return {catalogue.item_ids[row] for row in rows[index.holds(rows)].tolist()}


def test_the_content_of_an_item_is_found_from_the_refresh_on_until_it_is_gone() -> None:
    catalogue = loaded(item("a", "red lamp"), item("b", "green tea"))
    catalogue.apply("c", item("c", "red lamps"))
    assert nearest(catalogue, "red lamp", 1) == ["a"]
    catalogue.refresh()
    assert nearest(catalogue, "red lamp", 2) == ["a", "c"]
    catalogue.apply("a", None)
    catalogue.apply("c", item("c", "red lamps", is_available=False))
    assert not catalogue.is_open(np.array(catalogue.rows_of("ac")), T0_MS).any()
    catalogue.refresh()
    assert nearest(catalogue, "red lamp") == ["b"]
    catalogue.apply("b", item("b", "blue lamp"))
    catalogue.apply("c", item("c", "red lamps"))
    catalogue.refresh()
    assert nearest(catalogue, "red lamps") == ["c", "b"]


def test_an_item_without_words_can_be_had_but_has_no_content() -> None:
    catalogue = loaded(item("a", "..."), item("b"))
    assert (servable(catalogue), held(catalogue, catalogue.content)) == ({"a", "b"}, {"b"})


def packed(words: str) -> bytes:
    [steps] = np.rint(to_grid(encode_texts([words])) * 2_048)
    return steps.astype("<i2").tobytes()


def test_another_encoder_serves_all_at_once_and_follows_from_then_on() -> None:
    catalogue = loaded(item("a", "lampe"), item("b", "tee"))
    assert catalogue.encoder == "hash-1"
    version = catalogue.version
    catalogue.serve_encoder("e2", {"a": packed("lamp"), "c": packed("lamps")})
    assert (catalogue.encoder, catalogue.version > version) == ("e2", True)
    assert held(catalogue, catalogue.content) == {"a"}
    catalogue.apply("c", item("c", "lampen"))
    catalogue.apply_vector("b", packed("tea"))
    catalogue.refresh()
    assert nearest(catalogue, "lamp", 2) == ["a", "c"]
    assert nearest(catalogue, "tea", 1) == ["b"]
    catalogue.apply("a", item("a", "tee"))  # its new vector comes later
    catalogue.refresh()
    assert nearest(catalogue, "lamp", 1) == ["a"]
    catalogue.apply_vector("a", None)
    catalogue.refresh()
    assert (nearest(catalogue, "lamp", 1), "a" in servable(catalogue)) == (["c"], True)
    catalogue.serve_encoder("e3", {"a": packed("tea")})
    assert held(catalogue, catalogue.content) == {"a"}


def test_the_students_own_text_vectors_stay_with_another_encoder() -> None:
    catalogue = loaded(item("a", "lampe"))
    catalogue.set_embedder(embed)
    before = catalogue.item_table.copy()
    catalogue.serve_encoder("e2", {"a": packed("lamp")})
    assert (catalogue.item_table == before).all()


def test_the_tower_holds_what_can_be_had_by_the_students_vectors() -> None:
    catalogue = loaded(item("a"), item("b", is_available=False))
    assert catalogue.tower.search(np.ones((1, 4), np.float32), 3)[0].rows.tolist() == []
    catalogue.set_embedder(
        lambda ids, vectors: np.float32([[ord(i[0]) == ord(c) for c in "abcd"] for i in ids])
    )
    catalogue.apply("c", item("c"))
    catalogue.apply("b", item("b"))
    catalogue.refresh()
    users = to_grid(np.eye(4))
    best = [hits.rows[0] for hits in catalogue.tower.search(users[:3], 2)]
    assert best == catalogue.rows_of("abc")
    catalogue.apply("c", None)
    catalogue.refresh()
    assert held(catalogue, catalogue.tower) == {"a", "b"}


def test_what_is_shown_of_an_item_is_there_at_once() -> None:
    catalogue = Catalogue()
    shown = item(
        "a",
        "lamp",
        description="not shown",
        categories=["home", "light"],
        price=9.99,
        available_from_ms=1,
        available_until_ms=2,
        is_available=False,
        image_url="https://i/a.jpg",
        deep_link="shop://a",
        image_vector=[0.5],
        locales={"de": LocalText(title="Lampe", description="nicht gezeigt")},
    )
    catalogue.apply("a", shown)
    assert catalogue.item("a") == msgspec.structs.replace(
        shown,
        description="",
        categories=["home"],
        image_vector=[],
        locales={"de": LocalText(title="Lampe")},
    )
    catalogue.apply("a", item("a", "tea"))
    assert catalogue.item("a") == item("a", "tea")
    catalogue.apply("a", None)
    assert (catalogue.item("a"), catalogue.item("unknown")) == (None, None)


IDS = st.sampled_from([f"i{n}" for n in range(8)])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("item"), IDS, st.booleans()),
        st.tuples(st.just("remove"), IDS, st.booleans()),
        st.tuples(st.just("stats"), IDS, st.booleans()),
        st.tuples(st.just("refresh"), IDS, st.booleans()),
    ),
    max_size=40,
)


@given(CHANGES)
def test_after_a_refresh_the_servable_items_are_those_that_were_last_said_to_be(changes) -> None:
    catalogue, wanted = Catalogue(), {}
    for kind, item_id, is_available in changes:
        if kind == "item":
            catalogue.apply(item_id, item(item_id, is_available=is_available))
            wanted[item_id] = is_available
        elif kind == "remove":
            catalogue.apply(item_id, None)
            wanted.pop(item_id, None)
        elif kind == "stats":
            catalogue.apply_stats(stats(item_id, neighbours=[("i0", 1.0), ("other", 0.5)]))
        else:
            catalogue.refresh()
    catalogue.refresh()
    assert servable(catalogue) == {
        item_id for item_id, is_available in wanted.items() if is_available
    }
    assert len(catalogue) == len(wanted)
    vectors = catalogue.text_vectors[: catalogue.n_rows]
    assert vectors.shape[1] == TEXT_DIM
    assert all(vectors[catalogue.row(item_id)].any() for item_id in wanted)
    assert held(catalogue, catalogue.content) == servable(catalogue)
    shown = {
        item_id
        for item_id in wanted
        if catalogue.item(item_id) == item(item_id, is_available=wanted[item_id])
    }
    assert shown == set(wanted)
