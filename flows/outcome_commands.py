"""`pushflow train outcomes`: name, help and options of the command.

Reads   a teacher's file, and the archive: events, items, pushes and what became of them.
Emits   the teacher's file with heads of outcomes.
Owns    what a person sees while it runs; the work is in `models.teacher_outcomes`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flows.settings import Settings

console = Console(stderr=True)

Archive = Annotated[
    str, typer.Argument(help="Directory or fsspec URL; that of the settings without.")
]
TeacherFile = Annotated[Path, typer.Option("--teacher", help="Of `pushflow train teacher`.")]
Out = Annotated[Path, typer.Option(help="The file to write.")]
Until = Annotated[str | None, typer.Option(help="Leave out what is from then on, 2026-03-01.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Written after each epoch; a run that was stopped goes on from it."),
]
ByChance = Annotated[
    bool, typer.Option(help="Weigh each push by 1 / propensity, at most ten times the mean.")
]
Epochs = Annotated[int, typer.Option(min=1, help="At most; training stops when it has enough.")]
Seed = Annotated[int, typer.Option(help="Of the heads and the order of pushes.")]


def add_command(
    app: typer.Typer, settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]
) -> None:
    """Give `pushflow train` the command; `settings` and `fail` are those of `flows.cli`."""

    @app.command()
    def outcomes(
        path: Archive = "",
        teacher: TeacherFile = Path("teacher.safetensors"),
        out: Out = Path("outcomes.safetensors"),
        until: Until = None,
        checkpoint: Checkpoint = None,
        by_chance: ByChance = True,
        epochs: Epochs = 10,
        seed: Seed = 1,
    ) -> None:
        """Teach the teacher what becomes of pushes: opened, converted, dismissed, opted out.

        pushflow train outcomes s3://bucket/archive --teacher t.safetensors --checkpoint o.pt

        The archive's pushes of items that the teacher knows, whose windows have closed: four
        fifths train, the newest judge. The table has the log-loss of each outcome on those, and
        that of its base rate: a head is worth something where it loses less.
        """
        try:
            from flows import archived
            from flows.decide import rules
            from flows.training import of_items
            from models.teacher_checkpoint import CheckpointError
            from models.teacher_file import TeacherFileError, load_teacher, save_outcomes
            from models.teacher_outcomes import OutcomeTraining, tune_outcomes
            from models.text import encode_texts
        except ImportError as error:
            fail(f"{error}. Training needs more packages: pip install 'pushflow[train]'")
        from flows.replay import parse_time
        from operators.archive_files import Place
        from operators.archive_names import ArchiveError

        current = settings()
        try:
            known, item_ids = load_teacher(teacher)
            until_ms = parse_time(until) if until else archived.FOR_EVER_MS
            place = Place(path or current.archive.url)
            with console.status("reading") as status:
                log = archived.push_log(current, place, until_ms)
                histories, texts = of_items(
                    archived.events(place, until_ms),
                    archived.items(place, until_ms),
                    rules(current),
                    item_ids,
                )
                console.print(f"{len(log.user_ids):,} pushes, {len(histories.rows):,} events")
                tuned = tune_outcomes(
                    known,
                    histories,
                    encode_texts(texts),
                    item_ids,
                    log,
                    config=OutcomeTraining(epochs=epochs, by_chance=by_chance),
                    seed=seed,
                    checkpoint=checkpoint,
                    on_progress=lambda at: status.update(
                        f"epoch {at.epoch} of {at.epochs}, log-loss {at.loss:.4f}"
                    ),
                )
        except (ArchiveError, ValueError, CheckpointError, TeacherFileError) as error:
            fail(str(error))
        version = save_outcomes(out, tuned.model, item_ids, tuned.metrics)
        console.print(_table(tuned.metrics))
        console.print(f"-> {out} (version {version})")
        told = {"path": str(out), "version": version, **tuned.metrics}
        sys.stdout.write(orjson.dumps(told).decode() + "\n")


def _table(metrics: dict[str, float]) -> Table:
    table = Table("outcome", "log-loss", "of the base rate")
    for name, value in metrics.items():
        if (base := metrics.get(f"{name}_of_base_rate")) is not None:
            table.add_row(name.removesuffix("_log_loss"), f"{value:.4f}", f"{base:.4f}")
    return table
