"""Running a flow: recovery, signals, metrics, and a graceful end.

Reads   settings.
Owns    the life of one process: what is opened before the flow and closed after it.

SIGTERM and SIGINT ask the sources to stop; Bytewax then runs dry, takes a last snapshot, and the
process exits with 0, so that the next start has nothing to replay. A kill -9 leaves the last
committed epoch, and the next start goes on from there.
"""

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from prometheus_client import start_http_server

from flows import decide
from flows.failures import NoTopic, TopicsChanged, why
from flows.remote import fetch, saving
from flows.settings import Settings
from flows.tables import Tables, followed
from operators.archive_names import ArchiveUnusable
from operators.buffered_store import BufferedStore
from operators.feature_store import RedisStore, connector
from operators.incarnations import take_over
from operators.kafka import request_stop, stop_requested
from operators.kafka_admin import broker_info
from operators.kafka_client import KafkaFailure
from operators.kafka_transactions import Fenced
from operators.kafka_watch import TopicWatch
from operators.lineage import CheckpointError, owner_of

log = logging.getLogger("pushflow")

FlowName = Literal["decide", "learn", "catalog", "archive"]
# Bytewax's recovery partitions: fixed for the life of the state. A cluster may have more workers:
# they share these. Each one makes the end of an epoch some 1.4 ms longer on the worker that has it.
RECOVERY_PARTITIONS = 1
_CLOSE_SECONDS = 5.0
_TAKE_OVER_SECONDS = 600.0  # the first process may have to fetch the state from another place
_TELL_SECONDS = 5.0
_START_SECONDS = 30.0  # for a broker that starts beside us
_YOUNG_SECONDS = 0.05  # between two collections of garbage: some thousand objects each
_DECIDE_WRITES = ("push.decisions.v1", "push.dlq.v1")
_LEARN_WRITES = ("push.policy.v1", "push.item-stats.v1")


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
    """Run a flow until it is asked to stop, or to the end that its topics have now.

    Raises
    ------
    TopicsChanged
        Once the flow has ended, if it did so for its topics have grown or were made anew.
    """
    settings = _with_run_id(settings, cluster)
    if settings.metrics_port:
        start_http_server(settings.metrics_port)
    with _stopping_on_signals(), _judging_fences(settings, name):
        if name == "decide":
            check_topics(settings, decide.TOPICS)
            others = [*_DECIDE_WRITES, *([] if settings.ranking.frozen else followed(settings))]
            with _watching(settings, decide.TOPICS, others, is_on=not stop_at_end):
                _run_decide(settings, cluster, stop_at_end=stop_at_end, on_ready=on_ready)
        elif name == "catalog":
            from flows import catalog  # noqa: PLC0415 # may load an encoder's libraries

            check_topics(settings, catalog.TOPICS)
            flow = catalog.from_settings(
                settings, n_workers=cluster.n_workers, stop_at_end=stop_at_end
            )
            others = [catalog.ITEMS, *catalog.WRITES]
            with _watching(settings, catalog.JOINED, others, is_on=not stop_at_end):
                on_ready()
                _main(flow, settings, "catalog", cluster)
        elif name == "archive":
            _run_archive(settings, cluster, stop_at_end=stop_at_end, on_ready=on_ready)
        else:
            from flows import learn  # noqa: PLC0415 # loads River, which decide can do without

            flow = learn.from_settings(
                settings, n_workers=cluster.n_workers, stop_at_end=stop_at_end
            )
            check_topics(settings, learn.TOPICS)
            with _watching(settings, learn.TOPICS, _LEARN_WRITES, is_on=not stop_at_end):
                on_ready()
                _main(flow, settings, "learn", cluster)


def _run_decide(
    settings: Settings, cluster: Cluster, *, stop_at_end: bool, on_ready: Callable[[], None]
) -> None:
    tables = Tables(settings, time.monotonic)
    tables.follow(settings, _tell_progress(), process=str(cluster.process_id))
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
            settings,
            tables,
            store,
            n_workers=cluster.n_workers,
            # The last thing before the flow: nobody but it may write decisions from here on.
            emitted=decide.emitted_beyond(
                settings, recovery_directory(settings, "decide", cluster)
            ),
            stop_at_end=stop_at_end,
        )
        on_ready()
        _main(flow, settings, "decide", cluster)
    tables.close()


def _run_archive(
    settings: Settings, cluster: Cluster, *, stop_at_end: bool, on_ready: Callable[[], None]
) -> None:
    try:
        from flows import archive  # noqa: PLC0415 # loads pyarrow, which is an extra
    except ImportError as error:
        raise ArchiveUnusable(
            f"{error}. The archive needs pyarrow: pip install 'pushflow[archive]'"
        ) from error
    check_topics(settings, archive.TOPICS)
    flow = archive.from_settings(settings, stop_at_end=stop_at_end)
    with _watching(settings, (), archive.TOPICS, is_on=not stop_at_end):
        on_ready()
        _main(flow, settings, "archive", cluster)


def _main(flow: Dataflow, settings: Settings, name: FlowName, cluster: Cluster) -> None:
    directory = recovery_directory(settings, name, cluster)
    settle_garbage_collector()
    # The thread that writes to Redis may keep the flow waiting for this long, not for 5 ms.
    sys.setswitchinterval(0.0005)
    epoch = timedelta(seconds=settings.state.epoch_seconds)
    with saving(settings, name, is_on=cluster.process_id == 0):
        cli_main(
            flow,
            process_id=cluster.process_id if cluster.addresses else None,
            addresses=list(cluster.addresses) or None,
            epoch_interval=epoch,
            # Bytewax divides the two: it keeps snapshots for as many epochs as we checkpoints.
            recovery_config=RecoveryConfig(str(directory), epoch * settings.state.keep_epochs),
        )


def settle_garbage_collector() -> None:
    """Set what is alive now apart, and collect little at a time.

    Without this each full collection walks all users held in memory: a pause of 50 to 200 ms. So
    do others once the users no longer fit in memory: Python counts what is made less what is freed,
    which is nothing where one user is read for each that goes, and then takes all of them for young
    (112 to 156 ms). So a thread collects what is young by the clock. The oldest are next to never
    collected: what refers to itself is rare here, and goes while it is young.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 500, 100_000)  # a young one of 50,000 objects took 36 ms
    threading.Thread(target=_collect_young, name="young-garbage", daemon=True).start()


def _collect_young() -> None:
    while True:
        for generation in (0, 0, 0, 0, 1):
            time.sleep(_YOUNG_SECONDS)
            gc.collect(generation)


def check_topics(settings: Settings, names: Iterable[str]) -> None:
    """Raise `KafkaFailure` where a topic is missing: Bytewax would end in a page of traces."""
    info = broker_info(settings.kafka.client(), timeout_s=_START_SECONDS)
    if missing := sorted({settings.kafka.topic(name) for name in names} - set(info.partitions)):
        raise NoTopic(
            f"no topic {', '.join(missing)} at {settings.kafka.bootstrap_servers}. "
            "Make them: pushflow topics create"
        )


def recovery_directory(settings: Settings, name: FlowName, cluster: Cluster = ALONE) -> Path:
    """Take over the flow's state; return where Bytewax keeps the names of checkpoints.

    The first process of a cluster takes it over, the others wait for that. A later call of the
    same start returns the same directory. Call it before Bytewax opens what is in it.
    """
    home = settings.state.directory / name
    if cluster.process_id == 0:
        fetch(settings, name)
        return take_over(home, settings.run_id, decide.STORES[name], _init_recovery)
    return _await_first_process(home / "bytewax" / settings.run_id)


def _init_recovery(directory: Path) -> None:
    init_db_dir(directory, RECOVERY_PARTITIONS)


def _await_first_process(directory: Path) -> Path:
    began = told = time.monotonic()
    while not directory.is_dir():
        if stop_requested():
            raise _StopAskedError
        now = time.monotonic()
        if now - began > _TAKE_OVER_SECONDS:
            raise CheckpointError(
                f"process 0 did not make {directory} within {_TAKE_OVER_SECONDS:.0f} s. All "
                "processes of a cluster need the same PUSHFLOW_RUN_ID, and a state directory "
                "that they share"
            )
        if now - told > _TELL_SECONDS:
            told = now
            log.info("waiting for process 0 to take over the state: %s", directory)
        time.sleep(0.02)
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


def _begin_to_stop() -> None:
    """Have the sources stop, and say so: no process ends before all do, so all must be asked."""
    request_stop()
    with suppress(OSError):
        os.write(sys.stdout.fileno(), b"stopping\n")  # a signal may come in the middle of a print


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        log.info("%s: finishing what was read, then stopping", signal.Signals(number).name)
        _begin_to_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    faulthandler.register(signal.SIGUSR1)  # kill -USR1: where is each thread just now?
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _judging_fences(settings: Settings, name: FlowName) -> Iterator[None]:
    """Raise another error than `Fenced` where the state is still ours: one to start again after.

    Kafka's fence obeys who came last. That may be a start that we have replaced, which was stopped
    on its way there; or the broker itself, ending a transaction that took too long. Whose turn it
    is, the state's owner says.
    """
    try:
        yield
    except RuntimeError as error:
        reason = why(error)
        owner = owner_of(settings.state.directory / name / "owner")
        if reason is None or not isinstance(reason[0], Fenced) or owner != settings.run_id:
            raise
        raise KafkaFailure(
            f"{reason[0]}. The state still belongs to this run: the next start takes over again"
        ) from error


class _StopAskedError(Exception):
    """We were asked to stop before there was a flow to end."""


@contextmanager
def _watching(
    settings: Settings, joined: Iterable[str], others: Iterable[str], *, is_on: bool
) -> Iterator[None]:
    """Ask the flow to stop once its topics have changed, and then raise `TopicsChanged`."""
    changes: list[str] = []

    def stop(change: str) -> None:
        log.warning("%s: finishing what was read, then starting again", change)
        changes.append(change)
        _begin_to_stop()

    kafka, watch = settings.kafka, None
    if is_on:
        watch = TopicWatch(
            kafka.client(),
            [kafka.topic(name) for name in joined],
            [kafka.topic(name) for name in others],
            stop,
            seconds=kafka.watch_seconds,
        )
    try:
        with suppress(_StopAskedError):
            yield
    finally:
        if watch is not None:
            watch.close()
    if changes:
        raise TopicsChanged(changes[0])


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
        if stop_requested():
            raise _StopAskedError
        now = time.monotonic()
        if now - told.get(topic, 0.0) >= 1.0:
            told[topic] = now
            log.info("reading %s: %d of %d", topic, done, total)

    return tell
