"""Running a flow: recovery, signals, metrics, and a graceful end.

Reads   settings.
Owns    the life of one process: what is opened before the flow and closed after it.

SIGTERM and SIGINT ask the sources to stop; Bytewax then runs dry, takes a last snapshot, and the
process exits with 0, so that the next start has nothing to replay. A kill -9 leaves the last
committed epoch, and the next start goes on from there.
"""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from prometheus_client import start_http_server

from flows import decide
from flows.settings import Settings
from flows.tables import Tables
from operators.buffered_store import BufferedStore
from operators.feature_store import RedisStore, connector
from operators.kafka import request_stop
from operators.kafka_admin import broker_info
from operators.kafka_client import KafkaFailure

log = logging.getLogger("pushflow")

FlowName = Literal["decide", "learn"]
# Bytewax's recovery partitions: fixed for the life of the state, at least the workers to come.
RECOVERY_PARTITIONS = 4
_CLOSE_SECONDS = 5.0
_START_SECONDS = 30.0  # for a broker that starts beside us


class Cluster(NamedTuple):
    """The place of this process among others; one process alone is the default."""

    process_id: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def n_workers(self) -> int:
        """Workers of the whole cluster, one a process."""
        return max(len(self.addresses), 1)


ALONE = Cluster()


def run(
    name: FlowName,
    settings: Settings,
    *,
    cluster: Cluster = ALONE,
    stop_at_end: bool = False,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run a flow until it is asked to stop, or to the end that its topics have now."""
    settings = _with_run_id(settings, cluster)
    if settings.metrics_port:
        start_http_server(settings.metrics_port)
    with _stopping_on_signals():
        if name == "decide":
            _run_decide(settings, cluster, stop_at_end=stop_at_end, on_ready=on_ready)
        else:
            from flows import learn  # noqa: PLC0415 # loads River, which decide can do without

            flow = learn.from_settings(
                settings, n_workers=cluster.n_workers, stop_at_end=stop_at_end
            )
            check_topics(settings, learn.TOPICS)
            on_ready()
            _main(flow, settings, "learn", cluster)


def _run_decide(
    settings: Settings, cluster: Cluster, *, stop_at_end: bool, on_ready: Callable[[], None]
) -> None:
    check_topics(settings, decide.TOPICS)
    tables = Tables(settings, time.monotonic)
    tables.follow(settings, _tell_progress())
    log.info(
        "%d items, %d campaigns, model %s, policy %s",
        *(len(tables.catalogue), len(tables.campaigns)),
        *(tables.models.version, tables.policies.version),
    )
    if not len(tables.campaigns):
        log.warning(
            "no campaigns: every trigger will be suppressed. Send some to push.campaigns.v1 "
            "or set PUSHFLOW_CAMPAIGNS_FILE"
        )
    with _feature_store(settings) as store:
        flow = decide.from_settings(
            settings, tables, store, n_workers=cluster.n_workers, stop_at_end=stop_at_end
        )
        on_ready()
        _main(flow, settings, "decide", cluster)
    tables.close()


def _main(flow: Dataflow, settings: Settings, name: FlowName, cluster: Cluster) -> None:
    directory = recovery_directory(settings, name)
    settle_garbage_collector()
    # The thread that writes to Redis may keep the flow waiting for this long, not for 5 ms.
    sys.setswitchinterval(0.0005)
    cli_main(
        flow,
        process_id=cluster.process_id if cluster.addresses else None,
        addresses=list(cluster.addresses) or None,
        epoch_interval=timedelta(seconds=settings.state.epoch_seconds),
        recovery_config=RecoveryConfig(str(directory)),
    )


def settle_garbage_collector() -> None:
    """Set what is alive now apart, and collect less often.

    Without this each full collection walks all users held in memory: a pause of 50 to 200 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def check_topics(settings: Settings, names: Iterable[str]) -> None:
    """Raise `KafkaFailure` where a topic is missing: Bytewax would end in a page of traces."""
    info = broker_info(settings.kafka.client(), timeout_s=_START_SECONDS)
    if missing := sorted({settings.kafka.topic(name) for name in names} - set(info.partitions)):
        raise KafkaFailure(
            f"no topic {', '.join(missing)} at {settings.kafka.bootstrap_servers}. "
            "Make them: pushflow topics create"
        )


def recovery_directory(settings: Settings, name: FlowName) -> Path:
    """Return where Bytewax keeps the names of checkpoints; made on first use."""
    directory = settings.state.directory / name / "bytewax"
    if not any(directory.glob("*.sqlite3")):
        directory.mkdir(parents=True, exist_ok=True)
        init_db_dir(directory, RECOVERY_PARTITIONS)
    return directory


def _with_run_id(settings: Settings, cluster: Cluster) -> Settings:
    if settings.run_id:
        return settings
    if cluster.addresses:
        raise SystemExit(
            "several processes need one name for this start: set PUSHFLOW_RUN_ID to the same "
            "new value for all of them, for instance the date and time"
        )
    return settings.model_copy(update={"run_id": f"{time.time_ns() // 1_000_000}-{os.getpid()}"})


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        log.info("%s: finishing what was read, then stopping", signal.Signals(number).name)
        request_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _feature_store(settings: Settings) -> Iterator[BufferedStore | None]:
    url = settings.redis.url.get_secret_value()
    if not url:
        yield None
        return
    redis = RedisStore(connector(url), ttl_seconds=settings.redis.ttl_seconds)
    store = BufferedStore(
        redis,
        clock=time.monotonic,
        flush_ms=settings.redis.flush_ms,
        max_pending=settings.redis.max_pending,
        on_error=lambda error: log.warning("Redis: %s; keeping what is new, trying again", error),
    )
    try:
        yield store
    finally:
        if not store.close(_CLOSE_SECONDS):
            log.warning("Redis is away: %d keys were not written", store.n_pending)
        redis.close()


def _tell_progress() -> Callable[[str, int, int], None]:
    told: dict[str, float] = {}

    def tell(topic: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - told.get(topic, 0.0) >= 1.0:
            told[topic] = now
            log.info("reading %s: %d of %d", topic, done, total)

    return tell
