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
from models.splits import Split, by_time, leave_one_out, rolling

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


def cuts(histories: Histories, how: Cut, folds: int) -> list[Split]:
    """Return the splits of folds, oldest first; without folds the one of `cut`.

    Raises
    ------
    ValueError
        If folds are asked of what is not cut by time, or leave nothing to train on.
    """
    if folds == 1:
        return [cut(histories, how)]
    if how != "time":
        raise ValueError("folds roll through time: they need --split time")
    return rolling(histories, folds, validation=VALIDATION, test=TEST)


def _recording(kind: str, path: Path) -> Recording:
    if kind == "retail":
        return retail(path)
    if not (path / "ratings.csv").is_file():
        raise ValueError(f"{path} has no ratings.csv: give the folder of a MovieLens data set")
    return movielens(path)
