"""`pushflow archive`: hold the archive against its topics, erase users from it.

Owns    names and help of the commands; the work is in `flows.archive_tools`, which is loaded when
        a command runs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flows.archive_tools import Compared
    from flows.settings import Settings

console = Console(stderr=True)


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(
        help="What `pushflow run archive` keeps as Parquet, for training.", no_args_is_help=True
    )

    @contextmanager
    def told() -> "Iterator[None]":
        from operators.archive_names import ArchiveError
        from operators.kafka_client import KafkaFailure

        try:
            yield
        except ImportError as error:
            fail(f"{error}. The archive needs pyarrow: pip install 'pushflow[archive]'")
        except (KafkaFailure, ArchiveError) as error:
            fail(str(error))

    @app.command()
    def verify() -> None:
        """Compare the archive with its topics: count and checksum by partition.

        Compared are the messages that are in a file, that Kafka still has, and
        whose user was not erased.
        `behind` are messages in no file yet: while `pushflow run archive` runs,
        those of the last PUSHFLOW_ARCHIVE__FILE_SECONDS.
        `older` are rows that Kafka has deleted since.
        Items are left out: their topic is compacted, and the archive is not.

        Prints a table, and last one line of JSON. Exit code 1 where something
        differs.
        """
        current = settings()
        with told(), console.status("reading") as status:
            from flows.archive_tools import COMPARED, Erased, compare

            erased = Erased.read(current)
            rows = []
            for topic in COMPARED:
                status.update(f"reading {topic}")
                rows += compare(current, topic, erased)
        _show(rows)
        is_equal = all(row.is_equal for row in rows)
        _print_json({"is_equal": is_equal, "rows": [row._asdict() for row in rows]})
        raise typer.Exit(0 if is_equal else 1)

    @app.command()
    def erase() -> None:
        """Remove the rows of the users that push.erasures.v1 names.

        Rows up to the erasure's own time go; a user who came back keeps the later ones.
        Run it each day, and at least once in the 90 days that the topic keeps.
        A file that is merged at that very moment keeps its rows until the next run.

        Prints the rows removed, as one line of JSON.
        """
        current = settings()
        with told(), console.status("reading"):
            from flows.archive_tools import erase

            removed = erase(current)
        _print_json({"removed": removed})

    return app


def _print_json(value: "dict[str, Any]") -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def _show(rows: "list[Compared]") -> None:
    table = Table("topic", "", "in Kafka", "in files", "checksum", "behind", "older", "")
    for row in rows:
        mark = "[green]equal" if row.is_equal else "[red]differs"
        if row.n_missing:
            mark = f"[red]{row.n_missing} offsets lost between files"
        counts = [f"{n:,}" for n in (row.n_topic, row.n_archive)]
        later = [f"{n:,}" for n in (row.n_behind, row.n_older)]
        checksum = f"{row.archive_checksum:016x}"
        table.add_row(row.topic, str(row.partition), *counts, checksum, *later, mark)
    console.print(table)
