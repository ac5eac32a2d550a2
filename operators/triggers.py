"""Triggers: the reasons to consider a push, and when time alone is one.

Reads   a user's session, cart and last activity.
Emits   names of triggers that are due, with the event time at which they are.
Owns    the rules, all of which come from settings; a rule set to 0 is off.

    event ... event                       | cart left   | session ends      | idle        expires
    ------------------------ quiet time ->  20 min        30 min              3 days      90 days

A trigger from an event fires once a session; one from time fires once a quiet stretch; one from
a change of an item (`operators.interest` finds whom it concerns) once for each change. The times
are event time: a watermark that passes them fires them, and no wall clock is read.
"""

from typing import Final, NamedTuple

from operators.messages import TriggerType, UserSignal
from operators.sessions import Session

INTENT_FIRED: Final = 1  # a bit of Session.fired


class TriggerRules(NamedTuple):
    """When to consider a push; times in milliseconds of event time, 0 is off.

    `session_gap_ms` and `expire_ms` end sessions and drop idle users, and cannot be off.
    """

    session_gap_ms: int = 1_800_000
    intent_views: int = 3  # views or clicks of one category within a session
    cart_left_ms: int = 1_200_000
    session_ended_min_events: int = 2
    idle_ms: int = 3 * 86_400_000
    expire_ms: int = 90 * 86_400_000
    price_drop: float = 0.05  # least share by which a price must fall
    back_in_stock: bool = True


class Due(NamedTuple):
    """Something that time brought. `type` is None where only the state changes."""

    time_ms: int
    type: TriggerType | None
    ends_session: bool = False
    expires: bool = False


def has_intent(session: Session, category: str, rules: TriggerRules) -> bool:
    """Return whether this view or click of `category` shows intent, for the first time.

    >>> s = Session(events=3, categories={"shoes": 3})
    >>> has_intent(s, "shoes", TriggerRules(intent_views=3))
    True
    >>> s.fired |= INTENT_FIRED
    >>> has_intent(s, "shoes", TriggerRules(intent_views=3))
    False
    """
    return (
        0 < rules.intent_views <= session.categories.get(category, 0)
        and not session.fired & INTENT_FIRED
        and not session.purchases
    )


def concerns(signal: UserSignal, bought_s: int | None, rules: TriggerRules) -> bool:
    """Return whether a changed item is still a reason to push to a user.

    Parameters
    ----------
    signal
        Of type "price_dropped" or "back_in_stock".
    bought_s
        When the user bought the item, seconds; 0: at an unknown time; None: not lately.
    rules
        Which changes count.

    Examples
    --------
    >>> t = 1_700_000_000_000
    >>> signal = UserSignal(signal_id="s", user_id="u", type="back_in_stock", time_ms=t,
    ...                     item_id="i", since_ms=t - 5_000)
    >>> concerns(signal, None, TriggerRules()), concerns(signal, t // 1_000, TriggerRules())
    (True, False)
    >>> concerns(signal, t // 1_000 - 60, TriggerRules())  # bought, and looked at again
    True
    """
    is_on = rules.back_in_stock if signal.type == "back_in_stock" else rules.price_drop > 0
    is_settled = bought_s is not None and (not bought_s or bought_s * 1_000 >= signal.since_ms)
    return is_on and not is_settled


def next_soon(
    session: Session, last_ms: int, is_cart_left: bool, rules: TriggerRules
) -> Due | None:
    """Return what the session's end or a cart brings next if the user stays quiet, or None.

    `is_cart_left` says that the cart holds something and has not fired since it changed.

    >>> s = Session(events=2, last_ms=10_000)
    >>> rules = TriggerRules(session_gap_ms=3_000, cart_left_ms=2_000)
    >>> next_soon(s, 10_000, True, rules)
    Due(time_ms=12000, type='cart_left', ends_session=False, expires=False)
    >>> next_soon(s, 10_000, False, rules)
    Due(time_ms=13001, type='session_ended', ends_session=True, expires=False)
    """
    cart_ms = last_ms + rules.cart_left_ms if is_cart_left and rules.cart_left_ms else None
    if session.events:
        ends_ms = session.last_ms + rules.session_gap_ms + 1
        if cart_ms is None or ends_ms <= cart_ms:
            is_long = 0 < rules.session_ended_min_events <= session.events
            return Due(ends_ms, "session_ended" if is_long else None, ends_session=True)
    return None if cart_ms is None else Due(cart_ms, "cart_left")


def next_later(last_ms: int, is_idle_fired: bool, rules: TriggerRules) -> Due:
    """Return what long quiet brings next.

    >>> next_later(0, False, TriggerRules(idle_ms=5_000)).type
    'idle'
    >>> next_later(0, True, TriggerRules(idle_ms=5_000)).expires
    True
    """
    if rules.idle_ms and not is_idle_fired and rules.idle_ms < rules.expire_ms:
        return Due(last_ms + rules.idle_ms, "idle")
    return Due(last_ms + rules.expire_ms, None, expires=True)
