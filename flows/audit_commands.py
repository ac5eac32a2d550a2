"""`pushflow audit`: every logged probability computed again.

Owns    name and help of the command; the work is in `flows.audit` and `flows.audit_report`, which
        are loaded when it runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.audit_sources import Log
    from flows.settings import Settings

console = Console(stderr=True)


def add_command(
    app: typer.Typer, settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]
) -> None:
    """Add the command; `settings` and `fail` are those of `flows.cli`."""

    @app.command()
    def audit(
        log: Annotated[
            Path | None,
            typer.Option(help="A directory that `pushflow demo --log` wrote, or JSON lines."),
        ] = None,
        archive: Annotated[
            str, typer.Option(help="Directory or URL of an archive, read in the topics' place.")
        ] = "",
        json: Annotated[bool, typer.Option("--json", help="No table, one line of JSON.")] = False,
    ) -> None:
        """Compute every logged probability again, and say what does not agree.

        Reads push.decisions.v1, or --log, or --archive.

        Of each decision that a policy was asked for: its probabilities from
        the logged values and settings, their sum (1 within 1e-6), the floor,
        the propensity, and the draw that its id makes.
        Where the rows of push.policy.v1 that it names are at hand, its values
        too, from the logged columns. The topic is compacted: it has the
        newest rows alone, an archive none, a directory of --log all.
        Where there is feedback, the policy's IPS estimate on its own log.

        PUSHFLOW_LEARNING__PRIOR_PRECISION and PUSHFLOW_REWARDS__* must be as
        they were when the log was written.

        Prints a table, and last one line of JSON. Exit code 1 where anything
        does not agree, or was not logged in full.
        """
        import msgspec

        from flows.audit_report import as_json, run, table, verdict
        from operators.archive_names import ArchiveError
        from operators.kafka_client import KafkaFailure

        current = settings()
        try:
            with console.status("reading"):
                report = run(current, _log(current, log, archive))
        except ImportError as error:
            fail(f"{error}. An archive needs pyarrow: pip install 'pushflow[archive]'")
        except (KafkaFailure, ArchiveError, OSError) as error:
            fail(str(error))
        except msgspec.DecodeError as error:
            fail(f"this is no log of decisions: {error}")
        if not report.audit.n_asked:
            fail("there is no decision in this log that a policy was asked for")
        if not json:
            console.print(table(report))
        for line in verdict(report):
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.stdout.write(orjson.dumps(as_json(report)).decode() + "\n")
        raise typer.Exit(0 if report.is_clean else 1)


def _log(settings: "Settings", path: Path | None, archive: str) -> "Log":
    from flows.audit_sources import Archive, Directory, Topics

    if path is not None:
        return Directory(path)
    return Archive(archive) if archive else Topics(settings)
