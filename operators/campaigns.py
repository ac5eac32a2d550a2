"""Campaigns: which one answers a trigger, and who of its audience is in which experiment arm.

Reads   `push.campaigns.v1`, or a YAML file of the same structs; triggers.
Emits   at most one campaign a trigger, and an arm for every user.
Owns    the checks of a campaign as a whole, the order among campaigns, the split of users.

A user's arm follows from the experiment's salt and the user_id alone, so it needs no state and
stays the same through restarts. Holdout is drawn from another stream of the hash than the arms:
were it the same, widening the holdout would take users from one arm first. And it is drawn by one
salt for all campaigns: whoever is held out of one is held out of each with as large a share, and
stays so when an experiment gets a new salt.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import xxhash
import yaml

from models.features import COLUMN
from operators.hops import Trigger
from operators.messages import Audience, Campaign, Caps, Experiment

HOLDOUT: Final = "holdout"  # never sent to, to measure lift
POLICY: Final = "policy"  # what holdout and the named arms leave over
HOLDOUT_SALT: Final = "pushflow"
_MOST_OF_A_NAME: Final = 64  # an arm's name is part of a learner shard's
_ARM_STREAM: Final = 0  # seeds of the hash
_HOLDOUT_STREAM: Final = 1
_PURCHASES: Final = COLUMN["purchases_total"]
# No active campaign: a cap that holds nobody back, for nothing is sent anyway.
_NO_CAPS: Final = Caps(per_day=10_000, per_week=10_000, min_gap_seconds=0, same_item_days=0)


class CampaignError(ValueError):
    """A campaign cannot be used; the message names the campaign and the field."""


class CampaignTable:
    """The campaigns in force: the newest version of each, by id.

    Parameters
    ----------
    validate
        A further check of each campaign, which raises ValueError; `operators.content.
        validate_templates` in the flows. None: no further check.
    holdout_salt
        By which the holdouts of all campaigns are drawn; another one draws others.

    Raises
    ------
    CampaignError
        From `apply`, for a campaign that contradicts itself. The table is left as it was.

    Notes
    -----
    A campaign runs from `starts_ms` (inside) to `ends_ms` (outside), by the trigger's time.
    `match` is O(campaigns of the trigger's type). Memory: the campaigns themselves, and one
    `Caps` for each stretch of time between two starts or ends.

    Examples
    --------
    >>> from operators.messages import Template
    >>> words = {"en": Template(title="Hello", body="{item_title}")}
    >>> table = CampaignTable()
    >>> table.apply("a", Campaign(campaign_id="a", trigger="idle", templates=words))
    >>> table.apply("b", Campaign(campaign_id="b", trigger="idle", templates=words, rank=1))
    >>> [campaign.campaign_id for campaign in table], len(table)
    (['a', 'b'], 2)
    >>> table.apply("b", None)  # a tombstone
    >>> "b" in table
    False
    """

    def __init__(
        self,
        validate: Callable[[Campaign], None] | None = None,
        *,
        holdout_salt: str = HOLDOUT_SALT,
    ) -> None:
        self._validate = validate
        self._holdout_salt = holdout_salt
        self._campaigns: dict[str, Campaign] = {}
        self._by_trigger: dict[str, list[Campaign]] = {}
        self._boundaries: list[int] = []
        self._caps: dict[int, Caps] = {}

    def __len__(self) -> int:
        return len(self._campaigns)

    def __iter__(self) -> Iterator[Campaign]:
        return iter(sorted(self._campaigns.values(), key=lambda c: c.campaign_id))

    def __contains__(self, campaign_id: str) -> bool:
        return campaign_id in self._campaigns

    def get(self, campaign_id: str) -> Campaign | None:
        """Return the campaign of this id, active or not."""
        return self._campaigns.get(campaign_id)

    def apply(self, campaign_id: str, campaign: Campaign | None) -> None:
        """Put a campaign in, in place of an older version; None takes it out."""
        if campaign is None:
            self._campaigns.pop(campaign_id, None)
        else:
            check_campaign(campaign)
            if campaign.campaign_id != campaign_id:
                raise CampaignError(
                    f"campaign {campaign.campaign_id!r} has the key {campaign_id!r}"
                )
            if self._validate is not None:
                _checked(campaign, self._validate)
            self._campaigns[campaign_id] = campaign
        self._index()

    def _index(self) -> None:
        active = [c for c in self._campaigns.values() if c.state == "active"]
        active.sort(key=lambda c: (-c.rank, c.campaign_id))
        self._by_trigger = {}
        for campaign in active:
            self._by_trigger.setdefault(campaign.trigger, []).append(campaign)
        edges = {edge for c in active for edge in (c.starts_ms, c.ends_ms) if edge is not None}
        self._boundaries = sorted(edges)
        self._caps = {}

    def match(self, trigger: Trigger) -> Campaign | None:
        """Return the campaign of the highest rank that takes this trigger; ties by campaign_id."""
        for campaign in self._by_trigger.get(trigger.type, ()):
            if is_running(campaign, trigger.time_ms) and _reaches(campaign.audience, trigger):
                return campaign
        return None

    def arm_of(self, user_id: str, campaign: Campaign) -> str:
        """Return the user's arm in the campaign's experiment; see `assign_arm`."""
        return assign_arm(user_id, campaign.experiment, self._holdout_salt)

    def caps_at(self, time_ms: int) -> Caps:
        """Return the tightest caps over all campaigns that run at `time_ms`.

        Sends count over all campaigns, so a campaign of three a day cannot undo the promise of
        another of one a day.

        >>> CampaignTable().caps_at(1_700_000_000_000).per_day  # nothing runs, nothing is sent
        10000
        """
        stretch = bisect_right(self._boundaries, time_ms)
        caps = self._caps.get(stretch)
        if caps is None:
            active = [c for group in self._by_trigger.values() for c in group]
            caps = self._caps[stretch] = tightest(
                [c.caps for c in active if is_running(c, time_ms)]
            )
        return caps


def is_running(campaign: Campaign, time_ms: int) -> bool:
    """Say whether an active campaign is between its start (inside) and its end (outside)."""
    return (
        campaign.state == "active"
        and (campaign.starts_ms is None or campaign.starts_ms <= time_ms)
        and (campaign.ends_ms is None or time_ms < campaign.ends_ms)
    )


def tightest(caps: list[Caps]) -> Caps:
    """Return caps that hold all the given ones.

    >>> tightest([Caps(per_day=1, min_gap_seconds=60), Caps(per_day=3, min_gap_seconds=3_600)])
    Caps(per_day=1, per_week=10, min_gap_seconds=3600, same_item_days=7)
    """
    if not caps:
        return _NO_CAPS
    return Caps(
        per_day=min(c.per_day for c in caps),
        per_week=min(c.per_week for c in caps),
        min_gap_seconds=max(c.min_gap_seconds for c in caps),
        same_item_days=max(c.same_item_days for c in caps),
    )


def _reaches(audience: Audience, trigger: Trigger) -> bool:
    """Say whether the trigger's user is in the audience. An unknown user is in an open one only."""
    profile = trigger.profile
    if audience.countries:
        country = profile.country.casefold() if profile else ""
        if country not in [name.casefold() for name in audience.countries]:
            return False
    if audience.locales:
        locale = _normal(profile.locale) if profile else ""
        if not any(f"{locale}-".startswith(f"{_normal(p)}-") for p in audience.locales):
            return False
    if audience.platforms and trigger.platform not in audience.platforms:
        return False
    return not audience.min_purchases or trigger.context[_PURCHASES] >= audience.min_purchases


def _normal(locale: str) -> str:
    return locale.replace("_", "-").casefold()


def assign_arm(user_id: str, experiment: Experiment, holdout_salt: str = HOLDOUT_SALT) -> str:
    """Return `HOLDOUT`, the name of an arm, or `POLICY`: the same for ever for its salt.

    Arms take their shares of the unit interval in the order of their names.

    >>> half = Experiment(holdout=0.0, arms={"random": 0.5})
    >>> [assign_arm(f"user-{i}", half) for i in range(4)]
    ['random', 'random', 'random', 'policy']
    >>> assign_arm("user-1", Experiment(holdout=1.0))
    'holdout'
    """
    if _uniform(f"{holdout_salt}:{user_id}", _HOLDOUT_STREAM) < experiment.holdout:
        return HOLDOUT
    place, end = _uniform(f"{experiment.salt}:{user_id}", _ARM_STREAM), 0.0
    for name in sorted(experiment.arms):
        end += experiment.arms[name]
        if place < end:
            return name
    return POLICY


def shares_of(experiment: Experiment) -> dict[str, float]:
    """Return the share of all users that each arm has, by name; those without a share are left out.

    >>> shares_of(Experiment(holdout=0.2, arms={"random": 0.25}))
    {'holdout': 0.2, 'random': 0.2, 'policy': 0.6}
    """
    rest = 1 - experiment.holdout
    shares = {HOLDOUT: experiment.holdout}
    shares |= {name: rest * experiment.arms[name] for name in sorted(experiment.arms)}
    named = sum(share for name, share in experiment.arms.items() if name != POLICY)
    # An arm that is called `policy` adds to what is left over. Rounding may leave less than none.
    shares[POLICY] = rest * max(1 - named, 0.0)
    return {name: round(share, 12) for name, share in shares.items() if share > 1e-12}


def _uniform(key: str, stream: int) -> float:
    # 53 bits, all that a double holds: the top value stays below 1.
    return float(xxhash.xxh3_64_intdigest(key.encode(), seed=stream) >> 11) * 2.0**-53


def check_campaign(campaign: Campaign) -> None:
    """Raise CampaignError where a campaign's fields contradict each other."""
    name = f"campaign {campaign.campaign_id!r}"
    starts, ends = campaign.starts_ms, campaign.ends_ms
    if starts is not None and ends is not None and ends <= starts:
        raise CampaignError(f"{name}: ends_ms: not after starts_ms")
    if HOLDOUT in campaign.experiment.arms:
        raise CampaignError(f"{name}: experiment.arms: {HOLDOUT!r} is set by `holdout`")
    if any(not 0 < len(arm) <= _MOST_OF_A_NAME for arm in campaign.experiment.arms):
        raise CampaignError(f"{name}: experiment.arms: names have 1 to {_MOST_OF_A_NAME} letters")
    # Shares such as 0.1 + 0.2 + 0.7 may pass 1 by rounding.
    if (total := sum(campaign.experiment.arms.values())) > 1 + 1e-9:
        raise CampaignError(f"{name}: experiment.arms: shares add up to {total:g}, more than 1")


def _checked(campaign: Campaign, validate: Callable[[Campaign], None]) -> None:
    try:
        validate(campaign)
    except CampaignError:
        raise
    except ValueError as error:
        raise CampaignError(str(error)) from error


def load_yaml(text: str, validate: Callable[[Campaign], None] | None = None) -> list[Campaign]:
    """Read campaigns from YAML: a list of them, or a mapping with the list under `campaigns`.

    Raises
    ------
    CampaignError
        For text that is not YAML, a missing, unknown or ill-typed field, an id given twice, and
        whatever `check_campaign` or `validate` refuse. A file is ours, so unlike a message from
        a newer producer an unknown field is a slip of the pen.

    Examples
    --------
    >>> load_yaml("campaigns: [{campaign_id: hi, trigger: idle, caps: {per_day: -1},"
    ...           " templates: {en: {title: Hi, body: There}}}]")
    Traceback (most recent call last):
    ...
    operators.campaigns.CampaignError: campaign 'hi': Expected `int` >= 0 - at `$.caps.per_day`
    """
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CampaignError(f"not YAML: {error}") from error
    rows = parsed.get("campaigns") if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list):
        raise CampaignError("expected a list of campaigns, or a mapping with `campaigns`")
    campaigns: dict[str, Campaign] = {}
    for number, row in enumerate(rows, start=1):
        campaign = _from_row(row, number)
        if campaign.campaign_id in campaigns:
            raise CampaignError(f"campaign {campaign.campaign_id!r}: campaign_id: given twice")
        check_campaign(campaign)
        if validate is not None:
            _checked(campaign, validate)
        campaigns[campaign.campaign_id] = campaign
    return list(campaigns.values())


def _from_row(row: Any, number: int) -> Campaign:
    named = isinstance(row, dict) and "campaign_id" in row
    name = f"campaign {row['campaign_id']!r}" if named else f"campaign number {number}"
    try:
        campaign = msgspec.convert(row, Campaign)
    except msgspec.ValidationError as error:
        # YAML 1.1 reads 22:00 as a number and the country NO as false.
        hint = " (put it in quotes)" if "Expected `str`, got" in str(error) else ""
        raise CampaignError(f"{name}: {error}{hint}") from error
    if unknown := next(_unknown_fields(row, campaign, "$"), None):
        raise CampaignError(f"{name}: unknown field - at `{unknown}`")
    return campaign


def _unknown_fields(raw: Any, value: Any, path: str) -> Iterator[str]:
    """Yield the path of each key of `raw` that the struct made of it does not have."""
    if isinstance(value, msgspec.Struct):
        known = value.__struct_encode_fields__
        for key, part in raw.items():
            if key in known:
                yield from _unknown_fields(part, getattr(value, key), f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(value, dict):
        for key, part in raw.items():
            yield from _unknown_fields(part, value[key], f"{path}.{key}")
