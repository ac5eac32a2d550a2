"""Send or hold: 30 simulated days with and without a value of "none", and the curve between.

    python -m bench.value [--log-users N] [--users N] [--seeds N] [--days N] [--picture PATH]

The world is `flows.long_run`: pushes tire, rests let recover, some users leave. It has 3 items to
choose from at each decision, and the caps of `operators.messages.Caps`.

log       the myopic policy, SquareCB with "none" worth 0, explores strongly and learns: the log
value     `models.value_training` learns from this log, and from nothing else, what holding is worth
myopic    SquareCB as it is served, "none" worth 0, from what the log's learner knew
aware     the same with the value file

Both are run on users and luck that neither log nor training met, the same for both, and go on
learning. The curves sweep a bar that is added to the value of "none": what a team could reach by
turning a threshold by hand, online, for both. Intervals are 95%, of the mean difference of a user
under both policies.

Fitted-Q evaluation is asked on the log's users that training kept aside what the two policies,
frozen, are worth, and held against `--truth-days` of the world, of the same users. Sizes and
settings of training were chosen on seeds 1 and 101, which no number here is of.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
import matplotlib.pyplot as plt

from flows.long_run import MakePolicy, Played, play
from flows.value_report import features_of
from models.learner import RewardLearner
from models.policy import AuditedPolicy, SquareCB
from models.posterior import Posterior, merge
from models.value import ValueFunction
from models.value_data import Steps, Worth, steps
from models.value_evaluation import evaluate
from models.value_training import ValueTraining, train_value, users_aside

_PICTURE = Path(__file__).parent / "value.png"
_LOG_SEED, _FIRST_SEED = 11, 1_001
_BARS = {"myopic": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "aware": (-0.1, 0.0, 0.1, 0.2)}
MEASURES = ("pushes", "opens", "sessions", "has_left")
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {text}", flush=True)


def explores(posterior: Posterior) -> SquareCB:
    return SquareCB(posterior, gamma=10.0, growth=0.0, floor=0.02)


def serves(posterior: Posterior) -> SquareCB:
    return SquareCB(posterior, gamma=2_000.0, floor=0.002)


class Learned(NamedTuple):
    """What the log left: the learner's bytes, the value, and the log itself."""

    learner: bytes
    value: ValueFunction
    log: Played
    steps: Steps
    aside: NDArray[np.bool_]
    seconds: float  # that training took


def learn(n_users: int, days: int, path: Path) -> Learned:
    """Let the myopic policy log, and train the value on it."""
    log = play(explores, n_users=n_users, days=days, seed=_LOG_SEED, keep_seen=True)
    say(f"log: {len(log.decided.users):,} decisions, {log.decided.sent.mean():.0%} sent")
    found = steps(log.decided, log.session_users, log.session_ms, log.end_ms)
    began = time.monotonic()
    trained = train_value(found, path, seed=1)
    seconds = time.monotonic() - began
    say(f"value: {trained.metrics['epochs']:.0f} epochs in {seconds:.1f} s")
    aside = users_aside(found, ValueTraining(), seed=1)
    value = ValueFunction.load(path)
    return Learned(log.learner.snapshot(), value, log, found, aside, seconds)


def swept(learned: Learned, n_users: int, days: int, seeds: range) -> dict[str, dict[float, Any]]:
    """Return each user's measures, (U x seeds,), by policy and bar."""
    found: dict[str, dict[float, Any]] = {}
    for name, bars in _BARS.items():
        value = learned.value if name == "aware" else None
        found[name] = {}
        for bar in bars:
            runs = [
                play(
                    serves,
                    n_users=n_users,
                    days=days,
                    seed=seed,
                    value=value,
                    bar=bar,
                    learner=RewardLearner.restore(learned.learner),
                )
                for seed in seeds
            ]
            found[name][bar] = {
                m: np.concatenate([np.asarray(getattr(run, m), np.float64) for run in runs])
                for m in (*MEASURES, "earned")
            }
            means = ", ".join(f"{m} {own.mean():.3f}" for m, own in found[name][bar].items())
            say(f"{name} {bar:+.1f}: {means}")
    return found


def differences(found: dict[str, dict[float, Any]]) -> dict[str, list[float]]:
    """Return aware less myopic, both without a bar: mean, low and high."""
    out = {}
    for m in (*MEASURES, "earned"):
        gap = found["aware"][0.0][m] - found["myopic"][0.0][m]
        error = 1.96 * gap.std() / np.sqrt(len(gap))
        out[m] = [round(float(x), 4) for x in (gap.mean(), gap.mean() - error, gap.mean() + error)]
    return out


def chances(learned: Learned, policy: AuditedPolicy, value: ValueFunction | None) -> Any:
    """Return by step how likely the policy sends, and how much likelier what was sent; (2, N)."""
    log, found = learned.log, np.ones((2, len(learned.log.seen)))
    for n, (seen, state) in enumerate(zip(log.seen, log.decided.states, strict=True)):
        none = 0.0 if value is None else value.none_value(state)
        judged = policy.judge(seen.x).with_none(none)
        shares = policy.shares(judged, policy.knobs, b"")
        found[0, n] = 1.0 - shares[-1]
        if log.decided.sent[n]:
            ours, theirs = shares[seen.chosen], seen.shares[seen.chosen]
            found[1, n] = (ours / (1 - shares[-1])) / (theirs / (1 - seen.shares[-1]))
    return found[:, learned.steps.order]


def worths(run: Played, n_users: int) -> NDArray[np.float64]:
    """Return what each user was worth from their first decision on, discounted; NaN without one."""
    found = steps(run.decided, run.session_users, run.session_ms, run.end_ms)
    total = found.rewards.copy()
    for n in range(len(total) - 2, -1, -1):
        total[n] += found.discounts[n] * total[n + 1]
    is_first = np.ones(len(total), np.bool_)
    is_first[1:] = found.users[1:] != found.users[:-1]
    of_user = np.full(n_users, np.nan)
    of_user[found.users[is_first]] = total[is_first]
    return of_user


def evaluated(learned: Learned, n_users: int, days: int) -> dict[str, dict[str, list[float]]]:
    """Return fitted-Q evaluation of both policies, frozen, and the truth of the same users."""
    belief = merge([RewardLearner.restore(learned.learner).statistics()], 1.0)
    frozen = serves(belief)
    aside = learned.steps.of_users(learned.aside)
    is_aside = learned.aside[learned.steps.users]
    features = features_of(learned.value, aside)
    make: MakePolicy = lambda posterior: frozen  # noqa: E731
    found = {}
    for name, value in (("myopic", None), ("aware", learned.value)):
        sends, weights = chances(learned, frozen, value)[:, is_aside]
        estimate = evaluate(aside, sends, features, weights=weights, seed=1)
        run = play(make, n_users=n_users, days=days, seed=_LOG_SEED, value=value)
        own = worths(run, n_users)[: len(learned.aside)][learned.aside]
        own = own[~np.isnan(own)]
        error = 1.96 * own.std() / np.sqrt(len(own))
        truth = (own.mean(), own.mean() - error, own.mean() + error)
        found[name] = {
            "fitted_q": [round(float(x), 3) for x in estimate],
            "truth": [round(float(x), 3) for x in truth],
        }
        say(f"{name}: {found[name]}")
    return found


def plot(found: dict[str, dict[float, Any]], path: Path, days: int) -> None:
    """Draw opens, sessions and who left over pushes."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    names = {
        "myopic": 'myopic: "none" is worth the bar',
        "aware": "the value of holding, and the bar",
    }
    titles = ("opens a user", "sessions a user", "share of users who left")
    for axis, m, title in zip(axes, ("opens", "sessions", "has_left"), titles, strict=True):
        for name, style in (("myopic", "o--"), ("aware", "s-")):
            rows = found[name]
            x = [own["pushes"].mean() for own in rows.values()]
            y = [own[m].mean() for own in rows.values()]
            axis.plot(x, y, style, label=names[name])
            for bar, at in zip(rows, zip(x, y, strict=True), strict=True):
                axis.annotate(f"{bar:+.1f}" if bar else "0", at, fontsize=7, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axis.set_xlabel("pushes a user")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower center", fontsize=8)
    figure.suptitle(f"{days} days: what a bar buys, with and without the value of holding")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def print_table(found: dict[str, dict[float, Any]], gaps: dict[str, list[float]]) -> None:
    measures = (*MEASURES, "earned")
    print(f"\n{'a user':16}" + "".join(f"{m:>12}" for m in measures))
    for name, rows in found.items():
        for bar, own in rows.items():
            cells = "".join(f"{own[m].mean():12.3f}" for m in measures)
            print(f"{name:8}{bar:+6.1f}  {cells}")
    print(f"{'aware - myopic':16}" + "".join(f"{gaps[m][0]:+12.3f}" for m in measures))
    print(f"{'from':16}" + "".join(f"{gaps[m][1]:+12.3f}" for m in measures))
    print(f"{'to':16}" + "".join(f"{gaps[m][2]:+12.3f}" for m in measures))


def main() -> None:
    """Print progress, a table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="bench.value", description=__doc__.splitlines()[0])
    parser.add_argument("--log-users", type=int, default=1_500)
    parser.add_argument("--users", type=int, default=400, help="of each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--truth-days", type=int, default=84, help="six half-lives")
    parser.add_argument("--picture", type=Path, default=_PICTURE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pushflow-value-") as folder:
        learned = learn(args.log_users, args.days, Path(folder) / "value.pfv")
    seeds = range(_FIRST_SEED, _FIRST_SEED + args.seeds)
    found = swept(learned, args.users, args.days, seeds)
    gaps = differences(found)
    judged = evaluated(learned, args.log_users, args.truth_days)
    plot(found, args.picture, args.days)
    print_table(found, gaps)
    means = {
        name: {
            f"{bar:+.1f}": {m: round(float(values.mean()), 4) for m, values in own.items()}
            for bar, own in rows.items()
        }
        for name, rows in found.items()
    }
    told = {
        "bench": "value",
        "days": args.days,
        "users": args.users * args.seeds,
        "half_life_days": Worth().half_life_days,
        "train_seconds": round(learned.seconds, 2),
        "aware_less_myopic": gaps,
        "evaluated": judged,
        "curves": means,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
