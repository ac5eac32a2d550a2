"""The demo's loop: simulated users on one side of Kafka, the flows on the other.

Reads   decisions, in a thread of its own.
Emits   events, feedback, new items, and a little rubbish.
Owns    the simulated clock, and what "drained" means.

Event time runs faster than the clock. Where the flows fall behind by more than `_MAX_BEHIND_S`
of their input, it waits for them: a slow machine sees fewer days, not another result.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import orjson

from flows.simulate import Population
from flows.tally import Counters, Tally
from operators.codec import encode, headers
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.messages import TOPICS, Decision, Event, Feedback

_EVENTS, _FEEDBACK, DECISIONS = "push.events.v1", "push.feedback.v1", "push.decisions.v1"
_DAY_MS: Final = 86_400_000
_DAYS: Final = 3.0  # of event time that a run covers
_EVENTS_A_DAY: Final = 13.0  # of a simulated user, duplicates included
_MAX_EVENTS_PER_S: Final = 2_000.0  # two cores carry the flows, the broker and the population
_POLL_S: Final = 0.005  # between two looks for decisions; part of the latency that is shown
_MAX_BEHIND_S: Final = 2.0
_RUBBISH_SHARE: Final = 0.002  # of the events


class Plan(NamedTuple):
    """What a run is to be."""

    users: int
    seconds: float
    seed: int
    port: int | None
    policy: str = "squarecb"  # of `models.policies.KINDS`
    epochs: int = 3  # of each model's training

    @property
    def speed(self) -> float:
        """Return seconds of event time a second of ours.

        >>> Plan(2_000, 90.0, 1, None).speed
        2880.0
        >>> round(Plan(50_000, 90.0, 1, None).speed)  # no faster than the events can be carried
        266
        """
        wanted = _DAYS * 86_400 / self.seconds
        return min(wanted, _MAX_EVENTS_PER_S * 86_400 / (self.users * _EVENTS_A_DAY))


class Outlet:
    """Sends messages as their producers would: keyed, with headers, stamped with event time."""

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._writer = Writer(client)

    def send(self, topic: str, message: msgspec.Struct, message_id: str, time_ms: int = 0) -> None:
        """Queue one message."""
        key = str(getattr(message, TOPICS[topic].key))
        extra = headers(message_id, topic.removesuffix(".v1"), "pushflow/demo")
        self._writer.send(topic, key, encode(message), extra, time_ms)

    def send_raw(self, topic: str, key: str, value: bytes, time_ms: int) -> None:
        """Queue bytes as they are."""
        self._writer.send(topic, key, value, (), time_ms)

    def flush(self) -> None:
        """Wait until all is delivered."""
        self._writer.flush()


class Inlet:
    """Reads decisions in a thread of its own, and notes when each one was there.

    `take` raises what went wrong in the thread.
    """

    def __init__(self, client: Mapping[str, Any], clock: Callable[[], float]) -> None:
        self._reader, self._clock = Reader(client, [DECISIONS]), clock
        self._read: queue.SimpleQueue[tuple[Decision, float]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        decoder = msgspec.json.Decoder(Decision)
        try:
            while not self._stop.is_set():
                messages = self._reader.read(500, _POLL_S)
                at_s = self._clock()
                for message in messages:
                    self._read.put((decoder.decode(message.value or b""), at_s))
        except Exception as error:  # handed to the main thread
            self._error = error

    def take(self) -> Iterator[tuple[Decision, float]]:
        """Yield what has been read since, with the time at which it was."""
        if self._error is not None:
            raise self._error
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._read.get_nowait()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        self._reader.close()


def rubbish(rng: np.random.Generator, now_ms: int, number: int) -> bytes:
    """Return bytes that are no event, each time of another kind.

    >>> rubbish(np.random.default_rng(1), 1_772_409_600_000, 0)
    b'{"event_id": "r0", "user_id"'
    """
    event = {"event_id": f"r{number}", "user_id": "user-000000", "type": "app_open"}
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b'{"event_id": "r0", "user_id"',
        lambda: orjson.dumps(event),  # no time
        lambda: orjson.dumps(event | {"time_ms": "yesterday"}),
        lambda: orjson.dumps(event | {"time_ms": now_ms // 1_000}),
        lambda: orjson.dumps(event | {"time_ms": now_ms, "type": "teleport"}),
        lambda: orjson.dumps(event | {"time_ms": now_ms, "type": "view"}),  # of what?
        lambda: orjson.dumps(event | {"time_ms": now_ms + 30 * _DAY_MS}),
        lambda: orjson.dumps(event | {"time_ms": now_ms, "user_id": "u" * 200}),
        lambda: b"\xff\xfe" + rng.bytes(20),
        lambda: b"null",
    )
    return kinds[number % len(kinds)]()


class Loop:
    """The closed loop: one call of `tick` moves the world on to now.

    Parameters
    ----------
    world
        Whose time goes on.
    outlet, inlet
        To and from Kafka.
    tally
        The books.
    plan
        Speed and seed.
    """

    def __init__(
        self, world: Population, outlet: Outlet, inlet: Inlet, tally: Tally, plan: Plan
    ) -> None:
        self._world, self._outlet, self._inlet, self._tally = world, outlet, inlet, tally
        self._rng = np.random.default_rng([plan.seed, 0xBAD])
        self._speed = plan.speed
        self._sim_ms = float(world.start_ms)
        self._before_s: float | None = None

    @property
    def sim_ms(self) -> int:
        """Return the event time that the world has reached."""
        return int(self._sim_ms)

    def tick(self, at_s: float, counters: Counters, clock: Callable[[], float]) -> None:
        """Let time pass, send what happened, and hand over the decisions that have come."""
        passed_s = 0.0 if self._before_s is None else at_s - self._before_s
        self._before_s = at_s
        behind = self._tally.events_sent - counters.decoded_events
        rate = self._tally.events_sent / max(at_s, 1.0)
        # The counters are half a second old, hence the floor.
        if behind < max(_MAX_BEHIND_S * rate, 1_000):
            self._sim_ms += 1_000 * self._speed * min(passed_s, 0.2)
        now_ms = self.sim_ms
        for item in self._world.new_items(now_ms):
            self._outlet.send("push.items.v1", item, item.item_id)
        for event in self._world.advance(now_ms):
            self._send_event(event, clock())
        for feedback in self._world.advance_feedback(now_ms):
            self._send_feedback(feedback)
        self.take(respond=True)

    def take(self, *, respond: bool) -> None:
        """Note the decisions that have come, and let users respond to the new ones."""
        for decision, read_s in self._inlet.take():
            if self._tally.on_decision(decision, read_s) and respond:
                self._world.respond(decision, self.sim_ms)

    def _send_event(self, event: Event, at_s: float) -> None:
        self._tally.on_event(event, at_s)
        self._outlet.send(_EVENTS, event, event.event_id, event.time_ms)
        if self._rng.random() < _RUBBISH_SHARE:
            value = rubbish(self._rng, event.time_ms, self._tally.rubbish_sent)
            self._outlet.send_raw(_EVENTS, event.user_id, value, event.time_ms)
            self._tally.rubbish_sent += 1

    def _send_feedback(self, feedback: Feedback) -> None:
        self._tally.on_feedback(feedback)
        self._outlet.send(_FEEDBACK, feedback, feedback.feedback_id, feedback.time_ms)


def is_drained(tally: Tally, counters: Counters) -> bool:
    """Say whether the flows have taken in all that was sent, and every trigger has answered.

    >>> is_drained(Tally(), Counters()), is_drained(Tally(), Counters(triggers=1))
    (True, False)
    """
    return (
        counters.decoded_events >= tally.events_sent
        and counters.decoded_feedback >= tally.feedback_sent
        and counters.dead_letters >= tally.rubbish_sent
        and tally.n_decisions >= counters.triggers
    )
