"""Sums of what a user wrote: what they point at, what bounds them, and that order leaves traces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import TEXT_DIM
from models.neighbours import to_grid
from models.taste import MAX_WEIGHT, add_text, direction_of, pack_vectors, unpack_vector
from models.text import encode_texts


def axes(n: int) -> list[bytes]:
    """Vectors at right angles."""
    return pack_vectors(to_grid(np.eye(n, TEXT_DIM)))


def cosine(one: bytes, other: bytes) -> float:
    return float(unpack_vector(one) @ unpack_vector(other))


def test_a_vector_comes_back_as_it_was() -> None:
    rows = to_grid(encode_texts(["red lamp", "红色台灯"]))

    assert (np.array([unpack_vector(row) for row in pack_vectors(rows)]) == rows).all()


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="of 3 columns, expected 64"):
        unpack_vector(b"abcdef")


def test_the_direction_is_nearest_to_what_weighs_most() -> None:
    lamp, hose = axes(2)
    total, _ = add_text(lamp, 1.0, hose, fade=0.5)
    direction = direction_of(total)

    assert cosine(direction, hose) == pytest.approx(2 / 5**0.5, abs=0.001)
    assert cosine(direction, lamp) == pytest.approx(1 / 5**0.5, abs=0.001)
    assert np.linalg.norm(unpack_vector(direction)) == pytest.approx(1.0, abs=0.002)


def test_texts_that_cancel_out_have_no_direction() -> None:
    row = to_grid(np.eye(1, TEXT_DIM))
    one, opposite = pack_vectors(np.concatenate([row, -row]))
    total, weight = add_text(one, 1.0, opposite)

    assert (direction_of(total), weight) == (b"", 2.0)


TEXTS = st.lists(
    st.tuples(st.sampled_from(axes(3)), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=80,
)


@given(TEXTS)
def test_a_sum_stays_within_its_bounds_whatever_is_added(
    texts: list[tuple[bytes, float, float]],
) -> None:
    total, weight = b"", 0.0
    for text, text_weight, fade in texts:
        total, weight = add_text(total, weight, text, text_weight, fade=fade)

    assert len(total) == 2 * TEXT_DIM
    assert 0 <= weight <= MAX_WEIGHT
    # Rounding adds half a step a time, which fades as the rest does.
    assert np.linalg.norm(unpack_vector(total)) <= MAX_WEIGHT + 0.1


def test_the_same_text_again_and_again_only_makes_it_surer() -> None:
    lamp, tea = axes(2)
    total, weight = b"", 0.0
    for _ in range(100):
        total, weight = add_text(total, weight, lamp)
    assert cosine(direction_of(total), lamp) > 0.999

    total, weight = add_text(total, weight, tea)
    assert weight == MAX_WEIGHT
    assert cosine(direction_of(total), lamp) > 0.99
