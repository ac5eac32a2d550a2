"""Sessions in event time: what a user has done since their last long pause.

Reads   one user's events, in the order of their partition, which is nearly that of time.
Owns    the rule for gaps and late events, and what is kept of a session.

A *session* is a run of events with no pause longer than the gap. An event that comes late but
within the gap of the session's start belongs to it; one from before that belongs to a session
that is over, and changes nothing here. No late event moves a session's end back.
"""

from typing import Final

from msgspec import Struct

MAX_ITEMS: Final = 50  # distinct items remembered of a session; more are counted as 50
MAX_CATEGORIES: Final = 16
_MAX_DWELL_MS: Final = 600_000  # a view followed by nothing for longer was left, not read


class Session(Struct, array_like=True, gc=False):
    """One user's current session, or an empty one (`events` is 0). At most about 1 KB packed."""

    start_ms: int = 0
    last_ms: int = 0
    before_ms: int = 0  # the event before the last one; 0: none
    last_event_id: str = ""
    events: int = 0
    depth: int = 0  # views and clicks
    views: int = 0
    dwell_ms: int = 0  # over all views
    open_view_ms: int = 0  # start of a view whose end is not known; 0: none
    items: list[str] = []
    categories: dict[str, int] = {}  # category -> views and clicks
    purchases: int = 0
    fired: int = 0  # bits of operators.triggers
    intent: bytes = b""  # sum of the searches' vectors, of `operators.written`; b"": none


def ends_before(session: Session, time_ms: int, gap_ms: int) -> bool:
    """Return whether an event at `time_ms` comes after this session's end.

    >>> s = Session(events=1, last_ms=1_000)
    >>> ends_before(s, 2_000, gap_ms=1_000), ends_before(s, 2_001, gap_ms=1_000)
    (False, True)
    """
    return session.events > 0 and time_ms - session.last_ms > gap_ms


def observe(
    session: Session,
    time_ms: int,
    event_id: str,
    *,
    kind: str,
    item_id: str | None,
    category: str,
    dwell_seconds: float | None,
    gap_ms: int,
) -> bool:
    """Fold one event into the session; return False where it belongs to one that is over.

    The caller starts a new session first where `ends_before` says so.

    >>> s = Session()
    >>> observe(s, 5_000, "e1", kind="view", item_id="a", category="c",
    ...         dwell_seconds=None, gap_ms=1_000)
    True
    >>> observe(s, 5_800, "e2", kind="view", item_id="b", category="c",
    ...         dwell_seconds=4.0, gap_ms=1_000)
    True
    >>> observe(s, 3_999, "e3", kind="view", item_id="b", category="c",
    ...         dwell_seconds=None, gap_ms=1_000)  # of a session that is over
    False
    >>> s.events, s.depth, s.items, s.categories, s.dwell_ms, s.last_ms - s.start_ms
    (2, 2, ['a', 'b'], {'c': 2}, 4800, 800)
    """
    if session.events == 0:
        session.start_ms = session.last_ms = time_ms
    elif time_ms < session.start_ms:
        if time_ms < session.start_ms - gap_ms:
            return False
        session.start_ms = time_ms
    session.events += 1
    is_newest = time_ms >= session.last_ms
    if is_newest:
        _end_view(session, time_ms)
        session.before_ms = session.last_ms if session.events > 1 else 0
        session.last_ms = time_ms
        session.last_event_id = event_id
    if kind in ("view", "click"):
        _add_view(session, kind, category, dwell_seconds, time_ms if is_newest else 0)
    elif kind == "purchase":
        session.purchases += 1
    if item_id is not None and len(session.items) < MAX_ITEMS and item_id not in session.items:
        session.items.append(item_id)
    return True


def _end_view(session: Session, time_ms: int) -> None:
    if session.open_view_ms:
        session.dwell_ms += min(time_ms - session.open_view_ms, _MAX_DWELL_MS)
        session.open_view_ms = 0


def _add_view(
    session: Session, kind: str, category: str, dwell_seconds: float | None, open_ms: int
) -> None:
    """Count a view or click; `open_ms` is when a view began whose end may still come, or 0."""
    session.depth += 1
    if kind == "view":
        session.views += 1
        if dwell_seconds is not None:
            session.dwell_ms += min(max(int(dwell_seconds * 1_000), 0), _MAX_DWELL_MS)
        elif open_ms:
            session.open_view_ms = open_ms
    if category:
        categories = session.categories
        if category in categories or len(categories) < MAX_CATEGORIES:
            categories[category] = categories.get(category, 0) + 1


def main_category(session: Session) -> str:
    """Return the category of most views and clicks, ties by name; "" before the first.

    >>> main_category(Session(categories={"b": 2, "a": 2, "c": 1}))
    'a'
    """
    counts = session.categories
    if not counts:
        return ""
    return min(counts, key=lambda name: (-counts[name], name))
