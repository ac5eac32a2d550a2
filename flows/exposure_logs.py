"""Logs of experiments: decisions, answers and events from the archive or from Kafka.

Reads   push.decisions.v1, push.feedback.v1 and push.events.v1.
Emits   the columns that `flows.exposures` needs, a message at a time.

The archive is read by its typed columns, a topic by the few fields that are wanted; both leave out
what cannot be read.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from flows.exposures import Answer, Decided, Log
from flows.settings import Settings

DECISIONS: Final = "push.decisions.v1"
FEEDBACK: Final = "push.feedback.v1"
EVENTS: Final = "push.events.v1"


def archive_log(settings: Settings) -> Log:
    """Return the log that is in the archive."""
    from flows import archived
    from operators.archive_files import Place

    place = Place(settings.archive.url)
    names = ("decision_id", "user_id", "decided_ms", "outcome", "reason_codes", "is_dry_run")

    def decisions() -> Iterator[Decided]:
        for row in archived.columns(place, DECISIONS, (*names, "campaign_id", "arm")):
            decision_id, user_id, time_ms, outcome, reasons, *rest = row
            yield Decided(decision_id, user_id, time_ms, outcome, next(iter(reasons), ""), *rest)

    def answers() -> Iterator[Answer]:
        return (Answer(*row) for row in archived.columns(place, FEEDBACK, Answer._fields))

    def acts() -> Iterator[Any]:
        return archived.columns(place, EVENTS, ("user_id", "type", "time_ms"))

    return Log(decisions, answers, acts)


class _Learning(msgspec.Struct, frozen=True, gc=False):
    campaign_id: str
    arm: str


class _Delivery(msgspec.Struct, frozen=True, gc=False):
    dry_run: bool = False


class _Decision(msgspec.Struct, frozen=True, gc=False):
    decision_id: str
    user_id: str
    decided_at: int
    outcome: str
    reason_codes: list[str]
    delivery: _Delivery
    learning: _Learning


class _Answer(msgspec.Struct, frozen=True, gc=False):
    decision_id: str
    type: str
    time_ms: int
    value: float | None = None


class _Act(msgspec.Struct, frozen=True, gc=False):
    user_id: str
    type: str
    time_ms: int


def topic_log(settings: Settings) -> Log:
    """Return the log that Kafka still has."""

    def decisions() -> Iterator[Decided]:
        for d in _messages(settings, DECISIONS, _Decision):
            rest = (d.delivery.dry_run, d.learning.campaign_id, d.learning.arm)
            reason = next(iter(d.reason_codes), "")
            yield Decided(d.decision_id, d.user_id, d.decided_at, d.outcome, reason, *rest)

    def answers() -> Iterator[Answer]:
        for answer in _messages(settings, FEEDBACK, _Answer):
            yield Answer(answer.decision_id, answer.type, answer.time_ms, answer.value)

    def acts() -> Iterator[tuple[str, str, int]]:
        for act in _messages(settings, EVENTS, _Act):
            yield act.user_id, act.type, act.time_ms

    return Log(decisions, answers, acts)


def _messages(settings: Settings, topic: str, kind: type[Any]) -> Iterator[Any]:
    """Yield what can be read of a topic; `decide` and `learn` make dead letters of the rest."""
    from operators.kafka_tables import Reader

    decoder = msgspec.json.Decoder(kind)
    reader = Reader(settings.kafka.client(), [settings.kafka.topic(topic)])
    try:
        for batch in reader:
            for message in batch:
                if message.value is None:
                    continue
                try:
                    yield decoder.decode(message.value)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
    finally:
        reader.close()
