"""The cache of what was encoded, one shard of it: what is asked for, told and removed, and when."""

from typing import Any

import pytest

from operators.hops import RawMessage
from operators.item_contents import (
    Contents,
    ContentShard,
    ItemBatch,
    ItemChange,
    ItemDecoder,
    ItemState,
    Progress,
    Removal,
    decode_state,
    encode_state,
    new_state,
)
from operators.messages import Item, ItemVector
from operators.packed import NewerStateError
from operators.shards import DictShard


class Catalogue:
    """A shard that is started again and again on one state, and a clock."""

    def __init__(self, n_partitions: int = 2, retire_ms: int = 60_000) -> None:
        self._options: dict[str, Any] = {"n_partitions": n_partitions, "retire_ms": retire_ms}
        self._saved: tuple[tuple[str, bytes], ...] = ()
        self.now_ms = 1_000

    def start(self, encoder: str, files: tuple[str, ...] = ()) -> ContentShard:
        if hasattr(self, "states"):
            self._saved = self.states.snapshot()
        self.states = DictShard(
            "i00", encode=encode_state, decode=decode_state, new=new_state, state=self._saved
        )
        return ContentShard(
            "i00",
            self.states,
            encoder,
            n_shards=1,
            now_ms=lambda: self.now_ms,
            files_of=lambda item: files,
            **self._options,
        )


def batch(*changes: ItemChange, end_of: int | None = None) -> ItemBatch:
    return ItemBatch("i00", end_of or 0, list(changes), end_of is not None)


def change(item_id: str, title: str = "", version: int = 0, **fields: Any) -> ItemChange:
    item = Item(item_id=item_id, title=title, **fields) if title else None
    return ItemChange(item_id, item, version)


def ends(shard: ContentShard, n_partitions: int = 2) -> None:
    assert shard.on_batch([batch(end_of=number) for number in range(n_partitions)]) == []


def asked(shard: ContentShard, *changes: ItemChange) -> list[str]:
    return [out.item_id for out in shard.on_batch([batch(*changes)]) if isinstance(out, Contents)]


def removed(out: list[Any]) -> list[tuple[str, str]]:
    return [(row.encoder, row.item_id) for row in out if isinstance(row, Removal)]


def test_nothing_is_told_before_all_partitions_were_read_to_their_ends() -> None:
    shard = Catalogue().start("e1")
    shard.on_batch([batch(change("a", "lamp"), end_of=0)])
    assert shard.due_ms is None
    assert shard.on_timer() == []

    shard.on_batch([batch(end_of=1)])
    assert shard.due_ms == 1_500
    assert shard.on_timer() == [
        ItemVector(encoder="e1", shard="i00", n_shards=1, n_items=1, since_ms=1_000)
    ]
    assert shard.due_ms is None


def test_the_number_of_vectors_is_told_again_when_it_changes_and_only_then() -> None:
    shard = Catalogue().start("e1")
    shard.on_batch([batch(change("a", "lamp"))])
    ends(shard)
    shard.on_timer()

    asked(shard, change("a", "red lamp", 1))
    assert shard.due_ms is None
    asked(shard, change("b", "tea", 2))
    shard.on_batch([batch(change("a", version=3))])
    [row] = shard.on_timer()
    assert isinstance(row, ItemVector)
    assert row.n_items == 1


@pytest.mark.parametrize(
    ("fields", "is_asked"),
    [
        ({}, False),
        ({"price": 5.0, "is_available": False, "deep_link": "app://a"}, False),
        ({"tags": ["warm"]}, True),
        ({"description": "gives light"}, True),
        ({"image_vector": [0.5]}, True),
        ({"audio_vector": [0.5]}, True),
    ],
)
def test_what_an_encoder_reads_is_encoded_anew_and_nothing_else(
    fields: dict[str, Any], is_asked: bool
) -> None:
    shard = Catalogue().start("e1")
    asked(shard, change("a", "lamp"))

    assert asked(shard, change("a", "lamp", 1, **fields)) == (["a"] if is_asked else [])


def test_another_file_of_an_item_is_another_content() -> None:
    catalogue = Catalogue()
    asked(catalogue.start("e1", ("a.png", "")), change("a", "lamp"))

    assert asked(catalogue.start("e1", ("a.png", "")), change("a", "lamp")) == []
    assert asked(catalogue.start("e1", ("b.png", "")), change("a", "lamp")) == ["a"]


def test_the_old_vectors_stay_until_their_time_is_over() -> None:
    catalogue = Catalogue()
    old = catalogue.start("e1")
    asked(old, change("a", "lamp"), change("b", "tea"))
    ends(old)
    catalogue.now_ms = 5_000
    new = catalogue.start("e2")
    asked(new, change("a", "lamp"), change("b", "tea"))
    assert removed(new.on_timer()) == []

    ends(new)
    assert [type(row) for row in new.on_timer()] == [ItemVector]
    assert new.due_ms == 65_000
    catalogue.now_ms = 64_999
    assert new.on_timer() == []
    catalogue.now_ms = 65_000
    assert removed(new.on_timer()) == [("e1", "a"), ("e1", "b"), ("e1", "")]
    assert new.due_ms is None


def test_a_restart_in_between_still_removes_the_old_vectors() -> None:
    catalogue = Catalogue()
    old = catalogue.start("e1")
    asked(old, change("a", "lamp"))
    ends(old)
    new = catalogue.start("e2")
    asked(new, change("a", "lamp"))
    ends(new)
    again = catalogue.start("e2")
    catalogue.now_ms += 60_000

    told = again.on_timer()
    assert [row.n_items for row in told if isinstance(row, ItemVector)] == [1]
    assert removed(told) == [("e1", "a"), ("e1", "")]
    assert removed(catalogue.start("e2").on_timer()) == []


def test_a_shard_of_many_items_removes_them_in_parts() -> None:
    catalogue = Catalogue(retire_ms=0)
    changes = [change(f"a{n:04d}", "lamp") for n in range(1_500)]
    old = catalogue.start("e1")
    asked(old, *changes)
    ends(old)
    new = catalogue.start("e2")
    asked(new, *changes)
    ends(new)

    parts = [removed(new.on_timer()) for _ in range(3)]
    assert [len(part) for part in parts] == [1_000, 501, 0]
    assert len(set(parts[0] + parts[1])) == 1_501


def test_an_encoder_that_never_became_whole_leaves_nothing_behind() -> None:
    catalogue = Catalogue(retire_ms=0)
    first = catalogue.start("e1")
    asked(first, change("a", "lamp"), change("b", "tea"))
    ends(first)
    asked(catalogue.start("e2"), change("a", "lamp"))  # and back before it has seen "b"
    back = catalogue.start("e1")

    assert asked(back, change("a", "lamp"), change("b", "tea")) == ["a"]
    ends(back)
    told = back.on_timer()
    assert [row.n_items for row in told if isinstance(row, ItemVector)] == [2]
    assert removed(told) == [("e2", "a"), ("e2", "")]


def test_a_removed_item_loses_the_vectors_of_all_encoders() -> None:
    catalogue = Catalogue()
    asked(catalogue.start("e1"), change("a", "lamp"))
    new = catalogue.start("e2")
    asked(new, change("a", "lamp"))

    assert removed(new.on_batch([batch(change("a", version=9))])) == [("e2", "a"), ("e1", "a")]
    assert catalogue.states.peek("a") is None


def test_the_removal_of_an_item_that_is_not_known_is_told_too() -> None:
    shard = Catalogue().start("e1")

    assert shard.on_batch([batch(change("a", version=9))]) == [Removal("e1", "a", 9)]


@pytest.mark.parametrize(
    "state", [ItemState("k", "e2", ["e1"]), Progress("e2", 5, True, ["e1"]), ItemState()]
)
def test_a_state_comes_back_as_it_was(state: ItemState | Progress) -> None:
    packed = encode_state(state)

    assert decode_state(packed) == state
    with pytest.raises(NewerStateError):
        decode_state(bytes([packed[0] + 1]) + packed[1:])


def test_a_message_without_a_key_and_one_that_is_no_item_are_passed_over() -> None:
    decoder = ItemDecoder(3, "items", "e1")
    good = b'{"item_id":"a","title":"Lamp"}'
    values = [(None, good), (b"b", b"no json"), (b"c", b'{"item_id":"c"}'), (b"a", good)]
    poll = decoder.decode(
        [RawMessage("items", 3, n, key, value, 50 + n) for n, (key, value) in enumerate(values)]
    )

    assert [(c.item_id, c.version, c.time_ms) for c in poll.changes] == [("a", 3, 53)]
    assert (poll.partition, poll.is_end, decoder.snapshot()) == (3, False, "e1")
