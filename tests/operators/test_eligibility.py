"""operators.eligibility: each reason, quiet hours against a minute hand, and caps that hold."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import campaigns, eligibility
from operators.eligibility import (
    REASONS,
    Verdict,
    check,
    choose_channel,
    item_fault,
    quiet_until,
)
from operators.fatigue import PushState
from operators.hops import Engagement
from operators.messages import (
    Campaign,
    Caps,
    Consent,
    Item,
    QuietHours,
    Template,
    UserProfile,
)
from tests.conftest import T0_MS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOON_MS = T0_MS - T0_MS % DAY_MS + 12 * HOUR_MS  # UTC
NIGHT = QuietHours(start="22:00", end="08:00")


def campaign(**fields: Any) -> Campaign:
    words = {"en": Template(title="Hello", body="{item_title}")}
    defaults: dict[str, Any] = {"quiet_hours": NIGHT, "ttl_seconds": 86_400}
    return Campaign(campaign_id="c1", trigger="idle", templates=words, **{**defaults, **fields})


def user(**fields: Any) -> UserProfile:
    return UserProfile(user_id="u1", **{"consent": Consent(push=True), **fields})


def verdict(
    one: Campaign | None,
    profile: UserProfile | None,
    *sends_ms: int,
    time_ms: int = NOON_MS,
    arm: str = "policy",
    is_opted_out: bool = False,
    caps: Caps | None = None,
) -> Verdict:
    state = PushState(sorted((send_ms, "i1") for send_ms in sends_ms))
    engagement = Engagement(0.0, 0.0, 0, is_opted_out)
    return check(one, profile, engagement, state, time_ms, arm=arm, caps=caps)


def test_user_who_may_be_sent_to_is_sent_to_now() -> None:
    assert verdict(campaign(ttl_seconds=60), user()) == Verdict(
        "send", ["ok"], NOON_MS, NOON_MS + 60_000
    )


def test_no_campaign() -> None:
    assert verdict(None, user()) == Verdict("suppress", ["no_campaign"], NOON_MS, NOON_MS)


@pytest.mark.parametrize("profile", [None, user(consent=Consent()), UserProfile(user_id="u1")])
def test_no_push_without_consent_or_before_it_arrives(profile: UserProfile | None) -> None:
    found = verdict(campaign(), profile)
    assert (found.outcome, found.reasons) == ("suppress", ["no_consent"])


def test_opt_out_by_feedback_ends_pushes() -> None:
    found = verdict(campaign(), user(), is_opted_out=True)
    assert (found.outcome, found.reasons) == ("suppress", ["opted_out"])


@pytest.mark.parametrize(
    ("wanted", "has", "chosen"),
    [
        ("any", ["any"], "any"),
        ("any", ["apns", "fcm"], "apns"),
        ("fcm", ["apns", "fcm"], "fcm"),
        ("fcm", ["any"], "fcm"),
        ("fcm", ["apns"], None),
        ("any", [], None),
        ("webpush", [], None),
    ],
)
def test_channel(wanted: Any, has: list[Any], chosen: str | None) -> None:
    one, profile = campaign(channel=wanted), user(channels=has)
    assert choose_channel(one, profile) == chosen
    expected = ["ok"] if chosen else ["no_channel"]
    assert verdict(one, profile).reasons == expected


def test_holdout_is_an_outcome_of_its_own() -> None:
    found = verdict(campaign(), user(), arm=campaigns.HOLDOUT)
    assert (found.outcome, found.reasons) == ("holdout", ["holdout"])


def test_holdout_takes_only_whom_we_could_send_to_and_asks_no_caps() -> None:
    assert verdict(campaign(), user(consent=Consent()), arm="holdout").outcome == "suppress"
    assert verdict(campaign(caps=Caps(per_day=0)), user(), arm="holdout").outcome == "holdout"


@pytest.mark.parametrize(
    ("caps", "sends_ms", "reasons"),
    [
        (Caps(per_day=2), [NOON_MS - 23 * HOUR_MS, NOON_MS - 3 * HOUR_MS], ["cap_day"]),
        (Caps(per_day=2), [NOON_MS - 24 * HOUR_MS, NOON_MS - 3 * HOUR_MS], ["ok"]),
        (Caps(per_week=1), [NOON_MS - 6 * DAY_MS], ["cap_week"]),
        (Caps(per_week=1), [NOON_MS - 7 * DAY_MS], ["ok"]),
        (Caps(min_gap_seconds=3_600), [NOON_MS - HOUR_MS + 1], ["min_gap"]),
        (Caps(min_gap_seconds=3_600), [NOON_MS - HOUR_MS], ["ok"]),
        (Caps(min_gap_seconds=3_600), [NOON_MS + HOUR_MS - 1], ["min_gap"]),  # planned
        (Caps(per_day=1), [NOON_MS - 1], ["cap_day", "min_gap"]),
        (Caps(per_day=0), [], ["cap_day"]),
    ],
)
def test_caps(caps: Caps, sends_ms: list[int], reasons: list[str]) -> None:
    found = verdict(campaign(caps=caps), user(), *sends_ms)
    assert found.reasons == reasons
    assert found.outcome == ("send" if reasons == ["ok"] else "suppress")


def test_tighter_caps_of_another_campaign_hold() -> None:
    found = verdict(campaign(), user(), NOON_MS - 3 * HOUR_MS, caps=Caps(per_day=1))
    assert found.reasons == ["cap_day"]


def test_quiet_hours_defer_to_their_end() -> None:
    found = verdict(campaign(), user(), time_ms=NOON_MS + 11 * HOUR_MS)  # 23:00
    assert (found.outcome, found.reasons) == ("defer", ["quiet_hours"])
    assert found.send_after == NOON_MS + 20 * HOUR_MS  # 08:00


def test_quiet_hours_are_the_users_own() -> None:
    night_in_shanghai = NOON_MS + 4 * HOUR_MS  # midnight there, 16:00 in UTC
    assert verdict(campaign(), user(), time_ms=night_in_shanghai).outcome == "send"
    found = verdict(campaign(), user(timezone="Asia/Shanghai"), time_ms=night_in_shanghai)
    assert (found.outcome, found.send_after) == ("defer", night_in_shanghai + 8 * HOUR_MS)


def test_push_that_expires_before_quiet_hours_end_is_not_planned() -> None:
    eve = NOON_MS + 11 * HOUR_MS  # 9 hours before their end
    assert verdict(campaign(ttl_seconds=9 * 3_600 + 1), user(), time_ms=eve).outcome == "defer"
    found = verdict(campaign(ttl_seconds=9 * 3_600), user(), time_ms=eve)
    assert (found.outcome, found.reasons) == ("suppress", ["expired_before_quiet_end"])


def test_caps_hold_at_the_time_a_push_is_deferred_to() -> None:
    eve, morning = NOON_MS + 11 * HOUR_MS, NOON_MS + 20 * HOUR_MS
    planned = verdict(campaign(), user(), morning, time_ms=eve)
    assert (planned.outcome, planned.reasons) == ("suppress", ["min_gap"])
    just_sent = verdict(campaign(), user(), eve - HOUR_MS, time_ms=eve)
    assert just_sent.outcome == "defer"  # the gap is over by the morning


def test_unknown_zone_is_utc_and_noted() -> None:
    lost = user(timezone="Mars/Olympus")
    assert verdict(campaign(), lost).reasons == ["ok", "unknown_zone"]
    found = verdict(campaign(), lost, time_ms=NOON_MS + 11 * HOUR_MS)
    assert found.reasons == ["quiet_hours", "unknown_zone"]
    assert verdict(campaign(quiet_hours=None), lost).reasons == ["ok"]


def test_no_quiet_hours_send_at_night() -> None:
    eve = NOON_MS + 11 * HOUR_MS
    assert verdict(campaign(quiet_hours=None), user(), time_ms=eve).outcome == "send"
    equal = QuietHours(start="00:00", end="00:00")
    assert verdict(campaign(quiet_hours=equal), user(), time_ms=eve).outcome == "send"


def test_every_reason_constant_has_its_meaning() -> None:
    named = {
        value
        for name, value in vars(eligibility).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    assert named == set(REASONS)
    assert campaigns.HOLDOUT == eligibility.HOLDOUT


# Quiet hours against a clock read minute by minute --------------------------------------------


def is_quiet(quiet: QuietHours, time_ms: int, zone: str) -> bool:
    local = datetime.fromtimestamp(time_ms / 1_000, ZoneInfo(zone)).strftime("%H:%M")
    if quiet.start <= quiet.end:
        return quiet.start <= local < quiet.end
    return local >= quiet.start or local < quiet.end


CHANGES = [  # UTC instants around which the clock changes
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Europe/London", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),  # half an hour
    ("America/Havana", datetime(2026, 11, 1, 5, tzinfo=UTC)),  # 01:00 to 00:00
    ("Asia/Shanghai", datetime(2026, 5, 1, tzinfo=UTC)),  # none
]
clock = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.sampled_from([0, 1, 30, 59]))


@settings(max_examples=150)
@given(st.sampled_from(CHANGES), st.integers(-1_440, 1_440), clock, clock)
def test_quiet_hours_end_at_the_first_minute_that_is_not_quiet(
    change: tuple[str, datetime], minutes: int, start: str, end: str
) -> None:
    zone, when = change
    quiet = QuietHours(start=start, end=end)
    time_ms = round((when + timedelta(minutes=minutes)).timestamp() * 1_000)
    until = quiet_until(quiet, time_ms, zone)
    assert not is_quiet(quiet, until, zone)
    assert all(is_quiet(quiet, before, zone) for before in range(time_ms, until, 60_000))


def test_quiet_hours_that_end_in_the_skipped_hour_end_with_the_skip() -> None:
    skip = round(datetime(2026, 3, 8, 7, tzinfo=UTC).timestamp() * 1_000)
    quiet = QuietHours(start="22:00", end="02:30")
    assert quiet_until(quiet, skip - 3 * HOUR_MS, "America/New_York") == skip


# Caps against random triggers -----------------------------------------------------------------

caps_drawn = st.builds(
    Caps,
    per_day=st.integers(0, 4),
    per_week=st.integers(0, 9),
    min_gap_seconds=st.sampled_from([0, 600, 7_200, 40_000]),
)
# Minutes from one trigger to the next; below 0: out of order.
steps = st.lists(st.integers(-30, 400), min_size=30, max_size=120)


@settings(max_examples=150)
@given(steps, caps_drawn, st.sampled_from([None, NIGHT]), st.sampled_from(["UTC", "Asia/Tokyo"]))
def test_nobody_is_sent_more_than_the_caps_allow(
    minutes: list[int], caps: Caps, quiet: QuietHours | None, zone: str
) -> None:
    state, time_ms, sent = PushState(), NOON_MS, list[int]()
    one, profile = campaign(caps=caps, quiet_hours=quiet), user(timezone=zone)
    for step in minutes:
        time_ms += step * 60_000
        found = check(one, profile, Engagement(0.0, 0.0, 0, False), state, time_ms, arm="policy")
        if found.outcome in ("send", "defer"):
            assert quiet is None or not is_quiet(quiet, found.send_after, zone)
            assert time_ms <= found.send_after < found.expires_at
            state.record_send(found.send_after, "i1")
            sent.append(found.send_after)
    sent.sort()
    assert all(sum(t <= s < t + DAY_MS for s in sent) <= caps.per_day for t in sent)
    assert all(sum(t <= s < t + 7 * DAY_MS for s in sent) <= caps.per_week for t in sent)
    assert all(b - a >= caps.min_gap_seconds * 1_000 for a, b in pairwise(sent))


def test_caps_hold_beyond_what_the_state_remembers() -> None:
    loose = Caps(per_day=1_000, per_week=70, min_gap_seconds=0)
    state, n_sent = PushState(), 0
    for minute in range(300):
        time_ms = NOON_MS + minute * 60_000
        one = campaign(caps=loose, quiet_hours=None)
        found = check(one, user(), Engagement(0.0, 0.0, 0, False), state, time_ms, arm="policy")
        if found.outcome == "send":
            state.record_send(time_ms, "i1")
            n_sent += 1
    assert 60 <= n_sent <= 70


# Items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        (None, "item_gone"),
        (Item(item_id="a", title="A"), None),
        (Item(item_id="a", title="A", is_available=False), "item_gone"),
        (Item(item_id="a", title="A", available_from_ms=NOON_MS), None),
        (Item(item_id="a", title="A", available_from_ms=NOON_MS + 1), "item_gone"),
        (Item(item_id="a", title="A", available_until_ms=NOON_MS + 1), None),
        (Item(item_id="a", title="A", available_until_ms=NOON_MS), "item_gone"),
    ],
)
def test_item_that_is_gone_is_not_sent(item: Item | None, fault: str | None) -> None:
    assert item_fault(item, PushState(), Caps(), NOON_MS) == fault


def test_item_is_not_sent_again_within_its_days() -> None:
    item, state = Item(item_id="a", title="A"), PushState([(NOON_MS, "a")])
    week = Caps(same_item_days=7)
    assert item_fault(item, state, week, NOON_MS + 7 * DAY_MS - 1) == "same_item"
    assert item_fault(item, state, week, NOON_MS + 7 * DAY_MS) is None
    assert item_fault(item, state, Caps(same_item_days=0), NOON_MS) is None
    assert item_fault(Item(item_id="b", title="B"), state, week, NOON_MS) is None
