"""Watching whether a flow's topics have grown, or been made anew.

Reads   ids and partitions of topics.
Emits   one sentence, once, when the flow must start again to go on with its topics as they are.
Owns    what counts as such a change.

Bytewax asks for the parts of a source once, at the start; new partitions are read from the next
start on. The rule:

- A topic with more partitions, or made anew (another id), is a change.
- Topics that are joined partition by partition must grow together: while some have more than
  others, we warn once and keep running, for no flow can start on them.
- A broker that is away, or a topic that is not there, is no change: sources wait for both.

When a topic grows, Kafka's partitioner moves keys. A user's events from before and after stand in
two partitions then, and may be read in another order than they happened in; those of one partition
stay in order. The user's state and timers go along, for they belong to the user's shard and follow
the partition of the newest event (`operators.users`). Until the next start a sink puts keys where
they belonged before.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException

from operators.kafka_admin import Shape, look_at_topics, open_admin, topic_shapes
from operators.kafka_client import log

_CLOSE_SECONDS: Final = 12.0  # a look that has begun waits for two answers, each 5 s at most


def change(before: Mapping[str, Shape], now: Mapping[str, Shape]) -> str:
    """Return what has become of topics, as a sentence; "" where nothing has changed.

    >>> was = {"a": Shape("x", 4), "b": Shape("y", 4), "c": Shape("z", 4)}
    >>> change(was, {"a": Shape("x", 6), "b": Shape("q", 4)})
    'a has 6 partitions, had 4; b was made anew'
    >>> change(was, was)
    ''
    """
    found = []
    for topic, new in now.items():
        old = before.get(topic)
        if old is None:
            continue
        if old.topic_id and new.topic_id and old.topic_id != new.topic_id:
            found.append(f"{topic} was made anew")
        elif old.n_partitions != new.n_partitions:
            found.append(f"{topic} has {new.n_partitions} partitions, had {old.n_partitions}")
    return "; ".join(found)


class TopicWatch:
    """Looks at topics in a thread, until something has changed or `close`.

    Parameters
    ----------
    client
        librdkafka settings.
    joined
        Full names of the topics that are read partition by partition, together.
    others
        Full names of what else the flow writes or follows.
    on_change
        Called once, in the watch's thread, with a sentence of what has changed.
    seconds
        Between two looks. A look is two requests, whatever the number of topics.

    Raises
    ------
    operators.kafka_client.KafkaFailure
        If Kafka does not answer within a minute at the start, or refuses.

    Notes
    -----
    Begin to watch before anything of the flow counts partitions: what changes in between is then
    a change too.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        joined: Sequence[str],
        others: Sequence[str],
        on_change: Callable[[str], None],
        *,
        seconds: float = 10.0,
    ) -> None:
        self._joined = joined
        self._topics = [*joined, *others]
        self._on_change = on_change
        self._seconds = seconds
        self._warned = ""
        self._before = topic_shapes(client, self._topics)
        self._admin = open_admin(client)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topic-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking; no call of `on_change` comes after this, unless one has begun."""
        self._stop.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            if found := self._look():
                self._on_change(found)
                return

    def _look(self) -> str:
        """Return what has changed so that a start would find it; else ""."""
        try:
            now = look_at_topics(self._admin, self._topics)
        except KafkaException:
            return ""  # the sources say that the broker is away
        widths = {topic: now[topic].n_partitions for topic in self._joined if topic in now}
        if len(widths) < len(self._joined):
            return ""
        if len(set(widths.values())) > 1:
            self._warn(", ".join(f"{topic} {n}" for topic, n in widths.items()))
            return ""
        return change(self._before, now)

    def _warn(self, widths: str) -> None:
        if widths != self._warned:
            self._warned = widths
            log.warning(
                "topics that are read together differ in partitions (%s): new partitions are read "
                "once all have the same number. Add partitions to the short ones: "
                "kafka-topics.sh --alter --partitions",
                widths,
            )
