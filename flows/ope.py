"""What `pushflow ope` shows: values, differences and verdicts, as tables, a plot and JSON.

Reads   `models.ope.Report`.
Owns    what a person sees of it, and in which order: first whether the log can say anything at all.
"""

import math
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from models.ope import LOGGED, Judged, Pair, Report
from models.ope_interval import Estimate, decisions_needed
from models.ope_support import (
    LEAST_ANSWERED,
    LEAST_ESS,
    MOST_ERRORS,
    MOST_OF_ONE,
    MOST_UNSUPPORTED,
    most_k,
)

_COLOURS: Final = {"better": "green", "worse": "red", "even": "yellow", "refused": "red"}
_SHOWN: Final = ("dr", "sndr", "snips", "ips", "clipped_ips", "switch_dr", "dros", "dm")


def show(console: Console, report: Report, *, detect: float | None = None) -> None:
    """Print the report; `detect` is a difference for which to say how many decisions it takes."""
    console.print(f"{report.n:,} decisions of {report.n_groups:,} independent groups")
    console.print(_supports(report))
    console.print(_values(report))
    if report.segments:
        console.print(_segments(report))
    console.print(_pairs(report, detect))
    for judged in report.policies:
        for reason in judged.refusals:
            line = f"refused: {judged.name}: {reason}"
            console.print(line, style="red", markup=False, highlight=False)


def as_json(report: Report, *, detect: float | None = None) -> dict[str, Any]:
    """Return the report as plain values; NaN and infinity become null."""
    pairs = []
    for pair in report.pairs:
        told = {
            "first": pair.first,
            "second": pair.second,
            "verdict": pair.verdict,
            "reasons": pair.reasons,
            "dr": pair.dr._asdict(),
            "snips": pair.snips._asdict(),
        }
        pairs.append(told | ({"needed": needed(pair, report, detect)} if detect else {}))
    return {
        "n": report.n,
        "groups": report.n_groups,
        "confidence": report.confidence,
        "policies": [_plain(judged) for judged in report.policies],
        "pairs": pairs,
        "segments": [
            {"name": one.name, "n": one.n, "policies": [_plain(own) for own in one.policies]}
            for one in report.segments
        ],
    }


def needed(pair: Pair, report: Report, detect: float) -> int | None:
    """Return how many decisions like these would show a difference of `detect`."""
    if not pair.dr.error > 0:
        return None
    each = 1 - (1 - report.confidence) / len(report.pairs)
    return decisions_needed(pair.dr.error, report.n, detect, confidence=each)


def plot(report: Report, path: Path, title: str) -> None:
    """Draw each policy's estimates that have intervals; refused ones in grey."""
    import matplotlib as mpl

    mpl.use("Agg")  # before pyplot: there may be no display
    from matplotlib import pyplot as plt

    names = ("dr", "sndr", "snips", "ips")
    height = 0.6 + 0.22 * len(names) * len(report.policies)
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    ticks, labels, y = [], [], 0.0
    for judged in report.policies:
        for name in names:
            own = judged.estimates[name].estimate
            colour = "0.6" if judged.refusals else ("C0" if name == "dr" else "C1")
            axes.plot([own.low, own.high], [y, y], color=colour)
            axes.plot([own.value], [y], "o", color=colour, markersize=4)
            ticks.append(y)
            labels.append(f"{judged.name} {name}")
            y -= 1.0
        y -= 0.7
    axes.axvline(report.policies[0].estimates["ips"].estimate.value, color="0.8", zorder=0)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xlabel("reward a decision; grey: no verdict")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _plain(judged: Judged) -> dict[str, Any]:
    return {
        "name": judged.name,
        "support": judged.support._asdict(),
        "refusals": judged.refusals,
        "estimates": {
            name: {**own.estimate._asdict(), "bernstein": own.bernstein, "setting": own.setting}
            for name, own in judged.estimates.items()
        },
    }


def _supports(report: Report) -> Table:
    table = Table("weights", *(judged.name for judged in report.policies), "bound")
    all_of = [judged.support for judged in report.policies]
    rows: list[tuple[str, list[str], str]] = [
        ("effective decisions (ESS)", [f"{own.ess:,.0f}" for own in all_of], f">= {LEAST_ESS:.0f}"),
        ("largest weight", [f"{own.most_weight:,.1f}" for own in all_of], ""),
        ("its share of all", [f"{own.largest:.1%}" for own in all_of], f"<= {MOST_OF_ONE:.0%}"),
        ("share of the largest 1%", [f"{own.top_percent:.1%}" for own in all_of], ""),
        (
            "Pareto k of the tail",
            [_or_dash(own.pareto_k, ".2f") for own in all_of],
            f"<= {most_k(report.n):.2f}",
        ),
        (
            "mean weight",
            [f"{own.mean_weight:.2f} ± {own.mean_error:.2f}" for own in all_of],
            f"1 ± {MOST_ERRORS:.0f} errors",
        ),
        (
            "choices never logged",
            [_or_dash(own.unsupported, ".1%") for own in all_of],
            f"<= {MOST_UNSUPPORTED:.0%}",
        ),
        ("answered", [f"{own.answered:,}" for own in all_of], f">= {LEAST_ANSWERED}"),
    ]
    for name, cells, bound in rows:
        table.add_row(name, *cells, bound)
    return table


def _values(report: Report) -> Table:
    title = f"{report.confidence:.0%} interval"
    table = Table("policy", "by", "reward a decision", "error", title, "Bernstein", "s")
    for judged in report.policies:
        # By the logging policy's own log, weights alone give the plain mean.
        names = ("ips",) if judged.name == LOGGED else _SHOWN
        for place, name in enumerate(names):
            own = judged.estimates[name]
            estimate, setting = own.estimate, own.setting
            table.add_row(
                judged.name if place == 0 else "",
                "mean" if judged.name == LOGGED else name,
                f"{estimate.value:.4g}",
                f"{estimate.error:.2g}",
                _span(estimate.low, estimate.high),
                "" if own.bernstein is None else _span(*own.bernstein),
                "" if setting is None else f"{setting:.3g}",
                style="dim" if judged.refusals else None,
                end_section=place == len(names) - 1,
            )
    return table


def _segments(report: Report) -> Table:
    names = [judged.name for judged in report.policies]
    table = Table("segment, dr", "decisions", *names)
    for segment in report.segments:
        cells = [
            _interval(own.estimates["dr"].estimate) if not own.refusals else "[red]refused"
            for own in segment.policies
        ]
        table.add_row(segment.name or "-", f"{segment.n:,}", *cells)
    return table


def _pairs(report: Report, detect: float | None) -> Table:
    table = Table(f"difference, {report.confidence:.0%} together", "dr", "snips", "verdict")
    if detect is not None:
        table.add_column(f"decisions to see {detect:g}")
    for pair in report.pairs:
        colour = _COLOURS[pair.verdict]
        row = [f"{pair.first} - {pair.second}", _interval(pair.dr), _interval(pair.snips)]
        row.append(f"[{colour}]{pair.verdict}")
        if detect is not None:
            wanted = needed(pair, report, detect)
            row.append("-" if wanted is None else f"{wanted:,}")
        table.add_row(*row)
    return table


def _interval(of: Estimate) -> str:
    return f"{of.value:.4g} ({_span(of.low, of.high)})"


def _span(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4g} to {high:.4g}"


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
