"""Rows of the real data sets as messages."""

import gzip
from collections import Counter
from pathlib import Path

import msgspec
import orjson
import pytest

from flows.recorded import EVENTS, MOVIELENS_SHIFT_MS, Record, json_lines, movielens, retail
from operators.messages import Event, Item, UserProfile

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def shop(folder: Path, *rows: str) -> Path:
    path = folder / "retail.csv.gz"
    path.write_bytes(gzip.compress((HEADER + "\n".join(rows) + "\n").encode()))
    return path


def values(records: "list[Record]") -> list[dict[str, object]]:
    return [orjson.loads(record.value) for record in records]


def test_an_invoice_line_is_a_purchase_with_its_value_and_its_time_in_utc(tmp_path: Path) -> None:
    path = shop(tmp_path, "536365,85123A,HEART,6,2011-07-01 08:26:00,2.55,17850,Germany")

    (record,) = retail(path).events()

    assert record.key == "17850"
    assert record.time_ms == 1_309_505_160_000  # 07:26 UTC: London has summer time
    assert orjson.loads(record.value) == {
        "event_id": "536365:1",
        "user_id": "17850",
        "type": "purchase",
        "time_ms": 1_309_505_160_000,
        "item_id": "85123A",
        "value": 15.3,
        "context": {"country": "DE", "timezone": "Europe/Berlin"},
        "props": {"basket": "536365", "quantity": 6.0},
    }


def test_a_cancelled_invoice_is_a_refund(tmp_path: Path) -> None:
    path = shop(tmp_path, "C536379,D,Discount,-1,2010-12-01 09:41:00,27.50,14527,United Kingdom")

    (message,) = values(list(retail(path).events()))

    assert (message["type"], message["value"]) == ("refund", -27.5)


def test_a_row_without_a_customer_is_sent_with_a_null_that_the_contract_refuses(
    tmp_path: Path,
) -> None:
    path = shop(tmp_path, "536414,22139,,56,2010-12-01 11:52:00,0.0,,United Kingdom")

    (record,) = retail(path).events()

    assert record.key == "536414"
    with pytest.raises(
        msgspec.ValidationError, match=r"Expected `str`, got `null` - at `\$.user_id`"
    ):
        msgspec.json.decode(record.value, type=Event)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("1,A,T,six,2010-12-01 11:52:00,1.0,7,EIRE", "value"),
        ("1,A,T,6,2010-12-01 11:52:00,nan,7,EIRE", "value"),
        ("1,A,T,6,yesterday,1.0,7,EIRE", "time_ms"),
        ("1,,T,6,2010-12-01 11:52:00,1.0,7,EIRE", "item_id"),
    ],
)
def test_a_broken_row_is_sent_as_it_stands(tmp_path: Path, row: str, field: str) -> None:
    (record,) = retail(shop(tmp_path, row)).events()

    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(record.value, type=Event)


def test_an_item_has_its_customers_title_and_is_available_from_its_first_row(
    tmp_path: Path,
) -> None:
    path = shop(
        tmp_path,
        "1,A,damaged,-3,2011-01-01 10:00:00,0.0,,United Kingdom",
        "2,A,damaged,-3,2011-01-02 10:00:00,0.0,,United Kingdom",
        "3,A,TIN,1,2011-01-03 10:00:00,1.25,7,United Kingdom",
        "3,POST,POSTAGE,1,2011-01-03 10:00:00,18.0,7,United Kingdom",
    )

    tin, postage = (msgspec.json.decode(r.value, type=Item) for r in retail(path).items)

    assert (tin.title, tin.price, tin.is_available) == ("TIN", 1.25, True)
    assert tin.available_from_ms == 1_293_876_000_000
    assert (postage.item_id, postage.is_available) == ("POST", False)


def test_customers_get_consent_and_their_countrys_time_zone(tmp_path: Path) -> None:
    path = shop(
        tmp_path,
        "1,A,T,1,2011-01-03 10:00:00,1.25,7,Japan",
        "2,A,T,1,2011-01-03 10:00:00,1.25,6,Unspecified",
    )

    six, seven = (msgspec.json.decode(r.value, type=UserProfile) for r in retail(path).users)

    assert (six.user_id, six.timezone, six.country) == ("6", "UTC", "")
    assert (seven.timezone, seven.country, seven.consent.push) == ("Asia/Tokyo", "JP", True)


def test_ratings_and_tags_come_in_time_order_shifted_by_whole_weeks(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Toy, The (1982)",Comedy|Drama\n2,Cosmos,(no genres listed)\n'
    )
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n5,1,3.5,900000000\n")
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n5,1,slow burn,850000000\n")

    recording = movielens(tmp_path)
    tag, rating = (msgspec.json.decode(r.value, type=Event) for r in recording.events())

    assert (tag.type, tag.text, tag.time_ms) == (
        "comment",
        "slow burn",
        850_000_000_000 + MOVIELENS_SHIFT_MS,
    )
    assert (rating.type, rating.value, rating.item_id) == ("rate", 3.5, "1")
    toy, cosmos = values(recording.items)
    assert (toy["categories"], toy["available_from_ms"]) == (["Comedy", "Drama"], tag.time_ms)
    assert cosmos == {"item_id": "2", "title": "Cosmos", "categories": []}


def test_json_lines_are_sent_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"user_id": "u1", "time_ms": 5}\n\n{broken\n[1]\n'))

    assert list(json_lines(str(path)).events()) == [
        Record(EVENTS, "u1", b'{"user_id": "u1", "time_ms": 5}', 5),
        Record(EVENTS, "unkeyed", b"{broken", 0),
        Record(EVENTS, "unkeyed", b"[1]", 0),
    ]


def test_json_lines_of_another_topic_take_its_key(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id":"i1","title":"T"}\n')

    (record,) = json_lines(str(path), "push.items.v1").events()

    assert (record.topic, record.key) == ("push.items.v1", "i1")


def test_every_row_of_online_retail_is_an_event_or_lacks_its_customer(shared_data: Path) -> None:
    recording = retail(shared_data / "online-retail" / "online_retail.csv.gz")
    decoder, found = msgspec.json.Decoder(Event), Counter[str]()
    for record in recording.events():
        try:
            found[decoder.decode(record.value).type] += 1
        except msgspec.ValidationError as error:
            found[str(error)] += 1

    assert found == {
        "purchase": 266_518,
        "refund": 6_357,
        "Expected `str`, got `null` - at `$.user_id`": 98_056,
    }
    assert (len(recording.items), len(recording.users)) == (3_887, 3_658)


def test_every_row_of_movielens_is_an_event(shared_data: Path) -> None:
    recording = movielens(shared_data / "ml-latest-small")
    decoder = msgspec.json.Decoder(Event)

    found = Counter(decoder.decode(record.value).type for record in recording.events())

    assert found == {"rate": 78_766, "comment": 3_299}
    assert (len(recording.items), len(recording.users)) == (9_742, 486)
