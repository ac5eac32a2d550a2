"""`pushflow experiment`: what arms do, how many users it takes, whether an apprentice may serve.

Owns    names and help of the commands; the work is in `flows.experiment` and
        `flows.apprentice`, which are loaded when a command runs.
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

if TYPE_CHECKING:
    from flows.settings import Settings

console = Console(stderr=True)
_DAY_MS = 86_400_000


class Where(StrEnum):
    """Where the log is read."""

    archive = "archive"
    topics = "topics"


Source = Annotated[Where, typer.Option(help="Read what `run archive` keeps, or Kafka.")]
Since = Annotated[str | None, typer.Option(help="Leave out what is before, 2026-03-01.")]
Until = Annotated[str | None, typer.Option(help="Leave out what is from then on.")]

_HELP = """Experiments: arms side by side, and policies that only watch.

Users are in arms by campaign: `experiment: {salt, holdout, arms}`. The holdout is one for all
campaigns, by PUSHFLOW_EXPERIMENTS__HOLDOUT_SALT.
"""


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help=_HELP, no_args_is_help=True)

    @contextmanager
    def told() -> "Iterator[None]":
        from flows.experiment import ExperimentError
        from operators.campaigns import CampaignError
        from operators.kafka_client import KafkaFailure

        try:
            yield
        except ImportError as error:
            fail(f"{error}. It needs pyarrow or matplotlib: pip install 'pushflow[archive,demo]'")
        except (KafkaFailure, CampaignError, ExperimentError, OSError, ValueError) as error:
            fail(str(error))

    @app.command()
    def report(
        campaign: Annotated[
            str, typer.Option(help="One of the experiment's; needed where there are several.")
        ] = "",
        source: Source = Where.archive,
        metric: Annotated[
            str, typer.Option(help="Put first and plotted: reward, opens, purchases, ...")
        ] = "reward",
        control: Annotated[
            str, typer.Option(help="Arm that the others are held against; random, else holdout.")
        ] = "",
        days: Annotated[
            float, typer.Option(min=0.01, help="Of each user, from the first exposure on.")
        ] = 7.0,
        before_days: Annotated[
            float, typer.Option(min=0, help="Of activity before that, for CUPED.")
        ] = 7.0,
        planned: Annotated[
            float, typer.Option(min=100, help="Users at which `any look` is narrowest.")
        ] = 10_000,
        alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="1 - confidence.")] = 0.05,
        since: Since = None,
        until: Until = None,
        plot: Annotated[Path | None, typer.Option(help="A PNG of how the metric went.")] = None,
    ) -> None:
        """Show what each arm did, and how sure the difference to the control is.

        A user counts once --days have passed since the first decision at which the arm could
        matter, and the answers are in.
        `planned look` holds if you look once, at a time set before. `any look` holds however
        often you look: stop when it leaves out 0. Neither is corrected for several arms.
        CUPED takes out what users did before.

        Says nothing, with exit code 1, where users are not split as set, or where the log of
        exposures is not complete. A split that was changed on the way makes it so: give the time
        of the change as --since. Prints tables, and last one line of JSON.
        """
        from flows import experiment, experiment_report
        from flows.exposures import METRICS

        if metric not in METRICS:
            fail(f"no metric {metric!r}; there are {', '.join(METRICS)}")
        with told():
            asked = experiment.Asked(
                is_of_archive=source is Where.archive,
                campaign_id=campaign,
                control=control,
                alpha=alpha,
                planned=planned,
                span_ms=round(days * _DAY_MS),
                before_ms=round(before_days * _DAY_MS),
                **_times(since, until),
            )
            found = experiment.report(settings(), asked)
            experiment_report.show(found, metric, console)
            if plot is not None and found.compared:
                experiment_report.plot(found, metric, plot)
        _print_json(experiment.values(found))
        raise typer.Exit(1 if found.refusals else 0)

    @app.command()
    def apprentice(
        policy: Annotated[
            str, typer.Option(help="The apprentice; without it the one that was asked most.")
        ] = "",
        margin: Annotated[
            float, typer.Option(min=0, help="Reward a decision that it may lose at most.")
        ] = 0.005,
        decisions: Annotated[
            int, typer.Option(min=100, help="Answered decisions that a verdict needs.")
        ] = 1_000,
        effective: Annotated[
            float, typer.Option(min=10, help="Effective decisions that a verdict needs.")
        ] = 200,
        planned: Annotated[
            float, typer.Option(min=100, help="Decisions at which the bound is closest.")
        ] = 10_000,
        since: Since = None,
        until: Until = None,
    ) -> None:
        """Say whether a policy that only watched may serve, by the archive.

        With PUSHFLOW_RANKING__APPRENTICE=linucb every decision logs what linucb would have done
        with the same arms, at PUSHFLOW_RANKING__APPRENTICE_SHARE of triggers. Nothing else changes.

        promote: with 95% confidence, however often you look, it loses less than --margin.
        reject: it loses more. wait: not known yet, and why.

        To promote it set PUSHFLOW_RANKING__POLICY to its name, unset the apprentice or have the
        policy before as one, and start decide again.
        Exit code 0: promote. 1: wait or reject.
        """
        from flows import apprentice as watching
        from flows.archived import FOR_EVER_MS
        from flows.experiment_report import show_apprentice
        from models.apprentice import Rule

        with told():
            rule = Rule(margin, decisions, effective, planned=planned)
            times = {"since_ms": 0, "until_ms": FOR_EVER_MS} | _times(since, until)
            found = watching.watched(
                settings(), rule, policy, from_ms=times["since_ms"], until_ms=times["until_ms"]
            )
        show_apprentice(found, console)
        _print_json(watching.values(found))
        raise typer.Exit(0 if found.verdict.outcome == "promote" else 1)

    @app.command()
    def size(
        mean: Annotated[float, typer.Option(help="Of the metric a user, in the control.")],
        lift: Annotated[float, typer.Option(help="To be found, relative: 0.05.")],
        spread: Annotated[
            float | None,
            typer.Option(min=0, help="Standard deviation a user; without it, of a rate."),
        ] = None,
        treated: Annotated[float, typer.Option(min=1e-4, max=1, help="Share of users.")] = 0.5,
        control: Annotated[float, typer.Option(min=1e-4, max=1, help="Share of users.")] = 0.5,
        correlation: Annotated[
            float, typer.Option(min=-0.999, max=0.999, help="With activity before, for CUPED.")
        ] = 0.0,
        alpha: Annotated[float, typer.Option(min=1e-6, max=0.5)] = 0.05,
        power: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.8,
    ) -> None:
        """Say how many users it takes to find a difference.

        `planned look`: look once, when they are all in. `any look`: look as often as you like,
        and give that number to `report --planned`; a larger difference ends it sooner.
        """
        from models.experiments import users_to_find

        if lift == 0 or mean == 0:
            fail("a lift of 0, or a mean of 0, cannot be found")
        if treated + control > 1 + 1e-9:
            fail("shares of more than 1")
        if spread is None:
            if not 0 < mean < 1:
                fail("--spread is needed where the metric is not a rate")
            spread = (mean * (1 - mean)) ** 0.5
        found = users_to_find(
            abs(mean * lift),
            spread * (1 - correlation**2) ** 0.5,
            (treated, control),
            alpha=alpha,
            power=power,
        )
        for name, n in found._asdict().items():
            console.print(f"{name.replace('_', ' ')}: {n:,} users of all arms", highlight=False)
        _print_json(found._asdict())

    return app


def _times(since: str | None, until: str | None) -> dict[str, int]:
    from flows.replay import parse_time

    given = {"since_ms": since, "until_ms": until}
    return {name: parse_time(text) for name, text in given.items() if text}


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()
