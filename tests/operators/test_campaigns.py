"""operators.campaigns: matching, the split of users, and what is refused."""

from typing import Any

import pytest

from models.arms import TRIGGERS
from models.features import COLUMN, N_CONTEXT
from operators.campaigns import (
    CampaignError,
    CampaignTable,
    assign_arm,
    load_yaml,
    shares_of,
    tightest,
)
from operators.content import validate_templates
from operators.hops import Engagement, History, Trigger
from operators.messages import (
    Audience,
    Campaign,
    Caps,
    Experiment,
    Picks,
    Template,
    UserProfile,
)
from tests.conftest import ROOT, T0_MS

EXAMPLES = ROOT / "flows" / "campaigns.yaml"


def campaign(campaign_id: str = "c1", **fields: Any) -> Campaign:
    words = {"en": Template(title="Hello", body="{item_title}")}
    return Campaign(**{"campaign_id": campaign_id, "trigger": "idle", "templates": words, **fields})


def trigger(**fields: Any) -> Trigger:
    values: dict[str, Any] = {
        "type": "idle",
        "event_id": "e1",
        "user_id": "u1",
        "shard": "00",
        "time_ms": T0_MS,
        "context": [0.0] * N_CONTEXT,
        "history": History([], [], []),
        "cart": [],
        "bought": [],
        "category": "",
        "platform": "ios",
        "profile": UserProfile(user_id="u1", country="DE", locale="zh-Hant-TW"),
        "engagement": Engagement(0.0, 0.0, 0, False),
    }
    return Trigger(**{**values, **fields})


def table(*campaigns: Campaign) -> CampaignTable:
    made = CampaignTable(validate=validate_templates)
    for one in campaigns:
        made.apply(one.campaign_id, one)
    return made


def matched(found: Campaign | None) -> str | None:
    return found and found.campaign_id


def test_highest_rank_wins_then_the_first_id() -> None:
    campaigns = table(campaign("b"), campaign("a"), campaign("low", rank=-1))
    assert matched(campaigns.match(trigger())) == "a"
    campaigns.apply("z", campaign("z", rank=1))
    assert matched(campaigns.match(trigger())) == "z"


def test_picks_are_read_and_a_slip_in_them_is_named() -> None:
    text = (
        "campaigns: [{campaign_id: hi, trigger: idle, templates: {en: {title: Hi, body: There}},"
        " picks: {item_ids: [sku-1], categories: [shoes]}}]"
    )
    [read] = load_yaml(text)
    assert (read.picks.item_ids, read.picks.categories) == (["sku-1"], ["shoes"])
    assert campaign().picks == Picks()
    with pytest.raises(CampaignError, match=r"unknown field - at `\$.picks.items`"):
        load_yaml(text.replace("item_ids", "items"))


def test_match_does_not_depend_on_the_order_of_arrival() -> None:
    one, two = campaign("a", rank=2), campaign("b", rank=2)
    assert matched(table(one, two).match(trigger())) == "a"
    assert matched(table(two, one).match(trigger())) == "a"


def test_campaign_of_another_trigger_does_not_match() -> None:
    assert table(campaign(trigger="intent")).match(trigger()) is None


def test_paused_campaign_does_not_match_until_resumed() -> None:
    campaigns = table(campaign(state="paused"))
    assert campaigns.match(trigger()) is None
    campaigns.apply("c1", campaign())
    assert matched(campaigns.match(trigger())) == "c1"


def test_campaign_runs_from_its_start_to_just_before_its_end() -> None:
    campaigns = table(campaign(starts_ms=T0_MS, ends_ms=T0_MS + 10))
    assert campaigns.match(trigger(time_ms=T0_MS - 1)) is None
    assert matched(campaigns.match(trigger(time_ms=T0_MS))) == "c1"
    assert matched(campaigns.match(trigger(time_ms=T0_MS + 9))) == "c1"
    assert campaigns.match(trigger(time_ms=T0_MS + 10)) is None


def test_tombstone_removes_and_an_unknown_one_is_nothing() -> None:
    campaigns = table(campaign())
    campaigns.apply("c1", None)
    campaigns.apply("never there", None)
    assert campaigns.match(trigger()) is None
    assert len(campaigns) == 0


@pytest.mark.parametrize(
    ("audience", "is_reached"),
    [
        (Audience(), True),
        (Audience(countries=["FR", "de"]), True),
        (Audience(countries=["FR"]), False),
        (Audience(locales=["zh"]), True),
        (Audience(locales=["en", "zh_hant"]), True),
        (Audience(locales=["zh-Hans"]), False),
        (Audience(locales=["zh-H"]), False),  # a prefix of whole subtags
        (Audience(platforms=["android", "ios"]), True),
        (Audience(platforms=["android"]), False),
        (Audience(countries=["DE"], platforms=["android"]), False),
    ],
)
def test_audience(audience: Audience, is_reached: bool) -> None:
    assert (table(campaign(audience=audience)).match(trigger()) is not None) is is_reached


def test_audience_by_purchases() -> None:
    campaigns = table(campaign(audience=Audience(min_purchases=2)))
    context = [0.0] * N_CONTEXT
    assert campaigns.match(trigger(context=context)) is None
    context[COLUMN["purchases_total"]] = 2.0
    assert campaigns.match(trigger(context=context)) is not None


def test_unknown_user_is_in_open_audiences_only() -> None:
    nobody = trigger(profile=None)
    assert table(campaign()).match(nobody) is not None
    assert table(campaign(audience=Audience(countries=["DE"]))).match(nobody) is None
    assert table(campaign(audience=Audience(locales=["zh"]))).match(nobody) is None


def test_next_campaign_takes_whom_the_first_does_not_reach() -> None:
    narrow = campaign("narrow", rank=9, audience=Audience(countries=["FR"]))
    assert matched(table(narrow, campaign("wide")).match(trigger())) == "wide"


def test_tightest_caps_are_of_the_campaigns_that_run_at_the_time() -> None:
    campaigns = table(
        campaign("a", caps=Caps(per_day=3, per_week=9, min_gap_seconds=60)),
        campaign(
            "b",
            caps=Caps(per_day=1, per_week=20, min_gap_seconds=5),
            starts_ms=T0_MS,
            ends_ms=T0_MS + 10,
        ),
        campaign("c", caps=Caps(per_day=0), state="paused"),
    )
    alone = Caps(per_day=3, per_week=9, min_gap_seconds=60)
    both = Caps(per_day=1, per_week=9, min_gap_seconds=60)
    times = [T0_MS - 1, T0_MS, T0_MS + 9, T0_MS + 10]
    assert [campaigns.caps_at(t) for t in times] == [alone, both, both, alone]
    campaigns.apply("b", None)
    assert campaigns.caps_at(T0_MS) == alone


def test_tightest_of_none_hold_nobody_back() -> None:
    assert tightest([]).per_day > 1_000


def shares(experiment: Experiment, n: int) -> dict[str, float]:
    arms = [assign_arm(f"user-{i}", experiment) for i in range(n)]
    return {arm: arms.count(arm) / n for arm in sorted(set(arms))}


def test_users_are_split_by_the_shares() -> None:
    experiment = Experiment(holdout=0.05, arms={"random": 0.15, "popular": 0.10})
    # 4 standard deviations of a share p over n users: 4 * sqrt(p * (1 - p) / n) <= 0.009
    assert shares(experiment, 40_000) == {
        "holdout": pytest.approx(0.05, abs=0.009),
        "popular": pytest.approx(0.95 * 0.10, abs=0.009),
        "random": pytest.approx(0.95 * 0.15, abs=0.009),
        "policy": pytest.approx(0.95 * 0.75, abs=0.01),
    }


def test_holdout_is_independent_of_the_arms() -> None:
    users = [f"user-{i}" for i in range(40_000)]
    split = Experiment(holdout=0.0, arms={"random": 0.3})
    held = [u for u in users if assign_arm(u, Experiment(holdout=0.2)) == "holdout"]
    random_share = sum(assign_arm(u, split) == "random" for u in held) / len(held)
    assert random_share == pytest.approx(0.3, abs=0.021)  # 4 sd over 8,000


def test_arm_stays_and_changes_with_the_salt_only() -> None:
    users = [f"user-{i}" for i in range(1_000)]
    half = {"random": 0.5}
    first = [assign_arm(u, Experiment(holdout=0.0, arms=half)) for u in users]
    again = [assign_arm(u, Experiment(holdout=0.0, arms=half)) for u in users]
    salted = [assign_arm(u, Experiment(salt="other", holdout=0.0, arms=half)) for u in users]
    assert first == again
    assert sum(a != b for a, b in zip(first, salted, strict=True)) > 400


def test_a_holdout_outlives_a_new_salt_of_the_arms_and_is_one_for_all_campaigns() -> None:
    users = [f"user-{i}" for i in range(2_000)]
    tables = [table(), CampaignTable(holdout_salt="2027")]
    wide, narrow = (
        campaign(experiment=Experiment(salt=salt, holdout=share))
        for salt, share in (("one", 0.2), ("two", 0.1))
    )
    held = [
        {u for u in users if made.arm_of(u, one) == "holdout"}
        for made, one in ((tables[0], wide), (tables[0], narrow), (tables[1], wide))
    ]

    assert len(held[0]) > len(held[1]) > 100
    assert held[1] < held[0]
    assert len(held[0] & held[2]) < 0.4 * len(held[0])


def test_the_shares_of_the_arms_are_those_that_users_are_split_by() -> None:
    experiment = Experiment(holdout=0.05, arms={"random": 0.15, "policy": 0.10})

    assert shares_of(experiment) == {
        arm: pytest.approx(share, abs=0.01) for arm, share in shares(experiment, 40_000).items()
    }
    assert shares_of(Experiment(holdout=0.0, arms={"a": 0.7, "b": 0.3})) == {"a": 0.7, "b": 0.3}


def test_order_of_the_arms_in_the_message_makes_no_difference() -> None:
    one = Experiment(arms={"a": 0.5, "b": 0.5})
    two = Experiment(arms={"b": 0.5, "a": 0.5})
    users = [f"user-{i}" for i in range(200)]
    assert [assign_arm(u, one) for u in users] == [assign_arm(u, two) for u in users]


def test_shares_of_nothing_and_all() -> None:
    assert shares(Experiment(holdout=0.0, arms={}), 500) == {"policy": 1.0}
    assert shares(Experiment(holdout=0.0, arms={"a": 1.0}), 500) == {"a": 1.0}
    assert shares(Experiment(holdout=1.0), 500) == {"holdout": 1.0}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (campaign(starts_ms=T0_MS, ends_ms=T0_MS), "'c1': ends_ms: not after"),
        (campaign(experiment=Experiment(arms={"a": 0.6, "b": 0.5})), "'c1': experiment.arms:.*1.1"),
        (campaign(experiment=Experiment(arms={"holdout": 0.1})), "'c1': experiment.arms:"),
        (campaign(experiment=Experiment(arms={"": 0.1})), "'c1': experiment.arms: names"),
        (
            campaign(templates={"en": Template(title="{nam}", body="")}),
            "'c1': templates.en.title: unknown placeholder {nam}",
        ),
        (campaign("other"), "'other' has the key 'c1'"),
    ],
)
def test_refused_campaign_leaves_the_table_as_it_was(bad: Campaign, message: str) -> None:
    campaigns = table(campaign("c1", rank=7))
    with pytest.raises(CampaignError, match=message):
        campaigns.apply("c1", bad)
    assert [c.rank for c in campaigns] == [7]


def test_example_campaigns_cover_every_trigger_in_two_languages() -> None:
    campaigns = load_yaml(EXAMPLES.read_text(encoding="utf-8"), validate_templates)
    assert sorted(c.trigger for c in campaigns) == sorted(TRIGGERS)
    assert all(set(c.templates) == {"en", "zh"} for c in campaigns)
    assert [c.experiment for c in campaigns] == [
        Experiment(holdout=0.05, arms={"random": 0.15})
    ] * len(TRIGGERS)


VALID = """
- campaign_id: hi
  trigger: idle
  templates: {en: {title: Hi, body: There}}
"""


def test_yaml_is_a_list_or_has_one_under_campaigns() -> None:
    assert load_yaml(VALID) == [
        campaign("hi", templates={"en": Template(title="Hi", body="There")})
    ]
    assert load_yaml("campaigns:" + VALID) == load_yaml(VALID)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("campaigns: [", "not YAML"),
        ("hello", "expected a list"),
        ("campaigns: {}", "expected a list"),
        ("", "expected a list"),
        ("- 7", "campaign number 1: Expected `object`, got `int`"),
        ("- {trigger: idle}", "campaign number 1: Object missing required field `campaign_id`"),
        (VALID + VALID, "'hi': campaign_id: given twice"),
        (VALID + "  trigger_typ: idle", r"'hi': unknown field - at `\$.trigger_typ`"),
        (VALID + "  caps: {per_hour: 1}", r"'hi': unknown field - at `\$.caps.per_hour`"),
        (VALID.replace("body", "bdy"), r"'hi': Object missing required field `body` - at"),
        (
            VALID.replace("Hi,", "Hi, image: x,"),
            r"'hi': unknown field - at `\$.templates.en.image`",
        ),
        (VALID + "  priority: urgent", r"'hi': Invalid enum value 'urgent' - at `\$.priority`"),
        (
            VALID + "  quiet_hours: {start: 22:00, end: '08:00'}",
            r"'hi': .* at `\$.quiet_hours.start` \(put it in quotes\)",
        ),
        (
            VALID + "  audience: {countries: [NO]}",
            r"'hi': .* at `\$.audience.countries\[0\]` \(put it in quotes\)",
        ),
        (VALID.replace("There", "'{x}'"), "'hi': templates.en.body: unknown placeholder {x}"),
        (VALID + "  experiment: {arms: {a: 0.9, b: 0.2}}", "'hi': experiment.arms"),
    ],
)
def test_wrong_yaml_names_campaign_and_field(text: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        load_yaml(text, validate_templates)
