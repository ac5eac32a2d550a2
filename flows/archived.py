"""Training sets from the archive, as of a moment.

Reads   the files of `flows.archive`, their typed columns.
Emits   events and items for `flows.training`; `models.push_log.PushLog`; all that policies decided
        for `flows.ope`.
Owns    what was known when: nothing dated at or after `until_ms` is looked at, an item is what it
        was then, and a push counts only once its window had closed by then.

What a decision was made on comes from its own log. What it earned comes from the code by which
`learn` learns, fed with the same messages. What users did is handed to `flows.training`, which
keeps their state by the code that `decide` keeps it by.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.learn import attribution
from flows.settings import Settings
from models.arms import N_ARM, N_POLICY_CONTEXT, policy_spec_hash
from models.push_log import OUTCOMES, PushLog
from operators import attribution_state
from operators.archive_files import Place
from operators.archive_reader import partitions, read_partition
from operators.hops import ItemSignal, Reward
from operators.messages import (
    Action,
    CampaignRewards,
    Decision,
    Delivery,
    Event,
    EventContext,
    Feedback,
    Item,
    Learning,
    TriggerRef,
)
from operators.shards import DictShard

EVENTS: Final = "push.events.v1"
ITEMS: Final = "push.items.v1"
DECISIONS: Final = "push.decisions.v1"
FEEDBACK: Final = "push.feedback.v1"
FOR_EVER_MS: Final = 4_200_000_000_000  # 2103: no message may be dated so

_EVENT: Final = ("event_id", "user_id", "type", "time_ms", "item_id", "value", "text", "context")
_FEEDBACK: Final = ("feedback_id", "decision_id", "user_id", "type", "time_ms", "value")
_SENT: Final = pa.schema(
    {
        "decision_id": pa.string(),
        "user_id": pa.string(),
        "decided_ms": pa.int64(),
        "context": pa.list_(pa.float32(), N_POLICY_CONTEXT),
        "item_ids": pa.list_(pa.string()),
        "features": pa.list_(pa.list_(pa.float32(), N_ARM)),
        "probabilities": pa.list_(pa.float64()),
        "chosen": pa.int64(),
        "propensity": pa.float64(),
        "reward_deadline_ms": pa.int64(),
        "feature_spec": pa.string(),
    }
)
_NONE_SENT: Final = _SENT.empty_table()
LABELS: Final = ("trigger_type", "campaign_id", "arm", "policy_id")
_DECIDED: Final = pa.schema(
    [*_SENT, *((name, pa.string()) for name in LABELS), ("outcome", pa.string())]
)
_NO_DELIVERY: Final = Delivery(
    channel="any", send_after=0, expires_at=0, priority="normal", collapse_key=""
)


class _Earns(msgspec.Struct, frozen=True):
    rewards: CampaignRewards | None = None


class _Said(msgspec.Struct, frozen=True):
    """The part of a decision that has no column."""

    learning: _Earns = _Earns()


def events(place: Place, until_ms: int = FOR_EVER_MS) -> Iterator[Event]:
    """Yield the events before a moment, in the order in which each user's came.

    What `decide` refused is left out, and so are `props`, which no feature reads. Memory: a row
    group of each partition.
    """
    parts = [_events_of(place, number, until_ms) for number in partitions(place, EVENTS)]
    return heapq.merge(*parts, key=lambda event: event.time_ms)


def _events_of(place: Place, partition: int, until_ms: int) -> Iterator[Event]:
    for row in _rows(place, EVENTS, partition, _EVENT):
        if row["time_ms"] < until_ms:
            context = row.pop("context")
            yield Event(**row, context=None if context is None else EventContext(**context))


def _rows(
    place: Place, topic: str, partition: int, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the usable rows of a partition."""
    for table in _tables(place, topic, partition, columns):
        yield from table.to_pylist()


def columns(place: Place, topic: str, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield some columns of a topic's usable rows, partition by partition, each in order."""
    for partition in partitions(place, topic):
        for table in _tables(place, topic, partition, names):
            yield from zip(*(table.column(name).to_pylist() for name in names), strict=True)


def _tables(place: Place, topic: str, partition: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    for table in read_partition(place, topic, partition, ["refused", *columns]):
        yield table.filter(pc.is_null(table.column("refused"))).select(list(columns))


def items(place: Place, until_ms: int = FOR_EVER_MS) -> Iterator[Item]:
    """Yield the items as they were at a moment, by the time of their messages."""
    newest: dict[bytes, bytes | None] = {}
    for partition in partitions(place, ITEMS):
        for row in _rows(place, ITEMS, partition, ("key", "raw", "timestamp_ms")):
            if row["key"] is not None and row["timestamp_ms"] < until_ms:
                newest[row["key"]] = row["raw"]
    for raw in newest.values():
        if raw is not None:
            yield msgspec.json.decode(raw, type=Item)


class Decided(NamedTuple):
    """What a policy decided, to send nothing among it, and labels of `LABELS`, N each."""

    log: PushLog
    labels: dict[str, list[str]]


def push_log(settings: Settings, place: Place, until_ms: int = FOR_EVER_MS) -> PushLog:
    """Return the pushes whose windows had closed by a moment, with what they earned until then.

    The moment is `until_ms`, or that of the newest push or feedback before it. Left out are
    pushes of a policy with other columns than the present one, dry runs, and those that reached
    nobody: `learn` takes nothing from them either. Memory: twice that of the result.
    """
    sent = [_sent(place, partition, until_ms) for partition in partitions(place, DECISIONS)]
    rewards, outcomes, end_ms = _answers(settings, place, sent, until_ms)
    table = pa.concat_tables([_NONE_SENT, *sent])
    ids = table.column("decision_id").to_pylist()
    is_in = pa.array([decision_id in rewards for decision_id in ids], pa.bool_())
    table = table.filter(is_in).filter(pc.field("reward_deadline_ms") <= end_ms)
    order = [("decided_ms", "ascending"), ("decision_id", "ascending")]
    return _arrays(table.sort_by(order).combine_chunks(), rewards, outcomes)


def decided(settings: Settings, place: Place, until_ms: int = FOR_EVER_MS) -> Decided:
    """Return what policies decided, and what it earned: off-policy evaluation reads this.

    As `push_log`, with two differences, without which what is left out would depend on what was
    chosen. Sending nothing is there too, and earned 0. So did a push that reached nobody.
    Deferred pushes are left out, and so is sending nothing where a push had been deferred.
    """
    asked = [_asked(place, partition, until_ms) for partition in partitions(place, DECISIONS)]
    sent = [table.filter(pc.field("outcome") == "send").select(_SENT.names) for table in asked]
    rewards, outcomes, end_ms = _answers(settings, place, sent, until_ms)
    table = pa.concat_tables([_DECIDED.empty_table(), *asked])
    table = table.filter(pc.field("reward_deadline_ms") <= end_ms)
    order = [("decided_ms", "ascending"), ("decision_id", "ascending")]
    table = table.sort_by(order).combine_chunks()
    labels = {name: table.column(name).to_pylist() for name in LABELS}
    return Decided(_arrays(table, rewards, outcomes), labels)


def _asked(place: Place, partition: int, until_ms: int) -> pa.Table:
    n_arms = pc.list_value_length(pc.field("features"))
    is_wanted = (
        pc.field("outcome").isin(["send", "suppress"])
        & ~pc.field("is_dry_run")
        & (pc.field("feature_spec") == policy_spec_hash())
        & (pc.field("decided_ms") < until_ms)
        & (pc.field("send_after_ms") <= pc.field("decided_ms"))  # it would not have been deferred
        & (n_arms > 1)  # else it never came to the policy
        & (pc.field("chosen") >= 0)
        & (pc.field("chosen") < n_arms)
    )
    found = [_DECIDED.empty_table()]
    names = [*_DECIDED.names, "is_dry_run", "send_after_ms"]
    for table in _tables(place, DECISIONS, partition, names):
        wanted = table.filter(is_wanted).select(_DECIDED.names)
        if wanted.num_rows:
            found.append(wanted.cast(_DECIDED))
    return pa.concat_tables(found)


def _sent(place: Place, partition: int, until_ms: int) -> pa.Table:
    is_wanted = (
        (pc.field("outcome") == "send")
        & ~pc.field("is_dry_run")
        & (pc.field("feature_spec") == policy_spec_hash())
        & (pc.field("decided_ms") < until_ms)
        & (pc.field("chosen") >= 0)
        & (pc.field("chosen") < pc.list_value_length(pc.field("features")))
    )
    found = [_NONE_SENT]
    for table in _tables(place, DECISIONS, partition, [*_SENT.names, "outcome", "is_dry_run"]):
        # Columns of another width are of another specification: no row of theirs is wanted.
        wanted = table.filter(is_wanted).select(_SENT.names)
        if wanted.num_rows:
            found.append(wanted.cast(_SENT))
    return pa.concat_tables(found)


def _answers(
    settings: Settings, place: Place, sent: Sequence[pa.Table], until_ms: int
) -> tuple[dict[str, float], dict[str, set[str]], int]:
    """Return rewards and outcomes by decision_id, as `learn` comes to them, and as of when."""
    states = DictShard(
        "00",
        encode=attribution_state.encode_state,
        decode=attribution_state.decode_state,
        new=attribution_state.new_state,
    )
    joining = attribution(settings, states)
    rewards: dict[str, float] = defaultdict(float)
    outcomes: dict[str, set[str]] = defaultdict(set)
    lateness_ms, clock_ms = settings.time.lateness_seconds * 1_000, 0

    def learn(found: Iterable[Reward | ItemSignal]) -> None:
        for entry in found:
            if isinstance(entry, Reward):
                rewards[entry.decision_id] += entry.reward

    own = _own_rewards(place)
    parts: list[Iterator[tuple[int, Decision | Feedback]]] = [_decisions(t, own) for t in sent]
    parts += [_feedback(place, number, until_ms) for number in partitions(place, FEEDBACK)]
    for time_ms, entry in heapq.merge(*parts, key=_time):
        clock_ms = max(clock_ms, time_ms)
        watermark_ms = clock_ms - lateness_ms
        learn(joining.advance(0, watermark_ms))
        if isinstance(entry, Decision):
            learn(joining.on_decision(entry, 0, watermark_ms))
        else:
            outcomes[entry.decision_id].add(entry.type)
            learn(joining.on_feedback(entry, 0, watermark_ms))
    learn(joining.advance(0, clock_ms))
    return rewards, outcomes, clock_ms


def _time(entry: tuple[int, Any]) -> int:
    return entry[0]


def _feedback(
    place: Place, partition: int, until_ms: int
) -> Iterator[tuple[int, Decision | Feedback]]:
    for row in _rows(place, FEEDBACK, partition, _FEEDBACK):
        if row["time_ms"] < until_ms:
            yield row["time_ms"], Feedback(**row)


def _own_rewards(place: Place) -> dict[str, CampaignRewards]:
    """Return what a campaign said that its pushes earn, by decision_id; few say anything.

    No column has it: it is looked for in the messages.
    """
    found: dict[str, CampaignRewards] = {}
    for partition in partitions(place, DECISIONS):
        for table in _tables(place, DECISIONS, partition, ("decision_id", "raw")):
            said = table.filter(pc.match_substring(table.column("raw"), '"rewards":{'))
            pairs = zip(*(said.column(name).to_pylist() for name in said.column_names), strict=True)
            for decision_id, raw in pairs:
                rewards = msgspec.json.decode(raw, type=_Said).learning.rewards
                if rewards is not None:
                    found[decision_id] = rewards
    return found


def _decisions(
    sent: pa.Table, own: Mapping[str, CampaignRewards]
) -> Iterator[tuple[int, Decision | Feedback]]:
    """Yield what attribution reads of each push: of its arms the chosen one."""
    arms = _Arms(sent.combine_chunks())
    names = ("decision_id", "user_id", "decided_ms", "chosen", "reward_deadline_ms")
    columns = (sent.column(name).to_pylist() for name in names)
    for row, values in enumerate(zip(*columns, strict=True)):
        decision_id, user_id, decided_ms, chosen, deadline_ms = values
        arm = arms.offsets[row] + chosen
        action = Action(arms.item_ids[arm], "", 0.0, 0.0, arms.features[arm].tolist())
        yield (
            decided_ms,
            Decision(
                decision_id=decision_id,
                trigger=TriggerRef("intent", ""),
                user_id=user_id,
                decided_at=decided_ms,
                outcome="send",
                reason_codes=[],
                delivery=_NO_DELIVERY,
                content=None,
                learning=Learning(
                    policy_id="",
                    policy_version="",
                    model_version="",
                    feature_spec=policy_spec_hash(),
                    campaign_id="",
                    arm="",
                    context=arms.contexts[row].tolist(),
                    action_set=[action],
                    chosen=0,
                    propensity=0.0,
                    is_exploration=False,
                    reward_deadline=deadline_ms,
                    rewards=own.get(decision_id),
                ),
                explanation=[],
            ),
        )


class _Arms:
    """The nested columns of pushes as arrays, by the names of `PushLog`."""

    def __init__(self, sent: pa.Table) -> None:
        nested = sent.column("features").combine_chunks()
        self.offsets = nested.offsets.to_numpy().astype(np.int64)
        self.offsets -= self.offsets[0]
        self.features = _floats(nested.flatten(), N_ARM)
        self.contexts = _floats(sent.column("context").combine_chunks(), N_POLICY_CONTEXT)
        self.item_ids: list[str] = sent.column("item_ids").combine_chunks().flatten().to_pylist()


def _floats(fixed: Any, width: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = fixed.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width)


def _arrays(sent: pa.Table, rewards: dict[str, float], outcomes: dict[str, set[str]]) -> PushLog:
    arms = _Arms(sent)
    ids = sent.column("decision_id").to_pylist()
    is_so = [[name in outcomes.get(found, ()) for name in OUTCOMES] for found in ids]
    return PushLog(
        decision_ids=ids,
        user_ids=sent.column("user_id").to_pylist(),
        decided_ms=sent.column("decided_ms").to_numpy(),
        contexts=arms.contexts,
        offsets=arms.offsets,
        item_ids=arms.item_ids,
        features=arms.features,
        probabilities=sent.column("probabilities").combine_chunks().flatten().to_numpy(),
        chosen=arms.offsets[:-1] + sent.column("chosen").to_numpy(),
        propensities=sent.column("propensity").to_numpy(),
        rewards=np.array([rewards.get(found, 0.0) for found in ids], np.float64),
        outcomes=np.array(is_so, np.bool_).reshape(-1, len(OUTCOMES)),
    )
