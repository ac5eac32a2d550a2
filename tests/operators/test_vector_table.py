"""Which encoder serves: the newest that is whole, and the change to it in one step."""

import base64
from collections.abc import Mapping

import pytest

from operators.messages import ItemVector
from operators.vector_table import VectorTable


class Recorded:
    """An index that remembers what it searches."""

    def __init__(self) -> None:
        self.encoder = "hash-1"
        self.vectors: dict[str, bytes] = {}
        self.n_switches = 0

    def apply_vector(self, item_id: str, vector: bytes | None) -> None:
        if vector is None:
            self.vectors.pop(item_id, None)
        else:
            self.vectors[item_id] = vector

    def serve_encoder(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        self.encoder, self.vectors = encoder, dict(vectors)
        self.n_switches += 1


class Topic:
    """Rows as `catalog` writes them, into a table."""

    def __init__(self) -> None:
        self.index = Recorded()
        self.table = VectorTable(self.index)

    def put(self, encoder: str, *item_ids: str, byte: int = 0) -> None:
        vector = base64.b64encode(bytes([byte]) * 128).decode()
        for item_id in item_ids:
            row = ItemVector(encoder=encoder, item_id=item_id, vector=vector)
            self.table.apply(f"{encoder}/{item_id}", row)
        self.table.refresh()

    def whole(self, encoder: str, since_ms: int, *n_items: int) -> None:
        for number, n in enumerate(n_items):
            row = ItemVector(
                encoder=encoder,
                shard=f"i{number}",
                n_shards=len(n_items),
                n_items=n,
                since_ms=since_ms,
            )
            self.table.apply(f"{encoder}#i{number}", row)
            self.table.refresh()

    def remove(self, *keys: str) -> None:
        for key in keys:
            self.table.apply(key, None)
        self.table.refresh()


@pytest.fixture
def topic() -> Topic:
    return Topic()


def test_an_encoder_serves_when_its_last_vector_is_there(topic: Topic) -> None:
    topic.put("e1", "a", "b/c")
    topic.whole("e1", 5, 2, 1)
    assert topic.index.encoder == "hash-1"

    topic.put("e1", "d#e")
    assert topic.index.encoder == "e1"
    assert set(topic.index.vectors) == {"a", "b/c", "d#e"}


def test_an_encoder_serves_when_the_last_shard_has_said_so(topic: Topic) -> None:
    topic.put("e1", "a", "b")
    topic.whole("e1", 5, 2)
    assert topic.index.encoder == "e1"

    other = Topic()
    other.put("e1", "a", "b")
    row = ItemVector(encoder="e1", shard="i0", n_shards=2, n_items=1, since_ms=5)
    other.table.apply("e1#i0", row)
    other.table.refresh()
    assert other.index.encoder == "hash-1"


def test_what_changes_later_is_served_at_once(topic: Topic) -> None:
    topic.put("e1", "a", "b")
    topic.whole("e1", 5, 2)
    topic.put("e1", "a", byte=7)
    topic.put("e1", "c")
    topic.remove("e1/b")

    assert topic.index.vectors == {"a": b"\7" * 128, "c": b"\0" * 128}
    assert topic.index.n_switches == 1


def test_the_next_encoder_is_kept_beside_until_it_is_whole(topic: Topic) -> None:
    topic.put("e1", "a", "b")
    topic.whole("e1", 5, 2)
    topic.put("e2", "a", byte=9)
    topic.whole("e2", 6, 2)
    assert topic.index.encoder == "e1"
    assert topic.index.vectors == dict.fromkeys("ab", b"\0" * 128)

    topic.put("e2", "b", byte=9)
    assert topic.index.encoder == "e2"
    assert topic.index.vectors == dict.fromkeys("ab", b"\x09" * 128)


def test_an_item_removed_meanwhile_does_not_hold_the_change_up(topic: Topic) -> None:
    topic.put("e1", "a", "b")
    topic.whole("e1", 5, 3)
    topic.remove("e1/b")
    topic.whole("e1", 5, 1)

    assert topic.index.encoder == "e1"
    assert set(topic.index.vectors) == {"a"}


def test_a_start_that_finds_two_whole_encoders_serves_the_newer(topic: Topic) -> None:
    for encoder, since_ms in (("e2", 6), ("e1", 5)):
        topic.put(encoder, "a")
        topic.whole(encoder, since_ms, 1)

    assert topic.index.encoder == "e2"
    assert topic.index.n_switches == 1


def test_the_old_vectors_that_are_removed_leave_the_new_ones(topic: Topic) -> None:
    for encoder, since_ms in (("e1", 5), ("e2", 6)):
        topic.put(encoder, "a")
        topic.whole(encoder, since_ms, 1)
    topic.remove("e1/a", "e1#i0", "e1/never")

    assert topic.index.encoder == "e2"
    assert set(topic.index.vectors) == {"a"}


def test_back_to_an_encoder_before_waits_for_it_to_be_whole_again(topic: Topic) -> None:
    for encoder, since_ms in (("e1", 5), ("e2", 6)):
        topic.put(encoder, "a", "b")
        topic.whole(encoder, since_ms, 2)
    topic.put("e1", "a", "b", byte=3)
    assert topic.index.encoder == "e2"

    topic.whole("e1", 7, 2)
    assert topic.index.encoder == "e1"
    assert set(topic.index.vectors.values()) == {b"\3" * 128}


def test_an_empty_catalogue_is_whole(topic: Topic) -> None:
    topic.whole("e1", 5, 0, 0)

    assert topic.index.encoder == "e1"
    assert topic.index.vectors == {}


@pytest.mark.parametrize("vector", ["", "AAAA", "no base64!", "A" * 171])
def test_a_vector_that_is_none_is_refused(topic: Topic, vector: str) -> None:
    with pytest.raises(ValueError, match="vector"):
        topic.table.apply("e1/a", ItemVector(encoder="e1", item_id="a", vector=vector))
