"""`pushflow state`: look into the state of a flow, copy it, put it in place, check it.

Owns    names and help of the commands; the work is in `flows.state_tools` and
        `operators.savepoints`, which are loaded when a command runs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flows.settings import Settings

console = Console(stderr=True)


class Flow(StrEnum):
    """Flows that keep state."""

    decide = "decide"
    learn = "learn"
    catalog = "catalog"


FlowName = Annotated[Flow, typer.Argument(help="decide, learn or catalog.")]


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help="A flow's state: look into it, copy it, check it.", no_args_is_help=True)

    @contextmanager
    def told() -> Iterator[None]:
        from operators.lineage import CheckpointError

        try:
            yield
        except CheckpointError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error}. If the flow started just now, try again")

    @app.command()
    def inspect(
        flow: FlowName,
        user: Annotated[str, typer.Option(help="Print this user's state, and no more.")] = "",
        lags: Annotated[
            bool, typer.Option("--lags", help="Ask Kafka how far each offset is behind.")
        ] = False,
    ) -> None:
        """Show what a flow would resume from: epoch, starts, keys and bytes, offsets.

        The flow may run meanwhile; what is shown is its last committed epoch.
        All of it is read: about a second for a million users.

        `starts` are the recovery stores that are kept: the newest, and the one before.
        `oldest_epoch` is how far back a start can go if the newest checkpoint is torn.
        `sources` are the next offsets to read, `sinks` the next ones to write.

        pushflow state inspect decide --user u17
        prints what is known of one user, by store: `users` (sessions, counters,
        recent items, consent), `pushes` (what was sent). For learn: `attribution`.
        """
        from flows import state_tools

        current = settings()
        with told():
            if user:
                found = state_tools.user(current, flow.value, user)
                if not found:
                    fail(f"no state of user {user}")
                _print(found)
                return
            found = state_tools.inspect(current, flow.value)
        if lags:
            found["lags"] = _lags(current, found["sources"], fail)
        _show(found)
        _print(found)

    @app.command()
    def verify(flow: FlowName) -> None:
        """Read every byte of a flow's state and unpack every user. Exit code 1 if any is wrong.

        A start looks only whether the files are there and of the right length;
        this finds a byte that changed on the disk too.
        """
        from flows import state_tools

        with told():
            found = state_tools.verify(settings(), flow.value)
        for wrong in found["wrong"]:
            console.print(wrong, style="red", markup=False, highlight=False)
        _print(found)
        raise typer.Exit(1 if found["wrong"] else 0)

    @app.command()
    def export(
        flow: FlowName,
        dest: Annotated[
            str, typer.Argument(help="Directory or fsspec URL (s3://...); with --json not needed.")
        ] = "",
        json: Annotated[
            Path | None,
            typer.Option(help="Write all states as JSON lines here: store, shard, key, state."),
        ] = None,
    ) -> None:
        """Copy a flow's state as of one epoch: a savepoint. The flow may run meanwhile.

        A second export to the same place sends only what is not there yet, and keeps the first.
        `pushflow state import` puts the newest one in place of a missing state;
        a flow then goes on from there, and loses and repeats nothing.
        """
        from flows import state_tools
        from flows.decide import STORES
        from operators.savepoints import Place, hold

        if not dest and json is None:
            fail("nothing to do: give DEST, or --json FILE, or both")
        current = settings()
        found: dict[str, Any] = {}
        with told():
            if dest:
                home = current.state.directory / flow.value
                with hold(home, STORES[flow.value]) as held:
                    found |= Place(dest, flow.value).save(held)._asdict()
            if json is not None:
                found["json_rows"] = state_tools.dump(current, flow.value, json)
        _print(found)

    @app.command("import")
    def import_(
        flow: FlowName,
        source: Annotated[str, typer.Argument(help="Where `pushflow state export` wrote to.")],
    ) -> None:
        """Put the newest whole savepoint in place of a missing state.

        Where there is a state it is left alone: stop the flow and move it away first.
        """
        from operators.savepoints import Place

        with told():
            home = settings().state.directory / flow.value
            number, epoch = Place(source, flow.value).restore(home)
        _print({"number": number, "epoch": epoch, "directory": str(home)})

    return app


def _lags(
    current: "Settings", sources: dict[str, dict[str, int]], fail: Callable[[str], NoReturn]
) -> dict[str, dict[str, int]]:
    from flows import state_tools
    from operators.kafka_client import KafkaFailure

    try:
        return state_tools.lags(current, sources)
    except KafkaFailure as error:
        fail(str(error))


def _show(found: dict[str, Any]) -> None:
    console.print(f"{found['flow']}: resumes from epoch {found['epoch']}")
    stores = Table("store", "shards", "keys", "packed bytes", "bytes on disk")
    for store, values in found["stores"].items():
        stores.add_row(store, *(f"{value:,}" for value in values.values()))
    console.print(stores)
    offsets = Table("topic", "partition", "next offset", "behind")
    for topic, parts in found["sources"].items():
        for part, offset in parts.items():
            behind = found.get("lags", {}).get(topic, {}).get(part, "")
            offsets.add_row(topic, part, f"{offset:,}", str(behind))
    console.print(offsets)


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()
