"""Models of the next item side by side: baselines, SASRec, the teacher, students.

Reads   histories with their cuts, item ids and texts.
Emits   each model's answers to the same requests, by seed.
Owns    who is trained on what: all of them on what was before the first cut, the choice of
        settings between the cuts, the test after the second. Needs torch.

SASRec and the teacher are trained by the same loop, and try as many settings: the first are the
defaults, the others drawn from one grid. Where repeats are not asked about, the teacher's loss does
not count what a user had as wrong (`models.teacher_loss`); SASRec has the usual cross-entropy over
all items, and the other as one of the things that tuning may choose. The students are made by the
product's own training and asked by the product's own scorer, with and without the teachers, by the
same seeds; the distilled ones hear the teachers of all seeds by turns. Of several tries they also
hear weights from item to item, where the validation says so in the mean of all seeds.

With several workers the networks are trained side by side, a process each, to the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.baselines import make, settings_of
from models.dataset import Requests, popularity
from models.distill import Distillation, TeacherGuide
from models.linear_guide import CrossFitted, LinearGuide, cross_fitted
from models.llm_guide import Guide, LabelledGuide
from models.llm_labels import Labels
from models.next_item import (
    Answers,
    Exam,
    Score,
    answers,
    exam,
    fit,
    of_baseline,
    of_requests,
    values,
)
from models.serving import StudentScorer
from models.splits import Split
from models.teacher import Teacher, TeacherConfig, teacher_of, weights_of
from models.teacher_training import TeacherTraining, teacher_scores, train_teacher
from models.text import encode_texts
from models.train import TrainConfig, train_student

BASELINES: Final = ("popularity", "item-CF", "ALS")
NETWORKS: Final = ("SASRec", "teacher", "student", "distilled")
MODELS: Final = (*BASELINES, *NETWORKS)
_LOUDNESS: Final = (0.0, 8.0)  # `Distillation.linear` of each try
CHOSEN_BY: Final = "ndcg@10"
# What tuning may change, of SASRec and the teacher alike.
_GRID: Final[dict[str, tuple[Any, ...]]] = {
    "dropout": (0.2, 0.3, 0.5),
    "learning_rate": (1e-3, 2e-3, 3e-3, 5e-3),
    "layers": (1, 2),
    "epochs": (6, 10, 16),  # over which the learning rate falls, no more than the plan's
    "weight_decay": (0.0, 0.05, 0.2),
}
_SASREC_GRID: Final = {**_GRID, "repeats": (True, False)}

Tell = Callable[[str], None]
_Weights = tuple[TeacherTraining, dict[str, Any]]  # of a trained teacher


@dataclass(frozen=True)
class Plan:
    """What is compared, and how much time it may take."""

    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (1,)
    budget: int = 12  # settings tried of each baseline
    tries: int = 1  # settings tried of SASRec, the teacher, the distilled; 1: the defaults
    repeats: bool = False  # whether what a user had is ranked too
    baskets: bool = False  # whether all of a basket is asked for before its first item
    requests: int = 10_000  # of the test, at most; the choice of settings takes a fifth
    training: TeacherTraining = field(default_factory=TeacherTraining)
    distillation: Distillation = field(default_factory=Distillation)
    epochs: int = 16  # of any network, at most
    workers: int = 1  # networks trained at a time
    labels: Labels | None = None  # of a language model, for the distilled student


class Data(NamedTuple):
    """What the models are told."""

    split: Split
    item_ids: list[str]
    texts: list[str]


class Arm(NamedTuple):
    """A model's answers by seed, and what it was."""

    name: str
    runs: list[Answers]
    settings: dict[str, Any]


class Comparison(NamedTuple):
    """Models on one exam."""

    exam: Exam
    arms: list[Arm]
    vectors: NDArray[np.float32]  # of the items' contents, shape (N, D)


class _Judged(NamedTuple):
    """What a student's file is worth."""

    worth: float  # between the cuts
    answers: Answers


class _Taught(NamedTuple):
    """A trained network, as one process hands it to another."""

    worth: float  # between the cuts
    answers: Answers
    weights: dict[str, NDArray[np.float32]]


def compare(data: Data, plan: Plan, tell: Tell = lambda _: None) -> Comparison:
    """Train the plan's models and ask them all about the test.

    Raises
    ------
    ValueError
        If there is nothing to train on, or to ask about.
    """
    bench = _Bench(data, plan, tell)
    arms = [bench.baseline(name) for name in BASELINES if name in plan.models]
    with _Workers(bench) as workers:
        arms += bench.networks(workers)
    return Comparison(bench.test, arms, bench.vectors)


class _Workers:
    """Calls methods of a bench with each of several arguments, here or in processes."""

    def __init__(self, bench: "_Bench") -> None:
        self._bench = bench
        self._pool = None
        if bench.plan.workers > 1:
            given = bench.data, replace(bench.plan, workers=1)
            self._pool = ProcessPoolExecutor(
                bench.plan.workers, get_context("spawn"), initializer=_open, initargs=given
            )

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def all(self, method: str, jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Return the method's results, in the order of jobs."""
        if self._pool is None:
            return [getattr(self._bench, method)(*job) for job in jobs]
        running = [self._pool.submit(_call, method, job) for job in jobs]
        found = []
        for place, one in enumerate(running):
            self._bench.tell(f"{method}: {place} of {len(running)} networks")
            found.append(one.result())
        return found


_BENCH: Final["list[_Bench]"] = []  # of a worker's process


def _open(data: Data, plan: Plan) -> None:
    _BENCH.append(_Bench(data, plan, lambda _: None))


def _call(method: str, job: tuple[Any, ...]) -> Any:
    return getattr(_BENCH[0], method)(*job)


class _Bench:
    """One comparison."""

    def __init__(self, data: Data, plan: Plan, tell: Tell) -> None:
        self.data, self.plan, self.tell = data, plan, tell
        self.split = data.split
        histories, cuts = data.split.histories, data.split.cuts
        self.n_items = len(data.item_ids)
        self.vectors = encode_texts(data.texts)
        asks = partial(exam, histories, repeats=plan.repeats, baskets=plan.baskets)
        self.validation = asks(*cuts, limit=-(-plan.requests // 5))
        self.long_validation = asks(*cuts, limit=plan.requests)  # for small differences
        self.test = asks(cuts[1], None, limit=plan.requests)
        if not len(self.validation.events) or not len(self.test.events):
            raise ValueError("nothing to ask: no new items behind the cuts; try --repeats")

    def baseline(self, name: str) -> Arm:
        """Return a baseline with the settings that were best between the cuts."""
        seed = self.plan.seeds[0]
        best, chosen, score = -1.0, {}, None
        for options in settings_of(name, self.plan.budget, seed):
            self.tell(f"{name}: {_said(options)}")
            model = make(name, options, seed)
            histories = self.split.histories
            fit(model, histories, self.n_items, until_s=self.split.cuts[0])
            candidate = of_baseline(model, histories, self.n_items)
            worth = self._worth(candidate)
            if worth > best:
                best, chosen, score = worth, options, candidate
        if score is None:
            raise ValueError(f"no settings of {name} to try")
        return Arm(name, [answers(score, self.test, is_logit=False)], dict(chosen))

    def networks(self, workers: _Workers) -> Iterator[Arm]:
        """Yield the arms that are trained by gradients."""
        wanted, base = set(self.plan.models), self.plan.training
        base = replace(base, epochs=self.plan.epochs, baskets=self.plan.baskets)
        if "SASRec" in wanted:
            plain = replace(base, teacher=base.teacher.sasrec(), repeats=True)
            grid = _GRID if self.plan.repeats else _SASREC_GRID
            yield self._tuned("SASRec", plain, grid, workers)[0]
        teachers: list[_Weights] = []
        if wanted & {"teacher", "distilled"}:
            free = replace(base, repeats=self.plan.repeats)
            arm, teachers = self._tuned("teacher", free, _GRID, workers)
            yield arm
        seeds = self.plan.seeds
        if "student" in wanted:
            found = workers.all("taught_student", [(seed, ()) for seed in seeds])
            yield Arm("student", [one.answers for one in found], {})
        if "distilled" in wanted:
            yield self._distilled(teachers, workers)

    def _distilled(self, teachers: list[_Weights], workers: _Workers) -> Arm:
        """Return the distilled students, told what was best between the cuts over all seeds."""
        seeds, told = self.plan.seeds, self.plan.distillation
        tried = [replace(told, linear=own) for own in _LOUDNESS] if self.plan.tries > 1 else [told]
        jobs = [(seed, teachers, own) for own in tried for seed in seeds]
        found = workers.all("taught_student", jobs)
        runs = [found[start : start + len(seeds)] for start in range(0, len(found), len(seeds))]
        worth = [float(np.mean([one.worth for one in own])) for own in runs]
        best = int(np.argmax(worth))
        settings = asdict(tried[best]) | {
            f"validation_{CHOSEN_BY}_linear_{own.linear:g}": round(value, 5)
            for own, value in zip(tried, worth, strict=True)
        }
        return Arm("distilled", [one.answers for one in runs[best]], settings)

    def _tuned(
        self,
        name: str,
        base: TeacherTraining,
        grid: dict[str, tuple[Any, ...]],
        workers: _Workers,
    ) -> tuple[Arm, list[_Weights]]:
        """Return an arm of the teacher's loop, tuned with the first seed, and its models."""
        first, *others = self.plan.seeds
        tried = [base, *_drawn(base, grid, self.plan.tries - 1, first)]
        found = workers.all("taught", [(name, config, first) for config in tried])
        best = int(np.argmax([one.worth for one in found]))
        chosen = [found[best]]
        chosen += workers.all("taught", [(name, tried[best], seed) for seed in others])
        arm = Arm(name, [one.answers for one in chosen], _settings(tried[best]))
        return arm, [(tried[best], one.weights) for one in chosen]

    def taught(self, name: str, config: TeacherTraining, seed: int) -> _Taught:
        """Train one network of the teacher's loop."""
        teacher = train_teacher(
            self.split.histories,
            self.vectors,
            self.split.cuts,
            config=config,
            seed=seed,
            on_progress=lambda at: self.tell(
                f"{name}, seed {seed}: epoch {at.epoch}, step {at.done} of at most {at.total}, "
                f"loss {at.loss:.3f}, validation NDCG@10 {at.ndcg:.4f}"
            ),
        ).teacher
        score = self._score(teacher)
        return _Taught(self._worth(score), answers(score, self.test), weights_of(teacher))

    @cached_property
    def _cross_fitted(self) -> CrossFitted:
        seed = self.plan.seeds[0]
        return cross_fitted(self.split.histories, self.n_items, self.split.cuts[0], seed)

    def taught_student(
        self, seed: int, taught: Sequence[_Weights], told: Distillation | None = None
    ) -> _Judged:
        """Train one student, by itself or with teachers."""
        told = told or self.plan.distillation
        split, name = self.split, "distilled student" if taught else "student"
        known = popularity(split.histories, self.n_items, until_s=split.cuts[0])
        guide: Guide | None = None
        if taught:
            guide = TeacherGuide(
                [teacher_of(own.teacher, self.n_items, weights) for own, weights in taught],
                self.vectors,
                np.flatnonzero(known),
                config=told,
                seed=seed,
                repeats=taught[0][0].repeats,
            )
            if told.linear:
                guide = LinearGuide(guide, self._cross_fitted, told.linear)
            if self.plan.labels is not None:
                guide = LabelledGuide(guide, self.plan.labels)
        config = TrainConfig(
            epochs=self.plan.epochs,
            validation=split.validation,
            test=split.test,
            baskets=self.plan.baskets,
        )
        config = config if self.plan.repeats else config.once()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "student.pfm"
            train_student(
                split.histories,
                self.data.item_ids,
                self.data.texts,
                path=path,
                config=config,
                seed=seed,
                teacher=guide,
                on_progress=lambda at: self.tell(
                    f"{name}, seed {seed}: epoch {at.epoch}, step {at.done} of at most "
                    f"{at.total}, loss {at.loss:.3f}, validation NDCG@10 {at.ndcg:.4f}"
                ),
            )
            scorer = StudentScorer(path)
        score = self._served(scorer)
        return _Judged(self._worth(score, self.long_validation), answers(score, self.test))

    def _score(self, model: Teacher) -> Score:
        return of_requests(teacher_scores(model, self.vectors), self.split.histories)

    def _served(self, scorer: StudentScorer) -> Score:
        vectors = scorer.embed_items(self.data.item_ids, self.vectors)
        table = np.vstack((np.zeros((1, scorer.dim), np.float32), vectors))  # (N + 1, M)

        def score(asked: Requests) -> NDArray[np.float32]:
            users = scorer.user_vectors(table, asked.rows, asked.types, asked.age_s, asked.contexts)
            scores: NDArray[np.float32] = users @ table[1:].T
            return scores

        return of_requests(score, self.split.histories)

    def _worth(self, score: Score, asked: Exam | None = None) -> float:
        rank = answers(score, asked or self.validation).rank
        return float(values(rank)[CHOSEN_BY].mean())


def _drawn(
    base: TeacherTraining, grid: dict[str, tuple[Any, ...]], n: int, seed: int
) -> Iterator[TeacherTraining]:
    """Yield n settings from the grid, each once."""
    every = [dict(zip(grid, own, strict=True)) for own in product(*grid.values())]
    for place in np.random.default_rng(seed).permutation(len(every))[: max(0, n)].tolist():
        own = dict(every[place])
        inside = {name: own.pop(name) for name in ("dropout", "layers")}
        own["epochs"] = min(own["epochs"], base.epochs)
        yield replace(base, teacher=replace(base.teacher, **inside), **own)


def _settings(config: TeacherTraining) -> dict[str, Any]:
    chosen: TeacherConfig = config.teacher
    return {
        "backbone": chosen.backbone,
        "hidden": chosen.hidden,
        "layers": chosen.layers,
        "dropout": chosen.dropout,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "epochs": config.epochs,
        "loss": config.loss,
        "had_is_wrong": config.repeats,
    }


def _said(options: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items())
