"""Steps of users from the archive: what `pushflow train value` learns from.

Reads   decisions, feedback and events of `flows.archived`.
Emits   `models.value_data.Steps`.
Owns    which decisions count as sending and as holding, and when a session begins.

A push counts as sent if it reached somebody, and what it earned is what `learn` makes of it. A
hold is a decision in which the policy chose "none". Left out are decisions that the policy was
not asked for, deferred ones, dry runs, and those with other columns than the present ones.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows import archived
from flows.settings import Settings
from models.arms import N_POLICY_CONTEXT, policy_spec_hash
from models.value_data import Decided, Steps, Worth, steps
from operators.archive_files import Place

_COLUMNS: Final = (
    *("user_id", "decided_ms", "outcome", "is_dry_run", "feature_spec", "context", "chosen"),
    "probabilities",
)


class _Hold(NamedTuple):
    user_id: str
    decided_ms: int
    context: list[float]
    sends: float  # probability that it had been a push


def archived_steps(
    settings: Settings,
    place: Place,
    until_ms: int = archived.FOR_EVER_MS,
    worth: Worth | None = None,
) -> tuple[Steps, list[str]]:
    """Return the users' decisions before a moment as steps, and who the users are.

    Memory: that of `flows.archived.push_log`, and 200 bytes an event.
    """
    pushes = archived.push_log(settings, place, until_ms)
    holds = list(_holds(place, until_ms))
    moments = sorted(
        (user_id, time_ms)
        for user_id, time_ms in archived.columns(place, archived.EVENTS, ("user_id", "time_ms"))
        if time_ms < until_ms
    )
    user_ids = sorted({*pushes.user_ids, *(hold.user_id for hold in holds)})
    number = {user_id: n for n, user_id in enumerate(user_ids)}
    is_sent = np.arange(len(pushes.user_ids) + len(holds)) < len(pushes.user_ids)
    nothing = pushes.probabilities[pushes.offsets[1:] - 1]  # "none" is the last arm
    contexts = np.array([hold.context for hold in holds], np.float32)
    decided = Decided(
        users=np.array(
            [number[user_id] for user_id in pushes.user_ids]
            + [number[hold.user_id] for hold in holds],
            np.int64,
        ),
        times_ms=np.concatenate(
            [pushes.decided_ms, np.array([hold.decided_ms for hold in holds], np.int64)]
        ),
        states=np.vstack([pushes.contexts, contexts.reshape(-1, N_POLICY_CONTEXT)]),
        sent=is_sent,
        earned=np.concatenate([pushes.rewards, np.zeros(len(holds))]),
        probabilities=np.concatenate([1.0 - nothing, [hold.sends for hold in holds]]),
    )
    began = _sessions(moments, number, settings.time.session_gap_seconds * 1_000)
    ends = (max((ms for _, ms in moments), default=0), int(decided.times_ms.max(initial=0)))
    return steps(decided, *began, max(ends), worth), user_ids


def _holds(place: Place, until_ms: int) -> Iterable[_Hold]:
    spec = policy_spec_hash()
    for row in archived.columns(place, archived.DECISIONS, _COLUMNS):
        user_id, decided_ms, outcome, is_dry, own_spec, context, chosen, probabilities = row
        is_asked = context is not None and len(probabilities) > 1
        is_none = outcome == "suppress" and chosen == len(probabilities) - 1
        if is_asked and is_none and own_spec == spec and not is_dry and decided_ms < until_ms:
            yield _Hold(user_id, decided_ms, context, 1.0 - probabilities[-1])


def _sessions(
    moments: list[tuple[str, int]], number: dict[str, int], gap_ms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return who began a session, and when, of events by user and time."""
    found = []
    before: tuple[str, int] = ("", 0)
    for user_id, time_ms in moments:
        if user_id != before[0] or time_ms - before[1] > gap_ms:
            found.append((number.get(user_id, -1), time_ms))
        before = (user_id, time_ms)
    known = np.array([row for row in found if row[0] >= 0], np.int64).reshape(-1, 2)
    return known[:, 0], known[:, 1]
