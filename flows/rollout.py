"""Rolling out models: what `pushflow models` does.

Reads   push.models.v1 and push.model-trials.v1; the evidence of `flows.trial_evidence`.
Emits   push.models.v1, one card that says all: served, on trial, served before.
Owns    the stages of a model, and what each step does to the card.

    publish --stage shadow -> promote -> canary -> promote -> served -> rollback -> the one before
                  '-> rollback: off trial <-'

Processes of `decide` do what the newest card says, and refuse on their own only what they cannot
serve: corrupt, mismatched, slow. That a model is good enough is said in one place, here, by what
all processes together have written; so no two of them can disagree, and none needs to know the
others. Two people who change the card in the same second: the later one holds.
"""

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from flows.model_news import EVERY_S, REPORTS
from flows.settings import Settings
from flows.training import card_of
from flows.trial_evidence import JUDGED, judge_pushes
from models.rollout import FAST_S, MIN_CALLS
from models.trial_verdict import Check
from operators.codec import encode, headers
from operators.kafka_client import (
    address,
    consumer_settings,
    count_partitions,
    open_consumer,
    watermarks,
)
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.messages import ModelCard, ModelRef, ModelTrial, TrialReport, TrialStage
from operators.model_table import SERVED, open_student

MODELS: Final = "push.models.v1"
FRESH_MS: Final = int(6 * EVERY_S * 1_000)  # an older report is of a process that is no more


class RolloutError(Exception):
    """A step that does not fit what the card says; the message says which does."""


class Standing(NamedTuple):
    """What is known now: the card, and what processes report."""

    card: ModelCard | None
    reports: list[TrialReport]


def ref_of(path: Path) -> ModelRef:
    """Return the reference of a model file, after opening it as `decide` will.

    Raises
    ------
    models.serving.ModelFileError, models.serving.ModelMismatchError
        If `decide` would refuse it.
    """
    bare = ModelRef(version="", path=str(path), checksum="", feature_spec="")
    return _ref(card_of(path, open_student(bare).version))


def served(card: ModelCard | None, ref: ModelRef, *, is_forced: bool = False) -> ModelCard:
    """Return the card that has a model served at once; a trial is over with it."""
    previous = None
    if card is not None:
        previous = card.previous if card.checksum == ref.checksum else _ref(card)
    return ModelCard(
        name=SERVED,
        version=ref.version,
        path=ref.path,
        checksum=ref.checksum,
        feature_spec=ref.feature_spec,
        previous=previous,
        is_forced=is_forced,
    )


def on_trial(
    card: ModelCard | None,
    ref: ModelRef,
    stage: TrialStage,
    share: float,
    begins: dict[str, list[int]],
) -> ModelCard:
    """Return the card that tries a model beside the served one, in place of any other on trial."""
    if card is None:
        raise RolloutError("no model is served that another could be tried beside: no --stage")
    if card.checksum == ref.checksum:
        raise RolloutError(f"model {ref.version} is served already")
    trial = ModelTrial(
        version=ref.version,
        path=ref.path,
        checksum=ref.checksum,
        feature_spec=ref.feature_spec,
        stage=stage,
        share=share,
        begins=begins,
    )
    return msgspec.structs.replace(card, trial=trial)


def promoted(
    card: ModelCard | None, share: float, begins: dict[str, list[int]], *, is_forced: bool = False
) -> ModelCard:
    """Return the card with the model on trial one stage on: from shadow to canary, to served."""
    if card is None or card.trial is None:
        raise RolloutError("no model is on trial: pushflow models publish FILE --stage shadow")
    if card.trial.stage == "shadow":
        return on_trial(card, card.trial, "canary", share, begins)
    return served(card, _ref(card.trial), is_forced=is_forced)


def rolled_back(card: ModelCard | None) -> ModelCard:
    """Return the card without the model on trial, or where there is none with the one before.

    What was served before was fast enough then, and is taken however slow it is beside this one.
    """
    if card is not None and card.trial is not None:
        return msgspec.structs.replace(card, trial=None)
    if card is None or card.previous is None:
        raise RolloutError("no model was served before that one could go back to")
    return served(card, card.previous, is_forced=True)


def judge(settings: Settings, now: Standing, now_ms: int) -> list[Check]:
    """Hold the model on trial to the guard."""
    if now.card is None or now.card.trial is None:
        raise RolloutError("no model is on trial: pushflow models publish FILE --stage shadow")
    checks = judge_reports(now, settings.models.max_slowdown, now_ms)
    return [*checks, *judge_pushes(settings, now.card.trial)]


def judge_reports(now: Standing, max_slowdown: float, now_ms: int) -> list[Check]:
    """Hold the model on trial to being taken up, and fast, in every process that runs."""
    version = now.card.trial.version if now.card is not None and now.card.trial is not None else ""
    fresh = [report for report in now.reports if now_ms - report.time_ms <= FRESH_MS]
    if not fresh:
        return [Check("processes", "wait", "none of decide has reported within a minute")]
    for report in fresh:
        if (reason := report.refusals.get(version)) is not None:
            return [Check("processes", "fail", f"process {report.process} refuses it: {reason}")]
    absent = [report.process for report in fresh if report.trial != version]
    if absent:
        return [Check("processes", "wait", f"not taken up yet by {', '.join(absent)}")]
    checks = [Check("processes", "pass", f"taken up by all {len(fresh)}")]
    timed = [report for report in fresh if report.n_calls >= MIN_CALLS]
    if timed:
        ratio, report = max((r.trial_p99 / max(r.served_p99, 1e-9), r) for r in timed)
        is_slow = ratio > max_slowdown and report.trial_p99 > FAST_S
        detail = (
            f"99th percentile {report.trial_p99 * 1_000:.2f} ms, {ratio:.2f} times the served "
            f"one's, at most {max_slowdown:g}"
        )
        checks.append(Check("latency", "fail" if is_slow else "pass", detail))
    return checks


def read(settings: Settings) -> Standing:
    """Return what the topics say now."""
    cards = _newest(settings, MODELS, ModelCard)
    reports = _newest(settings, REPORTS, TrialReport)
    return Standing(cards.get(SERVED), [reports[key] for key in sorted(reports)])


def write(settings: Settings, card: ModelCard) -> None:
    """Send a card; every `decide` follows it."""
    writer = Writer(settings.kafka.client())
    record_id = f"{card.name}:{card.version}:{time.time_ns()}"
    extra = headers(record_id, "push.model.v1", "pushflow/models")
    writer.send(settings.kafka.topic(MODELS), card.name, encode(card), extra)
    writer.flush()


def ends(settings: Settings) -> dict[str, list[int]]:
    """Return the next offset of every partition that a trial is judged by."""
    client = settings.kafka.client()
    found: dict[str, list[int]] = {}
    with open_consumer(consumer_settings(client)) as consumer:
        for name in JUDGED:
            topic = settings.kafka.topic(name)
            partitions = range(count_partitions(consumer, topic, address(client)))
            found[name] = [watermarks(consumer, topic, number)[1] for number in partitions]
    return found


def _newest(settings: Settings, name: str, kind: type[Any]) -> dict[str, Any]:
    """Return the rows of a compacted topic; what cannot be read is passed over."""
    rows: dict[str, Any] = {}
    reader = Reader(settings.kafka.client(), [settings.kafka.topic(name)])
    try:
        for batch in reader:
            for message in batch:
                key = (message.key or b"").decode(errors="replace")
                rows.pop(key, None)
                if message.value is None:
                    continue
                try:
                    rows[key] = msgspec.json.decode(message.value, type=kind)
                except msgspec.DecodeError:
                    continue
    finally:
        reader.close()
    return rows


def _ref(of: ModelRef) -> ModelRef:
    return ModelRef(
        version=of.version, path=of.path, checksum=of.checksum, feature_spec=of.feature_spec
    )
