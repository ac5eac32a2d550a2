"""What a comparison of next-item models says: a table, and one JSON object.

Reads   the answers of the models to the same requests.
Emits   means with intervals, the differences that the models are judged by, a plot.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from rich.table import Table

from flows.model_arms import Arm, Comparison, Data, Plan
from models.candidate_metrics import Mean
from models.next_item import CUTS, Judge

mpl.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

_K: Final = 10  # of the table
_METRIC: Final = f"ndcg@{_K}"
# What the differences are between: ours first.
_PAIRS: Final = (
    ("teacher", "SASRec"),
    ("student", "teacher"),
    ("distilled", "teacher"),
    ("distilled", "student"),
)


def summary(name: str, kind: str, data: Data, plan: Plan, found: Comparison) -> dict[str, Any]:
    """Return all numbers as one JSON object."""
    judge = Judge(
        found.exam,
        known_s=data.split.cuts[0],
        vectors=found.vectors,
        seed=plan.seeds[0],
    )
    arms = {arm.name: arm for arm in found.arms}
    gains = {
        f"{ours}-{theirs}": _rounded(judge.gain(arms[ours].runs, arms[theirs].runs, _METRIC))
        for ours, theirs in _PAIRS
        if ours in arms and theirs in arms
    }
    return {
        "evaluate": "models",
        "data": name,
        "split": kind,
        "items": len(data.item_ids),
        "events": len(data.split.histories.rows),
        "requests": len(found.exam.events),
        "until_s": int(data.split.histories.time_s.max()),
        "repeats": plan.repeats,
        "baskets": plan.baskets,
        "ties": "against the model",
        "seeds": list(plan.seeds),
        "tries": plan.tries,
        "budget": plan.budget,
        "models": {arm.name: _numbers(arm, judge) for arm in found.arms},
        f"gain_{_METRIC}": gains,
    }


def table(summed: dict[str, Any]) -> Table:
    """Return the table that people read, from `summary`."""
    title = (
        f"{summed['data']}: the next of {summed['items']:,} items, {summed['requests']:,} requests"
        f", {summed['split']}, seeds {', '.join(map(str, summed['seeds']))}"
    )
    made = Table(title=title)
    means = f"mrr@{_K}", "auc"
    shown = "calibration_error", f"coverage@{_K}", f"novelty@{_K}", f"diversity@{_K}"
    columns = (f"hr@{_K}", _METRIC, "95%", *means, *shown)
    for column in ("model", *columns):
        made.add_column(column, justify="left" if column == "model" else "right")
    for name, own in summed["models"].items():
        interval = own[_METRIC]
        made.add_row(
            name,
            *(f"{own[f'hr@{_K}']['value']:.4f}", f"{interval['value']:.4f}"),
            f"{interval['low']:.4f} - {interval['high']:.4f}",
            *(f"{own[column]['value']:.4f}" for column in means),
            *(f"{own[column]:.3f}" for column in shown),
        )
    return made


def folded(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the report of folds that roll through time, from each one's `summary`.

    A model's number is the mean over folds; the deviation is among folds.
    """
    last = folds[-1]
    models: dict[str, dict[str, Any]] = {}
    for name in last["models"]:
        own = [fold["models"][name] for fold in folds]
        measured = [key for key, value in own[0].items() if isinstance(value, dict)]
        models[name] = {
            key: _over_folds([one[key]["value"] for one in own])
            for key in measured
            if key != "settings"
        }
    kept = {key: last[key] for key in ("evaluate", "data", "items", "repeats", "ties", "seeds")}
    return {**kept, "split": "rolling", "models": models, "folds": list(folds)}


def folds_table(report: dict[str, Any]) -> Table:
    """Return the table of `folded`."""
    title = f"{report['data']}: {_METRIC} of {len(report['folds'])} folds that roll through time"
    made = Table(title=title)
    names = [f"fold {place}" for place, _ in enumerate(report["folds"], start=1)]
    for column in ("model", *names, "mean", "deviation"):
        made.add_column(column, justify="left" if column == "model" else "right")
    for name, own in report["models"].items():
        each = [fold["models"][name][_METRIC]["value"] for fold in report["folds"]]
        found = own[_METRIC]
        numbers = (*each, found["value"], found["deviation"])
        made.add_row(name, *(f"{number:.4f}" for number in numbers))
    return made


def plot(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each model's NDCG@10 with its interval, a panel a report of `summary`."""
    figure, panels = plt.subplots(
        1, len(reports), figsize=(1 + 5 * len(reports), 4), squeeze=False, sharey=True
    )
    for axes, report in zip(panels[0], reports, strict=True):
        for place, own in enumerate(report["models"].values()):
            found = own[_METRIC]
            error = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axes.barh(place, found["value"], xerr=error, capsize=3, color="tab:blue")
        axes.set_yticks(range(len(report["models"])), list(report["models"]))
        axes.set_title(f"{_METRIC}, 95%, {report['requests']:,} requests", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].invert_yaxis()
    figure.suptitle(f"{reports[0]['data']}, {reports[0]['split']}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _over_folds(values: list[float]) -> dict[str, float]:
    return {
        "value": round(float(np.mean(values)), 4),
        "deviation": round(float(np.std(values, ddof=1)), 4) if values[1:] else 0.0,
    }


def _numbers(arm: Arm, judge: Judge) -> dict[str, Any]:
    means = judge.means(arm.runs)
    spread = {
        name: round(value, 4) for cut in CUTS for name, value in judge.spread(arm.runs, cut).items()
    }
    by_seed = [round(judge.means([run])[_METRIC].value, 4) for run in arm.runs]
    return {
        **{name: _rounded(mean) for name, mean in means.items()},
        **spread,
        "calibration_error": round(judge.calibration(arm.runs), 4),
        f"{_METRIC}_by_seed": by_seed,
        f"{_METRIC}_deviation": round(float(np.std(by_seed, ddof=1)), 4) if by_seed[1:] else None,
        "settings": arm.settings,
    }


def _rounded(mean: Mean) -> dict[str, float]:
    return {name: round(value, 4) for name, value in mean._asdict().items()}
