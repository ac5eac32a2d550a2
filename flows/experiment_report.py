"""What `pushflow experiment` shows: tables for people, and the picture of a sequence.

Reads   `flows.experiment.Report`, `flows.apprentice.Watched`.
Emits   tables; a PNG of the confidence sequence of one metric.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from flows.experiment import Arm, Report
from models.apprentice import APPRENTICE
from models.experiments import Compared, Look
from models.ope import LOGGED
from models.ope_interval import Estimate

if TYPE_CHECKING:
    from flows.apprentice import Watched  # its reading needs pyarrow

_COUNTED: Final = ("sends", "opens", "clicks", "conversions", "purchases", "opt_outs")
_LEARNERS: Final = {
    "shared": "every arm goes by what all arms' pushes taught",
    "separated": "an arm goes by what its own pushes taught",
}
_OUTCOMES: Final = {"promote": "green", "wait": "yellow", "reject": "red"}
_MOST_POINTS: Final = 2_000  # drawn of a sequence


def show(found: Report, metric: str, console: Console) -> None:
    """Print the arms, and what they do beside the control or why that is not said."""
    console.print(_arms(found.arms))
    split = found.split
    mark = "[red]not as set" if split.is_wrong else "[green]as set"
    console.print(f"split {mark}[/]: p = {split.p_value:.3g}, any look {split.anytime_p_value:.3g}")
    console.print(f"learners {found.learners}: {_LEARNERS[found.learners]}", highlight=False)
    for note in found.notes:
        console.print(note, style="yellow", markup=False, highlight=False)
    for reason in found.refusals:
        console.print(f"no report: {reason}", style="red", markup=False, highlight=False)
    if not found.refusals:
        console.print(_compared(found, metric))


def _arms(arms: list[Arm]) -> Table:
    table = Table("arm", "share", "users", "over", *_COUNTED, "reward a user", show_edge=False)
    for arm in arms:
        reward = arm.totals["reward"] / arm.n_over if arm.n_over else float("nan")
        counts = [f"{arm.totals[name]:,.0f}" for name in _COUNTED]
        users = [f"{arm.n_users:,}", f"{arm.n_over:,}"]
        table.add_row(arm.name, f"{arm.share:.2%}", *users, *counts, f"{reward:+.4f}")
    return table


def _compared(found: Report, metric: str) -> Table:
    title = f"beside {found.control}: {metric} first, a user"
    table = Table(
        *("arm", "metric", "difference", "planned look", "any look", "p, any look", "lift"),
        *("CUPED: difference", "any look", "p, any look"),
        title=title,
        title_justify="left",
        show_edge=False,
    )
    for arm, metrics in found.compared.items():
        for name in sorted(metrics, key=lambda name: name != metric):  # it first, the rest as is
            one = metrics[name]
            if one.look is None or one.adjusted is None:
                table.add_row(arm, name, "too few users", *[""] * 7)
                continue
            table.add_row(arm, name, *_cells(one.look), *_adjusted_cells(one.adjusted))
    return table


def _cells(look: Look) -> list[str]:
    lift = "-" if look.lift is None else f"{look.lift:+.1%}"
    if look.lift_anytime_half is not None:
        lift += f" ± {look.lift_anytime_half:.1%}"
    halves = [f"± {half:.4f}" for half in (look.half, look.anytime_half)]
    return [f"{look.difference:+.4f}", *halves, f"{look.anytime_p_value:.2g}", lift]


def _adjusted_cells(look: Look) -> list[str]:
    return [
        f"{look.difference:+.4f}",
        f"± {look.anytime_half:.4f}",
        f"{look.anytime_p_value:.2g}",
    ]


def show_apprentice(found: "Watched", console: Console) -> None:
    """Print what an apprentice would have earned, and the verdict."""
    verdict = found.verdict
    if verdict.report is not None:
        table = Table("a decision", "ips", "snips", "dr", "effective", show_edge=False)
        titles = {LOGGED: f"{found.served}, serving", APPRENTICE: f"{found.apprentice}, apprentice"}
        for policy in verdict.report.policies:
            cells = [_interval(policy.estimates[name].estimate) for name in ("ips", "snips", "dr")]
            table.add_row(titles[policy.name], *cells, f"{policy.support.ess:,.0f}")
        console.print(table)
        span = f"{verdict.low:+.4f} to {verdict.high:+.4f} at any look"
        console.print(f"difference {verdict.difference:+.4f}, {span}", highlight=False)
    console.print(f"it expected {found.expected:+.4f} in its own unit", highlight=False)
    console.print(
        f"[{_OUTCOMES[verdict.outcome]}]{verdict.outcome}[/] by {found.n_decisions:,} decisions: "
        + "; ".join(verdict.reasons),
        highlight=False,
    )
    if verdict.outcome == "promote":
        console.print(f"promote it: PUSHFLOW_RANKING__POLICY={found.apprentice}", highlight=False)


def _interval(of: Estimate) -> str:
    return f"{of.value:+.4f} ({of.low:+.4f} to {of.high:+.4f})"


def plot(found: Report, metric: str, path: Path) -> None:
    """Draw how the difference and both of its intervals went, one panel an arm.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")  # before pyplot: there may be no display
    from matplotlib import pyplot as plt

    drawn = {arm: metrics[metric] for arm, metrics in found.compared.items() if metric in metrics}
    if not drawn:
        return
    figure, axes = plt.subplots(
        len(drawn), figsize=(8, 3 * len(drawn)), sharex=True, squeeze=False, layout="constrained"
    )
    for (arm, one), axis in zip(drawn.items(), axes[:, 0], strict=True):
        _draw(axis, found, one)
        axis.set_title(f"{arm} less {found.control}: {metric} a user, CUPED", loc="left")
        axis.axhline(0, color="black", linewidth=0.8)
    axes[0, 0].legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: object, found: Report, one: Compared) -> None:
    sequence = one.sequence
    kept = np.unique(np.linspace(0, len(sequence.at) - 1, _MOST_POINTS).astype(np.int64))
    if not len(sequence.at):
        return
    over_ms = found.over_ms[sequence.at[kept]].tolist()
    at = [datetime.fromtimestamp(ms / 1_000, UTC) for ms in over_ms]
    middle = sequence.differences[kept]
    for halves, alpha, label in (
        (sequence.anytime_halves[kept], 0.25, "holds at every look"),
        (sequence.halves[kept], 0.45, "holds at one planned look"),
    ):
        axis.fill_between(at, middle - halves, middle + halves, alpha=alpha, label=label)  # type: ignore[attr-defined]
    axis.plot(at, middle, color="tab:blue")  # type: ignore[attr-defined]
