"""The student in use: loaded when `push.models.v1` names another one.

Reads   model cards, and the files that they name.
Emits   the scorer, and news of a change to those who keep vectors made with it.
Owns    the refusal of a model that is missing, damaged or made for other features: the one
        before it goes on, the refusal is counted, and its reason is kept for `pushflow doctor`.
"""

from collections.abc import Callable
from pathlib import Path

from models.serving import ModelFileError, ModelMismatchError, StudentScorer, checksum
from operators import metrics
from operators.messages import ModelCard

SERVED = "student"  # name of the card that is served


class ModelTable:
    """Holds at most one scorer.

    Parameters
    ----------
    on_change
        Called with each scorer that is taken into use.

    Examples
    --------
    >>> table = ModelTable(on_change=print)
    >>> table.apply("student", ModelCard(name="student", version="1", path="/nowhere.pfm",
    ...                                  checksum="", feature_spec=""))
    >>> table.scorer is None, table.refusal.split(":")[0]
    (True, '/nowhere.pfm')
    """

    def __init__(self, on_change: Callable[[StudentScorer], None]) -> None:
        self._on_change = on_change
        self.scorer: StudentScorer | None = None
        self.refusal = ""

    @property
    def version(self) -> str:
        """Version of the scorer in use; "none" where there is none."""
        return "none" if self.scorer is None else self.scorer.version

    def apply(self, name: str, card: ModelCard | None) -> None:
        """Load the model that a card names; a tombstone or another name changes nothing."""
        if card is None or name != SERVED:
            return
        if self.scorer is not None and self.scorer.version == card.version:
            return
        self.load(Path(card.path), card.checksum)

    def load(self, path: Path, expected: str = "") -> None:
        """Load a file; where it is refused the scorer before it goes on."""
        try:
            if expected and (found := checksum(path)) != expected:
                raise ModelFileError(f"{path}: checksum {found}, the card says {expected}")
            scorer = StudentScorer(path)
        except (ModelFileError, ModelMismatchError, OSError) as error:
            self.refusal = f"{path}: {error}"
            metrics.FALLBACKS.labels("model_refused").inc()
            return
        self.refusal = ""
        self.scorer = scorer
        self._on_change(scorer)
