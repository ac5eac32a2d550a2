"""What the demo says at its end: a table, a JSON object, a picture of the learning.

Reads   `flows.tally.Tally`, and the counters of `decide` and `learn` as `Counters`.
Emits   `summary` (the report's fields), `table` for the terminal, `plot` as PNG.

`lost` is triggers less distinct decisions, `duplicates` decisions that were read twice. `lift` is
the policy's open rate over the random arm's, less 1. Both rates are over the whole run, the
learner's first steps included; `*_last_half` tell how it stood later.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from flows.tally import ARMS, Counters, Tally, lift

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

_HOUR_MS: Final = 3_600_000
_BIN_HOURS: Final = 6
_COLOURS: Final = {"policy": "tab:blue", "random": "tab:orange"}


class Run(NamedTuple):
    """What was asked for, and how long it took."""

    seed: int
    users: int
    seconds: float  # wall clock, of the loop itself
    simulated_s: float  # event time
    training_s: float = 0.0  # wall clock, of the training before it
    exit_codes: tuple[int, ...] = ()
    models: Sequence[dict[str, Any]] = ()  # what is shown of each


def summary(run: Run, tally: Tally, counters: Counters) -> dict[str, Any]:
    """Return the report: numbers, strings, lists and null alone."""
    policy, random = tally.rate("policy"), tally.rate("random")
    value, interval = lift(policy, random, run.seed)
    pushed, held_out = tally.purchases_per_user()
    report = {
        "seed": run.seed,
        "users": run.users,
        "seconds": run.seconds,
        "simulated_days": run.simulated_s / 86_400,
        "training_seconds": run.training_s,
        "events_sent": tally.events_sent,
        "events_decoded": counters.decoded_events,
        "events_per_second": tally.events_sent / run.seconds if run.seconds else None,
        "feedback_sent": tally.feedback_sent,
        "rubbish_sent": tally.rubbish_sent,
        "dead_letters": counters.dead_letters,
        "triggers": counters.triggers,
        "decisions": dict(sorted(tally.outcomes.items())),
        "reasons": dict(sorted(tally.reasons.items())),
        "lost": counters.triggers - tally.n_decisions,
        "duplicates": tally.duplicates,
        "sends_policy": policy.sends,
        "sends_random": random.sends,
        "open_rate_policy": policy.value,
        "open_rate_random": random.value,
        **{f"open_rate_{arm}_last_half": tally.late_rate(arm).value for arm in ARMS},
        "lift": value,
        "lift_ci95": interval,
        "opted_out": tally.feedback["opted_out"],
        "converted": tally.feedback["converted"],
        "purchases_per_pushed_user": pushed,
        "purchases_per_holdout_user": held_out,
        "rewards_learned": counters.rewards,
        "p50_ms": tally.latency_ms(50),
        "p99_ms": tally.latency_ms(99),
        "latency_decisions": tally.n_latencies,
        "exit_codes": list(run.exit_codes),
    }
    return {key: _rounded(field) for key, field in report.items()} | {"models": list(run.models)}


def _rounded(value: Any) -> Any:
    """Round floats to 4 decimals: more would claim what one run cannot know."""
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def table(report: dict[str, Any]) -> Table:
    """Return the report as a table for people."""
    out = Table(title="pushflow demo", show_header=False, title_justify="left")
    out.add_column(style="bold")
    out.add_column()

    def percent(key: str) -> str:
        value = report[key]
        return "-" if value is None else f"{100 * value:.1f}%"

    def number(key: str) -> str:
        value = report[key]
        return (
            "-" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
        )

    edges = report["lift_ci95"]
    within = f" (95%: {100 * edges[0]:.0f}% to {100 * edges[1]:.0f}%)" if edges else ""
    counts = ", ".join(f"{name} {n:,}" for name, n in report["decisions"].items())
    rows = {
        "events": f"{number('events_sent')} sent, {number('events_decoded')} decoded, "
        f"{number('events_per_second')}/s",
        "bad messages": f"{number('rubbish_sent')} sent, {number('dead_letters')} dead letters",
        "decisions": f"{number('triggers')} triggers: {counts}",
        "lost, duplicates": f"{number('lost')}, {number('duplicates')}",
        "opens, policy": f"{percent('open_rate_policy')} of {number('sends_policy')}, "
        f"last half {percent('open_rate_policy_last_half')}",
        "opens, random": f"{percent('open_rate_random')} of {number('sends_random')}, "
        f"last half {percent('open_rate_random_last_half')}",
        "lift": percent("lift") + within,
        "event to decision": f"p50 {number('p50_ms')} ms, p99 {number('p99_ms')} ms, "
        "the harness's polling included",
        "rewards learned": number("rewards_learned"),
    }
    for name, text in rows.items():
        out.add_row(name, text)
    return out


def curve(tally: Tally, arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return an arm's sends in the order of event time: hours since the first, and 1 if opened."""
    first = min((send.decided_at for send in tally.sends.values()), default=0)
    rows = sorted(
        ((send.decided_at - first) / _HOUR_MS, float(decision_id in tally.opened))
        for decision_id, send in tally.sends.items()
        if send.arm == arm
    )
    both = np.array(rows, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def windowed(
    hours: NDArray[np.float64], opened: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return middles of windows of 6 h that have sends, their open rates, and standard errors.

    >>> middle, rate, error = windowed(np.array([1.0, 2.0, 7.0]), np.array([1.0, 0.0, 1.0]))
    >>> middle.tolist(), rate.tolist(), error.round(3).tolist()
    ([3.0, 9.0], [0.5, 1.0], [0.354, 0.0])
    """
    window = (hours // _BIN_HOURS).astype(np.int64)
    sends = np.bincount(window)
    opens = np.bincount(window, weights=opened)
    (full,) = np.nonzero(sends)
    rate = np.asarray(opens[full] / sends[full], np.float64)
    error = np.sqrt(rate * (1 - rate) / sends[full])
    middle = np.asarray((full + 0.5) * _BIN_HOURS, np.float64)
    return middle, rate, error


def plot(tally: Tally, path: Path, title: str) -> None:
    """Draw the learning curve: open rates of both arms, cumulative and in windows of 6 h."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for arm in ARMS:
        hours, opened = curve(tally, arm)
        if not len(hours):
            continue
        colour, label = _COLOURS[arm], f"{arm}, {len(hours):,} sends"
        sofar = np.cumsum(opened) / np.arange(1, len(opened) + 1)
        skip = min(20, len(hours) - 1)  # the first few make any rate
        left.plot(hours[skip:], sofar[skip:], color=colour, label=label)
        middle, rate, error = windowed(hours, opened)
        right.errorbar(middle, rate, yerr=error, color=colour, marker="o", capsize=3, label=label)
    left.set_title("all sends so far")
    right.set_title("windows of 6 h, with standard error")
    for axes in (left, right):
        axes.set_xlabel("hours of event time")
        axes.set_ylabel("opens / sends")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
