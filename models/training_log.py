"""Where the numbers of a training go, beside the progress bar: TensorBoard, MLflow, or nowhere.

Reads   the progress of a training.
Emits   loss and validation NDCG@10 by step.
Owns    how a target is named: `tensorboard:FOLDER`, `mlflow:URI`.

Neither is a dependency: who names one must have it installed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from models.train import Progress

KINDS: Final = ("tensorboard", "mlflow")
_EXPERIMENT: Final = "pushflow"

Log = Callable[[Progress], None]


@contextmanager
def opened(target: str, settings: dict[str, Any]) -> Iterator[Log]:
    """Yield what writes down a step; an empty target writes nothing.

    Parameters
    ----------
    target
        `tensorboard:FOLDER` or `mlflow:URI`.
    settings
        Of the training, kept with the run by MLflow.

    Raises
    ------
    ValueError
        If the target is neither.
    ImportError
        If its package is not installed.

    Examples
    --------
    >>> with opened("", {}) as log:
    ...     log(Progress(1, 10, 1, 0.5, 0.0))
    >>> with opened("paper:notes", {}) as log:
    ...     pass
    Traceback (most recent call last):
    ValueError: 'paper:notes' is neither tensorboard:FOLDER nor mlflow:URI
    """
    if not target:
        yield lambda _: None
        return
    kind, _, where = target.partition(":")
    if kind not in KINDS or not where:
        raise ValueError(f"{target!r} is neither tensorboard:FOLDER nor mlflow:URI")
    if kind == "tensorboard":
        writer = import_module("torch.utils.tensorboard").SummaryWriter(where)
        try:
            yield lambda at: _each(at, writer.add_scalar)
        finally:
            writer.close()
        return
    mlflow = import_module("mlflow")
    mlflow.set_tracking_uri(where)
    mlflow.set_experiment(_EXPERIMENT)
    with mlflow.start_run():
        mlflow.log_params(settings)
        # MLflow takes no @ in a name.
        yield lambda at: _each(
            at, lambda name, value, step: mlflow.log_metric(name.replace("@", "_at_"), value, step)
        )


def _each(at: Progress, write: Callable[[str, float, int], object]) -> None:
    write("loss", at.loss, at.done)
    write("validation_ndcg@10", at.ndcg, at.done)
