"""`pushflow replay`: names and help of the commands.

Owns    names and help, and what a person is told when one fails; the work is in `flows.replay`,
        which is loaded when a command runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.recorded import Recording
    from flows.settings import Settings

console = Console(stderr=True)

Speed = Annotated[
    float, typer.Option(help="Seconds of event time a second; 3600 is an hour; 0: all it takes.")
]
Limit = Annotated[int | None, typer.Option(help="Send at most this many events.")]
From = Annotated[str | None, typer.Option("--from", help="Leave out what is before, 2011-03-01.")]
Until = Annotated[str | None, typer.Option(help="Leave out what is from then on.")]


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help="Send recorded data to Kafka.", no_args_is_help=True)

    def send(
        recording: "Recording", speed: float, limit: int | None, start: str | None, end: str | None
    ) -> None:
        from flows.replay import Pace, parse_time, replay
        from operators.kafka_client import KafkaFailure
        from operators.kafka_sink import Writer

        current = settings()
        try:
            pace = Pace(
                speed=speed,
                limit=limit,
                from_ms=parse_time(start) if start else None,
                until_ms=parse_time(end) if end else None,
            )
            writer = Writer(current.kafka.client())
            totals = replay(recording, writer, current.topics, pace, console)
        except (KafkaFailure, ValueError) as error:
            fail(str(error))
        sys.stdout.write(orjson.dumps(totals._asdict()).decode() + "\n")
        sys.stdout.flush()

    @app.command()
    def retail(
        path: Annotated[Path, typer.Argument(help="online_retail.csv or .csv.gz", exists=True)],
        speed: Speed = 0.0,
        limit: Limit = None,
        start: From = None,
        until: Until = None,
    ) -> None:
        """Send an online shop's invoices: purchases and refunds, with items and users."""
        from flows.recorded import retail as recorded

        send(recorded(path), speed, limit, start, until)

    @app.command()
    def movielens(
        path: Annotated[
            Path, typer.Argument(help="Folder with ratings.csv, movies.csv, tags.csv.")
        ],
        speed: Speed = 0.0,
        limit: Limit = None,
        start: From = None,
        until: Until = None,
    ) -> None:
        """Send MovieLens ratings and tags, with films as items."""
        from flows.recorded import movielens as recorded

        if not (path / "ratings.csv").is_file():
            fail(f"{path} has no ratings.csv: give the folder of a MovieLens data set")
        send(recorded(path), speed, limit, start, until)

    @app.command()
    def events(
        path: Annotated[str, typer.Argument(help="JSON lines, plain or gzip; - reads the input.")],
        topic: Annotated[str, typer.Option(help="Topic that the lines are of.")] = "push.events.v1",
        speed: Speed = 0.0,
        limit: Limit = None,
        start: From = None,
        until: Until = None,
    ) -> None:
        """Send our own messages from a file, byte for byte."""
        from flows.recorded import json_lines

        if path != "-" and not Path(path).is_file():
            fail(f"no file {path}")
        try:
            recording = json_lines(path, topic)
        except ValueError as error:
            fail(str(error))
        send(recording, speed, limit, start, until)

    return app
