"""`pushflow train value`: name, help and options of the command.

Owns    what a person sees while it runs; the work is in `models.value_training`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.settings import Settings

console = Console(stderr=True)

Archive = Annotated[
    str, typer.Argument(help="Directory or fsspec URL; that of the settings without.")
]
Out = Annotated[Path, typer.Option(help="The file to write.")]
Until = Annotated[str | None, typer.Option(help="Leave out what is from then on, 2026-03-01.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Written after each epoch; a run that was stopped goes on from it."),
]
Session = Annotated[float, typer.Option(min=0, help="What a session is worth; an open is 1.")]
HalfLife = Annotated[float, typer.Option(min=0.1, help="Days after which rewards count half.")]
Conservatism = Annotated[float, typer.Option(min=0, help="Reward units; 0 is plain double Q.")]
Epochs = Annotated[int, typer.Option(min=1, help="At most.")]
Seed = Annotated[int, typer.Option(help="Of weights, users kept aside, and order of batches.")]


def add_command(
    app: typer.Typer, settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]
) -> None:
    """Give `pushflow train` the command; `settings` and `fail` are those of `flows.cli`."""

    @app.command()
    def value(
        path: Archive = "",
        out: Out = Path("value.pfv"),
        until: Until = None,
        checkpoint: Checkpoint = None,
        session: Session = 0.2,
        half_life_days: HalfLife = 14.0,
        conservatism: Conservatism = 0.003,
        epochs: Epochs = 20,
        seed: Seed = 1,
    ) -> None:
        """Learn from the archive what the next push costs in the long run.

        pushflow train value

        PUSHFLOW_RANKING__VALUE_PATH=value.pfv pushflow run decide

        Decisions, what pushes earned by PUSHFLOW_REWARDS__*, and sessions teach it
        what follows a push and what follows a hold. decide takes the difference
        for the value of "none": an item is sent where it is expected to earn more.

        The table shows what a user earns from the first decision on, discounted,
        by the policy that logged, and by those that send where it pays in the long
        run, always, and never: fitted-Q evaluation on the users that training kept
        aside, with 95% intervals by a bootstrap over users. Where the log hardly
        did what a policy does its interval is wide.
        """
        try:
            from flows import archived
            from flows.value_archived import archived_steps
            from flows.value_report import judged, table
            from models.value_data import Worth
            from models.value_training import (
                CheckpointError,
                ValueTraining,
                train_value,
                users_aside,
            )
        except ImportError as error:
            fail(f"{error}. Training needs more packages: pip install 'pushflow[train]'")
        from flows.replay import parse_time
        from operators.archive_files import Place
        from operators.archive_names import ArchiveError

        current = settings()
        try:
            until_ms = parse_time(until) if until else archived.FOR_EVER_MS
            place = Place(path or current.archive.url)
            worth = Worth(session=session, half_life_days=half_life_days)
            with console.status("reading") as status:
                log, user_ids = archived_steps(current, place, until_ms, worth)
                console.print(f"{len(log.actions):,} decisions of {len(user_ids):,} users")
                config = ValueTraining(conservatism=conservatism, epochs=epochs)
                trained = train_value(
                    log,
                    out,
                    config=config,
                    seed=seed,
                    checkpoint=checkpoint,
                    on_progress=lambda at: status.update(
                        f"epoch {at.epoch} of {at.epochs}, error {at.error:.4f}"
                    ),
                )
                status.update("evaluating")
                aside = log.of_users(users_aside(log, config, seed))
                found = judged(aside, out, seed=seed)
        except (ArchiveError, ValueError, CheckpointError) as error:
            fail(str(error))
        console.print(table(found))
        console.print(f"-> {out} (version {trained.version})")
        told = {"path": str(out), "version": trained.version, **trained.metrics, "value": found}
        sys.stdout.write(orjson.dumps(told).decode() + "\n")
