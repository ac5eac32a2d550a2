"""Training on planted tastes: users of a taste meet items of that taste nine times out of ten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import read_model
from models.dataset import Histories, Windows, build_histories
from models.features import CANDIDATES, EVENT_CODE, HISTORY, N_CONTEXT
from models.serving import StudentScorer
from models.student import StudentConfig, TeacherLogits
from models.text import encode_texts
from models.train import Progress, TrainConfig, TrainResult, fit_student, train_student
from tests.models.baskets import BASKET_ITEMS, in_baskets

TASTES = ["garden", "kitchen", "music", "travel", "sport", "books"]
PER_TASTE = 8
ITEMS = [f"{taste}-{n}" for taste in TASTES for n in range(PER_TASTE)]
TEXTS = [f"{taste} thing number {n}" for taste in TASTES for n in range(PER_TASTE)]
N_USERS, N_EVENTS, DAY_S = 300, 20, 86_400
COLD = ["music-7", "sport-7"]  # only met at the very end of the planted time
SMALL = StudentConfig(width=32, feed_forward=64, request=32, dropout=0.1)
CONFIG = TrainConfig(
    student=SMALL, epochs=16, patience=5, batch_size=16, learning_rate=5e-3, threads=1
)


def planted() -> Histories:
    rng = np.random.default_rng(7)
    users, items, times = [], [], []
    for user in range(N_USERS):
        taste = user % len(TASTES)
        for n in range(N_EVENTS):
            shown = taste if rng.random() < 0.9 else int(rng.integers(len(TASTES)))
            n_met = PER_TASTE if n >= N_EVENTS - 2 else PER_TASTE - 1
            users.append(f"u{user:03d}")
            items.append(f"{TASTES[shown]}-{rng.integers(n_met)}")
            times.append(n * DAY_S + int(rng.integers(DAY_S)))
    views = [EVENT_CODE["view"]] * len(users)
    return build_histories(users, items, views, times, item_ids=ITEMS)


def whims() -> Histories:
    """Return users whose next taste is pure chance, but for the context that tells it."""
    rng = np.random.default_rng(8)
    n = N_USERS * N_EVENTS
    tastes = rng.integers(len(TASTES), size=n)
    items = [f"{TASTES[taste]}-{rng.integers(PER_TASTE)}" for taste in tastes]
    users = [f"u{i // N_EVENTS:03d}" for i in range(n)]
    times = [i % N_EVENTS * DAY_S for i in range(n)]
    contexts = np.zeros((n, N_CONTEXT), np.float32)
    contexts[np.arange(n - 1), tastes[1:]] = 20.0  # as after event i: the taste of event i + 1
    views = [EVENT_CODE["view"]] * n
    return build_histories(users, items, views, times, item_ids=ITEMS, contexts=contexts)


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, steps: list[Progress]) -> TrainResult:
    path = tmp_path_factory.mktemp("trained") / "student.pfm"
    return train_student(
        planted(), ITEMS, TEXTS, path=path, config=CONFIG, seed=1, on_progress=steps.append
    )


def scores_of(scorer: StudentScorer, history: list[str], item_ids: list[str]) -> list[float]:
    """Return the scores of items for a user who met `history` a minute apart, just now."""
    texts = encode_texts(TEXTS)
    table = np.vstack((np.zeros((1, scorer.dim), np.float32), scorer.embed_items(ITEMS, texts)))
    row_of = {item_id: row for row, item_id in enumerate(ITEMS, start=1)}
    rows = np.zeros((1, HISTORY), np.int64)
    rows[0, HISTORY - len(history) :] = [row_of[item_id] for item_id in history]
    age_s = np.arange(HISTORY, 0, -1, dtype=np.float32)[None] * 60
    candidates = np.zeros((1, CANDIDATES), np.int64)
    candidates[0, : len(item_ids)] = [row_of[item_id] for item_id in item_ids]
    types = np.where(rows > 0, EVENT_CODE["view"], 0)
    context = np.zeros((1, N_CONTEXT), np.float32)
    users = scorer.user_vectors(table, rows, types, age_s * (rows > 0), context)
    found = scorer.score(table, users, candidates)
    return [float(score) for score in found[0, : len(item_ids)]]


def test_a_trained_student_beats_popularity_on_later_events(result: TrainResult) -> None:
    # 48 items of which 8 fit the taste: a perfect model has a hit rate near .9 + .1 * 10 / 48.
    assert result.metrics["hr@10"] > 0.75
    assert result.metrics["hr@10"] > 2 * result.metrics["popularity_hr@10"]
    assert result.metrics["ndcg@10"] > 2 * result.metrics["popularity_ndcg@10"]


@pytest.mark.parametrize("taste", TASTES)
def test_items_like_the_history_score_above_others(result: TrainResult, taste: str) -> None:
    scorer = StudentScorer(result.path)
    alike = [f"{taste}-{n}" for n in range(3, 7)]
    others = [f"{other}-{n}" for other in TASTES if other != taste for n in range(3, 7)]
    scores = scores_of(scorer, [f"{taste}-{n}" for n in range(3)], alike + others)
    assert min(scores[:4]) > max(scores[4:])


def test_a_cold_item_is_scored_by_its_text(result: TrainResult) -> None:
    scorer = StudentScorer(result.path)
    assert not set(COLD) & set(scorer.item_ids)
    music, sport = scores_of(scorer, ["music-0", "music-1", "music-2"], COLD)
    assert music > sport + 1
    music, sport = scores_of(scorer, ["sport-0", "sport-1", "sport-2"], COLD)
    assert sport > music + 1
    assert result.metrics["cold_requests"] > 10
    assert result.metrics["cold_hr@100"] == 1.0  # the catalogue has 48 items


def test_progress_counts_every_step_and_never_passes_its_total(
    result: TrainResult, steps: list[Progress]
) -> None:
    assert [step.done for step in steps[:3]] == [1, 2, 3]
    assert max(step.done for step in steps) <= steps[0].total
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].epoch == result.metrics["epochs"]


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    config = TrainConfig(student=SMALL, epochs=1, threads=1)
    a, b, c = (
        train_student(planted(), ITEMS, TEXTS, path=tmp_path / name, config=config, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert a.path.read_bytes() == b.path.read_bytes()
    assert a.version == b.version != c.version


def test_training_leaves_the_callers_generator_and_threads_alone(tmp_path: Path) -> None:
    config = TrainConfig(student=SMALL, epochs=1, threads=1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train_student(planted(), ITEMS, TEXTS, path=tmp_path / "m", config=config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_context_decides_where_it_alone_tells_the_taste(tmp_path: Path) -> None:
    result = train_student(whims(), ITEMS, TEXTS, path=tmp_path / "m", config=CONFIG, seed=1)
    scorer = StudentScorer(result.path)
    texts = encode_texts(TEXTS)
    table = np.vstack((np.zeros((1, scorer.dim), np.float32), scorer.embed_items(ITEMS, texts)))
    rows = np.zeros((6, HISTORY), np.int64)
    rows[:, -1] = 1  # everybody met the same garden item
    context = np.zeros((6, N_CONTEXT), np.float32)
    context[np.arange(6), np.arange(6)] = 20.0
    candidates = np.tile(np.arange(1, 49), (6, 1))
    users = scorer.user_vectors(table, rows, rows, rows.astype(np.float32), context)
    scores = scorer.score(table, users, candidates)
    assert (scores.argmax(axis=1) // PER_TASTE).tolist() == [0, 1, 2, 3, 4, 5]
    assert result.metrics["hr@10"] > 2 * result.metrics["popularity_hr@10"]


def test_sampled_softmax_learns_the_tastes_too(tmp_path: Path) -> None:
    config = TrainConfig(
        student=SMALL, epochs=6, batch_size=32, learning_rate=5e-3, threads=1,
        full_softmax_items=10, negatives=24,
    )  # fmt: skip
    result = train_student(planted(), ITEMS, TEXTS, path=tmp_path / "m", config=config, seed=1)
    assert result.metrics["hr@10"] > 2 * result.metrics["popularity_hr@10"]


def test_a_teacher_is_asked_for_each_batch_and_followed(tmp_path: Path) -> None:
    candidates = torch.arange(1, len(ITEMS) + 1)

    def only_garden(batch: Windows) -> TeacherLogits:
        n_examples = int((batch.weights > 0).sum())
        logits = torch.where(candidates <= PER_TASTE, 5.0, 0.0)
        return TeacherLogits(
            candidates.expand(n_examples, -1), logits.expand(n_examples, -1), share=0.95
        )

    config = TrainConfig(student=SMALL, epochs=4, batch_size=32, learning_rate=5e-3, threads=1)
    result = train_student(
        planted(), ITEMS, TEXTS, path=tmp_path / "m", config=config, teacher=only_garden
    )
    scores = scores_of(StudentScorer(result.path), ["books-0", "books-1"], ITEMS)
    assert int(np.argmax(scores)) < PER_TASTE


def test_where_items_are_had_once_only_new_ones_are_asked_about(tmp_path: Path) -> None:
    config = TrainConfig(
        student=SMALL, epochs=2, batch_size=32, learning_rate=5e-3, threads=1, full_softmax_items=10
    ).once()
    histories = planted()
    result = train_student(histories, ITEMS, TEXTS, path=tmp_path / "m", config=config, seed=1)
    n_new = 0
    for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        met: set[int] = set()
        for event in range(start, stop):
            is_late = histories.time_s[event] >= result.metrics["tested_from_s"]
            n_new += bool(is_late) and int(histories.rows[event]) not in met
            met.add(int(histories.rows[event]))
    assert result.metrics["test_requests"] == n_new > 100
    assert result.metrics["hr@10"] > 1.5 * result.metrics["popularity_hr@10"]


def test_the_order_within_a_basket_is_nothing_to_learn_where_baskets_are_asked_for() -> None:
    still = replace(SMALL, dropout=0.0, id_dropout=0.0, context_dropout=0.0)
    texts = encode_texts(BASKET_ITEMS)

    def loss(order: str, *, baskets: bool) -> float:
        config = TrainConfig(student=still, epochs=1, batch_size=99, baskets=baskets)
        seen: list[float] = []
        fit_student(
            in_baskets(order), texts, config=config, on_progress=lambda at: seen.append(at.loss)
        )
        return seen[0]

    assert loss("bcd", baskets=True) == pytest.approx(loss("dbc", baskets=True), rel=1e-5)
    assert loss("bcd", baskets=False) != pytest.approx(loss("dbc", baskets=False), rel=1e-5)


def test_weights_retrieve_where_the_network_does_clearly_worse(tmp_path: Path) -> None:
    # 240 items, 40 of a taste, and a teacher who says that everybody wants the garden.
    items = [f"{taste}-{n}" for taste in TASTES for n in range(40)]
    rng = np.random.default_rng(9)
    n_events = N_USERS * N_EVENTS
    chosen = [items[i // N_EVENTS % len(TASTES) * 40 + rng.integers(40)] for i in range(n_events)]
    users = [f"u{i // N_EVENTS:03d}" for i in range(n_events)]
    times = [i % N_EVENTS * DAY_S for i in range(n_events)]
    views = [EVENT_CODE["view"]] * n_events
    histories = build_histories(users, chosen, views, times, item_ids=items)
    garden = torch.arange(1, len(items) + 1)

    def mislead(batch: Windows) -> TeacherLogits:
        n_examples = int((batch.weights > 0).sum())
        logits = torch.where(garden <= 120, 9.0, 0.0)
        return TeacherLogits(
            garden.expand(n_examples, -1), logits.expand(n_examples, -1), share=0.99
        )

    config = TrainConfig(student=SMALL, epochs=2, batch_size=32, learning_rate=5e-3, threads=1)
    for teacher in (None, mislead):
        result = train_student(
            histories, items, items, path=tmp_path / "m", config=config, teacher=teacher
        )
        found = result.metrics
        is_worse = found["retrieval_network@100"] < found["retrieval_linear@100"] - 0.1
        assert is_worse == (teacher is mislead)
        assert (StudentScorer(result.path).linear is not None) == is_worse


def test_a_student_with_a_teacher_drops_less(tmp_path: Path) -> None:
    config = TrainConfig(student=SMALL, epochs=1, batch_size=32, taught_dropout=0.0)
    dropouts = []
    for teacher in (None, lambda _: None):
        path = tmp_path / "m"
        train_student(planted(), ITEMS, TEXTS, path=path, config=config, teacher=teacher)
        dropouts.append(read_model(path)[1].config["dropout"])

    assert dropouts == [0.1, 0.0]


def test_nothing_to_train_on_is_said() -> None:
    empty = build_histories([], [], [], [], item_ids=ITEMS)
    with pytest.raises(ValueError, match="no events"):
        train_student(empty, ITEMS, TEXTS, path=Path("never"))
