"""The fusion network in serving: what is missing, what is refused, what is exact."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import TEXT_DIM
from models.fusion import Fusion, FusionFileError, FusionMismatchError, ModeWeights
from models.neighbours import GRID, to_grid
from models.text import encode_texts

ENCODERS = {"text": "minilm:ab", "image": "vit:cd", "audio": ""}


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def gated(seed: int = 3) -> Fusion:
    """Return a fusion whose every weight matters."""
    rng = np.random.default_rng(seed)
    modes = [
        ModeWeights(
            rng.normal(0, 0.1, (1, dim)).astype(np.float32),
            rng.normal(0, 1, (dim, TEXT_DIM)).astype(np.float32),
        )
        for dim in (TEXT_DIM, 96, 32)
    ]
    return Fusion(modes, rng.normal(0, 2, (3 * TEXT_DIM + 3, 3)).astype(np.float32), ENCODERS)


def test_hashed_text_alone_comes_out_as_it_went_in_to_the_last_bit() -> None:
    texts = encode_texts(["Red lamp", "红色台灯", "", "garden hose with a tap"])
    fusion = Fusion.untrained(TEXT_DIM)
    assert fusion.is_identity
    assert fusion.fuse(texts).tobytes() == to_grid(texts).tobytes()
    assert fusion.text_query(texts).tobytes() == to_grid(texts).tobytes()
    assert not Fusion.untrained(TEXT_DIM, 8).is_identity
    assert not Fusion.untrained(384).is_identity


def test_vectors_lie_on_the_grid_and_are_one_long_or_zero() -> None:
    rows = gated().fuse(normal(50, TEXT_DIM), normal(50, 96, 1), normal(50, 32, 2))
    assert np.array_equal(rows * GRID, np.rint(rows * GRID))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=2e-3)


@pytest.mark.parametrize("nothing", [np.nan, 0.0, np.inf])
def test_a_missing_mode_has_no_say_whatever_says_that_it_is_missing(nothing: float) -> None:
    text, image, audio = normal(4, TEXT_DIM), normal(4, 96, 1), normal(4, 32, 2)
    image[1], audio[1] = nothing, nothing
    fusion = gated()
    both, shares = fusion.blend(text, image, audio)
    np.testing.assert_allclose(both[1], fusion.blend(text)[0][1], atol=1e-12)
    assert shares[1].tolist() == [1.0, 0.0, 0.0]
    assert (shares[[0, 2, 3]] > 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)


def test_an_item_of_which_nothing_is_known_is_zeros() -> None:
    fusion = gated()
    image = np.full((2, 96), np.nan, np.float32)
    image[0] = normal(1, 96)
    rows = fusion.fuse(np.zeros((2, TEXT_DIM), np.float32), image)
    assert rows[0].any() and not rows[1].any()
    assert fusion.blend(None, image)[1][1].tolist() == [0.0, 0.0, 0.0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 5, 31]))
def test_a_row_on_the_grid_depends_on_its_own_item_alone(seed: int, at: int) -> None:
    text, image = normal(32, TEXT_DIM, seed), normal(32, 96, seed + 1)
    image[::3] = np.nan
    fusion = gated()
    alone = fusion.fuse(text[at : at + 1], image[at : at + 1])
    assert fusion.fuse(text, image)[at].tobytes() == alone[0].tobytes()


def test_the_length_of_a_vector_does_not_matter_even_where_it_is_huge() -> None:
    text, image = normal(3, TEXT_DIM), normal(3, 96)
    fusion = gated()
    huge = fusion.fuse(text * np.float32(1e30), image * np.float32(1e-30))
    assert huge.tobytes() == fusion.fuse(text, image).tobytes()


def test_the_gate_shares_by_content() -> None:
    fusion = gated()
    _, shares = fusion.blend(normal(200, TEXT_DIM), normal(200, 96, 1), normal(200, 32, 2))
    assert shares[:, 0].std() > 0.05


def test_fitting_takes_the_common_direction_away_and_keeps_what_differs() -> None:
    rng = np.random.default_rng(0)
    subjects = rng.normal(size=(10, 384))
    about = np.repeat(np.arange(10), 40)
    texts = (subjects[about] + rng.normal(0, 0.5, (400, 384)) + 20.0).astype(np.float32)
    raw, fitted = (f.fuse(texts) for f in (Fusion.untrained(384), Fusion.fitted(texts)))
    is_same = about[:, None] == about
    assert (raw @ raw.T)[~is_same].mean() > 0.9
    assert abs((fitted @ fitted.T)[~is_same].mean()) < 0.15
    assert (fitted @ fitted.T)[is_same].mean() > 0.5


def test_fitting_few_columns_or_few_rows_gives_a_fusion_all_the_same() -> None:
    few = Fusion.fitted(normal(5, 384), normal(3, 2), normal(1, 8))
    assert few.dims == (384, 2, 0)  # one sound says nothing of the direction of sounds
    rows = few.fuse(normal(5, 384), normal(5, 2))
    assert np.isfinite(rows).all()
    constant = Fusion.fitted(np.ones((9, 16), np.float32)).fuse(normal(2, 16))
    assert np.isfinite(constant).all()


def test_the_modes_of_a_fitted_fusion_do_not_fall_on_each_other() -> None:
    rng = np.random.default_rng(1)
    spread = np.geomspace(5.0, 0.05, 96)
    text, image = (rng.normal(size=(2_000, 96)) * spread for _ in range(2))
    fusion = Fusion.fitted(text, image)
    cross = (fusion.fuse(text) * fusion.fuse(None, image)).sum(axis=1)
    assert abs(cross.mean()) < 0.02 and cross.std() < 0.3


def test_a_file_gives_back_the_same_fusion(tmp_path: Path) -> None:
    fusion, path = gated(), tmp_path / "deep" / "fusion.pff"
    assert fusion.save(path) == fusion.id
    loaded = Fusion.load(path, ENCODERS)
    text, image = normal(9, TEXT_DIM), normal(9, 96)
    assert loaded.id == fusion.id and loaded.encoders == ENCODERS
    assert loaded.dims == fusion.dims == (TEXT_DIM, 96, 32)
    assert loaded.fuse(text, image).tobytes() == fusion.fuse(text, image).tobytes()
    assert path.read_bytes() == _saved_again(loaded, tmp_path)


def _saved_again(fusion: Fusion, folder: Path) -> bytes:
    fusion.save(folder / "again.pff")
    return (folder / "again.pff").read_bytes()


def test_the_id_follows_from_the_content() -> None:
    same, other = gated(3), gated(4)
    assert gated(3).id == same.id != other.id
    assert Fusion(same.modes, same.gate, {"text": "another"}).id != same.id


def test_an_untrained_fusion_is_the_same_in_another_process() -> None:
    code = "from models.fusion import Fusion; print(Fusion.untrained(384, 512, 128).id)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert other.stdout.strip() == Fusion.untrained(384, 512, 128).id


def test_a_fusion_for_other_encoders_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fusion.pff"
    gated().save(path)
    with pytest.raises(FusionMismatchError, match=r"'minilm:ab'.*in use is 'hash-1'"):
        Fusion.load(path, {"text": "hash-1"})


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "fusion.pff"
    gated().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(FusionFileError, match="pushflow train fusion"):
        Fusion.load(path)
    with pytest.raises(FusionFileError, match="cannot read"):
        Fusion.load(tmp_path / "absent.pff")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "fusion.pff"
    gated().save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FusionFileError):
        Fusion.load(path)


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image vectors of shape \(2, 12\)"):
        gated().fuse(normal(2, TEXT_DIM), normal(2, 12))
    with pytest.raises(ValueError, match="image vectors"):
        Fusion.untrained(TEXT_DIM).fuse(normal(2, TEXT_DIM), normal(2, 12))
    with pytest.raises(ValueError, match="at least"):
        gated().fuse()


def test_weights_that_are_no_numbers_are_refused() -> None:
    good = gated()
    gate = good.gate.copy()
    gate[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Fusion(good.modes, gate)
