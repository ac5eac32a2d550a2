"""The gate of a language model: one that knows the planted chain, one that talks at random."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from typer.testing import CliRunner

from flows.cli import app
from flows.llm_gate import Gated, Plan, gate
from models.dataset import build_histories
from models.llm_labels import Cache
from models.splits import Split, by_time
from models.teacher import Teacher, TeacherConfig
from tests.models.chain import ITEMS, chains, follower
from tests.models.test_llm import save_tiny_model

N_COLD = 10  # items that nobody met before the cut
TITLES = [f"thing {item}" for item in ITEMS]


class Knowing:
    """Says that what follows in the ring is likely."""

    def __init__(self) -> None:
        self.n_asked = 0
        self._next = {TITLES[item]: TITLES[after] for item, after in enumerate(follower())}

    def log_likelihoods(self, history: list[str], titles: list[str]) -> np.ndarray:
        self.n_asked += 1
        after = self._next[history[-1]] if history else ""
        return np.array([-1.0 if title == after else -9.0 for title in titles], np.float32)

    def encode(self, texts: list[str], *, is_query: bool = False) -> np.ndarray:
        seeds = [xxhash.xxh32_intdigest(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(own).normal(size=8) for own in seeds]).astype("f4")


class Random(Knowing):
    """Says anything."""

    def log_likelihoods(self, history: list[str], titles: list[str]) -> np.ndarray:
        self.n_asked += 1
        return self.encode([f"{history[-1:]} {title}" for title in titles])[:, 0]


@pytest.fixture(scope="module")
def split() -> Split:
    """Return walks in which ten items are met after the cut alone."""
    whole = chains()
    cut = by_time(whole, validation=0.2, test=0.1).cuts[0]
    kept = np.flatnonzero((whole.time_s >= cut) | (whole.rows <= len(ITEMS) - N_COLD))
    users = np.repeat(whole.user_ids, np.diff(whole.offsets))[kept]
    histories = build_histories(
        users.tolist(),
        [ITEMS[row - 1] for row in whole.rows[kept]],
        whole.types[kept].tolist(),
        whole.time_s[kept].tolist(),
        item_ids=ITEMS,
    )
    return by_time(histories, validation=0.2, test=0.1)._replace(
        cuts=(cut, int(whole.time_s.max()))
    )


def gated(split: Split, llm: Knowing, path: Path) -> Gated:
    torch.manual_seed(0)
    sizes = TeacherConfig(width=16, factors=8, hidden=16, feed_forward=32, layers=1)
    teacher = Teacher(sizes, len(ITEMS)).eval()  # it knows nothing
    plan = Plan(candidates=8, asked=150, labels=30, short=5, repeats=True)
    with Cache(path, type(llm).__name__) as cache:
        return gate(split, TITLES, teacher, llm, cache=cache, plan=plan)


def test_one_that_knows_is_let_in_and_its_labels_say_what_follows(
    split: Split, tmp_path: Path
) -> None:
    knowing = Knowing()
    found = gated(split, knowing, tmp_path / "said.sqlite")
    slices = found.report["slices"]
    assert [slices[name]["likelihood"]["used"] for name in ("cold", "long")] == [True, True]
    assert not slices["long"]["vectors"]["used"]
    assert slices["long"]["likelihood"]["asked"] <= 150
    keys, candidates, logits = found.labels
    assert candidates.shape == logits.shape == (len(keys), 8)
    is_cold = candidates.min(axis=1) > len(ITEMS) - N_COLD
    assert is_cold.any()
    assert not is_cold.all()
    after = np.array(follower())[keys[:, -1] - 1] + 1
    is_next = candidates == after[:, None]
    told = is_next.any(axis=1)
    assert told.any()
    assert (is_next[np.arange(len(keys)), logits.argmax(axis=1)] == told).all()

    again = Knowing()  # all is in the cache
    assert gated(split, again, tmp_path / "said.sqlite").report["slices"] == slices
    assert (knowing.n_asked > 0, again.n_asked) == (True, 0)


def test_one_that_talks_at_random_teaches_nothing_and_the_report_says_so(
    split: Split, tmp_path: Path
) -> None:
    found = gated(split, Random(), tmp_path / "said.sqlite")
    assert len(found.labels.keys) == found.report["labels"] == 0
    assert [": not used: " in said for said in found.said] == [True] * 3
    assert any("beside the sequence teacher's" in said for said in found.said)


def test_the_commands_ask_a_local_model_and_distil_with_what_it_may_say(tmp_path: Path) -> None:
    histories = chains(n_users=60, n_events=8)
    lines = [
        f"u{user} " + " ".join(ITEMS[row - 1] for row in histories.rows[8 * user : 8 * user + 8])
        for user in range(60)
    ]
    sequences, titles = tmp_path / "chain.txt", tmp_path / "titles.tsv"
    sequences.write_text("\n".join(lines))
    titles.write_text(
        "\n".join(f"{item}\t{title}" for item, title in zip(ITEMS, TITLES, strict=True))
    )
    teacher, labels = tmp_path / "t.safetensors", tmp_path / "labels.npz"
    data = ["sequences", str(sequences), "--titles", str(titles)]
    runner = CliRunner()
    small = ["--hidden", "16", "--layers", "1", "--epochs", "1"]
    made = runner.invoke(app, ["train", "teacher", *data, *small, "--out", str(teacher)])
    assert made.exit_code == 0, made.output

    found = runner.invoke(
        app,
        [
            *("train", "llm-labels", *data, "--repeats", "--teacher", str(teacher)),
            *("--llm", str(save_tiny_model(tmp_path / "causal")), "--out", str(labels)),
            *("--cache", str(tmp_path / "said.sqlite"), "--asked", "5", "--candidates", "4"),
        ],
    )
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["slices"]["cold"] == {}
    assert report["slices"]["long"]["likelihood"]["requests"] > 0
    assert report["seconds_a_title"] > 0
    assert len(report["said"]) == 3

    compared = runner.invoke(
        app,
        [
            *("evaluate", "models", *data, "--repeats", *small, "--models", "distilled"),
            *("--llm-labels", str(labels), "--json"),
        ],
    )
    assert compared.exit_code == 0, compared.output
    assert set(json.loads(compared.stdout)["models"]) == {"teacher", "distilled"}
