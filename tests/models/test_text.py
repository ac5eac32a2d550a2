import os
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.features import TEXT_DIM
from models.text import encode_texts, item_text


@given(st.lists(st.text(max_size=200), max_size=8))
def test_any_text_gives_a_row_of_length_one_or_zero(texts: list[str]) -> None:
    vectors = encode_texts(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    assert vectors.shape == (len(texts), TEXT_DIM) and vectors.dtype == np.float32
    assert np.all(np.isclose(lengths, 1, atol=1e-5) | (lengths == 0))


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.data())
def test_a_row_is_the_same_bytes_alone_and_among_others(
    texts: list[str], data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(texts) - 1))
    assert encode_texts(texts)[i].tobytes() == encode_texts([texts[i]])[0].tobytes()


def test_another_process_with_another_hash_seed_gives_the_same_bytes() -> None:
    code = (
        "from models.text import encode_texts as e; print(e(['Red lamp 红色台灯']).tobytes().hex())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert other.stdout.decode().strip() == encode_texts(["Red lamp 红色台灯"]).tobytes().hex()


def test_case_width_and_order_of_words_do_not_matter() -> None:
    a, b, c = encode_texts(["Red Lamp", "lamp RED", "ｒｅｄ lamp"])
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(a, c, atol=1e-6)


def test_chinese_texts_that_share_characters_are_nearer_than_others() -> None:
    lamp, same, other = encode_texts(["复古红色台灯", "红色台灯 复古", "花园水管接头"])
    assert lamp @ same > 0.7
    assert abs(lamp @ other) < 0.4


def test_a_repeated_word_counts_less_than_in_proportion() -> None:
    once, often = encode_texts(["lamp garden", "lamp lamp lamp lamp garden"])
    assert 0.8 < once @ often < 0.99


def test_item_text_leaves_out_what_is_empty_and_cuts_long_descriptions() -> None:
    assert item_text("Lamp", "x" * 1_000, ["home", ""]) == "Lamp home " + "x" * 300
