"""The wire: every message of every topic, as one typed struct each.

Reads   nothing; `operators.codec` turns bytes into these and back.
Owns    the names, units, lengths and ranges of all fields, and the table of topics.

Values are JSON. Field names are part of the contract with other teams: add fields with
defaults, never rename or re-use one (a new meaning is a new topic version). Unknown fields
are ignored on reading, so that a producer may be newer than we are. Times are milliseconds
since 1970 in UTC, taken from the producer (event time), never from our clock.

`pushflow schema` prints the JSON Schemas made from these structs. Those that come by the thousand
are not tracked by the garbage collector (`gc=False`): they hold no cycles.
"""

from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct, field

Id = Annotated[str, Meta(min_length=1, max_length=128)]
ShortText = Annotated[str, Meta(max_length=256)]
LongText = Annotated[str, Meta(max_length=4096)]
Locale = Annotated[str, Meta(min_length=2, max_length=35)]  # BCP 47
Country = Annotated[str, Meta(max_length=64)]
Zone = Annotated[str, Meta(max_length=64)]  # IANA name, "Asia/Shanghai"
# 2000-01-01 to 2100-01-01: catches seconds and microseconds sent as milliseconds.
TimeMs = Annotated[int, Meta(ge=946_684_800_000, le=4_102_444_800_000)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=-1e9, le=1e9)]
Vector = Annotated[list[float], Meta(max_length=4096)]
Props = Annotated[dict[str, Any], Meta(max_length=64)]

EventType = Literal[
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
]
FeedbackType = Literal[
    "accepted",
    "delivered",
    "opened",
    "dismissed",
    "converted",
    "opted_out",
    "token_invalid",
    "expired",
    "clicked",
]
TriggerType = Literal[
    "intent", "cart_left", "session_ended", "idle", "price_dropped", "back_in_stock"
]
SignalType = Literal["searched", "commented", "price_dropped", "back_in_stock"]
Outcome = Literal["send", "defer", "suppress", "holdout"]
TrialStage = Literal["shadow", "canary"]
Channel = Literal["fcm", "apns", "webpush", "any"]

NONE_ARM = "none"  # the item_id of the arm "send nothing"


class EventContext(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Where and on what an event happened; empty strings are unknown."""

    device: ShortText = ""  # mobile, desktop, tablet, ...
    platform: ShortText = ""  # ios, android, web, ...
    app_version: ShortText = ""
    locale: ShortText = ""
    timezone: Zone = ""
    country: Country = ""
    city: ShortText = ""


class Event(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """`push.events.v1`: a fact about a user.

    `value` is money (price x quantity), a rating, or the seconds a view lasted.
    """

    event_id: Id
    user_id: Id
    type: EventType
    time_ms: TimeMs
    item_id: Id | None = None
    value: Amount | None = None
    text: LongText | None = None
    context: EventContext | None = None
    props: Props | None = None


class LocalText(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item's words in one locale."""

    title: ShortText
    description: LongText = ""


class Item(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`push.items.v1`: what can be pushed. A tombstone removes it."""

    item_id: Id
    title: ShortText
    description: LongText = ""
    categories: Annotated[list[ShortText], Meta(max_length=32)] = []
    tags: Annotated[list[ShortText], Meta(max_length=64)] = []
    price: Amount = 0.0
    available_from_ms: TimeMs | None = None
    available_until_ms: TimeMs | None = None
    is_available: bool = True
    created_ms: TimeMs | None = None
    image_url: LongText = ""
    deep_link: LongText = ""
    image_vector: Vector = []
    audio_vector: Vector = []
    audio_url: LongText = ""
    locales: Annotated[dict[str, LocalText], Meta(max_length=64)] = {}


class Consent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a user agreed to. No consent message means no push."""

    push: bool = False
    personalization: bool = True
    version: ShortText = ""


class UserProfile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`push.users.v1`: what is known of a user apart from behaviour. A tombstone forgets it."""

    user_id: Id
    timezone: Zone = "UTC"
    locale: Locale = "en"
    country: Country = ""
    city: ShortText = ""
    age_band: ShortText = ""
    gender: ShortText = ""
    consent: Consent = Consent()
    channels: Annotated[list[Channel], Meta(max_length=8)] = field(default_factory=lambda: ["any"])
    # What the user does not want to be told of: items, and main categories.
    blocked_items: Annotated[list[Id], Meta(max_length=256)] = []
    blocked_categories: Annotated[list[ShortText], Meta(max_length=64)] = []


class Template(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One locale's wording. `{item_title}`, `{price}`, `{category}`, `{item_id}` are filled in."""

    title: ShortText
    body: LongText
    deep_link: LongText = ""
    image_url: LongText = ""
    template_id: ShortText = ""


class Audience(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom a campaign may reach; an empty list is everybody."""

    countries: list[Country] = []
    locales: list[ShortText] = []  # prefixes: "zh" takes "zh-CN"
    platforms: list[ShortText] = []
    min_purchases: Annotated[int, Meta(ge=0)] = 0


class Picks(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a campaign puts forward: items first, then the most popular of main categories."""

    item_ids: Annotated[list[Id], Meta(max_length=100)] = []
    categories: Annotated[list[ShortText], Meta(max_length=32)] = []


class QuietHours(Struct, frozen=True, kw_only=True):
    """Local wall-clock hours without pushes, `start` inside, `end` outside; may pass midnight."""

    start: Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "22:00"
    end: Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "08:00"


class Caps(Struct, frozen=True, kw_only=True):
    """How often one user may be sent to, over all campaigns with the tightest cap winning."""

    per_day: Annotated[int, Meta(ge=0)] = 3  # sends in any 24 h of event time
    per_week: Annotated[int, Meta(ge=0)] = 10
    min_gap_seconds: Annotated[int, Meta(ge=0)] = 7_200
    same_item_days: Annotated[int, Meta(ge=0)] = 7  # days before an item is pushed again


class Experiment(Struct, frozen=True, kw_only=True):
    """How users are split, by salted hash of user_id; what `arms` leave over is `policy`."""

    salt: ShortText = "pushflow"
    holdout: Share = 0.05  # never sent to, to measure lift
    # arm name -> share of those not held out. "random" is served by the uniform policy, an arm
    # with the name of one of `models.policies.KINDS` by that, every other by `ranking.policy`.
    arms: dict[str, Share] = field(default_factory=lambda: {"random": 0.10})


class CampaignRewards(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a campaign's pushes earn, in place of the settings `rewards`; None leaves those."""

    opened: Amount | None = None
    clicked: Amount | None = None
    converted: Amount | None = None
    dismissed: Amount | None = None
    opted_out: Amount | None = None
    no_response: Amount | None = None
    # From sending to when silence counts; 28 days, as long as FCM keeps a message.
    window_seconds: Annotated[int, Meta(ge=1, le=2_419_200)] | None = None


class Campaign(Struct, frozen=True, kw_only=True):
    """`push.campaigns.v1`: when, to whom and in which words we may push."""

    campaign_id: Id
    trigger: TriggerType
    templates: Annotated[dict[str, Template], Meta(min_length=1, max_length=64)]
    name: ShortText = ""
    default_locale: Locale = "en"
    audience: Audience = Audience()
    picks: Picks = Picks()
    priority: Literal["normal", "high"] = "normal"
    rank: int = 0  # among campaigns of one trigger the highest rank wins, then campaign_id
    ttl_seconds: Annotated[int, Meta(ge=60, le=2_419_200)] = 14_400  # FCM's bound is 4 weeks
    caps: Caps = Caps()
    quiet_hours: QuietHours | None = QuietHours()
    budget_per_day: Annotated[int, Meta(ge=0)] | None = None
    experiment: Experiment = Experiment()
    channel: Channel = "any"
    state: Literal["active", "paused"] = "active"
    starts_ms: TimeMs | None = None
    ends_ms: TimeMs | None = None
    dry_run: bool = False
    rewards: CampaignRewards | None = None


class Feedback(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """`push.feedback.v1`: what became of a decision that was sent."""

    feedback_id: Id
    decision_id: Id
    user_id: Id
    type: FeedbackType
    time_ms: TimeMs
    value: Amount | None = None


class TriggerRef(Struct, frozen=True, gc=False):
    """The reason for a decision."""

    type: TriggerType
    event_id: str


class Delivery(Struct, frozen=True, gc=False, kw_only=True):
    """How and when a gateway sends. `expires_at` and `send_after` are milliseconds UTC."""

    channel: Channel
    send_after: int
    expires_at: int
    priority: Literal["normal", "high"]
    collapse_key: str  # ^[A-Za-z0-9_-]{1,32}$
    dry_run: bool = False


class Content(Struct, frozen=True, gc=False, kw_only=True):
    """What the user reads; at most 4,096 bytes rendered."""

    item_id: str
    template_id: str
    locale: str
    title: str
    body: str
    deep_link: str
    image_url: str
    data: dict[str, str]


class Action(Struct, frozen=True, gc=False):
    """One arm as the policy saw it. `features` are the arm's own columns of the policy's input."""

    item_id: str
    source: str
    score: float
    probability: float
    features: list[float]


class Trial(Struct, frozen=True, gc=False):
    """What a model on trial had to do with a decision.

    In `canary` it scored the decision, as `model_version` says; in `shadow` its scores stand here
    and changed nothing.
    """

    version: str
    stage: TrialStage
    scores: list[float] = []  # of the action set without "none", in its order


class Apprentice(Struct, frozen=True, gc=False):
    """What another policy would have done with the same action set; it changed nothing."""

    policy_id: str
    probabilities: list[float]  # of the action set, "none" last
    value: float  # what it expected of them, in the unit of its values


class Judgement(Struct, frozen=True, gc=False):
    """What the probabilities were made of, and of nothing else: see `models.policy.Judged`."""

    values: list[float]  # of the action set, "none" last
    spread: list[float] = []  # how unsure they are, as the policy reads it
    knobs: dict[str, float] = {}  # the policy's settings as they acted
    # learner shard -> its `PolicyShard.version` that the posterior was merged from
    learned: dict[str, int] = {}


class Learning(Struct, frozen=True, gc=False, kw_only=True):
    """All that learning, audit and off-policy evaluation need of a decision."""

    policy_id: str
    policy_version: str
    model_version: str
    feature_spec: str
    campaign_id: str
    arm: str  # experiment arm
    context: list[float]  # the policy's context columns, shared by all actions
    action_set: list[Action]
    chosen: int  # index into action_set
    propensity: float
    is_exploration: bool
    reward_deadline: int  # ms; feedback later than this only corrects
    trial: Trial | None = None  # None: no model on trial had to do with it
    judged: Judgement | None = None  # None: no policy was asked
    rewards: CampaignRewards | None = None  # as the campaign said then; None: the settings hold
    apprentice: Apprentice | None = None  # None: none was asked


class Explanation(Struct, frozen=True, gc=False):
    """One feature's share of the chosen arm's score (value x weight)."""

    feature: str
    value: float
    contribution: float


class Decision(Struct, frozen=True, gc=False, kw_only=True):
    """`push.decisions.v1`: the one answer to one trigger. A gateway acts on `send` alone."""

    decision_id: Id
    trigger: TriggerRef
    user_id: Id
    decided_at: int  # event time of the trigger, ms
    outcome: Outcome
    reason_codes: list[str]
    delivery: Delivery
    content: Content | None
    learning: Learning
    explanation: list[Explanation]


class DriftAlarm(Struct, frozen=True):
    """A mean that has moved, of a segment's rewards or of the learner's errors in it."""

    segment: str  # "campaign:<id>" or "trigger:<type>"
    kind: str  # "reward" or "error"
    time_ms: int  # event time
    before: float  # mean since the last alarm
    after: float  # mean of late


class PolicyShard(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`push.policy.v1`: one learner shard's sufficient statistics; shards add up.

    With a half-life the sums are as of `newest_ms`, and age from there on: see
    `models.posterior.merge`.

    `precision` is base64 of float64, the lower triangle by rows of sum(x x^T) without the
    prior, shape (D * (D + 1) / 2,); `moment` is base64 of float64 sum(x y), shape (D,).
    """

    shard: Id
    policy_id: str
    feature_spec: str
    version: int  # rewards learned by this shard, corrections included
    n_rewards: int
    dim: int
    time_ms: int  # event time of the newest reward
    precision: str
    moment: str
    forgotten: float = 0.0  # of `n_rewards`: what is missing of the sum of their weights
    # Event time of the newest decision learned from; 0: sums do not age.
    newest_ms: Annotated[int, Meta(ge=0)] = 0
    half_life_ms: Annotated[int, Meta(ge=0)] = 0
    alarms: list[DriftAlarm] = []  # the newest 8


class ModelRef(Struct, frozen=True, kw_only=True):
    """A model file, and how to tell that it is the one."""

    version: ShortText
    path: LongText  # as every `decide` process can open it
    checksum: ShortText  # blake2b-128 of the file, hex
    feature_spec: ShortText


class ModelTrial(ModelRef, frozen=True, kw_only=True, omit_defaults=True):
    """A model beside the served one, for a share of users.

    In `shadow` it scores their action sets for the log alone, in `canary` it decides for them.
    """

    stage: TrialStage
    share: Share  # of users, see `models.rollout.is_in_share`
    # topic -> the next offset of each partition when the stage began: what came before is not of it
    begins: dict[str, list[int]] = {}


class ModelCard(ModelRef, frozen=True, kw_only=True, omit_defaults=True):
    """`push.models.v1`: which student to serve, which to try beside it, which was served before.

    One message has all three, for a promotion changes them together, and rows of different keys
    reach a process in any order.
    """

    name: Id
    trial: ModelTrial | None = None
    previous: ModelRef | None = None
    is_forced: bool = False  # serve it however slow it is beside the one before


class TrialReport(Struct, frozen=True, kw_only=True):
    """`push.model-trials.v1`: how one process of `decide` fares with its models.

    The key is the process's place in its cluster, so there are as many rows as processes; those
    of processes that are no more are told by their time.
    """

    process: ShortText
    time_ms: int  # of the process's clock
    served: ShortText  # version, "none" without
    trial: ShortText = ""  # version that is on trial in this process, "" where none is
    refusals: dict[str, str] = {}  # version -> why it is not taken
    # Of triggers that both have scored since the trial began here, seconds a call:
    n_calls: int = 0
    served_p99: float = 0.0
    trial_p99: float = 0.0


class ItemStats(Struct, frozen=True, kw_only=True):
    """`push.item-stats.v1`: what the stream taught about an item, decayed to `as_of_ms`."""

    item_id: Id
    as_of_ms: int
    views: float  # all counts decayed with the half-life of 7 days
    clicks: float
    carts: float
    purchases: float
    favorites: float
    pushes: float  # sends of this item
    opens: float  # opens of those
    rating_sum: float
    rating_count: float
    popularity_1d: float  # weighted interactions with the half-life of 1 day
    first_seen_ms: int
    by_country: dict[str, float]  # popularity by country, the largest only
    neighbours: list[tuple[str, float]]  # (item_id, strength), strongest first
    # Of purchases, decayed with the half-life of 180 days, as that of the mean below.
    first_buys: float = 0.0  # by users who had not bought the item before
    repeat_buys: float = 0.0  # by users who had, a day before or longer ago
    repeat_days: float = 0.0  # geometric mean of the days between; 0: never bought again
    # Weighted interactions, half-life 7 days, by block of 4 hours of the day, UTC; [] is not known.
    by_hour: Annotated[list[float], Meta(max_length=6)] = []
    interest: float = 0.0  # weighted interactions, half-life 730 days


class ItemVector(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """`push.item-vectors.v1`: the content of an item as one vector, by the encoder that made it.

    The key is `<encoder>/<item_id>`. Under `<encoder>#<shard>` stands a row without an item: all
    items of that shard of `catalog` that were there when the encoder came have their vectors.
    """

    encoder: ShortText
    item_id: Annotated[str, Meta(max_length=128)] = ""
    content_key: ShortText = ""  # hash of what was encoded
    vector: LongText = ""  # base64 of int16, little-endian, shape (64,), in steps of 2^-11
    # Of a row without an item:
    shard: ShortText = ""
    n_shards: Annotated[int, Meta(ge=0)] = 0
    n_items: Annotated[int, Meta(ge=0)] = 0  # vectors that stand behind the row
    since_ms: Annotated[int, Meta(ge=0)] = 0  # when the encoder came: the newest whole one serves


class Erasure(Struct, frozen=True, kw_only=True):
    """`push.erasures.v1`: forget this user."""

    user_id: Id
    time_ms: TimeMs
    reason: ShortText = ""


class UserSignal(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """`push.user-signals.v1`: what `catalog` found out for a user.

    Text that the user wrote, as a vector of the catalogue's encoder, or a change of an item that
    the user showed interest in. `signal_id` follows from the input alone.
    """

    signal_id: Id
    user_id: Id
    type: SignalType
    time_ms: TimeMs  # event time: the text's, or that of the change
    item_id: Id | None = None  # the changed one, or the one that was commented on
    encoder: ShortText = ""  # of the vector
    vector: LongText = ""  # base64 of int16, little-endian, shape (64,), in steps of 2^-11
    since_ms: Annotated[int, Meta(ge=0)] = 0  # when the user last showed interest in the item
    price: Amount | None = None  # of a price that dropped, as is the next
    old_price: Amount | None = None


class DeadLetter(Struct, frozen=True, kw_only=True):
    """`push.dlq.v1`: bytes that could not be used, why, and where they stood."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    size_bytes: int
    payload: str  # base64 of at most the first 8,192 bytes


class TopicSpec(NamedTuple):
    """A topic's contract: its value's type, the field that is its key, and how long it is kept."""

    value: type[Struct]
    key: str
    is_compacted: bool
    retention_ms: int  # -1: for ever (compacted topics)


_DAY_MS = 86_400_000

# Topics keyed by user_id must have the same number of partitions: `decide` and `learn` join
# them partition by partition, which is what makes a replay give the same decisions.
TOPICS: dict[str, TopicSpec] = {
    "push.events.v1": TopicSpec(Event, "user_id", False, 7 * _DAY_MS),
    "push.items.v1": TopicSpec(Item, "item_id", True, -1),
    "push.users.v1": TopicSpec(UserProfile, "user_id", True, -1),
    "push.campaigns.v1": TopicSpec(Campaign, "campaign_id", True, -1),
    "push.feedback.v1": TopicSpec(Feedback, "user_id", False, 30 * _DAY_MS),
    "push.decisions.v1": TopicSpec(Decision, "user_id", False, 30 * _DAY_MS),
    "push.policy.v1": TopicSpec(PolicyShard, "shard", True, -1),
    "push.models.v1": TopicSpec(ModelCard, "name", True, -1),
    "push.model-trials.v1": TopicSpec(TrialReport, "process", True, -1),
    "push.item-stats.v1": TopicSpec(ItemStats, "item_id", True, -1),
    "push.item-vectors.v1": TopicSpec(ItemVector, "", True, -1),
    "push.user-signals.v1": TopicSpec(UserSignal, "user_id", False, _DAY_MS),
    "push.erasures.v1": TopicSpec(Erasure, "user_id", False, 90 * _DAY_MS),
    "push.dlq.v1": TopicSpec(DeadLetter, "", False, 14 * _DAY_MS),
}
