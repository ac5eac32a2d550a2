"""Writing to one partition in transactions, fenced against whoever wrote there before.

Reads   its own partition, once, after a transaction that failed.
Emits   batches of records, each seen whole or not at all by a reader of committed records.
Owns    the transactional ids, and which of Kafka's errors mean "again", "begin anew" and "stop".

Kafka gives a transactional id to the newest process that asks (`init_transactions`): it ends the
transaction that the one before left open, and refuses whatever that one sends from then on. Such
an id for each partition is the fence: once it is ours, the partition's end stands still.

A commit returns before its marks are in the partition, and a next transaction of the same id that
comes sooner is put off by 20 ms. So a partition has *lanes*, ids used in turn: two where
milliseconds count. A lane is a librdkafka producer: four threads and 700 KB.

A broker may lose such a mark. Kafka 4.3 does where a partition has no leader at the moment when the
coordinator looks for it, as while the only broker that holds it starts again after a kill
("Couldn't find leader endpoint", in one of ten such starts): its log calls the transaction
complete, and in the partition it stays open for ever. Nobody reads past it, until the next
transaction of the same id commits or aborts what it left, along with its own records. `settle`
looks for that and ends it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from operators.kafka_admin import open_admin
from operators.kafka_client import (
    FILLER_KEY,
    START_SECONDS,
    ErrorLog,
    KafkaFailure,
    address,
    attempts,
    is_transient,
    log,
    open_consumer,
    producer_settings,
)
from operators.kafka_standing import id_of, read_to_end, reader_settings

# Arguments of `Producer.produce`: key, value, headers (the last one is the id), timestamp.
Record = Mapping[str, Any]

_LANE: Final = {
    # Above `message.timeout.ms`, so that we hear of an absent broker from librdkafka, as "not
    # delivered", and not from the coordinator, as "fenced". What a dead process left open holds
    # back only what comes after it in its partition, and there only its successor writes, whose
    # first act ends it: so a long timeout keeps no reader waiting.
    "transaction.timeout.ms": 180_000,
    "linger.ms": 0,  # a commit sends all there is; nothing is gained by waiting for more
}
_CALL_SECONDS: Final = 0.2  # between two looks at whether we are still wanted
_SLACK_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1  # before a transaction is begun anew
_MARK_SECONDS: Final = 2.0  # for the marks of a commit to reach a partition
_LOOK_SECONDS: Final = 1.0  # for an answer about a partition's end, while nothing is written

_TAKEN_OVER: Final = frozenset(
    {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
)
_FORBIDDEN: Final = frozenset(
    {
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)
# Deliveries that fail in every transaction alike. All others may pass in the next one.
_REFUSED: Final = _FORBIDDEN | {
    KafkaError._MSG_TIMED_OUT,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
}
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


class Fenced(KafkaFailure):
    """Another process has taken over: this one must stop, and has written nothing since."""


class Abandoned(Exception):  # not an error: the end of a thread nobody waits for
    """Raised in place of waiting on, after `Lanes.abandon`."""


class Lanes:
    """The transactional producers of one partition, used in turn.

    Parameters
    ----------
    client
        librdkafka settings.
    topic, partition
        Where to write.
    n_lanes
        2 where a record should be seen within milliseconds, else 1.

    Raises
    ------
    Fenced
        From `write`, if another process has called `fence` for this partition.
    operators.kafka_client.KafkaFailure
        From `fence` where no coordinator answers in time; from `write` if a batch was refused,
        or not committed within `message.timeout.ms` (2 minutes); from `settle` where another
        writer's transaction is open.

    Notes
    -----
    To be used by one thread; `abandon` may be called by another. Memory: librdkafka's queue, at
    most 64 MB, holds a batch until it is committed.

    Attributes
    ----------
    next_offset
        Behind the last record known to be committed.
    """

    def __init__(
        self, client: Mapping[str, Any], topic: str, partition: int, n_lanes: int = 1
    ) -> None:
        self._client = client
        self._place = f"{topic}[{partition}]"
        self._topic, self._partition = topic, partition
        self._errors = ErrorLog(client)
        settings = producer_settings(client, _LANE | {"error_cb": self._on_error})
        # Longer than librdkafka keeps a record, for it knows better why it could not be delivered.
        self._give_up_s = int(settings["message.timeout.ms"]) / 1_000 + _SLACK_SECONDS
        self._lanes = [
            Producer(settings | {"transactional.id": transactional_id(topic, partition, lane)})
            for lane in range(n_lanes)
        ]
        self._turns = cycle(self._lanes)
        self._is_abandoned = False
        self._was_away = False  # the broker, since the last `settle`
        self._refusal: KafkaError | None = None
        self._n_delivered = 0
        self._reached = 0
        self.next_offset = 0

    def fence(self, wait_s: float = START_SECONDS) -> None:
        """Take the partition over; return when nobody else can write to it any more.

        A coordinator is waited for, `wait_s` seconds for each lane.
        """
        for lane in self._lanes:
            try:
                self._repeat(lane.init_transactions, wait_s)
            except KafkaException as exception:
                error = exception.args[0]
                failed = self._no_coordinator if error.retriable() else self._explain
                raise failed(error) from exception

    def write(self, records: Sequence[Record]) -> None:
        """Write records in one transaction; return when they are committed."""
        lane = next(self._turns)
        left = list(records)
        deadline = time.monotonic() + self._give_up_s
        while left:
            try:
                self._transact(lane, left)
                self._errors.all_well()
                if self._was_away:
                    self.settle()
                return
            except KafkaException as exception:
                self._abort(lane, exception.args[0])
                if time.monotonic() >= deadline:
                    raise self._explain(exception.args[0]) from exception
            left = self._not_standing(left)

    def serve(self) -> None:
        """Take in what librdkafka has to say, for times when nothing is written."""
        for lane in self._lanes:
            lane.poll(0)
        self._errors.check()
        if self._was_away and self._ends(_LOOK_SECONDS) is not None:
            self.settle()

    def settle(self) -> None:
        """Return when all that stands in the partition is committed or aborted.

        What is open although no transaction of ours is, hangs (see above). Each lane then writes
        one record that readers leave out, key `FILLER_KEY` and value null, and commits.
        """
        self._was_away = False
        if self._is_settled():
            return
        log.warning(
            "%s: the broker has lost the end of a transaction, and nobody can read past it; "
            "ending it with a record that says nothing",
            self._place,
        )
        for lane in self._lanes:
            try:
                self._transact(lane, [{"key": FILLER_KEY, "value": None, "headers": []}])
            except KafkaException as exception:
                raise self._explain(exception.args[0]) from exception
        if not self._is_settled():
            raise KafkaFailure(
                f"{self._place}: a transaction is open there that is not ours, and no reader gets "
                "past it. Look for another writer: nobody else may write to this topic. Kafka's "
                "`kafka-transactions.sh find-hanging` names what nobody writes to any more, and "
                "its `abort` ends it"
            )

    def _is_settled(self) -> bool:
        """Say whether the partition holds nothing open, now or soon."""
        deadline = time.monotonic() + _MARK_SECONDS
        while True:
            end, stable = self._ends_in_time()
            if stable >= end:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
            self._check_wanted()

    def _ends_in_time(self) -> tuple[int, int]:
        for _ in attempts(self._give_up_s, f"the offsets of {self._place}"):
            self._check_wanted()
            if (found := self._ends(_LOOK_SECONDS)) is not None:
                return found
        raise KafkaFailure(f"no offsets of {self._place} at {address(self._client)}")

    def _ends(self, timeout_s: float) -> tuple[int, int] | None:
        """Return the partition's end, and how far all is committed or aborted; None if unknown."""
        place = TopicPartition(self._topic, self._partition)
        admin = open_admin(self._client)
        found = []
        # The end first: what is committed in between must not look open.
        for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED):
            asked = admin.list_offsets(
                {place: OffsetSpec.latest()}, isolation_level=level, request_timeout=timeout_s
            )
            try:
                found.append(asked[place].result().offset)
            except KafkaException as exception:
                error = exception.args[0]
                if is_transient(error) or error.code() == KafkaError._NOENT:  # no leader
                    return None
                raise self._explain(error) from exception
        return found[0], found[1]

    def abandon(self) -> None:
        """End what another thread waits for, within a fifth of a second; its batch stays out."""
        self._is_abandoned = True

    def _transact(self, lane: Producer, records: Sequence[Record]) -> None:
        self._refusal, self._n_delivered, self._reached = None, 0, 0
        lane.begin_transaction()
        for record in records:
            if not self._produce(lane, record):
                break  # the transaction has failed already, and its commit says why
        self._repeat(lane.commit_transaction, self._give_up_s)
        if self._n_delivered != len(records):
            raise KafkaFailure(
                f"{self._place}: {self._n_delivered} of {len(records)} records were committed. "
                "This is a fault of ours or of librdkafka; started again, the flow writes the rest"
            )
        self.next_offset = max(self.next_offset, self._reached)

    def _produce(self, lane: Producer, record: Record) -> bool:
        while True:
            try:
                lane.produce(
                    self._topic, partition=self._partition, on_delivery=self._on_delivery, **record
                )
                lane.poll(0)
                return True
            except BufferError:  # full: wait for deliveries, and for nothing else
                lane.poll(0.1)
                self._check_wanted()
            except KafkaException as exception:
                # Neither has the reason: a commit has.
                if exception.args[0].code() not in (KafkaError._STATE, KafkaError._FATAL):
                    raise
                return False

    def _repeat(self, call: Callable[[float], None], seconds: float) -> None:
        """Make a call that librdkafka resumes where it left off, until it is done."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                call(_CALL_SECONDS)
                return
            except KafkaException as exception:
                self._check_wanted()
                if not exception.args[0].retriable() or time.monotonic() >= deadline:
                    raise
                self._errors.check()

    def _abort(self, lane: Producer, error: KafkaError) -> None:
        """End a transaction that failed; raise where another one would fail too."""
        if error.fatal() or not error.txn_requires_abort():
            raise self._explain(self._refusal or error)
        if self._refusal is not None and self._refusal.code() in _REFUSED:
            raise self._explain(self._refusal)
        log.warning("%s: %s; writing the batch again", self._place, (self._refusal or error).str())
        try:
            self._repeat(lane.abort_transaction, self._give_up_s)
        except KafkaException as exception:
            raise self._explain(exception.args[0]) from exception
        time.sleep(_PAUSE_SECONDS)

    def _not_standing(self, records: list[Record]) -> list[Record]:
        """Return the records of a failed transaction that are to be written again.

        That is all of them, unless its commit reached the coordinator after all. We need not know
        librdkafka's rules for that: the partition says what it holds.
        """
        self.settle()  # what the broker left open here would be committed by the next transaction
        begin = TopicPartition(self._topic, self._partition, self.next_offset)
        with open_consumer(reader_settings(self._client)) as consumer:
            ids = {id_of(message) for message in read_to_end(consumer, self._client, [begin])}
        return [record for record in records if record["headers"][-1][1] not in ids]

    def _on_error(self, error: KafkaError) -> None:
        if not error.fatal():  # a fatal one comes back from the next call too, with its reason
            self._was_away = self._was_away or is_transient(error)
            self._errors.on_error(error)

    def _on_delivery(self, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._n_delivered += 1
            # A repeat that the broker recognised comes without an offset: the next offset then
            # stays too low, and a resumed writer reads a little more than it must.
            self._reached = max(self._reached, message.offset() + 1)
        elif error.code() not in _PURGED:
            self._refusal = self._refusal or error

    def _check_wanted(self) -> None:
        if self._is_abandoned:
            raise Abandoned

    def _no_coordinator(self, error: KafkaError) -> KafkaFailure:
        return KafkaFailure(
            f"{address(self._client)} opens no transactions for {self._place}: {error.str()}. Look "
            "for the topic __transaction_state in the broker's log: fewer than three brokers need "
            "transaction.state.log.replication.factor=1 and transaction.state.log.min.isr=1"
        )

    def _explain(self, error: KafkaError) -> KafkaFailure:
        if error.code() in _TAKEN_OVER:
            return Fenced(
                f"another process has taken over {self._place} at {address(self._client)}: "
                f"{error.name()}: {error.str()}. If it is the cluster that is to run, nothing "
                "needs mending: this process has written nothing since. If there is none, the "
                "broker has ended our transaction: start again, and nothing is lost"
            )
        if error.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            return KafkaFailure(
                f"we may not use transactions for {self._place} at {address(self._client)}. "
                f'Grant Write and Describe on transactional ids that begin with "{_PREFIX}"'
            )
        return not_delivered(self._client, self._topic, error)


_PREFIX: Final = "pushflow."


def transactional_id(topic: str, partition: int, lane: int) -> str:
    """Return a lane's name, the same in every process and for ever.

    >>> transactional_id("push.decisions.v1", 3, 0)
    'pushflow.push.decisions.v1.3.0'
    """
    return f"{_PREFIX}{topic}.{partition}.{lane}"


def not_delivered(client: Mapping[str, Any], topic: str, error: KafkaError) -> KafkaFailure:
    """Return what to raise when a record cannot be delivered."""
    return KafkaFailure(
        f"a record for {topic} was not delivered to {address(client)}: {error.name()}: "
        f"{error.str()}. See the broker's log, and the topic's settings for size, timestamps "
        "and rights. Started again, a flow goes on from its last snapshot and loses nothing"
    )
