"""Scenes of a cluster that goes wrong under load, for tests and for `make chaos`.

Owns    the load, what is broken when, and what each scene counts. The judge is the harness's.

The load follows the scene: before each disturbance a share of the events is let go, at a steady
pace, so that every disturbance meets traffic on however slow a machine. What waits, waits for
what it is about; the lengths of a cut and of an outage are the only times that are set.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.children import FlowProcess
from flows.supervisor import NO_RESTART
from operators.hops import RawMessage
from tests.system.cluster import Island, Nodes
from tests.system.harness import (
    DECISIONS,
    N_PARTITIONS,
    Case,
    Collector,
    Stage,
    Verdict,
    by_id,
    judge,
    wait,
)

Say = Callable[[str], None]
_SENT_TOGETHER = 10  # messages between two sleeps, which are too coarse for one


class Scene(NamedTuple):
    """How a scene went.

    Attributes
    ----------
    verdict
        Decisions beside those of an undisturbed run.
    codes
        Exit codes of the flow's processes that ended by themselves or were asked to, in order.
    kills
        kill -9 of processes and nodes.
    n_moved
        Partitions whose leader was moved by hand.
    last_words
        The end of the zombie's log.
    """

    verdict: Verdict
    codes: list[int]
    kills: int
    n_moved: int = 0
    last_words: str = ""


def is_fenced(scene: Scene) -> bool:
    """Say whether the zombie said that it had been replaced, and ended so as to stay down."""
    said = " ".join(scene.last_words.split())
    return scene.codes[0] == NO_RESTART and re.search("has taken (it )?over", said) is not None


class Feed:
    """Sends messages in a thread, in order, at a steady pace, up to where it is let.

    Parameters
    ----------
    stage
        Whose topics to send to; nobody else sends to it meanwhile.
    messages
        What to send.
    pace
        Messages a second.
    """

    def __init__(self, stage: Stage, messages: Sequence[RawMessage], pace: float) -> None:
        self._stage, self._messages, self._pace = stage, messages, pace
        self._limit = 0
        self._is_closed = False
        self._moved = threading.Condition()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def let(self, share: float) -> None:
        """Let this share of all messages go, those sent before among them."""
        with self._moved:
            self._limit = int(share * len(self._messages))
            self._moved.notify()

    def finish(self) -> None:
        """Let all go, and wait until the broker has them."""
        self.let(1.0)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop sending."""
        with self._moved:
            self._is_closed = True
            self._moved.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            sent = 0
            while sent < len(self._messages):
                with self._moved:
                    self._moved.wait_for(lambda n=sent: self._is_closed or self._limit > n)  # type: ignore[misc]
                    limit = self._limit
                if self._is_closed:
                    return
                due = time.monotonic()
                for at in range(sent, limit, _SENT_TOGETHER):
                    for message in self._messages[at : min(limit, at + _SENT_TOGETHER)]:
                        self._stage.put(message)
                    due += _SENT_TOGETHER / self._pace
                    time.sleep(max(0.0, due - time.monotonic()))
                    if self._is_closed:
                        return
                sent = limit
            self._stage.writer.flush()
        except Exception as error:  # to be raised where the scene is played
            self._error = error


def three_nodes(
    stage: Stage, nodes: Nodes, case: Case, *, pace: float, outage_s: float, say: Say = print
) -> Scene:
    """Kill a node of three, move leaders, lose min.insync.replicas; `decide` lives through it."""
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    topic = stage.topic(DECISIONS)
    [child] = stage.start("decide")
    feed = Feed(stage, case.events, pace)
    try:
        goal = _let(feed, 0.1, decisions)
        _await(decisions, goal, child)

        victim = nodes.partitions(topic)[0].leader
        say(f"kill -9 of node {victim}, which leads {topic}[0]")
        goal = _let(feed, 0.25, decisions)
        nodes.kill(victim)
        _await_leaders(nodes, topic, lambda leaders: victim not in leaders, child)
        _await(decisions, goal, child)
        nodes.start(victim)
        _await_in_sync(nodes, topic, child)

        goal = _let(feed, 0.35, decisions)
        before = [p.leader for p in nodes.partitions(topic)]
        for name in stage.settings.topics.values():
            nodes.elect_preferred(name)
        _await_leaders(nodes, topic, lambda leaders: victim in leaders, child)
        n_moved = sum(
            was != p.leader for was, p in zip(before, nodes.partitions(topic), strict=True)
        )
        say(f"{n_moved} leaders of {topic} moved back to node {victim}")
        _await(decisions, goal, child)

        others = [node for node in nodes.all if node != victim]
        say(f"nodes {others} stopped: one of three is left, for {outage_s:.0f} s")
        goal = _let(feed, 0.85, decisions)
        for node in others:
            nodes.stop(node)
        time.sleep(outage_s)
        child.check()
        nodes.start()
        say("all three nodes again")
        _await(decisions, goal, child)
        feed.finish()
        _await_all(decisions, case, child)
        codes = [child.stop()]
    finally:
        feed.close()
    verdict = judge(decisions.close(), case.expected)
    say(f"{verdict}, exit codes {codes}")
    return Scene(verdict, codes, kills=1, n_moved=n_moved)


class Severed(NamedTuple):
    """Ways to sever a process from the rest, and to let it back."""

    start: Callable[[], FlowProcess]
    cut: Callable[[FlowProcess], None]
    mend: Callable[[FlowProcess], None]


def zombie(
    stage: Stage, case: Case, how: Severed, *, pace: float, cut_s: float, say: Say = print
) -> Scene:
    """Sever `decide`, let another take its place, let the first one back, then kill the other.

    The scene counts three processes: the zombie, its successor, and one more that starts on the
    state which the successor leaves behind.
    """
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, placed)
    feed = Feed(stage, case.events, pace)
    try:
        first = how.start()
        feed.let(0.15)
        # One that has not opened a partition yet fences its successor when it is back.
        await_everywhere(decisions, first)
        how.cut(first)
        cut_at = time.monotonic()
        say(f"process {first.pid} severed, {len(decisions.rows)} decisions written")
        goal = _let(feed, 0.65, decisions)
        [second] = stage.start("decide")
        _await(decisions, goal, second)
        time.sleep(max(0.0, cut_at + cut_s - time.monotonic()))
        goal = _let(feed, 0.75, decisions)
        how.mend(first)
        say(f"process {first.pid} is back after {time.monotonic() - cut_at:.0f} s")
        is_over = wait("the zombie's end", lambda: first.code is not None, [second], 90)
        _await(decisions, goal, second)
        goal = _let(feed, 0.85, decisions)
        _await(decisions, goal, second)
        second.kill()
        if not is_over:
            first.kill()
        codes = [first.code or 0]
        [third] = stage.start("decide")
        feed.finish()
        _await_all(decisions, case, third)
        codes.append(third.stop())
    finally:
        feed.close()
    verdict = judge([row for _, row in decisions.close()], case.expected)
    say(f"{verdict}, exit codes {codes}")
    return Scene(verdict, codes, kills=1, last_words=_end_of(first))


def placed(message: RawMessage) -> tuple[int, tuple[str, bytes]]:
    """Return (partition, (decision_id, bytes)) of a decision."""
    return message.partition, by_id(message)


def unplugged(stage: Stage, island: Island) -> Severed:
    """Sever a process that lives in a network namespace from the broker."""

    def start() -> FlowProcess:
        with island.inside():
            [child] = stage.start("decide")
        return child

    return Severed(start, lambda _: island.cut(), lambda _: island.mend())


def stopped(stage: Stage) -> Severed:
    """Sever a process by SIGSTOP: works everywhere, and its connections seem to live on.

    It is stopped anew where it would keep a lock on Bytewax's recovery store: nobody can take
    over a store that is in the middle of a commit.
    """

    def start() -> FlowProcess:
        [child] = stage.start("decide")
        return child

    def cut(child: FlowProcess) -> None:
        os.kill(child.pid, signal.SIGSTOP)
        while _holds_locks(child.pid, stage.state):
            os.kill(child.pid, signal.SIGCONT)
            time.sleep(0.01)
            os.kill(child.pid, signal.SIGSTOP)

    return Severed(start, cut, lambda child: os.kill(child.pid, signal.SIGCONT))


def _holds_locks(pid: int, state: Path) -> bool:
    """Say whether a process is writing to a recovery store."""
    stores = {str(path.stat().st_ino) for path in state.rglob("*.sqlite3*")}
    locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    held = re.compile(rf"POSIX .* WRITE {pid} \S+:(\d+) ")
    return any(found[1] in stores for line in locks if (found := held.search(line)))


def _let(feed: Feed, share: float, decisions: Collector) -> int:
    """Let a share of the events go; return how many decisions show that some were answered."""
    goal = len(decisions.rows) + 50
    feed.let(share)
    return goal


def _await(decisions: Collector, goal: int, child: FlowProcess) -> None:
    assert wait(f"{goal} decisions", lambda: len(decisions.rows) >= goal, [child], 120)


def await_everywhere(decisions: Collector, child: FlowProcess) -> None:
    """Wait until each partition holds a decision: the child has then fenced them all."""

    def is_everywhere() -> bool:
        return len({partition for partition, _ in decisions.rows}) == N_PARTITIONS

    assert wait("a decision in each partition", is_everywhere, [child], 120)


def _await_all(decisions: Collector, case: Case, child: FlowProcess) -> None:
    n_expected = len(case.expected)
    wait("all decisions", lambda: len(decisions.rows) >= n_expected, [child], 180)


def _await_leaders(
    nodes: Nodes, topic: str, is_so: Callable[[list[int]], bool], child: FlowProcess
) -> None:
    def leaders() -> list[int]:
        return [p.leader for p in nodes.partitions(topic)]

    assert wait("other leaders", lambda: is_so(leaders()) and -1 not in leaders(), [child])


def _await_in_sync(nodes: Nodes, topic: str, child: FlowProcess) -> None:
    def are_whole() -> bool:
        return all(len(p.isrs) == len(p.replicas) for p in nodes.partitions(topic))

    assert wait("all replicas in sync", are_whole, [child])


def _end_of(child: FlowProcess) -> str:
    return child.log.read_text(encoding="utf-8", errors="replace")[-3_000:]
