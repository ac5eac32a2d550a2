"""What an audit reads: the topics, the archive, or a directory of JSON lines.

Emits   decisions, feedback and the learner's rows, each as often as asked for.
Owns    the names of the files in a log directory, and writing them while a cluster runs.
"""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from flows.settings import Settings
from operators.kafka_tables import Reader
from operators.messages import Decision, Feedback, PolicyShard

DECISIONS: Final = "push.decisions.v1"
FEEDBACK: Final = "push.feedback.v1"
POLICY: Final = "push.policy.v1"
LOGGED: Final = (DECISIONS, FEEDBACK, POLICY)
_STRUCTS: Final[Mapping[str, type[msgspec.Struct]]] = {
    DECISIONS: Decision,
    FEEDBACK: Feedback,
    POLICY: PolicyShard,
}
_POLL_S: Final = 0.1
_BATCH: Final = 500


class Log(Protocol):
    """Where messages are read from, whole, from the beginning."""

    def values(self, topic: str) -> Iterator[bytes]:
        """Yield the messages of one of `LOGGED`, empty where there are none."""
        ...


class Topics:
    """The cluster's topics, as far back as they are kept.

    A compacted topic has the newest row of a key for sure; older ones as long as they lie there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def values(self, topic: str) -> Iterator[bytes]:
        """See `Log`."""
        reader = Reader(self._settings.kafka.client(), [self._settings.kafka.topic(topic)])
        try:
            yield from (message.value for batch in reader for message in batch if message.value)
        finally:
            reader.close()


class Archive:
    """Files of `pushflow run archive`; they hold no rows of the learner."""

    def __init__(self, url: str) -> None:
        from operators.archive_files import Place  # noqa: PLC0415 - pyarrow is an extra

        self._place = Place(url)

    def values(self, topic: str) -> Iterator[bytes]:
        """See `Log`."""
        from operators.archive_reader import partitions, read_partition  # noqa: PLC0415

        for number in partitions(self._place, topic):
            for table in read_partition(self._place, topic, number, ["refused", "raw"]):
                for row in table.to_pylist():
                    if row["refused"] is None and row["raw"] is not None:
                        yield row["raw"]


class Directory:
    """A file of JSON lines for each topic, named after it; or the decisions' file alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def values(self, topic: str) -> Iterator[bytes]:
        """See `Log`."""
        is_file = self._path.is_file()
        if is_file and topic != DECISIONS:
            return
        path = self._path if is_file else self._path / f"{topic}.jsonl"
        if not path.exists() and topic != DECISIONS:
            return
        with path.open("rb") as lines:
            yield from (line for line in lines if line.strip())


def read(log: Log, topic: str) -> Iterator[Any]:
    """Yield a topic's messages as structs.

    Raises
    ------
    msgspec.DecodeError
        If a message is none of the topic's.
    """
    decoder = msgspec.json.Decoder(_STRUCTS[topic])
    return (decoder.decode(value) for value in log.values(topic))


class Recorder:
    """Writes the messages of `LOGGED` into a `Directory`, in a thread of its own, as they come.

    So a log has every row of the learner, which the compacted topic has not. `close` reads the
    topics to the end that they have then.
    """

    def __init__(self, client: Mapping[str, Any], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._reader = Reader(client, list(LOGGED))
        self._files = {name: (directory / f"{name}.jsonl").open("wb") for name in LOGGED}
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._write() or not (self._stop.is_set() and self._reader.at_end()):
                pass
        except Exception as error:  # handed to the main thread
            self._error = error

    def _write(self) -> int:
        messages = self._reader.read(_BATCH, _POLL_S)
        for message in messages:
            if message.value is not None:
                self._files[message.topic].write(message.value + b"\n")
        return len(messages)

    def close(self) -> None:
        """Stop once nothing more comes; raise what went wrong in the thread."""
        self._stop.set()
        self._thread.join()
        self._reader.close()
        for file in self._files.values():
            file.close()
        if self._error is not None:
            raise self._error
