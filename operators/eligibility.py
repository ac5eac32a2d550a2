"""Eligibility: whether a user may be sent to at all, and from when on.

Reads   a campaign, what is known of the user, the user's earlier sends, and the trigger's time.
Emits   a verdict: send, defer, suppress or holdout, with the reasons.
Owns    the reason codes, the order of the checks, quiet hours.

The policy chooses among items only after this verdict, so it cannot explore past it. Every check
is a function of its arguments; the clock is the trigger's event time.

Quiet hours come before the caps, although they are reported last: a deferred push counts from the
time it is planned for, so the caps have to hold at that time.
"""

from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from models.clock import DAY_MS, is_known_zone, utc_offset_ms
from operators.hops import Engagement
from operators.messages import Campaign, Caps, Channel, Item, Outcome, QuietHours, UserProfile

OK: Final = "ok"
NO_CAMPAIGN: Final = "no_campaign"
NO_CONSENT: Final = "no_consent"
OPTED_OUT: Final = "opted_out"
NO_CHANNEL: Final = "no_channel"
HOLDOUT: Final = "holdout"
CAP_DAY: Final = "cap_day"
CAP_WEEK: Final = "cap_week"
MIN_GAP: Final = "min_gap"
QUIET_HOURS: Final = "quiet_hours"
EXPIRED: Final = "expired_before_quiet_end"
UNKNOWN_ZONE: Final = "unknown_zone"
NO_CANDIDATES: Final = "no_candidates"
POLICY_NONE: Final = "policy_none"
ITEM_GONE: Final = "item_gone"
SAME_ITEM: Final = "same_item"

REASONS: Final[dict[str, str]] = {
    OK: "every check passed",
    NO_CAMPAIGN: "no active campaign takes this trigger of this user",
    NO_CONSENT: "the user has not agreed to pushes, or no consent message has arrived",
    OPTED_OUT: "the user opted out in answer to an earlier push",
    NO_CHANNEL: "the user has no channel that the campaign may use",
    HOLDOUT: "the user is in the campaign's holdout, which is never sent to",
    CAP_DAY: "the sends allowed in 24 hours are used up",
    CAP_WEEK: "the sends allowed in 7 days are used up",
    MIN_GAP: "too close to another send",
    QUIET_HOURS: "the user's local time is within quiet hours: planned for their end",
    EXPIRED: "the campaign's time to live ends before the quiet hours do",
    UNKNOWN_ZONE: "a note: the user's timezone is not a known name, UTC was used",
    NO_CANDIDATES: "there was no item to choose from",
    POLICY_NONE: 'the policy chose to send nothing, the arm "none"',
    ITEM_GONE: "the chosen item is removed, withdrawn or out of its dates",
    SAME_ITEM: "the chosen item was sent to this user a short time ago",
}

_MINUTE_MS: Final = 60_000
_WEEK_MS: Final = 7 * DAY_MS


class Verdict(NamedTuple):
    """Whether to send, why, and when."""

    outcome: Outcome
    reasons: list[str]  # keys of REASONS, the deciding one first
    send_after: int  # ms, the trigger's time unless deferred
    expires_at: int  # ms


class Sends(Protocol):
    """What the caps ask of a user's earlier sends; `operators.fatigue.PushState` answers."""

    def most_in_window(self, at_ms: int, window_ms: int) -> int:
        """Return the most sends that any window of `window_ms` around `at_ms` holds."""
        ...

    def nearest_gap_ms(self, at_ms: int) -> int | None:
        """Return the time to the send nearest to `at_ms`, or None."""
        ...

    def items_since(self, now_ms: int, window_ms: int) -> frozenset[str]:
        """Return the items sent after `now_ms - window_ms`."""
        ...


def check(
    campaign: Campaign | None,
    profile: UserProfile | None,
    engagement: Engagement,
    sends: Sends,
    time_ms: int,
    *,
    arm: str,
    caps: Caps | None = None,
) -> Verdict:
    """Say whether this user may be sent to for a trigger at `time_ms`; the first reason decides.

    Parameters
    ----------
    campaign
        From `CampaignTable.match`.
    time_ms
        Event time of the trigger.
    arm
        From `operators.campaigns.assign_arm`.
    caps
        From `CampaignTable.caps_at`, to hold the tightest caps of all campaigns. None: the
        campaign's own.

    Notes
    -----
    The verdict does not record anything: after a send or defer call `PushState.record_send` with
    `send_after`.

    Examples
    --------
    >>> from operators.fatigue import PushState
    >>> from operators.messages import Consent, Template
    >>> words = {"en": Template(title="Hello", body="{item_title}")}
    >>> campaign = Campaign(campaign_id="hi", trigger="idle", templates=words, ttl_seconds=86_400)
    >>> user = UserProfile(user_id="u1", timezone="Asia/Shanghai", consent=Consent(push=True))
    >>> new, nothing = Engagement(0.0, 0.0, 0, False), PushState()
    >>> dawn = 1_700_000_000_000  # 06:13 in Shanghai: still quiet
    >>> verdict = check(campaign, user, new, nothing, dawn, arm="policy")
    >>> verdict.outcome, verdict.reasons, (verdict.send_after - dawn) // 60_000  # minutes
    ('defer', ['quiet_hours'], 106)
    >>> check(campaign, user, new, nothing, verdict.send_after, arm="policy").outcome
    'send'
    >>> check(campaign, None, new, nothing, dawn, arm="policy").reasons
    ['no_consent']
    """
    if campaign is None:
        return Verdict("suppress", [NO_CAMPAIGN], time_ms, time_ms)
    expires_at = time_ms + campaign.ttl_seconds * 1_000
    if profile is None or not profile.consent.push:
        return Verdict("suppress", [NO_CONSENT], time_ms, expires_at)
    if engagement.is_opted_out:
        return Verdict("suppress", [OPTED_OUT], time_ms, expires_at)
    if choose_channel(campaign, profile) is None:
        return Verdict("suppress", [NO_CHANNEL], time_ms, expires_at)
    if arm == HOLDOUT:
        return Verdict("holdout", [HOLDOUT], time_ms, expires_at)
    return _timing(
        campaign,
        profile.timezone,
        sends=sends,
        time_ms=time_ms,
        expires_at=expires_at,
        caps=campaign.caps if caps is None else caps,
    )


def _timing(
    campaign: Campaign,
    zone: str,
    *,
    sends: Sends,
    time_ms: int,
    expires_at: int,
    caps: Caps,
) -> Verdict:
    """Return the verdict on a user who may be sent to at all: caps and quiet hours."""
    notes: list[str] = []
    send_after = time_ms
    if campaign.quiet_hours is not None:
        notes = [] if is_known_zone(zone) else [UNKNOWN_ZONE]
        send_after = quiet_until(campaign.quiet_hours, time_ms, zone)
    if broken := broken_caps(caps, sends, send_after):
        return Verdict("suppress", broken + notes, time_ms, expires_at)
    if send_after == time_ms:
        return Verdict("send", [OK, *notes], time_ms, expires_at)
    if send_after >= expires_at:
        return Verdict("suppress", [EXPIRED, *notes], time_ms, expires_at)
    return Verdict("defer", [QUIET_HOURS, *notes], send_after, expires_at)


def broken_caps(caps: Caps, sends: Sends, at_ms: int) -> list[str]:
    """Return the reason code of each cap that one more send at `at_ms` would break."""
    broken = []
    if sends.most_in_window(at_ms, DAY_MS) >= caps.per_day:
        broken.append(CAP_DAY)
    if sends.most_in_window(at_ms, _WEEK_MS) >= caps.per_week:
        broken.append(CAP_WEEK)
    gap_ms = sends.nearest_gap_ms(at_ms)
    if gap_ms is not None and gap_ms < caps.min_gap_seconds * 1_000:
        broken.append(MIN_GAP)
    return broken


def choose_channel(campaign: Campaign, profile: UserProfile) -> Channel | None:
    """Return the channel to send by: the campaign's, else the user's first; None if none fits."""
    if not profile.channels:
        return None
    if campaign.channel == "any":
        return profile.channels[0]
    fits = campaign.channel in profile.channels or "any" in profile.channels
    return campaign.channel if fits else None


def item_fault(item: Item | None, sends: Sends, caps: Caps, time_ms: int) -> str | None:
    """Return why this item may not be sent to this user at `time_ms`, or None if it may.

    To ask twice: before the policy chooses, so that its distribution is over items that can be
    sent, and right before sending, for the catalogue may have moved since the candidates.
    """
    if item is None or not is_available(item, time_ms):
        return ITEM_GONE
    if caps.same_item_days:
        if item.item_id in sends.items_since(time_ms, caps.same_item_days * DAY_MS):
            return SAME_ITEM
    return None


def is_available(item: Item, time_ms: int) -> bool:
    """Say whether an item is available, from its first instant (inside) to its last (outside)."""
    return (
        item.is_available
        and (item.available_from_ms is None or item.available_from_ms <= time_ms)
        and (item.available_until_ms is None or time_ms < item.available_until_ms)
    )


def quiet_until(quiet: QuietHours, time_ms: int, zone: str) -> int:
    """Return the first instant from `time_ms` on that is outside quiet hours: itself, if it is.

    Equal start and end are no quiet hours. A change of the clock is taken as the wall shows it:
    quiet until 02:30 ends at 03:00 in the night that skips 02:00 to 03:00.

    >>> quiet_until(QuietHours(start="22:00", end="08:00"), 1_700_000_000_000, "UTC")
    1700035200000
    >>> quiet_until(QuietHours(start="22:00", end="08:00"), 1_700_035_200_000, "UTC")
    1700035200000
    """
    while left_ms := _quiet_left_ms(quiet, time_ms, zone):
        end_ms = time_ms + left_ms
        if utc_offset_ms(end_ms, zone) == utc_offset_ms(time_ms, zone):
            return end_ms
        time_ms = _offset_change_ms(time_ms, end_ms, zone)
    return time_ms


def _quiet_left_ms(quiet: QuietHours, time_ms: int, zone: str) -> int:
    """Return how long the wall clock has to go on to the end of quiet hours; 0 outside them."""
    start, end = _minutes(quiet.start) * _MINUTE_MS, _minutes(quiet.end) * _MINUTE_MS
    now = (time_ms + utc_offset_ms(time_ms, zone)) % DAY_MS
    if (now - start) % DAY_MS >= (end - start) % DAY_MS:
        return 0
    return (end - now) % DAY_MS


@lru_cache(maxsize=1_440)  # the minutes of a day
def _minutes(clock: str) -> int:
    hour, _, minute = clock.partition(":")
    return int(hour) * 60 + int(minute)


def _offset_change_ms(low: int, high: int, zone: str) -> int:
    """Return the instant in (low, high] from which the offset is no longer that of `low`."""
    before = utc_offset_ms(low, zone)
    while high - low > 1:
        middle = (low + high) // 2
        if utc_offset_ms(middle, zone) == before:
            low = middle
        else:
            high = middle
    return high
