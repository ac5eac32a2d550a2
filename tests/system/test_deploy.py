"""The image and the compose file, as far as they can be checked without a Docker engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flows.settings import Settings
from flows.supervisor import PEER_SECONDS, STOP_SECONDS
from operators.campaigns import load_yaml
from operators.content import validate_templates

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FLOWS = ("topics", "decide", "learn", "catalog", "archive")
ENVIRONMENT = [(name, key) for name in FLOWS for key in SERVICES[name]["environment"]]


def package(requirement: str) -> str:
    return re.split(r"[\[><=~! ;]", requirement)[0].lower()


def instructions(name: str) -> list[str]:
    """Return the arguments of each of a Dockerfile's instructions of one name, joined lines."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name}\s+(.*)$", joined, flags=re.MULTILINE)


@pytest.mark.parametrize(("service", "variable"), ENVIRONMENT)
def test_each_variable_of_compose_names_a_setting(service: str, variable: str) -> None:
    prefix, *path = re.split("__|(?<=^PUSHFLOW)_", variable)
    fields = Settings.model_fields
    for name in path[:-1]:
        group = fields[name.lower()].annotation
        assert isinstance(group, type)
        assert issubclass(group, BaseModel)
        fields = group.model_fields
    assert prefix == "PUSHFLOW"
    assert path[-1].lower() in fields


def test_the_settings_of_compose_are_valid_and_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["decide"]["environment"].items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.kafka.bootstrap_servers == "kafka:19092"
    assert settings.redis.url.get_secret_value() == "redis://redis:6379/0"
    assert settings.state.directory == Path("/var/lib/pushflow/state")
    assert settings.metrics_port == 9100


def test_the_flows_redis_kafka_and_the_topics_job_are_there() -> None:
    flows = {"decide", "learn", "catalog", "archive"}
    assert set(SERVICES) == {"kafka", "redis", "topics"} | flows
    assert SERVICES["topics"]["command"] == ["topics", "create"]
    decide = ["run", "decide", "--processes", "${DECIDE_PROCESSES:-2}"]
    assert SERVICES["decide"]["command"] == decide
    assert SERVICES["learn"]["command"] == ["run", "learn", "--processes", "1"]
    assert SERVICES["catalog"]["command"] == ["run", "catalog", "--processes", "1"]
    assert SERVICES["archive"]["command"] == ["run", "archive", "--processes", "1"]


@pytest.mark.parametrize("service", ["kafka", "redis", "decide", "learn", "catalog", "archive"])
def test_each_service_that_stays_has_a_health_check(service: str) -> None:
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert check["retries"] >= 3


def test_the_flows_start_after_the_topics_and_the_topics_after_the_broker() -> None:
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    done = {"condition": "service_completed_successfully"}
    assert SERVICES["decide"]["depends_on"]["topics"] == done
    assert SERVICES["learn"]["depends_on"]["topics"] == done
    assert SERVICES["catalog"]["depends_on"]["topics"] == done
    assert SERVICES["archive"]["depends_on"]["topics"] == done


@pytest.mark.parametrize("flow", ["decide", "learn", "catalog", "archive"])
def test_a_flow_has_the_time_to_stop_that_its_supervisor_takes(flow: str) -> None:
    assert (
        float(SERVICES[flow]["stop_grace_period"].removesuffix("s")) > STOP_SECONDS + PEER_SECONDS
    )


def test_the_metrics_of_each_process_of_decide_are_published() -> None:
    port = int(SERVICES["decide"]["environment"]["PUSHFLOW_METRICS_PORT"])
    assert SERVICES["decide"]["ports"] == [f"127.0.0.1:9110-9117:{port}-{port + 7}"]


def test_the_state_of_each_flow_lies_on_a_volume_of_its_own() -> None:
    kept = SERVICES["decide"]["environment"]["PUSHFLOW_STATE__DIRECTORY"]
    assert kept.startswith("/var/lib/pushflow/")
    assert "decide:/var/lib/pushflow" in SERVICES["decide"]["volumes"]
    assert "learn:/var/lib/pushflow" in SERVICES["learn"]["volumes"]
    assert "catalog:/var/lib/pushflow" in SERVICES["catalog"]["volumes"]
    assert "archive:/var/lib/pushflow" in SERVICES["archive"]["volumes"]
    assert {"kafka", "decide", "learn", "catalog", "archive"} == set(COMPOSE["volumes"])


def test_the_archive_lies_on_its_volume_and_its_image_has_what_it_needs() -> None:
    url = SERVICES["archive"]["environment"]["PUSHFLOW_ARCHIVE__URL"]
    assert url == "${PUSHFLOW_ARCHIVE__URL:-/var/lib/pushflow/archive}"
    assert SERVICES["archive"]["build"]["target"] == "archive"
    stages = DOCKERFILE.split("\nFROM ")
    assert [stage for stage in stages if stage.startswith("core AS archive\n")] != []
    [build] = [stage for stage in stages if stage.startswith("build AS build-archive\n")]
    assert "requirements.lock pyarrow" in build
    assert stages[-1] == "core\n"  # what is built where no stage is asked for


def test_the_ports_are_open_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 6
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_image_runs_as_a_user_without_rights() -> None:
    *_, user = instructions("USER")
    assert user == "pushflow"
    assert "--uid 10001" in DOCKERFILE


def test_the_image_installs_the_core_alone_and_the_core_has_no_torch() -> None:
    core = {package(requirement) for requirement in PROJECT["dependencies"]}
    assert core & {"torch", "onnx", "transformers", "pyarrow"} == set()
    assert "onnxruntime" in core
    assert "--extra" not in DOCKERFILE
    assert "[" not in " ".join(line for line in instructions("RUN") if "pip install" in line)


def test_all_that_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = [
        source
        for line in instructions("COPY")
        if "--from" not in line
        for source in line.split()[:-1]
    ]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {f"!{source.split('/')[0]}" for source in copied} <= {
        entry.split("/")[0] for entry in kept
    }


def test_the_campaigns_of_the_image_are_valid() -> None:
    target = SERVICES["decide"]["environment"]["PUSHFLOW_CAMPAIGNS_FILE"]
    assert f"flows/campaigns.yaml {target}" in instructions("COPY")
    text = (ROOT / "flows" / "campaigns.yaml").read_text(encoding="utf-8")
    assert len(load_yaml(text, validate_templates)) >= 2


def test_the_lock_pins_every_dependency_by_name_and_version_alone() -> None:
    lines = (DEPLOY / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", pin)] == []
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    named = {package(r) for r in [*PROJECT["dependencies"], *extras]} - {"pushflow"}
    assert named <= {pin.split("==")[0] for pin in pins}


def test_the_serving_code_runs_without_the_packages_that_the_image_lacks() -> None:
    core = {package(requirement) for requirement in PROJECT["dependencies"]}
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    brought = {"pushflow", "scipy"}  # SciPy comes with River
    lacking = {package(r).replace("-", "_") for r in extras} - core - brought
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Lacking(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {sorted(lacking)}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Lacking())
import flows.cli, flows.decide, flows.learn, flows.catalog, flows.run, flows.replay, flows.doctor
"""

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )

    assert "torch" in lacking
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.system
@pytest.mark.slow
def test_the_image_builds_and_starts(has_docker: bool) -> None:
    if not has_docker:
        pytest.skip("no Docker engine answers")
    docker = str(shutil.which("docker"))
    build = [docker, "build", "-f", "deploy/Dockerfile", "-t", "pushflow:test", "."]
    subprocess.run(build, cwd=ROOT, check=True)

    run = [docker, "run", "--rm", "--entrypoint", "id", "pushflow:test", "-u"]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "10001\n"
    config = [docker, "run", "--rm", "pushflow:test", "config"]
    assert (
        '"bootstrap_servers"'
        in subprocess.run(config, check=True, capture_output=True, text=True).stdout
    )
