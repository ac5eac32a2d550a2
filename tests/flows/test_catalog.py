"""The whole of `catalog`: items in, vectors out, each encoded once, and encoders that change."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bytewax.testing import TestingSink, TestingSource

from flows import catalog
from models.encoders import ContentEncoder, HashEncoder
from models.fusion import Fusion
from models.taste import unpack_vector
from operators.codec import ITEM_SHARDS
from operators.item_contents import ItemChange, ItemPoll
from operators.item_media import ItemMedia
from operators.messages import Item, ItemVector
from tests.flows import world as w

TITLES = ("red lamp", "garden hose", "tea pot", "blue lamp", "socks", "desk", "chair", "book")
ITEMS = [Item(item_id=f"i{n}", title=title) for n, title in enumerate(TITLES)]


class Counting(HashEncoder):
    """Hashed text that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], *, is_query: bool = False) -> Any:
        self.asked += texts
        return super().encode(texts, is_query=is_query)


class Shop:
    """A topic of items in two partitions, and flows that start on the state before them.

    Another number of columns for pictures is another encoder.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._n_starts = self._n_read = 0
        self.log: list[tuple[str, Item | None]] = []
        self.written: list[tuple[str, bytes | None]] = []

    def put(self, *items: Item) -> None:
        self.log += [(item.item_id, item) for item in items]

    def remove(self, *item_ids: str) -> None:
        self.log += [(item_id, None) for item_id in item_ids]

    def run(
        self, columns: int, *, begin: int = 0, size: int = 3, abort_at: Sequence[int] = ()
    ) -> list[str]:
        """Read the topic from a message on to its end; return the texts that were encoded."""
        counting, polls = Counting(), self._polls(begin, size)
        for stop in [*abort_at, None]:
            self._n_starts += 1
            of = w.settings(
                self._directory,
                run_id=f"start-{self._n_starts}",
                catalog={"image_columns": columns, "retire_seconds": 0},
            )
            out: list[tuple[str, Any]] = []
            # A source resumes behind what it has read, and there is what it reads this time.
            steps: list[Any] = [ItemPoll(0, [])] * self._n_read + polls
            if stop is not None:
                steps.insert(self._n_read + stop, TestingSource.ABORT())
            content = content_of(counting, columns)
            ends = catalog.Ends(TestingSource(steps), 2, TestingSink(out))
            flow = catalog.build(of, ends, content)
            w.run_with_recovery(flow, self._directory / "recovery")
            self.written += [(key, record.value) for key, record in out]
        self._n_read += len(polls)
        return counting.asked

    def _polls(self, begin: int, size: int) -> list[ItemPoll]:
        parts: list[list[ItemPoll]] = []
        for partition in range(2):
            own = [
                ItemChange(item_id, item, offset)
                for offset, (item_id, item) in enumerate(self.log)
                if w.partition_of(item_id, 2) == partition and offset >= begin
            ]
            polls = [ItemPoll(partition, own[at : at + size]) for at in range(0, len(own), size)]
            parts.append([*polls, ItemPoll(partition, [], is_end=True)])
        return w.merged(parts)

    @property
    def table(self) -> dict[str, ItemVector]:
        """The topic of vectors, compacted."""
        rows = dict(self.written)
        return {k: msgspec.json.decode(v, type=ItemVector) for k, v in rows.items() if v}

    def vectors(self, encoder: str) -> dict[str, ItemVector]:
        return {
            row.item_id: row
            for row in self.table.values()
            if row.encoder == encoder and row.item_id
        }

    def whole(self, encoder: str) -> list[int]:
        """The numbers of vectors of the shards that have all."""
        return [
            row.n_items for row in self.table.values() if row.encoder == encoder and not row.item_id
        ]


def content_of(text: HashEncoder, columns: int) -> catalog.Content:
    encoder = ContentEncoder(text, Fusion.untrained(64, columns))
    return catalog.Content(encoder, ItemMedia(columns), ItemMedia(0))


def encoder_id(columns: int) -> str:
    return content_of(HashEncoder(), columns).encoder.id


def test_each_item_gets_its_vector_and_the_shards_say_how_many_there_are(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    shop.run(3)

    found = shop.vectors(encoder_id(3))
    truth = content_of(HashEncoder(), 3).encoder.encode_items([[title] for title in TITLES])
    stored = [unpack_vector(base64.b64decode(found[item.item_id].vector)) for item in ITEMS]
    assert np.array_equal(stored, truth)
    assert sum(shop.whole(encoder_id(3))) == len(ITEMS)
    assert len(shop.whole(encoder_id(3))) == len(ITEM_SHARDS)


def test_a_picture_that_items_bring_is_part_of_their_vectors(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    lamp, seen = Item(item_id="lamp", title="lamp"), [1.0, -1.0, 0.5]
    tea = Item(item_id="tea", title="tea", image_vector=seen)
    shop.put(lamp, tea, Item(item_id="?", title="?", image_vector=seen))
    shop.run(3)
    found = shop.vectors(encoder_id(3))
    lamp_at, tea_at, unknown_at = (
        unpack_vector(base64.b64decode(found[name].vector)) for name in ("lamp", "tea", "?")
    )

    assert unknown_at @ tea_at > 0.5 > unknown_at @ lamp_at


def test_an_unchanged_item_is_not_encoded_again_after_a_restart_either(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    first = shop.run(3)
    begin = len(shop.log)
    shop.put(Item(item_id="i0", title="red  <b>lamp</b>", price=5.0), ITEMS[1])
    shop.put(Item(item_id="i2", title="tea cup"))

    assert sorted(first) == sorted(TITLES)
    assert shop.run(3, begin=begin) == ["tea cup"]


def test_a_removed_item_leaves_no_vector(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    shop.run(3)
    begin = len(shop.log)
    shop.remove("i0", "i5", "unknown")
    shop.run(3, begin=begin)

    assert set(shop.vectors(encoder_id(3))) == {"i1", "i2", "i3", "i4", "i6", "i7"}
    assert sum(shop.whole(encoder_id(3))) == 6


def test_another_encoder_encodes_all_anew_and_then_the_old_vectors_go(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    shop.run(3)
    shop.remove("i0")
    n_before = len(shop.written)
    again = shop.run(4)

    assert sorted(again) == sorted(TITLES)  # "i0" stood in the topic ahead of its removal
    assert set(shop.vectors(encoder_id(4))) == {item.item_id for item in ITEMS[1:]}
    assert shop.vectors(encoder_id(3)) == {}
    assert shop.whole(encoder_id(3)) == []
    gone = [key.startswith(encoder_id(3)) for key, _ in shop.written[n_before:]]
    assert gone.index(True) > gone.index(False)


def test_an_item_that_nobody_saw_removed_is_gone_with_the_old_encoder(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    shop.run(3)
    shop.log = shop.log[1:]  # its tombstone is compacted away by now
    shop.run(4)

    assert {row.item_id for row in shop.table.values() if row.item_id} == {
        item.item_id for item in ITEMS[1:]
    }


def test_back_to_the_encoder_before_ends_with_its_vectors_alone(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.put(*ITEMS)
    for columns in (3, 4, 3):
        shop.run(columns)

    assert len(shop.vectors(encoder_id(3))) == len(ITEMS)
    assert len(shop.table) == len(ITEMS) + len(ITEM_SHARDS)


def test_a_crash_at_any_moment_leaves_one_current_vector_of_each_item(tmp_path: Path) -> None:
    whole, broken = Shop(tmp_path / "whole"), Shop(tmp_path / "broken")
    for shop in (whole, broken):
        shop.put(*ITEMS)
        shop.put(Item(item_id="i3", title="green lamp"))
        shop.remove("i4")
    whole.run(3)
    broken.run(3, size=2, abort_at=(1, 2, 4))

    def rows(shop: Shop) -> dict[str, ItemVector]:
        return {key: row for key, row in shop.table.items() if row.item_id}

    assert rows(broken) == rows(whole)
    assert sorted(broken.whole(encoder_id(3))) == sorted(whole.whole(encoder_id(3)))
