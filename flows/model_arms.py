"""Models of the next item side by side: baselines, SASRec, the teacher, students.

Reads   histories with their cuts, item ids and texts.
Emits   each model's answers to the same requests, by seed.
Owns    who is trained on what: all of them on what was before the first cut, the choice of
        settings between the cuts, the test after the second. Needs torch.

SASRec and the teacher are trained by the same loop, and try as many settings: the first are the
defaults, the others drawn from one grid. The students are made by the product's own training and
asked by the product's own scorer, with and without the teacher, by the same seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.baselines import make, settings_of
from models.dataset import Requests, popularity
from models.distill import Distillation, TeacherGuide
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
from models.teacher import Teacher, TeacherConfig
from models.teacher_training import TeacherTraining, teacher_scores, train_teacher
from models.text import encode_texts
from models.train import TrainConfig, train_student

BASELINES: Final = ("popularity", "item-CF", "ALS")
NETWORKS: Final = ("SASRec", "teacher", "student", "distilled")
MODELS: Final = (*BASELINES, *NETWORKS)
CHOSEN_BY: Final = "ndcg@10"
# What tuning may change, of SASRec and the teacher alike.
_GRID: Final[dict[str, tuple[Any, ...]]] = {
    "dropout": (0.1, 0.2, 0.3, 0.5),
    "learning_rate": (1e-3, 2e-3, 3e-3, 5e-3),
    "layers": (1, 2, 3),
    "weight_decay": (0.0, 0.05, 0.2),
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is compared, and how much time it may take."""

    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (1,)
    budget: int = 12  # settings tried of each baseline
    tries: int = 1  # settings tried of SASRec and of the teacher; 1: the defaults
    repeats: bool = False  # whether what a user had is ranked too
    requests: int = 10_000  # of the test, at most; the choice of settings takes a fifth
    training: TeacherTraining = field(default_factory=TeacherTraining)
    distillation: Distillation = field(default_factory=Distillation)
    epochs: int = 16  # of any network, at most


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


def compare(data: Data, plan: Plan, tell: Tell = lambda _: None) -> Comparison:
    """Train the plan's models and ask them all about the test.

    Raises
    ------
    ValueError
        If there is nothing to train on, or to ask about.
    """
    bench = _Bench(data, plan, tell)
    arms = [bench.baseline(name) for name in BASELINES if name in plan.models]
    arms += bench.networks()
    return Comparison(bench.test, arms)


class _Bench:
    """One comparison."""

    def __init__(self, data: Data, plan: Plan, tell: Tell) -> None:
        self.data, self.plan, self.tell = data, plan, tell
        self.split = data.split
        histories, cuts = data.split.histories, data.split.cuts
        self.n_items = len(data.item_ids)
        self.vectors = encode_texts(data.texts)
        limit, repeats = plan.requests, plan.repeats
        self.validation = exam(histories, *cuts, repeats=repeats, limit=-(-limit // 5))
        self.test = exam(histories, cuts[1], None, repeats=repeats, limit=limit)
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
        return Arm(name, [answers(score, self.test)], dict(chosen))

    def networks(self) -> Iterator[Arm]:
        """Yield the arms that are trained by gradients."""
        wanted, base = set(self.plan.models), self.plan.training
        if "SASRec" in wanted:
            yield self._taught("SASRec", replace(base, teacher=base.teacher.sasrec()))[0]
        teachers: list[Teacher] = []
        if wanted & {"teacher", "distilled"}:
            arm, teachers = self._taught("teacher", base)
            yield arm
        if "student" in wanted:
            runs = [self._student(seed, None) for seed in self.plan.seeds]
            yield Arm("student", runs, {})
        if "distilled" in wanted:
            pairs = zip(self.plan.seeds, teachers, strict=True)
            runs = [self._student(seed, teacher) for seed, teacher in pairs]
            yield Arm("distilled", runs, asdict(self.plan.distillation))

    def _taught(self, name: str, base: TeacherTraining) -> tuple[Arm, list[Teacher]]:
        """Return an arm of the teacher's loop, tuned with the first seed, and its models."""
        tried = [base, *_drawn(base, self.plan.tries - 1, self.plan.seeds[0])]
        models, worth = [], []
        for config in tried:
            models.append(self._train(name, config, self.plan.seeds[0]))
            worth.append(self._worth(self._score(models[-1])) if len(tried) > 1 else 0.0)
        best = int(np.argmax(worth))
        chosen = [models[best]]
        chosen += [self._train(name, tried[best], seed) for seed in self.plan.seeds[1:]]
        runs = [answers(self._score(model), self.test) for model in chosen]
        return Arm(name, runs, _settings(tried[best])), chosen

    def _train(self, name: str, config: TeacherTraining, seed: int) -> Teacher:
        config = replace(config, epochs=self.plan.epochs)
        return train_teacher(
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

    def _student(self, seed: int, teacher: Teacher | None) -> Answers:
        split, name = self.split, "student" if teacher is None else "distilled student"
        known = popularity(split.histories, self.n_items, until_s=split.cuts[0])
        guide = None
        if teacher is not None:
            guide = TeacherGuide(
                teacher,
                self.vectors,
                np.flatnonzero(known),
                config=self.plan.distillation,
                seed=seed,
            )
        config = TrainConfig(epochs=self.plan.epochs, validation=split.validation, test=split.test)
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
        return answers(self._served(scorer), self.test)

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

    def _worth(self, score: Score) -> float:
        rank = answers(score, self.validation).rank
        return float(values(rank)[CHOSEN_BY].mean())


def _drawn(base: TeacherTraining, n: int, seed: int) -> Iterator[TeacherTraining]:
    """Yield n settings from the grid, without repeats."""
    every = [dict(zip(_GRID, own, strict=True)) for own in product(*_GRID.values())]
    for place in np.random.default_rng(seed).permutation(len(every))[: max(0, n)].tolist():
        own = dict(every[place])
        inside = {name: own.pop(name) for name in ("dropout", "layers")}
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
        "loss": config.loss,
    }


def _said(options: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items())
