"""Pruning and int8: what is left says what it said, but for what was taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import ModelFileError, write_model
from models.compress import (
    Importance,
    dynamic_int8,
    importance,
    int8_ranges,
    narrowed,
    pruned,
    quantised_layers,
    student_guide,
)
from models.dataset import Requests, training_windows
from models.distill import Distillation
from models.export import export_student
from models.features import HISTORY, N_CONTEXT, TEXT_DIM
from models.serving import MAX_ROWS, StudentScorer
from models.student import Student, StudentConfig
from models.student_scores import catalogue_scores
from tests.models.chain import ITEMS, chains

torch.set_num_threads(1)  # shared cores
SMALL = StudentConfig(width=32, heads=4, feed_forward=24, request=32)
TEXTS = np.random.default_rng(2).standard_normal((len(ITEMS), TEXT_DIM)).astype(np.float32)


def make_student(config: StudentConfig = SMALL) -> Student:
    torch.manual_seed(5)
    student = Student(config, len(ITEMS))
    for weight in student.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return student.eval()


def requests(n_users: int = 40) -> Requests:
    rng = np.random.default_rng(1)
    shape = (n_users, HISTORY)
    is_item = np.arange(HISTORY) >= rng.integers(0, HISTORY, n_users)[:, None]
    ages = np.sort(rng.exponential(1e5, shape), axis=1)[:, ::-1]
    return Requests(
        rng.integers(1, len(ITEMS) + 1, shape) * is_item,
        rng.integers(1, 12, shape) * is_item,
        (ages * is_item).astype(np.float32),
        rng.exponential(5.0, (n_users, N_CONTEXT)).astype(np.float32),
        rng.integers(1, len(ITEMS) + 1, n_users),
    )


def table_of(scorer: StudentScorer) -> NDArray[np.float32]:
    vectors = scorer.embed_items(ITEMS, TEXTS)
    return np.vstack((np.zeros((1, scorer.dim), np.float32), vectors))


def scores(scorer: StudentScorer, asked: Requests) -> NDArray[np.float32]:
    table = table_of(scorer)
    users = scorer.user_vectors(table, asked.rows, asked.types, asked.age_s, asked.contexts)
    return np.asarray(users @ table[1:].T)


def served(student: Student, path: Path) -> StudentScorer:
    write_model(path, export_student(student, ITEMS, {}))
    return StudentScorer(path)


def ranges_of(student: Student, folder: Path) -> dict[str, tuple[float, float]]:
    table = table_of(served(student, folder / "float.pfm"))
    return dict(int8_ranges(student, table, requests()))


def worth(kept_heads: list[list[int]], kept_units: list[range]) -> Importance:
    heads, units = np.zeros((2, 4)), np.zeros((2, 24))
    for layer in range(2):
        heads[layer, kept_heads[layer]] = 1
        units[layer, kept_units[layer]] = 1
    return Importance(list(heads), list(units))


def test_a_pruned_student_says_what_one_with_the_rest_masked_says() -> None:
    student = make_student()
    smaller = pruned(
        student, worth([[1, 3], [0, 2]], [range(3, 11), range(16, 24)]), heads=2, feed_forward=8
    )
    masked = make_student()
    with torch.no_grad():
        for layer, (heads, units) in enumerate([([0, 2], range(3, 11)), ([1, 3], range(16, 24))]):
            block = masked.blocks[layer]
            for head in heads:
                block.out.weight[:, head * 8 : (head + 1) * 8] = 0  # type: ignore[index,union-attr]
            gone = [unit for unit in range(24) if unit not in units]
            block.down.weight[:, gone] = 0  # type: ignore[index,union-attr]
    asked = requests()
    np.testing.assert_allclose(
        catalogue_scores(smaller, TEXTS)(asked),
        catalogue_scores(masked, TEXTS)(asked),
        rtol=1e-4,
        atol=1e-4,
    )
    assert smaller.config.head_counts == (2, 2)
    assert smaller.config.hidden_counts == (8, 8)
    n_weights = [sum(p.numel() for p in own.blocks.parameters()) for own in (student, smaller)]
    assert n_weights[1] < 0.6 * n_weights[0]


def test_heads_and_units_that_say_nothing_are_worth_nothing_and_go_first() -> None:
    student = make_student()
    with torch.no_grad():
        for block in student.blocks:
            block.out.weight[:, 16:24] = 0  # type: ignore[index,union-attr]
            block.down.weight[:, :8] = 0  # type: ignore[index,union-attr]
    histories = chains(20, 12)
    found = importance(student, histories, TEXTS, until_s=10**9)
    assert all(heads[2] == 0 and (np.delete(heads, 2) > 0).all() for heads in found.heads)
    assert all((units[:8] == 0).all() and units[8:].sum() > 0 for units in found.units)
    smaller = pruned(student, found, heads=3, feed_forward=16)
    asked = requests()
    np.testing.assert_allclose(
        catalogue_scores(smaller, TEXTS)(asked),
        catalogue_scores(student, TEXTS)(asked),
        rtol=1e-4,
        atol=1e-4,
    )


def test_more_than_a_layer_has_cannot_be_left() -> None:
    found = worth([[0], [0]], [range(1), range(1)])
    with pytest.raises(ValueError, match="5 heads and 8 units"):
        pruned(make_student(), found, heads=5, feed_forward=8)


def test_a_short_reach_hides_what_lies_further_back() -> None:
    student = narrowed(make_student(), (6, 3))
    asked = requests()
    before = catalogue_scores(student, TEXTS)(asked)
    with torch.no_grad():
        student.pool.weight.zero_()  # the plain part sees all
    alone = catalogue_scores(student, TEXTS)(asked)
    rows = asked.rows.copy()
    rows[:, : HISTORY - 8] = np.where(rows[:, : HISTORY - 8] > 0, 7, 0)
    changed = catalogue_scores(student, TEXTS)(asked._replace(rows=rows))
    np.testing.assert_allclose(changed, alone, atol=1e-5)
    rows[:, HISTORY - 8] = np.where(rows[:, HISTORY - 8] > 0, rows[:, HISTORY - 8] % 40 + 1, 0)
    assert not np.allclose(catalogue_scores(student, TEXTS)(asked._replace(rows=rows)), alone)
    assert not np.allclose(before, alone)


@pytest.mark.parametrize("sizes", [{}, {"layer_heads": (1, 3), "layer_feed_forward": (8, 16)}])
@pytest.mark.parametrize("reach", [(), (43, 7), (1, 50), (5, 4)])
def test_the_served_network_is_torchs_with_any_reach_and_sizes(
    sizes: dict[str, tuple[int, ...]], reach: tuple[int, ...], tmp_path: Path
) -> None:
    student = make_student(replace(SMALL, reach=reach, **sizes))  # type: ignore[arg-type]
    asked = requests()
    expected = catalogue_scores(student, TEXTS)(asked)
    found = scores(served(student, tmp_path / "s.pfm"), asked)
    np.testing.assert_allclose(found / expected.std(), expected / expected.std(), atol=1e-4)


def test_static_int8_is_near_its_float_and_the_same_bytes_in_any_batch(tmp_path: Path) -> None:
    student = make_student(replace(SMALL, reach=(43, 7)))
    ranges = ranges_of(student, tmp_path)
    assert sorted(ranges) == sorted(quantised_layers(student.config))
    assert all(low <= 0 <= high for low, high in ranges.values())
    model = export_student(student, ITEMS, {}, None, ranges)
    write_model(tmp_path / "int8.pfm", model)
    scorer = StudentScorer(tmp_path / "int8.pfm")
    assert scorer.rows_per_call == MAX_ROWS
    asked = requests(70)
    whole = scores(served(student, tmp_path / "float.pfm"), asked)
    found = scores(scorer, asked)
    error = np.sqrt(np.square(found - whole).mean()) / whole.std()
    assert 0 < error < 0.05
    assert len(model.onnx) < 0.75 * len(export_student(student, ITEMS, {}).onnx)


def test_dynamic_int8_is_asked_one_user_at_a_time(tmp_path: Path) -> None:
    student = make_student()
    write_model(tmp_path / "s.pfm", dynamic_int8(export_student(student, ITEMS, {})))
    scorer = StudentScorer(tmp_path / "s.pfm")
    assert scorer.rows_per_call == 1
    asked = requests()
    whole = scores(served(student, tmp_path / "float.pfm"), asked)
    error = np.sqrt(np.square(scores(scorer, asked) - whole).mean()) / whole.std()
    assert 0 < error < 0.05


def test_a_damaged_int8_network_is_refused(tmp_path: Path) -> None:
    student = make_student()
    model = export_student(student, ITEMS, {}, None, ranges_of(student, tmp_path))
    write_model(tmp_path / "s.pfm", model._replace(onnx=model.onnx[:-50]))
    with pytest.raises(ModelFileError, match="cannot load the network"):
        StudentScorer(tmp_path / "s.pfm")
    write_model(tmp_path / "s.pfm", model)
    data = bytearray((tmp_path / "s.pfm").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "s.pfm").write_bytes(bytes(data))
    with pytest.raises(ModelFileError):
        StudentScorer(tmp_path / "s.pfm")


def test_a_student_tells_another_what_it_would_answer() -> None:
    student = make_student()
    histories = chains(6, 8)
    rng = np.random.default_rng(0)
    batch = next(training_windows(histories, until_s=10**9, batch_size=4, rng=rng))
    known = np.arange(1, len(ITEMS) + 1)
    found = student_guide(student, TEXTS, known, config=Distillation(top=10, tail=5))(batch)
    assert found is not None
    assert found.candidates.shape == (int((batch.weights > 0).sum()), 15)
    rows, types, gaps = (torch.from_numpy(x) for x in (batch.rows, batch.types, batch.gaps))
    with torch.no_grad():
        table = student.item_table(torch.from_numpy(TEXTS))
        picked = torch.from_numpy(batch.weights > 0)
        users = student.users(
            student.encode(table, rows, types, gaps)[picked],
            None,
            torch.from_numpy(batch.ages)[picked],
        )
        expected = (table[found.candidates] @ users[:, :, None])[..., 0]
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(1,), (0, 7), (51, 3)])
def test_a_reach_that_fits_no_layer_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="reach"):
        replace(SMALL, reach=sizes)
