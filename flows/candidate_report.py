"""What `pushflow evaluate candidates` says at its end: a table, a JSON object, a picture.

Reads   `flows.candidate_trial.Result`.
Emits   `summary` (the report's fields), `tables` for the terminal, `plot` as PNG.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib
import orjson
from rich.table import Table

from flows.candidate_period import CUTS, K, Merging
from flows.candidate_trial import MERGED, TUNED, Plan, Result, Row, Split
from models.candidate_metrics import Mean

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

_COLOURS: Final = {"baseline": "tab:grey", "source": "tab:blue", "merge": "tab:orange"}
_DIGITS: Final = 4  # more would claim what a few thousand cases cannot know


def summary(data: str, split: Split, plan: Plan, result: Result) -> dict[str, Any]:
    """Return the report: numbers, strings, lists and null alone."""
    return {
        "data": data,
        "k": K,
        "validation_from": _day(split.validation_ms),
        "test_from": _day(split.test_ms),
        "until": _day(split.end_ms),
        "seed": plan.seed,
        "hold_out": plan.hold_out,
        "counts": result.counts,
        "methods": {row.name: _method(row) for row in result.rows},
        "with_hidden_items": {row.name: _cold(row) for row in result.cold},
        **{
            f"lead_of_{'tuned' if merge == TUNED else merge}": {
                name: _mean(lead) for name, lead in leads.items()
            }
            for merge, leads in result.lead.items()
        },
        **({"settings": environment(result.tuned)} if result.tuned else {}),
    }


def environment(merging: Merging) -> str:
    """Return the settings of a merge as `decide` reads them, on one line.

    >>> print(*environment(Merging({"trend": 0.25}, {"trend": 300}, 100)).split(), sep=chr(10))
    PUSHFLOW_CANDIDATES__RRF=100
    PUSHFLOW_CANDIDATES__DEPTHS='{"trend":300}'
    PUSHFLOW_CANDIDATES__WEIGHTS='{"trend":0.25}'
    """
    named = {"RRF": str(merging.rrf)}
    for name, values in ("DEPTHS", merging.depths), ("WEIGHTS", merging.weights):
        named[name] = f"'{orjson.dumps(dict(values)).decode()}'"
    return " ".join(f"PUSHFLOW_CANDIDATES__{name}={value}" for name, value in named.items())


def _method(row: Row) -> dict[str, Any]:
    worth = row.worth
    return {
        "kind": row.kind,
        **{f"recall@{cut}": _mean(worth.recall[cut]) for cut in CUTS},
        f"recall@{K}_all": _mean(worth.recall_all),
        "coverage": round(worth.coverage, _DIGITS),
        "novelty_bits": _number(worth.novelty),
        "options": {name: _number(value) for name, value in row.options.items()},
        "settings_tried": row.n_tried,
    }


def _cold(row: Row) -> dict[str, Any]:
    warm, cold = row.worth.warm, row.worth.cold
    share = cold.value / warm.value if warm.value else float("nan")
    return {"warm": _mean(warm), "cold": _mean(cold), "cold_to_warm": _number(share)}


def _mean(mean: Mean) -> dict[str, float | None]:
    return {"mean": _number(mean.value), "low": _number(mean.low), "high": _number(mean.high)}


def _number(value: float) -> float | None:
    """Return a rounded number; null for one that JSON does not know: NaN, or no half-life."""
    return round(value, _DIGITS) if abs(value) < float("inf") else None


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")


def tables(result: Result) -> Iterator[Table]:
    """Yield the report as tables for people."""
    counts = result.counts["test"]
    last = TUNED if TUNED in result.lead else MERGED
    out = Table(
        title=f"recall of new items, {counts['cases']:,} cases of {counts['users']:,} users",
        caption=f"after ±: half of the 95% interval; lead: of {last!r}, and its interval",
        title_justify="left",
    )
    out.add_column("method", style="bold")
    for name in (*(f"@{cut}" for cut in CUTS), f"all @{K}", "coverage", "novelty", "lead"):
        out.add_column(name, justify="right")
    for row in result.rows:
        worth, lead = row.worth, result.lead[last].get(row.name)
        out.add_row(
            row.name,
            *(_told(worth.recall[cut]) for cut in CUTS),
            _told(worth.recall_all),
            f"{worth.coverage:.2f}",
            f"{worth.novelty:.1f}",
            f"{lead.value:+.3f} ({lead.low:+.3f} to {lead.high:+.3f})" if lead else "",
            end_section=row.name == "ALS",
            style="bold" if row.kind == "merge" else "",
        )
    yield out
    if not result.cold:
        return
    cold = Table(title=f"recall@{K} with a share of the items hidden", title_justify="left")
    cold.add_column("method", style="bold")
    for name in ("warm", "cold", "cold / warm"):
        cold.add_column(name, justify="right")
    for row in result.cold:
        warm_of, cold_of = row.worth.warm, row.worth.cold
        share = f"{cold_of.value / warm_of.value:.0%}" if warm_of.value else "-"
        cold.add_row(row.name, _told(warm_of), _told(cold_of), share)
    yield cold


def _told(mean: Mean) -> str:
    return f"{mean.value:.4f} ±{(mean.high - mean.low) / 2:.3f}"


def plot(result: Result, path: Path, title: str) -> None:
    """Draw recall of new items with intervals, and warm beside cold items."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    for place, row in enumerate(result.rows):
        found = row.worth.recall[K]
        error = [[found.value - found.low], [found.high - found.value]]
        left.barh(place, found.value, xerr=error, capsize=3, color=_COLOURS[row.kind])
    left.set_yticks(range(len(result.rows)), [row.name for row in result.rows])
    left.set_title(f"recall@{K} of new items, 95%")
    for place, row in enumerate(result.cold):
        warm, cold = row.worth.warm.value, row.worth.cold.value
        first = place == 0
        right.barh(place - 0.2, warm, 0.4, color="tab:red", label="warm" if first else None)
        right.barh(place + 0.2, cold, 0.4, color="tab:cyan", label="cold" if first else None)
    right.set_yticks(range(len(result.cold)), [row.name for row in result.cold])
    right.set_title(f"recall@{K}, a share of items hidden")
    if result.cold:
        right.legend()
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
