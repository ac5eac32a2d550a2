import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.checkpoint import read_model, write_model
from models.dataset import gap_buckets, time_bucket
from models.export import export_student
from models.features import CANDIDATES, HISTORY, N_CONTEXT, TEXT_DIM, scale_context
from models.serving import (
    MAX_ROWS,
    ModelFileError,
    ModelMismatchError,
    StudentScorer,
    checksum,
)
from models.student import Student, StudentConfig
from models.text import encode_texts

torch.set_num_threads(1)  # shared cores
IDS = [f"i{n}" for n in range(30)]
N_USERS = 80


def make_student(**sizes: int) -> Student:
    torch.manual_seed(5)
    student = Student(StudentConfig(**sizes), len(IDS))  # type: ignore[arg-type]
    for weight in student.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return student.eval()


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student()


@pytest.fixture(scope="module")
def path(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "student.pfm"
    write_model(path, export_student(student, IDS, {"ndcg@10": 0.5}))
    return path


@pytest.fixture(scope="module")
def scorer(path: Path) -> StudentScorer:
    return StudentScorer(path)


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> StudentScorer:
    """Return the same student of a release before, which runs whole windows."""
    before = tmp_path_factory.mktemp("models") / "before.pfm"
    _, model = read_model(path)
    write_model(before, model._replace(onnx=as_fixed(model.onnx)))
    return StudentScorer(before)


@pytest.fixture(scope="module")
def texts() -> NDArray[np.float32]:
    return encode_texts([f"item number {n}" for n in range(len(IDS))])


@pytest.fixture(scope="module")
def table(scorer: StudentScorer, texts: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.vstack((np.zeros((1, scorer.dim), np.float32), scorer.embed_items(IDS, texts)))


def requests(n_users: int = N_USERS, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return the arrays of `scores_of`; user 0 has no history, user 1 a full one."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate(([0, HISTORY], rng.integers(0, HISTORY + 1, n_users)))[:n_users]
    is_item = np.arange(HISTORY) >= HISTORY - lengths[:, None]
    shape = (n_users, HISTORY)
    age_s = np.sort(rng.exponential(1e5, shape), axis=1)[:, ::-1].astype(np.float32)
    return {
        "history_rows": rng.integers(1, 31, shape) * is_item,
        "history_types": rng.integers(1, 13, shape) * is_item,
        "history_age_s": age_s * is_item,
        "context": rng.exponential(5.0, (n_users, N_CONTEXT)).astype(np.float32),
        "candidate_rows": rng.integers(0, 31, (n_users, CANDIDATES)),
    }


def scores_of(
    scorer: StudentScorer,
    table: NDArray[np.float32],
    *,
    candidate_rows: NDArray[np.int64],
    **columns: NDArray[Any],
) -> NDArray[np.float32]:
    return scorer.score(table, scorer.user_vectors(table, **columns), candidate_rows)


def rows_of(columns: dict[str, NDArray[Any]], rows: list[int]) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


def torch_scores(
    student: Student, table: NDArray[np.float32], columns: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    rows, age_s = columns["history_rows"], columns["history_age_s"]
    vectors = torch.from_numpy(table)
    with torch.no_grad():
        states = student.encode(
            vectors,
            torch.from_numpy(rows),
            torch.from_numpy(columns["history_types"]),
            torch.from_numpy(gap_buckets(rows, age_s)),
        )
        context = torch.from_numpy(scale_context(columns["context"]))
        users = student.users(states[:, -1], context, torch.from_numpy(time_bucket(age_s[:, -1])))
        chosen = vectors[torch.from_numpy(columns["candidate_rows"])]
        return (chosen @ users[:, :, None])[..., 0].numpy()


@pytest.mark.parametrize(
    "sizes", [{}, {"layers": 1}, {"layers": 3, "heads": 4, "width": 32, "feed_forward": 48}]
)
def test_onnx_gives_the_scores_of_the_torch_module(
    sizes: dict[str, int], tmp_path: Path, texts: NDArray[np.float32]
) -> None:
    student = make_student(**sizes)
    write_model(tmp_path / "m.pfm", export_student(student, IDS, {}))
    scorer = StudentScorer(tmp_path / "m.pfm")
    table = np.vstack((np.zeros((1, scorer.dim), np.float32), scorer.embed_items(IDS, texts)))
    columns = requests()
    own = student.item_table(torch.from_numpy(texts)).detach().numpy()
    expected = torch_scores(student, own, columns)
    is_real = columns["candidate_rows"] > 0
    scores = scores_of(scorer, table, **columns)
    scale = expected.std()
    np.testing.assert_allclose(scores[is_real] / scale, expected[is_real] / scale, atol=1e-4)
    assert np.isneginf(scores[~is_real]).all()


def test_embedded_items_are_the_torch_modules_turned(
    student: Student, table: NDArray[np.float32], texts: NDArray[np.float32]
) -> None:
    own = student.item_table(torch.from_numpy(texts)).detach().numpy()
    scale = np.square(own).sum(axis=1).max()
    np.testing.assert_allclose(table @ table.T / scale, own @ own.T / scale, atol=1e-5)


def test_a_long_column_is_spread_over_all() -> None:
    made = make_student()
    with torch.no_grad():
        made.ids.weight.zero_()
        made.ids.weight[:, -1] = 5.0
    vectors = np.abs(export_student(made, IDS, {}).id_vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 5.0, rtol=1e-5)
    assert vectors.max() < 2.5


def test_this_cpu_serves_whole_batches(scorer: StudentScorer) -> None:
    assert scorer.rows_per_call == MAX_ROWS


@settings(max_examples=60)
@given(st.lists(st.integers(0, N_USERS - 1), min_size=1, max_size=75))
def test_scores_are_the_same_bytes_in_any_batch(
    scorer: StudentScorer, table: NDArray[np.float32], users: list[int]
) -> None:
    columns = requests()
    alone = [scores_of(scorer, table, **rows_of(columns, [user])) for user in users]
    together = scores_of(scorer, table, **rows_of(columns, users))
    assert together.tobytes() == np.concatenate(alone).tobytes()


def test_scores_are_the_same_bytes_one_user_a_call(
    path: Path, scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    careful = StudentScorer(path)
    careful.rows_per_call = 1  # as on a CPU whose kernels mix rows
    columns = requests()
    assert (
        scores_of(careful, table, **columns).tobytes()
        == scores_of(scorer, table, **columns).tobytes()
    )


def as_fixed(model: bytes) -> bytes:
    """Return the network as releases before wrote it: for histories of T positions alone."""
    made = onnx.load_from_string(model)
    for given_ in made.graph.input:
        if given_.name in ("rows", "types", "gaps"):
            given_.type.tensor_type.shape.dim[1].dim_value = HISTORY
    return made.SerializeToString()


@settings(max_examples=60)
@given(st.lists(st.integers(0, HISTORY), min_size=1, max_size=40), st.integers(0, 20))
def test_leaving_out_what_stands_before_the_first_item_changes_no_byte(
    scorer: StudentScorer, whole: StudentScorer, lengths: list[int], most: int
) -> None:
    columns = requests(len(lengths), seed=most)
    is_item = np.arange(HISTORY) >= HISTORY - np.minimum(lengths, most)[:, None]
    columns = {n: v * is_item if n.startswith("history") else v for n, v in columns.items()}
    del columns["candidate_rows"]
    rng = np.random.default_rng(most)
    table = rng.standard_normal((31, scorer.dim)).astype(np.float16)
    table[0] = 0
    found = scorer.user_vectors(table, **columns)
    assert found.tobytes() == whole.user_vectors(table, **columns).tobytes()


def test_a_network_of_one_length_is_run_at_that(whole: StudentScorer) -> None:
    assert whole.lengths.tolist() == [HISTORY]


def test_threads_get_what_each_asked_for(scorer: StudentScorer, table: NDArray[np.float32]) -> None:
    several = [rows_of(requests(), [n, n + 1, n + 2]) for n in range(40)]
    alone = [scores_of(scorer, table, **columns).tobytes() for columns in several]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda columns: scores_of(scorer, table, **columns).tobytes(), several)
        assert list(found) == alone


@given(st.permutations(range(CANDIDATES)), st.integers(1, CANDIDATES))
@settings(max_examples=25)
def test_a_candidates_score_does_not_depend_on_its_place_or_the_others(
    scorer: StudentScorer, table: NDArray[np.float32], order: list[int], n_kept: int
) -> None:
    columns = requests(3)
    whole = scores_of(scorer, table, **columns)
    kept = order[:n_kept]
    some = scores_of(
        scorer, table, **{**columns, "candidate_rows": columns["candidate_rows"][:, kept]}
    )
    assert some.tobytes() == whole[:, kept].tobytes()


def test_a_longer_table_and_other_items_vectors_do_not_change_a_score(
    scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    columns = requests(5)
    longer = np.vstack((table, np.full((500, scorer.dim), 9, np.float32)))
    assert (
        scores_of(scorer, longer, **columns).tobytes()
        == scores_of(scorer, table, **columns).tobytes()
    )


def test_what_lies_in_padding_does_not_change_a_score(
    scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    columns = requests()
    is_pad = columns["history_rows"] == 0
    has_item = ~is_pad.all(axis=1)
    dirty = {
        **columns,
        "history_types": np.where(is_pad & has_item[:, None], 4, columns["history_types"]),
        "history_age_s": np.where(is_pad, np.float32(12_345), columns["history_age_s"]),
    }
    np.testing.assert_allclose(
        scores_of(scorer, table, **dirty), scores_of(scorer, table, **columns), rtol=1e-5, atol=1e-4
    )


def test_an_empty_batch_gives_an_empty_answer(
    scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    assert scores_of(scorer, table, **rows_of(requests(), [])).shape == (0, CANDIDATES)


def as_older(model: bytes) -> bytes:
    """Return the network as releases before wrote it: with candidates in, and scores out."""
    made = onnx.load_from_string(model)
    nodes = made.graph.node
    user = nodes.pop().input[0]  # (B, 1, W)
    nodes.extend(
        [
            helper.make_node("Gather", ["table", "candidates"], ["chosen"]),
            helper.make_node("Transpose", ["chosen"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [user, "turned"], ["products"]),
            helper.make_node("Squeeze", ["products", "one"], ["scores"]),
        ]
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    made.graph.input.append(value("candidates", ints, ["B", CANDIDATES]))
    del made.graph.output[:]
    made.graph.output.append(value("scores", floats, ["B", CANDIDATES]))
    onnx.checker.check_model(made)
    return made.SerializeToString()


def test_a_file_of_an_older_release_serves_as_it_did(
    path: Path, tmp_path: Path, scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    _, model = read_model(path)
    write_model(tmp_path / "older.pfm", model._replace(onnx=as_older(model.onnx)))
    older, columns = StudentScorer(tmp_path / "older.pfm"), requests()
    assert older.rows_per_call == MAX_ROWS
    np.testing.assert_allclose(
        scores_of(older, table, **columns), scores_of(scorer, table, **columns), rtol=1e-5
    )
    few = scores_of(older, table, **rows_of(columns, [0, 7]))
    assert few.tobytes() == scores_of(older, table, **columns)[[0, 7]].tobytes()


def test_a_network_that_tells_neither_is_refused(path: Path, tmp_path: Path) -> None:
    _, model = read_model(path)
    made = onnx.load_from_string(model.onnx)
    made.graph.node[-1].output[0] = made.graph.output[0].name = "other"
    write_model(tmp_path / "m.pfm", model._replace(onnx=made.SerializeToString()))
    with pytest.raises(ModelFileError, match=r"other.*pushflow train"):
        StudentScorer(tmp_path / "m.pfm")


@given(st.permutations(range(len(IDS))), st.integers(1, len(IDS)))
@settings(max_examples=20)
def test_item_vectors_are_the_same_bytes_in_any_batch(
    scorer: StudentScorer,
    table: NDArray[np.float32],
    texts: NDArray[np.float32],
    order: list[int],
    size: int,
) -> None:
    some = order[:size]
    vectors = scorer.embed_items([IDS[i] for i in some], texts[some])
    assert vectors.tobytes() == table[1:][some].tobytes()


def test_a_new_item_gets_the_vector_of_its_text_alone(
    scorer: StudentScorer, path: Path, texts: NDArray[np.float32]
) -> None:
    _, model = read_model(path)
    new = scorer.embed_items(["never seen"], texts[:1])
    np.testing.assert_allclose(new, texts[:1] @ model.text_projection, atol=1e-5)
    known = scorer.embed_items(IDS[:1], texts[:1])
    np.testing.assert_allclose(known - new, model.id_vectors[:1], atol=1e-5)


def test_the_same_model_is_the_same_file_and_version(student: Student, path: Path) -> None:
    again = path.with_name("again.pfm")
    version = write_model(again, export_student(student, IDS, {"ndcg@10": 0.5}))
    assert again.read_bytes() == path.read_bytes()
    assert checksum(again) == checksum(path)
    assert version == StudentScorer(path).version
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_another_feature_specification_is_refused(student: Student, tmp_path: Path) -> None:
    write_model(tmp_path / "old.pfm", export_student(student, IDS, {}), spec="0123456789abcdef")
    with pytest.raises(ModelMismatchError, match=r"0123456789abcdef.*pushflow train"):
        StudentScorer(tmp_path / "old.pfm")


def test_an_absent_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="pushflow train"):
        StudentScorer(tmp_path / "none.pfm")


@given(st.data())
@settings(max_examples=40)
def test_a_damaged_file_is_refused_wherever_the_damage_lies(
    path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(path.read_bytes())
    damaged = path.with_name("damaged.pfm")
    if data.draw(st.booleans()):
        damaged.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 0xFF
        damaged.write_bytes(whole)
    try:
        _, model = read_model(damaged)
    except ModelFileError:
        return
    # Bytes that carry no content (zip's own dates and flags) may differ; content may not.
    intact = read_model(path)[1]
    assert (model.onnx, model.item_ids, model.config) == (
        intact.onnx,
        intact.item_ids,
        intact.config,
    )
    assert model.id_vectors.tobytes() == intact.id_vectors.tobytes()
    assert model.text_projection.tobytes() == intact.text_projection.tobytes()


def test_a_network_that_is_no_onnx_is_refused(path: Path, tmp_path: Path) -> None:
    _, model = read_model(path)
    write_model(tmp_path / "m.pfm", model._replace(onnx=b"not a graph"))
    with pytest.raises(ModelFileError, match="ONNX Runtime"):
        StudentScorer(tmp_path / "m.pfm")


def test_meta_is_readable_by_other_tools(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))
    assert meta["metrics"] == {"ndcg@10": 0.5}
    assert meta["item_ids"] == IDS


def test_serving_does_not_load_torch(path: Path) -> None:
    code = (
        "import sys; from models.serving import StudentScorer; "
        f"StudentScorer({str(path)!r}); print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "False False"


def test_text_width_is_the_specifications(scorer: StudentScorer) -> None:
    with pytest.raises(ValueError, match="text vectors"):
        scorer.embed_items(["a"], np.zeros((1, TEXT_DIM + 1), np.float32))


def test_half_the_precision_of_the_table_moves_scores_by_a_few_thousandths_of_their_spread(
    scorer: StudentScorer, table: NDArray[np.float32]
) -> None:
    columns = requests()
    whole = scores_of(scorer, table, **columns)
    half = scores_of(scorer, table.astype(np.float16), **columns)
    is_item = columns["candidate_rows"] > 0
    assert np.abs(half[is_item] - whole[is_item]).max() < 0.003 * whole[is_item].std()
