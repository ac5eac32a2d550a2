"""The demo's models, on a chain of items that a few epochs learn a little of."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flows.demo_models import Made, Past, make, table
from flows.served_student import PARITY, ServedStudent, ndcg
from models.dataset import time_split
from models.next_item import exam
from models.text import encode_texts
from tests.models.chain import ITEMS, chains

torch.set_num_threads(1)  # shared cores
PAST = Past(chains(n_users=60), ITEMS, ITEMS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(PAST, tmp_path_factory.mktemp("models"), epochs=1, seed=1)


def test_all_models_are_measured_and_one_serves(made: Made) -> None:
    names = [row.name for row in made.rows]
    assert names[:3] == ["teacher", "student", "distilled"]
    assert names[3] in {"student, int8", "distilled, int8"}
    assert all(row.ms > 0 and row.parameters > 0 and row.network_bytes > 0 for row in made.rows)
    assert all(0 < row.ndcg <= 1 for row in made.rows)
    assert [row.parity is None for row in made.rows] == [True, False, False, False]
    assert max(row.parity or 0 for row in made.rows[:3]) <= PARITY
    assert sum(row.serves for row in made.rows) == 1


def test_what_serves_is_the_file_of_its_row(made: Made) -> None:
    [row] = [row for row in made.rows if row.serves]
    served = ServedStudent(made.path, ITEMS, encode_texts(ITEMS))
    cuts = time_split(PAST.histories, validation=0.05, test=0.05)
    test = exam(PAST.histories, cuts[1], None, repeats=True, limit=5_000)
    assert served.scorer.version == made.version
    assert ndcg(served.score(PAST.histories), test) == row.ndcg


def test_the_same_seed_makes_the_same_file(made: Made, tmp_path: Path) -> None:
    again = make(PAST, tmp_path, epochs=1, seed=1)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_the_table_has_a_row_for_each(made: Made) -> None:
    out = io.StringIO()
    Console(width=80, file=out).print(table(made.rows))
    lines = out.getvalue().splitlines()
    for row in made.rows:
        [line] = [line for line in lines if f" {row.name} " in line]
        assert f"{row.parameters:,}" in line
        assert ("serves" in line) == row.serves
