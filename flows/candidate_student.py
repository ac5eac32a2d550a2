"""The student of a trial of candidates: trained on what happened before a split, and no more.

Reads   events before the split, and items.
Emits   a scorer, for the catalogue as it stood there.
Owns    how long it may learn. Needs torch.

It is trained by the product's own code, contexts and all. It stops by the last twentieth of what
is known, not by the trial's later periods.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from flows.candidate_cases import QUIET
from flows.training import from_events
from models.serving import StudentScorer
from models.train import Progress, TrainConfig, train_student
from operators.messages import Event, Item

# The newest events say most of what comes next: few are kept from training, and next to none for
# a test that nobody reads. In 6 epochs it finds what it will; more make it better at the next item
# alone, and a trial trains three students.
CONFIG: Final = TrainConfig(epochs=6, patience=6, validation=0.05, test=0.001)


def train(
    events: Sequence[Event], items: Sequence[Item], seed: int, tell: Callable[[str], None]
) -> StudentScorer:
    """Return a student of `events`, in time order; `tell` is told how far it is.

    Raises
    ------
    ValueError
        If there is nothing to train on.
    """

    def show(at: Progress) -> None:
        tell(f"student: epoch {at.epoch}, {at.done} of at most {at.total} steps")

    tell("student: reading events")
    histories, item_ids, texts = from_events(events, items, QUIET)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "student.pfm"
        train_student(
            histories, item_ids, texts, path=path, config=CONFIG, seed=seed, on_progress=show
        )
        return StudentScorer(path)
