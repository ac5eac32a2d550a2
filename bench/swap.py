"""What a change of models costs decisions: latency with and without, on the same rig.

Times   from an event sent to its decision read, as `bench.path` does, at 2,000 events a second.
        In the runs with changes a model is put on trial in the shadow, decides for a share in
        canary, is promoted, taken back, and a corrupt one is published, evenly over the run.
Leaves out    models of another size than the served one: those are slower by what they compute.

Prints what became of each change, then a table; JSON last.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench import load as made
from bench.latency import Measured, load_of, measure
from bench.rig import Options, Rig, broker, rig
from flows import rollout
from flows.rollout import Standing
from models.checkpoint import write_model
from models.export import export_student
from models.student import Student, StudentConfig
from operators.messages import ModelCard, ModelRef

_SHARE = 0.2
_LIMIT_MS = 100.0  # of issue 6: no decision slower because of a change
_TAKEN_UP_S = 30.0
_WARM_S = 60.0  # a Java that has just started compiles for about so long


def another(path: Path) -> ModelRef:
    """Write a student of the served size that has learned nothing."""
    torch.manual_seed(1)
    ids = [item.item_id for item in made.items()]
    write_model(path, export_student(Student(StudentConfig(), len(ids)).eval(), ids, {}))
    return rollout.ref_of(path)


def steps(card: ModelCard | None, other: ModelRef) -> list[tuple[str, ModelCard]]:
    """Return the changes, by name."""
    shadow = rollout.on_trial(card, other, "shadow", _SHARE, {})
    canary = rollout.promoted(shadow, _SHARE, {})
    served = rollout.promoted(canary, _SHARE, {})
    back = rollout.rolled_back(served)
    gone = ModelRef(version="corrupt", path=other.path, checksum="0" * 32, feature_spec="")
    corrupt = rollout.served(back, gone)
    names = ("shadow", "canary", "served", "back", "corrupt")
    return list(zip(names, (shadow, canary, served, back, corrupt), strict=True))


@contextmanager
def changing(on: Rig, other: ModelRef, seconds: float) -> Iterator[None]:
    """Make all changes within so many seconds, beside the block."""
    changes = steps(rollout.read(on.settings).card, other)
    thread = threading.Thread(target=_change, args=(on, changes, seconds / (len(changes) + 1)))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _change(on: Rig, changes: list[tuple[str, ModelCard]], pause_s: float) -> None:
    for name, card in changes:
        time.sleep(pause_s)
        began = time.monotonic()
        rollout.write(on.settings, card)
        while not _is_done(rollout.read(on.settings), card):
            if time.monotonic() - began > _TAKEN_UP_S:
                raise TimeoutError(f"{name}: decide does not take it up")
            time.sleep(0.05)
        print(f"  {name}: taken up in {time.monotonic() - began:.2f} s", flush=True)


def _is_done(now: Standing, card: ModelCard) -> bool:
    trial = card.trial.version if card.trial is not None else ""
    wanted = (card.version, trial)
    return any((r.served, r.trial) == wanted or card.version in r.refusals for r in now.reports)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=40_000)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--share", type=float, default=0.05, help="of events that fire")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=2, help="of each kind")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic")
    parser.add_argument("--real", action="store_true", help="on a real broker")
    arguments = parser.parse_args()
    options = Options(is_real=arguments.real, partitions=arguments.partitions)
    load = load_of(arguments.users, arguments.share, arguments.rate)
    runs: dict[str, list[Measured]] = {"still": [], "changing": []}
    with tempfile.TemporaryDirectory() as folder, broker(options) as client:
        other = another(Path(folder) / "other.pfm")
        with rig(client, options) as on:
            card = rollout.read(on.settings).card
            assert card is not None
            first = rollout.ref_of(Path(card.path))
            on.warm(load)
            measure(on, load, arguments.rate, _WARM_S if options.is_real else 5.0)
            for _ in range(arguments.rounds):
                for kind, of in runs.items():
                    # Begin with the first model alone, whatever the run before has left.
                    rollout.write(on.settings, rollout.served(None, first))
                    on.restart(load, has_recovery=True)
                    if kind == "changing":
                        with changing(on, other, arguments.seconds):
                            of.append(measure(on, load, arguments.rate, arguments.seconds))
                    else:
                        of.append(measure(on, load, arguments.rate, arguments.seconds))
                    print(f"{kind:9}", of[-1].row(), flush=True)
    _tell(runs)


def _tell(runs: dict[str, list[Measured]]) -> None:
    result: dict[str, object] = {"bench": "swap"}
    for kind, of in runs.items():
        took = [ms for run in of for ms in run.took_ms]
        n_slow = sum(ms > _LIMIT_MS for ms in took)
        n_lost = sum(run.n_lost for run in of)
        row = Measured(took, n_lost, 0.0, 0.0).row()
        print(f"{kind:9} p50 {row['p50_ms']}, p99 {row['p99_ms']}, max {row['max_ms']} ms; "
              f"{n_slow} of {len(took)} above {_LIMIT_MS:g} ms, {n_lost} lost")  # fmt: skip
        names = ("p50_ms", "p99_ms", "p999_ms", "max_ms", "measured", "lost")
        result |= {f"{kind}_{name}": row[name] for name in names}
        result[f"{kind}_above_limit"] = n_slow
    print(json.dumps(result))


if __name__ == "__main__":
    main()
