"""A sink that cannot deliver holds its source back, and all goes on once it can."""

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from operators.hops import RawMessage
from operators.kafka import CopartitionedSource, ExactlyOnceSink, OutRecord
from operators.kafka_admin import create_topics
from operators.kafka_sink import Writer, partition_of
from tests.contracts.kafka import Broker, Words, record, recovery
from tests.system.brokers import KEPT, own_topics, process_id, start

pytestmark = [pytest.mark.system, pytest.mark.slow]

N_EVENTS = 60_000
BATCH = 500
# In the sink's queue, and as many in the transaction under way; then a batch at each hand.
BOUND = 2 * (10_000 + BATCH) + 2 * BATCH


class Counted(Words):
    """Counts the words of all decoders together."""

    n_decoded = 0

    def decode(self, messages: list[RawMessage]) -> list[str]:
        Counted.n_decoded += len(messages)
        return super().decode(messages)


class Pause(threading.Thread):
    """Stops a broker in the middle of a flow, until the flow stands still.

    Attributes
    ----------
    n_before, n_within
        Words decoded when the broker stopped, and when nothing more was decoded.
    """

    n_before = n_within = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._broker = process_id(folder)

    def run(self) -> None:
        while Counted.n_decoded < BATCH:
            time.sleep(0.001)
        os.kill(self._broker, signal.SIGSTOP)
        self.n_before = Counted.n_decoded
        since = time.monotonic()
        while time.monotonic() < since + 3:
            if Counted.n_decoded != self.n_within:
                self.n_within, since = Counted.n_decoded, time.monotonic()
            time.sleep(0.01)
        os.kill(self._broker, signal.SIGCONT)


@pytest.mark.parametrize("epoch_seconds", [0.1, 3600.0], ids=["snapshots", "queue"])
def test_a_broker_that_stands_still_stops_the_reading_and_loses_nothing(
    client: dict[str, str], mortal_kafka: Path, tmp_path: Path, epoch_seconds: float
) -> None:
    topic = own_topics(client).topic("in")
    writer = Writer(client)
    words = [f"w{i}" for i in range(N_EVENTS)]
    for word in words:
        writer.send(topic, "u1", word.encode())
    writer.flush()
    paused = start(mortal_kafka)
    create_topics(paused, [("out", 4, 1, KEPT)])

    def split(batch: list[str]) -> list[tuple[str, OutRecord]]:
        return [("u1", record(word)) for word in batch]

    flow = Dataflow("held_back")
    source = CopartitionedSource(
        client, [topic], make_decoder=Counted, batch_size=BATCH, stop_at_end=True
    )
    items = op.flat_map("split", op.input("in", flow, source), split)
    op.output("out", items, ExactlyOnceSink(paused, "out"))
    Counted.n_decoded = 0
    pause = Pause(mortal_kafka)
    pause.start()
    run_main(
        flow,
        epoch_interval=timedelta(seconds=epoch_seconds),
        recovery_config=recovery(tmp_path / "db"),
    )
    pause.join()

    assert 0 < pause.n_before <= pause.n_within < pause.n_before + BOUND
    assert Counted.n_decoded == N_EVENTS
    found = Broker(paused, print, "").read("out")
    assert [m.value for m in found] == [word.encode() for word in words]
    assert {m.partition for m in found} == {partition_of("u1", 4)}
