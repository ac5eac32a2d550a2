"""`pushflow models`: put a model on trial, look at it, promote it, take it back.

Owns    names and help of the commands; the work is in `flows.rollout`, which is loaded when a
        command runs.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from flows.rollout import Standing
    from flows.settings import Settings
    from models.trial_verdict import Check
    from operators.messages import ModelCard, TrialStage

console = Console(stderr=True)


class Stage(StrEnum):
    """How a model begins."""

    shadow = "shadow"
    canary = "canary"
    served = "served"


Share = Annotated[float, typer.Option(min=0.0, max=1.0, help="Of users that are on trial.")]
CanaryShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Of users in canary.")]
_STYLES = {"pass": "green", "wait": "yellow", "fail": "red"}

_HELP = """Models: on trial, served, taken back.

1. pushflow models publish student.pfm --stage shadow: it scores a share of users beside the
served model; nothing changes but the log.
2. pushflow models promote: it decides for a share of users (canary).
3. pushflow models promote: it decides for all.
pushflow models rollback takes it off at any stage; once it serves, the one before comes back.
pushflow models watch does 2, 3 or the rollback by itself, as soon as the guard says so.

Every process of decide follows within a second or so: it loads the file beside the served model
and changes over between two batches. A file that is corrupt, made for other features or too slow
is refused there, the served model goes on, and `list` shows which process refuses it and why.
The path must lead to the file on every host.

Who is on trial follows from the user's id and the model's version.
The guard's bounds are PUSHFLOW_MODELS__*.

With PUSHFLOW_MODELS__MLFLOW_URI each command also tells MLflow's registry: the model served is
@champion of PUSHFLOW_MODELS__MLFLOW_NAME, the one on trial @challenger.
"""


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help=_HELP, no_args_is_help=True)

    @contextmanager
    def told() -> Iterator[None]:
        from flows.model_registry import RegistryError
        from flows.rollout import RolloutError
        from models.serving import ModelFileError, ModelMismatchError
        from operators.kafka_client import KafkaFailure

        broken = ModelFileError, ModelMismatchError
        try:
            yield
        except (KafkaFailure, RegistryError, RolloutError, *broken) as error:
            fail(str(error))

    @app.command()
    def publish(
        path: Annotated[Path, typer.Argument(help="The model file.")],
        stage: Annotated[Stage, typer.Option(help="Where it begins.")] = Stage.shadow,
        share: Share = 0.1,
        force: Annotated[
            bool, typer.Option("--force", help="Of served: take it however slow it is.")
        ] = False,
        from_mlflow: Annotated[
            str,
            typer.Option(
                "--from-mlflow",
                metavar="ALIAS",
                help="Or a version's number, of the registry: its file is written to PATH first.",
            ),
        ] = "",
    ) -> None:
        """Put a model on trial beside the served one, or have it serve at once.

        The first model has nothing to be tried beside: --stage served.
        """
        from flows import rollout
        from flows.model_registry import Registry, RegistryError

        with told():
            current = settings()
            if from_mlflow:
                uri = current.models.mlflow_uri.get_secret_value()
                if not uri:
                    raise RegistryError("no registry: set PUSHFLOW_MODELS__MLFLOW_URI")
                Registry(uri, current.models.mlflow_name).fetch(from_mlflow, path)
            ref, now = rollout.ref_of(path), rollout.read(current)
            if stage is Stage.served:
                card = rollout.served(now.card, ref, is_forced=force)
            else:
                begins = rollout.ends(current)
                begun: TrialStage = "shadow" if stage is Stage.shadow else "canary"
                card = rollout.on_trial(now.card, ref, begun, share, begins)
            _put(current, card)

    @app.command("list")
    def list_() -> None:
        """Show what is served, what is on trial, and what each process of decide makes of it."""
        from flows import rollout

        with told():
            now = rollout.read(settings())
        _show(now)
        sys.stdout.write(orjson.dumps(_values(now)).decode() + "\n")

    @app.command()
    def promote(
        share: CanaryShare = 0.1,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what the guard says, change nothing.")
        ] = False,
        force: Annotated[bool, typer.Option("--force", help="Whatever the guard says.")] = False,
    ) -> None:
        """Let the model on trial go on: from shadow to canary, from canary to all users.

        The guard must be content: every process of decide has taken it up, it is fast enough
        beside the served one, its order of items is not another altogether, and with 95%
        confidence neither calibration nor reward is worse than the bounds. Exit code 1 if not.
        """
        from flows import rollout
        from models.trial_verdict import outcome

        with told():
            current = settings()
            now = rollout.read(current)
            checks = rollout.judge(current, now, _now_ms())
            _show_checks(checks)
            verdict = outcome(checks)
            if dry_run or (verdict != "promote" and not force):
                found = {"outcome": verdict, "checks": [check._asdict() for check in checks]}
                sys.stdout.write(orjson.dumps(found).decode() + "\n")
                raise typer.Exit(0 if dry_run else 1)
            begins = rollout.ends(current)
            card = rollout.promoted(now.card, share, begins, is_forced=force)
            _put(current, card)

    @app.command()
    def rollback() -> None:
        """Take the model on trial off; where none is, serve the one before again."""
        from flows import rollout

        with told():
            current = settings()
            _put(current, rollout.rolled_back(rollout.read(current).card))

    @app.command()
    def watch(
        every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 60.0,
        share: CanaryShare = 0.1,
    ) -> None:
        """Promote or roll back the model on trial by the guard, until it serves or is off.

        Run it once for each trial. Exit code 0: it serves. 1: it was taken off.
        """
        from flows import rollout
        from models.trial_verdict import outcome

        with told():
            current = settings()
            while True:
                now = rollout.read(current)
                checks = rollout.judge(current, now, _now_ms())
                _show_checks(checks)
                verdict = outcome(checks)
                if verdict == "wait":
                    time.sleep(every)
                    continue
                if verdict == "promote":
                    card = rollout.promoted(now.card, share, rollout.ends(current))
                else:
                    card = rollout.rolled_back(now.card)
                _put(current, card)
                if card.trial is None:
                    raise typer.Exit(0 if verdict == "promote" else 1)

    return app


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _put(settings: "Settings", card: "ModelCard") -> None:
    """Have every process follow a card, and MLflow after them; tell of it."""
    from flows import rollout

    rollout.write(settings, card)
    _tell_card(card, _registered(settings, card))


def _registered(settings: "Settings", card: "ModelCard") -> dict[str, str | None] | None:
    """Return what MLflow's aliases are now, or why they are not; None without a registry.

    The card is written by then, so that no registry keeps a model from being taken back.
    """
    from flows.model_registry import Registry, RegistryError

    uri, name = settings.models.mlflow_uri.get_secret_value(), settings.models.mlflow_name
    if not uri:
        return None
    try:
        return {"name": name, **Registry(uri, name).follow(card)._asdict()}
    except RegistryError as error:
        text = f"MLflow does not know of it: {error}. The next command makes up for it."
        console.print(text, style="red", markup=False, highlight=False)
        return {"name": name, "error": str(error)}


def _tell_card(card: "ModelCard", registered: dict[str, str | None] | None) -> None:
    trial = card.trial
    console.print(f"served: {card.version}", highlight=False)
    if trial is not None:
        what = f"on trial: {trial.version}, {trial.stage} for {trial.share:.1%} of users"
        console.print(what, highlight=False)
    found: dict[str, Any] = {"served": card.version, "trial": None}
    if trial is not None:
        found["trial"] = {"version": trial.version, "stage": trial.stage, "share": trial.share}
    if registered is not None:
        found["mlflow"] = registered
    sys.stdout.write(orjson.dumps(found).decode() + "\n")


def _show(now: "Standing") -> None:
    card = now.card
    if card is None:
        console.print("no model: pushflow models publish FILE --stage served")
        return
    table = Table("", "version", "share", "path", show_edge=False)
    table.add_row("served", card.version, "", card.path)
    if card.trial is not None:
        trial = card.trial
        table.add_row(trial.stage, trial.version, f"{trial.share:.1%}", trial.path)
    if card.previous is not None:
        table.add_row("before", card.previous.version, "", card.previous.path)
    console.print(table)
    if not now.reports:
        return
    table = Table("process", "seen s ago", "served", "on trial", "p99 ms", show_edge=False)
    for report in now.reports:
        age_s = (_now_ms() - report.time_ms) / 1_000
        p99 = f"{report.served_p99 * 1_000:.2f} / {report.trial_p99 * 1_000:.2f}"
        trial_of = report.trial or "-"
        table.add_row(report.process, f"{age_s:.0f}", report.served, trial_of, p99)
    console.print(table)
    for report in now.reports:
        for version, reason in report.refusals.items():
            text = f"process {report.process} refuses {version}: {reason}"
            console.print(text, style="red", markup=False, highlight=False)


def _show_checks(checks: "list[Check]") -> None:
    table = Table("", "check", "found", show_edge=False)
    for check in checks:
        table.add_row(f"[{_STYLES[check.state]}]{check.state}[/]", check.name, check.detail)
    console.print(table)


def _values(now: "Standing") -> dict[str, Any]:
    card = msgspec.to_builtins(now.card)
    return {"card": card, "reports": msgspec.to_builtins(now.reports)}
