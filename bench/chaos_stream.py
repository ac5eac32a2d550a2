"""One stream of events through `decide`, and all that is done to it on the way.

Owns    when each disturbance strikes: at a random moment after the cluster has closed two epochs
        and written something new, while the load goes on. What follows is compared with a run of
        the same input that nothing disturbs.

A process that ends by itself is started again, as a supervisor would do it, and told of. At the
end the load stops, the cluster is asked to finish, and one more start reads to the end of the
topics: what that leaves behind is the state that is compared.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from bench import chaos_state
from bench.chaos_input import TRIGGERS, Input
from bench.chaos_redis import Found, RedisServer, found
from bench.chaos_report import Report, Row
from bench.chaos_stage import Cluster, Load, fill, free, last_words
from tests.system.cluster import Nodes
from tests.system.harness import DECISIONS, Stage, judge

_PATIENCE_S: Final = 120.0  # for a cluster to come back, on a machine that is busy
_DRAIN_S: Final = 900.0  # to read what is left at the end
_MAX_REVIVALS: Final = 10
_EPOCH: Final = {"PUSHFLOW_STATE__EPOCH_SECONDS": "0.5"}


class ChaosError(RuntimeError):
    """A scene cannot go on; the message says what it waited for."""


class Outcome(NamedTuple):
    """What a run left behind."""

    decisions: list[Found]
    state: dict[chaos_state.Key, bytes]


class Stream:
    """A disturbed run.

    Parameters
    ----------
    report
        For progress; its generator decides the moments.
    nodes, redis
        The broker and Redis that are killed.
    source
        The input; it is sent until `finish`.
    name
        Of the run: its directory and the prefix of its topics.
    """

    def __init__(
        self, report: Report, nodes: Nodes, redis: RedisServer, source: Input, name: str
    ) -> None:
        self._report, self._nodes, self._redis, self._source = report, nodes, redis, source
        self._rng = report.rng(name)
        values = {**TRIGGERS, **_EPOCH, "PUSHFLOW_REDIS__URL": redis.url}
        work = report.work / name
        work.mkdir(exist_ok=True)
        self._stage = Stage(nodes.bootstrap, f"{name}.", work, values=values)
        self._stage.fill_tables(source.case)
        self._decisions = self._stage.collect(DECISIONS, found)
        self._n_known = 0  # decisions that do not count as new
        self.kills: Counter[str] = Counter()
        self.faults: list[str] = []
        self.n_revivals = 0  # clusters that ended by themselves
        self._back_s: list[float] = []  # from each start after a kill to the first new decision
        self._load = Load(self._stage, source, report.pace)
        self._cluster = Cluster(self._stage)
        self._await_new()

    # The disturbances.

    def kill_worker(self) -> None:
        """Kill the worker."""
        self._settle()
        self.kills["workers"] += self._cluster.kill()
        self._start()

    def kill_broker(self) -> None:
        """Kill the broker, and start it again; the worker waits."""
        self._settle()
        self._nodes.kill(1)
        self.kills["broker"] += 1
        self._rest(0.5, 3.0)
        self._nodes.start()
        self._n_known = len(self._decisions.rows)
        self._await_new()

    def stop_all(self) -> None:
        """Kill the broker and the worker at once, and start both."""
        self._settle()
        self._nodes.kill(1)
        self.kills["stops"] += 1 + self._cluster.kill()
        self._rest(0.0, 1.0)
        self._nodes.start()
        self._start()

    def kill_redis(self) -> None:
        """Kill Redis, and start it again some seconds later."""
        self.kills["redis"] += 1
        self._without_redis(self._redis.kill, self._redis.start)

    def hang_redis(self) -> None:
        """Let Redis hang for some seconds: connections stay, and nothing is answered."""
        self._without_redis(lambda: self._redis.pause(True), lambda: self._redis.pause(False))

    def fill_disk(self) -> str:
        """Fill the disk of a supervised cluster, free it, and return what was said meanwhile."""
        self._restart(1, is_supervised=True)
        self._settle()
        before = self._cluster.log()
        fill(self._stage.state)
        deadline = time.monotonic() + 20
        while "\nended:" not in self._cluster.log()[len(before) :] and time.monotonic() < deadline:
            time.sleep(0.1)
            fill(self._stage.state)  # what compaction has freed
        said = self._cluster.log()[len(before) :].partition("\nended:")[0]
        free(self._stage.state)
        self._n_known = len(self._decisions.rows)
        self._await_new()
        return last_words(said)

    def rescale(self, size: int) -> None:
        """Stop in order, and start with another number of processes."""
        self._restart(size, is_supervised=True)

    # What they are made of.

    def _start(self, size: int = 1, *, is_supervised: bool = False) -> None:
        """Start the cluster after a kill, and wait until it writes something new."""
        began = time.monotonic()
        self._n_known = len(self._decisions.rows)
        self._cluster = Cluster(self._stage, size, is_supervised=is_supervised)
        self._await_new()
        self._back_s.append(time.monotonic() - began)

    def _restart(self, size: int, *, is_supervised: bool) -> None:
        self._settle()
        self._stop()
        self._start(size, is_supervised=is_supervised)

    def _stop(self) -> None:
        if codes := self._cluster.stop():
            self.faults.append(f"asked to stop, decide ended with {codes}")

    def _settle(self) -> None:
        """Wait until two epochs are closed since the start, then for a random moment."""
        self._await("two epochs", lambda: self._cluster.n_epochs() >= 2)
        self._rest(0.0, 1.0)
        self._n_known = len(self._decisions.rows)

    def _rest(self, least_s: float, most_s: float) -> None:
        time.sleep(self._rng.uniform(least_s, most_s))

    def _await_new(self) -> None:
        self._await("a new decision", lambda: len(self._decisions.rows) > self._n_known)

    def _await(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not is_so():
            self._load.check()
            if self._cluster.ended:
                self._revive()
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {_PATIENCE_S:.0f} s for {what}")
            time.sleep(0.05)

    def _revive(self) -> None:
        """Start again a cluster that has ended by itself."""
        self.n_revivals += 1
        [child, *_] = self._cluster.ended
        said = last_words(child.log.read_text(encoding="utf-8", errors="replace"))
        self._report.say(f"decide ended by itself, {child.code}: {said}")
        if self.n_revivals > _MAX_REVIVALS:
            raise ChaosError(f"decide ends again and again; see {child.log}")
        self._cluster.kill()
        size, is_supervised = self._cluster.size, self._cluster.is_supervised
        self._cluster = Cluster(self._stage, size, is_supervised=is_supervised)

    def _without_redis(self, take: Callable[[], None], give: Callable[[], None]) -> None:
        """Take Redis away under load; given back, it must get all that it missed."""
        self._settle()
        first_event, first_decision = self._load.n_sent, len(self._decisions.rows)
        take()
        self._rest(3.0, 5.0)
        self._n_known = len(self._decisions.rows)
        self._await_new()  # while it is away
        give()
        events = self._source.events[first_event : self._load.n_sent]
        decisions = self._decisions.rows[first_decision:]
        self._await("Redis to catch up", lambda: not self._redis.owed(events, decisions))

    # The end.

    def finish(self) -> Outcome:
        """Send the last events, have all decided, and stop."""
        self._settle()
        self._load.finish()
        self._stop()
        self._report.say(f"{self._load.n_sent:,} events sent; reading to the end")
        run_to_end(self._stage)
        return Outcome(self._decisions.close(), chaos_state.of_decide(self._stage.state))

    def close(self) -> None:
        """End all that still runs."""
        self._stage.close()
        self._load.stop()

    @property
    def note(self) -> str:
        """How long restarts took."""
        ended = f"; {self.n_revivals} ended by themselves" if self.n_revivals else ""
        if not self._back_s:
            return ended
        middle, longest = statistics.median(self._back_s), max(self._back_s)
        return f"deciding {middle:.1f} s after a start, at most {longest:.1f} s{ended}"


def run_to_end(stage: Stage, size: int = 1) -> None:
    """Have a cluster decide all that the topics hold."""
    children = stage.start("decide", "--until-end", size=size)
    deadline = time.monotonic() + _DRAIN_S
    while waiting := [child for child in children if child.code is None]:
        if time.monotonic() > deadline:
            raise ChaosError(f"decide does not come to the end; see {waiting[0].log}")
        time.sleep(0.05)
    for child in children:
        if child.code:
            raise ChaosError(f"decide --until-end ended with {child.code}; see {child.log}")


def undisturbed(report: Report, nodes: Nodes, source: Input) -> Outcome:
    """Send the same input to other topics, and decide it in one go, on both of our cores."""
    work = report.work / "undisturbed"
    work.mkdir()
    stage = Stage(nodes.bootstrap, "undisturbed.", work, values={**TRIGGERS, **_EPOCH})
    try:
        stage.fill_tables(source.case)
        stage.send(source.events)
        report.say(f"undisturbed: {len(source.events):,} events sent again, deciding")
        decisions = stage.collect(DECISIONS, found)
        run_to_end(stage, size=2)
        return Outcome(decisions.close(), chaos_state.of_decide(stage.state))
    finally:
        stage.close()


def compared(ours: Outcome, expected: Outcome, row: Row) -> Row:
    """Fill in a row what became of a run."""
    verdict = judge(_pairs(ours.decisions), dict(_pairs(expected.decisions)))
    other = chaos_state.differences(ours.state, expected.state)
    row.expected, row.found = len(expected.decisions), verdict.n
    row.lost, row.twice = verdict.lost, verdict.twice
    row.changed = verdict.unknown + verdict.other_bytes
    row.is_state_equal = not other and len(ours.state) > 0
    if other:
        row.faults.append(f"{len(other)} of {len(expected.state)} states differ, as of {other[0]}")
    return row


def _pairs(decisions: list[Found]) -> list[tuple[str, bytes]]:
    return [(decision.id, decision.digest) for decision in decisions]
