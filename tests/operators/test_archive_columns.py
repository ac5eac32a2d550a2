"""Every message is a row; what cannot be used says why."""

from typing import Any

import msgspec
import numpy as np

from operators.archive_columns import Columns
from operators.codec import encode
from operators.hops import RawMessage
from operators.messages import Event, EventContext, Item
from tests.conftest import T0_MS, decision, event


def raw(topic: str, *values: bytes | None) -> list[RawMessage]:
    return [RawMessage(f"own.{topic}", 3, n, b"u1", v, T0_MS) for n, v in enumerate(values)]


def table(topic: str, *values: bytes | None, **options: Any) -> Any:
    [made] = Columns(topic, 3, **options).tables(raw(topic, *values))
    return made.table


def learning(**fields: Any) -> Any:
    return msgspec.structs.replace(decision().learning, **fields)


def test_the_bytes_of_every_message_are_kept() -> None:
    values = [encode(event()), b"{", b"\xff\xfe", None, b"[]", b"x" * 70_000]
    found = table("push.events.v1", *values)

    assert found.column("raw").to_pylist() == values
    assert found.column("key").to_pylist() == [b"u1"] * 6
    assert found.column("offset").to_pylist() == [0, 1, 2, 3, 4, 5]
    assert found.column("refused").to_pylist() == [
        *(None, "bad_json", "bad_json", "null_value", "bad_field", "too_large")
    ]
    assert found.column("event_id").to_pylist() == ["e1", *[None] * 5]


def test_an_event_comes_back_from_its_columns() -> None:
    told = event(value=2.5, text="灯", context=EventContext(device="mobile", country="CN"))
    names = [name for name in Event.__struct_fields__ if name != "props"]
    [row] = table("push.events.v1", encode(told)).select(names).to_pylist()

    assert Event(**{**row, "context": EventContext(**row["context"])}) == told


def test_features_are_of_fixed_width_and_float32_and_none_has_zeros() -> None:
    [row] = table("push.decisions.v1", encode(decision())).to_pylist()
    arms = decision().learning.action_set

    assert row["features"] == np.float32([a.features for a in arms]).tolist()
    assert row["item_ids"] == ["i1", "none"]
    assert row["context"] == [1.0, 0.5]
    kind = table("push.decisions.v1", encode(decision())).schema.field("features").type
    assert str(kind) == "list<element: fixed_size_list<element: float>[2]>".replace(
        "element", "item"
    )
    none = learning(action_set=[arms[0], msgspec.structs.replace(arms[1], features=[])])
    [row] = table("push.decisions.v1", encode(decision(learning=none))).to_pylist()
    assert row["features"][1] == [0.0, 0.0]


def test_a_decision_that_never_came_to_a_choice_has_no_context() -> None:
    empty = learning(context=[], action_set=[])
    found = table("push.decisions.v1", encode(decision()), encode(decision(learning=empty)))

    assert found.column("context").to_pylist() == [[1.0, 0.5], None]
    assert found.column("features").to_pylist()[1] == []


def test_other_columns_begin_another_table() -> None:
    wide = learning(context=[1.0, 2.0, 3.0])
    values = [encode(decision()), encode(decision(learning=wide)), b"{", encode(decision())]
    made = Columns("push.decisions.v1", 0).tables(raw("push.decisions.v1", *values))

    assert [piece.table.num_rows for piece in made] == [1, 2, 1]
    assert [len(piece.messages) for piece in made] == [1, 2, 1]


def test_what_no_column_can_hold_is_refused_alone() -> None:
    huge = encode(decision()).replace(str(T0_MS).encode(), b"9" * 25)
    ragged = learning(
        action_set=[
            msgspec.structs.replace(action, features=[0.5] * n)
            for n, action in enumerate(decision().learning.action_set, start=1)
        ]
    )
    values = [encode(decision()), huge, encode(decision(learning=ragged)), encode(decision("d2"))]
    found = table("push.decisions.v1", *values)

    assert found.column("decision_id").to_pylist() == ["d1", None, None, "d2"]
    assert found.column("refused").to_pylist() == [None, "bad_field", "bad_field", None]
    assert found.column("raw").to_pylist() == values


def test_the_event_clock_goes_on_from_where_it_stood() -> None:
    first = Columns("push.events.v1", 3)
    [piece] = first.tables(raw("push.events.v1", encode(event())))
    ahead = [
        message._replace(timestamp_ms=-1)
        for message in raw("push.events.v1", encode(event("e2", time_ms=T0_MS + 7_200_000)))
    ]

    [fresh] = Columns("push.events.v1", 3).tables(ahead)
    [later] = Columns("push.events.v1", 3, state=piece.state).tables(ahead)

    assert fresh.table.column("refused").to_pylist() == [None]
    assert later.table.column("refused").to_pylist() == ["ahead_of_time"]


def test_an_items_tombstone_is_a_row_without_fields() -> None:
    found = table("push.items.v1", encode(Item(item_id="i1", title="Lamp")), None, b"{")

    assert found.column("title").to_pylist() == ["Lamp", None, None]
    assert found.column("refused").to_pylist() == [None, None, "bad_json"]
