"""`pushflow demo`: the whole loop on one machine, with a simulated population.

Emits   a table of the models and which one serves, a live view, and at the end a summary, a
        picture of the learning, and one JSON object on the last line.

    simulated users --events, feedback--> Kafka --> decide --> Kafka --decisions--> users
                                            '-----> learn ---policy---^

Kafka and Redis run inside this process; `decide` and `learn` are two processes of their own, as
in production. Latency is from just before an event is handed to the producer to the moment when
the decision that it caused has been read back, the reader's polling included.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from rich.console import Console

from flows.audit_sources import Recorder
from flows.children import ChildError
from flows.loop import Inlet, Loop, Plan, is_drained
from flows.report import Run, plot, summary, table
from flows.simulate import Population
from flows.stage import Stage
from flows.tally import Counters, Tally
from flows.view import Frame, View
from models.policies import KINDS

_TICK_S: Final = 0.02
_DRAIN_S: Final = 30.0
_SETTLED_S: Final = 1.0  # no new decision for this long, and all counts agree: drained


class Ended(NamedTuple):
    """A run that is over."""

    run: Run
    tally: Tally
    counters: Counters


def play(stage: Stage, world: Population, plan: Plan, console: Console) -> Ended:
    """Run the loop to its end or to Ctrl-C, drain, and stop the flows."""
    tally, began = Tally(), time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    inlet = Inlet(stage.client, clock)
    loop = Loop(world, stage.outlet, inlet, tally, plan)
    header = f"Kafka at {stage.client['bootstrap.servers']}"
    try:
        with View(tally, console, header) as view, contextlib.suppress(KeyboardInterrupt):
            while (at_s := clock()) < plan.seconds:
                loop.tick(at_s, stage.counting.latest, clock)
                view.update(Frame(at_s, plan.seconds, loop.sim_ms, stage.counting.latest))
                stage.check()
                time.sleep(max(0.0, _TICK_S - (clock() - at_s)))
        seconds = clock()
        counters = drain(stage, loop, tally, console)
        codes = stage.stop()
    finally:
        inlet.close()
    simulated_s = (loop.sim_ms - world.start_ms) / 1_000
    models = [row._asdict() for row in stage.models]
    run = Run(plan.seed, plan.users, seconds, simulated_s, stage.training_s, codes, models)
    return Ended(run, tally, counters)


def drain(stage: Stage, loop: Loop, tally: Tally, console: Console) -> Counters:
    """Wait until every message sent is decoded and every trigger has its decision."""
    stage.outlet.flush()
    deadline = time.monotonic() + _DRAIN_S
    settled_at, before = time.monotonic(), -1
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < deadline:
            stage.check()
            loop.take(respond=False)
            counters = stage.counting.look()
            if tally.n_decisions != before or not is_drained(tally, counters):
                settled_at, before = time.monotonic(), tally.n_decisions
            elif time.monotonic() - settled_at >= _SETTLED_S:
                return counters
            time.sleep(0.1)
    console.print("the flows did not come to rest: what is still on its way counts as lost")
    return stage.counting.latest


def run_demo(
    *,
    users: int = 2_000,
    seconds: float = 90.0,
    seed: int = 1,
    port: int | None = None,
    policy: str = "squarecb",
    epochs: int = 3,
    report: Path | None = None,
    log: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run the demo; return the process's exit code: 0 if nothing was lost or doubled.

    Parameters
    ----------
    users
        Simulated users.
    seconds
        Of the loop, by the clock; training and start-up come before it.
    seed
        Of the population, the training and the harness.
    port
        Of the broker; None takes any.
    policy
        That decides, of `models.policies.KINDS`.
    epochs
        Of the teacher's training, and of each student's.
    report
        Where the report goes as JSON, and beside it the picture. None: the picture alone, in
        the working directory.
    log
        Directory where decisions, feedback and the learner's rows go as they come.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    sys.setswitchinterval(0.0005)  # the thread that reads decisions must not wait for 5 ms
    console = console or Console()
    plan = Plan(users, seconds, seed, port, policy, epochs)
    world = Population(n_users=users, seed=seed)
    with tempfile.TemporaryDirectory(prefix="pushflow-demo-", ignore_cleanup_errors=True) as work:
        try:
            with Stage(plan, world, Path(work), console) as stage, _recorded(stage, log):
                ended = play(stage, world, plan, console)
        except ChildError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            return 1
        except KeyboardInterrupt:
            console.print("stopped before the run began")
            return 130
    return conclude(ended, console, report)


@contextlib.contextmanager
def _recorded(stage: Stage, log: Path | None) -> Iterator[None]:
    """Write the log for the length of a block."""
    recorder = Recorder(stage.client, log) if log is not None else None
    try:
        yield
    finally:
        if recorder is not None:
            recorder.close()


def conclude(ended: Ended, console: Console, report: Path | None) -> int:
    """Print and write what came of it; return the exit code."""
    found = summary(*ended)
    picture = report.with_suffix(".png") if report else Path(f"demo-{ended.run.seed}.png")
    plot(ended.tally, picture, f"pushflow demo, seed {ended.run.seed}, {ended.run.users:,} users")
    console.print(table(found))
    console.print(f"picture: {picture}", highlight=False)
    line = orjson.dumps(found).decode()
    if report:
        report.write_text(line + "\n", encoding="utf-8")
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    is_clean = not (found["lost"] or found["duplicates"] or any(ended.run.exit_codes))
    return 0 if is_clean else 1


def main(arguments: Iterable[str] | None = None) -> int:
    """Run `python -m flows.demo`."""
    parser = argparse.ArgumentParser(prog="pushflow demo", description=run_demo.__doc__)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int)
    parser.add_argument("--policy", default="squarecb", choices=sorted(KINDS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args(None if arguments is None else list(arguments))
    return run_demo(**vars(options))


if __name__ == "__main__":
    sys.exit(main())
