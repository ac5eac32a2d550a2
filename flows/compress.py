"""From a trained student to the file that serves: each step measured, and kept where it pays.

Reads   histories with their cuts, items, and a teacher where there is one.
Emits   a table of steps, and the model that the rule chose.
Owns    the order of the steps, how they are measured, and the rule.

A step starts from what the steps before it left. It is kept if it serves a user in at most
`FASTER` of the time, and keeps enough of NDCG@10 on the validation: `KEEPS` of the student's for
what is trained again, `KEEPS_INT8` of its own float version for int8. The test is asked once, of
all steps, and decides nothing. Needs torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import numpy as np

from flows.served_student import PARITY, ServedStudent, longest, milliseconds, ndcg
from models.checkpoint import ModelFile, write_model
from models.compress import (
    dynamic_int8,
    importance,
    int8_ranges,
    narrowed,
    pruned,
    student_guide,
    teacher_call,
)
from models.dataset import popularity, requests_at
from models.distill import Distillation, TeacherGuide
from models.export import export_student
from models.linear_guide import LinearGuide, cross_fitted
from models.llm_guide import Guide
from models.next_item import exam, of_requests
from models.serving import MAX_ROWS
from models.splits import Split
from models.student import Student
from models.teacher import Teacher
from models.teacher_training import teacher_scores
from models.text import encode_texts
from models.train import Progress, TrainConfig, fit_student, recover_student

FASTER: Final = 0.95
KEEPS: Final = 0.98
KEEPS_INT8: Final = 0.99
_CALIBRATION: Final = 512  # requests before the validation, that int8's ranges are taken from

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How far to compress, and how long to train."""

    reach: tuple[int, ...] = (43, 7)  # of each layer; (): leave it
    heads: int = 1  # of each layer
    feed_forward: int = 64  # hidden units of each layer
    training: TrainConfig = field(default_factory=TrainConfig)
    recovery: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=4, patience=2, learning_rate=1e-3)
    )
    distillation: Distillation = field(default_factory=Distillation)
    requests: int = 5_000  # of the test, and of the validation, at most
    repeats: bool = False  # whether what a user had is ranked too
    baskets: bool = False  # whether all of a basket is asked for before its first item
    seed: int = 1


class Data(NamedTuple):
    """What is trained on."""

    split: Split
    item_ids: list[str]
    texts: list[str]


class Step(NamedTuple):
    """One row of the table."""

    name: str
    network_bytes: int
    file_bytes: int
    ms: float  # of CPU, one thread, for 32 users of the test with the longest histories
    validation: float  # NDCG@10
    test: float  # NDCG@10
    parity: float  # greatest difference of a user's vector from torch's, by the vectors' spread
    verdict: str  # "" of a row that nothing is decided of


class Compressed(NamedTuple):
    """What came of it."""

    steps: list[Step]
    chosen: str  # name of the step whose model it is
    model: ModelFile


class _Made(NamedTuple):
    """A step's model, and what is known of it so far."""

    name: str
    student: Student
    model: ModelFile
    served: ServedStudent
    file_bytes: int
    validation: float
    parity: float


def compress(
    data: Data, plan: Plan, *, teacher: Teacher | None = None, tell: Tell = lambda _: None
) -> Compressed:
    """Train, narrow, prune and quantise a student; return all steps, and what serves.

    Parameters
    ----------
    data, plan
        What to train on, and how far to go.
    teacher
        Trained on the same items; the student is distilled from it.
    tell
        Is told how far it is.

    Raises
    ------
    ValueError
        If there is nothing to train on or to ask about, or a served float network does not say
        what torch's does.
    """
    with TemporaryDirectory() as folder:
        return _Run(data, plan, teacher, tell, Path(folder)).all()


class _Run:
    """One compression."""

    def __init__(
        self, data: Data, plan: Plan, teacher: Teacher | None, tell: Tell, folder: Path
    ) -> None:
        self.data, self.plan, self.teacher, self.tell, self.folder = (
            data, plan, teacher, tell, folder,
        )  # fmt: skip
        self.histories, self.cuts = data.split.histories, data.split.cuts
        self.vectors = encode_texts(data.texts)
        known = popularity(self.histories, len(data.item_ids), until_s=self.cuts[0])
        self.known = np.flatnonzero(known)
        asks = partial(
            exam, self.histories, repeats=plan.repeats, baskets=plan.baskets, limit=plan.requests
        )
        self.validation, self.test = asks(*self.cuts), asks(self.cuts[1], None)
        if not len(self.validation.events) or not len(self.test.events):
            raise ValueError("nothing to ask: no new items behind the cuts; try --repeats")
        past = exam(self.histories, 0, self.cuts[0], repeats=True, limit=_CALIBRATION)
        self.past = requests_at(self.histories, past.events)
        self.timed = longest(requests_at(self.histories, self.test.events), MAX_ROWS)

    def all(self) -> Compressed:
        guide: Guide | None = None
        if self.teacher is not None:
            told = self.plan.distillation
            guide = TeacherGuide(
                [self.teacher],
                self.vectors,
                self.known,
                config=told,
                seed=self.plan.seed,
                repeats=self.plan.repeats,
            )
            if told.linear:
                weights = cross_fitted(
                    self.histories, len(self.data.item_ids), self.cuts[0], self.plan.seed
                )
                guide = LinearGuide(guide, weights, told.linear)
        fitted = fit_student(
            self.histories,
            self.vectors,
            config=self._cut(self.plan.training),
            seed=self.plan.seed,
            on_progress=self._shows("student"),
            teacher=guide,
        )
        self.fitted = fitted
        best = student = self._made("student", fitted.student)
        made, verdicts = [student], ["the steps start here"]

        def judge(found: _Made, keeps: float, of: _Made) -> _Made:
            is_kept, verdict = self._verdict(found, best, keeps, of)
            made.append(found)
            verdicts.append(verdict)
            return found if is_kept else best

        if self.plan.reach:
            smaller = narrowed(best.student, self.plan.reach)
            best = judge(self._recovered("narrowed", smaller), KEEPS, student)
        heads, units = self.plan.heads, self.plan.feed_forward
        self.tell("importance of heads and hidden units")
        worth = importance(
            best.student, self.histories, self.vectors, until_s=self.cuts[0], seed=self.plan.seed
        )
        smaller = pruned(best.student, worth, heads=heads, feed_forward=units)
        best = judge(self._recovered("pruned", smaller), KEEPS, student)
        whole = best
        best = judge(self._made("int8 dynamic", whole.student, "dynamic"), KEEPS_INT8, whole)
        best = judge(self._made("int8 static", whole.student, "static"), KEEPS_INT8, whole)
        return Compressed(self._rows(made, verdicts), best.name, best.model)

    def _recovered(self, name: str, smaller: Student) -> _Made:
        """Return a smaller student that has learned what the first one knows."""
        recover_student(
            smaller,
            self.histories,
            self.vectors,
            config=self._cut(self.plan.recovery),
            seed=self.plan.seed,
            on_progress=self._shows(name),
            teacher=student_guide(
                self.fitted.student,
                self.vectors,
                self.known,
                config=self.plan.distillation,
                seed=self.plan.seed,
                repeats=self.plan.repeats,
            ),
        )
        return self._made(name, smaller)

    def _made(self, name: str, student: Student, int8: str = "") -> _Made:
        self.tell(f"{name}: asking about the validation")
        metrics, linear, ids = self.fitted.metrics, self.fitted.linear, self.data.item_ids
        model = export_student(student, ids, metrics, linear)
        path = self.folder / f"{name}.pfm"
        write_model(path, model)
        if int8 == "static":
            floats = ServedStudent(path, ids, self.vectors)
            ranges = int8_ranges(student, floats.table, self.past)
            model = export_student(student, ids, metrics, linear, ranges)
        elif int8 == "dynamic":
            model = dynamic_int8(model)
        write_model(path, model)
        served = ServedStudent(path, ids, self.vectors)
        parity = served.parity(student, self.timed)
        if not int8 and parity > PARITY:
            raise ValueError(f"{name}: the served network is {parity:.2g} from torch's")
        worth = ndcg(served.score(self.histories), self.validation)
        return _Made(name, student, model, served, path.stat().st_size, worth, parity)

    def _verdict(self, found: _Made, best: _Made, keeps: float, of: _Made) -> tuple[bool, str]:
        """Say whether a step is kept, and why; `of` is what its quality is compared with."""
        times = milliseconds([best.served.call(self.timed), found.served.call(self.timed)])
        share = times[1] / times[0]
        quality = found.validation / max(of.validation, 1e-9)
        is_kept = share <= FASTER and quality >= keeps
        told = (
            f"{share:.0%} of the time of {best.name} (<= {FASTER:.0%}), {quality:.1%} of "
            f"{of.name}'s NDCG (>= {keeps:.0%})"
        )
        return is_kept, f"{'kept' if is_kept else 'left out'}: {told}"

    def _rows(self, made: Sequence[_Made], verdicts: Sequence[str]) -> list[Step]:
        self.tell("asking about the test")
        calls = [one.served.call(self.timed) for one in made]
        if self.teacher is not None:
            calls.append(teacher_call(self.teacher, self.vectors, self.timed))
        times = milliseconds(calls)
        steps = [
            Step(
                one.name,
                len(one.model.onnx),
                one.file_bytes,
                ms,
                one.validation,
                ndcg(one.served.score(self.histories), self.test),
                one.parity,
                verdict,
            )
            for one, ms, verdict in zip(made, times, verdicts, strict=False)
        ]
        if self.teacher is None:
            return steps
        score = of_requests(teacher_scores(self.teacher, self.vectors), self.histories)
        size = sum(own.numel() * own.element_size() for own in self.teacher.parameters())
        found = (ndcg(score, self.validation), ndcg(score, self.test))
        return [Step("teacher", size, size, times[-1], *found, 0.0, ""), *steps]

    def _cut(self, config: TrainConfig) -> TrainConfig:
        split = self.data.split
        config = replace(
            config, validation=split.validation, test=split.test, baskets=self.plan.baskets
        )
        return config if self.plan.repeats else config.once()

    def _shows(self, name: str) -> Callable[[Progress], None]:
        return lambda at: self.tell(
            f"{name}: epoch {at.epoch}, step {at.done} of at most {at.total}, loss {at.loss:.3f}, "
            f"validation NDCG@10 {at.ndcg:.4f}"
        )
