"""What users write: their searches make the session's intent, all of it their taste."""

import base64
from collections.abc import Callable

import numpy as np
import pytest

from models.features import TEXT_DIM
from models.neighbours import to_grid
from models.taste import pack_vectors, unpack_vector
from models.text import encode_texts
from operators.messages import UserSignal
from operators.user_state import UserState
from operators.written import MAX_CHARS, TextVectors, add_signal, add_written, written
from tests.conftest import T0_MS

DAY_MS = 86_400_000
VECTORS = TextVectors(encode_texts)
LAMP, TEA, SHOES = pack_vectors(to_grid(np.eye(3, TEXT_DIM)))  # at right angles


def cosine(one: bytes, other: bytes) -> float:
    return float(unpack_vector(one) @ unpack_vector(other))


def counting(calls: list[list[str]]) -> Callable[[list[str]], np.ndarray]:
    def encode(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return encode_texts(texts)

    return encode


def test_texts_are_encoded_together_and_once() -> None:
    calls: list[list[str]] = []
    vectors = TextVectors(counting(calls))

    first = vectors.many(["lamp", "tea", "lamp"])
    second = vectors.many(["tea ", "shoes"])

    assert calls == [["lamp", "tea"], ["shoes"]]
    assert (first[0], first[1]) == (first[2], second[0])


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    calls: list[list[str]] = []
    vectors = TextVectors(counting(calls), kept=4)
    for text in ("a", "b", "c", "d", "e"):
        vectors.many([text])
    calls.clear()

    vectors.many(["e", "d", "c"])
    vectors.many(["a"])

    assert calls == [["a"]]


def test_a_batch_larger_than_the_cache_is_answered_whole() -> None:
    vectors = TextVectors(encode_texts, kept=2)
    texts = [f"thing number {n}" for n in range(9)]

    assert vectors.many(texts) == TextVectors(encode_texts).many(texts)
    assert vectors.many(texts) == TextVectors(encode_texts).many(texts)


def test_a_long_text_is_cut() -> None:
    start = "lamp " * (MAX_CHARS // 5)

    assert VECTORS.many([start]) == VECTORS.many([start + " x" * 2_000])


def test_the_newest_search_weighs_most_in_the_intent() -> None:
    state = UserState()
    for vector in (LAMP, TEA, SHOES):
        add_written(state, vector, "e", T0_MS, is_intent=True)
    intent, taste = written(state, "e")

    assert cosine(intent, SHOES) > cosine(intent, TEA) > cosine(intent, LAMP) > 0.2
    assert cosine(taste, LAMP) == cosine(taste, TEA) == cosine(taste, SHOES)


def test_a_comment_is_taste_and_no_intent() -> None:
    state = UserState()
    add_written(state, LAMP, "e", T0_MS, is_intent=False)

    assert written(state, "e") == (b"", LAMP)


def test_taste_fades_and_a_late_text_counts_as_what_is_left_of_it() -> None:
    in_order, late = UserState(), UserState()
    texts = [(LAMP, T0_MS), (TEA, T0_MS + 60 * DAY_MS)]
    for vector, time_ms in texts:
        add_written(in_order, vector, "e", time_ms, is_intent=False)
    for vector, time_ms in reversed(texts):
        add_written(late, vector, "e", time_ms, is_intent=False)
    taste = written(in_order, "e")[1]

    assert cosine(taste, TEA) > cosine(taste, LAMP) > 0.1
    assert in_order.taste_weight == late.taste_weight == 1.25  # two half-lives
    assert cosine(taste, written(late, "e")[1]) > 0.999
    assert late.taste_ms == T0_MS + 60 * DAY_MS


def test_another_encoder_begins_anew() -> None:
    state = UserState()
    add_written(state, LAMP, "old", T0_MS, is_intent=True)
    before = written(state, "new")
    add_written(state, TEA, "new", T0_MS, is_intent=False)

    assert before == (b"", b"")
    assert written(state, "new") == (b"", TEA)
    assert written(state, "old") == (b"", b"")


def test_who_never_wrote_has_nothing() -> None:
    state = UserState()
    add_written(state, b"", "e", T0_MS, is_intent=True)

    assert (written(state, "e"), state) == ((b"", b""), UserState())


def signal(**fields: object) -> UserSignal:
    values = {
        "signal_id": "s1",
        "user_id": "u1",
        "type": "searched",
        "time_ms": T0_MS,
        "encoder": "e",
        "vector": base64.b64encode(LAMP).decode(),
    }
    return UserSignal(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, ""),
        ({"encoder": "old"}, "other_encoder"),
        ({"vector": "no base64"}, "bad_vector"),
        ({"vector": base64.b64encode(bytes(2 * TEXT_DIM - 2)).decode()}, "bad_vector"),
        ({"vector": base64.b64encode(b"odd").decode()}, "bad_vector"),
    ],
)
def test_a_vector_that_does_not_fit_is_named_and_dropped(
    fields: dict[str, object], why: str
) -> None:
    state = UserState()

    assert add_signal(state, signal(**fields), "e", gap_ms=1_000) == why
    assert bool(state.taste) == (why == "")


@pytest.mark.parametrize(
    ("after_ms", "is_intent"),
    [(-1, False), (0, True), (5_000, True), (6_000, True), (6_001, False)],
)
def test_a_search_that_was_encoded_elsewhere_is_intent_in_its_own_session(
    after_ms: int, is_intent: bool
) -> None:
    state = UserState()
    session = state.session
    session.events, session.start_ms, session.last_ms = 2, T0_MS, T0_MS + 5_000
    add_signal(state, signal(time_ms=T0_MS + after_ms), "e", gap_ms=1_000)

    assert bool(session.intent) == is_intent
    assert state.taste == LAMP
