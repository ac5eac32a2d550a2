"""`pushflow train`: from events to a model file, with progress and the numbers that judge it.

Reads   events and items, whatever they come from.
Emits   a model file, its card, and the metrics of its held-out last days.
Owns    what a person sees while it runs. Needs torch; serving does not.
"""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows import rollout
from flows.decide import rules
from flows.settings import Settings
from flows.training import card_of, from_events
from models.dataset import Histories, time_split
from models.push_log import PushLog
from models.student_outcomes import PushOutcomes
from models.train import Progress as TrainingProgress
from models.train import TrainConfig, TrainResult, train_student
from operators.messages import Event, Item, ModelCard


def teach(
    settings: Settings,
    events: Iterable[Event],
    items: Iterable[Item],
    path: Path,
    *,
    config: TrainConfig,
    seed: int,
    console: Console,
    pushes: PushLog | None = None,
) -> tuple[ModelCard, dict[str, float]]:
    """Train a student, also on what became of pushes; return its card and its metrics.

    Raises
    ------
    ValueError
        If there is too little to train on.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("reading events", total=None)

        def read(count: int) -> None:
            progress.update(task, description=f"reading events: {count:,}")

        histories, item_ids, texts = from_events(events, items, rules(settings), read)
        _check(histories)
        progress.update(task, total=1, completed=1)
        outcomes = None
        if pushes is not None:
            cuts = time_split(histories, validation=config.validation, test=config.test)
            outcomes = PushOutcomes(pushes, histories, item_ids, cuts=cuts, seed=seed)
        fitting = progress.add_task("training", total=None)

        def show(at: TrainingProgress) -> None:
            text = f"epoch {at.epoch}, loss {at.loss:.3f}, validation NDCG@10 {at.ndcg:.4f}"
            progress.update(fitting, description=text, completed=at.done, total=at.total)

        path.parent.mkdir(parents=True, exist_ok=True)
        result = train_student(
            histories,
            item_ids,
            texts,
            path=path,
            config=config,
            seed=seed,
            on_progress=show,
            outcomes=outcomes,
        )
    _tell(console, result, histories, len(item_ids))
    return card_of(result.path, result.version), result.metrics


def _check(histories: Histories) -> None:
    if len(histories.rows) < 100:
        raise ValueError(
            f"{len(histories.rows)} events of known items are too few to train on: at least 100, "
            "and their items must be among the items given"
        )


def _tell(console: Console, result: TrainResult, histories: Histories, n_items: int) -> None:
    console.print(
        f"{len(histories.rows):,} events of {len(histories.user_ids):,} users, {n_items:,} items "
        f"-> {result.path} (version {result.version})"
    )
    for name, value in result.metrics.items():
        console.print(f"  {name:24} {value:.4f}", highlight=False)


def publish_card(settings: Settings, card: ModelCard) -> None:
    """Have every `decide` serve a model; a trial is over with it, and one may go back."""
    rollout.write(settings, rollout.served(rollout.read(settings).card, card))
