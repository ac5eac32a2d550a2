"""The demo's models: a teacher, students of it and without it, and the file that serves.

Reads   histories of the simulated past, and the items.
Emits   a student's file, and a row for each model.
Owns    how small and short all of it is, and which model serves.

The last part of the past is held out twice: the validation chooses, the test after it is what the
rows tell. Of the student and the one distilled from the teacher the better one goes on, and its
int8 file serves if that keeps `KEEPS_INT8` of its NDCG@10. Lengths are counted in epochs, and how
long a model takes is told but decides nothing: the same seed serves the same file, however busy
the machine. Needs torch.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rich.table import Table

from flows.compress import KEEPS_INT8
from flows.served_student import PARITY, ServedStudent, longest, milliseconds, ndcg
from models.checkpoint import write_model
from models.compress import int8_ranges, teacher_call
from models.dataset import Histories, popularity, requests_at, time_split
from models.distill import Distillation, TeacherGuide
from models.export import export_student
from models.next_item import exam, of_requests
from models.onnx_graph import Ranges
from models.serving import MAX_ROWS
from models.teacher_training import TeacherTraining, teacher_scores, train_teacher
from models.text import encode_texts
from models.train import Fitted, Progress, TrainConfig, fit_student

EPOCHS: Final = 3
_STUDENT: Final = TrainConfig(validation=0.05, test=0.05)
_TEACHER: Final = TeacherTraining()
# A few of the catalogue's 500 items: hearing of more costs time, and brought nothing here.
_DISTILLATION: Final = Distillation(top=20, tail=20)
_CALIBRATION: Final = 512  # requests of the training, that int8's ranges are taken from
_REQUESTS: Final = 5_000  # of the validation and of the test, at most each
_ROUNDS: Final = 20  # of timing: a second, mostly the teacher's

# Name of a model, and how far its training is.
Tell = Callable[[str, Progress], None]


class Past(NamedTuple):
    """What is trained on, as `flows.training.from_events` gives it."""

    histories: Histories
    item_ids: list[str]
    texts: list[str]


class Row(NamedTuple):
    """What is shown of a model."""

    name: str
    version: str  # of its file, "" of the teacher
    parameters: int
    network_bytes: int
    ms: float  # of CPU, one thread, for 32 users with long histories
    ndcg: float  # NDCG@10 on the held-out last part, 0 where that is empty
    parity: float | None  # greatest difference of a score from torch's, by the scores' spread
    serves: bool


class Made(NamedTuple):
    """What came of it."""

    path: Path
    version: str
    metrics: dict[str, float]  # of the student that serves, as training measured it
    rows: list[Row]


class _Candidate(NamedTuple):
    name: str
    fitted: Fitted
    path: Path
    version: str
    network_bytes: int
    served: ServedStudent
    worth: float  # NDCG@10 on the validation
    parity: float


def make(
    past: Past,
    folder: Path,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    tell: Tell = lambda _name, _at: None,
) -> Made:
    """Train a teacher and two students, and write what serves.

    Parameters
    ----------
    past
        The events before the start.
    folder
        Where the files go.
    epochs
        Of each model's training.
    seed
        Of weights, order of batches, and what the distilled student hears of.
    tell
        Is told how far it is.

    Raises
    ------
    ValueError
        If there is nothing to train on, or a served float network does not say what torch's does.
    """
    return _Run(past, folder, epochs, seed, tell).all()


class _Run:
    """One making of models."""

    def __init__(self, past: Past, folder: Path, epochs: int, seed: int, tell: Tell) -> None:
        self.histories, self.item_ids, self.folder = past.histories, past.item_ids, folder
        self.epochs, self.seed, self.tell = epochs, seed, tell
        self.vectors = encode_texts(past.texts)
        histories = self.histories
        self.cuts = time_split(histories, validation=_STUDENT.validation, test=_STUDENT.test)
        self.validation = exam(histories, *self.cuts, repeats=True, limit=_REQUESTS)
        self.test = exam(histories, self.cuts[1], None, repeats=True, limit=_REQUESTS)
        known = exam(histories, 0, self.cuts[0], repeats=True, limit=_CALIBRATION)
        if not len(known.events):
            raise ValueError("no events before the validation's start: nothing to train on")
        self.past = requests_at(histories, known.events)
        self.timed = longest(self.past, MAX_ROWS)

    def all(self) -> Made:
        self._teach()
        known = popularity(self.histories, len(self.item_ids), until_s=self.cuts[0])
        guide = TeacherGuide(
            [self.teacher],
            self.vectors,
            np.flatnonzero(known),
            config=_DISTILLATION,
            seed=self.seed,
        )
        students = [
            self._exported("student", self._fitted("student", None)),
            self._exported("distilled", self._fitted("distilled", guide)),
        ]
        best = max(students, key=lambda one: one.worth)  # of equals the first
        ranges = int8_ranges(best.fitted.student, best.served.table, self.past)
        int8 = self._exported(f"{best.name}, int8", best.fitted, ranges)
        chosen = int8 if int8.worth >= KEEPS_INT8 * best.worth else best
        rows = self._rows([*students, int8], chosen)
        return Made(chosen.path, chosen.version, chosen.fitted.metrics, rows)

    def _teach(self) -> None:
        self.teacher, _ = train_teacher(
            self.histories,
            self.vectors,
            self.cuts,
            config=replace(_TEACHER, epochs=self.epochs),
            seed=self.seed,
            on_progress=lambda at: self.tell("teacher", at),
        )

    def _fitted(self, name: str, guide: TeacherGuide | None) -> Fitted:
        return fit_student(
            self.histories,
            self.vectors,
            config=replace(_STUDENT, epochs=self.epochs),
            seed=self.seed,
            on_progress=lambda at: self.tell(name, at),
            teacher=guide,
        )

    def _exported(self, name: str, fitted: Fitted, ranges: Ranges | None = None) -> _Candidate:
        model = export_student(fitted.student, self.item_ids, fitted.metrics, fitted.linear, ranges)
        path = self.folder / f"{name.replace(', ', '-')}.pfm"
        version = write_model(path, model)
        served = ServedStudent(path, self.item_ids, self.vectors)
        parity = served.parity(fitted.student, self.timed)
        if ranges is None and parity > PARITY:
            raise ValueError(f"{name}: the served network is {parity:.2g} from torch's")
        worth = ndcg(served.score(self.histories), self.validation)
        return _Candidate(name, fitted, path, version, len(model.onnx), served, worth, parity)

    def _rows(self, students: list[_Candidate], chosen: _Candidate) -> list[Row]:
        calls = [one.served.call(self.timed) for one in students]
        calls.append(teacher_call(self.teacher, self.vectors, self.timed))
        *times, teacher_ms = milliseconds(calls, _ROUNDS)
        weights = list(self.teacher.parameters())
        score = of_requests(teacher_scores(self.teacher, self.vectors), self.histories)
        size = sum(own.numel() * own.element_size() for own in weights)
        n_weights = sum(own.numel() for own in weights)
        worth = ndcg(score, self.test)
        return [
            Row("teacher", "", n_weights, size, teacher_ms, worth, parity=None, serves=False),
            *(
                Row(
                    one.name,
                    one.version,
                    sum(own.numel() for own in one.fitted.student.parameters()),
                    one.network_bytes,
                    ms,
                    ndcg(one.served.score(self.histories), self.test),
                    parity=one.parity,
                    serves=one is chosen,
                )
                for one, ms in zip(students, times, strict=True)
            ),
        ]


def table(rows: list[Row]) -> Table:
    """Return the rows as a table for people, 80 columns wide at most."""
    title = "models of the simulated past, judged on its last part"
    out = Table("model", title=title, title_justify="left")
    for name in ("parameters", "KB", "ms of 32", "NDCG@10", "parity"):
        out.add_column(name, justify="right")
    out.add_column("")
    for row in rows:
        out.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.network_bytes / 1e3:,.0f}",
            f"{row.ms:.2f}",
            f"{row.ndcg:.4f}",
            "" if row.parity is None else f"{row.parity:.0e}",
            "serves" if row.serves else "",
        )
    return out
