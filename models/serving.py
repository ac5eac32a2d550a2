"""The student in service: ONNX Runtime, one thread, no torch.

Reads   a model file (`models.checkpoint`).
Emits   item vectors, user vectors for a batch of users, and scores of candidates, their products.

A user's vector is made once and serves twice: to search all items, and to score candidates.
Neither it nor a score may depend on which other users share the batch, to the last bit:
decisions are replayed at other batch sizes and must come out the same. ONNX Runtime's fp32
kernels add up each row by itself on the CPUs tried; it promises that nowhere. So the scorer does
not trust: on loading it asks for a set of made-up users alone and together, and where the bytes
differ on this CPU it serves one user a call from then on (about 1.7 times the cost). In the same
way it learns which positions before the first item may be left out: a history of 10 takes half of
what one of 50 takes.
Dynamic int8 is ruled out by the same rule: its scale is taken over the batch.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.checkpoint import ModelFileError, ModelMismatchError, checksum, read_model
from models.features import CANDIDATES, EVENT_TYPES, HISTORY, N_CONTEXT, TEXT_DIM, scale_context
from models.item_scores import scores_of
from models.student_inputs import LENGTHS, MAX_ROWS, StudentInputs, Table

__all__ = [
    "MAX_ROWS",
    "ModelFileError",
    "ModelMismatchError",
    "StudentScorer",
    "Table",
    "checksum",
    "open_session",
]

_EMBED_ROWS: Final = 1_024  # items embedded at a time: the block stays in cache

Scores = NDArray[np.float32]


class StudentScorer:
    """Scores candidates with a trained student.

    Parameters
    ----------
    path
        A model file, as `models.train.train_student` writes it.

    Raises
    ------
    ModelMismatchError
        If the model was trained for another feature specification.
    ModelFileError
        If the file is absent, damaged or no student.

    Attributes
    ----------
    version
        Hash of the model's content, 16 hex digits.
    dim
        M, columns of an item vector.
    item_length
        Of an item's vector, typically: three digits, the same on every machine.
    item_ids
        Items with vectors of their own.
    metrics
        What training measured, for people to read.
    linear
        Weights between `item_ids` that retrieve in the network's place (`models.tower_source`).
        None: the network does.
    rows_per_call
        Users in one run of the graph: `MAX_ROWS`, or 1 on a CPU whose kernels mix rows.
    lengths
        Positions that may be run, int64, rising to T: the least that hold the histories of a run.
        T alone of a file from before networks took any, and on a CPU where it would show.

    Notes
    -----
    One call costs about 0.1 ms for one user and 0.06 ms a user from 8 on (`bench/student.py`).
    Memory: the file's arrays, and 5 MB of activations; nothing grows with use. Calls of several
    threads wait for each other.
    """

    def __init__(self, path: Path | str) -> None:
        self.version, model = read_model(Path(path))
        self.dim = int(model.text_projection.shape[1])
        self.item_ids = model.item_ids
        self.metrics = model.metrics
        self._row_of = {item_id: row for row, item_id in enumerate(model.item_ids)}
        self._projection = model.text_projection
        self._id_vectors = model.id_vectors
        self.item_length = _typical_length(model.text_projection, model.id_vectors)
        self.linear = model.linear
        self._session = open_session(path, model.onnx)
        self._is_older = _is_older(self._session, self.dim, path)
        self._lock = threading.Lock()  # what follows serves one thread at a time
        self._inputs = StudentInputs(self.dim)
        self._vectors = np.zeros((MAX_ROWS, self.dim), np.float32)
        self._bound: dict[tuple[int, int], ort.IOBinding] = {}  # both, by users and positions
        self.lengths = np.array([HISTORY])
        self.rows_per_call = MAX_ROWS
        if not self._is_same(HISTORY, (2, 5, 13, MAX_ROWS)):
            self.rows_per_call = 1
        if self._takes_any_length:
            together = [n for n in (1, 5, MAX_ROWS) if n <= self.rows_per_call]
            self.lengths = np.array([n for n in LENGTHS if self._is_same(n, together)])

    def numbers(self, item_ids: list[str]) -> NDArray[np.int32]:
        """Return the places of ids in `item_ids`, its length for those that are not there."""
        none = len(self.item_ids)
        return np.array([self._row_of.get(item_id, none) for item_id in item_ids], np.int32)

    def embed_items(self, item_ids: list[str], text_vectors: NDArray[np.float32]) -> Scores:
        """Return item vectors, float32, shape (N, M), of text vectors, shape (N, TEXT_DIM).

        An item seen in training has its own vector added; a new one has the text's alone. Each
        row is the same bytes whatever the others are: products are added up column by column
        in a fixed order, not by BLAS, whose order depends on the shape. 1.3 µs an item in a batch,
        76 µs alone.
        """
        if text_vectors.shape != (len(item_ids), TEXT_DIM):
            raise ValueError(f"{len(item_ids)} items, but text vectors {text_vectors.shape}")
        vectors = np.zeros((len(item_ids), self.dim), np.float32)
        for start in range(0, len(item_ids), _EMBED_ROWS):
            block = vectors[start : start + _EMBED_ROWS]
            texts = text_vectors[start : start + _EMBED_ROWS].astype(np.float32, copy=False)
            for column in range(TEXT_DIM):
                block += texts[:, column, None] * self._projection[column]
        known = [(i, self._row_of[x]) for i, x in enumerate(item_ids) if x in self._row_of]
        if known:
            places, rows = np.array(known, np.int64).T
            vectors[places] += self._id_vectors[rows]
        return vectors

    def user_vectors(
        self,
        item_table: Table,
        history_rows: NDArray[np.int64],
        history_types: NDArray[np.int64],
        history_age_s: NDArray[np.float32],
        context: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return what the users want, float32, shape (B, M), to be multiplied by item vectors.

        Parameters
        ----------
        item_table
            Vectors from `embed_items` below a row of zeros, float32 or float16, shape (N + 1, M).
            Not copied, but for the rows that are asked for.
        history_rows, history_types
            Rows of the table and codes of `models.features.EVENT_TYPES`, oldest first, shape
            (B, T), padded with 0 **on the left only**: leave out items not in the table.
        history_age_s
            Seconds from each event to the trigger, shape (B, T).
        context
            Raw, in the order of `models.features.CONTEXT`, shape (B, C).
        """
        asked = (history_rows, history_types, history_age_s, scale_context(context))
        return self._run(item_table, asked, self.rows_per_call, self.lengths)

    @staticmethod
    def score(
        item_table: Table,
        user_vectors: NDArray[np.float32],
        candidate_rows: NDArray[np.int64],
    ) -> Scores:
        """Return the users' scores of candidates, float32, shape (B, K).

        `candidate_rows`, shape (B, K), are rows of the table; 0 is padding and gets -inf.
        """
        return scores_of(item_table, user_vectors, candidate_rows)

    def _run(
        self,
        table: Table,
        asked: tuple[NDArray[Any], ...],
        rows_per_call: int,
        lengths: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        n_users = len(asked[0])
        vectors = np.empty((n_users, self.dim), np.float32)
        run = self._run_older if self._is_older else self._run_once
        for start in range(0, n_users, rows_per_call):
            part = slice(start, start + rows_per_call)
            with self._lock:
                rows, types, age_s, context = (column[part] for column in asked)
                length = self._inputs.fill(table, rows, types, age_s, context, lengths)
                vectors[part] = run(len(vectors[part]), length)
        return vectors

    def _run_once(self, n_users: int, length: int) -> NDArray[np.float32]:
        """Return the vectors of the users that the inputs hold, where they are."""
        bound = self._bound.get((n_users, length))
        if bound is None:
            bound = self._bound[n_users, length] = self._bind(n_users, length)
        self._session.run_with_iobinding(bound)
        return self._vectors[:n_users]

    def _bind(self, n_users: int, length: int) -> ort.IOBinding:
        bound = self._session.io_binding()
        for name, own in self._inputs.first(n_users, length).items():
            bound.bind_input(name, "cpu", 0, own.dtype.type, own.shape, own.ctypes.data)
        own = self._vectors[:n_users]
        bound.bind_output("user", "cpu", 0, own.dtype.type, own.shape, own.ctypes.data)
        return bound

    def _run_older(self, n_users: int, length: int) -> Any:
        """Ask a network that tells scores alone: those of unit vectors are the user's vector."""
        inputs = self._inputs.first(n_users, length)
        candidates = np.zeros((n_users, CANDIDATES), np.int64)
        candidates[:, : self.dim] = len(inputs["table"]) + np.arange(self.dim)
        inputs["table"] = np.concatenate([inputs["table"], np.eye(self.dim, dtype=np.float32)])
        inputs["candidates"] = candidates
        return self._session.run(["scores"], inputs)[0][:, : self.dim]

    @property
    def _takes_any_length(self) -> bool:
        shapes = {given.name: given.shape for given in self._session.get_inputs()}
        return bool(shapes["rows"][1] != HISTORY)

    def _is_same(self, longest: int, together: Sequence[int]) -> bool:
        """Say whether this CPU gives each user the same bytes alone and so many together.

        Their histories are no longer than `longest`, and only those positions are run together.
        """
        rng = np.random.default_rng(0)
        table = rng.standard_normal((256, self.dim), np.float32)
        table[0] = 0
        shape = (MAX_ROWS, HISTORY)
        n_items = rng.integers(0 if longest == HISTORY else 1, longest + 1, MAX_ROWS)
        is_item = np.arange(HISTORY) >= HISTORY - n_items[:, None]
        asked = (
            rng.integers(1, 256, shape) * is_item,
            rng.integers(1, len(EVENT_TYPES), shape) * is_item,
            np.sort(np.exp2(rng.uniform(0, 31, shape)))[:, ::-1] * is_item,
            rng.standard_normal((MAX_ROWS, N_CONTEXT), np.float32),
        )
        alone = self._run(table, asked, 1, np.array([HISTORY])).tobytes()
        lengths = np.array([longest])
        return all(self._run(table, asked, n, lengths).tobytes() == alone for n in together)


def _typical_length(projection: NDArray[np.float32], own: NDArray[np.float32]) -> float:
    """Return the root of the mean square of an item's vector, of texts in any direction.

    More where few are much longer, the popular ones: the hundredth is 2.5 times as long as this at
    most, for which columns have room (`operators.catalogue`).
    """
    of_text = float(np.square(projection, dtype=np.float64).sum()) / len(projection)
    of_items = np.square(own, dtype=np.float64).sum(axis=1)
    usual = of_text + float(of_items.sum()) / max(len(own), 1)
    longest = of_text + float(np.quantile(of_items, 0.99)) if len(own) else 0.0
    return max(float(f"{max(usual**0.5, longest**0.5 / 2.5):.3g}"), 1e-6)


def _is_older(session: ort.InferenceSession, dim: int, path: Path | str) -> bool:
    """Say whether the network is of before it told the user's vector; refuse any other."""
    outputs = [output.name for output in session.get_outputs()]
    if "user" in outputs:
        return False
    if "scores" in outputs and dim <= CANDIDATES:
        return True
    raise ModelFileError(
        f"the network in {path} tells {outputs}, not the user's vector. "
        "Make a new file with `pushflow train`."
    )


def open_session(path: Path | str, model: bytes) -> ort.InferenceSession:
    """Return a session of one thread; `path` is what an error names as where it is from."""
    options = ort.SessionOptions()
    # Processes, not threads, are how the flow grows: a second thread would fight a neighbour.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ModelFileError(
            f"ONNX Runtime cannot load the network in {path}: {error}. "
            "Make a new file with `pushflow train`."
        ) from error
