"""The items' vectors on their way into the catalogue, read from the topic on a real protocol."""

import base64
import itertools
import time
import uuid
from collections.abc import Callable

import numpy as np
import pytest

from flows.settings import Kafka, Settings
from flows.tables import Tables, followed
from flows.topics import specs
from models.taste import pack_vectors, unpack_vector
from operators.codec import encode
from operators.kafka_admin import create_topics
from operators.kafka_sink import Writer
from operators.messages import Item, ItemVector
from tests.flows import world as w

ITEMS, VECTORS = "push.items.v1", "push.item-vectors.v1"
SOURCES = {"image_columns": 8}  # decide has no such encoder, so it reads the topic


class Shop:
    """Topics of its own, and tables that follow them."""

    def __init__(self, bootstrap: str) -> None:
        kafka = Kafka(bootstrap_servers=bootstrap, topic_prefix=f"{uuid.uuid4().hex}.")
        self.settings = Settings(
            kafka=kafka,
            campaigns_file=str(w.CAMPAIGNS),
            catalog=SOURCES,  # type: ignore[arg-type] # pydantic converts it
        )
        create_topics(kafka.client(), specs(self.settings))
        self._writer = Writer(kafka.client())
        self._clock = itertools.count(1)  # each look is due
        self.tables = Tables(self.settings, lambda: float(next(self._clock)))

    def put(self, *titles: str, wait: bool = True) -> None:
        for title in titles:
            self._send(ITEMS, title, Item(item_id=title, title=title), wait=wait)

    def vector(self, encoder: str, item_id: str, column: int, *, wait: bool = True) -> None:
        row = ItemVector(
            encoder=encoder, item_id=item_id, vector=base64.b64encode(packed(column)).decode()
        )
        self._send(VECTORS, f"{encoder}/{item_id}", row, wait=wait)

    def whole(self, encoder: str, n_items: int, since_ms: int) -> None:
        row = ItemVector(
            encoder=encoder, shard="i0", n_shards=1, n_items=n_items, since_ms=since_ms
        )
        self._send(VECTORS, f"{encoder}#i0", row)

    def _send(self, topic: str, key: str, row: object, *, wait: bool = True) -> None:
        self._writer.send(self.settings.kafka.topic(topic), key, encode(row))  # type: ignore[arg-type]
        if wait:
            self._writer.flush()

    def until(self, is_so: Callable[[], bool], pause_s: float = 0.0) -> bool:
        end = time.monotonic() + 30
        while not is_so() and time.monotonic() < end:
            self.tables.refresh()
            time.sleep(pause_s)
        return is_so()

    def nearest(self, column: int) -> list[str]:
        """The items whose vectors lie along a column, nearest first."""
        query = unpack_vector(packed(column))[None]
        [hits] = self.tables.catalogue.content.search(query, limit=10)
        scored = zip(hits.rows.tolist(), hits.scores.tolist(), strict=True)
        return [self.tables.catalogue.item_ids[row] for row, score in scored if score > 0.5]


def packed(column: int) -> bytes:
    return pack_vectors(np.eye(1, 64, column, dtype=np.float32))[0]


@pytest.fixture
def shop(embedded_bootstrap: str) -> Shop:
    shop = Shop(embedded_bootstrap)
    shop.put("red lamp", "green tea")
    return shop


def test_decide_reads_the_vectors_only_where_it_does_not_make_its_own(shop: Shop) -> None:
    assert VECTORS in followed(shop.settings)
    assert VECTORS not in followed(Settings())


def test_a_start_finds_the_newest_whole_encoder(shop: Shop) -> None:
    for encoder, since_ms, columns in (("e2", 6, (3, 4)), ("e1", 5, (1, 2))):
        for item_id, column in zip(("red lamp", "green tea"), columns, strict=True):
            shop.vector(encoder, item_id, column)
        shop.whole(encoder, 2, since_ms)
    shop.tables.follow(shop.settings)

    assert shop.tables.catalogue.encoder == "e2"
    assert (shop.nearest(3), shop.nearest(4)) == (["red lamp"], ["green tea"])
    assert shop.nearest(1) == []
    shop.tables.close()


def test_hashed_text_serves_until_the_first_encoder_is_whole_and_all_change_at_once(
    shop: Shop,
) -> None:
    shop.vector("e1", "red lamp", 1)
    shop.tables.follow(shop.settings)
    catalogue = shop.tables.catalogue
    assert catalogue.encoder == "hash-1"
    assert shop.nearest(1) == []

    shop.whole("e1", 2, 5)
    shop.vector("e1", "green tea", 2)
    assert shop.until(lambda: catalogue.encoder == "e1")
    assert (shop.nearest(1), shop.nearest(2)) == (["red lamp"], ["green tea"])
    shop.tables.close()


def test_a_change_of_an_item_does_not_wait_behind_a_backlog_of_vectors(shop: Shop) -> None:
    names = [f"item{number}" for number in range(3_000)]
    shop.put(*names, wait=False)
    shop.whole("e1", 0, 5)
    shop.tables.follow(shop.settings)
    catalogue = shop.tables.catalogue
    for number, name in enumerate(names):
        shop.vector("e1", name, number % 64, wait=False)
    shop.put("blue lamp")

    # 100 rows a look: all of them are 30 looks.
    assert shop.until(lambda: catalogue.row("blue lamp") > 0, pause_s=0.2)
    assert len(catalogue.content) < len(names)
    assert shop.until(lambda: len(catalogue.content) == len(names))
    shop.tables.close()


def test_an_item_is_servable_before_its_vector_is_there_and_found_by_it_after(shop: Shop) -> None:
    shop.whole("e1", 0, 5)
    shop.tables.follow(shop.settings)
    catalogue = shop.tables.catalogue
    assert catalogue.encoder == "e1"
    assert bool(catalogue.is_servable[catalogue.row("red lamp")])
    assert shop.nearest(1) == []

    shop.vector("e1", "red lamp", 1)
    assert shop.until(lambda: shop.nearest(1) == ["red lamp"])
    shop.vector("e1", "red lamp", 2)
    assert shop.until(lambda: shop.nearest(2) == ["red lamp"])
    assert shop.nearest(1) == []
    shop.tables.close()
