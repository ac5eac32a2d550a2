"""The feature specification: which numbers, in which order, in which units.

Owns    the names and order of the context columns, the codes of event types, the sizes of the
        model's inputs, and their hash. Serving, training, Redis and the decisions topic all
        take them from here; a model file carries the hash and is refused where it differs.

Raw context values (counts, seconds, money) are what is stored and published; `scale_context`
gives what models read. Both are float32 in the order of `CONTEXT`.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

HISTORY: Final = 50  # T: items of a user the student looks back on
FADING: Final = 0.99  # of their say, a place: the oldest of 50 says 0.6 of the newest
CANDIDATES: Final = 100  # K: candidates the student scores in one call
TEXT_DIM: Final = 64  # width of an item's content vector

# Codes are positions: append only. 0 is padding.
EVENT_TYPES: Final = (
    "",
    "view",
    "click",
    "search",
    "cart",
    "cart_remove",
    "purchase",
    "refund",
    "favorite",
    "rate",
    "comment",
    "share",
    "app_open",
)
EVENT_CODE: Final = {name: code for code, name in enumerate(EVENT_TYPES)}

SESSION: Final = (
    "session_events",
    "session_seconds",
    "session_depth",  # views and clicks
    "session_dwell_seconds",  # mean over views
    "session_items",  # distinct
    "session_categories",  # distinct
    "session_cart_items",
    "session_cart_value",
    "session_recency_seconds",  # since the event before
)
DECAYED_TYPES: Final = ("view", "click", "cart", "purchase", "other")
DECAYED: Final = tuple(f"{t}s_decayed_{w}" for w in ("1h", "1d", "7d") for t in DECAYED_TYPES)
SLIDING: Final = ("events_sliding_1h", "events_sliding_1d", "events_sliding_7d")
USER: Final = (
    "views_total",
    "purchases_total",
    "purchase_value_total",
    "purchase_interval_days",  # mean; 0 before the second purchase
    "days_since_purchase",  # 0 before the first
    "favorites_total",
    "ratings_total",
    "rating_mean",
    "days_since_first_event",
)
ENGAGEMENT: Final = ("opens_decayed", "dismissals_decayed", "hours_since_open")
TIME: Final = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")  # in the user's timezone
PLACE: Final = (
    "device_mobile",
    "device_desktop",
    "device_tablet",
    "platform_ios",
    "platform_android",
    "platform_web",
    "locale_en",
    "locale_zh",
    "locale_other",
    *(f"country_bucket_{i}" for i in range(4)),  # hashed
)
CONTEXT: Final = SESSION + DECAYED + SLIDING + USER + ENGAGEMENT + TIME + PLACE
N_CONTEXT: Final = len(CONTEXT)  # C
COLUMN: Final = {name: i for i, name in enumerate(CONTEXT)}

# Signed or already within [-1, 1]: not log-scaled.
_PLAIN = frozenset(TIME + PLACE + ("rating_mean",))
_LOG: NDArray[np.bool_] = np.array([name not in _PLAIN for name in CONTEXT])


def scale_context(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what models read of raw context, shape (B, C): counts as log(1 + x), the rest as is.

    >>> row = np.zeros((1, N_CONTEXT), np.float32)
    >>> row[0, COLUMN["session_events"]] = np.e - 1
    >>> round(float(scale_context(row)[0, COLUMN["session_events"]]), 3)
    1.0
    """
    return np.where(_LOG, np.log1p(np.maximum(raw, 0)), raw).astype(np.float32, copy=False)


def spec_hash() -> str:
    """Return 16 hex digits that change with any name, order, code or size above.

    >>> len(spec_hash())
    16
    """
    spec = repr((CONTEXT, sorted(_PLAIN), EVENT_TYPES, HISTORY, CANDIDATES, TEXT_DIM))
    return hashlib.blake2b(spec.encode(), digest_size=8).hexdigest()
