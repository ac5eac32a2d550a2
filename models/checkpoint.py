"""The student's file: one zip that holds all serving needs, and says what it was made for.

Owns    what the file holds and its checksum; `models.archive` has its layout and version.

    meta.json          spec, version, item ids, sizes, training metrics
    model.onnx         the network
    text_projection.npy    float32, shape (TEXT_DIM, M)
    id_vectors.npy         float32, shape (number of item ids, M)
    linear.npy             float32, weights from item to item (`ItemWeights.table`); absent where
                           the network itself retrieves
"""

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.archive import DAMAGE, from_npy, read_archive, to_npy, write_archive
from models.features import TEXT_DIM, spec_hash
from models.linear_weights import ItemWeights

_ONNX: Final = "model.onnx"
_TEXT: Final = "text_projection.npy"
_IDS: Final = "id_vectors.npy"
_LINEAR: Final = "linear.npy"
_FORMAT: Final = 1


class ModelFileError(Exception):
    """The file is absent, damaged, or no student; the message says how to mend it."""


class ModelMismatchError(Exception):
    """The model was trained for another feature specification than this code has."""


class ModelFile(NamedTuple):
    """A student's parts. I known items, M columns of an item vector."""

    onnx: bytes
    item_ids: list[str]  # length I
    text_projection: NDArray[np.float32]  # shape (TEXT_DIM, M)
    id_vectors: NDArray[np.float32]  # shape (I, M)
    config: dict[str, Any]
    metrics: dict[str, float]
    linear: ItemWeights | None = None  # of the I items, for `models.tower_source`


def write_model(path: Path, model: ModelFile, *, spec: str | None = None) -> str:
    """Write the file in one step (rename); return the model's version, 16 hex digits."""
    members = {
        _ONNX: model.onnx,
        _TEXT: to_npy(model.text_projection),
        _IDS: to_npy(model.id_vectors),
    }
    if model.linear is not None:
        members[_LINEAR] = to_npy(model.linear.table())
    meta = {
        "format": _FORMAT,
        "feature_spec": spec or spec_hash(),
        "config": model.config,
        "metrics": model.metrics,
        "item_ids": model.item_ids,
    }
    return write_archive(path, members, meta)


def read_model(path: Path) -> tuple[str, ModelFile]:
    """Return (version, model) of a file that fits this code.

    Raises
    ------
    ModelMismatchError
        If its feature specification is not `models.features.spec_hash()`.
    ModelFileError
        If it is absent, damaged or of another kind.
    """
    try:
        version, meta, members = read_archive(path)
        _check_spec(path, str(meta["feature_spec"]))
        text, ids = from_npy(members[_TEXT]), from_npy(members[_IDS])
        item_ids = [str(item_id) for item_id in meta["item_ids"]]
        if text.shape[0] != TEXT_DIM or ids.shape != (len(item_ids), text.shape[1]):
            raise ValueError(f"arrays of shapes {text.shape} and {ids.shape} do not fit")
        linear = None
        if _LINEAR in members:
            linear = ItemWeights.of_table(from_npy(members[_LINEAR]), len(item_ids))
        config, metrics = dict(meta["config"]), dict(meta["metrics"])
    except DAMAGE as error:
        raise ModelFileError(
            f"cannot read the model file {path}: {error}. "
            "Copy it again, or make one with `pushflow train`."
        ) from error
    return version, ModelFile(members[_ONNX], item_ids, text, ids, config, metrics, linear)


def checksum(path: Path) -> str:
    """Return the file's blake2b-128 as hex, as `push.models.v1` carries it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_spec(path: Path, spec: str) -> None:
    if spec != spec_hash():
        raise ModelMismatchError(
            f"the model file {path} was trained for feature specification {spec}, this version "
            f"of pushflow has {spec_hash()}. Train again with `pushflow train`."
        )
