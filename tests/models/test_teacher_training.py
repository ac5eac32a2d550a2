"""The teacher on a planted Markov chain: popularity knows nothing there, the order everything."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from models.dataset import (
    Requests,
    build_histories,
    had_before,
    targets_between,
    time_split,
    training_windows,
)
from models.evaluate import next_item_metrics, next_item_ranks
from models.features import EVENT_CODE, HISTORY, N_CONTEXT, TEXT_DIM
from models.splits import by_time
from models.teacher import Teacher, TeacherConfig
from models.teacher_file import TeacherFileError, load_teacher, save_teacher
from models.teacher_loss import softmax_loss
from models.teacher_training import (
    CheckpointError,
    TaughtTeacher,
    TeacherTraining,
    teacher_scores,
    train_teacher,
)
from models.text import encode_texts
from models.train import Progress
from tests.models.baskets import BASKET_ITEMS, in_baskets
from tests.models.chain import ITEMS, chains

SMALL = TeacherConfig(
    width=32, factors=16, hidden=32, layers=1, feed_forward=64, request=32, dropout=0.1
)
QUICK = TeacherTraining(teacher=SMALL, epochs=6, batch_size=8, learning_rate=1e-2)
SPLIT = by_time(chains(), validation=0.1, test=0.1)
TEXTS = np.zeros((len(ITEMS), TEXT_DIM), np.float32)


def taught(config: TeacherTraining, checkpoint: Path | None = None, seed: int = 1) -> TaughtTeacher:
    return train_teacher(
        SPLIT.histories, TEXTS, SPLIT.cuts, config=config, seed=seed, checkpoint=checkpoint
    )


def later_ndcg(config: TeacherTraining) -> float:
    score = teacher_scores(taught(config).teacher, TEXTS)
    events = targets_between(SPLIT.histories, SPLIT.cuts[1], None, limit=400)
    return next_item_metrics(next_item_ranks(score, SPLIT.histories, events))["ndcg@10"]


@pytest.mark.parametrize(
    "config",
    [
        QUICK,
        replace(QUICK, teacher=SMALL.sasrec()),
        replace(QUICK, full_softmax_items=10, negatives=20),
        replace(QUICK, loss="gbce", negatives=20, epochs=10),
        replace(QUICK, teacher=replace(SMALL, backbone="bert")),
    ],
    ids=["all", "SASRec", "sampled", "gbce", "bert"],
)
def test_it_learns_an_order_that_popularity_cannot_know(config: TeacherTraining) -> None:
    # Nine of ten steps are sure: a perfect model has an NDCG@10 near .9. Popularity, of 40 items
    # that are equally popular, has 10 / 40 of the hits and about .11.
    assert later_ndcg(config) > 0.7


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    config = replace(QUICK, epochs=3)
    whole = taught(config)

    class Stopped(Exception):
        pass

    def stop(at: Progress) -> None:
        if at.epoch == 3:
            raise Stopped

    checkpoint = tmp_path / "teacher.pt"
    with pytest.raises(Stopped):
        train_teacher(
            SPLIT.histories, TEXTS, SPLIT.cuts, config=config, seed=1, checkpoint=checkpoint,
            on_progress=stop,
        )  # fmt: skip
    seen: list[int] = []
    resumed = train_teacher(
        SPLIT.histories, TEXTS, SPLIT.cuts, config=config, seed=1, checkpoint=checkpoint,
        on_progress=lambda at: seen.append(at.epoch),
    )  # fmt: skip

    assert set(seen) == {3}
    assert resumed.metrics == whole.metrics
    ours, theirs = resumed.teacher.state_dict(), whole.teacher.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # What is finished is not trained again.
    again = taught(config, checkpoint)
    assert again.metrics == whole.metrics
    with pytest.raises(CheckpointError, match="another seed"):
        taught(config, checkpoint, seed=2)


def test_an_item_nobody_met_is_scored_by_its_text() -> None:
    texts = [f"{taste} thing {n}" for taste in ("garden", "music", "sport") for n in range(8)]
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(90):
        for _ in range(12):  # the last item of each taste is met by nobody
            users.append(f"u{user:02d}")
            items.append(f"i{8 * (user % 3) + int(rng.integers(7)):02d}")
    views = [EVENT_CODE["view"]] * len(users)
    ids = [f"i{n:02d}" for n in range(24)]
    histories = build_histories(users, items, views, [*range(len(users))], item_ids=ids)
    vectors = encode_texts(texts)
    split = by_time(histories, validation=0.1, test=0.1)
    result = train_teacher(histories, vectors, split.cuts, config=QUICK, seed=1)

    rows = np.zeros((3, HISTORY), np.int64)
    rows[:, -3:] = [[1, 2, 3], [9, 10, 11], [17, 18, 19]]
    contexts = np.zeros((3, N_CONTEXT), np.float32)
    asked = Requests(rows, (rows > 0) * 1, (rows > 0) * np.float32(60), contexts, rows[:, -1])
    cold = teacher_scores(result.teacher, vectors)(asked)[:, [7, 15, 23]]
    assert cold.argmax(axis=1).tolist() == [0, 1, 2]


def columns(*rows: int) -> tuple[torch.Tensor, ...]:
    history = torch.zeros((1, HISTORY), dtype=torch.int64)
    history[0, HISTORY - len(rows) :] = torch.tensor(rows)
    kinds = (history > 0).long()
    return history, kinds, 5 * kinds, 3 * kinds


@pytest.mark.parametrize("backbone", ["gpt2", "bert"])
def test_no_state_sees_the_item_that_it_is_asked_for(backbone: str) -> None:
    torch.manual_seed(0)
    teacher = Teacher(replace(SMALL, backbone=backbone), 9).eval()
    table = torch.randn(10, 48)
    asked = torch.zeros((1, HISTORY), dtype=torch.bool)
    asked[0, -3] = True  # what comes after the last but two
    with torch.no_grad():
        a = teacher.states(table, *columns(1, 2, 3, 4, 5), asked=asked)
        b = teacher.states(table, *columns(1, 2, 3, 9, 5), asked=asked)
        c = teacher.states(table, *columns(1, 2, 9, 4, 5), asked=asked)
    assert torch.equal(a[0, -3], b[0, -3])
    assert not torch.equal(a[0, -3], c[0, -3])


@pytest.mark.parametrize("backbone", ["gpt2", "bert"])
def test_padding_has_no_say(backbone: str) -> None:
    torch.manual_seed(0)
    teacher = Teacher(replace(SMALL, backbone=backbone), 9).eval()
    table = torch.randn(10, 48)
    table[0] = 0.0
    other = table.clone()
    other[0, :32] = 7.0
    with torch.no_grad():
        a = teacher.states(table, *columns(1, 2))[0, -1, :32]
        b = teacher.states(other, *columns(1, 2))[0, -1, :32]
    assert torch.allclose(a, b, atol=1e-6)


def test_where_items_are_had_once_what_a_user_had_is_no_wrong_answer() -> None:
    table = torch.tensor([[0.0], [1.0], [5.0], [2.0]])
    among, target, weight = torch.tensor([1, 2, 3]), torch.tensor([1]), torch.ones(1)
    user = torch.ones(1, 1)
    # The user had item 2, and also, as a repeat that is asked about, the target itself.
    had = torch.tensor([[0, 2, 1]])
    loss = softmax_loss(user, table, target, weight, among=among, had=had)
    assert float(loss) == pytest.approx(np.log(1 + np.e))  # items 1 and 3 alone
    table.requires_grad_()
    softmax_loss(user, table, target, weight, among=among, had=had).backward()
    assert table.grad is not None
    assert table.grad[2].item() == 0.0
    assert table.grad[3].item() > 0.0


def test_the_order_within_a_basket_is_nothing_to_learn_where_baskets_are_asked_for() -> None:
    still = replace(SMALL, dropout=0.0, id_dropout=0.0, context_dropout=0.0)

    def loss(order: str, *, baskets: bool) -> float:
        config = TeacherTraining(teacher=still, epochs=1, batch_size=99, baskets=baskets)
        seen: list[float] = []
        histories = in_baskets(order)
        train_teacher(
            histories,
            TEXTS[: len(BASKET_ITEMS)],
            time_split(histories, validation=0.1, test=0.1),
            config=config,
            on_progress=lambda at: seen.append(at.loss),
        )
        return seen[0]

    assert loss("bcd", baskets=True) == pytest.approx(loss("dbc", baskets=True), rel=1e-5)
    assert loss("bcd", baskets=False) != pytest.approx(loss("dbc", baskets=False), rel=1e-5)


def test_a_bidirectional_teacher_says_that_it_cannot_be_asked_for_baskets() -> None:
    config = replace(QUICK, teacher=replace(SMALL, backbone="bert"), baskets=True)
    with pytest.raises(ValueError, match="take a causal one"):
        taught(config)


def test_without_repeats_no_repeat_is_asked_about() -> None:
    histories = chains(n_users=30, n_events=30)
    rng = np.random.default_rng(0)
    batch = next(training_windows(histories, until_s=10**9, batch_size=30, rng=rng))
    had = had_before(batch)
    user, place = 3, 29
    target = batch.targets[user, place]
    assert had[user, place] == (target in batch.rows[user, : place + 1])
    assert 0 < had.mean() < 1


def test_a_file_gives_the_same_scores_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Teacher(SMALL, len(ITEMS)).eval()
    path = tmp_path / "teacher.safetensors"
    version = save_teacher(path, teacher, ITEMS, {"epochs": 1.0})
    loaded, item_ids = load_teacher(path)
    assert item_ids == ITEMS
    assert loaded.config == SMALL
    assert version == save_teacher(tmp_path / "again", loaded, ITEMS, {"epochs": 1.0})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TeacherFileError, match="train teacher"):
        load_teacher(path)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_pre_trained_folder_gives_its_weights_and_its_direction(
    kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    model: torch.nn.Module
    if kind == "gpt2":
        gpt = GPT2Config(
            vocab_size=7, n_embd=24, n_layer=1, n_head=2, n_positions=64, bos_token_id=None,
            eos_token_id=None, architectures=["GPT2LMHeadModel"],
        )  # fmt: skip
        model = GPT2Model(gpt)
    else:
        bert = BertConfig(
            vocab_size=7, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, architectures=["BertModel"],
        )  # fmt: skip
        model = BertModel(bert)
    model.save_pretrained(tmp_path)
    teacher = Teacher(replace(SMALL, backbone=str(tmp_path)), 9)
    assert teacher.is_causal == (kind == "gpt2")
    own = dict(teacher.backbone.named_parameters())
    assert all(torch.equal(own[name], weights) for name, weights in model.named_parameters())
    states = teacher.states(torch.randn(10, 48), *columns(1, 2, 3))
    assert states.shape == (1, HISTORY, 24 + 16)


def test_what_is_no_folder_of_a_model_is_said() -> None:
    with pytest.raises(ValueError, match="no folder of a model"):
        Teacher(replace(SMALL, backbone="/nowhere"), 3)
