"""MLflow's registry beside the card, on a real one: its client over a database of its own."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows import rollout
from flows.model_registry import Registry, RegistryError
from flows.supervisor import free_ports
from models.checkpoint import checksum
from models.train import Progress
from models.training_log import opened
from operators.messages import ModelRef
from tests.flows.test_rollout import Shop

pytestmark = [
    pytest.mark.skipif(find_spec("mlflow") is None, reason="needs pushflow[mlflow]"),
    # MLflow's own, and SQLAlchemy's of MLflow.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
BEGINS: dict[str, list[int]] = {}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)  # where a database without a server keeps files
        yield f"sqlite:///{folder / 'registry.db'}"


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient  # takes seconds: not while tests are collected

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def shop(uri: str, embedded_bootstrap: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(embedded_bootstrap, tmp_path)
    shop.environment |= {
        "PUSHFLOW_MODELS__MLFLOW_URI": uri,
        "PUSHFLOW_MODELS__MLFLOW_NAME": tmp_path.name,
    }
    yield shop
    shop.tables.close()


def model(folder: Path, version: str) -> ModelRef:
    path = folder / f"{version}.pfm"
    path.write_bytes(f"the model {version} of {folder}".encode())
    return ModelRef(version=version, path=str(path), checksum=checksum(path), feature_spec="spec")


def test_the_aliases_go_where_the_card_goes(uri: str, client: Any, tmp_path: Path) -> None:
    one, other = model(tmp_path, "one"), model(tmp_path, "other")
    registry = Registry(uri, "rolled")
    served = rollout.served(None, one)
    shadow = rollout.on_trial(served, other, "shadow", 0.1, BEGINS)
    canary = rollout.promoted(shadow, 0.1, BEGINS)
    promoted = rollout.promoted(canary, 0.1, BEGINS)
    back = rollout.rolled_back(promoted)

    found = [registry.follow(card) for card in (served, shadow, canary, promoted, back)]

    assert found == [("1", None), ("1", "2"), ("1", "2"), ("2", None), ("1", None)]
    assert client.get_registered_model("rolled").aliases == {"champion": 1}
    tags = client.get_model_version("rolled", "2").tags
    assert tags == {
        "checksum": other.checksum,
        "feature_spec": "spec",
        "pushflow_version": "other",
    }


def test_a_version_brings_its_file(uri: str, tmp_path: Path) -> None:
    registry, one = Registry(uri, "fetched"), model(tmp_path, "one")
    registry.follow(rollout.served(None, one))
    written = Path(one.path).read_bytes()
    Path(one.path).unlink()

    registry.fetch("champion", tmp_path / "a" / "copy.pfm")
    registry.fetch("1", tmp_path / "a" / "again.pfm")

    names = ("copy.pfm", "again.pfm")
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == [written, written]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names)


def test_a_file_that_is_not_the_versions_is_refused(uri: str, client: Any, tmp_path: Path) -> None:
    registry, one = Registry(uri, "changed"), model(tmp_path, "one")
    registry.follow(rollout.served(None, one))
    client.set_model_version_tag("changed", "1", "checksum", "0" * 32)
    (tmp_path / "copy.pfm").write_bytes(b"what serves now")

    with pytest.raises(RegistryError, match="another checksum"):
        registry.fetch("champion", tmp_path / "copy.pfm")

    assert (tmp_path / "copy.pfm").read_bytes() == b"what serves now"


def test_a_model_whose_file_has_changed_is_not_registered(uri: str, tmp_path: Path) -> None:
    one = model(tmp_path, "one")
    Path(one.path).write_bytes(b"another")

    with pytest.raises(RegistryError, match="not the file of model one"):
        Registry(uri, "lost").follow(rollout.served(None, one))


def test_what_the_registry_does_not_hold_is_said(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="nobody"):
        Registry(uri, "nobody").fetch("champion", tmp_path / "copy.pfm")


def test_commands_tell_the_registry_and_take_models_from_it(
    shop: Shop, client: Any, tmp_path: Path
) -> None:
    one = shop.call("publish", shop.file(1), "--stage", "served")
    other = shop.call("publish", shop.file(2))
    served = shop.call("promote", "--force"), shop.call("promote", "--force")
    back = shop.call("rollback")
    copy = str(tmp_path / "copy.pfm")
    again = shop.call("publish", copy, "--from-mlflow", "2", "--stage", "served")

    told = [found["mlflow"] for found in (one, other, *served, back, again)]
    assert [(found["champion"], found["challenger"]) for found in told] == [
        ("1", None), ("1", "2"), ("1", "2"), ("2", None), ("1", None), ("2", None),
    ]  # fmt: skip
    assert again["served"] == other["trial"]["version"]
    assert client.get_model_version_by_alias(tmp_path.name, "champion").version == 2
    card = rollout.read(shop.settings).card
    assert card is not None
    assert card.path == copy


def test_a_registry_that_is_not_there_keeps_no_model_from_being_taken_back(shop: Shop) -> None:
    shop.environment.pop("PUSHFLOW_MODELS__MLFLOW_URI")
    one = shop.call("publish", shop.file(1), "--stage", "served")["served"]
    shop.call("publish", shop.file(2), "--stage", "served")
    shop.environment |= {
        "PUSHFLOW_MODELS__MLFLOW_URI": f"http://127.0.0.1:{free_ports(1)[0]}",  # nobody is there
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }

    found = shop.call("rollback")

    assert found["served"] == one
    assert "error" in found["mlflow"]


def test_a_training_logs_to_a_real_store(uri: str, client: Any) -> None:
    with opened(f"mlflow:{uri}", {"epochs": 2}) as log:
        log(Progress(7, 10, 1, 0.5, 0.25))
    (run,) = client.search_runs([client.get_experiment_by_name("pushflow").experiment_id])
    assert run.data.metrics == {"loss": 0.5, "validation_ndcg_at_10": 0.25}
    assert run.data.params == {"epochs": "2"}
