"""Messages that are malformed for certain, each with the reasons that may be given for it.

By hand (`CORPUS`) or drawn (`Rubbish`). Each kind is malformed by construction: a prefix of an
object is no JSON, 0xff is in no UTF-8, a required field is missing. Where chance decides (bytes at
random, one byte changed) Python's own JSON reader is asked, so that the code under test is never
its own judge.
"""

import json
import random
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, Final, NamedTuple

import orjson

from operators.hops import RawMessage

EVENTS, USERS = "push.events.v1", "push.users.v1"
FEEDBACK, ERASURES = "push.feedback.v1", "push.erasures.v1"
TIME_MS: Final = 1_772_409_600_000

_HOUR_MS: Final = 3_600_000
_JSON = frozenset(("bad_json",))
_FIELD = frozenset(("bad_field",))
_TYPE = frozenset(("unknown_type",))
_NULL = frozenset(("null_value",))
# What a reader meets first in broken JSON may be a number cut short, which is out of range.
_BROKEN = frozenset(("bad_json", "bad_field", "unknown_type"))


class Malformed(NamedTuple):
    """One message, and the reasons that are right for it."""

    topic: str
    key: bytes | None
    value: bytes | None
    reasons: frozenset[str]


VALID: Final[dict[str, dict[str, Any]]] = {
    EVENTS: {
        "event_id": "e-1",
        "user_id": "user-1",
        "type": "view",
        "time_ms": TIME_MS,
        "item_id": "item-1",
        "value": 12.5,
        "text": "rote Schuhe für 小明",
        "context": {"device": "mobile", "timezone": "Asia/Shanghai", "locale": "zh-CN"},
        "props": {"page": 3, "tags": ["a", "b"]},
    },
    USERS: {
        "user_id": "user-1",
        "timezone": "Europe/Berlin",
        "locale": "de",
        "consent": {"push": True, "version": "2"},
        "channels": ["fcm"],
    },
    FEEDBACK: {
        "feedback_id": "f-1",
        "decision_id": "d-1",
        "user_id": "user-1",
        "type": "opened",
        "time_ms": TIME_MS,
    },
    ERASURES: {"user_id": "user-1", "time_ms": TIME_MS},
}
_REQUIRED: Final = {
    EVENTS: ("event_id", "user_id", "type", "time_ms"),
    USERS: ("user_id",),
    FEEDBACK: ("feedback_id", "decision_id", "user_id", "type", "time_ms"),
    ERASURES: ("user_id", "time_ms"),
}
_NOT_IDS: Final = [None, 0, 7, 1.5, True, [], {}, ["u"], "", "x" * 129, "界" * 129]
_NOT_TIMES: Final = [
    *(None, True, "2026-03-02T00:00:00Z", str(TIME_MS), [TIME_MS], {}, TIME_MS + 0.5),
    *(0, -1, 1_772_409_600, 946_684_799_999, 4_102_444_800_001, 2**63, 2**64 - 1),
]
_NOT_AMOUNTS: Final = ["12.5", True, [], {}, 1e9 + 1, -1e10, 1e308]
_NOT_TEXTS: Final = [5, False, [], {}, ["a"]]
_WRONG: Final[dict[str, dict[str, list[Any]]]] = {
    EVENTS: {
        "event_id": _NOT_IDS,
        "user_id": _NOT_IDS,
        "type": [None, 5, [], {}, True],
        "time_ms": _NOT_TIMES,
        "item_id": _NOT_IDS[1:],
        "value": _NOT_AMOUNTS,
        "text": [*_NOT_TEXTS, "x" * 4_097],
        "context": [5, "mobile", [], True, {"device": 5}, {"city": "x" * 257}, {"locale": None}],
        "props": [5, "page", [], True, {f"p{i}": i for i in range(65)}],
    },
    USERS: {
        "user_id": _NOT_IDS,
        "timezone": [None, *_NOT_TEXTS, "x" * 65],
        "locale": [None, *_NOT_TEXTS, "", "d", "x" * 36],
        "country": [None, *_NOT_TEXTS, "x" * 65],
        "consent": [None, True, "yes", [], {"push": 1}, {"push": "true"}, {"push": None}],
        "channels": [None, "fcm", {}, ["sms"], [5], [None], ["any"] * 9],
    },
    FEEDBACK: {
        "feedback_id": _NOT_IDS,
        "decision_id": _NOT_IDS,
        "user_id": _NOT_IDS,
        "type": [None, 5, [], {}, True],
        "time_ms": _NOT_TIMES,
        "value": _NOT_AMOUNTS,
    },
    ERASURES: {
        "user_id": _NOT_IDS,
        "time_ms": _NOT_TIMES,
        "reason": [None, *_NOT_TEXTS, "x" * 257],
    },
}
_OTHER_TYPES: Final = [
    "",
    "VIEW",
    "view ",
    "View",
    "views",
    "buy",
    "null",
    "浏览",
    "\u0000",
    "sent",
]
_NEEDS_ITEM: Final = (
    *("view", "click", "cart", "cart_remove"),
    *("purchase", "refund", "favorite", "rate"),
)


def valid(topic: str, **changes: Any) -> bytes:
    """Return a valid message with `changes` put over it."""
    return orjson.dumps(VALID[topic] | changes)


def _spliced(more: bytes) -> bytes:
    """Return a valid event with more members, as they are, at its end."""
    return valid(EVENTS)[:-1] + b"," + more + b"}"


def _nested(levels: int) -> bytes:
    return b'"props":{"a":' + b"[" * levels + b"]" * levels + b"}"


_NO_JSON: Final = [
    *(b"", b" ", b"\n", b"{", b"}", b"[", b'"', b"nul", b"tru", b"undefined", b"NaN", b"-", b"0x1"),
    *(b"{]", b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a" 1}', b"{a:1}", b"{'a':1}", b"\x00"),
    *(
        b"<event/>",
        b"event_id=e-1",
        b"// no\n{}",
        b"\xff\xfe",
        b"\x80",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
    ),
    *(b"\x1f\x8b\x08\x00\x00\x00", b"\x00\x00\x00\x00\x01\x02", b"Obj\x01\x04\x16avro.schema"),
    *(b"[" * 60_000, b'{"a":' * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    b"\xef\xbb\xbf" + valid(EVENTS),  # a byte order mark
    *(valid(EVENTS).decode().encode(code) for code in ("utf-16", "utf-16-le", "utf-32-be")),
    valid(EVENTS).replace("für".encode(), "für".encode("latin-1")),
    valid(EVENTS).replace("小明".encode(), "小明".encode("gb18030")),
    valid(EVENTS).replace(b'"', b"'"),
    valid(EVENTS).replace(b'"rote', b'"\nrote'),  # a line break inside a string
    *(valid(EVENTS) + tail for tail in (b"x", b",", b"}", b"]", b"\x00", b"{}", valid(EVENTS))),
    *(_spliced(more) for more in (b"", b"1", b'"a"', b'"a":', b'"a":01', b'"a":+1', b'"a":.5')),
    *(
        _spliced(b'"a":' + word)
        for word in (b"NaN", b"Infinity", b"-Infinity", b"1.", b"1e", b"1_0")
    ),
    *(_spliced(b'"a":"' + text + b'"') for text in (b"\\x41", b"\\u12", b"\t", b"\\", b"\xff")),
    *(_spliced(b'"text":"' + text + b'"') for text in (b"\\ud800", b"\\udc00", b"\\ud800\\u0041")),
    *(_spliced(b'"\xff":1'), _spliced(b'"a":"\xf5\x80\x80\x80"'), _spliced(b'"a":["\xc3"]')),
    *(_spliced(_nested(levels)) for levels in (16, 100, 499, 501, 5_000, 30_000)),
    _spliced(b'"a":' + b"[" * 30_000 + b"]" * 30_000),
]
_NO_EVENT: Final = [
    *(b"null", b"true", b"0", b"-1.5e3", b'"e-1"', b"[]", b"{}", b"[{}]", b'{"":""}'),
    b"[" + valid(EVENTS) + b"]",
    orjson.dumps(valid(EVENTS).decode()),  # JSON in JSON
    b'{"event":' + valid(EVENTS) + b"}",
    valid(USERS),  # of another topic
    _spliced(b'"user_id":5'),  # the second of two fields of one name
    *(_spliced(b'"value":' + n) for n in (b"1e999", b"-1e999", b"1" * 5_000, b"-" + b"1" * 400)),
    *(_spliced(b'"time_ms":' + n) for n in (b"1" * 5_000, b"1772409600000.0", b"1.7724096e12")),
    *(_spliced(b'"props":{"a":' + n + b"}") for n in (b"1e999", b"1" * 5_000)),
]
_NO_FEEDBACK: Final = [*_NO_EVENT[:9], valid(USERS), b"[" + valid(FEEDBACK) + b"]"]


def _of(topic: str, values: list[bytes], reasons: frozenset[str]) -> list[Malformed]:
    return [Malformed(topic, b"user-1", value, reasons) for value in values]


CORPUS: Final[list[Malformed]] = [
    *(row for topic in VALID for row in _of(topic, _NO_JSON[:24], _BROKEN)),
    *_of(EVENTS, _NO_JSON, _BROKEN),
    *_of(EVENTS, _NO_EVENT, _FIELD),
    *_of(FEEDBACK, _NO_FEEDBACK, _FIELD),
    Malformed(EVENTS, b"user-1", valid(FEEDBACK), _TYPE),
    Malformed(FEEDBACK, b"user-1", valid(EVENTS), _TYPE),
    *_of(USERS, [*_NO_EVENT[:9], b"[" + valid(USERS) + b"]"], _FIELD),
    *(
        row
        for topic, fields in _WRONG.items()
        for field, values in fields.items()
        for row in _of(topic, [valid(topic, **{field: value}) for value in values], _FIELD)
    ),
    *(
        row
        for topic in (EVENTS, FEEDBACK)
        for row in _of(topic, [valid(topic, type=word) for word in _OTHER_TYPES], _TYPE)
    ),
    *_of(
        EVENTS,
        [valid(EVENTS, type=kind, item_id=None) for kind in _NEEDS_ITEM],
        frozenset(("missing_item",)),
    ),
    *(Malformed(topic, b"user-1", None, _NULL) for topic in (EVENTS, FEEDBACK, ERASURES)),
    *(Malformed(USERS, key, None, _NULL) for key in (b"",)),
    *(Malformed(USERS, key, None, _JSON) for key in (b"\xff", b"\xed\xa0\x80")),
]


_ODD_IDS: Final = [
    *("\x00", "a\x00b", " ", "\n", "../../etc/passwd", "{item_title}", "%s", "none", "null", "-1"),
    *(
        "x" * 128,
        "\U0001f600" * 128,
        "e\u0301",
        "\u202eabc",
        "'; DROP TABLE users; --",
        "<b>",
        "00",
    ),
]
_ODD_ZONES: Final = ["", "utc", "Foo/Bar", "../../etc/passwd", "/etc/passwd", "\x00", "Europe", "é"]
_ODD_LOCALES: Final = ["xx", "--", "\x00\x00", "zh_Hans_CN", "{}", "x" * 35]
_ODD_FIELDS: Final[list[dict[str, Any]]] = [
    *({"value": value} for value in (1e9, -1e9, 5e-324, -0.0, 0)),
    *({"text": text} for text in ("", "\x00", "\U0001f600" * 4_096, "{price}")),
    *({"time_ms": time_ms} for time_ms in (946_684_800_000, TIME_MS - 90 * 86_400_000)),
    *({"context": {field: "\x00"}} for field in ("device", "platform", "locale", "country")),
    *({"context": {"timezone": zone}} for zone in _ODD_ZONES),
    {"props": {"a": 1e308, "": None, "\x00": 2**63, "b": [[], {}, [{"c": [True]}]]}},
    {"props": {"a" * 1_000: "b" * 50_000}},
    {"unknown": {"field": [1, 2, {"of": "a newer producer"}]}},
]


def odd(now_ms: int) -> list[RawMessage]:
    """Return messages that keep every rule, though nobody would think of them."""
    shopper = {"user_id": "odd", "time_ms": now_ms}
    events = [
        *({"event_id": f"odd-{i}"} | shopper | fields for i, fields in enumerate(_ODD_FIELDS)),
        *({"event_id": odd_id} | shopper for odd_id in _ODD_IDS),
        *(
            {"event_id": f"odd-{n}", "user_id": user_id, "time_ms": now_ms, "item_id": user_id}
            for user_id in _ODD_IDS
            for n in range(3)  # three views show intent
        ),
    ]
    users = [
        {"user_id": user_id, "timezone": zone, "locale": locale, "consent": {"push": True}}
        for user_id, zone, locale in zip(_ODD_IDS, cycle(_ODD_ZONES), cycle(_ODD_LOCALES))
    ]
    feedback = [
        {"feedback_id": user_id, "decision_id": user_id, "user_id": user_id, "time_ms": now_ms}
        for user_id in _ODD_IDS
    ]
    rows = [
        *((USERS, VALID[USERS] | row) for row in users),
        *((EVENTS, VALID[EVENTS] | row) for row in events),
        *((FEEDBACK, VALID[FEEDBACK] | row) for row in feedback),
        *((ERASURES, VALID[ERASURES] | {"user_id": user_id}) for user_id in _ODD_IDS[::2]),
    ]
    return [
        RawMessage(topic, -1, -1, row["user_id"].encode(), orjson.dumps(row), now_ms)
        for topic, row in rows
    ]


class Rubbish:
    """Draws malformed messages.

    Parameters
    ----------
    samples
        Valid values by topic, to be spoiled; each a JSON object on its own.
    """

    def __init__(self, seed: int, samples: dict[str, list[bytes]]) -> None:
        self._rng = random.Random(seed)
        self._samples = samples
        # Weights: large messages are few, for the embedded broker keeps 5 MB a partition.
        self._kinds: list[Callable[[str, int], Malformed]] = [
            *[self._cut, self._not_utf8, self._bytes, self._changed_byte] * 50,
            *[self._without_field, self._wrong_value, self._other_type, self._with_tail] * 50,
            *[self._of_the_future] * 30,
            *[self._null, self._deep] * 10,
            self._too_large,
        ]

    def draw(self, now_ms: int) -> Malformed:
        """Return a malformed message; `now_ms` will be its timestamp."""
        topic = self._rng.choices((EVENTS, USERS, FEEDBACK, ERASURES), (80, 9, 10, 1))[0]
        return self._rng.choice(self._kinds)(topic, now_ms)

    def _sample(self, topic: str) -> bytes:
        return self._rng.choice(self._samples[topic])

    def _row(self, topic: str) -> dict[str, Any]:
        row: dict[str, Any] = orjson.loads(self._sample(topic))
        return row

    def _malformed(
        self, topic: str, value: bytes | None, reasons: frozenset[str] = _JSON
    ) -> Malformed:
        return Malformed(topic, b"user-%d" % self._rng.randrange(1_000), value, reasons)

    def _cut(self, topic: str, _now_ms: int) -> Malformed:
        whole = self._sample(topic)
        return self._malformed(topic, whole[: self._rng.randrange(len(whole))], _BROKEN)

    def _not_utf8(self, topic: str, _now_ms: int) -> Malformed:
        whole = self._sample(topic)
        at, byte = self._rng.randrange(len(whole)), self._rng.choice((0xC0, 0xC1, 0xF8, 0xFE, 0xFF))
        return self._malformed(topic, whole[:at] + bytes((byte,)) + whole[at:])

    def _bytes(self, topic: str, _now_ms: int) -> Malformed:
        while is_json_object(value := self._rng.randbytes(self._rng.randrange(200))):
            continue
        return self._malformed(topic, value, _BROKEN)

    def _changed_byte(self, topic: str, _now_ms: int) -> Malformed:
        while True:
            value = bytearray(self._sample(topic))
            value[self._rng.randrange(len(value))] = self._rng.randrange(256)
            if not is_json_object(bytes(value)):
                return self._malformed(topic, bytes(value), _BROKEN)

    def _without_field(self, topic: str, _now_ms: int) -> Malformed:
        row = self._row(topic)
        del row[self._rng.choice(_REQUIRED[topic])]
        return self._malformed(topic, orjson.dumps(row), _FIELD)

    def _wrong_value(self, topic: str, _now_ms: int) -> Malformed:
        field = self._rng.choice(list(_WRONG[topic]))
        row = self._row(topic) | {field: self._rng.choice(_WRONG[topic][field])}
        return self._malformed(topic, orjson.dumps(row), _FIELD)

    def _other_type(self, topic: str, now_ms: int) -> Malformed:
        if topic not in (EVENTS, FEEDBACK):
            return self._wrong_value(topic, now_ms)
        word = "".join(self._rng.choices("abcdefghijk_", k=self._rng.randrange(12))) + "?"
        return self._malformed(topic, orjson.dumps(self._row(topic) | {"type": word}), _TYPE)

    def _with_tail(self, topic: str, _now_ms: int) -> Malformed:
        tail = self._rng.choice((b"x", b"}", b",", b"\x00", b"null", self._sample(topic)))
        return self._malformed(topic, self._sample(topic) + tail)

    def _of_the_future(self, topic: str, now_ms: int) -> Malformed:
        if topic not in (EVENTS, FEEDBACK):
            return self._wrong_value(topic, now_ms)
        time_ms = now_ms + _HOUR_MS + 1 + self._rng.randrange(1, 1 << self._rng.randrange(1, 40))
        row = self._row(topic) | {"time_ms": time_ms}
        return self._malformed(topic, orjson.dumps(row), frozenset(("ahead_of_time",)))

    def _null(self, topic: str, _now_ms: int) -> Malformed:
        if topic == USERS:  # with a key it is a user to forget
            return Malformed(topic, b"", None, _NULL)
        return self._malformed(topic, None, _NULL)

    def _deep(self, topic: str, _now_ms: int) -> Malformed:
        opened = self._sample(topic)[:-1]
        if topic == EVENTS and self._rng.random() < 0.9:
            return self._malformed(
                topic, opened + b"," + _nested(self._rng.randrange(16, 600)) + b"}"
            )
        n = self._rng.randrange(5_000, 10_000)
        return self._malformed(topic, opened + b',"a":' + b"[" * n + b"]" * n + b"}")

    def _too_large(self, topic: str, _now_ms: int) -> Malformed:
        padding = b" " * self._rng.randrange(65_537, 70_000)
        return self._malformed(topic, self._sample(topic) + padding, frozenset(("too_large",)))


def is_json_object(value: bytes) -> bool:
    """Ask Python's own reader, which is no part of what is tested."""
    try:
        return isinstance(json.loads(value.decode()), dict)
    except (ValueError, RecursionError):
        return False


def malformed(
    seed: int, n: int, samples: dict[str, list[bytes]], times_ms: list[int]
) -> Iterator[Malformed]:
    """Yield the corpus, then drawn messages, n in all; the i-th is for the time `times_ms[i]`."""
    rubbish = Rubbish(seed, samples)
    yield from CORPUS[:n]
    for now_ms in times_ms[len(CORPUS) : n]:
        yield rubbish.draw(now_ms)
