"""Recorded data as messages: an online shop's invoices, MovieLens, our own JSON lines.

Reads   files in the formats of `../shared/data`, plain or gzip; `-` is the standard input.
Emits   `Recording`: items, users and events as records ready for a topic, in time order.
Owns    how a row of each format becomes a message.

Every row becomes one event. A row that breaks the contract (no customer, a price that is not a
number) is sent as it stands, so that `decide` answers it with a dead letter and its reason:
the readers leave nothing out and repair nothing. This is why they build plain dicts.

Items are available from the time of their first row, so that a replay never proposes what the
shop did not have yet. Users get consent to push, for the data know of none: an assumption that
lets a replay measure candidates and caps, and none that a live system may make.
"""

import csv
import gzip
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast
from zoneinfo import ZoneInfo

import orjson

from operators.messages import TOPICS

EVENTS: Final = "push.events.v1"
ITEMS: Final = "push.items.v1"
USERS: Final = "push.users.v1"

# MovieLens begins in 1996, the wire in 2000. Whole weeks keep the weekday; four years keep the
# season.
MOVIELENS_SHIFT_MS: Final = 209 * 7 * 86_400_000

# Kafka spreads messages without a key at random; a replay puts each where it was before.
_NO_KEY: Final = "unkeyed"
_LONDON: Final = ZoneInfo("Europe/London")  # the shop's own clock
# Lines of the invoices that are no goods: postage, discount, fees, corrections by hand.
_NOT_GOODS: Final = frozenset(
    ("POST", "DOT", "C2", "D", "M", "m", "S", "B", "BANK CHARGES", "AMAZONFEE", "CRUK")
)
_PLACES: Final = {  # the shop's name of a country -> ISO 3166 code, time zone of its capital
    "Australia": ("AU", "Australia/Sydney"),
    "Austria": ("AT", "Europe/Vienna"),
    "Bahrain": ("BH", "Asia/Bahrain"),
    "Belgium": ("BE", "Europe/Brussels"),
    "Brazil": ("BR", "America/Sao_Paulo"),
    "Canada": ("CA", "America/Toronto"),
    "Channel Islands": ("JE", "Europe/Jersey"),
    "Cyprus": ("CY", "Asia/Nicosia"),
    "Czech Republic": ("CZ", "Europe/Prague"),
    "Denmark": ("DK", "Europe/Copenhagen"),
    "EIRE": ("IE", "Europe/Dublin"),
    "Finland": ("FI", "Europe/Helsinki"),
    "France": ("FR", "Europe/Paris"),
    "Germany": ("DE", "Europe/Berlin"),
    "Greece": ("GR", "Europe/Athens"),
    "Hong Kong": ("HK", "Asia/Hong_Kong"),
    "Iceland": ("IS", "Atlantic/Reykjavik"),
    "Israel": ("IL", "Asia/Jerusalem"),
    "Italy": ("IT", "Europe/Rome"),
    "Japan": ("JP", "Asia/Tokyo"),
    "Lebanon": ("LB", "Asia/Beirut"),
    "Lithuania": ("LT", "Europe/Vilnius"),
    "Malta": ("MT", "Europe/Malta"),
    "Netherlands": ("NL", "Europe/Amsterdam"),
    "Norway": ("NO", "Europe/Oslo"),
    "Poland": ("PL", "Europe/Warsaw"),
    "Portugal": ("PT", "Europe/Lisbon"),
    "Saudi Arabia": ("SA", "Asia/Riyadh"),
    "Singapore": ("SG", "Asia/Singapore"),
    "Spain": ("ES", "Europe/Madrid"),
    "Sweden": ("SE", "Europe/Stockholm"),
    "Switzerland": ("CH", "Europe/Zurich"),
    "USA": ("US", "America/New_York"),
    "United Arab Emirates": ("AE", "Asia/Dubai"),
    "United Kingdom": ("GB", "Europe/London"),
}
_NOWHERE: Final = ("", "UTC")  # "Unspecified", "European Community"


class Record(NamedTuple):
    """One message for a topic, by the topic's own name."""

    topic: str
    key: str
    value: bytes
    time_ms: int  # event time; 0 where the row has none that can be read


class Recording(NamedTuple):
    """What a data set holds. `events` reads the file anew at each call."""

    items: list[Record]
    users: list[Record]
    events: Callable[[], Iterator[Record]]


def retail(path: Path) -> Recording:
    """Return the invoices of the online-retail data set.

    A line is a purchase; with a quantity below zero (cancelled invoices, corrections of the
    stock) a refund of negative value. `value` is price x quantity. The event's id is the invoice
    and the number of the row in the file. Postage, fees and corrections keep their stock code
    as item, and that item is never available.

    Memory: one row an item and customer; the events are read as they are sent.
    """
    items: dict[str, _Goods] = {}
    countries: dict[str, str] = {}
    for row in _rows(path):
        goods = items.setdefault(row["StockCode"], _Goods(_london_ms(row["InvoiceDate"])))
        goods.see(row)
        if row["CustomerID"]:
            countries.setdefault(row["CustomerID"], row["Country"])
    return Recording(
        [
            _record(ITEMS, items[code].message(code), items[code].first_ms)
            for code in sorted(items)
            if code
        ],
        [_user(user, *_PLACES.get(countries[user], _NOWHERE)) for user in sorted(countries)],
        lambda: (_retail_event(n, row) for n, row in enumerate(_rows(path), start=1)),
    )


class _Goods:
    """What the invoices tell of one stock code."""

    def __init__(self, first_ms: Any) -> None:
        self.first_ms: int = first_ms if isinstance(first_ms, int) else 0
        self._titles: Counter[str] = Counter()
        self._price = 0.0

    def see(self, row: dict[str, str]) -> None:
        # Corrections of the stock have notes such as "damaged" in the place of the title.
        self._titles[row["Description"].strip()] += bool(row["CustomerID"])
        price = _number(row["UnitPrice"])
        if isinstance(price, float) and price > 0:
            self._price = self._price or price

    def message(self, code: str) -> dict[str, Any]:
        title = max(self._titles, key=lambda t: (self._titles[t], t))
        return {
            "item_id": code,
            "title": title or code,
            "price": self._price,
            "created_ms": self.first_ms or None,
            "available_from_ms": self.first_ms or None,
            "is_available": code not in _NOT_GOODS,
        }


def _retail_event(number: int, row: dict[str, str]) -> Record:
    quantity, price = _number(row["Quantity"]), _number(row["UnitPrice"])
    country, zone = _PLACES.get(row["Country"], _NOWHERE)
    time_ms = _london_ms(row["InvoiceDate"])
    message = {
        "event_id": f"{row['InvoiceNo']}:{number}",
        "user_id": row["CustomerID"] or None,
        "type": "refund" if isinstance(quantity, float) and quantity < 0 else "purchase",
        "time_ms": time_ms,
        "item_id": row["StockCode"],
        "value": _product(quantity, price),
        "context": {"country": country, "timezone": zone},
        "props": {"basket": row["InvoiceNo"], "quantity": quantity},
    }
    return _record(EVENTS, message, time_ms, row["CustomerID"] or row["InvoiceNo"] or _NO_KEY)


def movielens(folder: Path) -> Recording:
    """Return the ratings and tags of a MovieLens folder (ratings.csv, tags.csv, movies.csv).

    A rating is an event `rate` with the stars as value, a tag a `comment` with the tag as text.
    All times are 209 weeks later than in the files, for the wire takes none before 2000.

    Memory: all events, sorted, about 0.5 kB each; the files are in the order of users.
    """
    events = [_rating(row) for row in _rows(folder / "ratings.csv")]
    events += [_tag(n, row) for n, row in enumerate(_rows(folder / "tags.csv"), start=1)]
    events.sort(key=lambda record: (record.time_ms, record.key, record.value))
    first: dict[str, int] = {}
    users: set[str] = set()
    for record in events:
        first.setdefault(orjson.loads(record.value)["item_id"], record.time_ms)
        users.add(record.key)
    return Recording(
        [_movie(row, first.get(row["movieId"])) for row in _rows(folder / "movies.csv")],
        [_user(user, *_NOWHERE) for user in sorted(users)],
        lambda: iter(events),
    )


def _rating(row: dict[str, str]) -> Record:
    message = {
        "event_id": f"rate:{row['userId']}:{row['movieId']}",
        "user_id": row["userId"],
        "type": "rate",
        "time_ms": (time_ms := _shifted_ms(row["timestamp"])),
        "item_id": row["movieId"],
        "value": _number(row["rating"]),
    }
    return _record(EVENTS, message, time_ms, row["userId"])


def _tag(number: int, row: dict[str, str]) -> Record:
    message = {
        "event_id": f"tag:{row['userId']}:{row['movieId']}:{number}",
        "user_id": row["userId"],
        "type": "comment",
        "time_ms": (time_ms := _shifted_ms(row["timestamp"])),
        "item_id": row["movieId"],
        "text": row["tag"],
    }
    return _record(EVENTS, message, time_ms, row["userId"])


def _movie(row: dict[str, str], first_ms: int | None) -> Record:
    genres = [] if row["genres"].startswith("(") else row["genres"].split("|")
    message = {
        "item_id": row["movieId"],
        "title": row["title"],
        "categories": genres,
        "created_ms": first_ms,
        "available_from_ms": first_ms,
    }
    return _record(ITEMS, message, first_ms or 0)


def json_lines(path: str, topic: str = EVENTS) -> Recording:
    """Return our own messages, one JSON object a line, for any topic; `-` reads standard input.

    Lines are sent byte for byte as they stand; only the key and the time are read from them.
    """
    if topic not in TOPICS:
        raise ValueError(f"no topic {topic!r}; there are {', '.join(TOPICS)}")
    return Recording([], [], lambda: _lines(path, topic))


def _lines(path: str, topic: str) -> Iterator[Record]:
    stream = sys.stdin.buffer if path == "-" else _open(Path(path))
    with stream:
        for line in stream:
            if text := line.strip():
                key, time_ms = _key_and_time(text, TOPICS[topic].key)
                yield Record(topic, key, text, time_ms)


def _key_and_time(line: bytes, key_field: str) -> tuple[str, int]:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _NO_KEY, 0
    if not isinstance(message, dict):
        return _NO_KEY, 0
    key, time_ms = message.get(key_field), message.get("time_ms")
    return str(key or _NO_KEY), time_ms if type(time_ms) is int and time_ms > 0 else 0


def _record(topic: str, message: dict[str, Any], time_ms: Any, key: str = "") -> Record:
    known = {name: value for name, value in message.items() if value is not None}
    if topic == EVENTS:
        known["user_id"] = message["user_id"]  # null must be seen, and refused
    return Record(
        topic,
        key or message[TOPICS[topic].key],
        orjson.dumps(known),
        time_ms if isinstance(time_ms, int) else 0,
    )


def _user(user_id: str, country: str, zone: str) -> Record:
    message = {
        "user_id": user_id,
        "timezone": zone,
        "country": country,
        "consent": {"push": True, "version": "replay"},
    }
    return _record(USERS, message, 0)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    # gzip's own type is no IO[bytes] by name, but has all of its methods.
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip else path.open("rb")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with _open(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="")
        yield from csv.DictReader(text, restval="")


def _number(text: str) -> float | str:
    """Return a finite number, or the text itself where it is none."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if isfinite(number) else text


def _product(quantity: float | str, price: float | str) -> float | str:
    """Return quantity x price, or the first of them that is no number."""
    if isinstance(quantity, str):
        return quantity
    return price if isinstance(price, str) else round(quantity * price, 2)


@lru_cache(maxsize=1_024)  # all lines of an invoice share their minute
def _london_ms(text: str) -> int | str:
    """Return London time as milliseconds UTC, or the text itself where it is no time."""
    try:
        local = datetime.fromisoformat(text).replace(tzinfo=_LONDON)
    except ValueError:
        return text
    return int(local.timestamp()) * 1_000


def _shifted_ms(seconds: str) -> int | str:
    try:
        return int(seconds) * 1_000 + MOVIELENS_SHIFT_MS
    except ValueError:
        return seconds
