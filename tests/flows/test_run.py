"""The life of a process: asked to stop before its flow has begun."""

from pathlib import Path

from flows.run import run
from flows.settings import Settings
from flows.topics import specs
from operators.embedded import EmbeddedBroker
from operators.kafka import clear_stop, request_stop
from operators.kafka_admin import create_topics


def test_a_start_that_is_asked_to_stop_reads_no_table_to_its_end(tmp_path: Path) -> None:
    ready: list[str] = []
    with EmbeddedBroker() as broker:
        kafka = {"bootstrap_servers": broker.bootstrap, "extra": {"fetch.wait.max.ms": "2"}}
        settings = Settings(
            kafka=kafka,  # type: ignore[arg-type] # pydantic converts them
            redis={"url": ""},  # type: ignore[arg-type]
            state={"directory": tmp_path},  # type: ignore[arg-type]
        )
        create_topics(broker.client, specs(settings))
        request_stop()
        try:
            run("decide", settings, on_ready=lambda: ready.append("ready"))
        finally:
            clear_stop()

    assert ready == []
    assert list(tmp_path.iterdir()) == []
