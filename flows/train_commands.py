"""`pushflow train`: the commands that train the student, by where its events come from.

Owns    names and help, and what a person is told when one fails; the work is in `flows.teach`,
        which is loaded when a command runs. What else can be trained adds its own commands.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.settings import Settings
    from models.push_log import PushLog
    from operators.messages import Event, Item

console = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="The model file to write.")]
Epochs = Annotated[int, typer.Option(min=1, help="At most; training stops when it has enough.")]
Seed = Annotated[int, typer.Option(help="Of weights and the order of batches.")]
Until = Annotated[str | None, typer.Option(help="Leave out what is from then on.")]
Baskets = Annotated[
    bool, typer.Option("--baskets", help="Ask for all of one second before the first of it.")
]
Publish = Annotated[
    bool, typer.Option("--publish", help="Send its card to push.models.v1: decide takes it up.")
]


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help="Train the student, or the fusion of modes.", no_args_is_help=True)

    def train(
        events: "Iterable[Event]",
        items: "Iterable[Item]",
        out: Path,
        *,
        epochs: int,
        seed: int,
        baskets: bool,
        publish: bool,
        pushes: "PushLog | None" = None,
    ) -> None:
        try:
            from flows.teach import publish_card, teach
            from models.train import TrainConfig
        except ImportError as error:
            fail(f"{error}. Training needs torch: pip install 'pushflow[train]'")
        from operators.kafka_client import KafkaFailure

        try:
            config = TrainConfig(epochs=epochs, baskets=baskets)
            card, metrics = teach(
                settings(),
                events,
                items,
                out,
                config=config,
                seed=seed,
                console=console,
                pushes=pushes,
            )
            if publish:
                publish_card(settings(), card)
        except (KafkaFailure, ValueError) as error:
            fail(str(error))
        found = {"path": card.path, "version": card.version, **metrics}
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
        sys.stdout.flush()

    @app.command()
    def retail(
        path: Annotated[Path, typer.Argument(help="online_retail.csv or .csv.gz", exists=True)],
        out: Out = Path("student.pfm"),
        until: Until = None,
        epochs: Epochs = 12,
        seed: Seed = 1,
        baskets: Baskets = False,
        publish: Publish = False,
    ) -> None:
        """Train on an online shop's invoices.

        With --baskets it learns what the next invoice holds, which is what a push between two is
        about; without, what goes with what an invoice holds already, too.
        """
        from flows.recorded import retail as recorded
        from flows.training import recorded_events, recorded_items

        recording = recorded(path)
        events, items = recorded_events(recording, until), recorded_items(recording)
        train(events, items, out, epochs=epochs, seed=seed, baskets=baskets, publish=publish)

    @app.command()
    def movielens(
        path: Annotated[
            Path, typer.Argument(help="Folder with ratings.csv, movies.csv, tags.csv.")
        ],
        out: Out = Path("student.pfm"),
        until: Until = None,
        epochs: Epochs = 12,
        seed: Seed = 1,
        baskets: Baskets = False,
        publish: Publish = False,
    ) -> None:
        """Train on MovieLens ratings."""
        from flows.recorded import movielens as recorded
        from flows.training import recorded_events, recorded_items

        if not (path / "ratings.csv").is_file():
            fail(f"{path} has no ratings.csv: give the folder of a MovieLens data set")
        recording = recorded(path)
        events, items = recorded_events(recording, until), recorded_items(recording)
        train(events, items, out, epochs=epochs, seed=seed, baskets=baskets, publish=publish)

    @app.command()
    def topics(
        out: Out = Path("student.pfm"),
        epochs: Epochs = 12,
        seed: Seed = 1,
        baskets: Baskets = False,
        publish: Publish = False,
    ) -> None:
        """Train on what push.events.v1 and push.items.v1 hold now."""
        from flows.training import topic_events, topic_items

        current = settings()
        events, items = topic_events(current), topic_items(current)
        train(events, items, out, epochs=epochs, seed=seed, baskets=baskets, publish=publish)

    @app.command()
    def archive(
        path: Annotated[
            str, typer.Argument(help="Directory or fsspec URL; that of the settings without.")
        ] = "",
        out: Out = Path("student.pfm"),
        until: Until = None,
        epochs: Epochs = 12,
        seed: Seed = 1,
        baskets: Baskets = False,
        outcomes: Annotated[
            bool, typer.Option("--outcomes", help="Learn from what became of pushes, too.")
        ] = False,
        publish: Publish = False,
    ) -> None:
        """Train on what `pushflow run archive` has kept: events, and items as they were then.

        With --outcomes each push whose time to be answered is over counts by 1 / its probability,
        and the pushes of the test's stretch judge: reward_later is what they earned,
        reward_later_by_student what they would have by the student's own order, which is worth as
        much as an average of pushes_effective pushes.
        """
        try:
            from flows import archived
        except ImportError as error:
            fail(f"{error}. The archive needs pyarrow: pip install 'pushflow[archive]'")
        from flows.replay import parse_time
        from operators.archive_files import Place
        from operators.archive_names import ArchiveError

        current = settings()
        try:
            until_ms = parse_time(until) if until else archived.FOR_EVER_MS
            place = Place(path or current.archive.url)
            events, items = archived.events(place, until_ms), archived.items(place, until_ms)
            pushes = archived.push_log(current, place, until_ms) if outcomes else None
            train(
                events,
                items,
                out,
                epochs=epochs,
                seed=seed,
                baskets=baskets,
                publish=publish,
                pushes=pushes,
            )
        except (ArchiveError, ValueError) as error:
            fail(str(error))

    return app
