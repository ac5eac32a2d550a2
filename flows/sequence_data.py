"""Histories to train and compare next-item models on, from whatever a person has.

Reads   a recording, retail or MovieLens, or a file of sequences.
Emits   histories, item ids and texts, and how they are cut.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from flows.candidate_cases import QUIET
from flows.recorded import Recording, movielens, retail
from flows.sequences import read_sequences
from flows.training import from_events, recorded_events, recorded_items
from models.dataset import Histories
from models.splits import Split, by_time, leave_one_out

Cut = Literal["time", "leave-one-out"]
Known = tuple[Histories, list[str], list[str]]

VALIDATION: Final = 0.1  # share of events, of the cut by time
TEST: Final = 0.1


def read(kind: str, path: Path, titles: Path | None, tell: Callable[[int], None]) -> Known:
    """Return what "retail", "movielens" or "sequences" holds; `tell` gets the events read.

    Raises
    ------
    ValueError
        If the path is not what it should be, or holds nothing.
    """
    if not path.exists():
        raise ValueError(f"no file {path}")
    if kind == "sequences":
        return read_sequences(path, titles)
    recording = _recording(kind, path)
    return from_events(recorded_events(recording), recorded_items(recording), QUIET, tell)


def cut(histories: Histories, how: Cut) -> Split:
    """Return histories with their cuts."""
    if how == "time":
        return by_time(histories, validation=VALIDATION, test=TEST)
    return leave_one_out(histories)


def _recording(kind: str, path: Path) -> Recording:
    if kind == "retail":
        return retail(path)
    if not (path / "ratings.csv").is_file():
        raise ValueError(f"{path} has no ratings.csv: give the folder of a MovieLens data set")
    return movielens(path)
