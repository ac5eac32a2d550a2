"""The whole path: events in Kafka to decisions in Kafka, through `pushflow run decide`.

Times   decode, sessions, counters, triggers, candidates, student, policy, eligibility, content,
        exactly-once sink, Redis features, recovery on; the broker and Redis beside it.
        Throughput: events a second while the input never runs dry.
        Latency: from just before an event is produced to its decision being read back, at a
        given rate; the producer's linger (5 ms, as clients have it by default) is in it. On a
        real broker a run before the measured one warms it: a Java that has just started
        compiles for a minute, on the core that `decide` wants.
Leaves out `learn`, which has a process of its own, and the start.

    python -m bench.path [--real] [--users 50000] [--rate 2000] [--seconds 30] [--events 300000]
    python -m bench.path --real --recovery    recovery on and off, 50,000 and 1,000,000 users

Without `--real` or `--bootstrap` the broker is librdkafka's own, in this process: the load and the
broker then share one core with each other.
"""

import argparse
import json
import sys
import time

import psutil

from bench import latency
from bench import load as made
from bench.rig import Options, Rig, broker, rig


def throughput(on: Rig, load: made.Load, n_events: int) -> dict[str, float]:
    """Return events a second over the middle of the run, with what they caused."""
    messages = load.events(n_events)
    n_triggers = sum(message.is_trigger for message in messages)
    decided = on.decisions.n_read
    process = psutil.Process(on.child.pid)
    began, used = time.perf_counter(), sum(process.cpu_times()[:2])
    seen = on.send_keeping_up(iter(messages))
    seconds = time.perf_counter() - began
    used = sum(process.cpu_times()[:2]) - used
    on.decisions.wait(decided + n_triggers)
    start, end = seen[len(seen) // 10], seen[-1]
    middle = (end[1] - start[1]) / (end[0] - start[0])
    return {
        "events_per_second": round(middle),
        "events_per_second_whole": round(n_events / seconds),
        "decide_cpu_us_per_event": round(1e6 * used / n_events, 1),
        "triggers": n_triggers,
        "decisions": on.decisions.n_read - decided,
    }


def once(options: Options, arguments: argparse.Namespace) -> None:
    """Print latency, then throughput, of one setting."""
    n_users = arguments.users[0]
    load = latency.load_of(n_users, arguments.share, arguments.rate)
    with broker(options) as client, rig(client, options) as on:
        on.warm(load)
        memory_mb = on.memory_mb()
        on.restart(load, has_recovery=not arguments.no_recovery)
        if options.is_real:
            latency.measure(on, load, arguments.rate, arguments.seconds)
        slow = latency.measure(on, load, arguments.rate, arguments.seconds).row()
        fast = throughput(on, load, arguments.events) if arguments.events else {}
    for name, values in (("latency", slow), ("throughput", fast)):
        print(name, *(f"{key}={value:,}" for key, value in values.items()))
    print(f"memory of decide after warm-up: {memory_mb:,} MB")
    found = {"users": n_users, "rate": arguments.rate, "memory_mb": memory_mb, **slow, **fast}
    print(json.dumps({"bench": "path", **found}))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, nargs="+", help="default 50000; with --recovery more")
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--events", type=int, default=300_000, help="0: no throughput")
    parser.add_argument("--share", type=float, default=0.05, help="of events that trigger")
    parser.add_argument("--real", action="store_true", help="start Apache Kafka, and stop it after")
    parser.add_argument("--bootstrap", default="", help="use this broker")
    parser.add_argument("--partitions", type=int, default=4, help="of each topic")
    parser.add_argument("--no-redis", action="store_true")
    parser.add_argument("--epoch-seconds", type=float, default=2.0)
    parser.add_argument("--no-recovery", action="store_true", help="no epoch ends in the run")
    parser.add_argument("--recovery", action="store_true", help="compare recovery on with off")
    parser.add_argument("--rounds", type=int, default=2, help="of on and off, in turn")
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)  # else our own two threads keep each other waiting for 5 ms
    options = Options(
        bootstrap=arguments.bootstrap,
        is_real=arguments.real,
        has_redis=not arguments.no_redis,
        partitions=arguments.partitions,
        epoch_seconds=arguments.epoch_seconds,
    )
    if arguments.recovery:
        arguments.users = arguments.users or [50_000, 1_000_000]
        latency.compare(options, arguments)
    else:
        arguments.users = arguments.users or [50_000]
        once(options, arguments)


if __name__ == "__main__":
    main()
