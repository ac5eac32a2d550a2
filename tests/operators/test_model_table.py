"""Models come into use beside the served one, and what cannot serve changes nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from models.checkpoint import write_model
from models.export import export_student
from models.features import spec_hash
from models.rollout import MIN_CALLS
from models.serving import checksum
from models.student import Student, StudentConfig
from operators.catalogue import Catalogue
from operators.messages import Item, ModelCard, ModelRef, ModelTrial
from operators.model_table import ModelTable

torch.set_num_threads(1)  # shared cores
SMALL = StudentConfig(width=16, layers=1, heads=2)
LARGE = StudentConfig(width=256, layers=4, heads=4)
N_ITEMS = 1_300  # more than two slices
WAIT_S = 60.0


class Files(NamedTuple):
    """Model files, and their references."""

    one: ModelRef
    other: ModelRef
    slow: ModelRef


def made(path: Path, config: StudentConfig, seed: int) -> ModelRef:
    torch.manual_seed(seed)
    student = Student(config, 3).eval()
    torch.nn.init.normal_(student.ids.weight, std=1.0)
    version = write_model(path, export_student(student, ["i0", "i1", "i2"], {}))
    return ref_of(path, version)


def ref_of(path: Path, version: str) -> ModelRef:
    return ModelRef(
        version=version, path=str(path), checksum=checksum(path), feature_spec=spec_hash()
    )


def changed(ref: ModelRef, **fields: Any) -> ModelRef:
    values = {name: getattr(ref, name) for name in ModelRef.__struct_fields__}
    return ModelRef(**{**values, **fields})


def card(ref: ModelRef, trial: ModelRef | None = None, **fields: Any) -> ModelCard:
    own = {name: getattr(ref, name) for name in ModelRef.__struct_fields__}
    stage, share = fields.pop("stage", "shadow"), fields.pop("share", 0.5)
    beside = None
    if trial is not None:
        named = {name: getattr(trial, name) for name in ModelRef.__struct_fields__}
        beside = ModelTrial(stage=stage, share=share, **named)
    return ModelCard(name="student", trial=beside, **own, **fields)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("models")
    return Files(
        made(folder / "one.pfm", SMALL, 1),
        made(folder / "other.pfm", SMALL, 2),
        made(folder / "slow.pfm", LARGE, 3),
    )


def table(**options: Any) -> ModelTable:
    catalogue = Catalogue()
    for n in range(N_ITEMS):
        catalogue.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n}"))
    catalogue.refresh()
    # Two models of one size may differ by much on a busy machine: none is slow but where asked.
    return ModelTable(catalogue, **{"max_slowdown": 1e9, **options})


def until(models: ModelTable, is_so: Callable[[], bool]) -> int:
    """Refresh until it is so; return how often that was."""
    end = time.monotonic() + WAIT_S
    n_steps = 0
    while not is_so() and time.monotonic() < end:
        models.refresh()
        n_steps += 1
        time.sleep(0.001)
    assert is_so()
    return n_steps


def test_a_new_model_serves_once_it_is_whole_and_the_old_one_until_then(files: Files) -> None:
    models = table()
    models.apply("student", card(files.one))
    models.settle()
    models.apply("student", card(files.other))
    seen = []

    def is_whole_and_new() -> bool:
        assert models.served is not None
        assert len(models.served.items.table) == N_ITEMS + 1
        seen.append(models.version)
        return models.version == files.other.version

    # Once for the file, and once at least for each slice of the table.
    assert until(models, is_whole_and_new) > N_ITEMS // 512
    assert seen[0] == files.one.version
    assert models.served is not None
    assert models.served.items.table[1:].any(axis=1).all()


def test_what_is_on_trial_serves_at_once_when_it_is_promoted(files: Files) -> None:
    models = table()
    models.apply("student", card(files.one, files.other))
    models.settle()
    assert (models.version, models.trial and models.trial.version) == (
        files.one.version,
        files.other.version,
    )

    models.apply("student", card(files.other))
    models.refresh()
    assert (models.version, models.trial) == (files.other.version, None)


def test_a_trial_that_is_taken_off_leaves_at_once(files: Files) -> None:
    models = table()
    models.apply("student", card(files.one, files.other))
    models.settle()
    models.apply("student", card(files.one))
    models.refresh()

    assert (models.version, models.trial) == (files.one.version, None)


def test_users_of_the_share_are_scored_in_the_shadow_and_decided_in_canary(files: Files) -> None:
    models = table()
    users = [f"u{n}" for n in range(200)]
    models.apply("student", card(files.one, files.other))
    models.settle()
    decides, scores = models.places(users)
    assert decides == []
    assert 60 < len(scores) < 140

    models.apply("student", card(files.one, files.other, stage="canary"))
    models.refresh()
    assert models.places(users) == (scores, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checksum": "0" * 32}, "checksum"),
        ({"path": "/nowhere/student.pfm"}, "No such file"),
        ({"feature_spec": "0" * 16}, "Train again"),
    ],
)
@pytest.mark.parametrize("place", ["served", "trial"])
def test_a_model_that_does_not_fit_is_refused_and_the_old_one_goes_on(
    files: Files, change: dict[str, str], words: str, place: str
) -> None:
    models = table()
    models.apply("student", card(files.one))
    models.settle()
    bad = changed(files.other, **change)
    models.apply("student", card(bad) if place == "served" else card(files.one, bad))
    until(models, lambda: bool(models.refusals))

    assert (models.version, models.trial) == (files.one.version, None)
    assert words in models.refusals[bad.version]


def test_a_damaged_file_is_refused_even_if_the_card_was_made_of_it(
    files: Files, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pfm"
    content = bytearray(Path(files.other.path).read_bytes())
    content[len(content) // 2] ^= 255
    broken.write_bytes(content)
    models = table()
    models.apply("student", card(files.one))
    models.settle()
    models.apply("student", card(ref_of(broken, "b0")))
    until(models, lambda: bool(models.refusals))

    assert models.version == files.one.version


def test_a_file_whose_parts_do_not_fit_together_is_refused(files: Files, tmp_path: Path) -> None:
    torch.manual_seed(5)
    parts = export_student(Student(SMALL, 3).eval(), ["i0", "i1", "i2"], {})
    torn = tmp_path / "torn.pfm"
    narrow = parts._replace(
        text_projection=parts.text_projection[:, :8], id_vectors=parts.id_vectors[:, :8]
    )
    version = write_model(torn, narrow)
    models = table()
    models.apply("student", card(files.one))
    models.settle()
    models.apply("student", card(ref_of(torn, version)))
    until(models, lambda: bool(models.refusals))

    assert models.version == files.one.version


def test_a_file_that_comes_later_is_taken_when_the_card_comes_again(
    files: Files, tmp_path: Path
) -> None:
    models = table()
    models.apply("student", card(files.one))
    models.settle()
    late = changed(files.other, path=str(tmp_path / "late.pfm"))
    models.apply("student", card(late))
    until(models, lambda: bool(models.refusals))
    (tmp_path / "late.pfm").write_bytes(Path(files.other.path).read_bytes())
    models.apply("student", card(late))
    until(models, lambda: models.version == files.other.version)

    assert models.refusals == {}


def test_a_model_that_is_many_times_slower_is_refused(files: Files) -> None:
    models = table(max_slowdown=4.0)
    models.apply("student", card(files.one))
    models.settle()
    models.apply("student", card(files.slow))
    until(models, lambda: bool(models.refusals))

    assert models.version == files.one.version
    assert "MAX_SLOWDOWN" in models.refusals[files.slow.version]


def test_a_slow_model_serves_where_an_operator_says_so(files: Files) -> None:
    models = table(max_slowdown=4.0)
    models.apply("student", card(files.one))
    models.settle()
    models.apply("student", card(files.slow, is_forced=True))

    until(models, lambda: models.version == files.slow.version)


def test_a_model_that_turns_out_slow_on_trial_is_taken_off(files: Files) -> None:
    models = table(max_slowdown=50.0)
    models.apply("student", card(files.one, files.other))
    models.settle()
    for _ in range(MIN_CALLS - 1):
        models.timed(0.001, 0.060)
    assert models.trial is not None

    models.timed(0.001, 0.060)
    assert (models.trial, models.version) == (None, files.one.version)
    assert "99th percentile of a call 60.00 ms" in models.refusals[files.other.version]


def test_a_start_on_a_broken_model_serves_the_one_before(files: Files) -> None:
    models = table()
    gone = changed(files.other, path="/nowhere/student.pfm")
    models.apply("student", card(gone, previous=files.one))
    models.settle()

    assert models.version == files.one.version
    assert list(models.refusals) == [gone.version]


def test_no_more_than_the_served_one_and_that_on_trial_are_held(files: Files) -> None:
    models = table()
    models.apply("student", card(files.one, files.other))
    models.settle()
    models.apply("student", card(files.slow, files.other))
    models.settle()

    assert models.version == files.slow.version
    assert len(models._ready) == 2
