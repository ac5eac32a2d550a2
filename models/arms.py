"""The policy's columns: what it knows of the moment and of each arm, and their crosses.

Owns    the names, order, scaling and rounding of the policy's input, and its hash. `decide`
        builds it, the decisions topic logs it (context once, arm columns for each action), and
        `learn` builds the same row again from the log.

All columns are rounded to 4 decimals *before* use. A logged decision therefore holds the exact
input in short numbers: `design(logged context, logged features)` equals the row that was used,
bit for bit, whether the arms were float32 or float64 on the way.

Everything is scaled to about [-3, 3], for the learner's prior is the same for every column.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from models.features import COLUMN

DECIMALS: Final = 4
TRIGGERS: Final = (
    "intent",
    "cart_left",
    "session_ended",
    "idle",
    "price_dropped",
    "back_in_stock",
)
SOURCES: Final = (
    "neighbour",
    "content",
    "trend",
    "unfinished",
    "intent",
    "tower",
    "repeat",
    "changed",
    "campaign",
    "explore",
)
N_CAMPAIGNS: Final = 4  # two campaigns may share a column: they then differ by their triggers alone
PUSH_HOURS_CAP: Final = 168.0  # a week: longer ago is the same as never
FRESH_DAYS: Final = 7.0
LIMIT: Final = 8.0  # no column leaves [-8, 8]: one absurd value must not own the regression

# A rate is told as (smoothed rate / its prior mean) - 1, at most RATE_CAP: 0 for an unknown item.
# Prior mean, and how many views (or pushes) the prior counts as.
CLICK_PRIOR: Final = (0.10, 20.0)
PURCHASE_PRIOR: Final = (0.02, 50.0)
OPEN_PRIOR: Final = (0.10, 20.0)
FAVORITE_PRIOR: Final = (0.03, 50.0)
RATE_CAP: Final = 5.0

POLICY_CONTEXT: Final = (
    "hour_sin",  # in the user's timezone
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "session_events",  # log(1 + x) / 3, as are the next five counts
    "events_1d",
    "opens",
    "dismissals",
    "pushes_1d",
    "pushes_7d",
    "push_pause",  # log hours since the last push, 0 just now, 1 a week ago or never
    *(f"trigger_{name}" for name in TRIGGERS),
    *(f"campaign_{number}" for number in range(N_CAMPAIGNS)),  # 1 in the campaign's, by hash
)
ARM: Final = (
    "score_z",  # the student's score, z-scored within the set
    "score_rank",  # 1 for the best, 1 / log2(2 + rank)
    "fused_z",
    *(f"source_{name}" for name in SOURCES),
    "popularity",  # log(1 + x), z-scored within the set
    "click_rate",
    "purchase_rate",
    "open_rate",
    "freshness",  # exp(-age / 7 days)
    "price",  # log(1 + price) / 5
    "category_affinity",  # share of the user's history in the item's category
    "favorite_rate",
    "times_pushed",  # log(1 + pushes of this item to this user)
    "push_recency",  # exp(-days since that); 0: never
    "intent_cosine",  # of the item's content and what the session's searches ask for; 0: none
    "taste_cosine",  # of the item's content and what the user has written; 0: nothing
)
CROSSES: Final = (  # (column of ARM, column of POLICY_CONTEXT)
    ("score_z", "hour_sin"),
    ("score_z", "hour_cos"),
    ("score_z", "opens"),
    ("score_z", "session_events"),
    ("score_z", "trigger_intent"),
    ("score_z", "trigger_cart_left"),
    ("score_z", "trigger_session_ended"),
    ("category_affinity", "trigger_intent"),
    ("category_affinity", "session_events"),
    ("category_affinity", "opens"),
    ("source_unfinished", "trigger_cart_left"),
    ("source_trend", "trigger_idle"),
    ("freshness", "trigger_idle"),
    ("open_rate", "opens"),
    ("purchase_rate", "trigger_cart_left"),
)
DESIGN: Final = ("bias", *POLICY_CONTEXT, *ARM, *(f"{arm} x {context}" for arm, context in CROSSES))
# Beside them where the policy asks for the student's vectors: see `models.neural_linear`.
N_NEURAL: Final = 16
NEURAL: Final = tuple(f"neural_{number}" for number in range(N_NEURAL))
N_POLICY_CONTEXT: Final = len(POLICY_CONTEXT)
N_ARM: Final = len(ARM)
D: Final = len(DESIGN)

_ARM_COLUMN = {name: i for i, name in enumerate(ARM)}
# The columns of `SOURCES`, in their order.
SOURCE_COLUMNS: Final = slice(
    _ARM_COLUMN[f"source_{SOURCES[0]}"], _ARM_COLUMN[f"source_{SOURCES[-1]}"] + 1
)
_TIMES_PUSHED = _ARM_COLUMN["times_pushed"]
_PUSH_RECENCY = _ARM_COLUMN["push_recency"]
_ARMS_FROM = 1 + N_POLICY_CONTEXT
_CROSSES_FROM = _ARMS_FROM + N_ARM
_CROSS_ARM = np.array([_ARM_COLUMN[arm] for arm, _ in CROSSES])
_CROSS_CONTEXT = np.array([POLICY_CONTEXT.index(context) for _, context in CROSSES])
_TRIGGER_ROW = {name: [float(name == other) for other in TRIGGERS] for name in TRIGGERS}
SOURCE_CODE: Final = {name: code for code, name in enumerate(SOURCES)}
_NO_TRIGGER = [0.0] * len(TRIGGERS)
_CAMPAIGN_ROWS: Final[list[list[float]]] = np.eye(N_CAMPAIGNS).tolist()

_TIME_COLUMNS = tuple(COLUMN[n] for n in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"))
_COUNT_COLUMNS = tuple(
    COLUMN[n]
    for n in ("session_events", "events_sliding_1d", "opens_decayed", "dismissals_decayed")
)


def policy_context(
    raw_context: Sequence[float] | NDArray[Any],
    trigger_type: str,
    hours_since_push: float,
    pushes_1d: int,
    pushes_7d: int,
    *,
    campaign_id: str = "",
) -> NDArray[np.float64]:
    """Return the columns that all arms of one trigger share.

    Parameters
    ----------
    raw_context
        Shape (C,), unscaled, in the order of `models.features.CONTEXT`.
    trigger_type
        One of `TRIGGERS`; another one has zeros in all its columns.
    hours_since_push
        Since the last push to this user, hours, >= 0; infinity for never.
    pushes_1d, pushes_7d
        Pushes to this user in the last 24 hours and 7 days.
    campaign_id
        Hashed into one of `N_CAMPAIGNS` columns; "" has zeros in all of them.

    Returns
    -------
    float64, shape (len(POLICY_CONTEXT),), rounded to 4 decimals.

    Examples
    --------
    >>> from models.features import N_CONTEXT
    >>> row = policy_context([0.0] * N_CONTEXT, "idle", float("inf"), 0, 0)
    >>> columns = dict(zip(POLICY_CONTEXT, row.tolist(), strict=True))
    >>> row.shape == (len(POLICY_CONTEXT),), columns["trigger_idle"], columns["push_pause"]
    (True, 1.0, 1.0)
    """
    counts = [float(raw_context[i]) for i in _COUNT_COLUMNS]
    pause = math.log1p(min(max(hours_since_push, 0.0), PUSH_HOURS_CAP))
    values = [
        *(float(raw_context[i]) for i in _TIME_COLUMNS),
        *(math.log1p(max(count, 0.0)) / 3 for count in (*counts, pushes_1d, pushes_7d)),
        pause / math.log1p(PUSH_HOURS_CAP),
        *_TRIGGER_ROW.get(trigger_type, _NO_TRIGGER),
        *_campaign_row(campaign_id),
    ]
    return _rounded(np.array(values))


def with_fatigue(
    arms: NDArray[np.float32], times_pushed: ArrayLike, days_since_pushed: ArrayLike
) -> NDArray[np.float32]:
    """Return a copy with the columns of push fatigue filled.

    Parameters
    ----------
    arms
        From `models.arm_features`, shape (K, len(ARM)).
    times_pushed
        Pushes of each item to this user, shape (K,).
    days_since_pushed
        Since the last of them, days, shape (K,); infinity for never.

    Examples
    --------
    >>> rows = with_fatigue(np.zeros((2, len(ARM)), np.float32), [0, 1], [float("inf"), 0.0])
    >>> [row[_TIMES_PUSHED : _PUSH_RECENCY + 1].round(2).tolist() for row in rows.astype(float)]
    [[0.0, 0.0], [0.69, 1.0]]
    """
    out = arms.copy()
    out[:, _TIMES_PUSHED] = _rounded(np.log1p(_floats(times_pushed)))
    out[:, _PUSH_RECENCY] = _rounded(np.exp(-np.maximum(_floats(days_since_pushed), 0)))
    return out


def design(context: ArrayLike, arms: ArrayLike) -> NDArray[np.float64]:
    """Return the policy's input: [1, context, arms, crosses] in the order of `DESIGN`.

    Parameters
    ----------
    context
        Shape (len(POLICY_CONTEXT),): an array of `policy_context`, or as a decision logged it.
    arms
        Shape (K, len(ARM)): an array of `with_fatigue`, or the logged features of K actions. With
        `N_NEURAL` more columns these come last, as they are.

    Returns
    -------
    float64, shape (K, D), or (K, D + N_NEURAL). A row depends on its own arm and the context
    alone, to the last bit.

    Raises
    ------
    ValueError
        If a shape does not fit: the log was written under another `policy_spec_hash`.
    """
    shared = np.round(np.asarray(context, np.float64), DECIMALS)  # (d_c,)
    own = np.round(np.asarray(arms, np.float64), DECIMALS)  # (K, d_a)
    is_own = own.ndim == 2 and own.shape[1] in (N_ARM, N_ARM + N_NEURAL)
    if shared.shape != (N_POLICY_CONTEXT,) or not is_own:
        raise ValueError(f"columns of another policy spec: {shared.shape}, {own.shape}")
    x = np.empty((len(own), D + own.shape[1] - N_ARM))  # (K, D)
    x[:, 0] = 1.0
    x[:, 1:_ARMS_FROM] = shared
    x[:, _ARMS_FROM:_CROSSES_FROM] = own[:, :N_ARM]
    x[:, D:] = own[:, N_ARM:]
    np.multiply(own.take(_CROSS_ARM, 1), shared.take(_CROSS_CONTEXT), out=x[:, _CROSSES_FROM:D])
    return x


def loggable(columns: ArrayLike) -> list[Any]:
    """Return columns as (nested) lists of short numbers for a decision.

    >>> loggable(np.float32([0.1, 1 / 3]))
    [0.1, 0.3333]
    """
    values: list[Any] = np.round(np.asarray(columns, np.float64), DECIMALS).tolist()
    return values


def design_names(*, is_neural: bool = False) -> tuple[str, ...]:
    """Return the names of `design`'s columns.

    >>> len(design_names()) == D, len(design_names(is_neural=True)) - D
    (True, 16)
    """
    return DESIGN + NEURAL if is_neural else DESIGN


def policy_spec_hash(*, is_neural: bool = False) -> str:
    """Return 16 hex digits that change with any name, order, scale or cross above.

    >>> len(policy_spec_hash()), policy_spec_hash() == policy_spec_hash(is_neural=True)
    (16, False)
    """
    scales = (DECIMALS, PUSH_HOURS_CAP, FRESH_DAYS, LIMIT, RATE_CAP)
    priors = (CLICK_PRIOR, PURCHASE_PRIOR, OPEN_PRIOR, FAVORITE_PRIOR)
    spec = repr((design_names(is_neural=is_neural), TRIGGERS, SOURCES, scales, priors))
    return hashlib.blake2b(spec.encode(), digest_size=8).hexdigest()


def _campaign_row(campaign_id: str) -> list[float]:
    if not campaign_id:
        return [0.0] * N_CAMPAIGNS
    return _CAMPAIGN_ROWS[xxhash.xxh3_64_intdigest(campaign_id.encode()) % N_CAMPAIGNS]


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.clip(-LIMIT, LIMIT).round(DECIMALS)
