"""Messages as typed columns: what a row of the archive holds.

Reads   raw messages of one partition of one topic, in order.
Emits   Arrow tables: where a message stood, its bytes as they were, and its fields in columns.
Owns    the columns of each topic.

Every message is a row, usable or not. `raw` is its value, byte for byte, so an archive can be held
against its topic, and a field that has no column yet is not lost. The typed columns are what
training reads. They are null where the message was refused; `refused` then says why, by the rules
and with the event clock of `operators.codec`: what `decide` did not see, training does not see.

A decision's features are fixed-size lists of float32. `models.arms` rounds its columns to 4
decimals before it uses them, so they come back as the very numbers that the policy saw. A policy
with other columns than the one before gives other types: its decisions begin a new table.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from models.arms import N_ARM, N_POLICY_CONTEXT
from operators.codec import PartitionDecoder
from operators.hops import RawMessage
from operators.messages import Decision, Event, EventContext, Feedback, Item

KINDS: Final[dict[str, type[msgspec.Struct]]] = {
    "push.decisions.v1": Decision,
    "push.feedback.v1": Feedback,
    "push.events.v1": Event,
    "push.items.v1": Item,
}

Column = tuple[str, pa.DataType, Callable[[Any], Any]]  # name, type, value of a message
Widths = tuple[int, int]  # of a decision's context, and of an arm's features

_TEXT: Final = pa.string()
_CONTEXT_FIELDS: Final = EventContext.__struct_fields__
_EVENT: Final[list[Column]] = [
    ("event_id", _TEXT, lambda e: e.event_id),
    ("user_id", _TEXT, lambda e: e.user_id),
    ("type", _TEXT, lambda e: e.type),
    ("time_ms", pa.int64(), lambda e: e.time_ms),
    ("item_id", _TEXT, lambda e: e.item_id),
    ("value", pa.float64(), lambda e: e.value),
    ("text", _TEXT, lambda e: e.text),
    (
        "context",
        pa.struct([(name, _TEXT) for name in _CONTEXT_FIELDS]),
        lambda e: None if e.context is None else msgspec.structs.asdict(e.context),
    ),
]
_FEEDBACK: Final[list[Column]] = [
    ("feedback_id", _TEXT, lambda f: f.feedback_id),
    ("decision_id", _TEXT, lambda f: f.decision_id),
    ("user_id", _TEXT, lambda f: f.user_id),
    ("type", _TEXT, lambda f: f.type),
    ("time_ms", pa.int64(), lambda f: f.time_ms),
    ("value", pa.float64(), lambda f: f.value),
]
_ITEM: Final[list[Column]] = [
    ("item_id", _TEXT, lambda i: i.item_id),
    ("title", _TEXT, lambda i: i.title),
    ("categories", pa.list_(_TEXT), lambda i: i.categories),
    ("price", pa.float64(), lambda i: i.price),
    ("is_available", pa.bool_(), lambda i: i.is_available),
]


def _decision_columns(widths: Widths) -> list[Column]:
    context, features = (pa.list_(pa.float32(), width) for width in widths)

    def of_arms(name: str) -> Callable[[Any], Any]:
        return lambda d: [getattr(action, name) for action in d.learning.action_set]

    def features_of(decision: Decision) -> list[list[float]]:  # "send nothing" has none: zeros
        return [action.features or [0.0] * widths[1] for action in decision.learning.action_set]

    return [
        ("decision_id", _TEXT, lambda d: d.decision_id),
        ("user_id", _TEXT, lambda d: d.user_id),
        ("trigger_type", _TEXT, lambda d: d.trigger.type),
        ("trigger_event_id", _TEXT, lambda d: d.trigger.event_id),
        ("decided_ms", pa.int64(), lambda d: d.decided_at),
        ("outcome", _TEXT, lambda d: d.outcome),
        ("reason_codes", pa.list_(_TEXT), lambda d: d.reason_codes),
        ("send_after_ms", pa.int64(), lambda d: d.delivery.send_after),
        ("expires_ms", pa.int64(), lambda d: d.delivery.expires_at),
        ("is_dry_run", pa.bool_(), lambda d: d.delivery.dry_run),
        ("policy_id", _TEXT, lambda d: d.learning.policy_id),
        ("policy_version", _TEXT, lambda d: d.learning.policy_version),
        ("model_version", _TEXT, lambda d: d.learning.model_version),
        ("feature_spec", _TEXT, lambda d: d.learning.feature_spec),
        ("campaign_id", _TEXT, lambda d: d.learning.campaign_id),
        ("arm", _TEXT, lambda d: d.learning.arm),
        ("context", context, lambda d: d.learning.context or None),  # none: it never came to that
        ("item_ids", pa.list_(_TEXT), of_arms("item_id")),
        ("sources", pa.list_(_TEXT), of_arms("source")),
        ("scores", pa.list_(pa.float64()), of_arms("score")),
        ("probabilities", pa.list_(pa.float64()), of_arms("probability")),
        ("features", pa.list_(features), features_of),
        ("chosen", pa.int64(), lambda d: d.learning.chosen),
        ("propensity", pa.float64(), lambda d: d.learning.propensity),
        ("is_exploration", pa.bool_(), lambda d: d.learning.is_exploration),
        ("reward_deadline_ms", pa.int64(), lambda d: d.learning.reward_deadline),
        ("trial_version", _TEXT, lambda d: d.learning.trial and d.learning.trial.version),
        ("trial_stage", _TEXT, lambda d: d.learning.trial and d.learning.trial.stage),
        (
            "trial_scores",
            pa.list_(pa.float64()),
            lambda d: d.learning.trial and d.learning.trial.scores,
        ),
    ]


# A number or a text that JSON can say and a column cannot hold.
_NO_COLUMN: Final = (pa.ArrowException, OverflowError, UnicodeError)
_FIXED: Final = {"push.feedback.v1": _FEEDBACK, "push.events.v1": _EVENT, "push.items.v1": _ITEM}


class _Row(NamedTuple):
    message: RawMessage
    entry: Any  # None where it was refused, or removes an item
    refused: str | None
    widths: Widths
    state: tuple[int, int]


class Slice(NamedTuple):
    """Messages that follow each other and share their columns' types.

    `state` is the decoder's, once it has seen them all.
    """

    messages: Sequence[RawMessage]
    table: pa.Table
    state: tuple[int, int]


class Columns:
    """Makes the tables of one partition.

    Parameters
    ----------
    topic
        The topic's own name, of `KINDS`.
    partition
        Its number.
    state
        The `Slice.state` of what came before, None at the start.
    lateness_ms, max_ahead_ms
        As for `operators.codec.PartitionDecoder`, and as `decide` has them.

    Notes
    -----
    Memory: about six times the bytes of the messages given, until the tables are dropped.

    Examples
    --------
    >>> columns = Columns("push.feedback.v1", 0)
    >>> good = (b'{"feedback_id":"f","decision_id":"d","user_id":"u","type":"opened",'
    ...         b'"time_ms":1700000000000}')
    >>> [made] = columns.tables([RawMessage("push.feedback.v1", 0, 7, b"u", good, -1),
    ...                          RawMessage("push.feedback.v1", 0, 9, b"u", b"{", -1)])
    >>> made.table.select(["offset", "type", "refused"]).to_pylist()[0]
    {'offset': 7, 'type': 'opened', 'refused': None}
    >>> made.table.column("refused").to_pylist()[1], made.table.column("raw").to_pylist()[1]
    ('bad_json', b'{')
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        state: tuple[int, int] | None = None,
        lateness_ms: int = 10_000,
        max_ahead_ms: int = 3_600_000,
    ) -> None:
        self._topic = topic
        self._widths = (N_POLICY_CONTEXT, N_ARM)  # until a decision says otherwise
        self._items = msgspec.json.Decoder(Item)
        self._decoder = PartitionDecoder(
            partition,
            {topic: KINDS[topic]},
            n_shards=1,
            lateness_ms=lateness_ms,
            max_ahead_ms=max_ahead_ms,
            state=state,
        )

    def tables(self, messages: Iterable[RawMessage]) -> list[Slice]:
        """Return the messages as tables, in order; more than one where the columns change."""
        rows = map(self._row, messages)
        return [self._slice(widths, list(group)) for widths, group in groupby(rows, _widths)]

    def _row(self, message: RawMessage) -> _Row:
        entry, refused = self._decode(message._replace(topic=self._topic))
        if isinstance(entry, Decision):
            entry, refused = self._fit(entry)
        return _Row(message, entry, refused, self._widths, self._decoder.snapshot())

    def _decode(self, message: RawMessage) -> tuple[Any, str | None]:
        if self._topic == "push.items.v1":  # a table's rows have no event clock
            if message.value is None:
                return None, None
            try:
                return self._items.decode(message.value), None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None, "bad_json"
        batch = self._decoder.decode([message])
        if batch.dead:
            return None, batch.dead[0].reason
        return next(entry for shard in batch.shards for _, entry in shard.entries), None

    def _fit(self, decision: Decision) -> tuple[Decision | None, str | None]:
        """Take over the widths of a decision's columns; refuse one that has several."""
        arms = {len(action.features) for action in decision.learning.action_set} - {0}
        if len(arms) > 1:
            return None, "bad_field"
        context, features = self._widths  # an empty one tells of no width
        self._widths = (len(decision.learning.context) or context, next(iter(arms), features))
        return decision, None

    def _slice(self, widths: Widths, rows: list[_Row]) -> Slice:
        messages = [row.message for row in rows]
        try:
            return Slice(messages, self._table(widths, rows), rows[-1].state)
        except _NO_COLUMN:
            fitting = [row if self._fits(row) else _refuse(row) for row in rows]
            return Slice(messages, self._table(widths, fitting), rows[-1].state)

    def _fits(self, row: _Row) -> bool:
        try:
            self._table(row.widths, [row])
        except _NO_COLUMN:
            return False
        return True

    def _table(self, widths: Widths, rows: list[_Row]) -> pa.Table:
        messages = [row.message for row in rows]
        columns: list[tuple[str, pa.DataType, list[Any]]] = [
            ("offset", pa.int64(), [m.offset for m in messages]),
            ("timestamp_ms", pa.int64(), [m.timestamp_ms for m in messages]),  # -1: unknown
            ("key", pa.binary(), [m.key for m in messages]),
            ("raw", pa.binary(), [m.value for m in messages]),  # null: a tombstone
            ("refused", _TEXT, [row.refused for row in rows]),
        ]
        for name, kind, value_of in _FIXED.get(self._topic) or _decision_columns(widths):
            values = [None if row.entry is None else value_of(row.entry) for row in rows]
            columns.append((name, kind, values))
        arrays = [pa.array(values, type=kind) for _, kind, values in columns]
        return pa.table(arrays, names=[name for name, _, _ in columns])


def _refuse(row: _Row) -> _Row:
    return row._replace(entry=None, refused="bad_field")


def _widths(row: _Row) -> Widths:
    return row.widths
