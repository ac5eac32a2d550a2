"""`pushflow ope`: what a policy would have earned, from the log of another.

Owns    names and help of the commands; the work is in `flows.ope_archive`, `flows.ope_open_bandit`
        and `models.ope`, which are loaded when a command runs.
"""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.settings import Settings
    from models.ope import Report

console = Console(stderr=True)

_HELP = """Judge policies from a log before a user meets them.

The log says with which probability each arm could have been chosen. A decision that a new
policy would make twice as often counts twice (its weight), and so the log tells what the new
policy would have earned. How much it can tell depends on the weights:

1. Look at ESS first: so many decisions the log is worth for that policy. Where ESS is below
100, one decision has over 5% of all weight, the tail is too long (Pareto k), choices are not in
the log, the mean weight is not 1, or hardly anybody answered, the verdict is refused, and the
estimates mean nothing: log with a higher PUSHFLOW_RANKING__FLOOR, or for longer.
2. Then at the difference to `logged`, the policy that decided: better or worse where its
interval leaves out 0, else even. --detect tells how many decisions a difference takes.
3. dr is what the verdict goes by: a reward model, corrected by the weighted errors that it
makes. snips needs no model. If the two disagree by more than their intervals, trust neither.

ips: weights alone. sndr, snips: divided by the sum of the weights. dm: the model alone.
clipped_ips, switch_dr, dros: weights held down by a setting s, chosen for the least squared
error. These four trade bias for noise: they have no interval, and the bias is in `error`.
Intervals are of a bootstrap over users; those called Bernstein hold for any distribution and are
far wider.
"""


class Campaign(StrEnum):
    """Campaigns of Open Bandit."""

    all = "all"
    men = "men"
    women = "women"


class Behaviour(StrEnum):
    """Policies of Open Bandit."""

    random = "random"
    bts = "bts"


class By(StrEnum):
    """What decisions can be told apart by."""

    trigger = "trigger"
    campaign = "campaign"
    arm = "arm"
    policy = "policy"


Detect = Annotated[
    float | None,
    typer.Option(min=1e-9, help="Say how many decisions a difference so large takes."),
]
Plot = Annotated[Path | None, typer.Option(help="Draw the intervals here, .png or .svg.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap and the reward model's folds.")]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")]
Draws = Annotated[int, typer.Option(min=200, help="Of the bootstrap.")]


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help=_HELP, no_args_is_help=True)

    @app.command()
    def archive(
        path: Annotated[
            str, typer.Argument(help="Directory or fsspec URL; that of the settings without.")
        ] = "",
        policy: Annotated[
            list[str] | None,
            typer.Option(help="NAME or NAME:SETTING=VALUE,...; may be given several times."),
        ] = None,
        start: Annotated[
            str | None,
            typer.Option(
                "--from",
                help="Judge on decisions from then on, 2026-03-01; the later half without.",
            ),
        ] = None,
        until: Annotated[
            str | None, typer.Option(help="Leave out what is from then on, 2026-04-01.")
        ] = None,
        by: Annotated[By | None, typer.Option(help="Show segments.")] = None,
        detect: Detect = None,
        plot: Plot = None,
        confidence: Confidence = 0.95,
        draws: Draws = 2_000,
        seed: Seed = 1,
    ) -> None:
        """Judge policies on the decisions and rewards that `pushflow run archive` keeps.

        pushflow ope archive --policy squarecb:gamma=500 --policy greedy:floor=0.01 --by trigger

        Names and settings of policies are those of PUSHFLOW_RANKING__*: what is not given is as
        set there. Without --policy: uniform, greedy, and the one that is set.

        A candidate has learned from the pushes whose windows had closed before the first
        decision that it is judged on, and learns nothing after that. Sending nothing counts as
        0, as does a push that reached nobody.
        """
        try:
            from flows import archived, ope_archive
        except ImportError as error:
            fail(f"{error}. The archive needs pyarrow: pip install 'pushflow[archive]'")
        from flows.replay import parse_time
        from models.ope import evaluate
        from models.ope_interval import Resampling
        from operators.archive_files import Place
        from operators.archive_names import ArchiveError

        current = settings()
        texts = policy or list(dict.fromkeys(["uniform", "greedy", current.ranking.policy]))
        try:
            with console.status("reading"):
                trial = ope_archive.trial(
                    current,
                    Place(path or current.archive.url),
                    [ope_archive.parse(text) for text in texts],
                    from_ms=parse_time(start) if start else None,
                    until_ms=parse_time(until) if until else archived.FOR_EVER_MS,
                    by=by.value if by else None,
                )
            with console.status("evaluating"):
                how = Resampling(confidence, draws, seed)
                report = evaluate(trial.log, trial.targets, how=how)
        except (ArchiveError, ValueError) as error:
            fail(str(error))
        console.print(f"candidates learned from {trial.n_learned:,} pushes")
        extra = {"learned": trial.n_learned, "from_ms": trial.from_ms}
        tell(report, extra, detect, plot, "what policies would have earned")

    @app.command("open-bandit")
    def open_bandit(
        path: Annotated[
            Path,
            typer.Argument(help="Wheel of obp, or folder of BEHAVIOUR/CAMPAIGN.", exists=True),
        ],
        campaign: Annotated[Campaign, typer.Option(help="Which shop's part.")] = Campaign.women,
        behaviour: Annotated[Behaviour, typer.Option(help="Who logged.")] = Behaviour.random,
        target: Annotated[Behaviour, typer.Option(help="Who is judged.")] = Behaviour.bts,
        detect: Detect = None,
        plot: Plot = None,
        confidence: Confidence = 0.95,
        draws: Draws = 2_000,
        seed: Seed = 1,
    ) -> None:
        """Judge a policy of the Open Bandit data set by the log of the other.

        pip download --no-deps obp==0.4.1

        pushflow ope open-bandit obp-0.4.1-*.whl --behaviour bts --target random

        Both policies ran in the same week, so the truth is known: the clicks in the target's
        own log. Try men, then women: of the latter one log has an ESS of 2.
        """
        from flows import ope_open_bandit as files
        from models.ope import evaluate
        from models.ope_interval import Resampling

        try:
            shown = files.read(path, behaviour.value, campaign.value)
            targets = {}
            if target != behaviour:
                targets = {
                    target.value: files.target(path, target.value, campaign.value, shown, seed=seed)
                }
            with console.status("evaluating"):
                log = files.bandit_log(shown, behaviour.value, campaign.value)
                report = evaluate(log, targets, how=Resampling(confidence, draws, seed))
        except ValueError as error:
            fail(str(error))
        truth = _own_clicks(path, target.value, campaign.value)
        if truth is not None:
            console.print(f"{target.value} in its own log: {truth:.4g} clicks a place")
        tell(
            report,
            {"in_its_own_log": truth},
            detect,
            plot,
            f"{campaign.value}: {target.value} from the log of {behaviour.value}",
        )

    @app.command("sample-size")
    def sample_size(
        detect: Annotated[float, typer.Option(help="Difference to be found, reward units.")],
        deviation: Annotated[
            float, typer.Option(help="Standard deviation of the reward of a decision.")
        ],
        ess_share: Annotated[
            float,
            typer.Option(min=1e-6, max=1.0, help="ESS / decisions of the policy on such a log."),
        ] = 1.0,
        confidence: Confidence = 0.95,
        power: Annotated[
            float, typer.Option(min=0.5, max=0.999, help="Probability that it is found.")
        ] = 0.8,
    ) -> None:
        """Tell how many decisions it takes to find a difference, from a log and by an experiment.

        pushflow ope sample-size --detect 0.01 --deviation 0.3 --ess-share 0.4

        A log tells of all policies at once, each at the price of its ESS; an experiment needs
        users for each arm. With a log of your own, `pushflow ope archive --detect` is closer: it
        knows how far the two policies agree.
        """
        from models.ope_interval import decisions_needed

        try:
            # One policy's mean against a known one; a log's decisions count ESS / n each.
            of_log = decisions_needed(
                deviation, 1, detect, confidence=confidence, power=power, share=ess_share
            )
            per_arm = decisions_needed(
                deviation * 2**0.5, 1, detect, confidence=confidence, power=power
            )
        except ValueError as error:
            fail(str(error))
        console.print(f"from a log: {of_log:,} decisions; by an experiment: {per_arm:,} an arm")
        _print_json({"log": of_log, "experiment_per_arm": per_arm})

    def tell(
        report: "Report",
        extra: dict[str, Any],
        detect: float | None,
        path: Path | None,
        title: str,
    ) -> None:
        from flows import ope

        ope.show(console, report, detect=detect)
        if path is not None:
            try:
                ope.plot(report, path, title)
            except ImportError as error:
                fail(f"{error}. A plot needs matplotlib: pip install 'pushflow[evaluate]'")
            console.print(f"-> {path}")
        _print_json(ope.as_json(report, detect=detect) | extra)

    return app


def _own_clicks(path: Path, policy: str, campaign: str) -> float | None:
    """Return the clicks a place in a policy's own log, None where that is not there."""
    from flows.ope_open_bandit import read

    try:
        return float(read(path, policy, campaign).clicks.mean())
    except ValueError:
        return None


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
    sys.stdout.flush()
