"""Two processes that train one teacher come to what one process comes to."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models.parallel_worker import PLAIN, losses


@pytest.mark.system
def test_two_processes_have_the_losses_of_one_whichever_way_they_share(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.parallel_worker"]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    steps, weights = losses(PLAIN)
    said = [own.communicate(timeout=240)[0] for own in both]
    assert [own.returncode for own in both] == [0, 0]
    told = json.loads(said[0])

    assert len(steps) == 6
    assert set(told) == {"data", "sharded"}
    for its_steps, its_weights, after_resuming in told.values():
        assert its_steps == pytest.approx(steps, rel=1e-4)
        assert its_weights == pytest.approx(weights, rel=1e-3)
        assert after_resuming == pytest.approx(its_weights, rel=1e-6)


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    whole, parts = losses(PLAIN)[0], losses(replace(PLAIN, accumulate=3))[0]
    assert parts == pytest.approx(whole, rel=1e-4)


def test_half_precision_stays_near() -> None:
    whole, half = losses(PLAIN)[0], losses(replace(PLAIN, precision="bfloat16"))[0]
    assert half != whole
    assert half == pytest.approx(whole, rel=0.05)
