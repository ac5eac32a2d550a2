"""`pushflow evaluate models` on a planted chain: all models, the folds, and the plot."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.models.chain import ITEMS, chains

SMALL = ["--hidden", "32", "--layers", "1", "--epochs", "1", "--budget", "1"]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 120 users' walks on the chain."""
    histories = chains(n_users=120, n_events=12)
    lines = []
    for user, (start, stop) in enumerate(
        zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ):
        walked = " ".join(ITEMS[row - 1] for row in histories.rows[start:stop])
        lines.append(f"u{user} {walked}")
    path = tmp_path_factory.mktemp("chain") / "chain.txt"
    path.write_text("\n".join(lines))
    return path


def evaluated(path: Path, *options: str) -> Result:
    command = ["evaluate", "models", "sequences", str(path), "--repeats", *SMALL, *options]
    return CliRunner().invoke(app, command)


def test_all_models_answer_the_same_requests_and_json_alone_is_printed(sequences: Path) -> None:
    found = evaluated(sequences, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    models = report["models"]
    assert list(models) == [
        *("popularity", "item-CF", "ALS", "SASRec", "teacher", "student", "distilled")
    ]
    assert (report["split"], report["requests"], report["items"]) == ("leave-one-out", 120, 40)
    # What follows is near in the ring, and all are equally popular.
    assert models["item-CF"]["ndcg@10"]["value"] > models["popularity"]["ndcg@10"]["value"]
    for own in models.values():
        found_mean = own["ndcg@10"]
        assert found_mean["low"] <= found_mean["value"] <= found_mean["high"]
        assert own["precision@10"]["value"] == pytest.approx(own["hr@10"]["value"] / 10, abs=1e-4)
        assert 0 <= own["calibration_error"] <= 1
        assert 0 < own["auc"]["value"] <= 1
        assert 0 < own["coverage@10"] <= 1
    assert models["distilled"]["settings"]["linear"] == 0  # of one try: the defaults
    # Items without words have no vectors, and so are all unlike.
    assert models["teacher"]["diversity@10"] == 1.0
    assert set(report["gain_ndcg@10"]) == {
        *("teacher-SASRec", "student-teacher", "distilled-teacher", "distilled-student")
    }


def test_folds_roll_through_time_and_are_drawn(sequences: Path, tmp_path: Path) -> None:
    plot = tmp_path / "folds.png"
    found = evaluated(
        sequences, "--models", "popularity,item-CF", "--split", "time", "--folds", "3",
        "--plot", str(plot), "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    folds = report["folds"]
    assert [fold["split"] for fold in folds] == ["time"] * 3
    assert folds[0]["events"] < folds[1]["events"] < folds[2]["events"]
    each = [fold["models"]["item-CF"]["ndcg@10"]["value"] for fold in folds]
    mean = report["models"]["item-CF"]["ndcg@10"]["value"]
    assert mean == pytest.approx(sum(each) / 3, abs=1e-4)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_of_several_tries_students_hear_item_weights_where_the_validation_is_better_so(
    sequences: Path,
) -> None:
    found = evaluated(
        sequences, "--models", "distilled", "--tries", "2", "--seeds", "1,2", "--json"
    )
    assert found.exit_code == 0, found.output
    settings = json.loads(found.stdout)["models"]["distilled"]["settings"]
    worth = {own: settings[f"validation_ndcg@10_linear_{own:g}"] for own in (0.0, 8.0)}
    assert worth[0.0] != worth[8.0]
    assert settings["linear"] == max(worth, key=lambda own: worth[own])


@pytest.mark.slow  # two processes that load torch
def test_workers_train_the_same_networks(sequences: Path) -> None:
    options = "--models", "SASRec", "--seeds", "1,2", "--epochs", "1", "--json"
    alone, beside = evaluated(sequences, *options), evaluated(sequences, *options, "--workers", "2")
    assert json.loads(alone.stdout)["models"] == json.loads(beside.stdout)["models"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--models", "oracle"), "no model oracle"),
        (("--folds", "2"), "need --split time"),
    ],
)
def test_what_cannot_be_is_said(sequences: Path, options: tuple[str, ...], said: str) -> None:
    found = evaluated(sequences, *options)
    assert found.exit_code != 0
    assert said in found.output
