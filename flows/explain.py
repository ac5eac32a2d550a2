"""Why a decision was made, in words, from the decision alone.

Reads   one `Decision`, as it stands in the topic or in a file of JSON lines.
Emits   what fired, what was considered, what the bandit added up, what held it back.

Everything shown was logged at the time, so the answer is the same for ever.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.settings import Settings
from operators.eligibility import REASONS
from operators.kafka_tables import Reader
from operators.messages import NONE_ARM, Decision, Learning

_SHOWN = 10  # arms in the table
_DECODER = msgspec.json.Decoder(Decision)


def in_topic(settings: Settings, decision_id: str) -> Decision | None:
    """Return a decision from push.decisions.v1, read from its beginning, or None."""
    reader = Reader(settings.kafka.client(), [settings.kafka.topic("push.decisions.v1")])
    try:
        return _find(
            (message.value for batch in reader for message in batch if message.value), decision_id
        )
    finally:
        reader.close()


def in_file(path: Path, decision_id: str) -> Decision | None:
    """Return a decision from a file of JSON lines, or None."""
    with path.open("rb") as lines:
        return _find((line for line in lines if line.strip()), decision_id)


def _find(values: Iterator[bytes], decision_id: str) -> Decision | None:
    needle = decision_id.encode()
    for value in values:
        if needle in value:
            decision = _DECODER.decode(value)
            if decision.decision_id == decision_id:
                return decision
    return None


def _trial(learning: Learning) -> str:
    trial = learning.trial
    if trial is None:
        return ""
    return " in canary" if trial.stage == "canary" else f", {trial.version} in its shadow"


def explain(decision: Decision) -> RenderableType:
    """Return a page about a decision."""
    parts: list[RenderableType] = [_head(decision), _reasons(decision)]
    if len(decision.learning.action_set) > 1:
        parts += [_arms(decision), _contributions(decision)]
    if decision.content is not None:
        parts.append(Text(f"\n{decision.content.title}\n{decision.content.body}", style="bold"))
    return Group(*parts)


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _head(decision: Decision) -> Text:
    learning = decision.learning
    return Text(
        f"{decision.decision_id}  {decision.outcome.upper()}\n"
        f"user {decision.user_id}, {_when(decision.decided_at)}\n"
        f"trigger {decision.trigger.type}, event {decision.trigger.event_id}\n"
        f"campaign {learning.campaign_id or '-'}, arm {learning.arm or '-'}, "
        f"policy {learning.policy_id} {learning.policy_version}, "
        f"model {learning.model_version}{_trial(learning)}\n"
        f"send after {_when(decision.delivery.send_after)}, "
        f"expires {_when(decision.delivery.expires_at)}\n"
    )


def _reasons(decision: Decision) -> Table:
    table = Table(title="Eligibility", title_justify="left", show_header=False)
    for code in decision.reason_codes:
        table.add_row(code, REASONS.get(code, ""))
    return table


def _arms(decision: Decision) -> Table:
    learning = decision.learning
    chosen = learning.chosen
    kind = "explored" if learning.is_exploration else "the best by its value"
    table = Table(
        title=f"Arms: {learning.action_set[chosen].item_id} was chosen with probability "
        f"{learning.propensity:.4f} ({kind})",
        title_justify="left",
    )
    for column in ("", "item", "source", "student's score", "probability"):
        table.add_column(column, justify="right" if column.endswith(("e", "y")) else "left")
    order = sorted(
        range(len(learning.action_set)), key=lambda k: -learning.action_set[k].probability
    )
    shown = order[:_SHOWN] + [k for k in order[_SHOWN:] if k == chosen]
    for k in shown:
        action = learning.action_set[k]
        score = "" if action.item_id == NONE_ARM else f"{action.score:.3f}"
        mark = ">" if k == chosen else ""
        table.add_row(mark, action.item_id, action.source, score, f"{action.probability:.4f}")
    if len(order) > len(shown):
        table.caption = f"and {len(order) - len(shown)} more"
    return table


def _contributions(decision: Decision) -> Table:
    table = Table(
        title="What moved the chosen arm's value most (value x learned weight)",
        title_justify="left",
    )
    for column in ("feature", "value", "contribution"):
        table.add_column(column, justify="left" if column == "feature" else "right")
    for part in decision.explanation:
        table.add_row(part.feature, f"{part.value:.4f}", f"{part.contribution:+.4f}")
    return table
