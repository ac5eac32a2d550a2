"""What a comparison of next-item models says: a table, and one JSON object.

Reads   the answers of the models to the same requests.
Emits   means with intervals, and the differences that the models are judged by.
"""

from typing import Any, Final

import numpy as np
from rich.table import Table

from flows.model_arms import Arm, Comparison, Data, Plan
from models.candidate_metrics import Mean
from models.next_item import CUTS, Judge

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
    judge = _judge(data, plan, found)
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
        "repeats": plan.repeats,
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
    columns = (f"hr@{_K}", _METRIC, "95%", f"mrr@{_K}", f"coverage@{_K}", f"novelty@{_K}")
    for column in ("model", *columns):
        made.add_column(column, justify="left" if column == "model" else "right")
    for name, own in summed["models"].items():
        interval = own[_METRIC]
        made.add_row(
            name,
            *(f"{own[f'hr@{_K}']['value']:.4f}", f"{interval['value']:.4f}"),
            f"{interval['low']:.4f} - {interval['high']:.4f}",
            *(f"{own[f'mrr@{_K}']['value']:.4f}", f"{own[f'coverage@{_K}']:.3f}"),
            f"{own[f'novelty@{_K}']:.2f}",
        )
    return made


def _judge(data: Data, plan: Plan, found: Comparison) -> Judge:
    return Judge(
        found.exam,
        known_s=data.split.cuts[0],
        n_items=len(data.item_ids),
        seed=plan.seeds[0],
    )


def _numbers(arm: Arm, judge: Judge) -> dict[str, Any]:
    means = judge.means(arm.runs)
    spread = {
        name: round(value, 4) for cut in CUTS for name, value in judge.spread(arm.runs, cut).items()
    }
    by_seed = [round(judge.means([run])[_METRIC].value, 4) for run in arm.runs]
    return {
        **{name: _rounded(mean) for name, mean in means.items()},
        **spread,
        f"{_METRIC}_by_seed": by_seed,
        f"{_METRIC}_deviation": round(float(np.std(by_seed, ddof=1)), 4) if by_seed[1:] else None,
        "settings": arm.settings,
    }


def _rounded(mean: Mean) -> dict[str, float]:
    return {name: round(value, 4) for name, value in mean._asdict().items()}
