"""The policy's cost: rank 20 candidates, draw one, learn one reward; ours, Vowpal Wabbit, River.

    python -m bench.bandit [--rounds N]

Times   one round as `decide` and `learn` make it. Ours: columns to design matrix, the policy of
        `models.policies` by its two steps, squarecb as the product has it, the draw, then
        `RewardLearner.learn` with the chosen row; at our own columns, and at 32 plain features for
        every contestant (no design matrix there: ours takes the rows as they are, as the others
        do), and with the watch for drift of two segments that `learn` keeps beside its learner.
        Shown and not compared: logistic_ucb with its learner, and ours without the watch.
        Vowpal Wabbit, squarecb, from Python: "Example API" makes Example objects of the numbers,
        predicts, draws, makes them again with the label, learns, for ranking and learning are
        apart by hours and processes here. "Text" does the same by parsing lines of text that lie
        ready, their formatting not counted. "Parsed once" parses such lines once and relabels
        the chosen example to learn.
        River LinUCBDisjoint: pull among 20 arms by one context of 32 features, update.
Leaves out  Kafka, candidates, the student, the merging of shards (once a publication, shown
        apart), and which learns best: that is another question than what it costs.

Medians of rounds, contestants interleaved so that a noisy machine hits all alike. Vowpal Wabbit
is no dependency; where it is missing its rows are skipped, and the first line says how to get it.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from river.bandit import LinUCBDisjoint

from models.arms import N_ARM, N_POLICY_CONTEXT, D, design, policy_spec_hash
from models.drift import DriftWatches
from models.learner import RewardLearner
from models.logistic import LogisticLearner
from models.policies import make
from models.policy import AuditedPolicy, sample
from models.posterior import merge

K = 20
PLAIN = 32  # features of the comparison
TIME_MS = 1_700_000_000_000
ROWS = 64  # different triggers, taken in turn

VW_ROUNDS = {
    "example": "VW squarecb, Example API",
    "text": "VW squarecb, text ready",
    "parsed once": "VW squarecb, text ready, parsed once",
}

Round = Callable[[int], None]


def learned_row(chosen: int) -> int:
    """Return the row to learn: the cost is timed also where "none", which has no row, is drawn."""
    return min(chosen, K - 1)


def draw(policy: AuditedPolicy, x: NDArray[np.float64], i: int) -> int:
    """Return the arm that is chosen, as `operators.decider` does."""
    seed = b"decision-%d" % i
    return sample(policy.shares(policy.judge(x), policy.knobs, seed), seed)


def ours(rng: np.random.Generator) -> Round:
    contexts = rng.normal(size=(ROWS, N_POLICY_CONTEXT)).round(4)
    arms = rng.normal(size=(ROWS, K, N_ARM)).astype(np.float32)
    rewards = rng.random(ROWS)
    learner = RewardLearner()
    for x in rng.normal(size=(200, D)):
        learner.learn(x, float(rng.random()))
    policy = make("squarecb", merge([learner.statistics()], prior=1.0), gamma=1_000.0)

    def one(i: int) -> None:
        x = design(contexts[i % ROWS], arms[i % ROWS])
        chosen = draw(policy, x, i)
        learner.learn(x[learned_row(chosen)], rewards[i % ROWS], TIME_MS + i)

    return one


def ours_plain(rng: np.random.Generator, policy_id: str, *, watches_drift: bool) -> Round:
    rows, rewards = rng.normal(size=(ROWS, K, PLAIN)), rng.random(ROWS)
    learns = LogisticLearner if policy_id.startswith("logistic") else RewardLearner
    learner = learns([f"f{j}" for j in range(PLAIN)], spec_hash=policy_spec_hash())
    for x in rng.normal(size=(200, PLAIN)):
        learner.learn(x, float(rng.random()))
    policy = make(policy_id, merge([learner.statistics()], prior=1.0), gamma=1_000.0)
    watches = DriftWatches()

    def one(i: int) -> None:
        x, reward, time_ms = rows[i % ROWS], float(rewards[i % ROWS]), TIME_MS + i
        row = x[learned_row(draw(policy, x, i))]
        if watches_drift:
            error = round(reward - learner.predict(row), 9)
            for segment in ("campaign:any", "trigger:idle"):
                watches.update(segment, reward, error=error, time_ms=time_ms)
        learner.learn(row, reward, time_ms)

    return one


def vowpal_wabbit(rng: np.random.Generator, how: str) -> Round:
    from vowpalwabbit import Example, Workspace  # noqa: PLC0415 - optional

    vw = Workspace("--cb_explore_adf --squarecb --quiet --noconstant")
    rows, rewards = rng.normal(size=(ROWS, K, PLAIN)).round(4).tolist(), rng.random(ROWS).tolist()
    names = [f"f{j}" for j in range(PLAIN)]
    pairs = [[list(zip(names, row, strict=True)) for row in trigger] for trigger in rows]
    texts = [
        ["|a " + " ".join(f"{name}:{v:.4f}" for name, v in row) for row in trigger]
        for trigger in pairs
    ]

    def label(i: int, probability: float) -> str:
        return f"0:{-rewards[i % ROWS]:.4f}:{probability:.4f} "

    def predict(i: int, examples: list[Example]) -> tuple[int, str]:
        probabilities = vw.predict(examples)
        chosen = sample(np.array(probabilities), b"decision-%d" % i)
        return chosen, label(i, probabilities[chosen])

    def learn(examples: list[Example]) -> None:
        vw.learn(examples)
        vw.finish_example(examples)

    def example_api(i: int) -> None:
        examples = [Example(vw, {"a": row}) for row in pairs[i % ROWS]]
        chosen, outcome = predict(i, examples)
        vw.finish_example(examples)
        examples = [Example(vw, {"a": row}) for row in pairs[i % ROWS]]
        examples[chosen].set_label_string(outcome)
        learn(examples)

    def text(i: int) -> None:
        lines = texts[i % ROWS]
        examples = vw.parse(lines)
        chosen, outcome = predict(i, examples)
        vw.finish_example(examples)
        learn(vw.parse([*lines[:chosen], outcome + lines[chosen], *lines[chosen + 1 :]]))

    def parsed_once(i: int) -> None:
        examples = vw.parse(texts[i % ROWS])
        chosen, outcome = predict(i, examples)
        examples[chosen].set_label_string(outcome)
        learn(examples)

    return {"example": example_api, "text": text, "parsed once": parsed_once}[how]


def lin_ucb_disjoint(rng: np.random.Generator) -> Round:
    policy = LinUCBDisjoint(alpha=1.0, seed=1)
    rows, rewards = rng.normal(size=(ROWS, PLAIN)), rng.random(ROWS)
    contexts = [dict(zip(map(str, range(PLAIN)), row, strict=True)) for row in rows.tolist()]
    arms = list(range(K))
    for i in range(10 * K):  # every arm has learned, as in a running system
        policy.update(i % K, contexts[i % ROWS], rewards[i % ROWS])

    def one(i: int) -> None:
        context = contexts[i % ROWS]
        policy.update(policy.pull(arms, context), context, rewards[i % ROWS])

    return one


def merging(rng: np.random.Generator) -> Round:
    learner = RewardLearner()
    for x in rng.normal(size=(200, D)):
        learner.learn(x, 0.5)
    shards = [learner.statistics()] * 4

    def one(i: int) -> None:
        merge(shards, prior=1.0)

    return one


def measure(contestants: dict[str, Round], rounds: int, block: int = 20) -> dict[str, float]:
    """Return each one's median microseconds a round, over blocks taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for start in range(-block * 2, rounds, block):  # two blocks to warm up
        for name, one in contestants.items():
            for i in range(start, start + block):
                began = time.perf_counter_ns()
                one(i + block * 2)
                if start >= 0:
                    times[name].append((time.perf_counter_ns() - began) / 1_000)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2_000)
    rounds = parser.parse_args().rounds
    contestants = {
        f"ours, {D} columns from context and arms": ours(np.random.default_rng(0)),
        f"ours, {PLAIN} plain features": ours_plain(
            np.random.default_rng(0), "squarecb", watches_drift=True
        ),
        "(the same, drift not watched)": ours_plain(
            np.random.default_rng(0), "squarecb", watches_drift=False
        ),
        "(the same, logistic_ucb)": ours_plain(
            np.random.default_rng(0), "logistic_ucb", watches_drift=True
        ),
        "River LinUCBDisjoint": lin_ucb_disjoint(np.random.default_rng(0)),
        "(merge of 4 shards, once a publication)": merging(np.random.default_rng(0)),
    }
    has_vw = importlib.util.find_spec("vowpalwabbit") is not None
    if has_vw:
        for how, name in VW_ROUNDS.items():
            contestants[name] = vowpal_wabbit(np.random.default_rng(0), how)
    else:
        print("SKIPPED Vowpal Wabbit: not installed (the extra bandits)")
    medians = measure(contestants, rounds)
    plain = medians[f"ours, {PLAIN} plain features"]
    print(f"{'rank 20, learn 1; medians of ' + str(rounds):44s} {'µs':>8s} {'x ours':>8s}")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        print(f"{name:44s} {median:8.1f} {median / plain:8.1f}")

    def times_ours(name: str) -> float | None:
        return round(medians[name] / plain, 2) if name in medians else None

    result = {
        "bench": "bandit",
        "rounds": rounds,
        "ours_us": round(plain, 2),
        "ours_unwatched_us": round(medians["(the same, drift not watched)"], 2),
        "ours_design_us": round(medians[f"ours, {D} columns from context and arms"], 2),
        "design_columns": D,
        "vs_vw_example": times_ours(VW_ROUNDS["example"]),
        "vs_vw_text": times_ours(VW_ROUNDS["text"]),
        "vs_vw_parsed_once": times_ours(VW_ROUNDS["parsed once"]),
        "vs_linucb_disjoint": times_ours("River LinUCBDisjoint"),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
