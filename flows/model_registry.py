"""MLflow's registry beside push.models.v1: what serves is @champion, what is on trial @challenger.

Reads   the card that a command of `pushflow models` wrote, or a version that the registry holds.
Emits   for each model of the card a version with its file, checksum and feature specification,
        and the two aliases.
Owns    how a model is found again in the registry: by its checksum, which is a tag.

The card is what holds. The aliases follow it after each command, so one that found no registry is
made up for by the next, and `decide` never asks MLflow for anything. No dependency: it is there
with pip install 'pushflow[mlflow]'.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from models.checkpoint import checksum
from operators.messages import ModelCard, ModelRef

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
_EXPERIMENT: Final = "pushflow-models"  # its runs hold the files
_CHECKSUM: Final = "checksum"


class RegistryError(Exception):
    """MLflow is not installed, cannot be reached, or does not hold what was asked for."""


@contextmanager
def _told() -> Iterator[None]:
    """Raise as ours what MLflow, its database or its store of files raises: no base class."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(str(error)) from error


class Aliases(NamedTuple):
    """Versions of the registry, by what they are for."""

    champion: str
    challenger: str | None


class Registry:
    """A registered model of MLflow.

    Parameters
    ----------
    uri
        Of tracking and registry: `http://host:5000`, `sqlite:////srv/mlflow.db`.
    name
        Of the registered model; made where it is not there.

    Raises
    ------
    RegistryError
        From every method, in place of whatever MLflow raises.
    """

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._name = uri, name
        with _told():
            try:
                mlflow: Any = import_module("mlflow")
                self._artifacts: Any = import_module("mlflow.artifacts")
            except ImportError as error:
                raise RegistryError(f"{error}: pip install 'pushflow[mlflow]'") from error
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    def follow(self, card: ModelCard) -> Aliases:
        """Make the aliases say what a card says; register its models where they are not yet."""
        with _told():
            self._create()
            champion = self._version_of(card)
            challenger = None if card.trial is None else self._version_of(card.trial)
            self._client.set_registered_model_alias(self._name, CHAMPION, champion)
            if challenger is not None:
                self._client.set_registered_model_alias(self._name, CHALLENGER, challenger)
            elif CHALLENGER in self._client.get_registered_model(self._name).aliases:
                self._client.delete_registered_model_alias(self._name, CHALLENGER)
        return Aliases(champion, challenger)

    def fetch(self, wanted: str, path: Path) -> None:
        """Write the file of an alias or of a version's number; replaced in one step.

        It is refused where it is not the file that the version's checksum, if it has one, is of.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with _told(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            version = self._wanted(wanted)
            source = self._client.get_model_version_download_uri(self._name, version.version)
            found = Path(
                self._artifacts.download_artifacts(
                    artifact_uri=source,
                    dst_path=folder,
                    tracking_uri=self._uri,
                    registry_uri=self._uri,
                )
            )
            if not found.is_file():
                raise RegistryError(f"version {version.version} is no single file: {source}")
            expected = version.tags.get(_CHECKSUM)
            if expected is not None and checksum(found) != expected:
                raise RegistryError(f"version {version.version} has another checksum: {source}")
            found.replace(path)

    def _wanted(self, wanted: str) -> Any:
        if wanted.isdigit():
            return self._client.get_model_version(self._name, wanted)
        return self._client.get_model_version_by_alias(self._name, wanted)

    def _create(self) -> None:
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            self._client.create_registered_model(self._name)

    def _version_of(self, ref: ModelRef) -> str:
        """Return the version of a model's file, made where it is not there."""
        asked = f"name = '{self._name}' and tags.{_CHECKSUM} = '{ref.checksum}'"
        found = self._client.search_model_versions(asked)
        if found:
            return str(max(int(one.version) for one in found))
        path = Path(ref.path)
        if checksum(path) != ref.checksum:
            raise RegistryError(f"{path} is not the file of model {ref.version} any more")
        run = self._client.create_run(self._experiment(), run_name=ref.version)
        self._client.log_artifact(run.info.run_id, str(path))
        self._client.set_terminated(run.info.run_id)
        tags = {
            _CHECKSUM: ref.checksum,
            "feature_spec": ref.feature_spec,
            "pushflow_version": ref.version,
        }
        source = f"runs:/{run.info.run_id}/{path.name}"
        made = self._client.create_model_version(
            self._name, source, run_id=run.info.run_id, tags=tags
        )
        return str(made.version)

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        return str(found.experiment_id if found else self._client.create_experiment(_EXPERIMENT))
